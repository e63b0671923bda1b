"""Steps whose loss or gradient is not finite: the run stops, or passes over some of them."""

import jax

from sail_jax.config import Config
from sail_jax.data.pipeline import BatchSource
from sail_jax.errors import SailError
from sail_jax.files import commit_bytes
from sail_jax.runs.directory import RunDirectory

# Records that a message names; the file has all.
_SHOWN = 3


class NonfiniteSteps:
    """Counts the steps that made no update, and stops the run at one too many.

    The compiled step leaves the state as it was (`step.make_update`), so it is enough to look now and then.

    Args:
        run: the run directory.

    Attributes:
        count: steps of the run that were passed over.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.count = 0
        self._run = run
        self._pending: list[tuple[int, jax.Array]] = []

    def add(self, done: int, flag: jax.Array) -> None:
        """Adds a step, counted from 1, and its metric "nonfinite", which stays on the device until `check`."""
        self._pending.append((done, flag))

    def check(self, source: BatchSource, config: Config) -> None:
        """Looks at the steps since the last call; all processes call it after the same steps.

        Args:
            source: the batches of these steps, all of one stage.
            config: its `train.skip_nonfinite` steps are passed over.

        Raises:
            SailError: there is one step more; the message has its data set and records.
        """
        pending, self._pending = self._pending, []
        flags = jax.device_get([flag for _, flag in pending])
        for done in (done for (done, _), flag in zip(pending, flags, strict=True) if flag):
            self.count += 1
            message = self._describe(done, source, config)
            if self.count > config.train.skip_nonfinite:
                raise SailError(
                    f"{message} The last checkpoint is from before it, and whole. Look at these records, lower "
                    "config.optimizer.peak, or pass over such steps with --config.train.skip_nonfinite="
                    f"{self.count}; then start again."
                )
            if jax.process_index() == 0:
                print(f"{message} It is passed over: {self.count} of at most {config.train.skip_nonfinite}.")

    def _describe(self, done: int, source: BatchSource, config: Config) -> str:
        """Returns what happened in a step, and writes the records of its batch into a file for each process."""
        names = list(config.data.datasets)
        records = source.records(done - 1)
        of_process = f".process_{jax.process_index()}" * (jax.process_count() > 1)
        path = self._run.nonfinite / f"{done}{of_process}.txt"
        path.parent.mkdir(exist_ok=True)
        commit_bytes(path, "".join(f"{record}\n" for record in records).encode("utf-8", "backslashreplace"))
        sets = ", ".join(names[index] for index in source.datasets(done - 1))
        return (
            f"The loss or the gradient of step {done} is not finite (data set {sets}; records "
            f"{'; '.join(records[:_SHOWN])}{'; ...' if len(records) > _SHOWN else ''}, all in {path})."
        )
