"""The training log of a run: metrics.jsonl, TensorBoard and other trackers."""

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sail_jax.data.pipeline import LoadedBatch
from sail_jax.errors import DiskError
from sail_jax.files import commit_bytes
from sail_jax.runs.cuts import CUTS
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.sharding.device_memory import peak_memory
from sail_jax.training.time_spent import ACTIVITIES, TimeSpent
from sail_jax.training.trackers.tensorboard import TensorBoard
from sail_jax.training.trackers.tracker import Sink
from sail_jax.training.work import Work

# What a batch may lack, and then is NaN: it counts only in the steps that have it.
_NOT_IN_ALL = re.compile(r"^scale/|(^|/)(mean_norm|effective_dimension)$")

# Seconds after which the log of a run in a bucket is uploaded again.
_UPLOAD_EVERY = 60.0


def cuts_of(loaded: LoadedBatch) -> dict[str, int]:
    """Returns what did not fit into a batch, by its name in the log."""
    return {name: getattr(loaded, name) for name in CUTS}


class TrainingLog:
    """Writes means over the logging interval, and evaluations, to metrics.jsonl, TensorBoard and trackers.

    It drops the lines of steps after `start`, which are trained again.

    Args:
        run: the run directory.
        datasets: names of the training sets.
        start: steps done.
        spent: the time spent by this process; the time of the kept lines is added to it.
        trackers: what else takes the lines.
    """

    def __init__(
        self, run: RunDirectory, datasets: list[str], start: int, spent: TimeSpent, trackers: Sequence[Sink] = ()
    ) -> None:
        self._datasets, self._spent = datasets, spent
        self._pending: list[tuple[str, dict[str, Any], dict[str, int], Work]] = []
        kept = [line for line in read_training_log(run) if line["step"] <= start]
        earlier = kept[-1] if kept else {}
        self._written = {name: earlier.get(f"seconds/{name}", 0.0) for name in ("train", *ACTIVITIES)}
        spent.resume(self._written)
        commit_bytes(run.training_log, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = run.training_log.open("a")
        self._sinks = [TensorBoard(run.tensorboard, start), *trackers]
        self._run, self._uploaded = run, time.monotonic()

    def add(self, loaded: LoadedBatch, metrics: dict[str, jax.Array], work: Work) -> None:
        """Adds the metrics of a step; they stay on the device until the next flush."""
        name = self._datasets[loaded.datasets[0]] if len(loaded.datasets) == 1 else "mixed"
        counts = {"bad_records": len(loaded.bad_records), **cuts_of(loaded)}
        counts |= {name: getattr(loaded, name) for name in ("media_shared", "media_cached")}
        self._pending.append((name, metrics, counts, work))

    def flush(self, step: int) -> str:
        """Writes the means since the last flush; returns a short line to be shown."""
        names, metrics, counts, work = zip(*self._pending, strict=True)
        fetched = jax.device_get(list(metrics))
        nonfinite = [int(m.pop("nonfinite")) for m in fetched]
        # A step without an update says nothing about the model, unless there are no others.
        steps = list(zip(names, fetched, strict=True))
        steps = [step for step, bad in zip(steps, nonfinite, strict=True) if not bad] or steps
        # Steps of different data sets may have different losses.
        keys = dict.fromkeys(key for _, m in steps for key in m)
        means = {key: _mean(key, [m[key] for _, m in steps if key in m]) for key in keys}
        line: dict[str, float] = {key: value for key, value in means.items() if value is not None}
        for name in dict.fromkeys(name for name, _ in steps):
            line[f"loss/{name}"] = float(np.mean([m["loss"] for n, m in steps if n == name]))
        line["nonfinite"] = sum(nonfinite)
        for name in counts[0]:
            line[name] = sum(of_step[name] for of_step in counts)
        line |= self._cost(work)
        self._pending = []
        self._write(step, line)
        notes = [
            f"loss {line['loss']:.3f}",
            f"{line['steps_per_second']:.2f} steps/s",
            f"{line['items_per_second']:,.0f} items/s",
            *([f"{line['peak_memory_bytes'] / 2**30:.1f} GiB"] if "peak_memory_bytes" in line else []),
            *([f"MFU {line['mfu']:.0%}"] if "mfu" in line else []),
            f"{line['share/data']:.0%} waiting for data",
        ]
        return ", ".join(notes)

    def _cost(self, work: Sequence[Work]) -> dict[str, float]:
        """Returns what some steps cost, since the last call: rates, shares of the time, memory."""
        totals = self._spent.totals()
        since = {name: seconds - self._written[name] for name, seconds in totals.items()}
        self._written = totals
        # `start`, `compile`, `evaluate` and `mine` say nothing about the rate of steps.
        stepping = since["train"] + since["data"] + since["save"]
        line = {
            "steps_per_second": len(work) / stepping,
            "items_per_second": sum(step.items for step in work) / stepping,
            "tokens_per_second": sum(step.tokens for step in work) / stepping,
        }
        ideal = [step.ideal_seconds for step in work]
        if None not in ideal:
            line["mfu"] = sum(ideal) / stepping
        if (peak := peak_memory()) is not None:
            line["peak_memory_bytes"] = peak
        wall = sum(since.values())
        line |= {f"share/{name}": since[name] / wall for name in ACTIVITIES}
        return line | self._sums(totals)

    def _sums(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Returns the times of the whole run."""
        line = {f"seconds/{name}": seconds for name, seconds in totals.items()}
        line["elapsed_seconds"] = sum(totals[name] for name in ("train", "data", "compile", "save"))
        return line | {"goodput": totals["train"] / sum(totals.values())}

    def evaluated(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """Writes the figures of an evaluation as a separate line."""
        finite = {name: value for name, value in figures.items() if np.isfinite(value)}
        self._write(step, finite | {"eval/seconds": seconds} | self._sums(self._spent.totals()))

    def _write(self, step: int, line: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.log(step, line)
        if time.monotonic() > self._uploaded + _UPLOAD_EVERY:
            self._uploaded = time.monotonic()
            with contextlib.suppress(DiskError):  # the next upload, and that of a checkpoint, has these lines too
                self._run.put_logs()

    def close(self) -> None:
        """Closes the files; waits for the trackers, for a while."""
        self._file.close()
        for sink in self._sinks:
            sink.finish()
        self._run.put_logs()


def _mean(key: str, values: Sequence[np.ndarray]) -> float | None:
    """Returns the mean of a metric over steps; None where no step has it. NaN in a loss stays NaN."""
    if _NOT_IN_ALL.search(key):
        values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else None
