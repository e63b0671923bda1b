"""Fits an experiment to small tables: leaves out what has no rows, and lowers the batch."""

import dataclasses
from pathlib import Path
from typing import Any

from sail_jax.cli.common import console
from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.errors import SailError

# A batch of fewer pairs has hardly any negatives.
_LEAST_ROWS = 8


def with_usable_tables(config: Config, reasons: dict[str, str]) -> Config:
    """Returns the config without data sets and tasks that have too few rows; a line says which and why.

    The batch is lowered to the smallest data set that is left, to a power of two.

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
        dataclasses.replace(config.data, datasets=datasets, batch_size=_batch_size(config, datasets)),
        dataclasses.replace(config.eval, tasks=tasks),
    )
    return dataclasses.replace(config, data=data, eval=evaluation)


def _usable(config: Config, group: str, entries: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    from sail_jax.data.row_groups import splits_of

    kept = {}
    for name, entry in entries.items():
        path = Path(config.data.dir) / entry.table
        if not (entry.table and entry.split and path.is_file()):
            kept[name] = entry
            continue
        why = "" if entry.split in splits_of(path) else f"no row in the split {entry.split!r}"
        if not why and group == "data.datasets" and (rows := _rows(config, entry)) < _LEAST_ROWS:
            why = f"{rows} rows in the split {entry.split!r}, too few to train on"
        if not why:
            kept[name] = entry
            continue
        why = reasons.get(path.name) or f"{entry.table} has {why}"
        console.print(f"config.{group}.{name} is left out: {why}.", highlight=False)
    return kept


def _batch_size(config: Config, datasets: dict[str, Any]) -> int:
    """Returns the batch of the settings, or the power of two up to the rows of the smallest data set."""
    there = {name: entry for name, entry in datasets.items() if (Path(config.data.dir) / entry.table).is_file()}
    rows = {name: _rows(config, entry) for name, entry in there.items() if entry.table}
    least, asked = min(rows, key=rows.get, default=""), config.data.batch_size
    if not least or rows[least] >= asked:
        return asked
    size = 1 << (rows[least].bit_length() - 1)
    console.print(
        f"config.data.batch_size is {size}, not {asked}: the data set {least} has {rows[least]} rows to train on.",
        highlight=False,
    )
    return size


def _rows(config: Config, entry: DatasetConfig) -> int:
    from sail_jax.data.sequence_tables import SequenceTable
    from sail_jax.data.tables import PairTable

    table = SequenceTable if entry.kind == "sequences" else PairTable
    return len(table.open(Path(config.data.dir) / entry.table, entry.split))
