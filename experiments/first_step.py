"""Measures the time to the first step of `train`, and of the steps after it, with an empty compilation cache.

    python experiments/first_step.py --data runs/quickstart/data

It writes experiments/results/first_step.json. Other jobs disturb processor time less than wall-clock time.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import psutil

REPO = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "first_step.json"


def measure(config: str, data: Path, steps: int) -> dict[str, float]:
    """Trains from an empty cache; returns the times of the first step, and per step after it."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "run", "metrics.jsonl")
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "compiled"))}
        settings = [f"--config.data.dir={data.resolve()}", "--config.train.log_every=1"]
        command = [sys.executable, "-m", "sail_jax", "train", "--config", config, "--workdir", str(log.parent)]
        began = time.monotonic()
        process = psutil.Popen([*command, *settings], cwd=REPO, env=environment, stdout=subprocess.DEVNULL)
        try:
            marks = []
            for line in (1, steps // 2, steps):  # by half of them, all kinds of batches have come and are compiled
                while not log.is_file() or len(log.read_bytes().splitlines()) < line:
                    if process.poll() is not None:
                        sys.exit(f"train ended with status {process.returncode}.")
                    time.sleep(0.05)
                times = process.cpu_times()
                marks.append((time.monotonic() - began, times.user + times.system, times.system))
        finally:
            process.kill()
            process.wait()
        names = ("seconds", "processor_seconds", "of_which_kernel")
        first = {f"first_step_{name}": value for name, value in zip(names, marks[0], strict=True)}
        later = [(end - begin) / (steps - steps // 2) for begin, end in zip(marks[1], marks[2], strict=True)]
        return first | {f"later_step_{name}": value for name, value in zip(names, later, strict=True)}


def main() -> None:
    """Measures the configs and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="ingested data of the quickstart")
    parser.add_argument("--configs", nargs="+", default=["quickstart", "world"])
    parser.add_argument("--steps", type=int, default=40, help="steps to train; the second half of them is averaged")
    options = parser.parse_args()
    figures: dict = {"versions": {"jax": jax.__version__, "python": platform.python_version()}}
    figures |= {"cpu_cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    for config in options.configs:
        figures[config] = measured = measure(config, options.data, options.steps)
        print(config, {name: round(value, 3) for name, value in measured.items()}, flush=True)
    figures["load_after"] = os.getloadavg()[0]
    RESULT.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
