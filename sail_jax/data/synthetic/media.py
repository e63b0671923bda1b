"""Renders pictures and sounds of the generated world: a motif with random nuisance variation.

A visual motif is a colour and a shape, a sound motif a contour and a timbre; both are written as one index.
"""

import colorsys
import io
import wave

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
SHAPES = (("circles", "dots"), ("squares", "boxes"), ("triangles", "pyramids"))
TIMBRES = (
    ("flute", "whistle"),
    ("synth", "buzzing"),
    ("bells", "chimes"),
    ("organ", "pipes"),
    ("guitar", "strings"),
    ("clarinet", "reeds"),
)
CONTOURS = (("rising", "climbing"), ("falling", "sinking"), ("repeating", "pulsing"))


def render_frames(rng: np.random.Generator, motif: int) -> list[bytes]:
    """Renders one to four JPEG frames in which the shapes of a visual motif move over clutter.

    Args:
        rng: source of the nuisance: background, clutter, position, size, speed, rotation, tint, noise.
        motif: index of the visual motif, below `len(COLOURS) * len(SHAPES)`.
    """
    hue = (motif % len(COLOURS)) / len(COLOURS) + rng.uniform(-0.025, 0.025)
    shape = motif // len(COLOURS)
    fills = [_rgb(hue, rng.uniform(0.65, 1), rng.uniform(0.55, 1)) for _ in range(2)]
    count, size, turn = rng.integers(2, 5), rng.uniform(10, 15), rng.uniform(-0.4, 0.4)
    places, speed = rng.uniform(0, FRAME_SIDE, (count, 2)), rng.uniform(-14, 14, (count, 2))
    ground = np.array(_rgb(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.2, 0.8)))
    patches = np.clip(ground + rng.normal(0, 18, (5, 5, 3)), 0, 255).astype(np.uint8)
    background = Image.fromarray(patches).resize((FRAME_SIDE, FRAME_SIDE), Image.Resampling.BICUBIC)
    strokes = [(tuple(rng.uniform(0, FRAME_SIDE, 4)), _rgb(rng.random(), 0.8, 0.8)) for _ in range(3)]
    frames = []
    for slot in range(rng.integers(1, 5)):
        image = background.copy()
        draw = ImageDraw.Draw(image)
        for line, colour in strokes:
            draw.line(line, colour, width=2)
        for number, (x, y) in enumerate((places + slot * speed) % FRAME_SIDE):
            _draw_shape(draw, shape, (x, y, size), turn, fills[number % 2])
        noisy = np.asarray(image) + rng.normal(0, 12, (FRAME_SIDE, FRAME_SIDE, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        frames.append(buffer.getvalue())
    return frames


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


def render_sound(rng: np.random.Generator, motif: int) -> bytes:
    """Renders a WAV file of a melody with the contour and timbre of a sound motif.

    Args:
        rng: source of the nuisance: length, tempo, key, start within the contour, loudness, noise.
        motif: index of the sound motif, below `len(TIMBRES) * len(CONTOURS)`.
    """
    time = np.arange(int(rng.uniform(0.5, 2.5) * SAMPLE_RATE)) / SAMPLE_RATE
    note_length = rng.uniform(0.09, 0.14)
    steps = ((0, 4, 7, 12), (12, 7, 4, 0), (2, 2, 2, 5))[motif // len(TIMBRES)]
    note = (time / note_length).astype(int) + rng.integers(4)
    pitch = 240 * 2 ** ((np.array(steps)[note % 4] + rng.uniform(-3, 3)) / 12)
    since = time % note_length
    # Timbres: (partial over the fundamental, amplitude) and the decay per second of the envelope.
    partials, decay = (
        ([(1, 1.0), (2, 0.12)], 0.5),
        ([(k, 1 / k) for k in range(1, 9)], 1.0),
        ([(1, 0.6), (2.76, 1.0), (5.4, 0.7)], 14.0),
        ([(1, 1.0), (2, 0.8), (4, 0.7), (8, 0.5)], 0.5),
        ([(k, k**-0.5) for k in range(1, 6)], 25.0),
        ([(1, 1.0), (3, 0.75), (5, 0.5), (7, 0.3)], 1.0),
    )[motif % len(TIMBRES)]
    phase = (2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE).astype(np.float32)
    tone = sum(amplitude * np.sin(partial * phase) for partial, amplitude in partials)
    tone *= np.exp(-decay * since) * np.minimum(since / 0.008, 1)
    tone = tone / np.abs(tone).max() + rng.normal(0, rng.uniform(0.01, 0.06), len(time))
    samples = np.clip(tone * rng.uniform(0.3, 0.8) * 32767, -32768, 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()
