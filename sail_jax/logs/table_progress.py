"""Shows how many tables of a build are done, and what is in work."""

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from sail_jax.progress import NameColumn, Progress


@contextlib.contextmanager
def table_progress(tables: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Yields a function that shows what is in work, and one that counts a finished table."""
    columns = (SpinnerColumn(), TextColumn("{task.completed}/{task.total} tables"), TimeElapsedColumn())
    with Progress(*columns, NameColumn(), transient=True) as progress:
        task = progress.add_task("cut", total=tables)
        yield lambda text: progress.update(task, description=text), lambda: progress.advance(task)
