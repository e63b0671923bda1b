"""Leaves out data sets and tasks whose table has no row in their split, as small tables may have none."""

import dataclasses
from pathlib import Path
from typing import Any

from sail_jax.cli.common import console
from sail_jax.config import Config
from sail_jax.errors import SailError


def with_usable_tables(config: Config, reasons: dict[str, str]) -> Config:
    """Returns the config without data sets and tasks that have no rows; a line says which and why.

    Args:
        config: the experiment; its tables are written.
        reasons: file name of a table without rows -> why it has none.

    Raises:
        SailError: no data set or no task is left.
    """
    datasets = _usable(config, "data.datasets", config.data.datasets, reasons)
    tasks = _usable(config, "eval.tasks", config.eval.tasks, reasons)
    for kept, what, need in ((datasets, "train", "data set"), (tasks, "evaluate", "task")):
        if not kept:
            raise SailError(
                f"Nothing is left to {what}: no {need} has rows in its split. Add rows to the tables and logs, loosen "
                "config.builders, or name another split."
            )
    data, evaluation = (
        dataclasses.replace(config.data, datasets=datasets),
        dataclasses.replace(config.eval, tasks=tasks),
    )
    return dataclasses.replace(config, data=data, eval=evaluation)


def _usable(config: Config, group: str, entries: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    from sail_jax.data.row_groups import splits_of

    kept = {}
    for name, entry in entries.items():
        path = Path(config.data.dir) / entry.table
        if not (entry.table and entry.split and path.is_file()) or entry.split in splits_of(path):
            kept[name] = entry
            continue
        why = reasons.get(path.name) or f"{entry.table} has no row in the split {entry.split!r}"
        console.print(f"config.{group}.{name} is left out: {why}.", highlight=False)
    return kept
