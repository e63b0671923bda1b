"""Writes files that appear under their name only when complete."""

import json
import os
import pathlib
import uuid
from typing import Any


def commit(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Flushes a complete file to the disk, then gives it its final name."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def commit_bytes(path: pathlib.Path, data: bytes, *, shared: bool = False) -> None:
    """Writes a small file that other processes never see half-written.

    Args:
        path: the file.
        data: its content.
        shared: whether several processes may write it at once; the partial file of a killed process then stays.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial" if shared else f"{path.name}.partial")
    partial.write_bytes(data)
    commit(partial, path)


def commit_json(
    path: pathlib.Path, values: Any, *, indent: int | None = 2, shared: bool = False, **options: Any
) -> None:
    """Writes values as a small JSON file that ends in a line break, by `commit_bytes`.

    Args:
        path: the file.
        values: what it holds.
        indent: spaces per level of indentation; None for one line.
        shared: as in `commit_bytes`.
        options: further options of `json.dumps`.
    """
    commit_bytes(path, (json.dumps(values, indent=indent, **options) + "\n").encode(), shared=shared)
