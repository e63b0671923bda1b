"""Converts texts, media files, and dicts with files, bytes or pictures, to items."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sail_jax.config.data import IngestConfig
from sail_jax.data.media.decoding import time_limit
from sail_jax.data.media.kinds import is_media_path, media_kind
from sail_jax.data.media.pictures import encode_image, encode_opened
from sail_jax.data.media.video import video_audio, video_frames
from sail_jax.errors import BadRecordError, is_of_the_machine
from sail_jax.files import is_file
from sail_jax.items import QUERY_FIELD, TEXT_FIELDS, Item, text_item

KEYS = ("id", "text", *TEXT_FIELDS, "image", "video", "audio", "audio_embedding")


def to_item(value: Item | str | Path | Mapping[str, Any], config: IngestConfig) -> Item:
    """Converts an item, a free text, a media file or a dict to an item.

    Args:
        value: a string that ends in the suffix of a picture, sound or video is the path of that file, and so is a
            `Path`; any other string is a free text. A dict has any of
            - "id";
            - "text", a free text without a label, or else "title", "asr", "ocr", "nickname", "tags";
            - "image": a file's path, its bytes, a Pillow image or an array [H, W, 3] uint8; or a list of these, frames
              in temporal order. Or else "video": a file's path or its bytes;
            - "audio": a file's path or its bytes; by default a video's own sound is used;
            - "audio_embedding": a precomputed CLAP vector, [K] float32.
            Entries that are None count as missing.
        config: how many frames are taken from a video, and the limits on media.

    Raises:
        BadRecordError: a key is unknown, a file is missing, or an entry cannot be used; the error names the field.
    """
    if isinstance(value, Item):
        return value
    if is_free_text(value) and isinstance(value, str):
        return text_item(value)
    if isinstance(value, str | Path):
        value = _of_path(value)
    if not isinstance(value, Mapping):
        raise BadRecordError(
            f"a {type(value).__name__} is not an item", remedy="Give a text, an Item or a dict such as {'title': ...}"
        )
    parts = {key: entry for key, entry in value.items() if entry is not None}
    _check_keys(parts)
    frames, sound = (), None
    with time_limit(config.max_decode_seconds):
        if "image" in parts:
            frames = _read(parts, "image", _images)
        elif "video" in parts:
            frames, sound = _read(parts, "video", lambda entry: _video(entry, config, "audio" not in parts))
    return Item(
        item_id=str(parts.get("id", "")),
        text={_field(key): _read(parts, key, _text) for key in ("text", *TEXT_FIELDS) if key in parts},
        frames=frames,
        audio=_read(parts, "audio", _bytes) if "audio" in parts else sound,
        audio_embedding=_read(parts, "audio_embedding", _vector) if "audio_embedding" in parts else None,
    )


def is_free_text(value: Item | str | Path | Mapping[str, Any]) -> bool:
    """Returns whether what `to_item` takes is a free text and nothing else."""
    if isinstance(value, Item):
        return value.modalities == "T" and set(value.text) == {QUERY_FIELD}
    if isinstance(value, Mapping):
        return {key for key, entry in value.items() if entry is not None} - {"id"} == {"text"}
    return isinstance(value, str) and not is_media_path(value)


def _of_path(value: str | Path) -> dict[str, Any]:
    """Returns the dict of a media file that is named alone."""
    path, kind = Path(value), media_kind(value)
    as_text = ", or give {'text': ...} if it is a text" * isinstance(value, str)
    if not is_file(path):
        raise BadRecordError(f"there is no file {str(path)!r:.200}", remedy=f"Check the path{as_text}")
    if not kind:
        remedy = f"Give a picture, sound or video as {{'image': ...}}, {{'audio': ...}} or {{'video': ...}}{as_text}"
        raise BadRecordError(f"the suffix of {str(path)!r:.200} is of no kind that is read", remedy=remedy)
    return {kind: path}


def _check_keys(parts: Mapping[str, Any]) -> None:
    for key in parts:
        if key not in KEYS:
            raise BadRecordError("the key is unknown", remedy=f"Use {', '.join(KEYS)}", field=str(key))
    labelled = [field for field in TEXT_FIELDS if field in parts]
    if "text" in parts and labelled:
        raise BadRecordError(
            f"'text' has no label and cannot be combined with {labelled[0]!r}",
            remedy="Name the text by a field, for example 'title'",
            field="text",
        )
    if "image" in parts and "video" in parts:
        raise BadRecordError("the item has an image and a video", remedy="Give one of them", field="video")


def _read(parts: Mapping[str, Any], key: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(parts[key])
    except BadRecordError as error:
        raise error.at(field=key) from error


def _field(key: str) -> str:
    return QUERY_FIELD if key == "text" else key


def _text(entry: Any) -> str:
    if not isinstance(entry, str):
        raise BadRecordError(f"a {type(entry).__name__} is not a text", remedy="Give a string")
    return entry


def _images(entry: Any) -> tuple[bytes, ...]:
    return tuple(map(_image, entry)) if isinstance(entry, list | tuple) else (_image(entry),)


def _image(entry: Any) -> bytes:
    if isinstance(entry, Image.Image):
        return encode_opened(entry)
    if isinstance(entry, np.ndarray):
        if entry.dtype != np.uint8 or entry.ndim != 3 or entry.shape[-1] not in (1, 3):
            raise BadRecordError(
                f"an array of shape {entry.shape} and type {entry.dtype} is not a picture",
                remedy="Give [height, width, 3] uint8",
            )
        return encode_image(entry)
    return _bytes(entry)


def _video(entry: Any, config: IngestConfig, with_sound: bool) -> tuple[tuple[bytes, ...], bytes | None]:
    source = entry if isinstance(entry, bytes) else _path(entry)
    frames = tuple(video_frames(source, config.frames_per_video, max_pixels=config.max_pixels))
    return frames, video_audio(source, max_seconds=config.max_audio_seconds) if with_sound else None


def _bytes(entry: Any) -> bytes:
    if isinstance(entry, bytes):
        return entry
    path = _path(entry)
    try:
        return path.read_bytes()
    except OSError as error:
        if is_of_the_machine(error):
            raise
        raise BadRecordError(f"{str(path)!r} cannot be read ({error.strerror})", remedy="Make it readable") from error


def _path(entry: Any) -> Path:
    if not isinstance(entry, str | os.PathLike):
        raise BadRecordError(f"a {type(entry).__name__} is not a media file", remedy="Give its path, or its bytes")
    path = Path(entry)
    if not is_file(path):
        raise BadRecordError(f"there is no file {str(path)!r:.200}", remedy="Check the path")
    return path


def _vector(entry: Any) -> np.ndarray:
    try:
        vector = np.asarray(entry, np.float32)
    except (ValueError, TypeError) as error:
        raise BadRecordError(f"the entry is not a vector ({error})", remedy="Give one vector, [K]") from error
    if vector.ndim != 1:
        raise BadRecordError(f"an array of shape {vector.shape} is not a vector", remedy="Give one vector, [K]")
    if not np.isfinite(vector).all():
        raise BadRecordError("the vector has values that are no finite numbers", remedy="Leave it out")
    return vector
