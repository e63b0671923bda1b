"""The verbs that decide what is trained on: mine, balance, prompts."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import add_verb, config_of_run, console
from sail_jax.curation.balancing.weights import balance
from sail_jax.curation.mining.dataset import mine_dataset
from sail_jax.data.pipeline import open_store
from sail_jax.data.preview import previews
from sail_jax.embedding import embedder as embedder_lib
from sail_jax.runs.directory import RunDirectory


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this room to the parser."""
    _add_mine(verbs)
    _add_balance(verbs)
    _add_prompts(verbs)


def _add_mine(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "mine",
        _mine,
        "mine the hard negatives of a training set with a trained run, and write a table that `train` reads",
        "--workdir runs/glyphs --dataset i2i --output data/glyphs/negatives/i2i.parquet",
        workdir="run directory",
        config="of run",
    )
    sub.add_argument("--dataset", required=True, help="name of the training set in config.data.datasets")
    sub.add_argument(
        "--output", required=True, type=Path, help="table that is written, with figures and a plot beside it"
    )
    sub.add_argument(
        "--query-embeddings",
        type=Path,
        help="folder that `embed` wrote, or Parquet of `id` and `vector`, to read, not to compute",
    )
    sub.add_argument("--target-embeddings", type=Path, help="likewise, of the targets")


def _add_balance(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "balance",
        _balance,
        "weigh the training sets by how near they lie to the evaluation tasks, in the eyes of a trained run",
        "--workdir runs/glyphs --output data/glyphs/weights.json",
        workdir="run directory of an early model",
        config="of run",
    )
    sub.add_argument(
        "--output", required=True, type=Path, help="JSON for config.data.weights; a heat map lies beside it"
    )


def _add_prompts(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "prompts",
        _prompts,
        "show what the model reads of each data set and task: the filled prompt of both sides",
        "--config configs/glyphs.py --config.data.dir=data/glyphs",
        workdir="",
    )
    sub.add_argument("--row", type=int, default=0, help="row of each table that serves as the example (0)")


def _mine(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_of_run(options, overrides)
    run = RunDirectory(options.workdir)
    given = {"query_embeddings": options.query_embeddings, "target_embeddings": options.target_embeddings}
    summary = mine_dataset(
        embedder_lib.load(run.path, config),
        config,
        open_store(config),
        options.dataset,
        options.output,
        model=str(run.path),
        **given,
    )
    console.print(str(summary), highlight=False)
    console.print(
        f"Train with them: --config.data.datasets.{options.dataset}.negatives={options.output.absolute()} "
        f"--config.data.datasets.{options.dataset}.hard_negatives=4"
    )


def _balance(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_of_run(options, overrides)
    result = balance(embedder_lib.load(options.workdir, config), config, open_store(config), options.output)
    table = Table("training set", "weight", *result.tasks)
    for row, name in enumerate(result.datasets):
        cells = ["-" if value != value else f"{value:.3f}" for value in result.similarity[row]]
        table.add_row(name, f"{result.weights[row]:.3f}", *cells)
    console.print(table)
    console.print(
        f"Weights: {options.output.absolute()}; heat map: {options.output.with_suffix('.png').absolute()}. "
        f"Train with them: --config.data.weights={options.output.absolute()}"
    )


def _prompts(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_lib.load(options.config, overrides)
    for preview in previews(config, options.row):
        fields = f", fields {', '.join(preview.view.fields)}" if "T" in preview.view.modalities else ""
        size = f", {preview.tokens} tokens" if preview.tokens else ""
        print(f"# {preview.name}: shows {preview.view.modalities}{fields}{size}")
        print(preview.problem or preview.text, end="\n\n")
    if not config.data.dir:
        print("Set --config.data.dir to the folder that `ingest` wrote, to see the slots filled with real rows.")
