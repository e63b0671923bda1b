"""The training loop: reads batches, writes checkpoints and the training log, and resumes runs."""

import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.convert.init_from import InitReport, check_tokenizer
from sail_jax.convert.sources import absolute_sources
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.data.pipeline import BatchSource, LoadedBatch
from sail_jax.data.prefetch import make_iterator
from sail_jax.data.tower_outputs import NO_ENCODINGS, Encodings
from sail_jax.errors import SailError
from sail_jax.evaluation.tasks import task_notes
from sail_jax.files import commit_bytes
from sail_jax.objectives.matching import Recipe
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.progress import NameColumn, Progress
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory, require_same_config
from sail_jax.runs.ownership import owning
from sail_jax.runs.uploads import require_one_mirror
from sail_jax.sharding.device_memory import device_memory, is_out_of_memory
from sail_jax.sharding.mesh import data_shards, make_mesh, wiring_note
from sail_jax.training.grad_cache import CachedStep
from sail_jax.training.head_fit import fit_heads, fits_heads
from sail_jax.training.interval_evaluation import IntervalEvaluation
from sail_jax.training.memory import out_of_memory
from sail_jax.training.nonfinite import NonfiniteSteps
from sail_jax.training.profile import StepProfile
from sail_jax.training.setup import TrainSetup, host_share, restart_optimizer, sharded_init
from sail_jax.training.stage_mining import check_mined, mine_for_stage
from sail_jax.training.stages import Stage, plan, without_mined
from sail_jax.training.state import TrainState, averaged
from sail_jax.training.step import WholeStep
from sail_jax.training.stop_signals import StopSignals
from sail_jax.training.time_spent import TimeSpent
from sail_jax.training.tower_cache import cache_note, cached_encodings
from sail_jax.training.trackers.of_run import Trackers, require_trackers
from sail_jax.training.training_log import TrainingLog, cuts_of
from sail_jax.training.work import WorkCounter

Step = WholeStep | CachedStep
# Kinds of batches that come within so many steps are compiled before they come.
_SOON = 1000


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a call of `train`.

    Attributes:
        state: the state at the end.
        start: steps done before the call.
        steps: steps done at the end.
        seconds: wall-clock time of this call's stages, with compilation and mining.
        bad_records: records that could not be loaded.
        cuts: what did not fit into the batches of this process; see `runs.cuts.say_cuts`.
    """

    state: TrainState
    start: int
    steps: int
    seconds: float
    bad_records: int
    cuts: Mapping[str, int]


def train(config: Config, workdir: str | Path, *, profile: tuple[int, int] | None = None) -> TrainResult:
    """Trains a model in `workdir`, or resumes the run there.

    A run that is killed at any moment and resumed ends with the same parameters as an uninterrupted one: every draw is
    a function of the seed and the step, and the state is restored.

    Args:
        config: the experiment.
        workdir: the run directory; `RunDirectory` names its files.
        profile: first and last step to trace; see `profile.StepProfile`.

    Raises:
        OwnedError: another process trains in `workdir`.
        SailError: a setting is wrong, `workdir` holds another run, too many records are bad, a device runs out of
            memory, or the steps to trace are not still to be trained.
        Stopped: this or another process of the run got SIGTERM, SIGINT or SIGUSR1; the state is saved.
    """
    with contextlib.closing(TimeSpent()) as spent, StopSignals() as stop, contextlib.ExitStack() as held:
        with spent.on("start"):
            run = _prepare(config, RunDirectory(workdir), held, spent, stop)
        try:
            return run.train(profile)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(error, run.setup.abstract, device_memory(jax.local_devices()[0])) from error
        finally:
            with stop.between_steps():  # a signal must not break off the save
                run.checkpoints.close()


def _prepare(
    config: Config, run: RunDirectory, held: contextlib.ExitStack, spent: TimeSpent, stop: StopSignals
) -> "_Run":
    require_one_mirror(run)
    config = absolute_sources(config)
    grown = require_same_config(run, config)
    check_widths(config.objective.matryoshka, config.model.llm.width)
    require_trackers(config.train.trackers)
    stages = plan(config, run.mined)
    mesh = make_mesh(config.mesh)
    growth = grown and f"The run grows: {', '.join(grown)}. Its learning rate follows the new steps from here on."
    setup = TrainSetup.of(config, mesh)
    if jax.process_index() == 0:
        for note in filter(None, (wiring_note(mesh), growth, cache_note(setup))):
            print(note)
    if not run.checkpoints.is_dir():
        # A mistake in a late stage fails before the long work begins.
        notes = [_make_source(without_mined(stage), mesh).notes for stage in stages]
        if jax.process_index() == 0:
            for note in dict.fromkeys(itertools.chain(*notes, task_notes(config))):
                print(note)
    held.enter_context(owning(run))
    ends = [stage.end for stage in stages]
    checkpoints = Checkpoints(run, keep=config.train.keep_checkpoints, always=ends)
    return _Run(setup, run, stages, checkpoints, spent, stop)


class _Run:
    """Runs the remaining stages of a run, as one call of `train`."""

    def __init__(
        self,
        setup: TrainSetup,
        run: RunDirectory,
        stages: list[Stage],
        checkpoints: Checkpoints,
        spent: TimeSpent,
        stop: StopSignals,
    ) -> None:
        self.setup, self.run, self.stages, self.checkpoints = setup, run, stages, checkpoints
        self.spent, self.stop = spent, stop
        config = setup.config
        self.evaluation = IntervalEvaluation(config, run, setup.mesh) if config.train.evaluate_every else None
        self.step = make_step(setup)
        self.bad: list[str] = []  # records that could not be loaded, of all stages
        self.cuts: Counter[str] = Counter()
        self.nonfinite = NonfiniteSteps(run)
        self.log: TrainingLog | None = None
        self.profile: StepProfile | None = None
        self.encodings = NO_ENCODINGS

    def train(self, profile: tuple[int, int] | None) -> TrainResult:
        done, steps = self.checkpoints.latest() or 0, self.stages[-1].end
        remaining = [stage for stage in self.stages if done < stage.end] or self.stages[-1:]
        if profile:
            self.profile = StepProfile(self.run, *profile, done=done, steps=steps)
        if done < steps and jax.process_index() == 0:
            print(self.setup.hardware())
        with self.spent.on("start"):
            state, pipeline = self._restore()
            if done < steps:
                self.encodings = cached_encodings(self.setup, state.params, self.run)
        start, began = int(state.step), time.monotonic()
        try:
            for stage in remaining:
                state, pipeline = self._stage(stage, state, pipeline), None
        finally:
            if self.profile:
                self.profile.close()
            if self.log:
                self.log.close()
        return TrainResult(state, start, int(state.step), time.monotonic() - began, len(self.bad), self.cuts)

    def _restore(self) -> tuple[TrainState, dict[str, Any] | None]:
        """Returns the state to continue from, and the state of the input pipeline that was saved with it."""
        if self.checkpoints.latest() is None:
            check_tokenizer(self.setup.config)
            state, report = sharded_init(self.setup)
            _write_init_report(report, self.run)
            return state, None
        params, pipeline = self.checkpoints.restore(_to_items(self.setup.abstract))
        self.nonfinite.count = pipeline.pop("nonfinite", 0)
        training, ema = params.pop("training"), params.pop("ema", None)
        params |= {"objective": training["objective"]}
        return TrainState(training["step"], params, training["opt_state"], ema), pipeline

    def _stage(self, stage: Stage, state: TrainState, pipeline: dict[str, Any] | None) -> TrainState:
        """Trains the remaining steps of a stage."""
        self.stop.check()
        done = int(state.step)
        if done == stage.begin:
            with self.spent.on("mine"):
                mine_for_stage(stage, state.params, self.run, self.setup.mesh)
            if done > 0:
                state = restart_optimizer(self.setup, state)
        else:
            check_mined(stage, self.run)
        with self.spent.on("start"):
            source = _make_source(stage, self.setup.mesh, self.encodings)
        if done > stage.begin:
            _check_pipeline(pipeline, _pipeline_state(done, stage, source), self.run)
        if jax.process_index() == 0:  # only now: a failed start must not bind the folder to its settings
            self.run.save_config(self.setup.config)
            source.keep_tokenizer(self.run.tokenizer)
            if self.log is None:
                trackers = Trackers(self.setup.config, self.run, done)
                self.log = TrainingLog(self.run, list(stage.config.data.datasets), done, self.spent, [trackers])
        setup = self.setup.for_stage(stage)
        if done == stage.begin and fits_heads(self.stages, stage):
            with self.spent.on("start"):
                state = fit_heads(setup, stage, source, state)
        return _Loop(self, stage, source, self.step.for_stage(setup), setup).run(state)


def make_step(setup: TrainSetup) -> Step:
    """Returns the step on whole batches or, with micro-batches, on batches in parts."""
    return CachedStep(setup) if setup.config.train.micro_batches > 1 else WholeStep(setup)


def _make_source(stage: Stage, mesh: Mesh, encodings: Encodings = NO_ENCODINGS) -> BatchSource:
    """Returns the batches of a stage, as far as this process prepares them."""
    share = host_share(stage.config, mesh)
    return BatchSource(stage.config, share, begin=stage.begin, drawn=stage.drawn, encodings=encodings)


def _write_init_report(report: InitReport, run: RunDirectory) -> None:
    """Writes where the initial parameters came from; prints it if any came from a checkpoint."""
    if jax.process_index() == 0:
        commit_bytes(run.init_report, f"{report}\n".encode())
        if report.loaded:
            print(report)


def _check_pipeline(saved: dict[str, Any], expected: dict[str, Any], run: RunDirectory) -> None:
    if saved == expected:
        return
    was, now = saved.pop("source") | saved, expected.pop("source") | expected
    changed = "; ".join(
        f"{key}: was {was.get(key)!r}, is {now.get(key)!r}" for key in was | now if was.get(key) != now.get(key)
    )
    raise SailError(
        f"The data of the run in {run.path} has changed: {changed}. Use the data it was started with, or train into "
        "another --workdir. What is new can be embedded by this model, into another --output of `embed`."
    )


def _pipeline_state(step: int, stage: Stage, source: BatchSource) -> dict[str, Any]:
    """Returns the state of the pipeline: the next step and the source, since a batch is a function of its step."""
    return {"next_step": step, "stage": stage.name, "source": source.fingerprint()}


def _to_items(state: TrainState) -> dict[str, Any]:
    """Returns the items of a checkpoint: the model, the training state and, if any, adapters and running average."""
    params = dict(state.params)
    training = {"step": state.step, "objective": params.pop("objective"), "opt_state": state.opt_state}
    average = {} if state.ema is None else {"ema": state.ema}
    return params | {"training": training} | average


class _Loop:
    """Runs the remaining steps of a stage."""

    def __init__(self, run: _Run, stage: Stage, source: BatchSource, step: Step, setup: TrainSetup) -> None:
        self.stage, self.config, self.source, self.checkpoints = stage, stage.config, source, run.checkpoints
        self.step, self.objective, self.evaluation, self.bad = step, setup.objective, run.evaluation, run.bad
        self.log, self.spent, self.profile, self.cuts = run.log, run.spent, run.profile, run.cuts
        self.mesh, self.stop, self.end, self.nonfinite = setup.mesh, run.stop, run.stages[-1].end, run.nonfinite
        self._running: jax.Array | None = None  # a result of the last step
        counted = stage.config, setup.mesh, setup.abstract.params, run.spent, source.encodings
        self.work = WorkCounter(*counted) if run.log else None

    def run(self, state: TrainState) -> TrainState:
        start, steps = int(state.step), self.config.train.steps
        source = make_iterator(self.source, self.config, start)
        with _progress() as progress, contextlib.closing(source) as batches, self.stop.between_steps():
            name = f"train {self.stage.name}".strip()
            task = progress.add_task(name, total=steps, completed=start)
            if start < steps:
                progress.say(task, "compiling the first step")
            prefetch = _Prefetch(batches, self.step)
            self._compile_ahead(start)
            for done in range(start + 1, steps + 1):
                state, line = self._train_step(state, prefetch, done, progress)
                progress.advance(task)
                if line:
                    progress.say(task, line)
        return jax.block_until_ready(state)

    def _compile_ahead(self, start: int) -> None:
        """Lets other threads compile the step for all kinds of batches that come soon, but the first.

        Not on GPUs, where a compiler tries out kernels on the devices, nor where processes have to compile in step.
        """
        if not isinstance(self.step, WholeStep) or jax.process_count() > 1 or jax.default_backend() == "gpu":
            return
        soon = range(start, min(self.config.train.steps, start + _SOON))
        names, shards = list(self.config.data.datasets), data_shards(self.mesh)

        def kind(datasets: tuple[int, ...]) -> tuple[Batch, Recipe]:
            recipe = self.objective.recipe(datasets, self.source.token_room(datasets))
            shapes = batch_shapes(self.config, [names[at] for at in datasets], shards, self.source.encodings)
            return shapes, recipe

        kinds = [kind(datasets) for datasets in dict.fromkeys(self.source.datasets(step) for step in soon)]
        if kinds:
            self.step.compile_ahead(kinds[0], kinds[1:])

    def _train_step(
        self, state: TrainState, prefetch: "_Prefetch", done: int, progress: Progress
    ) -> tuple[TrainState, str]:
        loaded, batch, waited = prefetch.take()
        self.spent.add("data", waited)
        recipe = self.objective.recipe(loaded.datasets, loaded.room)
        with self.profile.step(done) if self.profile else contextlib.nullcontext():
            state, metrics = self.step(state, batch, recipe)
        # The devices have one step waiting for them and no more, so that a signal is heeded soon.
        jax.block_until_ready(self._running)
        self._running = metrics["loss"]
        stops = self.stop.reached(done)
        last = stops or done == self.config.train.steps
        if done < self.config.train.steps:
            prefetch.fetch(metrics["loss"])
        if self.profile:
            self.profile.stop_after(done, metrics)
        line = ""
        self.nonfinite.add(done, metrics["nonfinite"])
        # The first step is logged by itself: it shows the model as it was drawn.
        due = done == 1 or last or done % self.config.train.log_every == 0
        if self.log:
            self.log.add(loaded, metrics, self.work(loaded, recipe))
            line = self.log.flush(done) if due else ""
        if due:
            self.nonfinite.check(self.source, self.config)
        if self.evaluation and self.evaluation.is_due(done):  # before the checkpoint: every saved state is evaluated
            self._evaluate(done, state, progress)
        if last or done % self.config.train.checkpoint_every == 0:
            self._save(done, state)
        self.cuts.update(cuts_of(loaded))
        self._count_bad(loaded, done, state)
        if stops and done < self.end:
            raise self.stop.stopped(f"the state is saved at step {done}, and the same command goes on from there.")
        return state, line

    def _evaluate(self, done: int, state: TrainState, progress: Progress) -> None:
        progress.stop()  # embedding shows its own progress bar
        jax.block_until_ready(state)
        began = time.monotonic()
        with self.spent.on("evaluate"):
            figures = self.evaluation(averaged(state) if self.config.eval.ema else state.params)
        if self.log:
            self.log.evaluated(done, figures, time.monotonic() - began)
        progress.start()

    def _save(self, done: int, state: TrainState) -> None:
        jax.block_until_ready(state)  # the rest of the step is no part of saving it
        self.nonfinite.check(self.source, self.config)
        passed = {"nonfinite": self.nonfinite.count} if self.nonfinite.count else {}
        with self.spent.on("save"):
            pipeline = _pipeline_state(done, self.stage, self.source) | passed
            self.checkpoints.save(done, _to_items(state), pipeline)

    def _count_bad(self, loaded: LoadedBatch, done: int, state: TrainState) -> None:
        self.bad += loaded.bad_records
        if len(self.bad) > self.config.data.max_bad_records:
            self._save(done, state)
            shown = "\n  ".join(self.bad[:5])
            raise SailError(
                f"{len(self.bad)} records could not be loaded, over config.data.max_bad_records "
                f"({self.config.data.max_bad_records}). The first of them:\n  {shown}\n"
                f"The state is saved at step {done}; mend the records, or raise the limit, and start again."
            )


class _Prefetch:
    """Sends the next batch to the devices while they compute the current step.

    Args:
        batches: batches on the host.
        step: the step, which sends a batch to the devices (`put`).
    """

    def __init__(self, batches: Iterator[LoadedBatch], step: Step) -> None:
        self._batches, self._step = batches, step
        self._next: tuple[LoadedBatch, Any, float] | None = None

    def fetch(self, running: jax.Array | None = None) -> None:
        """Takes the next batch from the host; `running` is a result of the current step."""
        began = time.monotonic()
        loaded = next(self._batches)
        waited = time.monotonic() - began
        # While the current step still runs, the devices do not wait for the host.
        waited = 0.0 if running is not None and not running.is_ready() else waited
        self._next = loaded, self._step.put(loaded.parts), waited

    def take(self) -> tuple[LoadedBatch, Any, float]:
        """Returns the batch, its arguments for the step, and the seconds that the devices waited for it at most."""
        if self._next is None:
            self.fetch()
        taken, self._next = self._next, None
        return taken


def _progress() -> Progress:
    columns = [NameColumn(), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn()]
    quiet = jax.process_index() != 0
    return Progress(*columns, every=None, disable=quiet, refresh_per_second=2, speed_estimate_period=600)
