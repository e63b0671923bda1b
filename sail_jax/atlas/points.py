"""The points of an atlas: where each embedded item lies, and what is shown of it, a block at a time.

Axis letters: N points of a block, D width.
"""

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from sail_jax.data.prompts import shown_fields
from sail_jax.data.store import ItemStore
from sail_jax.data.thumbnail import jpeg_thumbnail
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import TEXT_FIELDS
from sail_jax.progress import Progress
from sail_jax.terminal import console
from sail_jax.vectors.embedding_set import EmbeddingSet
from sail_jax.vectors.projection import PlaneMap, placement

_BLOCK = 8192  # points; with their thumbnails, some 30 MB


class Shown(NamedTuple):
    """What is shown of an item.

    Attributes:
        text: its texts in one line.
        labels: its labels.
        modalities: what it has, of "VTA".
        image: a JPEG of its first frame; None if it has none that can be decoded.
    """

    text: str
    labels: tuple[str, ...]
    modalities: str
    image: bytes | None

    @property
    def label(self) -> str:
        """Returns the first label; empty if there is none."""
        return self.labels[0] if self.labels else ""


# Of an item that the store lacks, or without a store.
NOTHING = Shown("", (), "", None)


class Block(NamedTuple):
    """Some points, in the order of the embedding folder.

    Attributes:
        rows: [N] int64, their rows in the folder.
        ids: their N ids.
        vectors: [N, D] float32, of unit length.
        places: [N, 2] float32.
        shown: what is shown of each; None for an item that the store lacks, or without a store.
    """

    rows: np.ndarray
    ids: list[str]
    vectors: np.ndarray
    places: np.ndarray
    shown: list[Shown | None]


@dataclasses.dataclass(frozen=True)
class AtlasSettings:
    """How points are placed and shown.

    Attributes:
        projection: one of `PROJECTIONS`.
        thumbnail: side in pixels of the square that a thumbnail fits into; 0 for none.
        seed: of the sample that is placed first, and of its placement.
    """

    projection: str = "tsne"
    thumbnail: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises SailError if the size of the thumbnails or the seed is out of range."""
        if not 0 <= self.thumbnail <= 512:
            raise SailError(f"--thumbnail is {self.thumbnail}; take at most 512 pixels, or 0 for no pictures.")
        if not 0 <= self.seed < 2**32:
            raise SailError(f"--seed is {self.seed}; take a number from 0 to 2^32 - 1.")


class Points:
    """The points of a folder of embeddings; rows of zeros, items that could not be embedded, are none.

    A sample of the vectors is placed by the projection, all others between the nearest of the sample. Memory holds the
    sample and a block, and 8 bytes a row while the sample is drawn.

    Args:
        embeddings: the vectors.
        store: where texts, labels and pictures come from; None to show ids alone.
        settings: how points are placed and shown.

    Raises:
        SailError: there are no vectors, one is not finite, or the projection is not installed.
    """

    def __init__(self, embeddings: EmbeddingSet, store: ItemStore | None, settings: AtlasSettings) -> None:
        self._embeddings, self._store, self._settings = embeddings, store, settings
        place = placement(settings.projection)
        rows, vectors = embeddings.sample(place.most, settings.seed, self._batches("drawing a sample"))
        present = vectors.any(axis=1)
        if not present.any():
            raise SailError(f"{embeddings.path} holds no vectors that could be placed; embed some items first.")
        self._landmarks = rows[present]
        console.print(f"Placing a sample of {len(self._landmarks):,} by {settings.projection}, which takes minutes")
        self._plane = PlaneMap(vectors[present], settings.seed, place)

    @property
    def described(self) -> bool:
        """Returns whether there is an item store."""
        return self._store is not None

    def blocks(self) -> Iterator[Block]:
        """Yields all points in order, with progress.

        Raises:
            SailError: a part of the folder is damaged.
        """
        start = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for ids, z in self._batches("placing all"):
                kept = np.flatnonzero(z.any(axis=1))
                names = [ids[row] for row in kept]
                shown = list(pool.map(self._shown, names))
                yield Block(start + kept, names, z[kept], self._places(start + kept, z[kept]), shown)
                start += len(ids)

    def _batches(self, what: str) -> Iterator[tuple[list[str], np.ndarray]]:
        with Progress() as progress:
            task = progress.add_task(what, total=len(self._embeddings))
            for ids, z in self._embeddings.batches(_BLOCK, finite=True):
                yield ids, z
                progress.advance(task, len(ids))

    def _places(self, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        places = self._plane.between(vectors)
        _, of_block, of_sample = np.intersect1d(rows, self._landmarks, assume_unique=True, return_indices=True)
        places[of_block] = self._plane.places[of_sample]
        return places

    def _shown(self, item_id: str) -> Shown | None:
        if self._store is None:
            return None
        try:
            item = self._store.get(item_id)
        except BadRecordError:
            return None
        side = self._settings.thumbnail
        image = jpeg_thumbnail(item.frames[0], side) if item.frames and side else None
        text = shown_fields(item, TEXT_FIELDS).replace("\n", " · ")
        return Shown(_whole(text), tuple(map(_whole, item.labels)), item.modalities, image)


def _whole(text: str) -> str:
    """Returns a text without halves of surrogate pairs, which text from the web may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
