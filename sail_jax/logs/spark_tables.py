"""Opens the files of a log in Spark: Parquet, CSV, TSV or JSONL.

Types of text formats are not guessed, as on this machine: cells of CSV and TSV are texts.
"""

import io
from collections.abc import Hashable
from pathlib import PurePath
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StringType, StructField, StructType

from sail_jax.data.ingest.sources import csv_header
from sail_jax.errors import SailError
from sail_jax.logs.spark_files import SparkFiles

# A column with the text of rows that cannot be read; null in others.
UNREADABLE = "sail_jax: unreadable row"
# Bytes of a file that hold its first record.
_HEAD = 1 << 20
# Stands for an empty text in quotes, which Spark would not tell from an empty cell, a null.
_EMPTY = "\0"
_JSON = {"columnNameOfCorruptRecord": UNREADABLE}
_CSV = _JSON | {
    "header": True,
    "escape": '"',
    "multiLine": True,  # cells in quotes may have line breaks
    "columnPruning": False,  # else the cells of a row are not counted
    "emptyValue": _EMPTY,
}


class SparkTable(NamedTuple):
    """Files with the same columns and types.

    Attributes:
        files: their addresses.
        rows: all of their columns, and `UNREADABLE` where rows can be unreadable.
    """

    files: list[str]
    rows: DataFrame


def open_tables(session: SparkSession, files: SparkFiles, named: list[str]) -> list[SparkTable]:
    """Opens the files of a log.

    Args:
        session: reads them.
        files: reads their beginnings, or footers.
        named: the addresses of the files, all of one kind.

    Returns:
        One for each set of columns and types; JSONL files are one together, of which Spark reads all rows for that.

    Raises:
        SailError: a file is damaged, or a line of JSONL is no object.
    """
    suffix = PurePath(named[0]).suffix.lower()
    if suffix == ".parquet":
        groups = _alike(named, files.schemas(named))
        return [SparkTable(group, session.read.parquet(*group)) for group in groups.values()]
    if suffix == ".jsonl":
        return [SparkTable(named, _jsonl(session, named))]
    heads = [_head_of(*one) for one in zip(named, files.heads(named, _HEAD), strict=True)]
    return [SparkTable(group, _csv(session, group, *head)) for head, group in _alike(named, heads).items()]


def unreadable_row(table: SparkTable) -> SailError:
    """Returns the error of a row that cannot be read; there must be one."""
    text = f"`{UNREADABLE}`"
    some = next(f"`{name}`" for name in table.rows.columns if name != UNREADABLE)  # Spark wants a further column
    found = table.rows.where(f"{text} is not null").selectExpr("_metadata.file_path", text, some).first()
    remedy = (
        "Write one JSON object per line"
        if found[0].lower().endswith(".jsonl")
        else "Write as many cells as the header has, those that hold separators or line breaks in double quotes"
    )
    return SailError(f"{found[0]}: the row {found[1]!r:.200} cannot be read. {remedy}.")


def _jsonl(session: SparkSession, files: list[str]) -> DataFrame:
    rows = session.read.options(**_JSON).json(files)
    if UNREADABLE in rows.columns:
        schema = StructType([StructField(name, StringType()) for name in ("other", UNREADABLE)])
        raise unreadable_row(SparkTable(files, session.read.schema(schema).options(**_JSON).json(files)))
    return rows


def _alike(files: list[str], kinds: list[Hashable]) -> dict[Hashable, list[str]]:
    groups: dict[Hashable, list[str]] = {}
    for file, kind in zip(files, kinds, strict=True):
        groups.setdefault(kind, []).append(file)
    return groups


def _head_of(file: str, head: bytes) -> tuple[str, str, tuple[str, ...]]:
    """Returns the separator of a CSV or TSV, what ends its lines, and its columns."""
    whole = head[: head.rfind(b"\n") + 1] if len(head) == _HEAD else head
    try:
        text = whole.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SailError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    separator, columns = csv_header(file, io.StringIO(text, newline=""))
    return separator, "\r\n" if text.partition("\n")[0].endswith("\r") else "\n", tuple(columns)


def _csv(session: SparkSession, files: list[str], separator: str, end: str, columns: tuple[str, ...]) -> DataFrame:
    schema = StructType([StructField(name, StringType()) for name in (*columns, UNREADABLE)])
    # Told what ends a line, for Spark finds it wrong where quotes stand near a line break.
    rows = session.read.schema(schema).options(**_CSV, sep=separator, lineSep=end).csv(files)
    return rows.replace(_EMPTY, "")
