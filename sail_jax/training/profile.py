"""Traces some steps of a run with JAX's profiler, for TensorBoard and Perfetto."""

import contextlib
from typing import Any

import jax

from sail_jax.errors import SailError
from sail_jax.runs.directory import RunDirectory


class StepProfile:
    """Traces the steps from `first` to `last`, both included, on the first process.

    The trace stands where TensorBoard looks for it: WORKDIR/tensorboard/plugins/profile/TIME/.

    Args:
        run: the run directory.
        first: the first traced step, counted from 1.
        last: the last traced step.
        done: steps that the run has done already.
        steps: steps of the whole run.

    Raises:
        SailError: these steps are not all still to be trained.
    """

    def __init__(self, run: RunDirectory, first: int, last: int, *, done: int, steps: int) -> None:
        if not done < first <= last <= steps:
            raise SailError(
                f"--profile {first}:{last} names steps that this run does not train: "
                f"{'it is finished.' if done == steps else f'name some of {done + 1}:{steps}.'}"
            )
        self._run, self._first, self._last, self._tracing = run, first, last, False

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """Returns the context of a step, which starts the trace at the first one."""
        if number == self._first and jax.process_index() == 0:
            jax.profiler.start_trace(self._run.tensorboard)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def stop_after(self, number: int, results: Any) -> None:
        """Ends and writes the trace after the last step, when its results are there."""
        if self._tracing and number == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes a trace that a step's failure has cut short; does nothing after the last step."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
