"""Tables as they come: separators, quotes, headers, types of ids, and what is said of rows that cannot be read."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.data.ingest.cells import id_cell, text_cell
from sail_jax.data.ingest.sources import open_table
from sail_jax.errors import BadRecordError, SailError

WANTED = {"config.ingest.source.id": "id", "config.ingest.source.text.title": "title"}


def rows_of(folder, name, **options):
    """The cells of the rows that can be read, and the problems of the others as (row, problem)."""
    rows = list(open_table(folder, name, "SETTING", **options).read(0))
    good = [tuple(row.cells.values()) for row in rows if row.problem is None]
    return good, [(row.number, str(row.problem)) for row in rows if row.problem is not None]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["items.csv", "ITEMS.CSV"])
def test_separators_of_a_csv(tmp_path, name, separator):
    (tmp_path / name).write_text(f"id{separator}title\n007{separator}a cat\n")
    assert rows_of(tmp_path, name) == ([("007", "a cat")], [])
    assert rows_of(tmp_path, ".") == ([("007", "a cat")], [])
    called = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}[separator]
    assert open_table(tmp_path, name, "SETTING").assumed == f"{name}: cells are separated by {called}."
    (tmp_path / "b.csv").write_text(f"id{';,'[separator == ';']}title\n")
    assert f"{called} (1 of 2 files)" in open_table(tmp_path, ".", "SETTING").assumed


@pytest.mark.parametrize(
    ("lines", "good", "bad"),
    [
        (['1,"never closed', "2,b", "3,c"], [("2", "b"), ("3", "c")], [1]),
        (['1,"never closed', '2,"b"', "3,c"], [("2", "b"), ("3", "c")], [1]),
        (["1,a", '2,"two "words" here"', "3,c"], [("1", "a"), ("3", "c")], [2]),
        (["1,a", '2,"two\nlines"', '3,"a ""quote"""'], [("1", "a"), ("2", "two\nlines"), ("3", 'a "quote"')], []),
        (["1,it's 5\" wide", "2,b"], [("1", "it's 5\" wide"), ("2", "b")], []),
        (["1,a", "id,title", "2,b"], [("1", "a"), ("2", "b")], [2]),
        (["1,a,b", "2,b", "3"], [("2", "b")], [1, 3]),
    ],
)
def test_a_bad_row_takes_no_other_with_it(tmp_path, lines, good, bad):
    (tmp_path / "items.csv").write_text("\n".join(["id,title", *lines]) + "\n")
    found, problems = rows_of(tmp_path, "items.csv")
    assert found == good and [number for number, _ in problems] == bad


def test_a_quote_that_is_never_closed_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("sail_jax.data.ingest.sources._LONGEST_RECORD", 100)
    lines = ['1,"never closed', *(f"{i},{'x' * 20}" for i in range(2, 40))]
    (tmp_path / "items.csv").write_text("\n".join(["id,title", *lines]) + "\n")
    good, bad = rows_of(tmp_path, "items.csv")
    assert len(good) == 38 and "a quote is not closed" in bad[0][1]


def test_a_column_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "items.csv").write_text("id,title,title\n1,a,b\n")
    with pytest.raises(SailError, match=r"items\.csv has the column 'title' more than once"):
        open_table(tmp_path, "items.csv", "SETTING")


def test_what_lies_beside_tables_is_counted(tmp_path):
    (tmp_path / "1.CSV").write_text("id,title\n1,a\n")
    (tmp_path / "2.csv.gz").write_bytes(b"x")
    (tmp_path / "more").mkdir()
    said = '2 files passed over, of kinds that are not read: .gz 1, folder 1; such as "2.csv.gz"'
    assert open_table(tmp_path, ".", "SETTING").require(WANTED).passed_over == f"{tmp_path}: {said}"
    assert open_table(tmp_path, "1.CSV", "SETTING").passed_over == ""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_later_file_that_lacks_a_column_is_named(tmp_path, kind):
    for name, columns in (("1", ("id", "title")), ("2", ("id", "tags"))):
        if kind == "csv":
            (tmp_path / f"{name}.csv").write_text(f"{','.join(columns)}\n1,a\n")
        else:
            pq.write_table(pa.table({column: ["1"] for column in columns}), tmp_path / f"{name}.parquet")
    table = open_table(tmp_path, ".", "SETTING")
    table.require({"config.ingest.source.id": "id"})
    with pytest.raises(SailError, match=rf"2\.{kind}.*'title'"):
        table.require(WANTED)


def test_a_field_of_json_may_come_late(tmp_path):
    lines = [{"id": i} for i in range(1200)] + [{"id": 1200, "title": "late"}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = list(open_table(tmp_path, "items.jsonl", "SETTING").require(WANTED).read(1200))
    assert rows[0].cells["title"] == "late"
    with pytest.raises(SailError, match="tilte"):
        open_table(tmp_path, "items.jsonl", "SETTING").require({"config.ingest.source.text.title": "tilte"})


def test_columns_of_parquet_that_no_setting_names_are_not_read(tmp_path):
    """A date beyond the year 9999 has no type in Python."""
    far = pa.array([400_000_000_000], pa.timestamp("s"))
    pq.write_table(pa.table({"id": ["1"], "title": ["a"], "seen": far}), tmp_path / "items.parquet")
    table = open_table(tmp_path, "items.parquet", "SETTING")
    assert [dict(row.cells) for row in table.require(WANTED).read(0)] == [{"id": "1", "title": "a"}]
    (row,) = table.require(WANTED | {"config.ingest.source.text.tags": "seen"}).read(0)
    assert "cannot be read" in str(row.problem)


def test_a_date_that_python_cannot_hold_takes_no_other_row_with_it(tmp_path):
    seen = pa.array([0, 400_000_000_000, 5], pa.timestamp("s"))
    pq.write_table(pa.table({"id": ["1", "2", "3"], "seen": seen}), tmp_path / "items.parquet")
    good, bad = rows_of(tmp_path, "items.parquet")
    assert good == [("1", datetime.datetime(1970, 1, 1)), ("3", datetime.datetime(1970, 1, 1, 0, 0, 5))]
    assert [number for number, _ in bad] == [2]


def test_a_text_that_is_not_utf_8_takes_no_other_row_with_it(tmp_path):
    titles = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"id": ["1", "2", "3"], "title": titles}), tmp_path / "items.parquet")
    good, bad = rows_of(tmp_path, "items.parquet")
    assert good == [("1", "a"), ("3", "c")]
    assert bad[0][0] == 2 and bad[0][1].endswith("Write texts as UTF-8")


def test_a_damaged_page_of_parquet_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"id": [str(number) for number in range(9000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[20:2000] = bytes(1980)
    path.write_bytes(data)
    with pytest.raises(SailError, match="is damaged, or not a Parquet file"):
        rows_of(tmp_path, "items.parquet")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("7  ", "7"), (7, "7"), (7.0, "7"), ("7.0", "7.0"), (7.5, "7.5"), ("007", "007"), (None, None)],
)
def test_ids_of_other_types_and_padded_ones_match(cell, expected):
    assert id_cell(cell) == expected


@pytest.mark.parametrize("cell", [{"en": "a"}, ["a", "b"]])
def test_a_nested_value_is_no_text(cell):
    with pytest.raises(BadRecordError, match="holds (an object|a list), not a text"):
        text_cell(cell)
