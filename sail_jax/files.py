"""Files that appear under their name only when complete."""

import json
import os
import pathlib
import uuid
from typing import Any


def commit(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a complete file its final name, once its content is safe on the disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def commit_bytes(path: pathlib.Path, data: bytes, *, shared: bool = False) -> None:
    """Writes a small file so that it is never seen half-written.

    Args:
        path: the file.
        data: its content.
        shared: whether several processes may write it at once; what a killed one leaves behind then stays.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial" if shared else f"{path.name}.partial")
    partial.write_bytes(data)
    commit(partial, path)


def commit_json(
    path: pathlib.Path, values: Any, *, indent: int | None = 2, shared: bool = False, **options: Any
) -> None:
    """Writes values as a small JSON file with a line break at its end, as `commit_bytes` does.

    Args:
        path: the file.
        values: what it holds.
        indent: spaces by which a level is indented; None for one line.
        shared: as of `commit_bytes`.
        options: further ones of `json.dumps`.
    """
    commit_bytes(path, (json.dumps(values, indent=indent, **options) + "\n").encode(), shared=shared)
