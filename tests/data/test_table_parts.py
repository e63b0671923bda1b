"""Pair tables as a cluster writes them: many parts without our metadata, damaged or unlike ones, a billion rows."""

import os
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.data.row_groups import splits_of
from sail_jax.data.row_order import row_order
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.errors import SailError

COLUMNS = {"query_id": pa.string(), "target_id": pa.string(), "score": pa.float32()}


def part_of(number, split="train", rows=10, **others):
    ids = [f"{number}-{row}" for row in range(rows)]
    columns = {"query_id": ids, "target_id": [f"t{name}" for name in ids], "split": [split] * rows}
    return pa.table(columns | others)


def write_parts(folder, parts, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        pq.write_table(part, folder / f"part-{number:05d}-c000.snappy.parquet", row_group_size=4, **options)
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000-c000.snappy.parquet.crc").write_bytes(b"crc")
    return folder


def ids_of(table):
    return [table[row].query_id for row in range(len(table))]


def test_a_folder_of_parts_is_a_table_in_the_order_of_their_names(tmp_path):
    splits = ["train", "test", "train", "train"]
    folder = write_parts(tmp_path / "pairs", [part_of(number, split) for number, split in enumerate(splits)])
    assert ids_of(PairTable.open(folder)) == [f"{part}-{row}" for part in (0, 2, 3) for row in range(10)]
    assert ids_of(PairTable.open(folder, "test")) == [f"1-{row}" for row in range(10)]
    table = PairTable.open(folder, "")
    assert len(table) == 40 and table[10] == Pair("1-0", None, "t1-0", None)
    assert [pair for batch in table.iter_batches() for pair in batch] == [table[row] for row in range(40)]
    with pytest.raises(SailError, match="pairs has no split 'val'; it has test, train"):
        PairTable.open(folder, "val")


def test_a_part_may_hold_several_splits_one_after_the_other(tmp_path):
    both = pa.concat_tables([part_of(0, "test", rows=8), part_of(1, "train", rows=8), part_of(2, "test", rows=3)])
    folder = write_parts(tmp_path / "pairs", [both])
    assert ids_of(PairTable.open(folder, "test")) == [
        *(f"0-{row}" for row in range(8)),
        *(f"2-{row}" for row in range(3)),
    ]
    assert splits_of(next(folder.glob("*.parquet"))) == splits_of(folder) == {"train", "test"}


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}])
def test_rows_whose_split_is_not_said_are_refused(tmp_path, options):
    mixed = pa.concat_tables([part_of(0, "test", rows=5), part_of(1, "train", rows=5)])
    folder = write_parts(tmp_path / "pairs", [part_of(0), mixed], **options)
    wrong = "part-00000" if options else "part-00001"
    with pytest.raises(SailError, match=f"{wrong}.*does not say which .* Sort it by split.*with an empty split"):
        PairTable.open(folder)
    assert len(PairTable.open(folder, "")) == 20


def test_parts_of_ours_and_of_others_make_one_table(tmp_path):
    folder = write_parts(tmp_path / "pairs", [part_of(0).append_column("query_text", pa.nulls(10, pa.string()))])
    rows = [(Pair(f"own-{row}", None, "t"), "train" if row else "test") for row in range(3)]
    write_pairs(folder / "b.parquet", rows)
    next(folder.glob("part*")).rename(folder / "a.parquet")
    with pytest.raises(SailError, match="b.parquet: the column 'score' is float, and missing in .*a.parquet"):
        PairTable.open(folder)
    pq.write_table(pq.read_table(folder / "a.parquet").append_column("score", pa.nulls(10)), folder / "a.parquet")
    assert ids_of(PairTable.open(folder))[9:] == ["0-9", "own-1", "own-2"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"score": pa.array([1.0] * 10, pa.float32())}, "the column 'score' is float, and missing in .*part-00000"),
        ({"weight": [1.0] * 10}, "the column 'weight' is double, and missing in"),
        ({"query_text": ["a"] * 10}, "the column 'query_text' is string, and missing in"),
        ({"target_id": pa.array(["t"] * 10, pa.large_string())}, "'target_id' is large_string, and string in"),
        ({"target_id": list(range(10))}, "the column 'target_id' is int64; write it as string"),
    ],
)
def test_parts_of_other_columns_are_refused(tmp_path, other, message):
    changed = part_of(1)
    for name, column in other.items():
        changed = changed.drop_columns([name]) if name in changed.column_names else changed
        changed = changed.append_column(name, pa.array(column) if isinstance(column, list) else column)
    folder = write_parts(tmp_path / "pairs", [part_of(0), changed, part_of(2)])
    with pytest.raises(SailError, match=f"part-00001.*{message}"):
        PairTable.open(folder)


def test_what_a_part_lacks_that_no_row_may_lack(tmp_path):
    folder = write_parts(tmp_path / "a", [part_of(0), part_of(1).drop_columns(["target_id"])])
    with pytest.raises(SailError, match="part-00001.*has no column 'target_id'"):
        PairTable.open(folder)
    folder = write_parts(tmp_path / "b", [part_of(0).drop_columns(["query_id"])])
    with pytest.raises(SailError, match="part-00000.*has no column 'query_id'"):
        PairTable.open(folder)
    folder = write_parts(tmp_path / "c", [part_of(0).drop_columns(["split"])])
    assert len(PairTable.open(folder, "")) == 10
    with pytest.raises(SailError, match="part-00000.*has no column 'split'"):
        PairTable.open(folder)


def test_a_damaged_part_is_named_with_the_remedy(tmp_path):
    folder = write_parts(tmp_path / "pairs", [part_of(0, rows=4000), part_of(1, rows=4000)], use_dictionary=False)
    path = folder / "part-00001-c000.snappy.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(SailError, match="part-00001.* is no Parquet file, or damaged .*; write it again"):
        PairTable.open(folder)
    path.write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    table = PairTable.open(folder)
    assert table[3999].query_id == "0-3999"
    with pytest.raises(SailError, match="part-00001.* is no Parquet file, or damaged .*; write it again"):
        table[4000]


@pytest.mark.slow
def test_a_table_of_a_billion_rows_takes_less_than_a_byte_a_row(tmp_path):
    """Its parts are one file under many names. The rows are shuffled by row groups, and drawn by weight."""
    rows, parts = 4_000_000, 250
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), ["a"]).cast(pa.string())
    columns = {"query_id": names, "target_id": names, "split": names, "weight": np.ones(rows, np.float32)}
    pq.write_table(pa.table(columns), tmp_path / "part-000.parquet", row_group_size=65_536)
    for part in range(1, parts):
        os.link(tmp_path / "part-000.parquet", tmp_path / f"part-{part:03d}.parquet")
    tracemalloc.start()
    table = PairTable.open(tmp_path, "a")
    orders = [row_order(table, 0, groups=32, by_weight=by_weight) for by_weight in (False, True)]
    found = {order[number] for order in orders for number in (0, rows * parts - 1)}
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == rows * parts == 10**9 and len(found) == 4
    assert held < 10**9 / 4 and most < 10**9  # 64 MB of which are row groups that are kept
