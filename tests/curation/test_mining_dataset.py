"""Mining of a data set: the pairs read, the items embedded, the pairs never mined, and the files written."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sail_jax import config as config_lib
from sail_jax.config.schema import to_dict
from sail_jax.curation.mining import dataset
from sail_jax.curation.mining.dataset import mine_dataset
from sail_jax.curation.mining.known_pairs import known_tables, merge_equal
from sail_jax.data.hard_negative_table import NegativesTable, query_key
from sail_jax.data.store import ItemStore, ItemStoreWriter
from sail_jax.data.tables import Pair, write_pairs
from sail_jax.embedding.windows import NothingShownError
from sail_jax.errors import SailError
from sail_jax.items import Item, item_key
from sail_jax.sharding.process_group import ALONE
from sail_jax.vectors.embedding_set import EmbeddingInfo, part_path, write_info, write_part

pytestmark = pytest.mark.slow

ITEMS = 60
WIDTH = 8
EMPTY = "item-8"  # has nothing that could be embedded


def vector(item):
    """Returns the vector of an item; items of a topic (their number modulo six) are close; texts are "topic N"."""
    name = item.item_id or item.text["query"]
    topic = int(name.split("-")[-1]) % 6 if item.item_id else int(name.split()[-1])
    noise = np.random.default_rng(item_key(name) % 2**32).normal(size=WIDTH)
    return np.random.default_rng(topic).normal(size=WIDTH) + 0.3 * noise


class Stub:
    """An embedder with made-up vectors, which records its calls."""

    width = WIDTH
    processes = ALONE

    def __init__(self, config, scale=1.0):
        self.config, self.params, self.asked = config, {"w": np.full(3, scale, np.float32)}, []

    def stream(self, items, view, views, *, batch_size=None):
        self.asked.append([view, views, 0])
        for item in (load() for load in items):
            z = np.zeros((len(views), 1, WIDTH), np.float32)
            self.asked[-1][2] += 1
            if item.item_id == EMPTY:
                yield z, {0: NothingShownError("the item is empty", remedy="Leave it out", record=item.item_id)}
            else:
                yield z + vector(item).astype(np.float32), {}


def pair(i, j, score=None):
    return Pair(f"item-{i}", None, f"item-{j}", score)


@pytest.fixture
def folder(tmp_path):
    """Writes a data folder with an i2i and a q2i table, one that no data set reads, and one of another kind."""
    writer = ItemStoreWriter(tmp_path / "items")
    writer.write_shard(0, (Item(f"item-{i}", {"title": f"Item {i}"}) for i in range(ITEMS)))
    writer.finalize(1)
    tables = tmp_path / "tables"
    # Each of the ten items of a topic is paired with two others.
    i2i = [(pair(i, (i + 6 * step) % ITEMS), "train") for i in range(0, ITEMS, 2) for step in (1, 2)]
    write_pairs(
        tables / "i2i.parquet", [*i2i, (pair(0, 59), "test"), (pair(2, 2), "train"), (pair(4, 5, 0.1), "train")]
    )
    q2i = [(Pair(None, f"topic {i % 6}", f"item-{i}"), "train") for i in range(0, ITEMS, 3)]
    write_pairs(tables / "q2i.parquet", [*q2i, (Pair(None, "topic 1", "item-0"), "test")])
    write_pairs(tables / "watched.parquet", [(pair(i, (i + 18) % ITEMS), "train") for i in range(0, ITEMS, 3)])
    pq.write_table(pa.table({"user": ["u"], "items": [["item-1"]]}), tables / "sequences.parquet")
    return tmp_path


def make_config(folder, **mining):
    values = config_lib.default_config()
    values.data.dir = str(folder)
    values.data.datasets = {
        "i2i": {"table": "tables/i2i.parquet", "min_score": 0.5},
        "q2i": {
            "table": "tables/q2i.parquet",
            "patterns": ("T->VA", "T->T"),
            "query_instruction": "Represent the search.",
            "target_fields": ("title",),
        },
    }
    values.mining.update(per_query=6, query_block=8, target_block=16, **mining)
    return config_lib.build(values)


def run(folder, name="i2i", config=None, stub=None, **options):
    config = config or make_config(folder)
    output = folder / "negatives" / f"{name}.parquet"
    stub = stub or Stub(config)
    return mine_dataset(stub, config, ItemStore.open(folder / "items"), name, output, **options), stub


def listed(folder):
    """Returns the pairs of items of all tables, in both directions; the score of (4, 5) is too low for a positive."""
    pairs = set()
    for name in ("i2i", "watched"):
        for row in pq.read_table(folder / "tables" / f"{name}.parquet").to_pylist():
            if row["score"] is None:
                pairs |= {(row["query_id"], row["target_id"]), (row["target_id"], row["query_id"])}
    return pairs


def tags(name):
    """Returns the tags of an item in `tag_folder`; pairs of items of a topic have equal tags. (Item 8 has none.)"""
    return name if name == EMPTY else f"tag {int(name.split('-')[1]) % 30}"


def first_of_equal_tags(names, by_text):
    """Returns {id: id of the first item of equal tags, by key}; with `by_text` False, of the item itself."""
    first = {}
    for name in sorted(names, key=lambda name: query_key(name, None)):
        first.setdefault(tags(name) if by_text else name, name)
    return {name: first[tags(name) if by_text else name] for name in names}


def plain(folder, config, by_text=(False, False)):
    """Mines i2i by the definition: {query: ids and scores}, and lambda*; `by_text` if sides show only tags."""
    rows = [row for row in pq.read_table(folder / "tables/i2i.parquet").to_pylist() if row["split"] == "train"]
    queries, targets = (
        first_of_equal_tags({row[side] for row in rows} - {EMPTY}, alone)
        for side, alone in zip(("query_id", "target_id"), by_text, strict=True)
    )
    both = [row for row in rows if EMPTY not in row.values()]
    positives = {(queries[row["query_id"]], targets[row["target_id"]]) for row in both if row["score"] is None}
    unit = {name: vector(Item(name)) / np.linalg.norm(vector(Item(name))) for name in queries | targets}
    scores = {(q, t): unit[q] @ unit[t] for q in set(queries.values()) for t in set(targets.values())}
    known = {*listed(folder), *((name, name) for name in queries)}
    known = {(queries[q], targets[t]) for q, t in known if q in queries and t in targets}
    if all(by_text):
        known |= {(q, t) for q, t in scores if tags(q) == tags(t)}
    label = {p: p in positives for p in scores if p in positives or p not in known}
    best = (-1, None)
    for limit in sorted(scores[p] for p in label):
        found = [p for p in label if scores[p] >= limit]
        hits = sum(label[p] for p in found)
        best = max(best, (2 * hits / (len(found) + sum(label.values())), limit))
    negatives = {}
    for query, stand_in in queries.items():
        mine = [(scores[p], p[1]) for p in label if p[0] == stand_in and not label[p] and scores[p] < best[1] - 1e-6]
        negatives[query] = sorted(mine, reverse=True)[: config.mining.per_query]
    return negatives, best


@pytest.mark.parametrize("exact", [10**6, 0])
def test_hard_negatives_of_item_pairs(folder, exact):
    config = make_config(folder, exact_scores=exact)
    summary, _ = run(folder, config=config)
    expected, (f1, limit) = plain(folder, config)
    table = NegativesTable.open(summary.output)
    assert summary.threshold.value == pytest.approx(limit, abs=1e-4)
    assert summary.threshold.f1 == pytest.approx(f1, rel=0.02)
    assert len(table) == len(expected) == summary.queries - 1
    assert summary.queries_without_embedding == summary.targets_without_embedding == 1
    for query, negatives in expected.items():
        ids, scores = table.get(query, None)
        assert ids == [item for _, item in negatives]
        np.testing.assert_allclose(scores, [score for score, _ in negatives], atol=1e-5)
    mined = {(query, item) for query in expected for item in table.get(query, None)[0]}
    assert not mined & listed(folder)
    assert all(query != item and item != EMPTY for query, item in mined)
    assert max(score for query in expected for score in table.get(query, None)[1]) < summary.threshold.value


@pytest.fixture
def tag_folder(folder):
    """Writes items i and i + 30 with equal tags; some of them are both targets, and some queries are not targets.

    Query 31 and target 1 have the same tags too, and neither of the two items is on both sides.
    """
    writer = ItemStoreWriter(folder / "items")
    names = [f"item-{i}" for i in range(ITEMS)]
    shown = {name: {"title": name, "tags": tags(name)} for name in names} | {EMPTY: {}}
    shown["item-57"] = shown["item-59"] = {"title": "Without tags"}
    writer.write_shard(0, (Item(name, text) for name, text in shown.items()))
    writer.finalize(1)
    rows = [(i, (i + 6 * step) % (60 if i < 30 else 30)) for i in range(0, ITEMS, 2) for step in (1, 2)]
    write_pairs(folder / "tables/i2i.parquet", [(pair(*row), "train") for row in [*rows, (31, 37), (25, 1)]])
    return folder


def make_tag_config(folder, patterns, **mining):
    values = to_dict(make_config(folder, **mining))
    values["data"]["datasets"]["i2i"] |= {
        "patterns": patterns,
        "query_fields": ("tags",),
        "target_fields": ("tags",),
        "query_instruction": "Represent the query.",
    }
    return config_lib.build(values)


@pytest.mark.parametrize("exact", [10**6, 0])
@pytest.mark.parametrize("patterns", [("O->T",), ("T->O",), ("T->T",), ("O->O", "O->T")])
def test_items_of_equal_text_are_merged_if_only_text_is_shown(tag_folder, patterns, exact):
    config = make_tag_config(tag_folder, patterns, exact_scores=exact)
    summary, stub = run(tag_folder, config=config)
    by_text = [all(pattern.split("->")[side] == "T" for pattern in patterns) for side in (0, 1)]
    expected, (f1, limit) = plain(tag_folder, config, by_text)
    table = NegativesTable.open(summary.output)
    assert summary.threshold.value == pytest.approx(limit, abs=1e-4)
    assert summary.threshold.f1 == pytest.approx(f1, rel=0.02)
    assert len(table) == summary.queries - 1 == len(expected) == 31
    for query, negatives in expected.items():
        ids, scores = table.get(query, None)
        assert ids == [item for _, item in negatives]
        np.testing.assert_allclose(scores, [score for score, _ in negatives], atol=1e-5)
    targets = set(pq.read_table(tag_folder / "tables/i2i.parquet").column("target_id").to_pylist())
    known = {(query, tags(item)) for query, item in listed(tag_folder) if item in targets}
    mined = [(query, tags(item)) for query in expected for item in table.get(query, None)[0]]
    if by_text[1]:
        assert len(mined) == len(set(mined))
        assert not known & set(mined)
    if all(by_text):
        assert not any(tags(query) == text for query, text in mined)
    # Item 8 has no tags, so 38 has no equal. Even targets are 0 to 40, even queries 0 to 58.
    assert (summary.queries_of_same_text, summary.targets_of_same_text) == (14 * by_text[0], 5 * by_text[1])
    assert (summary.queries_without_embedding, summary.targets_without_embedding) == (1, 1)
    assert sorted(asked[2] for asked in stub.asked) == sorted([32 - 14 * by_text[0], 23 - 5 * by_text[1]])


def test_items_of_equal_content_are_one(folder):
    """Items 30 to 59 have the bytes of items 0 to 29."""
    shutil.rmtree(folder / "items")
    writer = ItemStoreWriter(folder / "items")
    writer.write_shard(0, [Item(f"item-{i}", {"title": f"Item {i % 30}"}) for i in range(ITEMS)])
    writer.finalize(1)
    rows = [(1, 2), (3, 34), (5, 4), (4, 9), (39, 2), (31, 32)]
    write_pairs(folder / "tables/i2i.parquet", [(pair(*row), "train") for row in rows])
    summary, _ = run(folder)
    assert (summary.queries, summary.queries_of_same_text) == (6, 1)  # 31 is 1
    assert (summary.targets, summary.targets_of_same_text) == (5, 2)  # 2, 4, 9, 32, 34
    assert summary.positives == 5
    table = NegativesTable.open(summary.output)
    mined = {i: {int(name.split("-")[1]) % 30 for name in table.get(f"item-{i}", None)[0]} for i, _ in rows}
    # Not their targets, nor themselves; what is likely to be a target is left out too.
    allowed = {1: {4, 9}, 31: {4, 9}, 3: {2, 9}, 5: {2, 9}, 4: {2}, 39: {4}}
    assert any(mined.values()) and all(found <= allowed[query] for query, found in mined.items())


def test_targets_of_equal_text_are_merged(tag_folder):
    write_pairs(tag_folder / "tables/i2i.parquet", [(pair(1, 2), "train"), (pair(3, 32), "train")])
    with pytest.raises(SailError, match="has 1 target in the split, counting those of the same text once"):
        run(tag_folder, config=make_tag_config(tag_folder, ("O->T",)))


def test_items_without_text_and_items_missing_from_the_store_are_not_merged(tag_folder):
    """Their embeddings may still be given."""
    rows = [(1, 2), (3, 32), (1, 99), (1, 57), (1, 59)]
    write_pairs(tag_folder / "tables/i2i.parquet", [(pair(*row), "train") for row in rows])
    names = [f"item-{i}" for i in (1, 3, 2, 32, 99, 57, 59)]
    path = write_vectors(tag_folder / "v.parquet", names, [Item(name) for name in names])
    config = make_tag_config(tag_folder, ("O->T",))
    summary, _ = run(tag_folder, config=config, query_embeddings=path, target_embeddings=path)
    assert (summary.targets, summary.targets_of_same_text) == (5, 1)


def test_equal_keys_are_merged_into_the_first_of_them():
    first, rows = merge_equal(np.array([9, 4, 9, 7, 4, 9], np.uint64))
    assert first.tolist() == [True, True, False, True, False, False]
    assert rows.tolist() == [0, 1, 0, 2, 1, 0]


def test_a_pair_with_too_low_a_score_is_a_negative(folder):
    config = make_config(folder)
    every = config_lib.build({**to_dict(config), "mining": {"per_query": 100}})
    summary, _ = run(folder, config=every)
    assert "item-5" in NegativesTable.open(summary.output).get("item-4", None)[0]


def test_figures_and_plot(folder):
    summary, _ = run(folder)
    figures = json.loads(summary.output.with_suffix(".json").read_text())
    assert figures["dataset"] == "i2i"
    assert figures["lambda"] == summary.threshold.value
    assert figures["targets"] == summary.targets == 31
    assert figures["queries_without_embedding"] == 1
    assert figures["positives"] == 57
    assert figures["excluded"] > 30
    assert figures["short_queries"] == summary.short_queries
    lengths = {name: len(values) for name, values in figures["curves"].items()}
    assert set(lengths) == {"threshold", "precision", "recall", "f1", "true_positives", "false_positives"}
    assert len(set(lengths.values())) == 1 and 2 < lengths["f1"] <= 512
    assert max(figures["curves"]["f1"]) == pytest.approx(figures["f1"])
    with Image.open(summary.output.with_suffix(".png")) as picture:
        assert picture.width > 600
    assert NegativesTable.open(summary.output).metadata["lambda"] == figures["lambda"]
    assert "lambda*" in str(summary)
    names = {"i2i.parquet", "i2i.keys.npy", "i2i.json", "i2i.png"}
    assert {path.name for path in summary.output.parent.iterdir()} == names


def test_text_queries(folder):
    summary, stub = run(folder, "q2i")
    table = NegativesTable.open(summary.output)
    assert summary.queries == len(table) == 2
    assert summary.targets == 20
    for topic in ("topic 0", "topic 3"):
        ids, _ = table.get(None, topic)
        assert ids and all(int(item.split("-")[1]) % 6 != int(topic[-1]) for item in ids)
    assert table.get("topic 0", None) == ([], [])
    shown = {asked[0].instruction: asked for asked in stub.asked}
    query, target = shown["Represent the search."], shown["Summarise the item for finding related items."]
    assert (query[0].modalities, query[1], query[2]) == ("T", ("T",), 2)
    assert (target[0].modalities, target[1], target[2]) == ("VTA", ("VTA",), 20)
    assert target[0].fields == ("title",)


def test_the_unified_instruction_is_shown(folder):
    values = to_dict(make_config(folder))
    values["prompt"]["unified"] = "One for all."
    _, stub = run(folder, "q2i", config_lib.build(values))
    assert {asked[0].instruction for asked in stub.asked} == {"One for all."}


def test_an_item_shown_equally_on_both_sides_is_embedded_once(folder):
    summary, stub = run(folder)
    ids = pq.read_table(folder / "tables/i2i.parquet").to_pylist()
    ids = {row[side] for row in ids if row["split"] == "train" for side in ("query_id", "target_id")}
    assert sum(asked[2] for asked in stub.asked) == len(ids) < summary.queries + summary.targets


@pytest.mark.parametrize("splits, mined", [((), False), (("train",), True), (("train", "test"), False)])
def test_splits_whose_pairs_are_known(folder, splits, mined):
    """The pair (0, 59) is in the test split; the training split makes 59 a target close to 0."""
    extra = [(pair(i, 59), "train") for i in range(50, 58)]
    rows = [(pair(i, (i + 6 * step) % ITEMS), "train") for i in range(0, ITEMS, 2) for step in (1, 2)]
    write_pairs(folder / "tables/i2i.parquet", [*rows, *extra, (pair(0, 59), "test")])
    config = make_config(folder, positive_splits=splits)
    config = config_lib.build({**to_dict(config), "mining": {"per_query": 100, "positive_splits": splits}})
    summary, _ = run(folder, config=config)
    assert ("item-59" in NegativesTable.open(summary.output).get("item-0", None)[0]) == mined


def test_a_folder_of_parts_is_known_too(folder):
    before, _ = run(folder)
    query = "item-0"
    item = NegativesTable.open(before.output).get(query, None)[0][0]
    write_pairs(folder / "tables/parts/a.parquet", [(Pair(item, None, query), "test")])
    after, _ = run(folder)
    assert item not in NegativesTable.open(after.output).get(query, None)[0]
    assert after.excluded == before.excluded + 2  # either is a query and a target


@pytest.mark.parametrize("place", ["task", "task, absolute", "task, parts", "data set", "other split"])
def test_pairs_of_tables_outside_of_the_tables_folder_are_known_too(folder, place):
    before, _ = run(folder)
    item = NegativesTable.open(before.output).get("item-0", None)[0][0]
    listed = [(Pair(item, None, "item-0"), "test")]
    values = to_dict(make_config(folder))
    table = values["data"]["datasets"]["i2i"] | {"min_score": 0.0}
    if place == "other split":
        rows = [(pair(i, (i + 6 * step) % ITEMS), "train") for i in range(0, ITEMS, 2) for step in (1, 2)]
        write_pairs(folder / "i2i.parquet", rows + listed)
        values["data"]["datasets"]["i2i"]["table"] = "i2i.parquet"
    elif place == "data set":
        write_pairs(folder / "more.parquet", listed)
        values["data"]["datasets"]["more"] = table | {"table": "more.parquet"}
    else:
        write_pairs(folder / "more/a.parquet", listed)
        path = {"task": "more/a.parquet", "task, absolute": str(folder / "more/a.parquet"), "task, parts": "more"}[
            place
        ]
        values["eval"]["tasks"] = {"more": {"table": path}}
    after, _ = run(folder, config=config_lib.build(values))
    assert item not in NegativesTable.open(after.output).get("item-0", None)[0]


def test_a_table_that_is_named_in_several_ways_is_read_once(folder):
    """Its `min_score` applies, whatever path the data set names it by."""
    values = to_dict(make_config(folder))
    values["data"]["datasets"]["i2i"]["table"] = "items/../tables/i2i.parquet"
    values["eval"]["tasks"] = {"a": {"table": "tables/i2i.parquet"}, "b": {"table": str(folder / "tables")}, "c": {}}
    values["mining"]["per_query"] = 100
    del values["data"]["datasets"]["q2i"]
    (folder / "tables/sequences.parquet").unlink()
    config = config_lib.build(values)
    tables = {table.path.name: min_score for table, min_score in known_tables(config)}
    assert tables == {"i2i.parquet": 0.5, "q2i.parquet": -np.inf, "watched.parquet": -np.inf}
    assert len(list(known_tables(config))) == 3
    summary, _ = run(folder, config=config)
    assert "item-5" in NegativesTable.open(summary.output).get("item-4", None)[0]


def test_mining_without_a_tables_folder_and_before_a_later_stage_writes_its_table(folder):
    shutil.move(folder / "tables/i2i.parquet", folder / "i2i.parquet")
    shutil.rmtree(folder / "tables")
    values = to_dict(make_config(folder))
    values["data"]["datasets"]["i2i"]["table"] = "i2i.parquet"
    assert run(folder, config=config_lib.build(values))[0].positives == 57


class Killed(Exception):
    pass


def killed_in_write(monkeypatch, folder, **options):
    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sail_jax.curation.mining.dataset.write_negatives", kill)
        with pytest.raises(Killed):
            run(folder, **options)


def test_embeddings_are_reused_after_a_kill(folder, monkeypatch):
    killed_in_write(monkeypatch, folder, model="run at 5")
    summary, stub = run(folder, model="run at 5")
    assert stub.asked == []
    again, stub = run(folder, model="run at 5")
    assert stub.asked  # a complete run keeps no embeddings
    assert summary.threshold.value == again.threshold.value


@pytest.mark.parametrize("last", ["write_figures", "draw", "write_negatives", "rmtree"])
def test_a_table_is_never_without_its_figures(folder, monkeypatch, last):
    """A table of an earlier run is never beside the figures of a later one."""
    run(folder)

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil if last == "rmtree" else dataset, last, kill)
        with pytest.raises(Killed):
            run(folder)
    output = folder / "negatives/i2i.parquet"
    assert output.exists() == (last == "rmtree")
    summary, stub = run(folder)
    assert stub.asked == []
    assert NegativesTable.open(output).metadata["lambda"] == summary.threshold.value
    names = {"i2i.parquet", "i2i.keys.npy", "i2i.json", "i2i.png"}
    assert {path.name for path in output.parent.iterdir()} == names


@pytest.mark.parametrize("name", ["i2i.json", "i2i.png", "i2i", "i2i.keys.npy"])
def test_a_table_may_not_have_the_name_of_the_files_beside_it(folder, name):
    config = make_config(folder)
    stub = Stub(config)
    with pytest.raises(SailError, match=f"{name}: give it a name that ends in .parquet"):
        mine_dataset(stub, config, ItemStore.open(folder / "items"), "i2i", folder / name)
    assert stub.asked == []


@pytest.mark.parametrize("change", ["name", "parameters", "items", "view", "model"])
def test_embeddings_of_another_kind_are_not_reused(folder, monkeypatch, change):
    killed_in_write(monkeypatch, folder, model="run at 5")
    values = to_dict(make_config(folder))
    if change == "view":
        values["data"]["datasets"]["i2i"]["query_instruction"] = "Another."
        values["data"]["datasets"]["i2i"]["target_instruction"] = "Another."
    if change == "model":
        values["model"]["perceiver"]["max_frames"] = 3
    if change == "items":
        write_pairs(
            folder / "tables/i2i.parquet", [(pair(1, 2), "train"), (pair(1, 7), "train"), (pair(3, 9), "train")]
        )
    config = config_lib.build(values)
    stub = Stub(config, scale=2.0 if change == "parameters" else 1.0)
    run(folder, config=config, stub=stub, model="run at 6" if change == "name" else "run at 5")
    assert stub.asked


def test_embeddings_of_a_killed_pass_are_not_taken_as_complete(folder):
    config = make_config(folder)
    broken = Stub(config)
    original = broken.stream

    def stream(*arguments, **options):
        for number, batch in enumerate(original(*arguments, **options)):
            if number == 5:
                raise Killed
            yield batch

    broken.stream = stream
    with pytest.raises(Killed):
        run(folder, config=config, stub=broken)
    summary, stub = run(folder, config=config)
    assert sum(asked[2] for asked in stub.asked) == 31


def write_vectors(path, names, items, **change):
    columns = {"id": names, "vector": [vector(item).tolist() for item in items]}
    pq.write_table(pa.table(columns | change), path)
    return path


def test_given_embeddings(folder):
    expected, _ = run(folder, "q2i")
    before = [NegativesTable.open(expected.output).get(None, f"topic {t}") for t in (0, 3)]
    texts = ["topic 3", "topic 0", "unknown text"]
    queries = write_vectors(folder / "q.parquet", texts, [Item("", {"query": f"topic {t}"}) for t in (3, 0, 1)])
    (folder / "vectors").mkdir()
    order = np.random.default_rng(0).permutation(ITEMS)
    for part in range(2):
        names = [f"item-{i}" for i in order[part::2]]
        write_vectors(folder / "vectors" / f"{part}.parquet", names, [Item(name) for name in names])
    summary, stub = run(folder, "q2i", query_embeddings=queries, target_embeddings=folder / "vectors")
    assert stub.asked == []
    after = [NegativesTable.open(summary.output).get(None, f"topic {t}") for t in (0, 3)]
    for (ids, scores), (ids_before, scores_before) in zip(after, before, strict=True):
        assert ids == ids_before
        np.testing.assert_allclose(scores, scores_before, atol=1e-5)
    assert summary.targets_without_embedding == 0
    mixed, stub = run(folder, "q2i", target_embeddings=folder / "vectors")
    assert [asked[2] for asked in stub.asked] == [2]
    assert mixed.threshold.value == summary.threshold.value


def test_embeddings_from_a_folder_that_embed_wrote(folder):
    expected, _ = run(folder, "q2i")
    before = [NegativesTable.open(expected.output).get(None, f"topic {t}") for t in (0, 3)]
    names = [f"item-{i}" for i in range(ITEMS)]
    z = np.stack([vector(Item(name)) for name in names]).astype(np.float32)
    (folder / "vectors").mkdir()
    write_part(part_path(folder / "vectors", 0), names, z, "bfloat16")  # as numbers, its bits would be other vectors
    info = EmbeddingInfo("a run", "0", z.shape[1], "bfloat16", "VTA", (), "")
    write_info(folder / "vectors", info)
    summary, _ = run(folder, "q2i", target_embeddings=folder / "vectors")
    for t, (ids, scores) in zip((0, 3), before, strict=True):
        found, close = NegativesTable.open(summary.output).get(None, f"topic {t}")
        assert set(found) == set(ids)
        np.testing.assert_allclose(sorted(close), sorted(scores), atol=0.02)


def test_given_embeddings_that_lack_ids(folder):
    texts = write_vectors(folder / "q.parquet", ["topic 0"], [Item("", {"query": "topic 0"})])
    with pytest.raises(SailError, match=r"q.parquet has no vector for 1 of the 2 queries, the first of them 'topic 3'"):
        run(folder, "q2i", query_embeddings=texts)
    names = [f"item-{i}" for i in range(0, ITEMS, 3) if i not in (3, 9)]
    some = write_vectors(folder / "t.parquet", names, [Item(name) for name in names])
    first = min(("item-3", "item-9"), key=lambda name: query_key(name, None))
    with pytest.raises(
        SailError, match=rf"t.parquet has no vector for 2 of the 20 targets, the first of them '{first}'"
    ):
        run(folder, "q2i", target_embeddings=some)


def test_damaged_embeddings(folder):
    path = folder / "q.parquet"
    with pytest.raises(SailError, match="no file of embeddings"):
        run(folder, "q2i", query_embeddings=path)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(SailError, match="q.parquet is no Parquet file, or damaged"):
        run(folder, "q2i", query_embeddings=path)
    for columns, message in (
        ({"name": ["topic 0"], "vector": [[1.0]]}, "has no column 'id'"),
        ({"id": ["topic 0"], "vectors": [[1.0]]}, "has no column 'vector'.*Did you mean 'vectors'"),
        ({"id": ["topic 0"], "vector": [1.0]}, "double in column 'vector'; it needs lists"),
        ({"id": ["topic 0", "topic 3"], "vector": [[1.0], [1.0, 2.0]]}, r"vectors of \[1, 2\] numbers"),
        ({"id": ["topic 0", "topic 3"], "vector": [[1.0], None]}, "no gaps"),
        ({"id": ["topic 0", "topic 3"], "vector": [[1.0], [2.0]]}, "queries and targets have 1 and 8 dimensions"),
        ({"id": ["topic 0", "topic 3"], "vector": [[float("nan")] * 8, [2.0] * 8]}, "data.datasets.q2i: .* not finite"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(SailError, match=message):
            run(folder, "q2i", query_embeddings=path)


def test_unknown_data_set(folder):
    with pytest.raises(SailError, match="no data set 'i2j' .* Did you mean i2i"):
        run(folder, "i2j")


def test_no_table(folder):
    (folder / "tables/i2i.parquet").unlink()
    with pytest.raises(SailError, match="no pair table .*i2i.parquet"):
        run(folder)


def test_damaged_table_beside_that_of_the_data_set(folder):
    (folder / "tables/watched.parquet").write_bytes(b"PAR1")
    with pytest.raises(SailError, match="watched.parquet is no Parquet file, or damaged"):
        run(folder)


def test_unknown_split(folder):
    with pytest.raises(SailError, match="positive_splits names 'tset', a split that no table has"):
        run(folder, config=make_config(folder, positive_splits=("train", "tset")))


def test_a_data_set_of_one_target_is_refused(folder):
    write_pairs(folder / "tables/i2i.parquet", [(pair(1, 2), "train"), (pair(3, 2), "train")])
    with pytest.raises(
        SailError, match="datasets.i2i: .*i2i.parquet has 1 target in the split; mining needs at least two"
    ):
        run(folder)


def test_no_positive_that_could_be_embedded(folder):
    write_pairs(folder / "tables/i2i.parquet", [(pair(1, 8), "train"), (pair(4, 5, 0.1), "train")])
    with pytest.raises(SailError, match="datasets.i2i: No positive pair has embeddings on both sides"):
        run(folder)


def test_block_too_large(folder):
    config = make_config(folder)
    config = config_lib.build(
        {**to_dict(config), "mining": {"query_block": 2**20, "target_block": 2**20, "exact_scores": 0}}
    )
    assert run(folder, config=config)[0].queries  # blocks are never larger than the data set


@pytest.mark.parametrize("is_listed", [True, False])
def test_pairs_of_the_data_set_itself_are_known_both_ways_wherever_its_table_lies(folder, is_listed):
    """Topics 4 and 3 are not similar, so only the listed pair (10, 21) keeps (21, 10) from being mined."""
    (folder / "tables/i2i.parquet").unlink()
    rows = [(pair(i, (i + 6 * step) % ITEMS), "train") for i in range(0, ITEMS, 2) for step in (1, 2)]
    write_pairs(folder / "i2i.parquet", [*rows, (pair(21, 27), "train"), *[(pair(10, 21), "train")] * is_listed])
    values = to_dict(make_config(folder))
    values["data"]["datasets"]["i2i"]["table"] = "i2i.parquet"
    values["mining"]["per_query"] = 100
    summary, _ = run(folder, config=config_lib.build(values))
    assert ("item-10" in NegativesTable.open(summary.output).get("item-21", None)[0]) != is_listed
