"""Files that appear under their name only when complete."""

import os
import pathlib


def commit(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a complete file its final name, once its content is safe on the disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def commit_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a small file so that it is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    commit(partial, path)
