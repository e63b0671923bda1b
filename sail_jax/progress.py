"""Progress bars, which are lines of text where the output is no terminal."""

import datetime
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import rich.progress
from rich.console import RenderableType
from rich.text import Text

from sail_jax.terminal import console as shared_console

Item = TypeVar("Item")

# Seconds between the lines of a task, and until a line that says only that it has another name.
_EVERY, _RENAMED = 30.0, 5.0


class NameColumn(rich.progress.TextColumn):
    """A progress column: the name of a task, which may have a path in it, and so is no markup."""

    def __init__(self) -> None:
        super().__init__("{task.description}", style="progress.description", markup=False)


class Progress(rich.progress.Progress):
    """Bars as rich draws them, in 80 columns too; where they would fill a file, a line from time to time.

    Rich itself is silent there until the end. A line is flushed at once. A task may have a field `note`, which stands
    below its bar.

    Args:
        columns: of the bars; by default those of rich.
        every: seconds between the lines of a task; None for those of `say` alone.
        disable: shows nothing at all.
        options: further options of rich's.
    """

    def __init__(
        self,
        *columns: str | rich.progress.ProgressColumn,
        every: float | None = _EVERY,
        disable: bool = False,
        **options: Any,
    ) -> None:
        console = options.pop("console", None) or shared_console
        watched = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self._lines, self._every, self._last = not disable and not watched, every, time.monotonic()
        self._ended: set[int] = set()
        super().__init__(*columns, console=console, disable=disable or not watched, **options)

    @classmethod
    def get_default_columns(cls) -> tuple[rich.progress.ProgressColumn, ...]:
        """Returns the columns of rich, with the name as it is."""
        return NameColumn(), *super().get_default_columns()[1:]

    def say(self, task: rich.progress.TaskID, note: str) -> None:
        """Shows a note below the bar of a task, or prints it in a line with how far the task is."""
        if not self._lines:
            super().update(task, note=note)
        else:
            self._print(self._tasks[task], note)

    def update(self, task_id: rich.progress.TaskID, **changes: Any) -> None:
        """Changes a task, as rich does; prints a line if one is due, or the task is another by name."""
        renamed = changes.get("description") not in (None, self._tasks[task_id].description)
        super().update(task_id, **changes)
        self._print_if_due(task_id, _RENAMED if renamed else self._every)

    def advance(self, task_id: rich.progress.TaskID, advance: float = 1) -> None:
        """Advances a task, as rich does; prints a line if one is due."""
        super().advance(task_id, advance)
        self._print_if_due(task_id, self._every)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yields the bars, and the notes below them."""
        yield from super().get_renderables()
        for task in self.tasks:
            if task.visible and (note := task.fields.get("note")):
                yield Text(f"  {note}", style="dim", no_wrap=True, overflow="ellipsis")

    def _print_if_due(self, task_id: rich.progress.TaskID, every: float | None) -> None:
        if not self._lines or self._every is None:
            return
        with self._lock:
            task, due = self._tasks[task_id], time.monotonic() - self._last >= every
            ends = task.finished and task_id not in self._ended
            if ends or (due and not task.finished):
                self._ended |= {task_id} if ends else set()
                self._last = time.monotonic()
                self._print(task)

    def _print(self, task: rich.progress.Task, note: str = "") -> None:
        of = "" if task.total is None else f"/{task.total:,.0f}"
        parts = [f"{task.description} {task.completed:,.0f}{of}".strip(), note]
        if task.finished:
            parts.append(f"took {_clock(task.finished_time)}")
        elif task.time_remaining is not None:
            parts.append(f"ETA {_clock(task.time_remaining)}")
        print(", ".join(filter(None, parts)), file=self.console.file, flush=True)


def track(
    items: Iterable[Item],
    description: str,
    *,
    total: float | None = None,
    disable: bool = False,
    transient: bool = False,
) -> Iterator[Item]:
    """Yields items with a `Progress`; as `rich.progress.track`."""
    with Progress(disable=disable, transient=transient) as progress:
        yield from progress.track(items, total=total, description=description)


def _clock(seconds: float | None) -> str:
    return str(datetime.timedelta(seconds=round(seconds or 0)))
