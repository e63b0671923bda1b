"""Users' Parquet files: their parts, and messages that name the file and the column."""

import contextlib
import difflib
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.buckets import fetch
from sail_jax.errors import SailError

# Names of columns in a message; a table in which a quote is open has its rows for names.
_SHOWN = 40


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


def statistics_of(metadata: pq.FileMetaData, column: str) -> list[pq.Statistics | None]:
    """The statistics of a column in each row group of a file; None for one that has none."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    if column not in paths:
        return [None] * metadata.num_row_groups
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [group.column(paths.index(column)).statistics for group in groups]


@contextlib.contextmanager
def readable(file: pathlib.Path) -> Iterator[None]:
    """Turns errors of reading a Parquet file within the block into messages that name the file.

    Raises:
        SailError: the file has another format, or is damaged.
    """
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SailError(f"{file} is no Parquet file, or damaged ({reason}); write it again.") from error


def fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Returns whether values of the type of a user's column are, in Python, of the type wanted."""
    types = pa.types
    if types.is_dictionary(found):
        found = found.value_type
    if types.is_null(found):
        return True
    if types.is_list(wanted):
        lists = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
        return lists and fits(found.value_type, wanted.value_type)
    if types.is_string(wanted):
        return types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    return found == wanted or (types.is_floating(wanted) and (types.is_floating(found) or types.is_integer(found)))


def require_column(file: str, schema: pa.Schema, field: pa.Field) -> None:
    """Checks that a user's file has a column, of a type that fits.

    Raises:
        SailError: it has not.
    """
    if schema.names.count(field.name) != 1:
        raise SailError(missing_column(file, field.name, schema.names))
    found = schema.field(field.name).type
    if not fits(found, field.type):
        raise SailError(f"{file}: the column {field.name!r} is {found}; write it as {field.type}.")


def missing_column(file: str, name: str, columns: Iterable[str]) -> str:
    """The message for a missing column, with the columns that exist and similar names."""
    columns = list(columns)
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    shown = [f"{column!r:.80}" for column in columns[:_SHOWN]] + ["..."] * (len(columns) > _SHOWN)
    return f"{file} has no column {name!r}; it has {', '.join(shown)}.{nearest}"
