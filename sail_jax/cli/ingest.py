"""The verb `ingest`: turns a raw export into an item store and tables."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.after_tables import print_after_tables
from sail_jax.cli.common import declare


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "ingest",
        run,
        "turn a raw export (tables and media files, or a TFDS set) into an item store and tables",
        "--config configs/glyphs.py --source EXPORT --workdir data/glyphs",
        workdir="folder that is written; give it to `train` as --config.data.dir",
        kept="finished shards and tables are kept, and the same command goes on.",
    )
    sub.add_argument("--source", type=Path, default=Path(), help="folder of the raw export")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Ingests the export."""
    from sail_jax.data.ingest.ingest import ingest

    config = config_lib.load(options.config, overrides)
    ingest(config, options.source, options.workdir)
    print_after_tables(options, config, "ingest", options.workdir)
