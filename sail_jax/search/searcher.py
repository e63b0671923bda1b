"""Finds the items nearest to a text, an image, a sound, a video, a mixture of them, or an item.

Axis letters: Q queries, D width, K results.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sail_jax.config import Config
from sail_jax.config.data import IngestConfig
from sail_jax.data.instructions import instructions_of
from sail_jax.data.item_dicts import is_free_text, to_item
from sail_jax.data.media.decoding import time_limit
from sail_jax.data.media.pictures import check_image
from sail_jax.data.media.sound import check_audio
from sail_jax.data.media.video import video_audio, video_frames
from sail_jax.data.prompts import shown_fields
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import QUERY_FIELD, TEXT_FIELDS, Item
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.search.faiss_index import FaissIndex, IndexInfo
from sail_jax.search.nearest import ExactSearch, ShortlistSearch
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet
from sail_jax.vectors.unit import unit_rows


class Hit(NamedTuple):
    """A search result.

    Attributes:
        id: id of the item.
        score: its cosine to the query; approximate if it comes from a compressed index.
    """

    id: str
    score: float


class UnknownItemError(SailError):
    """An error of a search by the id of an item that is not among those that are searched."""


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """Settings of the shortlist that the full vectors rerank.

    Attributes:
        dims: number of leading dimensions that it is searched by; 0 if an index makes it.
        size: items on it.
    """

    dims: int = 0
    size: int = 1000


class Searcher:
    """Embeds queries and finds the nearest items.

    Four searches: exact over embeddings; over a shortlist by leading dimensions; in an index; over a shortlist from an
    index. Not safe to use from several threads at the same time.

    Args:
        embedder: the model that embedded the items.
        embeddings: the embedded items; with an index, they rerank its shortlist.
        index: an index of them.
        shortlist: how the shortlist is made; None for exact search, where there is no index.
        text_instruction: system prompt of queries that are only text; None for that of queries in the training of the
            run, if the items were embedded with that of documents, else for the items' own.

    Raises:
        SailError: neither embeddings nor an index is given, or they do not belong to the model or to each other.
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
        self._nearest = _make_search(embeddings, index, shortlist, embedder.config.eval.corpus_block)

    def __len__(self) -> int:
        """Returns the number of items that are searched."""
        return len(self._nearest)

    @property
    def ids(self) -> pa.Array:
        """Returns the ids of the items that are searched."""
        return self._nearest.ids

    def search(self, queries: Sequence[Item | str | Path | Mapping[str, Any]], k: int = 10) -> list[list[Hit]]:
        """Returns the items nearest to each query, best first.

        All modalities of a query are shown, and those text fields that were shown of the items.

        Args:
            queries: texts, items with any subset of text, frames and sound (see `query_item`), or what else
                `Embedder.encode` takes.
            k: results per query, fewer if there are fewer items.

        Raises:
            BadRecordError: a query cannot be decoded, or is empty.
            SailError: `k` is below 1.
        """
        return self._hits(*self._nearest.nearest(self.encode(queries), self._limit(k)))

    def like(self, item_ids: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Returns the items nearest to stored items, by their vectors, without the items themselves.

        Args:
            item_ids: ids of items of the set.
            k: results per item.

        Raises:
            UnknownItemError: there is no item with one of these ids.
            SailError: `k` is below 1.
        """
        positions = np.array([self._position(item_id) for item_id in item_ids], np.int64)
        if not len(positions):
            return []
        rows, cosines = self._nearest.nearest(self._nearest.vectors(positions), self._limit(k) + 1)
        cosines[rows == positions[:, None]] = -np.inf
        # One more than k was searched: the item itself, or else the last result, is dropped.
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return self._hits(*(np.take_along_axis(part, order, axis=1) for part in (rows, cosines)))

    def sample(self, count: int) -> list[str]:
        """Returns ids of some items, evenly spaced over the set."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return [self.ids[int(row)].as_py() for row in chosen]

    def why(self, query: Item | str, item: Item) -> dict[str, float]:
        """Returns the cosine of a query with each modality of an item alone, and with all of it as "all".

        Args:
            query: an item, as of `query_item`, or the id of an item of the set.
            item: the item.

        Raises:
            UnknownItemError: there is no item with this id.
        """
        if isinstance(query, str):
            z = self._nearest.vectors(np.array([self._position(query)], np.int64))
        else:
            z = self.encode([query])
        shown = [letter for letter in item.modalities if letter in self.info.modalities]
        views = {letter: item.only(letter) for letter in shown} | {"all": item.only("".join(shown))}
        of_views = self._embed(list(views.values()), self.info.instruction)
        return {name: float(cosine) for name, cosine in zip(views, of_views @ unit_rows(z)[0], strict=True)}

    def encode(self, queries: Sequence[Item | str | Path | Mapping[str, Any]]) -> np.ndarray:
        """Returns the unit vectors of some queries in the width of the search, [Q, D] float32."""
        items = [to_item(query, self._embedder.config.ingest) for query in queries]
        z = np.zeros((len(items), self._nearest.dims), np.float32)
        text_only = np.array(list(map(is_free_text, items)), bool)
        for places, instruction in (
            (np.flatnonzero(text_only), self._of_texts()),
            (np.flatnonzero(~text_only), self.info.instruction),
        ):
            if len(places):
                z[places] = self._embed([items[place] for place in places], instruction)
        return z

    def _of_texts(self) -> str:
        """Returns the system prompt of queries that are only text."""
        if self._text_instruction is not None:
            return self._text_instruction
        trained = instructions_of(self._embedder.config)
        return trained.query if self.info.instruction == trained.document else self.info.instruction

    def _embed(self, items: list[Item], instruction: str) -> np.ndarray:
        return self._embedder.encode(items, fields=self.info.fields, instruction=instruction, dims=self._nearest.dims)

    def _limit(self, k: int) -> int:
        if k < 1:
            raise SailError(f"k is {k}; ask for at least one result.")
        return min(k, len(self))

    def _position(self, item_id: str) -> int:
        position = self._nearest.position(item_id)
        if position < 0:
            raise UnknownItemError(f"There is no item {item_id!r} among the {len(self)} that are searched.")
        return position

    def _hits(self, rows: np.ndarray, cosines: np.ndarray) -> list[list[Hit]]:
        return [
            [
                Hit(self.ids[int(row)].as_py(), float(cosine))
                for row, cosine in zip(*found, strict=True)
                if np.isfinite(cosine)
            ]
            for found in zip(rows, cosines, strict=True)
        ]


def _make_search(
    embeddings: EmbeddingSet | None, index: FaissIndex | None, shortlist: Shortlist | None, block: int
) -> ExactSearch | ShortlistSearch | FaissIndex:
    if embeddings is None:
        if shortlist is not None:
            raise SailError("A shortlist is reranked by the full vectors: name the embeddings too.")
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
        name: its name in messages.
        data: its content.
    """

    kind: str
    name: str
    data: bytes

    @classmethod
    def read(cls, kind: str, path: Path) -> "QueryFile":
        """Reads a file.

        Raises:
            SailError: it is missing, or cannot be read.
        """
        try:
            return cls(kind, str(path), path.read_bytes())
        except OSError as error:
            raise SailError(f"The {kind} {path} cannot be read ({error.strerror}). Check the path.") from error


def query_item(text: str, files: Sequence[QueryFile], config: Config) -> Item:
    """Returns a query made of a text and files; each file is decoded once to check that it can be.

    Args:
        text: free text; empty for none.
        files: images, at most one sound, at most one video (its frames and its sound are taken), in any order.
        config: limits of media, and the number of frames taken from a video.

    Raises:
        BadRecordError: a file cannot be decoded; the message names it.
        SailError: the query is empty, or it has two sounds.
    """
    limits = config.ingest
    frames: list[bytes] = []
    sounds: list[bytes] = []
    for file in files:
        try:
            with time_limit(limits.max_decode_seconds):
                _read_file(file, limits, frames, sounds)
        except BadRecordError as error:
            raise BadRecordError(error.problem, remedy="Search with another file", source=file.name) from error
    if len(sounds) > 1:
        raise SailError("A query has at most one sound, including that of a video; leave out the others.")
    if not (text.strip() or frames or sounds):
        raise SailError("There is nothing to search for: give a text, an image, a sound or a video.")
    return Item(
        item_id="",
        text={QUERY_FIELD: text} if text.strip() else {},
        frames=tuple(frames),
        audio=sounds[0] if sounds else None,
    )


def _read_file(file: QueryFile, limits: IngestConfig, frames: list[bytes], sounds: list[bytes]) -> None:
    """Adds the frames and the sound of a file."""
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


def caption(item: Item) -> str:
    """Returns the text of an item on one line."""
    return shown_fields(item, TEXT_FIELDS).replace("\n", " · ")
