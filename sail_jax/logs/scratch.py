"""The folder for the intermediate files of a build."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yields a new, empty folder and deletes it at the end; leftovers of a killed build are removed first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
