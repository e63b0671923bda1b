"""Search: the items nearest to a text, a picture, a sound, a video, any mixture of them, or to an item.

Axis letters: Q queries, D width, K results.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sail_jax.config import Config
from sail_jax.data.media import check_audio, check_image, video_audio, video_frames
from sail_jax.data.prompts import shown_fields
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import QUERY_FIELD, TEXT_FIELDS, Item, text_item
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.search.faiss_index import FaissIndex, IndexInfo
from sail_jax.search.nearest import ExactSearch, ShortlistSearch
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet

FILE_KINDS = ("image", "audio", "video")


class Hit(NamedTuple):
    """An item that was found.

    Attributes:
        id: its id.
        score: its cosine to the query, approximate where a compressed index gave it.
    """

    id: str
    score: float


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """How a shortlist is made that the full vectors rank anew.

    Attributes:
        dims: by how many of the first dimensions; 0 where an index makes it.
        size: how many items are on it.
    """

    dims: int = 0
    size: int = 1000


class Searcher:
    """Finds items among embeddings: exactly; with a shortlist by the first dimensions; by an index; or with a shortlist by an index.

    Several threads must not search at the same time.

    Args:
        embedder: the model, which embedded the items too.
        embeddings: the embedded items; with an index, they rank its shortlist anew.
        index: an index of them.
        shortlist: how a shortlist is made; without one, the search of embeddings alone is exact.
        text_instruction: the system prompt of queries that are text alone; None for that of the items.

    Raises:
        SailError: there is nothing to search, it is of another model, or index and embeddings do not belong together.
    """

    def __init__(
        self,
        embedder: Embedder,
        embeddings: EmbeddingSet | None = None,
        index: FaissIndex | None = None,
        *,
        shortlist: Shortlist | None = None,
        text_instruction: str | None = None,
    ) -> None:
        if embeddings is None and index is None:
            raise SailError("There is nothing to search: name embeddings, an index of them, or both.")
        model = fingerprint(embedder.params)
        if embeddings is not None:
            embeddings.require_model(model, what="the model that reads the queries")
        if index is not None and index.info.fingerprint != model:
            raise SailError(
                f"The index {index.path} holds vectors of another model ({index.info.model}, fingerprint "
                f"{index.info.fingerprint}) than the one that reads the queries (fingerprint {model}); embed and index "
                "the items with that model."
            )
        self.info: EmbeddingInfo | IndexInfo = (embeddings or index).info
        self._embedder, self._text_instruction = embedder, text_instruction
        self._nearest = _search_of(embeddings, index, shortlist, embedder.config.eval.corpus_block)

    def __len__(self) -> int:
        """The number of items that are searched."""
        return len(self._nearest)

    def search(self, queries: Sequence[Item | str], k: int = 10) -> list[list[Hit]]:
        """The items nearest to each query, best first.

        Of a query everything is shown that it has; text fields, as far as they were shown of the items.

        Args:
            queries: texts, or items with any subset of text, frames and sound (see `query_item`).
            k: results per query; fewer come where there are fewer.

        Raises:
            BadRecordError: a query cannot be decoded, or is empty.
            SailError: `k` is below 1.
        """
        return self._hits(*self._nearest.nearest(self.encode(queries), self._room(k)))

    def like(self, item_ids: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The items nearest to each of some items of the set, by its stored vector; the item itself is left out.

        Args:
            item_ids: ids of items that are searched.
            k: results per item.

        Raises:
            SailError: an item is unknown, or `k` is below 1.
        """
        positions = np.array([self._position(item_id) for item_id in item_ids], np.int64)
        if not len(positions):
            return []
        rows, cosines = self._nearest.nearest(self._nearest.vectors(positions), self._room(k) + 1)
        cosines[rows == positions[:, None]] = -np.inf
        # The item itself goes last, or who is last of those that are one too many.
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return self._hits(*(np.take_along_axis(part, order, axis=1) for part in (rows, cosines)))

    def encode(self, queries: Sequence[Item | str]) -> np.ndarray:
        """[Q, D] float32 of unit length, the vectors of some queries in the width of the search."""
        items = [text_item(query) if isinstance(query, str) else query for query in queries]
        z = np.zeros((len(items), self._nearest.dims), np.float32)
        bare = np.array([item.modalities == "T" and QUERY_FIELD in item.text for item in items], bool)
        own = self._text_instruction if self._text_instruction is not None else self.info.instruction
        for places, instruction in ((np.flatnonzero(bare), own), (np.flatnonzero(~bare), self.info.instruction)):
            if len(places):
                z[places] = self._embed([items[place] for place in places], instruction)
        return z

    def _embed(self, items: list[Item], instruction: str) -> np.ndarray:
        return self._embedder.encode(items, fields=self.info.fields, instruction=instruction, dims=self._nearest.dims)

    def _room(self, k: int) -> int:
        if k < 1:
            raise SailError(f"{k} results cannot be found; ask for one or more.")
        return min(k, len(self))

    def _position(self, item_id: str) -> int:
        position = self._nearest.position(item_id)
        if position < 0:
            raise SailError(f"There is no item {item_id!r} among the {len(self)} that are searched.")
        return position

    def _hits(self, rows: np.ndarray, cosines: np.ndarray) -> list[list[Hit]]:
        return [
            [
                Hit(self._nearest.ids[int(row)].as_py(), float(cosine))
                for row, cosine in zip(*found, strict=True)
                if np.isfinite(cosine)
            ]
            for found in zip(rows, cosines, strict=True)
        ]


def _search_of(
    embeddings: EmbeddingSet | None, index: FaissIndex | None, shortlist: Shortlist | None, block: int
) -> ExactSearch | ShortlistSearch | FaissIndex:
    if embeddings is None:
        if shortlist is not None:
            raise SailError("A shortlist is ranked anew by the full vectors: name the embeddings beside the index.")
        return index
    exact = ExactSearch(embeddings, block=block)
    if index is None and shortlist is None:
        return exact
    shortlist = shortlist or Shortlist()
    return ShortlistSearch(exact, shortlist.size, dims=shortlist.dims, index=index)


@dataclasses.dataclass(frozen=True)
class QueryFile:
    """A file of a query.

    Attributes:
        kind: one of `FILE_KINDS`.
        name: what messages call it.
        data: its content.
    """

    kind: str
    name: str
    data: bytes

    @classmethod
    def read(cls, kind: str, path: Path) -> "QueryFile":
        """Reads a file."""
        return cls(kind, str(path), path.read_bytes())


def query_item(text: str, files: Sequence[QueryFile], config: Config) -> Item:
    """A query out of a text and files, which are decoded once to see that they can be.

    Args:
        text: free text; empty for none.
        files: pictures, at most one sound, at most one video (of which frames and sound are taken), in any order.
        config: limits of media, and frames that are taken from a video.

    Raises:
        BadRecordError: a file cannot be decoded; the message names it.
        SailError: the query is empty, or it has two sounds.
    """
    limits = config.ingest
    frames: list[bytes] = []
    sounds: list[bytes] = []
    for file in files:
        try:
            if file.kind == "image":
                check_image(file.data, max_pixels=limits.max_pixels)
                frames.append(file.data)
            elif file.kind == "audio":
                check_audio(file.data, max_seconds=limits.max_audio_seconds)
                sounds.append(file.data)
            else:
                frames += video_frames(file.data, limits.frames_per_video, max_pixels=limits.max_pixels)
                sound = video_audio(file.data, max_seconds=limits.max_audio_seconds)
                sounds += [sound] if sound else []
        except BadRecordError as error:
            raise BadRecordError(error.problem, remedy="Search with another file", source=file.name) from error
    if len(sounds) > 1:
        raise SailError("A query has one sound at most, that of a video included; leave out the others.")
    if not (text.strip() or frames or sounds):
        raise SailError("There is nothing to search for: give a text, an image, a sound or a video.")
    return Item(
        item_id="",
        text={QUERY_FIELD: text} if text.strip() else {},
        frames=tuple(frames),
        audio=sounds[0] if sounds else None,
    )


def caption(item: Item) -> str:
    """The text of an item on one line."""
    return shown_fields(item, TEXT_FIELDS).replace("\n", " · ")
