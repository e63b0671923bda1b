"""The verb `init`: looks at a folder, says what it is taken for, and writes a config."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, one_line, print_next, print_wide, without_config
from sail_jax.errors import SailError
from sail_jax.files import commit_bytes

if TYPE_CHECKING:
    from sail_jax.data.guess.plan import Plan
    from sail_jax.data.guess.readings import Reading
    from sail_jax.data.guess.tables import Choose

# What a reading that `init` may ask about means for the model.
_MEANS = {
    "text": "words that the model reads",
    "tags": "a list of words that the model reads",
    "label": "a category, by which the search page filters and maps are coloured",
    "id": "the name of an item, which the model does not read",
}


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "init",
        run,
        "look at a folder of tables and media, say what each column is taken for and why, and write a config of at "
        "most 20 lines",
        "EXPORT --output mine.py",
        workdir="",
        config="",
    )
    add_folder(sub)
    sub.add_argument("--output", type=Path, help="config that is written (the name of the folder, with .py)")
    sub.add_argument("--yes", action="store_true", help="ask nothing: of two readings of a column, take the likelier")


def add_folder(sub: argparse.ArgumentParser) -> None:
    """Adds the folder and --preset, which `fit` has too."""
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="folder of your tables and media files")
    sub.add_argument("--preset", default="tiny", help=f"model to start from: {', '.join(config_lib.presets())} (tiny)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the config, and prints what was found."""
    without_config("init", overrides)
    output = options.output or Path(f"{name_of(options.folder)}.py")
    write_config(options.folder, output, options.preset, take_first if options.yes else _ask)
    workdir = Path("runs") / output.stem
    print_next(options, "fit", options.folder, "--config", output, "--workdir", workdir)


def name_of(folder: Path) -> str:
    """Returns the name of a folder as the name of a config."""
    return re.sub(r"\W+", "_", folder.absolute().name).strip("_").lower() or "data"


def write_config(folder: Path, output: Path, preset: str, choose: "Choose") -> None:
    """Writes the config of a folder, and prints what was found.

    Args:
        folder: the folder.
        output: the file that is written; a table that ingestion needs is written beside it.
        preset: the preset that the config starts from.
        choose: decides between readings of a column that are about as sure.

    Raises:
        SailError: the file is there, the preset is unknown, or nobody can make sense of the folder.
    """
    from sail_jax.data.guess.experiment import experiment_text
    from sail_jax.data.guess.plan import understand

    if output.suffix != ".py":
        raise SailError(f"--output is {output}; a config is a Python file: name it {output.with_suffix('.py')}.")
    if output.exists():
        raise SailError(f"{output} exists; remove it, or name another --output.")
    batch = config_lib.preset(preset).data.batch_size
    output.parent.mkdir(parents=True, exist_ok=True)
    plan = understand(folder, output.with_suffix(""), choose)
    commit_bytes(output, experiment_text(plan, preset, folder, batch).encode())
    config_lib.load(output)
    _print_plan(plan)
    lines = len(output.read_text(encoding="utf-8").splitlines())
    console.print(f"Config: {output.absolute()}, {lines} lines over the preset {preset}.", highlight=False)


def take_first(table: str, column: str, readings: Sequence["Reading"], samples: Sequence[str]) -> "Reading":
    """Returns the likeliest reading of a column."""
    return readings[0]


def _ask(table: str, column: str, readings: Sequence["Reading"], samples: Sequence[str]) -> "Reading":
    """Returns the reading that the user chooses."""
    console.print(f"{table}: what is the column {column!r}, with cells such as {', '.join(samples)}?")
    for number, reading in enumerate(readings, 1):
        means = f"; {_MEANS[reading.kind]}" if reading.kind in _MEANS else ""
        console.print(f"  {number}  {reading.kind}: {reading.reason}{means}", highlight=False)
    while True:
        try:
            answer = input(f"1 to {len(readings)}, or Enter for 1: ").strip() or "1"
        except EOFError as error:
            raise SailError(f"Nobody answers what {table}, column {column!r}, is: add --yes.") from error
        if answer.isdecimal() and 1 <= int(answer) <= len(readings):
            return readings[int(answer) - 1]


def _print_plan(plan: "Plan") -> None:
    table = Table("table", "column", "taken for", "why", "such as")
    for finding in plan.findings:
        other = f"\nor {finding.other}" if finding.other else ""
        row = (finding.table, finding.column, finding.taken, finding.why + other, finding.sample)
        table.add_row(*(one_line(cell).replace("\\n", "\n") for cell in row))
    print_wide(table)
    for note in plan.notes:
        console.print(note, highlight=False)
