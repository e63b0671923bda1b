"""Users' Parquet files: their parts, and messages that name the file and the column."""

import contextlib
import difflib
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from sail_jax.buckets import fetch
from sail_jax.errors import SailError


def parquet_parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The file, or the parts of a folder in the order of their names; empty if there are none."""
    fetch(path)
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] * path.is_file()


def footer_digest(parts: Iterable[pathlib.Path]) -> str:
    """A hash of the footers of Parquet files, which hold sizes and statistics of all columns."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        with part.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            digest.update(file.read(length))
    return digest.hexdigest()


@contextlib.contextmanager
def readable(file: pathlib.Path) -> Iterator[None]:
    """Turns errors of reading a Parquet file within the block into messages that name the file.

    Raises:
        SailError: the file has another format, or is damaged.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SailError(f"{file} is no Parquet file, or damaged ({error}); write it again.") from error


def missing_column(file: str, name: str, columns: Iterable[str]) -> str:
    """The message for a missing column, with the columns that exist and similar names."""
    columns = list(columns)
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    return f"{file} has no column {name!r}; it has {', '.join(map(repr, columns))}.{nearest}"
