"""The verb `inspect`: the towers of a Hugging Face checkpoint and their settings."""

import argparse
from typing import Any

from sail_jax.cli.common import declare, without_config


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "inspect",
        run,
        "print the towers of a Hugging Face checkpoint and the settings that load it",
        "--checkpoint Qwen/Qwen2.5-1.5B",
        workdir="",
        config="",
    )
    sub.add_argument("--checkpoint", required=True, help="directory or hub id")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the settings."""
    from sail_jax.convert.from_hf import inspect_checkpoint
    from sail_jax.convert.sources import find_checkpoint

    without_config("inspect", overrides)
    directory = find_checkpoint(options.checkpoint)
    for tower, settings in inspect_checkpoint(directory).items():
        print(f"# {tower}: --config.init_from.{tower}={options.checkpoint}")
        for key, value in settings.items():
            print(f"config.model.{tower}.{key} = {value!r}")
    print(f"# Next: put these lines into an experiment file X.py, and run {options.program} describe --config X.py")
