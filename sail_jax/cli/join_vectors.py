"""The verb `join-vectors`: joins a recommender's vectors to the items of a finished store."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax.cli.common import console, declare, print_next, without_config
from sail_jax.config.data import IngestConfig


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "join-vectors",
        run,
        "join a table of vectors, such as a new teacher's ID embeddings, to the items that `ingest` wrote; items are "
        "not read again",
        "--workdir data/recommender --name id_new --table exports/recommender/vectors/id_new",
        workdir="folder that `ingest` wrote",
        config="",
    )
    sub.add_argument("--name", required=True, help="name of the ID embedding, for config.objective.teachers")
    sub.add_argument(
        "--table", required=True, type=Path, help="Parquet of `item_id` and `vector`, or a folder of its parts"
    )
    limit = IngestConfig().max_bad_records
    sub.add_argument(
        "--max-bad-records", type=int, default=limit, help=f"bad rows that are left out and listed; more stop ({limit})"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Joins the vectors, and prints which items have one and how to train with them."""
    from sail_jax.data.ingest.join import join_vectors

    without_config("join-vectors", overrides)
    limit = options.max_bad_records
    report, now = join_vectors(options.workdir, options.name, options.table, max_bad_records=limit)
    if not now:
        console.print(f"The table was joined before; nothing is to be done. {report.folder} holds it.")
    console.print(str(report), highlight=False)
    data = f"--config.data.dir={options.workdir}"
    teachers = f"--config.objective.teachers.{report.name}={report.width}"
    print_next(options, "train", "--config", "configs/X.py", data, teachers, "--workdir", "RUN")
