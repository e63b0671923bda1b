"""Turns items into arrays of fixed shape: text is tokenized, media are decoded and resampled."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sail_jax.config import Config
from sail_jax.data.media.decoding import time_limit
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.media.sound import clip_audio, decode_audio
from sail_jax.data.prompts import PromptEncoder, check_fields, drop_fields, shown_fields
from sail_jax.data.tower_outputs import NO_ENCODINGS, Encodings, media_key
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item, item_key
from sail_jax.patterns import check_modalities


@dataclasses.dataclass(frozen=True)
class View:
    """The modalities and text fields of an item that the model gets, and the instruction.

    Attributes:
        modalities: a subset of "VTA".
        fields: the text fields.
        instruction: the system prompt.

    Raises:
        SailError: on unknown modalities or fields.
    """

    modalities: str
    fields: tuple[str, ...]
    instruction: str

    def __post_init__(self) -> None:
        check_modalities(self.modalities, setting="the view's modalities")
        check_fields(self.fields, setting="the view's fields")


@dataclasses.dataclass(frozen=True)
class ItemFeatures:
    """The arrays of one item.

    Attributes:
        tokens: [N] int32.
        token_types: [N] int8.
        frames: [f, H, W, 3] uint8, f frames of the item, or what a frozen vision tower makes of each.
        clips: [c, samples] int16, c clips of the item, or what a frozen audio tower makes of each.
        audio_vector: [K] float32, or None.
        id_vectors: ID embedding -> [k] float32, for the embeddings that the item has.
        item_key: 64-bit hash of the item's id (see `Batch.item_keys`); in training that of the first item with its
            content.
        text_key: 64-bit hash of the shown text (see `Batch.text_keys`).
        valid: False if the view shows nothing of the item.
        text_cut: tokens of the text beyond `prompt.max_tokens`, which are left out.
    """

    tokens: np.ndarray
    token_types: np.ndarray
    frames: np.ndarray
    clips: np.ndarray
    audio_vector: np.ndarray | None
    item_key: int
    text_key: int
    valid: bool
    id_vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    text_cut: int = 0


def blank_features(config: Config, encodings: Encodings = NO_ENCODINGS) -> ItemFeatures:
    """Features in place of an item that could not be loaded; they show nothing."""
    vit, audio, tokens = config.model.vit, config.model.audio, np.zeros(config.prompt.max_tokens, np.int32)
    frame = encodings.frames.form if encodings.frames is not None else ((vit.image_size, vit.image_size, 3), np.uint8)
    clip = encodings.clips.form if encodings.clips is not None else ((audio.clip_samples,), np.int16)
    return ItemFeatures(
        tokens=tokens,
        token_types=tokens.astype(np.int8),
        frames=np.zeros((0, *frame[0]), frame[1]),
        clips=np.zeros((0, *clip[0]), clip[1]),
        audio_vector=None,
        item_key=0,
        text_key=0,
        valid=False,
    )


def _text_key(text: str, record: str) -> int:
    try:
        return item_key(text)
    except UnicodeEncodeError as error:  # half of a surrogate pair, as in JSON or a command line in another encoding
        raise BadRecordError(
            f"the text is not valid Unicode ({error})", remedy="Write it in UTF-8", record=record
        ) from error


class FeatureExtractor:
    """Turns items into features.

    Args:
        config: the experiment; sizes of the towers, media limits.
        encoder: fills the chat template.
        encodings: outputs of frozen towers, which take the place of pixels and of sound.
    """

    def __init__(self, config: Config, encoder: PromptEncoder, encodings: Encodings = NO_ENCODINGS) -> None:
        self.vit, self.audio = config.model.vit, config.model.audio
        self.max_frames = config.model.perceiver.max_frames
        self.max_pixels, self.max_seconds = config.ingest.max_pixels, config.ingest.max_audio_seconds
        self.max_decode_seconds = config.ingest.max_decode_seconds
        self.encoder, self.encodings = encoder, encodings
        self._blank = blank_features(config, encodings)

    def __call__(
        self,
        item: Item,
        view: View,
        *,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
        teachers: Mapping[str, int] = {},
    ) -> ItemFeatures:
        """Extracts the features of an item.

        Args:
            item: the item.
            view: the modalities, text fields and instruction.
            dropout: probability with which a text field is dropped; only with `rng`.
            rng: draws the dropped fields.
            teachers: ID embedding -> width, for the embeddings to include.

        Raises:
            BadRecordError: a frame or the sound cannot be decoded, an array has the wrong size, or the text is not
                valid Unicode.
            SailError: a frozen tower has not encoded the frames or the sound.
        """
        with time_limit(self.max_decode_seconds):
            frames = self._frames(item) if "V" in view.modalities else self._blank.frames
            clips, vector = self._sound(item) if "A" in view.modalities else (self._blank.clips, None)
        whole = shown_fields(item, view.fields) if "T" in view.modalities else ""
        # The key is of the text before fields are dropped: equal content must not depend on the draw.
        text_key = _text_key(whole, item.item_id)
        text = whole if rng is None else drop_fields(item, whole, dropout, rng)
        has_audio = vector is not None or len(clips) > 0
        tokens, types, text_cut = self.encoder.encode(view.instruction, text, vision=len(frames) > 0, audio=has_audio)
        return ItemFeatures(
            tokens=tokens,
            token_types=types,
            frames=frames,
            clips=clips,
            audio_vector=vector,
            item_key=item_key(item.item_id) if item.item_id else text_key,
            text_key=text_key,
            valid=bool(text) or has_audio or len(frames) > 0,
            id_vectors=_id_vectors(item, teachers),
            text_cut=text_cut,
        )

    def blank(self) -> ItemFeatures:
        """See `blank_features`."""
        return self._blank

    def _frames(self, item: Item) -> np.ndarray:
        read = self.frame if self.encodings.frames is None else self._encoded_frame
        frames = [read(item, index) for index in self.shown(item)]
        if len(frames) < 2:
            return frames[0][None] if frames else self._blank.frames  # avoids a copy of a single picture
        return np.stack(frames)

    def shown(self, item: Item) -> list[int]:
        """Returns which frames of an item are used: at most `perceiver.max_frames`, evenly spaced."""
        count = min(len(item.frames), self.max_frames)
        return np.linspace(0, len(item.frames) - 1, count).round().astype(int).tolist()

    def _encoded_frame(self, item: Item, index: int) -> np.ndarray:
        output = self.encodings.frames.get(media_key(item.frames[index]))
        if output is None:
            self.frame(item, index)  # says what is wrong with it, if something is
            raise _not_encoded(item, f"frames[{index}]", self.encodings.frames.folder)
        return output

    def frame(self, item: Item, index: int) -> np.ndarray:
        """Returns the pixels of a frame, [H, W, 3] uint8.

        Raises:
            BadRecordError: it cannot be decoded.
        """
        try:
            return decode_image(item.frames[index], self.vit.image_size, max_pixels=self.max_pixels)
        except BadRecordError as error:
            raise error.at(record=item.item_id, field=f"frames[{index}]") from error

    def _sound(self, item: Item) -> tuple[np.ndarray, np.ndarray | None]:
        vector = item.audio_embedding
        if vector is not None:
            if vector.shape != (self.audio.projection,):
                raise BadRecordError(
                    f"the audio embedding has shape {vector.shape}, but the model takes ({self.audio.projection},)",
                    remedy="Ingest vectors of the width config.model.audio.projection, or the sound itself",
                    record=item.item_id,
                    field="audio_embedding",
                )
            return self._blank.clips, vector.astype(np.float32)
        if item.audio is None:
            return self._blank.clips, None
        return (self.clips(item) if self.encodings.clips is None else self._encoded_clips(item)), None

    def _encoded_clips(self, item: Item) -> np.ndarray:
        outputs, known = [], self.encodings.clips
        # All clips of a sound are written at once.
        while (output := known.get(media_key(item.audio, len(outputs)))) is not None:
            outputs.append(output)
        if not outputs:
            self.clips(item)  # says what is wrong with it, if something is
            raise _not_encoded(item, "audio", known.folder)
        return np.stack(outputs)

    def clips(self, item: Item) -> np.ndarray:
        """Returns the clips of an item's sound, [c, samples] int16.

        Raises:
            BadRecordError: it cannot be decoded.
        """
        try:
            samples = decode_audio(item.audio, self.audio.sample_rate, max_seconds=self.max_seconds)
        except BadRecordError as error:
            raise error.at(record=item.item_id, field="audio") from error
        return clip_audio(samples, self.audio.clip_samples, self.audio.max_clips)


def _not_encoded(item: Item, field: str, folder: Path) -> SailError:
    return SailError(
        f"{folder} holds no output for {field} of the item {item.item_id!r}, so the item is another one than in the "
        "store. Materialize the records again, or set config.data.encoding_cache_gb=0."
    )


def _id_vectors(item: Item, teachers: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The requested ID embeddings that the item has."""
    found = {name: item.id_embeddings[name] for name in teachers if name in item.id_embeddings}
    for name, vector in found.items():
        if vector.shape != (teachers[name],):
            raise BadRecordError(
                f"the ID embedding has shape {vector.shape}, but config.objective.teachers.{name} is {teachers[name]}",
                remedy="Set the width there, or ingest vectors of that width",
                record=item.item_id,
                field=f"id_embeddings.{name}",
            )
    return found
