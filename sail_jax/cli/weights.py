"""The verbs about models: export, inspect, describe."""

import argparse
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.aot.compile import compile_ahead
from sail_jax.cli.common import add_verb, console, without_config
from sail_jax.config import Config
from sail_jax.config.schema import meanings
from sail_jax.convert.export import export
from sail_jax.convert.from_hf import inspect_checkpoint
from sail_jax.convert.sources import find_checkpoint
from sail_jax.convert.to_torch import DTYPES
from sail_jax.errors import SailError
from sail_jax.models.describe import parameter_table
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.runs.directory import RunDirectory


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this room to the parser."""
    _add_export(verbs)
    _add_inspect(verbs)
    _add_describe(verbs)


def _add_export(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "export",
        _export,
        "write a trained run as a folder that sentence-transformers and PyTorch load",
        "--workdir runs/glyphs --output exports/glyphs",
        workdir="run directory",
        config="",
    )
    sub.add_argument("--output", required=True, type=Path, help="folder that is written")
    sub.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="type of the weights (float32)")
    sub.add_argument(
        "--license", default="other", help="what the model card says under 'license', for example apache-2.0"
    )
    sub.add_argument(
        "--adapters", action="store_true", help="write LoRA adapters in PEFT's format beside the base model, unmerged"
    )


def _add_inspect(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "inspect",
        _inspect,
        "say what a Hugging Face checkpoint holds, and the settings with which it can be loaded",
        "--checkpoint Qwen/Qwen2.5-1.5B",
        workdir="",
        config="",
    )
    sub.add_argument("--checkpoint", required=True, help="directory or hub id")


def _add_describe(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "describe",
        _describe,
        "print the parameters of a config's model by tower; what its train step needs on a machine that is not there; or a "
        "reference of all settings",
        "--config configs/sail_1b5.py --topology v5e:16x16 --config.data.batch_size=512",
        workdir="",
        config="",
    )
    sub.add_argument("--config", type=Path, help="experiment file")
    sub.add_argument("--settings", action="store_true", help="print every setting with type, default and meaning")
    sub.add_argument(
        "--topology",
        help="compile the train step for a TPU slice (v5e:16x16, v5p:4x4x4, v6e:16x16) or a number of GPUs (h100:64, a100:8)",
    )
    sub.add_argument("--stage", default="", help="with --topology: the stage of the run (the first)")
    sub.add_argument(
        "--dataset", default="", help="with --topology: the training set of the batch (the one with the most frames)"
    )


def _export(options: argparse.Namespace, overrides: list[str]) -> None:
    run = RunDirectory(options.workdir)
    run.load_config()  # says where there is no run
    steps = export(
        options.workdir,
        options.output,
        config_lib.load(run.config, overrides),
        dtype=options.dtype,
        license_name=options.license,
        adapters=options.adapters,
    )
    output = options.output.absolute()
    console.print(f"Exported the model at step {steps} to {output}; {output / 'README.md'} says how to load it.")


def _inspect(options: argparse.Namespace, overrides: list[str]) -> None:
    without_config("inspect", overrides)
    directory = find_checkpoint(options.checkpoint)
    for tower, settings in inspect_checkpoint(directory).items():
        print(f"# {tower}: --config.init_from.{tower}={options.checkpoint}")
        for key, value in settings.items():
            print(f"config.model.{tower}.{key} = {value!r}")


def _describe(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.settings:
        for key, kind, default, meaning in meanings(Config):
            print(f"{key}: {kind} = {default!r}\n    {meaning}")
        return
    if options.config is None:
        raise SailError("describe needs --config configs/X.py, or --settings.")
    config = config_lib.load(options.config, overrides)
    check_widths(config.objective.matryoshka, config.model.llm.width)
    if options.topology:
        _describe_step(config, options)
        return
    if options.stage or options.dataset:
        raise SailError("--stage and --dataset choose the batch of a compiled step: name a --topology too.")
    table = Table("tower", "parameters")
    for name, count in parameter_table(config.model):
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print(f"JAX {jax.__version__}, {jax.device_count()} {jax.devices()[0].platform} devices")


def _describe_step(config: Config, options: argparse.Namespace) -> None:
    report = compile_ahead(config, options.topology, stage=options.stage, dataset=options.dataset)
    for heading, rows in report.sections().items():
        table = Table(heading, "", show_edge=False, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table, end="\n\n")
    console.print(report.verdict(), highlight=False)
