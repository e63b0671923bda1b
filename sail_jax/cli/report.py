"""The verb `report`: writes the report page of one run, or of several to compare."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax.cli.common import console, declare, print_next, without_config


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "report",
        run,
        "write the report of an evaluated run again, or compare several runs on one page; needs no model or items",
        "--workdir runs/quickstart --workdir runs/world --output report.html",
        workdir="",
        config="",
    )
    sub.add_argument(
        "--workdir", required=True, type=Path, action="append", help="run directory; name several to compare them"
    )
    sub.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        help="page that is written; its charts are written as PNGs to NAME_files next to it (report.html)",
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the page."""
    from sail_jax.evaluation.report.data import read_runs
    from sail_jax.evaluation.report.page import png_folder, write_report

    without_config("report", overrides)
    output = options.output.absolute()
    write_report(output, read_runs(options.workdir))
    console.print(f"Report: {output}; charts: {png_folder(output)}")
    print_next(options, "embed", "--workdir", options.workdir[0], "--output", "EMBEDDINGS")
