"""The verb `prompts`: shows the filled prompts of data sets and tasks."""

import argparse
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.common import declare, print_next


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "prompts",
        run,
        "show the filled prompts of both sides of each data set and task",
        "--config quickstart --config.data.dir=runs/quickstart/data",
        workdir="",
    )
    sub.add_argument("--row", type=int, default=0, help="row of each table to show (0)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the prompts."""
    from sail_jax.data.preview import previews

    config = config_lib.load(options.config, overrides)
    for preview in previews(config, options.row):
        fields = f", fields {', '.join(preview.view.fields)}" if "T" in preview.view.modalities else ""
        size = f", {preview.tokens} tokens" if preview.tokens else ""
        print(f"# {preview.name}: shows {preview.view.modalities}{fields}{size}")
        print(preview.problem or preview.text, end="\n\n")
    if not config.data.dir:
        print("Set --config.data.dir to the folder that `ingest` wrote, to fill the slots with real rows.")
    data = f"--config.data.dir={config.data.dir or 'DATA'}"
    print_next(options, "train", "--config", options.config, data, "--workdir", "RUN")
