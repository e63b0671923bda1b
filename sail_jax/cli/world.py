"""The verb `world`: generates a raw export."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, print_next


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "world",
        run,
        "generate a small world of items, users and logs as a raw export",
        "--config configs/recommender.py --output exports/recommender",
        workdir="",
    )
    sub.add_argument(
        "--output", required=True, type=Path, help="folder that is written; give it to `ingest` as --source"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the world and prints its counts."""
    from sail_jax.data.synthetic.world import make_world

    config = config_lib.load(options.config, overrides)
    summary = make_world(config.synthetic, config.seed, options.output, test_share=config.logs.test_share)
    console.print(summary)
    console.print(
        f"Written to {options.output.absolute()}; world.json has the counts, and behaviour.json those of logs/."
    )
    print_next(options, "ingest", "--config", options.config, "--source", options.output, "--workdir", "DATA")
