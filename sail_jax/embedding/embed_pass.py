"""Embeds any number of items into an array or a memory-mapped file."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.features import View
from sail_jax.data.store import FOLDER
from sail_jax.embedding.embedder import Embedder
from sail_jax.embedding.windows import NothingShownError
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item
from sail_jax.patterns import shown_modalities
from sail_jax.progress import track
from sail_jax.terminal import Terminal


class Window(NamedTuple):
    """Consecutive embedded items of a stream.

    Attributes:
        rows: number of items.
        bad: position in the whole stream -> error, of items that cannot be used.
        nothing_shown: positions of items without any of the shown modalities.
    """

    rows: int
    bad: dict[int, BadRecordError]
    nothing_shown: list[int]


def embed_into(
    out: np.ndarray | None,
    embedder: Embedder,
    items: Iterable[Item | Callable[[], Item]],
    view: View,
    views: Sequence[str],
    *,
    batch_size: int | None = None,
) -> Iterator[Window]:
    """Embeds a stream of items into an array, window by window; see `Embedder.stream`.

    Args:
        out: [views, items, d], filled with the first d dimensions, not normalised; zeros for items that are left out.
            None in a process that leaves it to another one.
        embedder: the model.
        items: a stream of items, or of functions that load one.
        view: the fields, the instruction and the modalities, which must cover those of `views`.
        views: modality sets, each embedded separately.
        batch_size: items per batch; None for `config.eval.batch_size`.

    Yields:
        The window that was written last.
    """
    at = 0
    for z, errors in embedder.stream(items, view, tuple(views), batch_size=batch_size):
        rows = z.shape[1]
        if out is not None:
            out[:, at : at + rows] = z[..., : out.shape[-1]]
        window = Window(rows, {}, [])
        for position, error in sorted(errors.items()):
            if isinstance(error, NothingShownError):
                window.nothing_shown.append(at + position)
            else:
                window.bad[at + position] = error
        at += rows
        yield window


def embed_pass(
    embedder: Embedder,
    items: Iterable[Callable[[], Item]],
    count: int,
    view: View,
    views: Sequence[str],
    path: Path,
    *,
    what: str,
) -> dict[str, np.ndarray]:
    """Embeds any number of items into a file, with a progress bar; skips and reports bad items.

    The first of the embedder's processes writes the file, in a folder that all of them see.

    Args:
        embedder: the model.
        items: functions that load an item each; a process calls those of its share.
        count: number of items.
        view: the shown fields and the instruction.
        views: modality sets, each embedded separately; the towers run once.
        path: the .npy file that is written, [views, count, D] float32.
        what: name of the items, for the progress bar and for messages.

    Returns:
        View -> [count, D] float32, memory-mapped, not normalised; rows of zeros for items that are bad or have nothing
        to show.

    Raises:
        SailError: more than `config.data.max_bad_records` items could not be loaded.
    """
    views, processes, out = tuple(views), embedder.processes, None
    if processes.first:
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(views), count, embedder.width))
    bad: list[BadRecordError] = []
    shown = dataclasses.replace(view, modalities=shown_modalities(views))
    tracked = iter(track(items, description=what, total=count, disable=not processes.first))
    for window in embed_into(out, embedder, tracked, shown, views):
        bad += window.bad.values()
    _report(bad, what, embedder.config, quiet=not processes.first)
    if out is not None:
        out.flush()
    processes.wait()
    return dict(zip(views, np.load(path, mmap_mode="r"), strict=True))


def _report(bad: list[BadRecordError], what: str, config: Config, *, quiet: bool) -> None:
    if not bad:
        return
    source = str(place(config.data.dir) / FOLDER)
    shown = "\n  ".join(str(error.at(source=source)) for error in bad[:5])
    if not quiet:
        Terminal(stderr=True).print(f"{len(bad)} items ({what}) could not be loaded and are left out:\n  {shown}")
    if len(bad) > config.data.max_bad_records:
        raise SailError(
            f"{len(bad)} items could not be loaded, over config.data.max_bad_records "
            f"({config.data.max_bad_records}); mend them or raise the limit."
        )
