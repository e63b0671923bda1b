"""The verb `describe`: a model's size, the cost of its train step, a data folder, all settings."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.buckets import place
from sail_jax.cli.common import console, declare, print_next
from sail_jax.config import Config
from sail_jax.config.everyday_words import EVERYDAY_WORDS
from sail_jax.config.schema import meanings
from sail_jax.config.suggestions import similar_keys
from sail_jax.errors import SailError


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "describe",
        run,
        "print the parameters of a model by tower and what training holds of them; or memory and time of its train "
        "step on other hardware, compiled ahead of time; or what a data folder holds; or all settings",
        "--config configs/sail_1b5.py --topology v5e:16x16 --config.data.batch_size=512",
        workdir="",
        config="",
    )
    sub.add_argument("--config", type=Path, help="experiment file")
    sub.add_argument(
        "--settings",
        nargs="?",
        const="",
        metavar="WORD",
        help="print every setting with type, default and meaning; with a word, those whose name or meaning has it",
    )
    sub.add_argument(
        "--data",
        type=place,
        help="print what a folder that `ingest` wrote holds: items, tables, and ID embeddings with the items that have "
        "them",
    )
    sub.add_argument(
        "--topology",
        help="hardware for which the train step is compiled: a TPU slice (v5e:16x16, v5p:4x4x4, v6e:16x16; needs the "
        "extra `tpu`) or a number of GPUs (h100:64, h200:8, a100:8, b200:8; needs the extra `cuda`)",
    )
    sub.add_argument(
        "--program",
        dest="compiled",
        default="train",
        choices=("train", "embed"),
        help="with --topology: the train step, or embedding",
    )
    sub.add_argument("--stage", default="", help="with --topology: the stage of the run (the first)")
    sub.add_argument(
        "--dataset", default="", help="with --topology: the training set of the batch (the one with the most frames)"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the settings, the parameters, or the cost of the train step."""
    if options.settings is not None:
        for key, kind, default, meaning in _settings(options.settings):
            print(f"{key}: {kind} = {default!r}\n    {meaning}")
        return
    if options.data is not None:
        _print_data(options)
        return
    if options.config is None:
        raise SailError("describe needs --config configs/X.py, --data DATA, or --settings.")
    from sail_jax.objectives.matryoshka import check_widths

    config = config_lib.load(options.config, overrides)
    check_widths(config.objective.matryoshka, config.model.llm.width)
    if options.topology:
        _print_program(config, options)
    elif options.stage or options.dataset or options.compiled != "train":
        raise SailError("--program, --stage and --dataset choose what is compiled: name a --topology too.")
    else:
        _print_parameters(config)
    data = f"--config.data.dir={config.data.dir or 'DATA'}"
    print_next(options, "train", "--config", options.config, data, "--workdir", "RUN")


def _settings(word: str) -> list[tuple[str, str, Any, str]]:
    """Returns the settings with a word in their name or meaning, or those that an everyday word means; all for "".

    Raises:
        SailError: there is none; the message names similar ones.
    """
    rows, word = meanings(Config), word.lower().removeprefix("config.")
    meant = [f"config.{key}" for key in EVERYDAY_WORDS.get(word, ())]
    found = [row for row in rows if row[0] in meant]
    found += [row for row in rows if row not in found and (word in row[0].lower() or word in row[3].lower())]
    if not found:
        near = similar_keys(word, [key.removeprefix("config.") for key, *_ in rows])
        hint = f"Did you mean {' or '.join(near)}?" if near else "Leave the word out to see all."
        raise SailError(f"No setting has {word!r} in its name or meaning. {hint}")
    return found


def _print_data(options: argparse.Namespace) -> None:
    from sail_jax.data.ingest.join import describe_data

    for line in describe_data(options.data):
        console.print(line, highlight=False)
    config = options.config or "configs/X.py"
    print_next(options, "train", "--config", config, f"--config.data.dir={options.data}", "--workdir", "RUN")


def _print_parameters(config: Config) -> None:
    import jax

    from sail_jax.models.describe import parameter_table
    from sail_jax.training.memory import held_by_training

    table = Table("tower", "parameters")
    for name, count in parameter_table(config.model):
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print(held_by_training(config), highlight=False)
    console.print(f"JAX {jax.__version__}, {jax.device_count()} {jax.devices()[0].platform} devices")


def _print_program(config: Config, options: argparse.Namespace) -> None:
    from sail_jax.aot.compile import compile_ahead, compile_embedding

    if options.compiled == "embed" and (options.stage or options.dataset):
        raise SailError("--stage and --dataset choose the batch of a train step; leave them out with --program embed.")
    if options.compiled == "embed":
        report = compile_embedding(config, options.topology)
    else:
        report = compile_ahead(config, options.topology, stage=options.stage, dataset=options.dataset)
    for heading, rows in report.sections().items():
        table = Table(heading, "", show_edge=False, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table, end="\n\n")
    console.print(report.verdict(), highlight=False)
