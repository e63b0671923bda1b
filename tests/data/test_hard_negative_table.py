"""The table of hard negatives: written in the order of its keys, looked up at random."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.data import hard_negative_table as negatives_lib
from sail_jax.data.hard_negative_table import NegativesTable, keys_path, query_key, write_negatives
from sail_jax.errors import SailError

ROWS = 3000


def rows(count=ROWS):
    """Items and texts that share their letters, in the order of their keys."""
    rng = np.random.default_rng(0)
    queries = [(f"q{i}", None) if i % 2 else (None, f"q{i + i % 3 // 2}") for i in range(count)]
    queries = sorted(dict.fromkeys(queries), key=lambda query: query_key(*query))
    for number, (item_id, text) in enumerate(queries):
        some = rng.integers(0, 10**6, number % 5)
        yield item_id, text, [f"item-{n}" for n in some], [float(np.float32(n / 10**6)) for n in some]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "negatives" / "copair.parquet"
    assert write_negatives(path, rows(), {"lambda": 0.5}) == len(list(rows()))
    return path


def test_what_is_written_is_found(path):
    table = NegativesTable.open(path)
    assert len(table) == len(list(rows()))
    assert table.metadata == {"lambda": 0.5}
    # A query without negatives counts as one value.
    assert table.listed == sum(max(1, len(ids)) for _, _, ids, _ in rows())
    assert pq.read_metadata(path).num_row_groups == 3
    for item_id, text, ids, scores in list(rows())[::7]:
        assert table.get(item_id, text) == (ids, scores)
    assert sorted(file.name for file in path.parent.iterdir()) == ["copair.keys.npy", "copair.parquet"]


def test_unknown_queries_have_none(path):
    table = NegativesTable.open(path)
    assert table.get("unknown", None) == table.get(None, "unknown") == ([], [])


def test_ids_and_texts_of_the_same_letters_differ(tmp_path):
    assert query_key("a", None) != query_key(None, "a")
    assert query_key("a", "whatever") == query_key("a", None)
    both = sorted([("a", None, ["x"], [0.5]), (None, "a", ["y"], [0.25])], key=lambda row: query_key(*row[:2]))
    write_negatives(tmp_path / "t.parquet", both, {})
    table = NegativesTable.open(tmp_path / "t.parquet")
    assert table.get("a", None) == table.get("a", "of an item") == (["x"], [0.5])
    assert table.get(None, "a") == (["y"], [0.25])
    with pytest.raises(ValueError, match="an id or a text"):
        table.get(None, None)


def test_colliding_keys_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(negatives_lib, "item_key", lambda text: 2**64 - 1)
    write_negatives(tmp_path / "t.parquet", [("a", None, ["x"], [0.5]), ("b", None, ["y"], [0.25])], {})
    table = NegativesTable.open(tmp_path / "t.parquet")
    assert [table.get(name, None)[0] for name in "abc"] == [["x"], ["y"], []]


def test_threads_and_pickles(path):
    table = pickle.loads(pickle.dumps(NegativesTable.open(path)))
    expected = list(rows())
    order = np.random.default_rng(1).integers(0, len(expected), 500).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: table.get(*expected[i][:2]), order))
    assert found == [expected[i][2:] for i in order]


def test_keys_are_mapped_and_few_groups_are_read(path, monkeypatch):
    table = NegativesTable.open(path)
    assert isinstance(table._keys, np.memmap)
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **options: read.append(i) or original(self, i, **options)
    )
    for item_id, text, *_ in rows():
        table.get(item_id, text)
    assert read == [0, 1, 2]


def test_order_and_lengths_are_checked(tmp_path):
    with pytest.raises(ValueError, match="not sorted by its key"):
        write_negatives(tmp_path / "t.parquet", list(rows())[::-1], {})
    with pytest.raises(ValueError, match="needs a score for each negative"):
        write_negatives(tmp_path / "t.parquet", [("a", None, ["x"], [])], {})
    assert not (tmp_path / "t.parquet").exists()


def test_interrupted_writer_leaves_the_table_that_was_there(path):
    def broken():
        yield from rows(1500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_negatives(path, broken(), {})
    assert len(NegativesTable.open(path)) == len(list(rows()))


def test_empty_table(tmp_path):
    write_negatives(tmp_path / "t.parquet", [], {})
    table = NegativesTable.open(tmp_path / "t.parquet")
    assert len(table) == 0
    assert table.get("a", None) == ([], [])


def test_missing_files(path):
    with pytest.raises(SailError, match="no table of hard negatives .*other.parquet. .*sail_jax mine"):
        NegativesTable.open(path.with_name("other.parquet"))
    keys_path(path).unlink()
    with pytest.raises(SailError, match="no file of keys .*copair.keys.npy .*sail_jax mine"):
        NegativesTable.open(path)


def test_damaged_files(path):
    keys = keys_path(path)
    good = keys.read_bytes()
    for bad in (good[:100], good[:500], b""):
        keys.write_bytes(bad)
        with pytest.raises(SailError, match="cannot be read"):
            NegativesTable.open(path)
    np.save(keys, np.zeros(3, np.uint64))
    with pytest.raises(SailError, match="for a table of"):
        NegativesTable.open(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SailError, match="not a Parquet file, or it is damaged"):
        NegativesTable.open(path)


def test_keys_of_another_table(path, tmp_path):
    every = list(rows())
    item_id, text, *_ = every[17]
    keys = np.load(keys_path(path))
    np.save(keys_path(path), np.delete(np.append(keys, keys[-1]), 3))
    with pytest.raises(SailError, match="keys of another table"):
        NegativesTable.open(path).get(item_id, text)


def test_foreign_tables(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"key": pa.array([1], pa.uint64()), "negative": ["a"]}), path)
    with pytest.raises(SailError, match="has no column 'query_id'"):
        NegativesTable.open(path)
    columns = {"key": [1], "query_id": ["a"], "query_text": ["b"], "negatives": [["c"]], "scores": [[0.5]]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(SailError, match="has int64 in column 'key', not uint64"):
        NegativesTable.open(path)
    pq.write_table(pa.table(columns, schema=negatives_lib.SCHEMA), path)
    with pytest.raises(SailError, match="not written by the miner"):
        NegativesTable.open(path)
    pq.write_table(pa.table(columns, schema=negatives_lib.SCHEMA.with_metadata({"sail_jax.negatives": "{}"})), path)
    np.save(keys_path(path), np.array([1], np.uint64))
    assert len(NegativesTable.open(path)) == 1
    assert json.dumps(NegativesTable.open(path).metadata) == "{}"
