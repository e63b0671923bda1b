"""The verb `balance`: sampling weights of the training sets."""

import argparse
from typing import Any

from rich.table import Table

from sail_jax.buckets import place
from sail_jax.cli.common import config_of_run, console, declare, print_next
from sail_jax.cli.distributed import join_processes


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "balance",
        run,
        "compute sampling weights of the training sets from their similarity to the evaluation tasks",
        "--workdir runs/quickstart --output runs/quickstart/data/weights.json",
        workdir="run directory of an early model",
        config="of run",
        distributed=True,
        step=True,
    )
    sub.add_argument(
        "--output", required=True, type=place, help="JSON for config.data.weights; a heat map is written next to it"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the weights, and prints how to train with them."""
    from sail_jax.curation.balancing.weights import balance
    from sail_jax.data.pipeline import open_store
    from sail_jax.embedding import embedder as embedder_lib

    first, config = join_processes(options), config_of_run(options, overrides)
    result = balance(
        embedder_lib.load(options.workdir, config, step=options.step), config, open_store(config), options.output
    )
    if not first:
        return
    table = Table("training set", "weight", *result.tasks)
    for row, name in enumerate(result.datasets):
        cells = ["-" if value != value else f"{value:.3f}" for value in result.similarity[row]]
        table.add_row(name, f"{result.weights[row]:.3f}", *cells)
    console.print(table)
    output = options.output.absolute()
    console.print(f"Weights: {output}; heat map: {output.with_suffix('.png')}.")
    config_file = options.config or options.workdir / "config.json"
    print_next(options, "train", "--config", config_file, f"--config.data.weights={output}", "--workdir", "RUN")
