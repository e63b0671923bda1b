"""The verb `fit`: goes from a folder of data to a trained, evaluated model."""

import argparse
import time
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, print_next
from sail_jax.cli.init import add_folder, name_of, take_first, write_config
from sail_jax.cli.quickstart import go_all_the_way
from sail_jax.errors import SailError


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "fit",
        run,
        "go from a folder of tables and media to a trained and evaluated model: write the config as `init --yes` "
        "does, ingest, train, evaluate, write a report; what is finished is not done again",
        "EXPORT --preset tiny --workdir runs/mine",
        workdir="",
        config="",
        kept="the steps that are done are kept, and the same command goes on.",
    )
    add_folder(sub)
    sub.add_argument("--config", type=Path, help="config of the folder (the one that `init` would write)")
    sub.add_argument("--workdir", type=Path, help="folder that is written (runs/ and the name of FOLDER)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the four steps, each of which resumes where it stopped."""
    from sail_jax.runs.directory import RunDirectory

    began = time.monotonic()
    workdir = options.workdir or Path("runs") / name_of(options.folder)
    path = options.config or workdir / "config.py"
    console.print("1/4 What the folder holds", style="bold")
    if options.config is None and not path.exists():
        write_config(options.folder, path, options.preset, take_first)
    else:
        _check_preset(options, path)
        console.print(f"Config: {path}", highlight=False)
    config = config_lib.load(path, [f"data.dir={workdir / 'data'}", *overrides])
    go_all_the_way(config, options.folder, workdir)
    report = RunDirectory(workdir).report
    made = {"config": path, "items and tables": workdir / "data", "run": workdir, "report": report}
    console.print(f"Done in {time.monotonic() - began:.0f} s.")
    console.print("\n".join(f"{what}: {place}" for what, place in made.items()), highlight=False)
    print_next(options, "embed", "--workdir", workdir, "--output", Path("embeddings") / workdir.name)


def _check_preset(options: argparse.Namespace, path: Path) -> None:
    """Raises SailError if a preset is asked for that is not the one of the config of an earlier `fit`."""
    if options.config is None and f'preset("{options.preset}")' not in path.read_text(encoding="utf-8"):
        raise SailError(f"{path} starts from another preset than {options.preset}; name that, or another --workdir.")
