"""Finds the files of a log and scans them: CSV, TSV, JSONL and Parquet, or folders of these.

The parts of a log may differ in column types (a user id as a number in one and as a string in another). Types of text
formats are not guessed.
"""

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from sail_jax.buckets import fetch
from sail_jax.data.ingest.sources import SEPARATORS, TABLE_SUFFIXES, separator_of
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


def by_schema(files: list[Path]) -> list[tuple[list[Path], pl.Schema]]:
    """Groups parts with the same columns and types, so that one scan reads each group."""
    groups: dict[tuple, tuple[list[Path], pl.Schema]] = {}
    for file in files:
        with readable(file):
            schema = scan_files([file]).collect_schema()
        separator = separator_of(file) if file.suffix.lower() in SEPARATORS else ""
        groups.setdefault((separator, *schema.items()), ([], schema))[0].append(file)
    return list(groups.values())


def scan_files(files: list[Path]) -> pl.LazyFrame:
    """Scans files of one schema, as `by_schema` groups them."""
    suffix = files[0].suffix.lower()
    if suffix == ".parquet":
        return pl.scan_parquet(files, glob=False, hive_partitioning=False)
    if suffix == ".jsonl":
        return pl.scan_ndjson(files)
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
