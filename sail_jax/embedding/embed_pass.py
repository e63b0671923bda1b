"""One pass of a model over any number of items, into a memory-mapped file."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from sail_jax.config import Config
from sail_jax.data.features import View
from sail_jax.data.store import FOLDER
from sail_jax.embedding.embedder import Embedder, NothingShownError
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item
from sail_jax.patterns import shown_modalities


def embed_pass(
    embedder: Embedder, items: Iterable[Item], count: int, view: View, views: Sequence[str], path: Path, *, what: str
) -> dict[str, np.ndarray]:
    """Embeds any number of items into a file, with progress; bad items are reported, and skipped up to a limit.

    Args:
        embedder: the model.
        items: the items; they are read as they are needed.
        count: how many there are.
        view: which fields are shown, and under which instruction.
        views: modality sets, each of which gives an embedding of its own; the towers run once.
        path: the .npy file that is written, [views, count, D] float32.
        what: what the items are, for the progress bar and for messages.

    Returns:
        View -> [count, D] float32, memory-mapped, not normalised; rows of zeros where an item is bad or has nothing of a
        view.

    Raises:
        SailError: when more than `config.data.max_bad_records` items could not be loaded.
    """
    views = tuple(views)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(views), count, embedder.width))
    at, bad = 0, []
    shown = dataclasses.replace(view, modalities=shown_modalities(views))
    tracked = iter(track(items, description=what, total=count))
    for z, errors in embedder.stream(tracked, shown, views):
        out[:, at : at + z.shape[1]] = z
        at += z.shape[1]
        bad += [error for error in errors.values() if not isinstance(error, NothingShownError)]
    _report(bad, what, embedder.config)
    return dict(zip(views, out, strict=True))


def _report(bad: list[BadRecordError], what: str, config: Config) -> None:
    if not bad:
        return
    source = str(Path(config.data.dir) / FOLDER)
    shown = "\n  ".join(str(error.at(source=source)) for error in bad[:5])
    Console(stderr=True).print(f"{len(bad)} items ({what}) could not be loaded and are left out:\n  {shown}")
    if len(bad) > config.data.max_bad_records:
        raise SailError(
            f"{len(bad)} items could not be loaded, over config.data.max_bad_records "
            f"({config.data.max_bad_records}); mend them or raise the limit."
        )
