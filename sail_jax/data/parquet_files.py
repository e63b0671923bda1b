"""Parquet files that users hand over: their parts, and messages that name the file and the column."""

import contextlib
import difflib
import pathlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from sail_jax.errors import SailError


def parquet_parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The file itself, or the parts of a folder in the order of their names; none where there is nothing."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] * path.is_file()


@contextlib.contextmanager
def readable(file: pathlib.Path) -> Iterator[None]:
    """Reads a Parquet file within the block; raises SailError that names it when it is another kind of file, or damaged."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SailError(f"{file} is no Parquet file, or damaged ({error}); write it again.") from error


def missing_column(file: str, name: str, columns: Iterable[str]) -> str:
    """The message for a column that a file lacks, with the columns it has and the nearest of them."""
    columns = list(columns)
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    return f"{file} has no column {name!r}; it has {', '.join(map(repr, columns))}.{nearest}"
