"""Walks over the files of a folder of texts and media, and tells their kinds."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from sail_jax.data.media import kinds

# Kind of file (the key of an item's dict) -> suffixes.
SUFFIXES = {"text": (".txt", ".md")} | kinds.SUFFIXES


def kind_of(name: str | PurePath) -> str:
    """Returns the kind of a file by its suffix; empty for another, and for a hidden one."""
    path = PurePath(name)
    if path.name.startswith("."):
        return ""
    return "text" if path.suffix.lower() in SUFFIXES["text"] else kinds.media_kind(path)


def walk(folder: Path, inside: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields the paths of all files in a folder, in a fixed order, one directory in memory at a time.

    Links to folders are followed, unless they lead back to a parent folder. Of a hidden folder only its name is given.

    Args:
        folder: the folder.
        inside: the part of it that is walked.
        above: the real paths of its parents.
    """
    here = os.path.realpath(folder / inside)
    if here in above:
        return
    with os.scandir(folder / inside) as found:
        children = sorted((child.name, _is_folder(child)) for child in found)
    for name, is_folder in children:
        path = f"{inside}/{name}" if inside else name
        if is_folder and not name.startswith("."):
            yield from walk(folder, path, (*above, here))
        else:
            yield path


def _is_folder(child: os.DirEntry) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link that leads to itself
        return False
