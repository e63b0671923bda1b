import collections
import hashlib
import io
import itertools
import json
import pathlib
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic import media as synthetic_media
from sail_jax.data.synthetic import world as synthetic
from sail_jax.errors import SailError

CONFIG = SyntheticConfig(num_items=240, num_users=60, events_per_user=20)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


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


def test_same_settings_give_same_bytes_and_another_seed_does_not(world, tmp_path):
    again = synthetic.make_world(CONFIG, 3, tmp_path / "again")
    assert again == world[1]
    assert digests(tmp_path / "again") == digests(world[0])
    synthetic.make_world(CONFIG, 4, tmp_path / "other")
    ours, other = digests(world[0]), digests(tmp_path / "other")
    assert not {ours[name] for name in ours if name.startswith(("frames", "audio"))} & set(other.values())


def test_an_items_media_do_not_depend_on_the_size_of_the_log(world, tmp_path):
    synthetic.make_world(SyntheticConfig(num_items=240, num_users=2, events_per_user=3), 3, tmp_path / "w")
    assert digests(tmp_path / "w" / "frames") == digests(world[0] / "frames")


def test_finished_world_is_left_alone_and_others_are_refused(world, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in world[0].rglob("*")}
    assert synthetic.make_world(CONFIG, 3, world[0]) == world[1]
    assert {path: path.stat().st_mtime_ns for path in world[0].rglob("*")} == before
    with pytest.raises(SailError, match="other settings"):
        synthetic.make_world(CONFIG, 5, world[0])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SailError, match="holds no generated world"):
        synthetic.make_world(CONFIG, 3, tmp_path)
    with pytest.raises(SailError, match="at least 12 items"):
        synthetic.make_world(SyntheticConfig(num_items=3), 3, tmp_path / "new")


def test_a_killed_generation_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    small = SyntheticConfig(num_items=12, num_users=2, events_per_user=4)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_searches", killed)
        with pytest.raises(KeyboardInterrupt):
            synthetic.make_world(small, 0, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    (tmp_path / "w.partial" / "frames" / "stale.jpg").write_text("left by the killed run")
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


def test_some_items_lack_a_modality_and_none_lacks_two(items):
    no_text = [not (item["title"] or item["asr"] or item["ocr"] or item["nickname"] or item["tags"]) for item in items]
    lacks = np.array([[not i["frames"] for i in items], [i["audio"] is None for i in items], no_text])
    assert np.all((lacks.mean(1) > 0.03) & (lacks.mean(1) < 0.25))
    assert lacks.sum(0).max() == 1
    assert sum(item["title"] is None for item in items) > sum(no_text)
    assert {len(item["frames"]) for item in items} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("count", [3, 8, 9, 15, 75, 300])
def test_one_facet_does_not_tell_the_topic_and_three_do(count):
    topics = synthetic.draw_topics(count, seed=1)
    facets = np.array([[topic.visual, topic.sound, topic.theme] for topic in topics])

    def told(columns):
        """Share of the topics that the best guess from these facets gets right."""
        return len(np.unique(facets[:, columns], axis=0)) / count

    assert told([0, 1, 2]) == 1.0
    for one in range(3):
        assert told([one]) <= (0.4 if count > 3 else 0.7)
        usage = np.unique(facets[:, one], return_counts=True)[1]
        assert usage.max() - usage.min() <= 2
    if count >= 15:
        for two in itertools.combinations(range(3), 2):
            assert told(list(two)) > max(told([one]) for one in two) + 0.2


def test_items_show_the_facets_of_their_topic(world, items):
    """The truth file, the rendering and the words agree; checked from the files alone."""
    truth = {row["topic"]: row for row in read(world[0] / "topics.jsonl")}
    assert len(truth) == world[1].topics
    members = collections.Counter(item["label"] for item in items)
    assert set(members) == set(truth)
    assert set(members.values()) == {16}
    vocabulary = {words[0]: set(words) for words in synthetic.THEMES}
    for item in items:
        words = {word.lower() for key in ("title", "asr") for word in (item[key] or "").split()} | set(item["tags"])
        if item["nickname"]:
            assert words & vocabulary[truth[item["label"]]["theme"]]
    for theme in {row["theme"] for row in truth.values()}:
        others = [i for i in items if truth[i["label"]]["theme"] != theme and i["title"]]
        stray = np.mean([bool({word.lower() for word in i["title"].split()} & vocabulary[theme]) for i in others])
        assert stray < 0.1


def test_words_have_one_meaning():
    lists = [*synthetic.THEMES, synthetic.FILLERS]
    lists += [*synthetic_media.COLOURS, *synthetic_media.SHAPES, *synthetic_media.TIMBRES, *synthetic_media.CONTOURS]
    words = list(itertools.chain(*lists))
    assert [word for word, times in collections.Counter(words).items() if times > 1] == []


def test_frames_move_and_motifs_look_different():
    frames = next(f for i in range(9) if len(f := synthetic_media.render_frames(np.random.default_rng(i), 2)) == 4)
    pixels = [np.asarray(Image.open(io.BytesIO(frame)), float) for frame in frames]
    # Far more than the noise, whose deviation is 12 per pixel.
    assert all((np.abs(a - b) > 80).mean() > 0.03 for a, b in itertools.pairwise(pixels))

    def hue(colour):
        """Mean direction of the hue, over the strongly coloured pixels of 20 pictures."""
        angles = []
        for seed in range(20):
            picture = Image.open(io.BytesIO(synthetic_media.render_frames(np.random.default_rng(seed), colour)[0]))
            hsv = np.asarray(picture.convert("HSV"), float)
            angles.append(hsv[..., 0][(hsv[..., 1] > 150) & (hsv[..., 2] > 100)] / 256 * 2 * np.pi)
        return np.degrees(np.angle(np.exp(1j * np.concatenate(angles)).mean()))

    for colour in range(len(synthetic_media.COLOURS)):
        assert abs((hue(colour) - 45 * colour + 180) % 360 - 180) < 20


@pytest.mark.parametrize("contour, expected", [(0, "up"), (1, "down")])
def test_melodies_follow_their_contour(contour, expected):
    steps = []
    for seed in range(10):
        with wave.open(io.BytesIO(synthetic_media.render_sound(np.random.default_rng(seed), 6 * contour))) as file:
            samples = np.frombuffer(file.readframes(-1), "<i2").astype(float)
        windows = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512] * np.hanning(1024)
        pitch = np.abs(np.fft.rfft(windows)).argmax(1)
        steps += [b - a for a, b in itertools.pairwise(pitch) if abs(b - a) > 1]
    # Three small steps one way, then one large step back.
    up = np.mean(np.array(steps) > 0)
    assert up > 0.6 if expected == "up" else up < 0.4


def test_logs_and_pairs_agree(world, items):
    folder, summary = world
    logs, pairs = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("logs", "pairs"))
    known = {item["item_id"] for item in items}
    users = {row["user_id"]: row["interests"] for row in read(folder / "users.jsonl")}
    label = {item["item_id"]: item["label"] for item in items}
    assert len(logs) == CONFIG.num_users * CONFIG.events_per_user == summary.events
    assert {row["item_id"] for row in logs} <= known
    assert {row["event"] for row in logs} == set(synthetic.EVENTS)
    assert set(collections.Counter(row["user_id"] for row in logs).values()) == {CONFIG.events_per_user}
    assert np.mean([label[row["item_id"]] in users[row["user_id"]] for row in logs]) > 0.9
    for _, rows in itertools.groupby(logs, key=lambda row: row["user_id"]):
        times = [row["timestamp"] for row in rows]
        assert times == sorted(times)

    # Quadratic and per user: any two positive events in the window may be a pair, and each pair must be one of them.
    possible = set()
    for user in users:
        positive = [row for row in logs if row["user_id"] == user and row["event"] != "view"]
        for a, b in itertools.combinations(positive, 2):
            if b["timestamp"] - a["timestamp"] <= 600:
                possible.add(frozenset((a["item_id"], b["item_id"])))
    unordered = [frozenset((row["query_id"], row["target_id"])) for row in pairs]
    assert len(set(unordered)) == len(unordered) > 0.5 * len(possible)
    assert set(unordered) <= possible
    assert all(len(pair) == 2 for pair in unordered)
    same = np.mean([label[row["query_id"]] == label[row["target_id"]] for row in pairs])
    assert 0.85 < same < 1
    splits = collections.Counter(row["split"] for row in pairs)
    assert splits == {"train": summary.train_pairs, "test": summary.test_pairs}
    assert 0.8 < summary.train_pairs / len(pairs) < 0.9


def test_co_consumption_on_a_log_written_by_hand():
    rows = [
        ("u1", "a", "like", 0),
        ("u1", "x", "view", 10),
        ("u1", "b", "finish", 600),
        ("u1", "c", "share", 601),
        ("u1", "c", "like", 602),
        ("u2", "b", "like", 603),
        ("u2", "a", "like", 604),
        ("u2", "c", "like", 9_000),
    ]
    names = ("user_id", "item_id", "event", "timestamp")
    table = synthetic.co_consumption(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), 0)
    found = list(zip(table["query_id"].to_pylist(), table["target_id"].to_pylist(), strict=True))
    assert found == [("a", "b"), ("b", "c")]
    assert len(synthetic.co_consumption(pa.table({name: [] for name in names}), 0)) == 0


def test_searches_click_items_of_one_topic_and_splits_share_no_text(world, items):
    folder, summary = world
    searches = read(folder / "searches.jsonl")
    label = {item["item_id"]: item["label"] for item in items}
    truth = {row["topic"]: row for row in read(folder / "topics.jsonl")}
    texts = collections.defaultdict(set)
    for row in searches:
        texts[row["split"]].add(row["query"])
        assert row["item_ids"]
        theme = next(words[0] for words in synthetic.THEMES if row["query"].split()[0] in words)
        assert {truth[label[item]]["theme"] for item in row["item_ids"]} == {theme}
    assert not texts["train"] & texts["test"]
    assert (len(texts["train"]), len(texts["test"])) == (summary.train_searches, summary.test_searches)
    assert len(searches) == len(texts["train"]) + len(texts["test"])
    assert 0.7 < summary.train_searches / len(searches) < 0.9


def test_scores_grade_what_a_search_names(world):
    folder, summary = world
    scores = read(folder / "scores.jsonl")
    searches = {row["query"]: row for row in read(folder / "searches.jsonl")}
    label = {row["item_id"]: row["label"] for row in read(folder / "items.jsonl")}
    assert len(scores) == summary.scores and {row["score"] for row in scores} == {0.0, 0.5, 1.0}
    topic_of = {query: label[row["item_ids"][0]] for query, row in searches.items()}
    for row in scores:
        assert row["split"] == searches[row["query"]]["split"]
        if label[row["item_id"]] == topic_of[row["query"]]:
            assert row["score"] == 1.0


def test_theme_pairs_share_the_theme_alone(world):
    folder, summary = world
    theme = {row["topic"]: row["theme"] for row in read(folder / "topics.jsonl")}
    label = {row["item_id"]: row["label"] for row in read(folder / "items.jsonl")}
    pairs = pq.read_table(folder / "themes.parquet").to_pylist()
    assert len(pairs) == summary.theme_pairs > 0
    for pair in pairs:
        left, right = label[pair["query_id"]], label[pair["target_id"]]
        assert left != right and theme[left] == theme[right]


def test_paths_are_relative_and_titles_do_not_name_what_is_seen(items):
    seen = set(itertools.chain(*synthetic_media.COLOURS, *synthetic_media.SHAPES, *synthetic_media.TIMBRES))
    for item in items:
        assert not any(pathlib.PurePath(path).is_absolute() for path in [*item["frames"], item["audio"] or "a"])
        words = {word.lower() for key in ("title", "asr", "ocr") for word in (item[key] or "").split()}
        assert not (words | set(item["tags"])) & seen
