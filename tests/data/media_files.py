"""Files of sound and video for tests."""

import io

import av
import numpy as np
import soundfile


def sine(seconds, rate, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def sound_file(samples, rate, kind="WAV", subtype=None):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def av_file(samples, rate, *, kind="mp4", codec="aac"):
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        add_sound(container, container.add_stream(codec, rate=rate, layout="mono"), samples, rate)
    return out.getvalue()


def add_sound(container, stream, samples, rate):
    for first in range(0, len(samples), 1024):
        chunk = np.ascontiguousarray(samples[first : first + 1024])[None]
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, first
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def frequency(samples, rate):
    return np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)


def make_video(path, *, frames=50, rate=10, sound=None, size=(64, 48), rotation=0):
    """A video whose frame i is a flat grey of 4 * i, with its left upper quarter white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate, stream.gop_size = 4_000_000, 12
        if rotation:
            stream.set_display_rotation(rotation)
        audio = None if sound is None else container.add_stream("aac", rate=44_100, layout="mono")
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 4 * i, np.uint8)
            pixels[: size[1] // 2, : size[0] // 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            add_sound(container, audio, sound, 44_100)
    return path
