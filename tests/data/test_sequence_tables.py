import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.data.sequence_tables import SCHEMA, Sequence, SequenceTable, open_pairs, stream_sequences, write_sequences
from sail_jax.errors import SailError

ROWS = 9_000
SPLITS = ("train", "test", "hold out/é")


def a_sequence(i):
    return Sequence(f"user ß{i}", tuple(f"item-{i}-{j}" for j in range(1 + i % 7)), f"t{i}")


def split_of(i):
    return SPLITS[i % 5 % 3]


def batch(numbers, **other):
    sequences = [a_sequence(i) for i in numbers]
    columns = {
        "split": [split_of(i) for i in numbers],
        "target_id": [row.target_id for row in sequences],
        "item_ids": pa.array([list(row.item_ids) for row in sequences], pa.list_(pa.string())),
        "user_id": [row.user_id for row in sequences],
        "score": [0.5] * len(sequences),
    }
    return pa.table(columns | other)


def batches():
    """Of several sizes, none of them that of a row group."""
    bounds = [0, 1, 500, 7_000, 7_000, ROWS]
    return [batch(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "sequences.parquet"
    assert write_sequences(path, iter(batches())) == {"hold out/é": 1_800, "test": 3_600, "train": 3_600}
    return path


def sequences_of(split):
    return [a_sequence(i) for i in range(ROWS) if split_of(i) == split]


@pytest.mark.parametrize("split", SPLITS)
def test_rows_of_a_split(path, split):
    table, expected = SequenceTable.open(path, split), sequences_of(split)
    assert len(table) == len(expected)
    assert [table[i] for i in range(0, len(table), 37)] == expected[::37]
    assert [row for some in table.iter_batches() for row in some] == expected
    assert isinstance(table[0], Sequence) and isinstance(table[0].item_ids, tuple)
    for wrong in (-1, len(expected)):
        with pytest.raises(IndexError):
            table[wrong]


def test_file_as_pyarrow_sees_it(path):
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(SCHEMA)
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= 4096
    rows = file.read()
    assert rows["split"].to_pylist() == sorted(rows["split"].to_pylist())
    everything = [row for split in sorted(SPLITS) for row in sequences_of(split)]
    assert rows["user_id"].to_pylist() == [row.user_id for row in everything]
    assert rows["item_ids"].to_pylist() == [list(row.item_ids) for row in everything]
    assert len(SequenceTable.open(path, "")) == ROWS


def test_row_groups_are_full_whatever_the_batches(tmp_path):
    one_by_one = (batch([0] * 100) for _ in range(90))
    write_sequences(tmp_path / "small.parquet", one_by_one)
    write_sequences(tmp_path / "large.parquet", [batch([0] * ROWS)])
    for name in ("small", "large"):
        meta = pq.read_metadata(tmp_path / f"{name}.parquet")
        assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [4096, 4096, 808]
    assert (
        SequenceTable.open(tmp_path / "small.parquet").digest()
        == SequenceTable(tmp_path / "large.parquet", "").digest()
    )


def test_threads_and_pickles(path):
    table, expected = pickle.loads(pickle.dumps(SequenceTable.open(path, "test"))), sequences_of("test")
    assert type(table) is SequenceTable
    order = np.random.default_rng(1).integers(0, len(table), 1000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(table.__getitem__, order)) == [expected[i] for i in order]


def test_digest_tells_tables_apart(path, tmp_path):
    other = tmp_path / "other.parquet"
    write_sequences(other, [batch(range(ROWS - 1))])
    assert SequenceTable.open(path).digest() == SequenceTable.open(path, "test").digest()
    assert SequenceTable.open(path).digest() != SequenceTable.open(other).digest()


def test_empty_table(tmp_path):
    for name, given in (("none", []), ("empty", [batch([])])):
        path = tmp_path / f"{name}.parquet"
        assert write_sequences(path, given) == {}
        assert len(SequenceTable.open(path, "")) == 0
        with pytest.raises(SailError, match="has no split 'train'"):
            SequenceTable.open(path)


@pytest.mark.parametrize(
    "column",
    [
        {"item_ids": [["a"], []]},
        {"item_ids": [["a"], None]},
        {"item_ids": [["a"], ["b", None]]},
        {"target_id": ["a", None]},
        {"user_id": [None, "a"]},
        {"split": ["train", None]},
    ],
)
def test_gaps(tmp_path, column):
    with pytest.raises(SailError, match="without a user, an item, a target or a split"):
        write_sequences(tmp_path / "x.parquet", [batch([0, 1], **column)])
    assert not (tmp_path / "x.parquet").exists()


def test_columns(tmp_path):
    with pytest.raises(SailError, match="no column 'target_id'.*Did you mean 'target'"):
        write_sequences(
            tmp_path / "x.parquet", [batch([0]).rename_columns(["split", "target", "item_ids", "user_id", "x"])]
        )
    with pytest.raises(SailError, match="of another type"):
        write_sequences(tmp_path / "x.parquet", [batch([0], item_ids=["a b c"])])


def test_messages_of_the_reader(path, tmp_path):
    with pytest.raises(
        SailError, match="no sequence table .*sequence.parquet. Did you mean sequences.parquet. `sequences` makes"
    ):
        SequenceTable.open(path.with_name("sequence.parquet"))
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), foreign)
    with pytest.raises(SailError, match="sail_jax.data.sequence_tables.write_sequences"):
        SequenceTable.open(foreign, "train")
    pq.write_table(pa.table({"item_ids": [["a"]]}), foreign)
    with pytest.raises(SailError, match="no column 'user_id'"):
        SequenceTable.open(foreign, "")


def test_as_pairs_the_latest_item_stands_for_the_history(path):
    pairs, table = open_pairs(path, "train", "sequences"), SequenceTable.open(path, "train")
    assert len(pairs) == len(table)
    assert pairs[5] == (table[5].item_ids[-1], None, table[5].target_id, None)
    assert pairs.path == path  # named in messages, as that of a pair table


@pytest.mark.parametrize("split", [*SPLITS, ""])
def test_a_stream_has_the_rows_of_the_table(path, split):
    streamed = [row for some in stream_sequences(path, split) for row in zip(*some, strict=True)]
    expected = [
        (list(row.item_ids), row.target_id) for some in SequenceTable.open(path, split).iter_batches() for row in some
    ]
    assert streamed == expected


def test_a_stream_takes_tables_that_lack_all_but_the_history(tmp_path):
    for name, targets in (("1", ["x"]), ("0", ["y", "z"])):
        table = {"target_id": targets, "item_ids": [["a", "b"]] * len(targets)}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    assert [targets for _, targets in stream_sequences(tmp_path, "test")] == [["y", "z"], ["x"]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_ids": [["a"]], "target": ["b"]}, "part.parquet has no column 'target_id'.* Did you mean 'target'"),
        ({"item_ids": [[]], "target_id": ["b"]}, "part.parquet has a row without items or without a target"),
        ({"item_ids": [["a", None]], "target_id": ["b"]}, "without items"),
        ({"item_ids": [["a"]], "target_id": pa.array([None], pa.string())}, "without a target"),
    ],
)
def test_a_stream_names_the_file_and_the_row_that_it_cannot_use(tmp_path, columns, message):
    path = tmp_path / "part.parquet"
    with pytest.raises(SailError, match="no sequence table .*part.parquet. `sequences` makes"):
        list(stream_sequences(path, ""))
    path.write_bytes(b"no parquet")
    with pytest.raises(SailError, match="part.parquet is no Parquet file, or damaged"):
        list(stream_sequences(path, ""))
    pq.write_table(pa.table(columns), path)
    with pytest.raises(SailError, match=message):
        list(stream_sequences(path, ""))
