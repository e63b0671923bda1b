"""The verb `export`: a trained run as a folder for sentence-transformers and PyTorch."""

import argparse
from typing import Any

from sail_jax.buckets import place
from sail_jax.cli.common import console, declare
from sail_jax.config.storage import WEIGHT_DTYPES


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "export",
        run,
        "write a trained run as a folder that sentence-transformers and PyTorch load",
        "--workdir runs/quickstart --output exports/quickstart",
        workdir="run directory",
        config="",
        step=True,
    )
    sub.add_argument("--output", required=True, type=place, help="folder that is written")
    sub.add_argument("--dtype", choices=WEIGHT_DTYPES, default="float32", help="type of the weights (float32)")
    sub.add_argument("--license", default="other", help="license in the model card, for example apache-2.0 (other)")
    sub.add_argument(
        "--adapters", action="store_true", help="write LoRA adapters in PEFT's format next to the base model, unmerged"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the folder, and prints how to load it."""
    from sail_jax.convert.export import export
    from sail_jax.runs.directory import RunDirectory

    config = RunDirectory(options.workdir).load_config(overrides=overrides)
    steps = export(
        options.workdir,
        options.output,
        config,
        dtype=options.dtype,
        license_name=options.license,
        adapters=options.adapters,
        step=options.step,
    )
    output = options.output.absolute()
    console.print(f"Exported the model at step {steps} to {output}.")
    console.print(f"Next: load it as {output / 'README.md'} shows.")
