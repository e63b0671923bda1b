"""The verb `mine`: mines the hard negatives of a training set."""

import argparse
from typing import Any

from sail_jax.buckets import place, with_addresses
from sail_jax.cli.common import config_of_run, console, declare, print_next
from sail_jax.cli.distributed import join_processes


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "mine",
        run,
        "mine the hard negatives of a training set with a trained run, and write a table that `train` reads",
        "--workdir runs/quickstart --dataset copair --output runs/quickstart/data/negatives/copair.parquet",
        workdir="run directory",
        config="of run",
        distributed=True,
        step=True,
        kept="finished embeddings are kept, and the same command goes on.",
    )
    sub.add_argument("--dataset", required=True, help="name of the training set in config.data.datasets")
    sub.add_argument(
        "--output", required=True, type=place, help="table that is written; figures and a plot are written next to it"
    )
    sub.add_argument(
        "--query-embeddings",
        type=place,
        help="embeddings of the queries, instead of computing them: a folder that `embed` wrote, or Parquet of `id` "
        "and `vector`",
    )
    sub.add_argument("--target-embeddings", type=place, help="the same for the targets")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the table, and prints how to train with it."""
    from sail_jax.curation.mining.dataset import mine_dataset
    from sail_jax.data.pipeline import open_store
    from sail_jax.embedding import embedder as embedder_lib
    from sail_jax.runs.directory import RunDirectory

    first, config = join_processes(options), config_of_run(options, overrides)
    path = RunDirectory(options.workdir).path
    summary = mine_dataset(
        embedder_lib.load(path, config, step=options.step),
        config,
        open_store(config),
        options.dataset,
        options.output,
        model=with_addresses(path),
        query_embeddings=options.query_embeddings,
        target_embeddings=options.target_embeddings,
    )
    if not first:
        return
    console.print(str(summary), highlight=False)
    dataset = f"--config.data.datasets.{options.dataset}"
    settings = (f"{dataset}.negatives={options.output.absolute()}", f"{dataset}.hard_negatives=4")
    print_next(options, "train", "--config", options.config or path / "config.json", *settings, "--workdir", "RUN")
