"""Turns the cells of a source row into an item: loads and checks media, texts, labels and vectors."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sail_jax.config.data import IngestConfig, ItemSourceConfig
from sail_jax.data.ingest.cells import id_cell, is_empty, list_cell, text_cell
from sail_jax.data.ingest.sources import Row
from sail_jax.data.ingest.vector_tables import VectorTable
from sail_jax.data.media.decoding import time_limit
from sail_jax.data.media.pictures import check_image, encode_image
from sail_jax.data.media.sound import check_audio, encode_audio
from sail_jax.data.media.video import video_audio, video_frames
from sail_jax.errors import BadRecordError, SailError, is_of_the_machine
from sail_jax.files import is_file
from sail_jax.items import TEXT_FIELDS, Item

# The placeholder of the id in a pattern of file names.
ITEM_ID = "{item_id}"


class RecordReader:
    """Reads items from rows; safe in threads.

    Args:
        config: maps columns to the parts of an item, and limits media.
        folder: the source folder, to which media files are relative.
        check: whether to decode pictures and sounds once to check them; without it, a later decoder finds the same
            errors.

    Raises:
        SailError: the config names an unknown text field, or a file pattern that cannot be used.
    """

    def __init__(self, config: IngestConfig, folder: pathlib.Path, *, check: bool = True):
        self._config, self._columns, self._folder, self._check = config, config.source, folder, check
        self._root = os.path.realpath(folder)
        unknown = set(config.source.text) - set(TEXT_FIELDS)
        if unknown:
            raise SailError(f"config.ingest.source.text has no field {min(unknown)!r}; use {', '.join(TEXT_FIELDS)}.")
        self._patterns = _file_patterns(config.source)
        self._vectors: Mapping[str, VectorTable] = {}

    def join(self, vectors: Mapping[str, VectorTable]) -> None:
        """Sets the tables of ID embeddings; items read from now on get their vectors by id, if there are any."""
        self._vectors = vectors

    def columns(self) -> dict[str, str]:
        """Setting -> column, for all columns that are read."""
        columns = self._columns
        named = {
            name: getattr(columns, name) for name in ("id", "frames", "video", "audio", "audio_embedding", "labels")
        }
        named |= {f"text.{field}": column for field, column in columns.text.items()}
        named |= {f"id_embeddings.{name}": column for name, column in columns.id_embeddings.items()}
        return {f"config.ingest.source.{name}": column for name, column in named.items()}

    def __call__(self, row: Row) -> Item:
        """Reads the item of a row.

        Raises:
            BadRecordError: the item cannot be used; the error names the file, the record and the field.
        """
        record = f"row {row.number}"
        try:
            if row.problem is not None:
                raise row.problem
            item_id = id_cell(row.cells.get(self._columns.id))
            if item_id is None:
                raise BadRecordError("the item has no id", remedy="Give it one", field=self._columns.id)
            record = f"{item_id} ({record})"
            with time_limit(self._config.max_decode_seconds):
                item = self._item(item_id, row.cells)
            if not item.modalities:
                raise BadRecordError(
                    "the item has no text, frames or sound", remedy="Fill in one of them, or remove it"
                )
            return item
        except BadRecordError as error:
            raise error.at(source=row.file, record=record) from error

    def _item(self, item_id: str, cells: Mapping[str, Any]) -> Item:
        columns = self._columns
        frames = self._media(item_id, cells, "frames", self._frames) or ()
        audio = self._media(item_id, cells, "audio", self._audio)
        # A column of sounds decides for each item whether it has one. A missing sound file may be replaced by the sound
        # of the video.
        wants_audio = not columns.audio and audio is None
        video = self._media(item_id, cells, "video", lambda cell: self._video(cell, not frames, wants_audio))
        seen, heard = video or ((), None)
        return Item(
            item_id=item_id,
            text={name: text for name in TEXT_FIELDS if (text := self._text(cells, name)) is not None},
            frames=frames or seen,
            audio=heard if wants_audio else audio,
            audio_embedding=self._field(cells, columns.audio_embedding, self._vector),
            labels=self._field(cells, columns.labels, self._labels) or (),
            id_embeddings={
                name: vector
                for name, column in columns.id_embeddings.items()
                if (vector := self._field(cells, column, self._vector)) is not None
            }
            | {name: vector for name, table in self._vectors.items() if (vector := table.get(item_id)) is not None},
        )

    def _media(self, item_id: str, cells: Mapping[str, Any], kind: str, read: Any) -> Any:
        """Reads a cell, or, if the settings have a file pattern instead of a column, the file of this item."""
        pattern = self._patterns.get(kind)
        if pattern is None:
            return self._field(cells, getattr(self._columns, kind), read)
        name = pattern.replace(ITEM_ID, item_id)
        if ".." in pathlib.PurePath(name).parts or "\0" in name:
            raise BadRecordError(
                "the id cannot be part of a file's name", remedy="Choose ids without '..'", field=self._columns.id
            )
        found = is_file(self._folder / name)
        # Wrapped in a list, so that a separator in the id does not split it.
        return self._field({name: [name] if kind == "frames" else name} if found else {}, name, read)

    def _field(self, cells: Mapping[str, Any], column: str, read: Any) -> Any:
        """Applies `read` to a cell; None if no column is set or the cell is empty."""
        if not column or is_empty(cells.get(column)):
            return None
        try:
            return read(cells[column])
        except BadRecordError as error:
            raise error.at(field=column) from error

    def _text(self, cells: Mapping[str, Any], name: str) -> str | None:
        """The text of a field; tags are always a list, whatever the source's type, and are joined with commas."""

        def read(cell: Any) -> str | None:
            if name == "tags" or isinstance(cell, (list, tuple)):
                return ", ".join(filter(None, map(text_cell, list_cell(cell, self._columns.separator)))) or None
            return text_cell(cell)

        return self._field(cells, self._columns.text.get(name, ""), read)

    def _labels(self, cell: Any) -> tuple[str, ...]:
        return tuple(filter(None, map(text_cell, list_cell(cell, self._columns.separator))))

    def _vector(self, cell: Any) -> np.ndarray:
        try:
            vector = np.asarray(list_cell(cell, self._columns.separator) if isinstance(cell, str) else cell, np.float32)
        except (ValueError, TypeError) as error:
            raise BadRecordError(f"the cell is not a vector ({error})", remedy="Write a list of numbers") from error
        if vector.ndim != 1 or not np.isfinite(vector).all():
            raise BadRecordError("the cell is not a vector of finite numbers", remedy="Write a list of numbers")
        return vector

    def _frames(self, cell: Any) -> tuple[bytes, ...]:
        if isinstance(cell, np.ndarray):
            frames = [encode_image(_pixels(pixels)) for pixels in (cell if cell.ndim == 4 else [cell])]
        else:
            frames = [self._load(entry) for entry in list_cell(cell, self._columns.separator)]
        for frame in frames if self._check else ():
            check_image(frame, max_pixels=self._config.max_pixels)
        return tuple(frames)

    def _video(self, cell: Any, wants_frames: bool, wants_audio: bool) -> tuple[tuple[bytes, ...], bytes | None]:
        source = self._file(cell) if isinstance(cell, str) else self._load(cell)
        config, frames, audio = self._config, (), None
        if wants_frames:
            frames = tuple(video_frames(source, config.frames_per_video, max_pixels=config.max_pixels))
        if wants_audio:
            audio = video_audio(source, max_seconds=config.max_audio_seconds)
        return frames, audio

    def _audio(self, cell: Any) -> bytes:
        if isinstance(cell, (list, np.ndarray)):
            if not self._columns.audio_rate:
                raise SailError(
                    f"Column {self._columns.audio!r} holds sound as numbers: set config.ingest.source.audio_rate to "
                    "the number of samples per second."
                )
            data = encode_audio(np.asarray(cell), self._columns.audio_rate)
        else:
            data = self._load(cell)
        if self._check:
            check_audio(data, max_seconds=self._config.max_audio_seconds)
        return data

    def _load(self, entry: Any) -> bytes:
        """Encoded media from a path, from bytes, or from a struct of both as in Hugging Face's Parquet files."""
        if isinstance(entry, Mapping):
            entry = entry.get("bytes") or entry.get("path")
        if isinstance(entry, np.ndarray):
            return encode_image(_pixels(entry))
        if isinstance(entry, bytes):
            return entry
        if not isinstance(entry, str):
            raise BadRecordError(f"a {type(entry).__name__} is not a media file", remedy="Write its path, or its bytes")
        path = self._file(entry)
        try:
            return path.read_bytes()
        except OSError as error:
            if is_of_the_machine(error):
                raise
            raise BadRecordError(f"{entry!r} cannot be read ({error.strerror})", remedy="Make it readable") from error

    def _file(self, name: str) -> pathlib.Path:
        """The file that a path in a table leads to, without links."""
        missing = BadRecordError(
            f"there is no file {name!r:.200} in the source folder", remedy="Put it there, or leave the cell empty"
        )
        try:
            path = pathlib.Path(os.path.realpath(self._folder / name.strip()))
        except ValueError:  # no file has a null character or half a character in its name
            raise missing from None
        if not (self._config.outside_paths or path.is_relative_to(self._root)):
            raise BadRecordError(
                f"the path {name!r:.200} leads out of the source folder",
                remedy="Put the file there, or set config.ingest.outside_paths=True if you trust the table",
            )
        if not is_file(path):
            raise missing
        return path


def _file_patterns(source: ItemSourceConfig) -> dict[str, str]:
    """Kind of media -> file name pattern, for the patterns that are set."""
    named = {
        "frames": (source.frames_pattern, source.frames),
        "video": (source.video_pattern, source.video),
        "audio": (source.audio_pattern, source.audio),
    }
    patterns = {kind: pattern for kind, (pattern, _) in named.items() if pattern}
    for kind, pattern in patterns.items():
        setting = f"config.ingest.source.{kind}_pattern"
        if named[kind][1]:
            raise SailError(f"{setting} and config.ingest.source.{kind} are both set. Empty one of them.")
        if ITEM_ID not in pattern:
            raise SailError(f"{setting} is {pattern!r}, one file for all items. Write {ITEM_ID} in place of the id.")
    return patterns


def _pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise BadRecordError(
            f"an array of shape {pixels.shape} and type {pixels.dtype} is not a picture",
            remedy="Write [height, width, 3] uint8",
        )
    return pixels
