"""The training log of a run: metrics.jsonl and TensorBoard."""

import json
import time
from typing import Any

import jax
import numpy as np

from sail_jax.data.pipeline import LoadedBatch
from sail_jax.files import commit_bytes
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.tensorboard import SummaryWriter


class TrainingLog:
    """Writes means over the logging interval, and evaluations, to metrics.jsonl and TensorBoard.

    Args:
        run: the run directory.
        datasets: names of the training sets.
    """

    def __init__(self, run: RunDirectory, datasets: list[str]) -> None:
        self.run, self.datasets = run, datasets
        self._pending: list[tuple[str, dict[str, Any], float, dict[str, int]]] = []
        self._since = time.monotonic()
        self._elapsed = 0.0

    def begin(self, start: int) -> None:
        """Opens the files, and drops the lines of steps after `start`, which are trained again."""
        kept = [line for line in read_training_log(self.run) if line["step"] <= start]
        self._elapsed = kept[-1]["elapsed_seconds"] if kept else 0.0
        commit_bytes(self.run.training_log, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self.run.training_log.open("a")
        self._board = SummaryWriter(str(self.run.tensorboard), purge_step=start + 1)

    def add(self, step: int, loaded: LoadedBatch, metrics: dict[str, jax.Array], waited: float) -> None:
        """Adds the metrics of a step; they stay on the device until the next flush."""
        name = self.datasets[loaded.datasets[0]] if len(loaded.datasets) == 1 else "mixed"
        counts = {
            "bad_records": len(loaded.bad_records),
            "media_cut": loaded.media_cut,
            "text_cut": loaded.text_cut,
            "items_cut": loaded.items_cut,
        }
        self._pending.append((name, metrics, waited, counts))

    def flush(self, step: int) -> str:
        """Writes the means since the last flush; returns a short line for the progress bar."""
        names = [name for name, *_ in self._pending]
        fetched = jax.device_get([metrics for _, metrics, *_ in self._pending])
        # Steps of different data sets may have different losses.
        keys = dict.fromkeys(key for m in fetched for key in m)
        line: dict[str, float] = {key: float(np.mean([m[key] for m in fetched if key in m])) for key in keys}
        for name in dict.fromkeys(names):
            line[f"loss/{name}"] = float(np.mean([m["loss"] for n, m in zip(names, fetched, strict=True) if n == name]))
        waits = [waited for _, _, waited, _ in self._pending]
        line["data_wait_seconds"] = float(np.mean(waits))
        for name in self._pending[0][3]:
            line[name] = sum(counts[name] for *_, counts in self._pending)
        now = time.monotonic()
        line["data_wait_share"] = sum(waits) / (now - self._since)
        line["steps_per_second"] = len(self._pending) / (now - self._since)
        self._elapsed += now - self._since
        line["elapsed_seconds"] = self._elapsed
        self._since, self._pending = now, []
        self._write(step, line)
        rate = f"{line['steps_per_second']:.2f} steps/s"
        return f"loss {line['loss']:.3f}, {rate}, {line['data_wait_share']:.0%} of the time waiting for data"

    def evaluated(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """Writes the figures of an evaluation as a separate line; its time does not count as training."""
        self._since += seconds
        finite = {name: value for name, value in figures.items() if np.isfinite(value)}
        self._write(step, finite | {"eval/seconds": seconds, "elapsed_seconds": self._elapsed})

    def _write(self, step: int, line: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for key, value in line.items():
            self._board.add_scalar(key, value, step)
        self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()
