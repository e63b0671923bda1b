"""What comes after tables are made: the verb that makes those still lacking, or training."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sail_jax.buckets import address, names
from sail_jax.cli.common import print_next
from sail_jax.config import Config
from sail_jax.config.log_pairs import BuildersConfig
from sail_jax.config.log_sequences import CONSTRUCTIONS, HISTORIES

if TYPE_CHECKING:
    from sail_jax.logs.addresses import Address

# Every builder has a group of settings with its name.
BUILDERS = tuple(field.name for field in dataclasses.fields(BuildersConfig) if dataclasses.is_dataclass(field.type))
# Verb -> the tables that it makes of logs.
_MAKES = {"pairs": BUILDERS, "sequences": (*CONSTRUCTIONS, HISTORIES)}


def print_after_tables(
    options: argparse.Namespace, config: Config, verb: str, data: Path | None, made: "Path | Address | None" = None
) -> None:
    """Prints the command that comes after `ingest`, `pairs` or `sequences`.

    Args:
        options: the parsed flags of the verb, with --config and --source.
        config: the experiment.
        verb: the verb; what it left out, such as a table without its log, is not asked of it again.
        data: the folder that `ingest` wrote; None if it is not named.
        made: a table that was made, for an experiment that names none which is there; at an address, too.
    """
    tables = {Path(entry.table) for group in (config.data.datasets, config.eval.tasks) for entry in group.values()}
    tables |= {Path(config.eval.histories)} if config.eval.histories else set()
    lacking = {table.stem for table in tables if data is not None and not _is_there(data / table)}
    for other, makes in _MAKES.items():
        if other != verb and lacking & set(makes):
            folders = ("--source", options.source, "--output", data / "tables", "--workdir", data)
            print_next(options, other, "--config", options.config, *folders)
            return
    named = any(data is not None and _is_there(data / entry.table) for entry in config.data.datasets.values())
    settings = []
    if made is not None and not named:
        name = Path(made).stem
        settings.append(f"--config.data.datasets.{name}.table={_table_setting(made, data)}")
        settings += [f"--config.data.datasets.{name}.kind=sequences"] * (verb == "sequences")
    where = f"--config.data.dir={'DATA' if data is None else data}"
    print_next(options, "train", "--config", options.config, where, *settings, "--workdir", "RUN")


def _is_there(table: Path) -> bool:
    """Returns whether there is a table, here or in a bucket from which it was not fetched yet."""
    return bool(names(table)) if address(table) else table.exists()


def _table_setting(made: "Path | Address", data: Path | None) -> str:
    """Returns a table as the settings name it: by an address that training reads, or by its path, short within data."""
    from sail_jax.logs.addresses import read_here

    if not isinstance(made, Path):
        return str(read_here(made)) if made.startswith("file:") else made.replace("s3a://", "s3://", 1)
    inside = data is not None and made.absolute().is_relative_to(data.absolute())
    return str(made.absolute().relative_to(data.absolute()) if inside else made.absolute())
