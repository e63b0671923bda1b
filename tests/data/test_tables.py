import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.data.tables import SCHEMA, Pair, PairTable, is_held_out, write_pairs
from sail_jax.errors import SailError

SPLITS = ("train", "test", "hold out/é")


def a_pair(i):
    query = (f"q{i}", None) if i % 3 else (None, f"search {i} ß")
    return Pair(*query, f"t{i}", None if i % 4 == 0 else i / 8)


def rows(count):
    return [(a_pair(i), SPLITS[i % 5 % 3]) for i in range(count)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "pairs.parquet"
    counts = write_pairs(path, iter(rows(20_000)))
    assert counts == {"train": 8_000, "test": 8_000, "hold out/é": 4_000}
    return path


def pairs_of(split):
    return [pair for pair, of in rows(20_000) if of == split]


@pytest.mark.parametrize("split", SPLITS)
def test_rows_of_a_split(path, split):
    expected = pairs_of(split)
    table = PairTable.open(path, split)
    assert len(table) == len(expected)
    for i in np.random.default_rng(0).integers(0, len(expected), 300).tolist() + [0, len(expected) - 1]:
        assert table[i] == expected[i]
    batches = list(table.iter_batches())
    assert max(map(len, batches)) <= 4096
    assert [pair for batch in batches for pair in batch] == expected
    for wrong in (-1, len(expected)):
        with pytest.raises(IndexError):
            table[wrong]


def test_file_as_pyarrow_sees_it(path):
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(SCHEMA)
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) == 4096
    table = file.read()
    splits = table["split"].to_pylist()
    assert splits == sorted(splits)
    expected = sorted(rows(20_000), key=lambda row: row[1])
    for name in ("query_id", "query_text", "target_id", "score"):
        assert table[name].to_pylist() == [getattr(pair, name) for pair, _ in expected]


def test_all_rows(path):
    table = PairTable.open(path, "")
    assert len(table) == 20_000
    assert table[19_999] == pairs_of("train")[-1]


def test_default_split_is_train(path):
    assert PairTable.open(path)[0] == pairs_of("train")[0]


def test_few_row_groups_are_read(path, monkeypatch):
    table = PairTable.open(path, "train")
    read = []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, i, original=pq.ParquetFile.read_row_group, **options: (
            read.append(i) or original(self, i, **options)
        ),
    )
    for i in [0, 1, 100, 4000, 4, 0]:
        table[i]
    assert len(read) <= 2


def test_folder_of_parts(tmp_path):
    for part in range(3):
        write_pairs(tmp_path / f"part-{part}.parquet", rows(20_000)[part * 6000 : (part + 1) * 6000])
    (tmp_path / "README").write_text("not a part")
    for split in SPLITS:
        expected = [pair for pair, of in rows(18_000) if of == split]
        table = PairTable.open(tmp_path, split)
        assert [table[i] for i in range(0, len(table), 7)] == expected[::7]
        assert [pair for batch in table.iter_batches() for pair in batch] == expected


def test_a_part_may_lack_the_split(tmp_path):
    write_pairs(tmp_path / "a.parquet", [(a_pair(1), "train")])
    write_pairs(tmp_path / "b.parquet", [(a_pair(2), "test")])
    assert list(PairTable.open(tmp_path, "test").iter_batches()) == [[a_pair(2)]]
    assert len(PairTable.open(tmp_path, "")) == 2


def test_threads_and_pickles(path):
    table = pickle.loads(pickle.dumps(PairTable.open(path, "test")))
    expected = pairs_of("test")
    order = np.random.default_rng(1).integers(0, len(table), 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(table.__getitem__, order)) == [expected[i] for i in order]


def test_empty_table(tmp_path):
    path = tmp_path / "empty.parquet"
    assert write_pairs(path, []) == {}
    assert len(PairTable.open(path, "")) == 0


def test_missing_split(path):
    with pytest.raises(SailError, match="has no split 'val'; it has hold out/é, test, train"):
        PairTable.open(path, "val")


def test_missing_file(path):
    with pytest.raises(SailError, match="no pair table .*pair.parquet. Did you mean pairs.parquet"):
        PairTable.open(path.with_name("pair.parquet"))


def test_missing_column(tmp_path):
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"query_id": ["a"], "query_text": [None], "target": ["b"], "score": [1.0]}), path)
    with pytest.raises(SailError) as error:
        PairTable.open(path, "")
    assert str(error.value) == (
        f"{path} has no column 'target_id'; it has 'query_id', 'query_text', 'target', 'score'. Did you mean 'target'?"
    )


GOOD = {"query_id": ["a"], "query_text": ["x"], "target_id": ["b"], "score": [1.0], "split": ["train"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"target_id": pa.array([7])}, "the column 'target_id' is int64; write it as string"),
        ({"target_id": [["b"]]}, "the column 'target_id' is list<.*; write it as string"),
        ({"query_id": [b"a"]}, "the column 'query_id' is binary"),
        ({"score": ["1"]}, "the column 'score' is string; write it as float"),
        ({"target_id": pa.array([None], pa.string())}, "has rows without target_id; fill it in, or leave them out"),
    ],
)
def test_columns_of_other_types_and_with_gaps(tmp_path, columns, message):
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.table(GOOD | columns), path)
    with pytest.raises(SailError, match=f"foreign.parquet.*{message}"):
        list(PairTable.open(path, "").iter_batches())


def test_columns_of_types_that_fit(tmp_path):
    path = tmp_path / "foreign.parquet"
    fits = {"query_id": pa.array(["a"], pa.large_string()), "score": [1], "query_text": pa.nulls(1)}
    fits |= {"target_id": pa.array(["b"]).dictionary_encode()}
    pq.write_table(pa.table(GOOD | fits), path)
    assert list(PairTable.open(path, "").iter_batches()) == [[Pair("a", None, "b", 1)]]


@pytest.mark.parametrize(
    "splits", [b"", b"{", b"[]", b"3", b'{"train": 3}', b'{"train": [0, 1, 2]}', b'{"train": ["a", 1]}', b"\xff"]
)
def test_damaged_metadata(tmp_path, splits):
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.table(GOOD).replace_schema_metadata({b"sail_jax.splits": splits}), path)
    with pytest.raises(SailError, match="foreign.parquet (has damaged metadata|has no split 'train')"):
        PairTable.open(path, "train")


@pytest.mark.parametrize("keep", [0, 3, 100, -9, -200])
def test_a_table_that_is_cut_off_is_named(tmp_path, path, keep):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SailError, match="cut.parquet is no Parquet file, or damaged .*; write it again"):
        PairTable.open(cut, "train")


def test_damaged_pages_are_named(tmp_path):
    path = tmp_path / "pairs.parquet"
    write_pairs(path, iter(rows(2_000)))
    data = bytearray(path.read_bytes())
    data[100:1_000] = b"\xff" * 900
    path.write_bytes(data)
    with pytest.raises(SailError, match="pairs.parquet is no Parquet file, or damaged"):
        list(PairTable.open(path, "").iter_batches())


def test_table_of_another_writer(tmp_path, path):
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), foreign)
    assert len(PairTable.open(foreign, "")) == 20_000
    with pytest.raises(
        SailError, match="does not say which of its rows are of which split: its row group 0 has several"
    ):
        PairTable.open(foreign, "train")


def test_row_groups_may_hold_several_splits(tmp_path, path):
    """As after a copy by a tool that keeps the metadata."""
    copy = tmp_path / "copy.parquet"
    pq.write_table(pq.read_table(path), copy, row_group_size=3000)
    for split in SPLITS:
        expected = pairs_of(split)
        table = PairTable.open(copy, split)
        assert [table[i] for i in range(len(table))] == expected
        assert [pair for batch in table.iter_batches() for pair in batch] == expected


def test_interrupted_writer_leaves_no_table(tmp_path):
    def broken():
        yield from rows(5000)
        raise KeyboardInterrupt

    path = tmp_path / "pairs.parquet"
    with pytest.raises(KeyboardInterrupt):
        write_pairs(path, broken())
    assert not path.exists()
    write_pairs(path, rows(10))
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.parquet"]


def test_table_appears_when_it_is_complete(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", killed)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path / "pairs.parquet", rows(10))
    assert not (tmp_path / "pairs.parquet").exists()


def test_held_out_items():
    ids = [f"item-{i}" for i in range(20_000)]
    held_out = {share: {i for i in ids if is_held_out(i, 0, share)} for share in (0.0, 0.1, 0.3, 1.0)}
    assert len(held_out[0.0]) == 0
    assert len(held_out[1.0]) == len(ids)
    assert len(held_out[0.1]) == pytest.approx(2_000, abs=200)
    assert held_out[0.1] < held_out[0.3]
    assert held_out[0.1] != {i for i in ids if is_held_out(i, 1, 0.1)}
