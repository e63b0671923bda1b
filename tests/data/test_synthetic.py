import collections
import hashlib
import io
import itertools
import json
import pathlib
import wave

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic import media, sessions
from sail_jax.data.synthetic import world as synthetic
from sail_jax.data.synthetic.sessions import Event, consumed_together
from sail_jax.data.synthetic.topics import FACETS, FILLERS, THEMES, draw_topics, facets_of
from sail_jax.errors import SailError

CONFIG = SyntheticConfig(
    num_items=144,
    items_per_topic=6,
    test_queries=24,
    searches=60,
    test_searches=30,
    clean_pairs=50,
    off_domain_items=12,
    num_users=40,
    events_per_user=20,
)
SMALL = {"test_queries": 4, "searches": 8, "test_searches": 4, "clean_pairs": 4, "off_domain_items": 0}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairs_of(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "deep" / "world"
    return folder, synthetic.make_world(CONFIG, 3, folder)


@pytest.fixture(scope="module")
def items(world):
    return read(world[0] / "items.jsonl")


@pytest.fixture(scope="module")
def truth(world):
    return {row["item_id"]: row for row in read(world[0] / "truth.jsonl")}


def test_same_settings_give_same_bytes_and_another_seed_does_not(tmp_path):
    small = SyntheticConfig(num_items=48, items_per_topic=6, num_users=4, **SMALL | {"off_domain_items": 4})
    first, again = (synthetic.make_world(small, 3, tmp_path / name) for name in ("first", "again"))
    assert again == first
    assert digests(tmp_path / "again") == digests(tmp_path / "first")
    synthetic.make_world(small, 4, tmp_path / "other")
    ours, other = digests(tmp_path / "first"), digests(tmp_path / "other")
    assert not {ours[name] for name in ours if name.startswith(("frames", "audio"))} & set(other.values())


@pytest.mark.slow
def test_finished_world_is_left_alone_and_others_are_refused(world, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in world[0].rglob("*")}
    assert synthetic.make_world(CONFIG, 3, world[0]) == world[1]
    assert {path: path.stat().st_mtime_ns for path in world[0].rglob("*")} == before
    with pytest.raises(SailError, match="other settings"):
        synthetic.make_world(CONFIG, 5, world[0])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SailError, match="holds no generated world"):
        synthetic.make_world(CONFIG, 3, tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_items": 3}, "at least 12 items"),
        ({"num_items": 40_000, "items_per_topic": 2}, "there are 10,368. Raise synthetic.items_per_topic"),
        ({"missing_fields": ("titel",)}, "no field 'titel'; name some of title, asr"),
        ({"missing_fields": ("title", "asr", "tags")}, "nothing tells the theme"),
    ],
)
def test_worlds_that_cannot_be_made(tmp_path, changes, message):
    with pytest.raises(SailError, match=message):
        synthetic.make_world(SyntheticConfig(**changes), 3, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_killed_generation_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    small = SyntheticConfig(num_items=12, num_users=2, events_per_user=4, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_searches", killed)
        with pytest.raises(KeyboardInterrupt):
            synthetic.make_world(small, 0, tmp_path / "w")
    assert not list(tmp_path.iterdir())
    (tmp_path / "w.partial" / "frames").mkdir(parents=True)
    (tmp_path / "w.partial" / "frames" / "stale.jpg").write_text("left by a killed run")
    synthetic.make_world(small, 0, tmp_path / "w")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert not (tmp_path / "w" / "frames" / "stale.jpg").exists()


def test_media_decode_and_every_file_belongs_to_an_item(world, items):
    folder, summary = world
    named = set()
    for item in items:
        assert len(item["frames"]) <= 4
        for frame in item["frames"]:
            with Image.open(folder / frame) as image:
                assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")
                image.load()
        if item["audio"]:
            with wave.open(str(folder / item["audio"])) as sound:
                assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16_000, 1, 2)
                assert 0.5 <= sound.getnframes() / 16_000 <= 2.5
                assert np.abs(np.frombuffer(sound.readframes(-1), "<i2")).max() > 5_000
        named |= {*item["frames"], *([item["audio"]] if item["audio"] else [])}
    on_disk = {str(path.relative_to(folder)) for path in itertools.chain(*map(folder.glob, ("frames/*", "audio/*")))}
    assert named == on_disk
    assert summary.frames + summary.sounds == len(named)


def test_some_items_lack_a_modality_and_none_lacks_two(items, truth):
    items = [item for item in items if item["item_id"] in truth]  # off-domain items have one
    no_text = [not (item["title"] or item["asr"] or item["ocr"] or item["nickname"] or item["tags"]) for item in items]
    lacks = np.array([no_text, [not i["frames"] for i in items], [i["audio"] is None for i in items]])
    assert np.all((lacks.mean(1) > 0.02) & (lacks.mean(1) < 0.25))
    assert lacks.sum(0).max() == 1
    assert [{"text": 0, "frames": 1, "audio": 2}.get(truth[item["item_id"]]["lacks"], -1) for item in items] == [
        int(column.argmax()) if column.any() else -1 for column in lacks.T
    ]
    assert sum(item["title"] is None for item in items) > sum(no_text)
    assert {len(item["frames"]) for item in items} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("count, left", [(8, 2), (24, 2), (48, 3), (96, 3), (240, 3)])
def test_any_two_senses_leave_several_topics_and_three_name_one(count, left):
    facets = facets_of(draw_topics(count, seed=1))
    assert len(np.unique(facets, axis=0)) == count
    for two in itertools.combinations(range(3), 2):
        assert np.unique(facets[:, two], axis=0, return_counts=True)[1].min() == left
    for one in range(3):
        numbers = np.unique(facets[:, one], return_counts=True)[1]
        assert count < 48 or set(numbers) == {12}
    assert 0 in facets[:, FACETS.index("look")]  # red circles


def test_all_topics_that_there_are_differ():
    facets = facets_of(draw_topics(10_368, seed=1))
    assert len(np.unique(facets, axis=0)) == 10_368


def test_items_show_the_facets_of_their_topic(world, items, truth):
    """The truth file, the rendering and the words agree; checked from the files alone."""
    topics = {row["topic"]: row for row in read(world[0] / "topics.jsonl")}
    assert len(topics) == world[1].topics == 24
    members = collections.Counter(item["label"] for item in items[: CONFIG.num_items])
    assert set(members) == set(topics) and set(members.values()) == {6}
    vocabulary = {words[0]: set(words) for words in THEMES}
    for item in items:
        if item["item_id"] not in truth:
            continue
        assert truth[item["item_id"]].items() >= topics[item["label"]].items()
        words = {word.lower() for key in ("title", "asr") for word in (item[key] or "").split()} | set(item["tags"])
        if item["nickname"]:
            assert words & vocabulary[topics[item["label"]]["theme"]]
    for theme in {row["theme"] for row in topics.values()}:
        others = [i for i in items if i["title"] and topics.get(i["label"], {}).get("theme") != theme]
        stray = np.mean([bool({word.lower() for word in i["title"].split()} & vocabulary[theme]) for i in others])
        assert stray < 0.1


def test_roles_of_items(items, truth):
    roles = collections.Counter(row["role"] for row in truth.values())
    assert roles == {"catalogue": 144, "pairs": 24, "near_duplicates": 24, "two_looks": 24, "missing_fields": 24}
    by_id = {item["item_id"]: item for item in items}
    assert len(items) == len(truth) + 3 * CONFIG.off_domain_items
    near = [row for row in truth.values() if row["repeats"]]
    assert {"near_duplicates", "catalogue"} == {row["role"] for row in near}
    for row in near:
        original = truth[row["repeats"]]
        (facet,) = [facet for facet in FACETS if row[facet] != original[facet]]
        assert original["role"] == "catalogue" and row["lacks"] != {"theme": "text", "look": "frames"}.get(
            facet, "audio"
        )
        if facet != "theme" and not row["lacks"] and not original["lacks"]:
            assert by_id[row["item_id"]]["title"] == by_id[original["item_id"]]["title"]
    for row in truth.values():
        assert bool(row["other_look"]) >= (row["role"] == "two_looks")
        if row["other_look"]:
            assert row["other_look"] != row["look"] and row["lacks"] in (None, "audio")
            assert by_id[row["item_id"]]["ocr"].split()[0] in ("left", "right")
        if row["role"] == "missing_fields":
            assert by_id[row["item_id"]]["title"] is None and row["lacks"] != "text"
    assert 0.1 < np.mean([bool(row["other_look"]) for row in truth.values() if row["role"] == "catalogue"]) < 0.4


def test_the_text_says_which_half_of_the_frames_counts():
    """Of red circles and cyan squares, the side that is named has the hue of the look of the topic."""
    frames = media.render_frames(np.random.default_rng(1), [0, 12])
    hsv = np.asarray(Image.open(io.BytesIO(frames[0])).convert("HSV"), float)
    strong = (hsv[..., 1] > 150) & (hsv[..., 2] > 100)
    halves = [hsv[:, half, 0][strong[:, half]] / 256 * 2 * np.pi for half in (slice(0, 26), slice(38, 64))]
    hues = [np.degrees(np.angle(np.exp(1j * angles).mean())) for angles in halves]
    assert abs(hues[0]) < 30 and abs(abs(hues[1]) - 180) < 30


def test_words_have_one_meaning():
    lists = [*THEMES, FILLERS]
    lists += [*media.COLOURS, *media.SHAPES, *media.TIMBRES, *media.CONTOURS]
    words = list(itertools.chain(*lists))
    assert [word for word, times in collections.Counter(words).items() if times > 1] == []


def test_frames_move_and_motifs_look_different():
    frames = next(f for i in range(9) if len(f := media.render_frames(np.random.default_rng(i), [2])) == 4)
    pixels = [np.asarray(Image.open(io.BytesIO(frame)), float) for frame in frames]
    # Far more than the noise, whose deviation is 12 per pixel.
    assert all((np.abs(a - b) > 80).mean() > 0.03 for a, b in itertools.pairwise(pixels))

    def hue(colour):
        """Mean direction of the hue, over the strongly coloured pixels of 20 pictures."""
        angles = []
        for seed in range(20):
            picture = Image.open(io.BytesIO(media.render_frames(np.random.default_rng(seed), [colour])[0]))
            hsv = np.asarray(picture.convert("HSV"), float)
            angles.append(hsv[..., 0][(hsv[..., 1] > 150) & (hsv[..., 2] > 100)] / 256 * 2 * np.pi)
        return np.degrees(np.angle(np.exp(1j * np.concatenate(angles)).mean()))

    for colour in range(len(media.COLOURS)):
        assert abs((hue(colour) - 45 * colour + 180) % 360 - 180) < 20


@pytest.mark.parametrize("contour, expected", [(0, "up"), (1, "down")])
def test_melodies_follow_their_contour(contour, expected):
    steps = []
    for seed in range(10):
        with wave.open(io.BytesIO(media.render_sound(np.random.default_rng(seed), 6 * contour))) as file:
            samples = np.frombuffer(file.readframes(-1), "<i2").astype(float)
        windows = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512] * np.hanning(1024)
        pitch = np.abs(np.fft.rfft(windows)).argmax(1)
        steps += [b - a for a, b in itertools.pairwise(pitch) if abs(b - a) > 1]
    # Three small steps one way, then one large step back.
    up = np.mean(np.array(steps) > 0)
    assert up > 0.6 if expected == "up" else up < 0.4


def test_the_log_and_the_pairs_agree(world, items, truth):
    folder, summary = world
    logs, pairs = pairs_of(folder, "logs"), pairs_of(folder, "pairs")
    users = {row["user_id"]: row["interests"] for row in read(folder / "users.jsonl")}
    topic = {item["item_id"]: item["label"] for item in items}
    assert len(logs) == CONFIG.num_users * CONFIG.events_per_user == summary.events
    assert {truth[row["item_id"]]["role"] for row in logs} == {"catalogue"}
    assert {row["event"] for row in logs} == set(sessions.EVENTS)
    assert set(collections.Counter(row["user_id"] for row in logs).values()) == {CONFIG.events_per_user}
    assert np.mean([topic[row["item_id"]] in users[row["user_id"]] for row in logs]) > 0.9
    for _, rows in itertools.groupby(logs, key=lambda row: row["user_id"]):
        times = [row["timestamp"] for row in rows]
        assert times == sorted(times)

    # Quadratic and per user: any two positive events in the window may be a pair, and each pair must be one of them.
    possible = collections.Counter()
    for user in users:
        positive = [row for row in logs if row["user_id"] == user and row["event"] != "view"]
        close = {
            frozenset((a["item_id"], b["item_id"]))
            for a, b in itertools.combinations(positive, 2)
            if b["timestamp"] - a["timestamp"] <= sessions.PAIR_WINDOW_SECONDS
        }
        possible.update(pair for pair in close if len(pair) == 2)
    train = [row for row in pairs if row["split"] == "train"]
    found = collections.Counter(frozenset((row["query_id"], row["target_id"])) for row in train)
    assert found <= possible and found.total() > 0.5 * possible.total()
    same = np.mean([topic[row["query_id"]] == topic[row["target_id"]] for row in train])
    assert 0.85 < same < 1
    counts = collections.Counter(row["split"] for row in pairs)
    assert counts == summary.tables["pairs"] == {"train": len(train), "test": 24 * 6}


def test_popular_items_are_consumed_more(world, truth):
    seen = collections.Counter(row["item_id"] for row in pairs_of(world[0], "logs"))
    popularity = {item: row["popularity"] for item, row in truth.items() if row["role"] == "catalogue"}
    assert sum(popularity.values()) == pytest.approx(1)
    top = sorted(popularity, key=popularity.get)[-14:]
    assert sum(seen[item] for item in top) > 0.2 * seen.total()


def test_consumed_together_in_a_log_written_by_hand():
    history = [
        Event(1, "like", 0),
        Event(9, "view", 10),
        Event(2, "finish", 600),
        Event(3, "share", 601),
        Event(3, "like", 602),
        Event(2, "like", 603),
        Event(1, "like", 9_000),
    ]
    assert consumed_together(history) == [(1, 2), (2, 3)]
    assert consumed_together([]) == []


def test_what_is_related_differs_by_table(world, truth):
    folder, summary = world

    def alike(pair, facet):
        return truth[pair["query_id"]][facet] == truth[pair["target_id"]][facet]

    shown = {"theme": "text", "look": "frames", "sound": "audio"}
    for name, facet in (("themes", "theme"), ("looks", "look"), ("sounds", "sound")):
        rows = pairs_of(folder, name)
        assert collections.Counter(row["split"] for row in rows) == summary.tables[name]
        for row in rows:
            assert alike(row, facet) and not alike(row, "topic")
            assert shown[facet] not in (truth[row["query_id"]]["lacks"], truth[row["target_id"]]["lacks"])
            assert truth[row["query_id"]]["role"] == ("catalogue" if row["split"] == "train" else "pairs")
    for name in ("pairs", "near_duplicates", "two_looks", "missing_fields"):
        test = [row for row in pairs_of(folder, name) if row["split"] == "test"]
        catalogue = [item for item, row in truth.items() if row["role"] == "catalogue"]
        queries = [item for item, row in truth.items() if row["role"] == name]
        expected = {(q, t) for q in queries for t in catalogue if truth[q]["topic"] == truth[t]["topic"]}
        assert {(row["query_id"], row["target_id"]) for row in test} == expected and len(test) == len(expected)
    # Every item of the catalogue is a target, so that the targets are the corpus.
    assert {row["target_id"] for row in test} == set(catalogue)


def test_the_broad_set_has_its_share_of_wrong_pairs_and_the_clean_one_none(world, truth):
    broad, clean = pairs_of(world[0], "broad"), pairs_of(world[0], "clean")
    wrong = [truth[row["query_id"]]["topic"] != truth[row["target_id"]]["topic"] for row in broad]
    assert wrong == [row["wrong"] for row in broad]
    assert np.mean(wrong) == pytest.approx(0.5, abs=0.05)
    assert 0 < len(clean) <= CONFIG.clean_pairs
    assert all(truth[row["query_id"]]["topic"] == truth[row["target_id"]]["topic"] for row in clean)
    assert all(row["query_id"] != row["target_id"] for row in [*broad, *clean])


def test_off_domain_sets_have_items_of_their_own(world, items, truth):
    label = {item["item_id"]: item["label"] for item in items if item["item_id"] not in truth}
    used = set()
    for name in ("off_text", "off_vision", "off_sound"):
        pairs = pairs_of(world[0], name)
        assert pairs and all(label[row["query_id"]] == label[row["target_id"]] for row in pairs)
        assert {label[row["query_id"]].rsplit("-", 1)[0] for row in pairs} == {name}
        used |= {row["query_id"] for row in pairs}
    assert len(used) > 0.8 * len(label)
    known = {word for words in (*THEMES, FILLERS) for word in words}
    titles = {word for item in items if item["label"].startswith("off_text") for word in item["title"].lower().split()}
    assert not titles & known


def test_searches_name_what_fits_and_splits_share_no_text(world, truth):
    folder, summary = world
    named = {"topic": FACETS, "theme": ("theme",), "look": ("look",), "sound": ("sound",)}
    words = {
        "theme": {words[0]: [set(words)] for words in THEMES},
        "look": {f"{c[0]} {s[0]}": [set(c), set(s)] for c in media.COLOURS for s in media.SHAPES},
        "sound": {f"{c[0]} {t[0]}": [set(c), set(t)] for c in media.CONTOURS for t in media.TIMBRES},
    }
    catalogue = {item: row for item, row in truth.items() if row["role"] == "catalogue"}
    for kind, facets in named.items():
        searches = read(folder / "searches" / f"{kind}.jsonl")
        assert collections.Counter(row["split"] for row in searches) == {"train": 60, "test": 30}
        assert summary.tables[f"searches/{kind}"] == {"train": 60, "test": 30}
        assert len({row["query"] for row in searches}) == 90
        for row in searches:
            text = set(row["query"].split())
            wanted = {}
            for facet in FACETS:
                fitting = [name for name, parts in words[facet].items() if all(part & text for part in parts)]
                assert len(fitting) == (facet in facets)
                wanted |= {facet: fitting[0]} if fitting else {}
            lacking = {"theme": "text", "look": "frames", "sound": "audio"}[kind] if kind != "topic" else ""
            fit = {i for i, t in catalogue.items() if wanted.items() <= t.items() and t["lacks"] != lacking}
            assert set(row["item_ids"]) == fit if row["split"] == "test" else set(row["item_ids"]) <= fit
            assert row["item_ids"]


def test_scores_grade_what_a_search_names(world, truth):
    folder, summary = world
    scores = read(folder / "scores.jsonl")
    assert collections.Counter(row["split"] for row in scores) == summary.tables["scores"]
    assert {row["score"] for row in scores} == {0.0, 0.25, 0.5, 0.75, 1.0}
    groups = [*THEMES, *media.COLOURS, *media.SHAPES, *media.TIMBRES]
    for row in scores:
        of_query = {words[0] for words in groups if set(words) & set(row["query"].replace(",", "").split())}
        known = truth[row["item_id"]]
        of_item = {known["theme"], *known["look"].split(), known["sound"].split()[1]}
        assert len(of_query) == 4 and row["score"] == len(of_query & of_item) / 4
    splits = collections.defaultdict(set)
    for row in scores:
        splits[row["split"]].add(row["query"])
    assert not splits["train"] & splits["test"]


def test_paths_are_relative_and_titles_do_not_name_what_is_seen(items):
    seen = set(itertools.chain(*media.COLOURS, *media.SHAPES, *media.TIMBRES))
    for item in items:
        assert not any(pathlib.PurePath(path).is_absolute() for path in [*item["frames"], item["audio"] or "a"])
        words = {word.lower() for key in ("title", "asr", "ocr") for word in (item[key] or "").split()}
        assert not (words | set(item["tags"])) & seen
