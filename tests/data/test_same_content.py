"""Items with equal bytes under several ids are one item: in the store, in batches, among negatives, in figures."""

import dataclasses
import shutil

import jax.numpy as jnp
import msgpack
import numpy as np
import pyarrow as pa
import pytest

from sail_jax import config as config_lib
from sail_jax.config.data import DatasetConfig
from sail_jax.data import same_content
from sail_jax.data.draw_counts import count_set
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.data.sequence_tables import write_sequences
from sail_jax.data.store import ItemStore, ItemStoreWriter
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.evaluation.retrieval import load_retrieval
from sail_jax.items import Item, content_key, item_key
from sail_jax.objectives.negative_masks import find_negatives
from sail_jax.patterns import Pattern

PARTS = {"text": {"title": "a"}, "frames": (b"x", b"y"), "audio": b"z", "audio_embedding": np.ones(2, np.float32)}


def write(path, shards):
    writer = ItemStoreWriter(path)
    for number, items in enumerate(shards):
        writer.write_shard(number, items)
    writer.finalize(len(shards))
    return ItemStore.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {"text": {"title": "b"}},
        {"text": {"tags": "a"}},
        {"text": {"title": "a", "tags": "b"}},
        {"frames": (b"xy",)},
        {"frames": (b"y", b"x")},
        {"frames": (b"x", b"y", b"z"), "audio": None},
        {"audio": None},
        {"audio_embedding": None},
        {"audio_embedding": np.array([1, 2], np.float32)},
    ],
)
def test_the_key_of_a_content_is_that_of_all_its_bytes(change):
    key = content_key(Item("a", **PARTS))
    assert content_key(Item("b", **PARTS, labels=("x",), id_embeddings={"e": np.ones(3, np.float32)})) == key != 0
    assert content_key(Item("c", **PARTS | {"text": {"ocr": "", "title": "a"}})) == key
    assert content_key(Item("a", **PARTS | change)) != key
    assert content_key(Item("a", labels=("x",))) == 0


@pytest.mark.parametrize("bucket", [1, 13, 1 << 22])
def test_the_first_of_equals_is_found_in_buckets_of_any_size(tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(same_content, "_BUCKET", bucket)
    draw = np.random.default_rng(0)
    items = [
        Item(f"id-{draw.integers(80)}", {"title": f"title {draw.integers(40)}"} if i % 7 else {}) for i in range(120)
    ]
    store = write(tmp_path, [items[:50], items[50:51], items[51:]])
    seen, first, expected = set(), {}, []
    visible = [item for item in items if not (item.item_id in seen or seen.add(item.item_id))]
    assert [item.item_id for item in store] == [item.item_id for item in visible]
    for position, item in enumerate(visible):
        expected.append(first.setdefault(item.text["title"], position) if item.text else position)
    np.testing.assert_array_equal(store.first_positions(np.arange(len(store))), expected)
    keys = np.array([item_key(item.item_id) for item in visible], np.uint64)
    np.testing.assert_array_equal(store.same.of_keys(keys), keys[expected])
    assert len(store.same) == sum(place != own for own, place in enumerate(expected)) > 10
    unknown = np.array([0, 1, 2**64 - 1], np.uint64)
    np.testing.assert_array_equal(store.same.of_keys(unknown), unknown)
    assert not list((tmp_path / "index").glob("*.partial"))


def test_a_store_of_an_earlier_version_has_no_equals(tmp_path):
    items = [Item(name, {"title": "glass"}) for name in "abc"]
    alone = write(tmp_path / "alone", [items[:1]])
    assert len(alone.same) == 0 and not list((tmp_path / "alone" / "index").glob("same*"))
    store = write(tmp_path / "new", [items[:1], items[1:]])
    assert store.first_positions(np.arange(3)).tolist() == [0, 0, 0]
    for path in (tmp_path / "new" / "index").glob("same.*"):
        path.unlink()
    old = ItemStore.open(tmp_path / "new")
    assert len(old.same) == 0 and old.first_positions(np.arange(3)).tolist() == [0, 1, 2]
    # Shards that an earlier version finished stay without keys, when this one goes on.
    writer = ItemStoreWriter(tmp_path / "new")
    (tmp_path / "new" / "items-00000.ids").write_bytes(msgpack.packb(["a"]))
    writer.finalize(2)
    assert ItemStore.open(tmp_path / "new").first_positions(np.arange(3)).tolist() == [0, 1, 1]


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def doubled(world, settings, tmp_path):
    """The world with every item under a second id, behind the first ones; its settings."""
    shutil.copytree(world, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "items")
    items = list(ItemStore.open(world / "items"))
    again = [dataclasses.replace(item, item_id=f"{item.item_id} again", labels=()) for item in items]
    write(tmp_path / "data" / "items", [items, again])
    settings.data.dir = str(tmp_path / "data")
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    return settings


def rename(pair, *sides):
    """A pair with the second ids of some sides."""
    return pair._replace(**{side: f"{getattr(pair, side)} again" for side in sides})


def batches(settings):
    return BatchSource(config_lib.build(settings), HostShare(0, 16, 1))


def test_equals_are_no_negatives_of_each_other(doubled, tmp_path):
    pairs = PairTable.open(tmp_path / "data/tables/copair.parquet", "train")
    (a, b), *others = ((pairs[i].query_id, pairs[i].target_id) for i in range(40))
    (c, d) = next(pair for pair in others if not {*pair} & {a, b})
    rows = [Pair(a, None, b), Pair(f"{a} again", None, d), Pair(c, None, f"{b} again"), Pair(d, None, f"{d} again")]
    write_pairs(tmp_path / "data/tables/equal.parquet", [(row, "train") for row in rows * 4])
    doubled.data.datasets.copair.update(table="tables/equal.parquet", split="train")
    batch = batches(doubled)[0].arrays
    order = [rows.index(row) for row in (_pair_of(batches(doubled), 0, i) for i in range(16))]
    keys = [[_halves(item_key(name)) for name in names] for names in ((a, b), (a, d), (c, b), (d, d))]
    assert batch.item_keys[:, :2].tolist() == [keys[row] for row in order]
    valid = jnp.ones(16, bool)
    hard = jnp.zeros((16, batch.item_keys.shape[1] - 2), bool)
    found = np.asarray(find_negatives(batch, Pattern("VTA", "VTA"), valid, hard).targets)
    # By the rows above: targets are b, d, b, d; the queries a, a, c, d. a has b and d as targets; d is itself a target.
    expected = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(found, expected[np.ix_(order, order)])


def _pair_of(source, step, row):
    dataset, number = source.examples(step)[row]
    return source._sets[dataset].pair(number)


def _halves(key):
    return [key >> 32, key & 0xFFFFFFFF]


def test_batches_of_second_ids_have_the_keys_and_frequencies_of_the_first(doubled, tmp_path):
    doubled.data.datasets.copair.correct_popularity = 1.0
    plain = batches(doubled)[0].arrays
    pairs = PairTable.open(tmp_path / "data/tables/copair.parquet", "train")
    sides = [(), ("query_id",), ("target_id",), ("query_id", "target_id")]
    rows = ((rename(pairs[i], *sides[i % 4]), "train") for i in range(len(pairs)))
    write_pairs(tmp_path / "data/tables/again.parquet", rows)
    doubled.data.datasets.copair.table = "tables/again.parquet"
    again = batches(doubled)[0].arrays
    np.testing.assert_array_equal(again.item_keys, plain.item_keys)
    np.testing.assert_allclose(again.log_frequency, plain.log_frequency, rtol=1e-6)


def test_what_a_user_has_seen_is_seen_under_every_id(doubled, tmp_path):
    names = [item.item_id for item in ItemStore.open(tmp_path / "data/items")][:40]

    def keys(suffix):
        columns = {
            "user_id": [f"u{i}" for i in range(32)],
            "item_ids": [[names[i], names[i + 1] + suffix] for i in range(32)],
            "target_id": [names[i + 2] + suffix for i in range(32)],
            "seen_ids": [[names[i + 3] + suffix] for i in range(32)],
            "split": ["train"] * 32,
        }
        write_sequences(tmp_path / f"data/tables/next{suffix}.parquet", [pa.table(columns)])
        changes = {"table": f"tables/next{suffix}.parquet", "kind": "sequences", "patterns": ("T->T",)}
        doubled.data.datasets = {"next": {"split": "train"} | changes}
        return batches(doubled)[0].arrays

    plain, again = keys(""), keys(" again")
    np.testing.assert_array_equal(again.item_keys, plain.item_keys)
    np.testing.assert_array_equal(again.seen_keys, plain.seen_keys)


def test_counts_of_equals_are_added_up(tmp_path):
    store = write(tmp_path / "items", [[Item(name, {"title": name[0]}) for name in ("a1", "b1", "a2")]])
    rows = [("a1", "b1"), ("a2", "b1"), ("a2", "a1"), ("b1", "a2")]
    write_pairs(tmp_path / "t.parquet", [(Pair(query, None, target), "train") for query, target in rows])
    table = PairTable.open(tmp_path / "t.parquet", "train")
    apart, together = (
        count_set(tmp_path / "f", "x", table, None, DatasetConfig(), *more) for more in ((), (store.same,))
    )
    keys = np.array([item_key(name) for name in ("a1", "a2", "b1")], np.uint64)
    assert apart.counts["query"].of(keys).tolist() == [1, 2, 1]
    assert together.counts["query"].of(keys).tolist() == [3, 0, 1]
    assert together.counts["target"].of(store.same.of_keys(keys)).tolist() == [2, 2, 2]
    assert apart.identity != together.identity


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_a_corpus_holds_every_content_once(doubled, tmp_path):
    config = config_lib.build(doubled)
    store = ItemStore.open(tmp_path / "data/items")
    task = load_retrieval(config, "i2i", store)
    pairs = PairTable.open(tmp_path / "data" / task.settings.table, task.settings.split)
    rows = [(rename(pairs[i], "target_id"), task.settings.split) for i in range(len(pairs))]
    write_pairs(tmp_path / "data" / task.settings.table, rows)
    again = load_retrieval(config, "i2i", store)
    assert again.queries == task.queries and len(task.corpus) <= len(store) // 2
    np.testing.assert_array_equal(again.corpus, task.corpus)
    np.testing.assert_array_equal(again.exclude, task.exclude)
    for found, expected in zip(again.relevant, task.relevant, strict=True):
        np.testing.assert_array_equal(found, expected)
