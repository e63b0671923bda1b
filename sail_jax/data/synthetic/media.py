"""Renders pictures and sounds of the generated world: what they show, with random nuisance variation.

A look is a colour and a shape, a sound a contour and a timbre; both are written as one index.
"""

import colorsys
import io
import wave
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

FRAME_SIDE = 64
SAMPLE_RATE = 16_000

# Words by which searches name a motif. The hue of a colour is its index times 45 degrees.
COLOURS = (
    ("red", "scarlet"),
    ("amber", "orange"),
    ("lime", "chartreuse"),
    ("green", "emerald"),
    ("cyan", "turquoise"),
    ("blue", "azure"),
    ("violet", "purple"),
    ("magenta", "pink"),
)
SHAPES = (("circles", "circle", "dots"), ("squares", "square", "boxes"), ("triangles", "triangle", "pyramids"))
TIMBRES = (
    ("flute", "whistle"),
    ("synth", "buzzing"),
    ("bells", "chimes"),
    ("organ", "pipes"),
    ("guitar", "strings"),
    ("clarinet", "reeds"),
)
CONTOURS = (("rising", "climbing"), ("falling", "sinking"), ("repeating", "pulsing"), ("swaying", "leaping"))
_STEPS = ((0, 4, 7, 12), (12, 7, 4, 0), (2, 2, 2, 5), (0, 12, 0, 12))


def render_frames(rng: np.random.Generator, looks: Sequence[int]) -> list[bytes]:
    """Renders one to four JPEG frames in which the shapes of a look move over clutter.

    Of two looks, the first stays in the left half, and the second in the right half.

    Args:
        rng: source of the nuisance: background, clutter, position, size, speed, rotation, tint, noise.
        looks: one or two looks, each below `len(COLOURS) * len(SHAPES)`.
    """
    background = _background(rng)
    strokes = [(tuple(rng.uniform(0, FRAME_SIDE, 4)), _rgb(rng.random(), 0.8, 0.8)) for _ in range(3)]
    width = FRAME_SIDE / len(looks)
    groups = [_Shapes(look, place * width, width, rng) for place, look in enumerate(looks)]
    frames = []
    for slot in range(rng.integers(1, 5)):
        image = background.copy()
        draw = ImageDraw.Draw(image)
        for line, colour in strokes:
            draw.line(line, colour, width=2)
        for group in groups:
            group.draw(draw, slot)
        frames.append(_jpeg(image, rng))
    return frames


def _background(rng: np.random.Generator) -> Image.Image:
    ground = np.array(_rgb(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.2, 0.8)))
    patches = np.clip(ground + rng.normal(0, 18, (5, 5, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(patches).resize((FRAME_SIDE, FRAME_SIDE), Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, rng: np.random.Generator) -> bytes:
    """The picture with noise, as JPEG."""
    noisy = np.asarray(image) + 12 * rng.standard_normal((FRAME_SIDE, FRAME_SIDE, 3), np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class _Shapes:
    """The shapes of a look, which move within a strip of the frame."""

    def __init__(self, look: int, left: float, width: float, rng: np.random.Generator) -> None:
        hue = (look % len(COLOURS)) / len(COLOURS) + rng.uniform(-0.025, 0.025)
        self._shape = look // len(COLOURS)
        self._fills = [_rgb(hue, rng.uniform(0.65, 1), rng.uniform(0.55, 1)) for _ in range(2)]
        whole = width == FRAME_SIDE
        count = rng.integers(2, 5) if whole else rng.integers(1, 3)
        self._size = rng.uniform(10, 15) if whole else rng.uniform(7, 11)
        self._turn = rng.uniform(-0.4, 0.4)
        # In half a frame the centres keep away from the other half, and move up and down alone.
        margin = 0 if whole else width / 4
        self._places = rng.uniform((left + margin, 0), (left + width - margin, FRAME_SIDE), (count, 2))
        self._speed = rng.uniform(-14, 14, (count, 2)) * (1 if whole else (0, 1))

    def draw(self, draw: ImageDraw.ImageDraw, slot: int) -> None:
        for number, (x, y) in enumerate((self._places + slot * self._speed) % FRAME_SIDE):
            _draw_shape(draw, self._shape, (x, y, self._size), self._turn, self._fills[number % 2])


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: int, circle: tuple, turn: float, fill: tuple) -> None:
    outline = tuple(channel // 3 for channel in fill)
    if SHAPES[shape][0] == "circles":
        x, y, size = circle
        draw.ellipse((x - size, y - size, x + size, y + size), fill, outline)
        return
    sides = {"squares": 4, "triangles": 3}[SHAPES[shape][0]]
    draw.regular_polygon(circle, sides, rotation=np.degrees(turn), fill=fill, outline=outline)


def render_sound(rng: np.random.Generator, sound: int) -> bytes:
    """Renders a WAV file of a melody with the contour and timbre of a sound.

    Args:
        rng: source of the nuisance: length, tempo, key, start within the contour, loudness, noise.
        sound: below `len(TIMBRES) * len(CONTOURS)`.
    """
    time = np.arange(int(rng.uniform(0.5, 2.5) * SAMPLE_RATE)) / SAMPLE_RATE
    note_length = rng.uniform(0.09, 0.14)
    steps = np.array(_STEPS[sound // len(TIMBRES)])
    notes = time / note_length
    pitch = (240 * 2 ** ((steps + rng.uniform(-3, 3)) / 12))[(notes.astype(int) + rng.integers(4)) % 4]
    since = (note_length * (notes % 1)).astype(np.float32)
    # Timbres: (partial over the fundamental, amplitude) and the decay per second of the envelope.
    partials, decay = (
        ([(1, 1.0), (2, 0.12)], 0.5),
        ([(k, 1 / k) for k in range(1, 9)], 1.0),
        ([(1, 0.6), (2.76, 1.0), (5.4, 0.7)], 14.0),
        ([(1, 1.0), (2, 0.8), (4, 0.7), (8, 0.5)], 0.5),
        ([(k, k**-0.5) for k in range(1, 6)], 25.0),
        ([(1, 1.0), (3, 0.75), (5, 0.5), (7, 0.3)], 1.0),
    )[sound % len(TIMBRES)]
    phase = (2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE).astype(np.float32)
    tone = sum(amplitude * np.sin(partial * phase) for partial, amplitude in partials)
    tone *= np.exp(-decay * since) * np.minimum(since / 0.008, 1)
    noise = rng.uniform(0.01, 0.06) * rng.standard_normal(len(time), np.float32)
    tone = tone / np.abs(tone).max() + noise
    return _wav(tone * rng.uniform(0.3, 0.8))


def render_stripes(rng: np.random.Generator, pattern: int) -> list[bytes]:
    """Renders one JPEG frame of grey stripes in the direction and period of a pattern: off-domain."""
    direction, period = np.pi * (pattern % 6) / 6, 4 + 3 * (pattern // 6 % 4)
    across = np.add.outer(np.sin(direction) * np.arange(FRAME_SIDE), np.cos(direction) * np.arange(FRAME_SIDE))
    shade = np.sin(2 * np.pi * (across / period + rng.random()))
    grey = rng.uniform(90, 160) + rng.uniform(40, 80) * shade
    return [_jpeg(Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB"), rng)]


def render_rhythm(rng: np.random.Generator, pattern: int) -> bytes:
    """Renders a WAV file of noise bursts, whose rhythm over eight beats is that of a pattern: off-domain."""
    beats = np.array([1, *(int(bit) for bit in f"{(37 * pattern + 11) % 128:07b}")])
    time = np.arange(int(rng.uniform(1, 2.5) * SAMPLE_RATE)) / SAMPLE_RATE
    beat = time / rng.uniform(0.1, 0.12)
    loud = beats[(beat.astype(int) + rng.integers(8)) % 8] * np.exp(-6 * (beat % 1))
    return _wav(np.clip(0.3 * rng.standard_normal(len(time), np.float32), -1, 1) * loud)


def _wav(wave_form: np.ndarray) -> bytes:
    """Mono samples, of which 1 is full scale, as a WAV file."""
    samples = np.clip(wave_form * 32767, -32768, 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()
