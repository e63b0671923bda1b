"""Digests of a checkpoint's files: written with the checkpoint, and checked before it is read.

STEP/verification/SHA256SUMS has a line for every other file of a checkpoint, in the format of `sha256sum`, so that
`sha256sum -c verification/SHA256SUMS` in STEP checks it too. Each process takes the digests of the arrays that it has
written, and checks a share of the files: none reads all arrays.

Orbax's own file of metadata gets the time of the commit after the digests. So the first line, a comment, has one digest
of that file without the time and of all other lines; the mark of the commit, written last, is compared with the marks
of the items.
"""

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

# Last among the names of items, by which orbax orders the saves.
ITEM = "verification"
_SUMS = "SHA256SUMS"
_METADATA, _COMMIT = "_CHECKPOINT_METADATA", "commit_success.txt"
_PARTIAL = ".orbax-checkpoint-tmp"  # the end of a folder's name while orbax writes into it
_PATIENCE = 60.0  # seconds until metadata must be written


class DigestHandler(ocp.AsyncCheckpointHandler):
    """Writes the digests as the last item of an orbax checkpoint."""

    async def async_save(self, directory: Any, args: "Digests") -> list[ocp.future.Future]:
        """Returns what takes the digests of the files of this process, once the items before are written."""
        del args
        return [_OwnFiles(directory)]

    def save(self, directory: epath.Path, args: "Digests") -> None:
        """Takes the digests of the files of this process."""
        for future in asyncio.run(self.async_save(directory, args)):
            future.result()

    def restore(self, directory: epath.Path, args: Any = None) -> None:
        """Restores nothing: `damage` reads the digests."""

    def finalize(self, directory: epath.Path) -> None:
        """Joins the digests of all processes and adds those of all other files, on the first process."""
        sums: dict[str, str] = {}
        step = directory.parent
        for path in directory.glob("process_*"):
            sums |= _parse(path.read_text())
            path.unlink()
        files = {name: path for name, path in _files(step) if name not in sums and not name.startswith(f"{ITEM}/")}
        metadata = files.pop(_METADATA)
        _wait_for_items(step)
        lines = _lines(sums | _digests(files))
        (directory / _SUMS).write_text(f"# {_seal(metadata, lines)}\n{lines}")


@ocp.args.register_with_handler(DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Digests(ocp.args.CheckpointArgs):
    """Says that the digests are saved."""


class _OwnFiles:
    """The digests of the array files of this process: orbax waits for it after all items before it."""

    def __init__(self, directory: Any) -> None:
        self._directory = directory

    def result(self, timeout: float | None = None) -> None:
        """Takes the digests and writes them."""
        del timeout
        directory = epath.Path(getattr(self._directory, "path", self._directory))
        number = jax.process_index()
        files: dict[str, epath.Path] = {}
        for item in directory.parent.iterdir():
            own = item / f"ocdbt.process_{number}"
            if own.is_dir():
                files |= {f"{item.name.removesuffix(_PARTIAL)}/{own.name}/{name}": path for name, path in _files(own)}
        (directory / f"process_{number}").write_text(_lines(_digests(files)))

    def cancel(self) -> None:
        """Does nothing: a killed save has no digests yet, and is removed."""


def has_digests(folder: epath.Path) -> bool:
    """Returns whether a checkpoint was saved with digests, which those of version 0.1 were not."""
    return (folder / ITEM).exists() or ITEM in _saved_items(folder)


def damage(folder: epath.Path, *, leave_out: Collection[str] = (), share: int = 0, shares: int = 1) -> str:
    """Checks the files of a checkpoint; of one without digests, only that it is one.

    Args:
        folder: the checkpoint.
        leave_out: items that are not checked.
        share: which of several shares of the files is checked, from 0.
        shares: the number of shares, of about equal size.

    Returns:
        What is wrong with the first bad file, such as "model/d/1f is missing"; empty if nothing is.
    """
    if not has_digests(folder):
        return "" if _saved_items(folder) else f"it has no {_METADATA} that can be read"
    try:
        seal, _, lines = (folder / ITEM / _SUMS).read_text().partition("\n")
        if seal != f"# {_seal(folder / _METADATA, lines)}":
            return f"{ITEM}/{_SUMS} or {_METADATA} is not as it was saved"
        sums = {name: of for name, of in _parse(lines).items() if name.split("/")[0] not in leave_out}
        present = dict(_files(folder))
        if missing := sorted({*sums, _COMMIT, f"{ITEM}/{_COMMIT}"} - present.keys()):
            return f"{missing[0]} is missing"
        if not _marked(folder, [name for name in sums if re.fullmatch(rf"\w+/{_COMMIT}", name)]):
            return f"a {_COMMIT} is not as it was saved"
        mine = sorted(sums, key=lambda name: -present[name].stat().length)[share::shares]
        found = _digests({name: present[name] for name in mine})
    except OSError as error:
        return f"a file cannot be read ({error})"
    except ValueError:  # no text, or not in its form
        return f"{ITEM}/{_SUMS}, {_METADATA} or a {_COMMIT} is not as it was saved"
    return next((f"{name} is not as it was saved" for name, of in found.items() if of != sums[name]), "")


def _wait_for_items(folder: epath.Path) -> None:
    """Waits until orbax, which writes its metadata from a thread, has named the items in it."""
    deadline = time.monotonic() + _PATIENCE
    while ITEM not in _saved_items(folder):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder / _METADATA} has not been written within {_PATIENCE:.0f} s")
        time.sleep(0.01)


def _saved_items(folder: epath.Path) -> Collection[str]:
    """Returns the items that orbax says it has saved; nothing where its metadata is damaged."""
    try:
        return json.loads((folder / _METADATA).read_text())["item_handlers"] or ()
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _marked(folder: epath.Path, marks: Collection[str]) -> bool:
    """Returns whether the two marks of the commit without digests, written last, say what those of the items say."""
    saved = (folder / _COMMIT).read_text(), (folder / ITEM / _COMMIT).read_text()
    said = [(folder / mark).read_text().removesuffix(f"/{mark.split('/')[0]}") for mark in marks]
    return all(saved == (text.removesuffix(_PARTIAL), f"{text}/{ITEM}") for text in said)


def _files(folder: epath.Path) -> Iterator[tuple[str, epath.Path]]:
    """Yields (path within the folder, path) of all files in a folder and its folders."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from ((f"{path.name}/{name}", inner) for name, inner in _files(path))
        else:
            yield path.name, path


def _digests(files: Mapping[str, epath.Path]) -> dict[str, str]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
        return dict(zip(files, pool.map(_digest, files.values()), strict=True))


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _seal(metadata: epath.Path, lines: str) -> str:
    """Returns the digest of orbax's metadata without the time of the commit, and of all lines of digests."""
    values = json.loads(metadata.read_text())
    values.pop("commit_timestamp_nsecs", None)
    return hashlib.sha256(f"{json.dumps(values, sort_keys=True)}\n{lines}".encode()).hexdigest()


def _parse(lines: str) -> dict[str, str]:
    """Returns {file: digest}."""
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines.splitlines())}


def _lines(sums: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
