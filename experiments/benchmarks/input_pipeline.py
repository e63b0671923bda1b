"""Measures the input pipeline: reading records, decoding with workers, scaling JPEGs, spectrograms.

    python -m experiments.benchmarks.input_pipeline

The compared functions run in turn, round after round, on one core except for the workers. Processor time is given
beside wall time, because other jobs on the machine disturb it less; the ratios of single-core figures are computed from
it.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from PIL import Image
from transformers import ClapFeatureExtractor

from experiments.benchmarks.common import machine, versions, write
from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.config.model import ClapConfig
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.data.prefetch import make_iterator
from sail_jax.data.prompts import SPECIAL_TOKENS, train_tokenizer
from sail_jax.data.store import FOLDER, ItemStoreWriter
from sail_jax.data.tables import Pair, write_pairs
from sail_jax.items import Item
from sail_jax.models.log_mel import log_mel

ITEMS, TABLE_ROWS = 5000, 65_536
RECORD_BYTES = 50_000
IMAGE_SIZE = 448
PAIRS = 32
ROUNDS, WORKER_ROUNDS = 5, 5
WORKERS = (0, 1, 2)
WARM_UP_BATCHES, TIMED_BATCHES = 16, 16

Timed = dict[str, dict[str, float]]


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and the threads and processes it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> Timed:
    """Median seconds of each function by the clock ("wall") and by the processor ("cpu"), after a call to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            if round_:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: dict(zip(("wall", "cpu"), map(statistics.median, zip(*pairs, strict=True)), strict=True))
        for name, pairs in times.items()
    }


def photo(width: int, height: int, quality: int = 85, seed: int = 0) -> bytes:
    """A JPEG whose spectrum falls like that of a photo."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / max(width, height)

    def noise(power: float, contrast: float) -> np.ndarray:
        spectrum = np.fft.rfft2(rng.normal(size=(height, width))) / frequency**power
        plane = np.fft.irfft2(spectrum, s=(height, width))
        return contrast * plane / plane.std()

    pixels = 128 + noise(1.5, 50)[..., None] + np.stack([noise(1.6, 15) for _ in range(3)], -1)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality)
    return out.getvalue()


# -------------------------------------------------------------------------------------------------------------- records


def write_data(folder: Path, items: Iterator[Item], count: int) -> Config:
    """Writes a store of items, a table that pairs them, and a tokenizer; returns the config that reads them."""
    writer = ItemStoreWriter(folder / FOLDER)
    writer.write_shard(0, items)
    writer.finalize(1)
    members = np.random.default_rng(0).integers(0, count, (TABLE_ROWS, 2)).tolist()
    pairs = ((Pair(f"item{query}", None, f"item{target}"), "train") for query, target in members)
    write_pairs(folder / "tables" / "pairs.parquet", pairs)
    train_tokenizer(["A picture."], 256 + len(SPECIAL_TOKENS), folder / "tokenizer")
    settings = config_lib.default_config()
    settings.data.update(dir=str(folder), batch_size=PAIRS)
    settings.data.datasets = {"pairs": {"table": "tables/pairs.parquet", "patterns": ("V->V",)}}
    settings.model.vit.image_size = IMAGE_SIZE
    settings.model.perceiver.max_frames = 1
    settings.prompt.max_tokens = 1280
    settings.train.steps = 100_000
    return config_lib.build(settings)


class Undecoded:
    """The batches of a `BatchSource` as the items that they are made of."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, step: int) -> list[Item]:
        store, sets = self.source._store, self.source._sets
        pairs = [sets[dataset].pair(example) for dataset, example in self.source.examples(int(step))]
        return [store.get(item_id) for pair in pairs for item_id in (pair.query_id, pair.target_id)]


def measure_records(folder: Path) -> Timed:
    """Seconds per record: store, table, order and Grain, without decoding; and ArrayRecord's random read alone."""
    rng = np.random.default_rng(0)
    items = (Item(f"item{i}", {"title": f"Picture {i}"}, (rng.bytes(RECORD_BYTES),)) for i in range(ITEMS))
    config = write_data(folder, items, ITEMS)
    source = BatchSource(config, HostShare(0, PAIRS, 1))
    reader, order = source._store._reader(0), rng.permutation(ITEMS)
    steps = ITEMS // (2 * PAIRS)

    def raw() -> None:
        collections.deque((reader.read([i]) for i in order[: 2 * PAIRS * steps].tolist()), maxlen=0)

    with one_core(), contextlib.closing(make_iterator(Undecoded(source), config, 0)) as batches:
        times = in_turn({"pipeline": functools.partial(take, batches, steps), "raw": raw}, ROUNDS)
    records = 2 * PAIRS * steps
    return {name: {clock: t / records for clock, t in by_clock.items()} for name, by_clock in times.items()}


def take(batches: Iterator[Any], number: int) -> None:
    """Takes some batches."""
    for _ in range(number):
        next(batches)


# -------------------------------------------------------------------------------------------------------------- workers


def processor_seconds() -> float:
    """Processor time that this process and its children have taken."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure_workers(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds per image of training batches by number of workers, and of decoding alone ("decode")."""
    pictures = [photo(640, 640, seed=i) for i in range(64)]
    config = write_data(folder, (Item(f"item{i}", frames=(pictures[i % 64],)) for i in range(1024)), 1024)
    source = BatchSource(config, HostShare(0, PAIRS, 1))
    images = 2 * PAIRS * TIMED_BATCHES
    times: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)

    def decode() -> None:
        for i in range(images):
            decode_image(pictures[i % 64], IMAGE_SIZE)

    def measure(name: str, run: Callable[[], None]) -> None:
        wall, cpu = time.perf_counter(), processor_seconds()
        run()
        times[name].append(((time.perf_counter() - wall) / images, (processor_seconds() - cpu) / images))

    for _ in range(WORKER_ROUNDS):
        for workers in WORKERS:
            with one_core():
                measure("decode", decode)
            settings = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
            with contextlib.closing(make_iterator(source, settings, 0)) as batches:
                take(batches, WARM_UP_BATCHES)  # until none is left that was prepared ahead, and blocks are used again
                measure(str(workers), functools.partial(take, batches, TIMED_BATCHES))
    return {
        name: dict(zip(("wall", "cpu"), map(statistics.median, zip(*pairs, strict=True)), strict=True))
        for name, pairs in times.items()
    }


# ---------------------------------------------------------------------------------------------------- JPEG and log-mel


def measure_jpeg(width: int, height: int) -> dict[str, Any]:
    """Seconds per oversized JPEG, ours and Pillow's draft, and both errors against the bicubic of all pixels."""
    data = photo(width, height)
    square = (IMAGE_SIZE, IMAGE_SIZE)

    def pillow(draft: bool = True) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            if draft:
                image.draft(None, square)
            return np.array(image.convert("RGB").resize(square, Image.Resampling.BICUBIC))

    ours = functools.partial(decode_image, data, IMAGE_SIZE)
    with one_core():
        times = in_turn({"ours": ours, "pillow": pillow}, 21)
    full = pillow(draft=False).astype(float)
    levels = {name: float(np.abs(f() - full).mean()) for name, f in (("ours", ours), ("pillow", pillow))}
    return {"bytes": len(data), "seconds": times, "mean_difference_in_levels": levels}


def measure_log_mel() -> dict[str, Any]:
    """Seconds per clip of 10 s at 48 kHz: ours, transformers', and the greatest difference in dB."""
    config = ClapConfig()
    rng = np.random.default_rng(0)
    seconds = np.arange(config.clip_samples) / config.sample_rate
    clip = 0.1 * rng.normal(size=seconds.size) + 0.3 * np.sin(2 * np.pi * 440 * seconds)
    clip = np.round(clip * 32768).clip(-32768, 32767).astype(np.int16)[None]
    extractor = ClapFeatureExtractor(frequency_min=config.f_min, truncation="rand_trunc", padding="repeatpad")
    with one_core():  # before the first use of the device, whose threads stay where they begin
        compiled = jax.jit(functools.partial(log_mel, config=config))

        def ours() -> np.ndarray:
            return np.asarray(compiled(clip))

        def theirs() -> np.ndarray:
            sound = clip[0].astype(np.float32) / 32768
            return extractor(sound, sampling_rate=config.sample_rate, return_tensors="np")["input_features"][0]

        times = in_turn({"ours": ours, "transformers": theirs}, 15)
    return {"seconds": times, "greatest_difference_in_db": float(np.abs(ours() - theirs()).max())}


# -------------------------------------------------------------------------------------------------------------- figures


def rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures as they are read."""
    records, workers, mel = figures["records"], figures["workers"], figures["log_mel"]
    pure = workers["decode"]
    table = [
        {
            "what": f"records of {RECORD_BYTES // 1000} KB, undecoded, through store, table and Grain; "
            "peer: ArrayRecord's read alone",
            "ours": f"{1e6 * records['pipeline']['cpu']:.0f} us",
            "peer": f"{1e6 * records['raw']['cpu']:.0f} us",
            "ratio": records["raw"]["cpu"] / records["pipeline"]["cpu"],
        }
    ]
    for count in WORKERS:
        ours = workers[str(count)]
        table.append(
            {
                "what": f"images per second, {count} workers; peer: decoding alone on one core",
                "ours": f"{1 / ours['wall']:.0f} ({1 / ours['cpu']:.0f} per second of processor time)",
                "peer": f"{1 / pure['wall']:.0f} ({1 / pure['cpu']:.0f})",
                "ratio": pure["wall"] / ours["wall"],
            }
        )
    for size, jpeg in figures["jpeg"].items():
        times = jpeg["seconds"]
        table.append(
            {
                "what": f"JPEG of {size} px to {IMAGE_SIZE} px, one core; peer: Pillow, draft and bicubic",
                "ours": f"{1 / times['ours']['cpu']:.0f} per second",
                "peer": f"{1 / times['pillow']['cpu']:.0f} per second",
                "ratio": times["pillow"]["cpu"] / times["ours"]["cpu"],
            }
        )
    times = mel["seconds"]
    table.append(
        {
            "what": f"log-mel of 10 s at 48 kHz, one core, {mel['greatest_difference_in_db']:.1e} dB apart; "
            "peer: ClapFeatureExtractor",
            "ours": f"{1e3 * times['ours']['cpu']:.1f} ms",
            "peer": f"{1e3 * times['transformers']['cpu']:.1f} ms",
            "ratio": times["transformers"]["cpu"] / times["ours"]["cpu"],
        }
    )
    return table


def main() -> None:
    """Measures and writes."""
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, Any] = {
            "records": measure_records(Path(folder) / "records"),
            "workers": measure_workers(Path(folder) / "pictures"),
        }
    figures["jpeg"] = {
        f"{width} x {height}": measure_jpeg(width, height) for width, height in ((1344, 1344), (1280, 720))
    }
    figures["log_mel"] = measure_log_mel()
    packages = ("grain", "array-record", "numpy", "pillow", "simplejpeg", "av", "transformers")
    write(
        "input_pipeline",
        {"machine": machine(), "versions": versions(*packages), "rows": rows(figures), **figures},
    )


if __name__ == "__main__":
    main()
