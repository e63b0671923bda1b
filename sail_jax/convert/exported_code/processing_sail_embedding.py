"""Turns texts, images and sound into the inputs of SAIL-Embedding; needs transformers 5.23 or later."""

import dataclasses
import io
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image, ImageFile
from transformers import BatchFeature, ClapFeatureExtractor, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_sail_embedding import TokenType

try:
    import soxr
except ImportError:  # needed for sound at another sample rate than the model's alone
    soxr = None

# Shown in this order, each as a line with its label.
TEXT_FIELDS = ("title", "asr", "ocr", "nickname", "tags")
KEYS = ("text", *TEXT_FIELDS, "image", "video", "audio", "audio_embedding")

# A string that ends in one of these is the path of a file.
_SUFFIXES = {
    "image": ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2 "
    ".j2k .jpx",
    "audio": ".wav .w64 .flac .ogg .oga .opus .mp3 .mp2 .aiff .aif .aifc .au .caf .m4a .m4b .mka .weba .aac .ac3 .wma "
    ".amr .ape .wv .tta",
    "video": ".mp4 .m4v .mov .qt .mkv .webm .avi .3gp .3g2 .mpg .mpeg .mpe .vob .mts .m2ts .wmv .asf .flv .f4v .ogv "
    ".mxf",
    "other": ".heic .heif .svg .eps .psd .dng .cr2 .nef",
}
_KIND_OF = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_SLOTS = {"audio": TokenType.AUDIO, "vision": TokenType.VISION, "text": TokenType.TEXT}
_SLOT = re.compile(r"\{(\w+)\}")
_SPACE = re.compile(r"\s+")
_REPEAT = re.compile(r"(.)\1{4,}")
# A shorter rest of a long sound, as a share of a clip, says too little to be heard as a clip of its own.
_SHORTEST_REST = 0.1
# Frames of sound that are read at once.
_BLOCK = 1 << 18
# What libsndfile logs of a header that announces more bytes, or fewer, than there are; and what a header announces that
# was written before the length was known.
_ANNOUNCED = re.compile(r": (\d+) \(should be (\d+)\)")
_UNKNOWN_BYTES = (1 << 31) - (1 << 16)
# The share of the announced length that has to be there: many headers are slightly wrong.
_PRESENT = 0.9
# Full scale is 1, which sound that was mixed without a limiter passes by a little.
_LOUDEST = 10.0

# As in training: Pillow reads more formats, and some of those start external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# Formats that open as 32-bit integers where they hold 16 bits.
_16_BIT_FORMATS = ("PNG", "PPM")
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What is shown of an item: text, frames of the model's size, clips [C, samples] float32, a precomputed vector."""

    text: str
    frames: list[Image.Image]
    clips: np.ndarray
    vector: np.ndarray | None

    @property
    def has_audio(self) -> bool:
        return len(self.clips) > 0 or self.vector is not None


class SailEmbeddingProcessor(ProcessorMixin):
    """Tokenizes text, resizes and normalises images, and turns sound into clips and spectrograms.

    Args:
        image_processor: its "height" is the side of the frames, which are resized without a crop; its mean and
            deviation normalise them.
        feature_extractor: a `ClapFeatureExtractor`; truncation "rand_trunc" stands for Slaney's mel scale, "fusion" for
            HTK's.
        tokenizer: of the fusion backbone.
        template: the chat template, with {instruction}, {audio}, {vision} and {text}, each once.
        instruction: the system prompt of items where none is given.
        max_tokens: length to which text is cut, prompt and media tokens included.
        vision_tokens: positions that the frames of an item take, its perceiver's latents.
        max_frames: frames of an item that are used, evenly spaced.
        max_clips: clips of an item that are used, from the beginning.
        query_instruction: the system prompt of bare texts, which search, where none is given; None for that of items.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        feature_extractor: ClapFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        instruction: str,
        max_tokens: int,
        vision_tokens: int,
        max_frames: int,
        max_clips: int,
        query_instruction: str | None = None,
    ) -> None:
        super().__init__(image_processor, feature_extractor, tokenizer)
        slots = _SLOT.findall(template)
        if sorted(slots) != sorted([*_SLOTS, "instruction"]):
            raise ValueError(
                f"The template has the slots {slots}; it needs {', '.join(_SLOTS)} and instruction, each once."
            )
        self.template, self.instruction, self.query_instruction = template, instruction, query_instruction
        self.max_tokens, self.vision_tokens = max_tokens, vision_tokens
        self.max_frames, self.max_clips = max_frames, max_clips

    def __call__(self, items: Sequence[Any] | Any, instruction: str | None = None) -> BatchFeature:
        """Prepares a batch.

        Args:
            items: a list of items, or a single item that is no list. An item is
                - a text, shown as it is; or the path of an image or sound file: a string is one where it ends in the
                  suffix of media, and {"text": ...} is a text that ends so;
                - an image: a Pillow image, or an array [H, W, 3] uint8;
                - frames in temporal order: a list of images or image paths, or an array [F, H, W, 3] uint8;
                - sound: {"array": samples, "sampling_rate": ...}, samples [n] or [channels, n], int16 or float in
                  [-1, 1];
                - a dict of any of "text" (shown as it is) or else "title", "asr", "ocr", "nickname", "tags" (shown with
                  their labels); "image" (one or a list) or "video" (frames); "audio"; and "audio_embedding", a
                  precomputed CLAP vector that takes the place of the sound. Entries that are None count as missing.
            instruction: the system prompt; None for that of the role: of a query for a bare text, else of an item.

        Returns:
            The arguments of `SailEmbeddingModel.forward`, torch tensors; none for media that no item has.

        Raises:
            ValueError: on an item with nothing in it, an unknown key, a path without a file, or content that cannot be
                used.
        """
        items = items if isinstance(items, list | tuple) else [items]
        shown = [self._read(item) for item in items]
        asked = [self._instruction(item) if instruction is None else instruction for item in items]
        templates = {text: self._tokenize_template(text) for text in set(asked)}
        data = self._pad([self._fill_template(templates[text], item) for text, item in zip(asked, shown, strict=True)])
        frames = [(row, slot, frame) for row, item in enumerate(shown) for slot, frame in enumerate(item.frames)]
        if frames:
            rows, slots, images = zip(*frames, strict=True)
            pixels = self.image_processor(images=list(images), do_resize=False, return_tensors="pt")["pixel_values"]
            data |= {"pixel_values": pixels, "frame_item": torch.tensor(rows), "frame_slot": torch.tensor(slots)}
        clips = [(row, clip) for row, item in enumerate(shown) for clip in item.clips]
        if clips:
            rows, waves = zip(*clips, strict=True)
            data |= {"input_features": self._spectrograms(list(waves)), "clip_item": torch.tensor(rows)}
        vectors = [item.vector for item in shown]
        width = max((len(vector) for vector in vectors if vector is not None), default=0)
        if width:
            filled = [np.zeros(width, np.float32) if vector is None else vector for vector in vectors]
            data["audio_vectors"] = torch.from_numpy(np.stack(filled))
            data["has_audio_vector"] = torch.tensor([vector is not None for vector in vectors])
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the arrays that `__call__` may return."""
        media = ["pixel_values", "frame_item", "frame_slot", "input_features", "clip_item"]
        return ["input_ids", "token_types", *media, "audio_vectors", "has_audio_vector"]

    # ----------------------------------------------------------------------------------------------------------- items

    def _read(self, item: Any) -> _Shown:
        parts = _as_parts(item)
        frames = _as_frames(parts)
        if len(frames) > self.max_frames:
            chosen = np.linspace(0, len(frames) - 1, self.max_frames).round().astype(int)
            frames = [frames[i] for i in chosen]
        vector = _as_vector(parts["audio_embedding"]) if "audio_embedding" in parts else None
        heard = "audio" in parts and vector is None
        shown = _Shown(
            text=_shown_text(parts),
            frames=[_load_frame(frame, self.image_processor.size["height"]) for frame in frames],
            clips=self._load_clips(parts["audio"]) if heard else np.zeros((0, 0), np.float32),
            vector=vector,
        )
        if not (shown.text or shown.frames or shown.has_audio):
            raise ValueError(f"An item has nothing to embed: {item!r:.200}.")
        return shown

    # ------------------------------------------------------------------------------------------------------------ text

    def _instruction(self, item: Any) -> str:
        """The system prompt of an item by its role."""
        searches = self.query_instruction is not None and set(_as_parts(item)) == {"text"}
        return self.query_instruction if searches else self.instruction

    def _tokenize_template(self, instruction: str) -> list[tuple[TokenType, list[int]]]:
        """Runs of prompt tokens and empty runs that stand for what an item has, in the order of the template."""
        runs, literal = [], ""
        for i, piece in enumerate(_SLOT.split(self.template)):
            if i % 2 == 0:
                literal += piece
            elif piece == "instruction":
                literal += instruction
            else:
                runs += [(TokenType.PROMPT, self._token_ids(literal)), (_SLOTS[piece], [])]
                literal = ""
        return [*runs, (TokenType.PROMPT, self._token_ids(literal))]

    def _token_ids(self, text: str, **options: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def _fill_template(
        self, template: list[tuple[TokenType, list[int]]], item: _Shown
    ) -> tuple[list[int], list[TokenType]]:
        """Token ids of an item, 0 where its media stand, and their types."""
        media = self.vision_tokens * bool(item.frames) + item.has_audio
        fixed = media + sum(len(run) for _, run in template)
        room = self.max_tokens - fixed
        if room < 0 or (room == 0 and item.text):
            raise ValueError(
                f"The prompt with its media takes {fixed} of {self.max_tokens} tokens (max_tokens) and leaves no room "
                "for text; shorten the instruction."
            )
        # What users write must not be able to close a turn of the chat template.
        text = self._token_ids(item.text, split_special_tokens=True)[:room] if item.text else []
        content = {
            TokenType.TEXT: text,
            TokenType.VISION: [0] * self.vision_tokens * bool(item.frames),
            TokenType.AUDIO: [0] * item.has_audio,
        }
        ids, types = [], []
        for kind, run in template:
            run = content.get(kind, run)
            ids += run
            types += [kind] * len(run)
        return ids, types

    def _pad(self, rows: list[tuple[list[int], list[TokenType]]]) -> dict[str, torch.Tensor]:
        longest = max(len(ids) for ids, _ in rows)
        ids, types = np.zeros((2, len(rows), longest), np.int64)
        for i, (row_ids, row_types) in enumerate(rows):
            ids[i, : len(row_ids)], types[i, : len(row_types)] = row_ids, row_types
        return {"input_ids": torch.from_numpy(ids), "token_types": torch.from_numpy(types)}

    # ----------------------------------------------------------------------------------------------------------- sound

    def _load_clips(self, source: Any) -> np.ndarray:
        """Sound as clips of one length, [C, samples] float32.

        Sound that fits in a clip is repeated a whole number of times and padded with zeros. Longer sound is cut into
        consecutive clips; the rest at its end is repeated and padded likewise, or dropped if it is short.
        """
        samples = _load_sound(source, self.feature_extractor.sampling_rate)
        length = self._clip_samples
        whole = min(len(samples) // length, self.max_clips)
        clips = samples[: whole * length].reshape(whole, length)
        rest = samples[whole * length :]
        if whole == self.max_clips or (whole and len(rest) < _SHORTEST_REST * length):
            return clips
        repeated = np.tile(rest, length // len(rest))
        return np.concatenate([clips, np.pad(repeated, (0, length - len(repeated)))[None]])

    @property
    def _clip_samples(self) -> int:
        return round(self.feature_extractor.max_length_s * self.feature_extractor.sampling_rate)

    def _spectrograms(self, waves: list[np.ndarray]) -> torch.Tensor:
        """Clips -> [C, 1, T, mel bins] float32."""
        features = self.feature_extractor(
            waves,
            sampling_rate=self.feature_extractor.sampling_rate,
            max_length=self._clip_samples,
            return_tensors="pt",
        )["input_features"]
        return features[:, :1].float()  # for a clip of this length, the channels of "fusion" are all the same


def _as_parts(item: Any) -> dict[str, Any]:
    """An item of any kind as a dict of what it has."""
    if isinstance(item, Mapping):
        if "array" in item:
            return {"audio": item}
        unknown = [key for key in item if key not in KEYS]
        if unknown:
            raise ValueError(f"An item has unknown keys {unknown}; the keys are {', '.join(KEYS)}.")
        return {key: value for key, value in item.items() if value is not None}
    if isinstance(item, str | Path):
        return {_kind_of(item): item}
    if isinstance(item, Image.Image) or (isinstance(item, np.ndarray) and item.ndim == 3):
        return {"image": item}
    if isinstance(item, list | tuple) or (isinstance(item, np.ndarray) and item.ndim == 4):
        return {"video": item}
    raise ValueError(
        f"An item is a text, an image, a list of frames, a dict of these, or sound as {{'array': ..., 'sampling_rate': "
        f"...}}, not {type(item).__name__}."
    )


def _kind_of(text: str | Path) -> str:
    """What a string or a path stands for: "image" or "audio" where it is such a file, or "text"."""
    path = Path(text)
    kind = _KIND_OF.get(path.suffix.lower(), "")
    is_line = not path.stem[-1:].isspace() and len(str(text).splitlines()) == 1
    if isinstance(text, str) and not (kind and is_line):
        return "text"
    as_text = ", or give {'text': ...} if it is a text" * isinstance(text, str)
    _check_file(path, as_text)
    if kind not in ("image", "audio"):
        raise ValueError(
            f"{str(text)!r:.200} is no image or sound file; of a video, give the frames and sound{as_text}."
        )
    return kind


def _check_file(path: str | Path, otherwise: str = "") -> None:
    # Path.is_file would raise on a name that is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        raise ValueError(f"There is no file {str(path)!r:.200}: check the path{otherwise}.")


def _as_frames(parts: Mapping[str, Any]) -> list[Any]:
    if "image" in parts and "video" in parts:
        raise ValueError("An item has an image and a video; give one of them, with all the frames.")
    if "image" in parts:
        images = parts["image"]
        return list(images) if isinstance(images, list | tuple) else [images]
    video = parts.get("video", [])
    if not isinstance(video, list | tuple | np.ndarray):
        raise ValueError(f"A video is a list of frames or an array of them, not {type(video).__name__}.")
    return list(video)


# ---------------------------------------------------------------------------------------------------------------- text


def _shown_text(parts: Mapping[str, Any]) -> str:
    """The text of an item as the model reads it; a field that repeats another one is left out."""
    lines: dict[str, str] = {}
    for field in TEXT_FIELDS:
        text = _clean(field, parts.get(field, ""))
        if text:
            lines.setdefault(text, f"{field}: {text}")
    bare = _clean("text", parts.get("text", ""))
    if bare and lines:
        raise ValueError(f"An item has 'text', which is shown bare, and labelled fields, {[*lines.values()]!r:.200}.")
    return bare or "\n".join(lines.values())


def _clean(key: str, text: Any) -> str:
    """Normalises white space, drops control characters, and cuts runs of one character to three."""
    if not isinstance(text, str):
        raise ValueError(f"{key!r} of an item is a text, not {type(text).__name__}.")
    text = _SPACE.sub(" ", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cc")
    return _REPEAT.sub(lambda run: run.group(1) * 3, text).strip()


# -------------------------------------------------------------------------------------------------------------- images


def _load_frame(source: Any, size: int) -> Image.Image:
    """An image (a file, a Pillow image, [H, W, 3] uint8) as an upright RGB square of `size` pixels."""
    if isinstance(source, str | Path):
        _check_file(source)
        return _load_file(source, size)
    if isinstance(source, ImageFile.ImageFile) and source.tile and source.fp and source.tell() == 0:
        source.fp.seek(0)  # opened and not decoded yet: read as its file is
        return _load_file(io.BytesIO(source.fp.read()), size)
    if isinstance(source, Image.Image):
        return _to_square(source, size)
    pixels = np.asarray(source)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"An image is a file, a Pillow image or an array [height, width, 3] of uint8, not {type(source).__name__} "
            f"of {pixels.dtype} and shape {pixels.shape}."
        )
    return _to_square(Image.fromarray(pixels), size)


def _load_file(file: Any, size: int) -> Image.Image:
    with Image.open(file, formats=_FORMATS) as image:
        # A large JPEG is scaled down within its own decoder first. Training does the same with a faster decoder and
        # scaler, whose pixels differ by about a level of 255.
        image.draft(None, (size, size))
        return _to_square(image, size)


def _to_square(image: Image.Image, size: int) -> Image.Image:
    image.load()  # a damaged file is found here: reading its orientation would hide the error
    square = _to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
    turn = _turn(image)
    return square if turn is None else square.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a decoded image upright; a TIFF is upright once it is decoded, and then says so."""
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF is common beside sound pixels, and Pillow raises all sorts of errors on it
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Without transparency, which is laid on white, and with 16-bit grey scaled to 8 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_FORMATS):
        values = np.asarray(image)
        if 0 < values.max() <= 255:
            raise ValueError(
                f"An image has 16 bits, of which its values use only {values.max()} of 65,535: it would be black; "
                "convert it to 8 bits."
            )
        # Pillow's own conversion clips at 255.
        return Image.fromarray(np.round(values / np.float32(257)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = {"I": "32-bit integers", "F": "floating-point numbers"}[image.mode]
        raise ValueError(f"An image holds {kind}, whose black and white are not known; scale it to 8 bits.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


# --------------------------------------------------------------------------------------------------------------- sound


def _load_sound(source: Any, sample_rate: int) -> np.ndarray:
    """Loads sound (a file, or samples with their rate) as [n] float32 mono at `sample_rate`, rounded to 16 bits."""
    if isinstance(source, str | Path):
        samples, rate = _read_sound(source)
        mono = _checked(samples).mean(axis=1)
    elif isinstance(source, Mapping) and {"array", "sampling_rate"} <= set(source):
        mono, rate = _to_mono(np.asarray(source["array"])), source["sampling_rate"]
    else:
        raise ValueError("Sound is a file, or {'array': samples, 'sampling_rate': samples per second}.")
    if not len(mono):
        raise ValueError("The sound has no samples.")
    if rate != sample_rate:
        if soxr is None:
            raise ValueError(
                f"The sound has {rate} samples per second, the model takes {sample_rate}: run `pip install soxr`, or "
                "resample it."
            )
        mono = soxr.resample(mono, rate, sample_rate)
    # The model was trained on 16-bit sound.
    return np.clip(np.round(mono * 32768.0), -32768, 32767).astype(np.float32) / 32768.0


def _read_sound(path: str | Path) -> tuple[np.ndarray, int]:
    """The samples of a sound file [n, channels] float32, and their rate; half a file is refused, as in training."""
    _check_file(path)
    with soundfile.SoundFile(path) as file:
        for announced, present in _ANNOUNCED.findall(file.extra_info):
            if int(present) < _PRESENT * int(announced) and int(announced) < _UNKNOWN_BYTES:
                raise ValueError(f"{path} ends after {present} of {announced} bytes.")
        frames, blocks = file.frames, []
        # Read in blocks: what libsndfile misses of a file cut short, it would leave as it finds it in one large array.
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block)
        samples = np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)
        if len(samples) < _PRESENT * frames:
            raise ValueError(f"{path} ends after {len(samples)} of {frames} samples.")
        return samples, file.samplerate


def _checked(samples: np.ndarray) -> np.ndarray:
    """Float samples, which have to be numbers in [-1, 1] but for overshoots."""
    peak = np.abs(samples).max(initial=0.0)
    if not np.isfinite(peak):
        raise ValueError("The sound has samples that are no finite numbers.")
    if peak > _LOUDEST:
        raise ValueError(
            f"The sound has floating-point samples up to {peak:,.0f}, where full scale is 1: divide them by 32768 if "
            "they came from 16 bits."
        )
    return samples


def _as_vector(values: Any) -> np.ndarray:
    vector = np.asarray(values, np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"An audio embedding is one vector, not an array of shape {vector.shape}.")
    if not np.isfinite(vector).all():
        raise ValueError("An audio embedding has values that are no finite numbers.")
    return vector


def _to_mono(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == np.int16:
        samples = samples / np.float32(32768.0)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"Samples of sound are int16, or float in [-1, 1], not {samples.dtype}.")
    if samples.ndim == 2 and samples.shape[0] <= samples.shape[1]:
        samples = samples.mean(axis=0)
    if samples.ndim != 1:
        raise ValueError(f"Samples of sound are [samples] or [channels, samples], not {samples.shape}.")
    return _checked(samples.astype(np.float32))
