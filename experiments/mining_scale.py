"""Measures hard negative mining on many queries and targets, and a search with faiss for comparison.

    python experiments/mining_scale.py --size 200000

The vectors are drawn: clusters of ten queries and ten targets, two listed positives per query, so that most targets of
a cluster are unlisted positives. Mining scores all pairs twice (for lambda*, then for the negatives). faiss is timed on
searches for as many neighbours by some of the queries, and its time is scaled to all; it does not count scores, exclude
known pairs, or cut at a threshold. It is timed before and after mining. Processor time is given beside wall time,
because others may use the machine. The memory is the peak of the mining process, minus its memory before mining.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import faiss
import jax
import numpy as np
import psutil

from sail_jax.config.curation import MiningConfig
from sail_jax.curation.mining.arrays import Miner, pair_codes
from sail_jax.vectors.unit import unit_rows

CLUSTER = 10
SPREAD = 0.55
FAISS_QUERIES = 4096
PACKAGES = ("jax", "jaxlib", "numpy", "faiss-cpu")


def draw(size: int, width: int, seed: int, folder: pathlib.Path) -> np.ndarray:
    """Writes queries.npy and targets.npy, [size, width] float32 each, and returns the listed pairs, [2 * size, 2]."""
    rng = np.random.default_rng(seed)
    topics = -(-size // CLUSTER)
    centres = unit_rows(rng.normal(size=(topics, width)).astype(np.float32))
    members = [rng.permutation(size) for _ in range(2)]  # of a cluster, at any position
    for name, order in zip(("queries", "targets"), members, strict=True):
        noise = rng.normal(size=(size, width)).astype(np.float32) * np.float32(SPREAD / np.sqrt(width))
        vectors = np.empty((size, width), np.float32)
        vectors[order] = centres[np.arange(size) // CLUSTER] + noise
        np.save(folder / f"{name}.npy", vectors)
    offsets = rng.integers(0, CLUSTER, (2, size))
    first = np.arange(size) // CLUSTER * CLUSTER
    return np.concatenate([np.stack([members[0], members[1][np.minimum(first + o, size - 1)]], 1) for o in offsets])


def measure_mining(folder: pathlib.Path, pairs: np.ndarray, settings: MiningConfig) -> dict:
    """Measures time and memory of mining."""
    queries, targets = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("queries", "targets"))
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before, began, cpu = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
    positives = pair_codes(*pairs.T, len(targets))
    miner = Miner(queries, targets, positives, np.zeros(0, np.int64), settings, "mining")
    counted = time.perf_counter()
    found, filled = 0, 0
    for _, rows, _ in miner.negatives():
        found, filled = found + int((rows >= 0).sum()), filled + int((rows >= 0).all(axis=1).sum())
    ended = time.perf_counter()
    threshold = dataclasses.asdict(miner.threshold)
    del threshold["curve"]
    scores = len(queries) * len(targets)
    return {
        "seconds": ended - began,
        "cpu_seconds": time.process_time() - cpu,
        "seconds_to_threshold": counted - began,
        "seconds_to_negatives": ended - counted,
        "nanoseconds_per_score": (ended - began) / scores * 1e9,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rss_bytes_before": before,
        "positives": miner.positives,
        "negatives_found": found,
        "queries_with_all_negatives": filled,
        "threshold": threshold,
    }


def measure_faiss(folder: pathlib.Path, k: int) -> dict:
    """Measures a search for the nearest targets of some queries."""
    queries, targets = (unit_rows(np.load(folder / f"{name}.npy")) for name in ("queries", "targets"))
    index = faiss.IndexFlatIP(targets.shape[1])
    index.add(targets)
    some = queries[:FAISS_QUERIES]
    index.search(some[:64], k)
    began, cpu = time.perf_counter(), time.process_time()
    index.search(some, k)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "threads": faiss.omp_get_max_threads(),
        "queries": len(some),
        "seconds": seconds,
        "seconds_scaled_to_all_queries": seconds * len(queries) / len(some),
        "cpu_seconds_scaled_to_all_queries": cpu * len(queries) / len(some),
    }


def main() -> None:
    """Parses the command line, draws, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=200_000, help="queries, and targets")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("experiments/results/mining_scale.json"))
    options = parser.parse_args()
    settings = MiningConfig()
    figures = {"queries": options.size, "targets": options.size, "width": options.width, "seed": options.seed}
    figures["settings"] = dataclasses.asdict(settings)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        pairs = draw(options.size, options.width, options.seed, folder)
        # In separate processes, whose memory nothing else has affected.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            for name, measure, arguments in (
                ("faiss_before", measure_faiss, (settings.per_query,)),
                ("mining", measure_mining, (pairs, settings)),
                ("faiss_after", measure_faiss, (settings.per_query,)),
            ):
                load = os.getloadavg()
                figures[name] = pool.submit(measure, folder, *arguments).result()
                figures[name] |= {"load_before": load, "load_after": os.getloadavg()}
    figures |= {
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
