"""Helpers of the benchmarks: a description of the machine, medians, reading and writing figures."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"
# Other jobs disturb timings, so the load before the measurement is recorded too.
_LOAD_BEFORE = os.getloadavg()


def machine() -> dict[str, Any]:
    """Cores, kinds of devices, and the load average when the script began and now."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "devices": [device.device_kind for device in jax.devices()],
        "load_average_before": _LOAD_BEFORE,
        "load_average_after": os.getloadavg(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, jax and some packages."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("jax", *packages)
    }


def median_of(function: Callable[[], Any], repeats: int) -> float:
    """Median time of a call in seconds, after a warm-up call; waits for the results."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def read(name: str) -> dict[str, Any]:
    """Reads the figures of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, figures: dict[str, Any]) -> None:
    """Prints figures and writes them to experiments/results/benchmarks/NAME.json."""
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
