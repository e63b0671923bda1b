"""Writes files that appear under their name only when complete; counts those that are not read."""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from sail_jax import buckets
from sail_jax.errors import SailError, is_of_the_machine


class PassedOver:
    """Counts the files of a folder that are not read, by suffix; as text a line on them, or nothing."""

    _SHOWN = 8

    def __init__(self) -> None:
        self._counts, self._first = collections.Counter[str](), ""

    def add(self, name: str) -> None:
        """Counts a file, named relative to the folder, or a folder, whose name ends in a slash."""
        path = pathlib.PurePath(name)
        of_file = "hidden" if path.name.startswith(".") else path.suffix.lower() or "without suffix"
        kind = "folder" if name.endswith("/") else of_file
        # Suffixes that number files would take memory by the file.
        self._counts[kind if kind in self._counts or len(self._counts) < 1000 else "others"] += 1
        self._first = self._first or name

    def __str__(self) -> str:
        total, kinds = self._counts.total(), self._counts.most_common()
        if not total:
            return ""
        said = ", ".join(f"{kind} {count:,}" for kind, count in kinds[: self._SHOWN])
        more = f", and {len(kinds) - self._SHOWN} kinds more" * (len(kinds) > self._SHOWN)
        first = json.dumps(os.fsencode(self._first).decode("utf-8", "backslashreplace"), ensure_ascii=False)
        return (
            f"{total:,} file{'s' * (total != 1)} passed over, of kinds that are not read: {said}{more}; such as {first}"
        )


def is_file(path: pathlib.Path) -> bool:
    """Returns whether a path that a user wrote is that of a file; a name that is too long for one is not."""
    try:
        return path.is_file()
    except (OSError, ValueError) as error:  # or with a null character
        if is_of_the_machine(error):
            raise
        return False


def commit(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Flushes a complete file to the disk, uploads it if it is one of a mirror, and gives it its name.

    Raises:
        SailError: the name is that of a folder or a device, which a file must not replace.
    """
    if path.exists() and not path.is_file():
        partial.unlink()
        raise SailError(f"{path} is no file but a folder or a device; name another output.")
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    buckets.put(partial, path)
    partial.replace(path)


def written_before(path: pathlib.Path, request: dict[str, Any], output: pathlib.Path) -> dict[str, Any]:
    """Returns what the command that wrote an output said of itself; it must be the same command.

    Args:
        path: the JSON file that has it, with what was asked for among its entries.
        request: what is asked for now.
        output: what was written, for the message.

    Raises:
        SailError: it was another command, or did not write of itself.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    wanted = json.loads(json.dumps(request))
    if not isinstance(found, dict) or any(key not in found or found[key] != of for key, of in wanted.items()):
        raise SailError(f"{output} exists and is of another command; name another --output, or remove it.")
    return found


@contextlib.contextmanager
def partial_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path to write a file to, which takes the name `path` at the end.

    Where that is not reached, the file is removed. What a killed process left there is written over.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        commit(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def partial_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder that takes the name `path` at the end; it is removed where that is not reached."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir(parents=True)
    try:
        yield partial
        buckets.put_folder(partial, path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
