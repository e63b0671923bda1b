"""Declares what a tracker is: it gets the lines of the training log of a run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class TrackedRun(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
        name: its name.
        group: the group that it belongs to, such as a sweep; empty for none.
        folder: the run directory.
        settings: the config as nested dicts.
        id: by which the tracker knew the run at an earlier start; empty for a new one.
    """

    name: str
    group: str
    folder: Path
    settings: Mapping[str, Any]
    id: str


class Sink(Protocol):
    """Takes the lines of a training log."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a line; steps never decrease."""

    def finish(self) -> None:
        """Writes out what is pending and closes the run."""


class Tracker(Sink, Protocol):
    """A sink that knows a run by an id, under which a later start continues it."""

    id: str


def project(variable: str) -> str:
    """Returns the project to which a run belongs: the tracker's own environment variable says it."""
    return os.environ.get(variable) or "sail_jax"
