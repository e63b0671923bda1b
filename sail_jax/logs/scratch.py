"""The folder of intermediate files of a build."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder, which is gone at the end; what a killed build left there is removed first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
