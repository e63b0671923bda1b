"""Finds the files of a log and scans them: CSV, TSV, JSONL and Parquet, or folders of these.

The parts of a log may differ in column types (a user id as a number in one and as a string in another). Types of text
formats are not guessed.
"""

import contextlib
import difflib
import functools
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from sail_jax.buckets import fetch
from sail_jax.data.ingest.sources import SEPARATORS, TABLE_SUFFIXES, first_bad_row, is_even, separator_of
from sail_jax.errors import SailError

VECTOR_SUFFIXES = (".parquet",)


def files_of(path: Path, setting: str, suffixes: tuple[str, ...] = TABLE_SUFFIXES) -> list[Path]:
    """Returns the file, or the parts of the folder sorted by name."""
    fetch(path)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix.lower() in suffixes)
    found = {file.suffix.lower() for file in files}
    change = f"Change {setting}, or set it to '' if there is none." if setting else ""
    if not files:
        near = difflib.get_close_matches(
            path.name, [entry.name for entry in path.parent.glob("*") if entry != path], n=3
        )
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        held = f"There is no {path}" if not path.exists() else f"{path} holds no {', '.join(suffixes)}"
        raise SailError(f"{held}.{hint} {change}".rstrip())
    if len(found) > 1 or not found <= set(suffixes):
        raise SailError(
            f"{path} is {' and '.join(sorted(found))}; write it as one of {', '.join(suffixes)}. {change}".rstrip()
        )
    return files


@contextlib.contextmanager
def readable_rows(source: Path) -> Iterator[None]:
    """Turns what the engine finds wrong with the rows of logs into an error for the user."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SailError(
            f"A log in {source} has rows that cannot be read ({reason}). Put cells that hold separators or line breaks "
            "in double quotes, and close every quote."
        ) from error


def check_cells(file: Path) -> None:
    """Raises SailError if a row of a CSV or TSV has more or fewer cells than its header, or is no row.

    The engine would cut such a row, or fill it up, where it reads few of the columns.
    """
    if file.suffix.lower() in SEPARATORS and not is_even(file) and (error := first_bad_row(file)):
        raise error


def by_schema(files: list[Path]) -> list[tuple[list[Path], pl.Schema]]:
    """Groups parts with the same columns and types, so that one scan reads each group."""
    groups: dict[tuple, tuple[list[Path], pl.Schema]] = {}
    for file in files:
        schema = _schema(file, file.stat().st_mtime_ns)
        separator = separator_of(file) if file.suffix.lower() in SEPARATORS else ""
        groups.setdefault((separator, *schema.items()), ([], schema))[0].append(file)
    return list(groups.values())


@functools.lru_cache
def _schema(file: Path, changed: int) -> pl.Schema:
    """Returns the columns and types of a file that was last changed at a time."""
    with readable(file):
        try:
            return scan_files([file]).collect_schema()
        except pl.exceptions.PolarsError as error:
            raise (first_bad_row(file) if file.suffix.lower() == ".jsonl" else None) or error from error


def scan_files(files: list[Path], schema: pl.Schema | None = None) -> pl.LazyFrame:
    """Scans files of one schema, as `by_schema` groups them; without it, all rows of a JSONL file give it."""
    suffix = files[0].suffix.lower()
    if suffix == ".parquet":
        return pl.scan_parquet(files, glob=False, hive_partitioning=False)
    if suffix == ".jsonl":
        return pl.scan_ndjson(files, schema=schema, infer_schema_length=None)
    # Types are not guessed, so that an id such as 007 keeps its zeros.
    return pl.scan_csv(files, separator=separator_of(files[0]), infer_schema=False, glob=False)


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns what is wrong with a file that is opened into an error for the user."""
    try:
        yield
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise SailError(
            f"{file} cannot be read ({reason}). It is damaged or in another format: write it again."
        ) from error
