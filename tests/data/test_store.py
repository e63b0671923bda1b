import dataclasses
import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sail_jax.data import store as store_lib
from sail_jax.data import store_index
from sail_jax.data.store import ItemStore, ItemStoreWriter, decode_item, encode_item
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item, item_key


def an_item(i):
    return Item(
        item_id=f"item-{i}",
        text={"title": f"title {i}", "tags": "ä, ß, 漢字"},
        frames=(b"\xff\xd8" + bytes([i % 256]), b"frame two")[: i % 3],
        audio=bytes(range(i % 256)) or None,
        audio_embedding=np.arange(4, dtype=np.float32) + i if i % 2 else None,
        labels=("a", str(i)),
        id_embeddings={"gid": np.full(3, i, np.float32)} if i % 5 == 0 else {},
    )


def write(path, shards, on_duplicate=None):
    writer = ItemStoreWriter(path)
    for number, items in enumerate(shards):
        assert writer.write_shard(number, items) == len(items)
    writer.finalize(len(shards), on_duplicate)
    return ItemStore.open(path)


def cut(items, size):
    return [items[first : first + size] for first in range(0, len(items), size)]


def titles(*ids):
    return [Item(item_id=item_id, text={"title": f"{item_id} {n}"}) for n, item_id in enumerate(ids)]


def assert_same(a, b):
    assert (a.item_id, a.text, a.frames, a.audio, a.labels) == (b.item_id, b.text, b.frames, b.audio, b.labels)
    assert (a.audio_embedding is None) == (b.audio_embedding is None)
    if a.audio_embedding is not None:
        np.testing.assert_array_equal(a.audio_embedding, b.audio_embedding)
        assert a.audio_embedding.dtype == np.float32
    assert a.id_embeddings.keys() == b.id_embeddings.keys()
    for name, vector in a.id_embeddings.items():
        np.testing.assert_array_equal(vector, b.id_embeddings[name])


@pytest.fixture(scope="module")
def items():
    return [an_item(i) for i in range(1000)]


@pytest.fixture(scope="module")
def store(items, tmp_path_factory):
    return write(tmp_path_factory.mktemp("store") / "items", cut(items, 64))


def test_item_key_is_stable():
    digest = hashlib.blake2b("emoji ß".encode(), digest_size=8).digest()
    assert item_key("emoji ß") == np.frombuffer(digest, "<u8")[0]
    assert item_key("a") == 3405396810240292928


@pytest.mark.parametrize("i", range(12))
def test_items_survive_their_encoding(i):
    assert_same(decode_item(encode_item(an_item(i))), an_item(i))
    assert_same(decode_item(encode_item(Item("bare"))), Item("bare"))


def test_by_position_and_by_id(store, items):
    assert len(store) == len(items)
    for i in [0, 63, 64, 500, 999]:
        assert_same(store[i], items[i])
        assert_same(store.get(f"item-{i}"), items[i])
        assert store.position(f"item-{i}") == i
    for wrong in (-1, 1000):
        with pytest.raises(IndexError):
            store[wrong]
    assert [item.item_id for item in store] == [item.item_id for item in items]
    assert list(store.item_ids()) == [item.item_id for item in items]


def test_positions_of_a_batch(store):
    order = np.random.default_rng(0).permutation(1000)
    ids = [f"item-{i}" for i in order]
    np.testing.assert_array_equal(store.positions(ids), order)
    found = store.positions(["item-3", "nope", "item-0", ""])
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, [3, -1, 0, -1])
    assert store.positions([]).shape == (0,)


def test_positions_read_no_record(store, monkeypatch):
    monkeypatch.setattr(ItemStore, "_read", lambda *_: pytest.fail("a record was read"))
    assert (store.positions([f"item-{i}" for i in range(1000)]) == np.arange(1000)).all()


def test_unknown_id(store):
    assert store.position("nope") is None
    with pytest.raises(SailError, match="no item 'nope' in .*items with its 1000 items"):
        store.get("nope")


@pytest.mark.parametrize("max_open_shards", [1, 512])
def test_threads_and_pickles(store, items, max_open_shards):
    store = pickle.loads(pickle.dumps(ItemStore(store.path, max_open_shards=max_open_shards)))
    assert store._reader.cache_info().maxsize == max_open_shards
    order = np.random.default_rng(1).integers(0, 1000, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for i, item in zip(order, pool.map(store.__getitem__, order), strict=True):
            assert_same(item, items[i])


@pytest.mark.parametrize("bucket", [1, 7, 100, 1000])
def test_index_is_the_same_in_buckets_of_any_size(store, items, tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(store_index, "_BUCKET", bucket)
    other = write(tmp_path, cut(items, 33))
    for name in ("keys", "records", "hidden", "shared"):
        expected = (store.path / "index" / f"{name}.u64").read_bytes()
        assert (other.path / "index" / f"{name}.u64").read_bytes() == expected
    keys = np.array(sorted(item_key(item.item_id) for item in items), np.uint64)
    np.testing.assert_array_equal(np.fromfile(other.path / "index" / "keys.u64", np.uint64), keys)


@pytest.mark.parametrize("bucket", [3, 1 << 22])
def test_colliding_hashes_are_told_apart(tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(store_lib, "item_key", lambda text: item_key(text) % 5 << 60)
    monkeypatch.setattr(store_index, "_BUCKET", bucket)
    ids = [f"x{i}" for i in range(40)]
    store = write(tmp_path, cut(titles(*ids), 7))
    np.testing.assert_array_equal(store.positions(["new", *ids]), [-1, *range(40)])
    for i, item_id in enumerate(ids):
        assert store.position(item_id) == i
        assert store.get(item_id).text["title"] == f"{item_id} {i}"
    assert store.position("new") is None
    with pytest.raises(SailError, match="no item 'new'"):
        store.get("new")


@pytest.mark.parametrize("weak_hash", [False, True])
def test_first_of_repeated_ids_wins(tmp_path, monkeypatch, weak_hash):
    if weak_hash:
        monkeypatch.setattr(store_lib, "item_key", lambda text: item_key(text) % 3)
    ids = list("abcadebbfg")
    told = []
    store = write(tmp_path, cut(titles(*ids), 4), lambda *duplicate: told.append(duplicate))
    assert sorted(told) == [("a", (0, 0), (0, 3)), ("b", (0, 1), (1, 2)), ("b", (0, 1), (1, 3))]
    unique = list(dict.fromkeys(ids))
    assert len(store) == len(unique)
    assert [item.item_id for item in store] == list(store.item_ids()) == unique
    np.testing.assert_array_equal(store.positions(unique), range(len(unique)))
    assert [store.position(item_id) for item_id in unique] == list(range(len(unique)))
    assert store.get("b").text["title"] == "b 1"
    assert store[3].text["title"] == "d 4"


def test_same_items_make_the_same_bytes(items, tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, cut(items[:100], 50))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 2 + 2 + 1 + 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_interrupted_shard_is_not_there(items, tmp_path):
    def broken():
        yield items[0]
        raise KeyboardInterrupt

    writer = ItemStoreWriter(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(0, broken())
    assert not list(tmp_path.glob("*.array_record")) + list(tmp_path.glob("*.ids"))
    assert not writer.finished(0)
    with pytest.raises(SailError, match="shard 0 of 1 is missing"):
        writer.finalize(1)
    # Another writer goes on.
    writer = ItemStoreWriter(tmp_path)
    writer.write_shard(0, items[:3])
    assert writer.finished(0)
    writer.finalize(1)
    assert len(ItemStore.open(tmp_path)) == 3


def test_items_are_taken_one_at_a_time(items, tmp_path, monkeypatch):
    taken, written = [], []
    monkeypatch.setattr(store_lib, "encode_item", lambda item: written.append(len(taken)) or encode_item(item))
    ItemStoreWriter(tmp_path).write_shard(0, (taken.append(i) or items[i] for i in range(5)))
    assert written == [1, 2, 3, 4, 5]


def test_index_that_was_interrupted_is_built_anew(items, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    writer = ItemStoreWriter(tmp_path)
    writer.write_shard(0, [items[0], items[1], items[0]])
    with pytest.raises(KeyboardInterrupt):
        writer.finalize(1, stop)
    with pytest.raises(SailError, match="unfinished"):
        ItemStore.open(tmp_path)
    writer.finalize(1)
    assert len(ItemStore.open(tmp_path)) == 2


def test_empty_store(tmp_path):
    writer = ItemStoreWriter(tmp_path)
    writer.write_shard(0, [])
    with pytest.raises(SailError, match="has no items"):
        writer.finalize(1)


def test_shards_may_be_empty(items, tmp_path):
    store = write(tmp_path, [[], items[:2], [], items[2:5], []])
    assert [item.item_id for item in store] == [item.item_id for item in items[:5]]


def test_folders_that_are_no_store(items, tmp_path):
    with pytest.raises(SailError, match="There is no item store .*missing"):
        ItemStore.open(tmp_path / "missing")
    with pytest.raises(SailError, match="is not an item store"):
        ItemStore.open(tmp_path)
    ItemStoreWriter(tmp_path).write_shard(0, items[:3])
    with pytest.raises(SailError, match="unfinished"):
        ItemStore.open(tmp_path)
    for content in ("[]", "nonsense", json.dumps({"format": "sail_jax item store", "version": 99})):
        (tmp_path / "store.json").write_text(content)
        with pytest.raises(SailError, match="not that of an item store of version 1"):
            ItemStore.open(tmp_path)


def test_damaged_shard_is_a_bad_record(items, tmp_path):
    store = write(tmp_path, [items[:3]])
    shard = tmp_path / "items-00000.array_record"
    data = bytearray(shard.read_bytes())
    place = data.find(b"title 1")
    data[place : place + 4] = b"\0\0\0\0"
    shard.write_bytes(data)
    assert_same(store[0], items[0])
    with pytest.raises(BadRecordError, match=r"items-00000.array_record.*cannot be read"):
        store[1]


def test_contents_are_others_where_a_text_a_picture_or_an_id_is(tmp_path):
    def contents(name, **changes):
        items = [Item("a", {"title": "red"}, frames=(b"\xff\xd8",)), Item("b", {"title": "blue"})]
        items[0] = dataclasses.replace(items[0], **changes)
        return write(tmp_path / name, cut(items, 1)).contents

    same = contents("whole")
    assert same and same == contents("again") == contents("labelled", labels=("x",))
    others = [contents("t", text={"title": "bed"}), contents("f", frames=(b"\xff\xd9",)), contents("i", item_id="c")]
    assert len({same, *others}) == 4


def test_a_store_of_an_earlier_version_has_no_digest(tmp_path):
    write(tmp_path / "s", [[an_item(0)]])
    marker = json.loads((tmp_path / "s/store.json").read_text())
    (tmp_path / "s/store.json").write_text(json.dumps({k: v for k, v in marker.items() if k != "contents"}))
    assert ItemStore.open(tmp_path / "s").contents == ""
