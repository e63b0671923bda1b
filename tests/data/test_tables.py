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


def test_table_of_another_writer(tmp_path, path):
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), foreign)
    assert len(PairTable.open(foreign, "")) == 20_000
    with pytest.raises(SailError, match="has no metadata that maps rows to splits"):
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
