"""Compares exact search and residual k-means with faiss, on the same vectors and in turn.

    python -m experiments.benchmarks.search

Search: the `vectors.top_k` of drawn vectors, and faiss' flat index of inner products on the same vectors at unit
    length,
which it gets before the timing. k-means: both start from the same first centroids, run as many rounds over all rows and
then assign the rows. Residual k-means: three codebooks, from the same drawn rows at each level. Compilation is not
timed. Memory is the peak of a separate process, which draws the vectors and calls once, minus its memory before the
call; compilation counts.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import jax
import numpy as np
import psutil

from experiments.benchmarks.common import machine, versions, write
from sail_jax.config.evaluation import EvalConfig
from sail_jax.vectors.kmeans import kmeans, residual_kmeans
from sail_jax.vectors.top_k import top_k
from sail_jax.vectors.unit import unit_rows

QUERIES, TARGETS, WIDTH, RESULTS = 1000, 200_000, 1536, (100, 10)
ROWS, ROW_WIDTH, CENTROIDS, ROUNDS, LEVELS = 100_000, 256, 256, 20, 3
REPEATS = 3


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Queries and targets to search."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((rows, WIDTH), np.float32) for rows in (QUERIES, TARGETS))


def mixture() -> np.ndarray:
    """Rows to cluster: of 1,000 overlapping normal distributions."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((1000, ROW_WIDTH), np.float32)
    return centres[rng.integers(0, len(centres), ROWS)] + 2 * rng.standard_normal((ROWS, ROW_WIDTH), np.float32)


def interleaved(
    calls: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The result of each call, and its median wall and processor seconds; calls alternate after a warm-up."""
    results = {name: call() for name, call in calls.items()}
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - began, time.process_time() - cpu))
    return results, {
        name: {"seconds": statistics.median(clock), "cpu_seconds": statistics.median(cpu)}
        for name, (clock, cpu) in ((name, zip(*pairs, strict=True)) for name, pairs in times.items())
    }


def peak_of(call: Callable[[], Any]) -> int:
    """The largest growth of the process in bytes during a call."""
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before = psutil.Process().memory_info().rss
    call()
    # The kernel's mark for this program alone: `ru_maxrss` starts from that of the process which started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 - before


def search_peak(k: int) -> int:
    """Peak bytes of a search."""
    queries, targets = vectors()
    return peak_of(lambda: top_k(queries, targets, k, block=EvalConfig().corpus_block))


def kmeans_peak() -> int:
    """Peak bytes of k-means, the copy of the rows on the device among them."""
    rows = mixture()
    return peak_of(lambda: kmeans(rows, CENTROIDS, rounds=ROUNDS, seed=0))


def in_a_process(measure: Callable[..., int], *arguments: int) -> int:
    """The result of a function in a separate process, whose memory nothing else has affected."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def compare_search() -> dict[str, Any]:
    """Times of both searches, their agreement, and our memory, by number of results."""
    queries, targets = vectors()
    unit, index = unit_rows(queries), faiss.IndexFlatIP(WIDTH)
    index.add(unit_rows(targets))
    figures = {}
    for k in RESULTS:
        calls = {
            "ours": lambda k=k: top_k(queries, targets, k, block=EvalConfig().corpus_block),
            "faiss": lambda k=k: index.search(unit, k),
        }
        found, times = interleaved(calls, REPEATS)
        (rows, cosines), (their_cosines, their_rows) = found.values()
        peak = in_a_process(search_peak, k)
        figures[f"k={k}"] = times | {
            "speed_over_faiss": times["faiss"]["seconds"] / times["ours"]["seconds"],
            "speed_over_faiss_by_cpu": times["faiss"]["cpu_seconds"] / times["ours"]["cpu_seconds"],
            "same_rows": float(np.mean(rows == their_rows)),
            "largest_difference_of_cosines": float(np.abs(cosines - their_cosines).max()),
            "peak_bytes": peak,
            "peak_over_score_matrix": peak / (QUERIES * TARGETS * 4),
        }
    return figures


def faiss_kmeans(x: np.ndarray, initial: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """As `kmeans`: faiss returns centroids alone, so the rows are assigned afterwards."""
    # faiss looks at 256 rows per centroid unless told otherwise.
    clustering = faiss.Kmeans(x.shape[1], len(initial), niter=ROUNDS, max_points_per_centroid=len(x))
    clustering.train(x, init_centroids=initial)
    squares, nearest = clustering.index.search(x, 1)
    return clustering.centroids, nearest[:, 0], float(squares.sum(dtype=np.float64))


def faiss_residual(x: np.ndarray) -> list[float]:
    """The inertia of each level."""
    left, inertia = x.copy(), []
    for level in range(LEVELS):
        # What `residual_kmeans` draws too, unless rows of zeros are among it, which that passes over.
        initial = left[np.random.default_rng(level).permutation(ROWS)[:CENTROIDS]]
        centroids, nearest, square = faiss_kmeans(left, initial)
        left -= centroids[nearest]
        inertia.append(square)
    return inertia


def compare_kmeans() -> dict[str, Any]:
    """Times and inertia of one codebook and of several, and our memory."""
    x = mixture()
    initial = x[np.random.default_rng(2).choice(ROWS, CENTROIDS, replace=False)]
    one = {
        "ours": lambda: kmeans(x, CENTROIDS, rounds=ROUNDS, seed=0, initial=initial)[2],
        "faiss": lambda: faiss_kmeans(x, initial)[2],
    }
    several = {
        "ours": lambda: residual_kmeans(x, (CENTROIDS,) * LEVELS, rounds=ROUNDS, seed=0)[2],
        "faiss": lambda: faiss_residual(x),
    }
    figures = {}
    for name, calls, repeats in (("one", one, REPEATS), ("residual", several, 1)):
        inertia, times = interleaved(calls, repeats)
        figures[name] = times | {"repeats": repeats, "inertia": inertia}
    for part in figures.values():
        part["time_over_faiss"] = part["ours"]["seconds"] / part["faiss"]["seconds"]
        part["time_over_faiss_by_cpu"] = part["ours"]["cpu_seconds"] / part["faiss"]["cpu_seconds"]
        part["inertia_over_faiss"] = (np.array(part["inertia"]["ours"]) / part["inertia"]["faiss"]).tolist()
    return figures | {"peak_bytes": in_a_process(kmeans_peak)}


def readable(search: dict[str, Any], clustering: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table; a ratio is our speed over faiss' for search, our time over faiss' for k-means."""
    rows = []
    for k in RESULTS:
        part = search[f"k={k}"]
        share = f"{part['peak_bytes'] / 1e6:.0f} MB, {part['peak_over_score_matrix']:.0%} of the scores"
        what = f"exact top-{k} of {TARGETS:,} x {WIDTH:,} for {QUERIES:,} queries (speed)"
        ours = f"{part['ours']['seconds']:.2f} s, {share}"
        rows.append((what, ours, f"faiss flat {part['faiss']['seconds']:.2f} s", part["speed_over_faiss"]))
    for name, levels in (("one", ""), ("residual", f", {LEVELS} codebooks")):
        part = clustering[name]
        what = f"k-means of {ROWS:,} x {ROW_WIDTH}, k = {CENTROIDS}, {ROUNDS} rounds{levels} (time)"
        ours = f"{part['ours']['seconds']:.2f} s, inertia {np.ravel(part['inertia_over_faiss'])[-1]:.4f} of faiss'"
        rows.append((what, ours, f"faiss {part['faiss']['seconds']:.2f} s", part["time_over_faiss"]))
    return [dict(zip(("what", "ours", "peer", "ratio"), row, strict=True)) for row in rows]


def main() -> None:
    """Measures and writes."""
    search, clustering = compare_search(), compare_kmeans()
    figures = {"machine": machine(), "versions": versions("jaxlib", "numpy", "faiss-cpu"), "repeats": REPEATS}
    write("search", figures | {"search": search, "kmeans": clustering, "rows": readable(search, clustering)})


if __name__ == "__main__":
    main()
