"""Resolves the tasks of a config against the item store."""

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.config.evaluation import GRADED
from sail_jax.data.sequence_tables import stream_sequences
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable
from sail_jax.errors import SailError
from sail_jax.evaluation.classification import load_classification
from sail_jax.evaluation.retrieval import RetrievalTask, load_retrieval
from sail_jax.evaluation.sequence_tasks import load_sequences

_LOADERS = {"retrieval": load_retrieval, "classification": load_classification, "sequence": load_sequences}


def load_tasks(config: Config, store: ItemStore) -> dict[str, RetrievalTask]:
    """Resolves all tasks of a config, and returns them by name.

    Raises:
        SailError: there is no task or no cut-off, a setting or a table is wrong, or an id is unknown.
    """
    if not config.eval.tasks:
        raise SailError("config.eval.tasks is empty: name at least one task.")
    if not config.eval.ks:
        raise SailError("config.eval.ks is empty: name at least one cut-off.")
    for name, task in config.eval.tasks.items():
        if GRADED in task.metrics and task.kind != "retrieval":
            raise SailError(
                f"config.eval.tasks.{name}.metrics names {GRADED!r}, which a task of kind {task.kind!r} does not have: "
                "remove it, or name a pair table with scores and the kind 'retrieval'."
            )
    return {name: _LOADERS[task.kind](config, name, store) for name, task in config.eval.tasks.items()}


def task_notes(config: Config) -> list[str]:
    """Returns a line for each task whose table is missing, damaged or without rows in its split.

    Of pair tables footers alone are read, of sequences rows up to the first of the split.
    """
    notes = []
    for name, task in config.eval.tasks.items():
        path = place(config.data.dir) / place(task.table)
        try:
            if task.kind == "sequence":
                found = any(ids for _, ids in stream_sequences(path, task.split))
            else:
                found = (task.kind == "classification" and not task.table) or len(PairTable.open(path, task.split)) > 0
            why = "" if found else f"{task.table} has no row in the split {task.split!r}."
        except SailError as error:
            why = str(error)
        if why:
            notes.append(f"As it is, config.eval.tasks.{name} cannot be evaluated after training: {why}")
    return notes
