"""The training loop: batches in, checkpoints and logs out; a run that was stopped continues where it was."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sail_jax import config as config_lib
from sail_jax.checkpoint import Checkpoints, RunDirectory, require_same_config
from sail_jax.config import Config
from sail_jax.convert.initial import InitReport, check_tokenizer
from sail_jax.convert.sources import absolute_sources
from sail_jax.data.pipeline import BatchSource, HostShare, LoadedBatch, make_iterator
from sail_jax.errors import SailError
from sail_jax.models.fusion import OmniEmbedder
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.objectives.objective import Objective
from sail_jax.parallel.mesh import data_shards, host_rows, make_mesh, shard_batch
from sail_jax.training.log import TrainingLog
from sail_jax.training.optimizer import learning_rate, make_optimizer
from sail_jax.training.state import TrainState, abstract_state, sharded_init
from sail_jax.training.step import compile_step, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a call of `train` did.

    Attributes:
        state: the state at the end.
        start: steps that were already done.
        steps: steps done at the end.
        seconds: wall-clock time of this call's steps, compilation included.
        bad_records: records that could not be loaded.
    """

    state: TrainState
    start: int
    steps: int
    seconds: float
    bad_records: int


def train(config: Config, workdir: str | Path) -> TrainResult:
    """Trains, or continues, the run in `workdir`.

    A run that was killed at any moment and is started again ends with the same parameters as an uninterrupted one: every
    draw is a function of the seed and the step, and the state is restored as it was.

    Args:
        config: the experiment.
        workdir: the run directory; see `checkpoint` for what it holds.

    Raises:
        SailError: when a setting is wrong, when `workdir` holds another run, or when too many records are bad.
    """
    run, config = RunDirectory(workdir), absolute_sources(config)
    require_same_config(run, config)
    check_widths(config.objective.matryoshka, config.model.llm.width)
    mesh = make_mesh(config.mesh)
    start, stop = host_rows(mesh, config.data.batch_size)
    shards = data_shards(mesh)
    local_shards = shards * (stop - start) // config.data.batch_size  # those whose pairs this process provides
    source = BatchSource(config, HostShare(start, stop, local_shards))
    objective = Objective(config.objective, len(config.data.datasets))
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    schedule = learning_rate(config.optimizer, config.train.steps)
    abstract = abstract_state(config, objective, optimizer, mesh)
    checkpoints = Checkpoints(run, keep=config.train.keep_checkpoints)
    try:
        state = _restore(checkpoints, abstract, source, run)
        if state is None:
            check_tokenizer(config)
            state, report = sharded_init(config, objective, optimizer, mesh)
            _say(report, run)
        if jax.process_index() == 0:  # not before: a start that failed must not bind the folder to its settings
            config_lib.save(config, run.config)
        model = OmniEmbedder(config.model, groups=shards)
        step = compile_step(make_train_step(config, model, objective, optimizer, schedule), abstract, mesh)
        return _Loop(config, run, source, checkpoints, step, mesh).run(state)
    finally:
        checkpoints.close()


def _say(report: InitReport, run: RunDirectory) -> None:
    """Keeps where the first parameters came from, and prints it where any came from a checkpoint."""
    if jax.process_index() == 0:
        run.init_report.write_text(f"{report}\n", encoding="utf-8")
        if report.loaded:
            print(report)


def _restore(
    checkpoints: Checkpoints, abstract: TrainState, source: BatchSource, run: RunDirectory
) -> TrainState | None:
    if checkpoints.latest() is None:
        return None
    params, pipeline = checkpoints.restore(_to_items(abstract))
    training = params.pop("training")
    state = TrainState(training["step"], params | {"objective": training["objective"]}, training["opt_state"])
    expected = _pipeline_state(int(state.step), source)
    if pipeline != expected:
        raise SailError(
            f"The data of the run in {run.path} has changed: it was trained on {pipeline}, now there is {expected}. "
            "Use the data it was started with, or another --workdir."
        )
    return state


def _pipeline_state(step: int, source: BatchSource) -> dict[str, Any]:
    """The state of sampler and pipeline: as every batch is a function of its step, the next step and what it draws from."""
    return {"next_step": step, "source": source.fingerprint()}


def _to_items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint: the model, the adapters where there are any, and the rest."""
    params = dict(state.params)
    training = {"step": state.step, "objective": params.pop("objective"), "opt_state": state.opt_state}
    return params | {"training": training}


class _Loop:
    """One call's pass over the remaining steps."""

    def __init__(
        self, config: Config, run: RunDirectory, source: BatchSource, checkpoints: Checkpoints, step: Any, mesh: Any
    ) -> None:
        self.config, self.source, self.checkpoints, self.step, self.mesh = config, source, checkpoints, step, mesh
        self.names = list(config.data.datasets)
        self.log = TrainingLog(run, self.names) if jax.process_index() == 0 else None
        self.bad: list[str] = []

    def run(self, state: TrainState) -> TrainResult:
        start, steps = int(state.step), self.config.train.steps
        began = time.monotonic()
        if self.log:
            self.log.begin(start)
        source = make_iterator(self.source, self.config, start)
        with _progress(start, steps) as progress, contextlib.closing(source) as batches:
            task = progress.add_task("train", total=steps, completed=start, note="compiling the first step")
            for done in range(start + 1, steps + 1):
                state, line = self._one(state, batches, done)
                progress.update(task, advance=1, **({"note": line} if line else {}))
        jax.block_until_ready(state)
        if self.log:
            self.log.close()
        return TrainResult(state, start, steps, time.monotonic() - began, len(self.bad))

    def _one(self, state: TrainState, batches: Iterator[LoadedBatch], done: int) -> tuple[TrainState, str]:
        waited = time.monotonic()
        loaded = next(batches)
        waited = time.monotonic() - waited
        arrays = shard_batch(loaded.arrays, self.mesh)
        state, metrics = self.step(state, arrays)
        line = ""
        if self.log:
            self.log.add(done, loaded, metrics, waited)
            if done % self.config.train.log_every == 0 or done == self.config.train.steps:
                line = self.log.flush(done)
        last = done == self.config.train.steps
        if last or done % self.config.train.checkpoint_every == 0:
            self._save(done, state)
        self._count_bad(loaded, done, state)
        return state, line

    def _save(self, done: int, state: TrainState) -> None:
        self.checkpoints.save(done, _to_items(state), _pipeline_state(done, self.source))

    def _count_bad(self, loaded: LoadedBatch, done: int, state: TrainState) -> None:
        self.bad += loaded.bad_records
        if len(self.bad) > self.config.data.max_bad_records:
            self._save(done, state)
            shown = "\n  ".join(self.bad[:5])
            raise SailError(
                f"{len(self.bad)} records could not be loaded, over config.data.max_bad_records "
                f"({self.config.data.max_bad_records}). The first of them:\n  {shown}\nThe state is saved at step {done}; "
                "mend the records, or raise the limit, and start again."
            )


def _progress(start: int, steps: int) -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, TextColumn("{task.fields[note]}"), disable=jax.process_index() != 0, refresh_per_second=2)
