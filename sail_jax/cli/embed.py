"""The verb `embed`: bulk embedding of items."""

import argparse
import dataclasses
from typing import Any

from sail_jax.buckets import place, with_addresses
from sail_jax.cli.common import config_of_run, console, declare, print_next
from sail_jax.cli.distributed import join_processes
from sail_jax.config import total_steps
from sail_jax.config.storage import VECTOR_DTYPES
from sail_jax.items import TEXT_FIELDS
from sail_jax.patterns import MODALITIES


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "embed",
        run,
        "embed an item store, a table of items or a folder of files into Parquet parts of `id` and `vector`; the same "
        "command resumes an interrupted run",
        "--workdir runs/quickstart --output embeddings/quickstart --dims 48 --dtype int8",
        workdir="run directory",
        config="of run",
        distributed=True,
        step=True,
        kept="finished parts are kept, and the same command goes on.",
    )
    sub.add_argument("--output", required=True, type=place, help="folder that is written")
    sub.add_argument(
        "--source",
        type=place,
        help="items: an item store, a table (CSV, JSONL, Parquet) with the columns of config.ingest.source, or "
        "a folder of image, sound, video and text files, whose paths are the ids (the items of config.data.dir)",
    )
    sub.add_argument(
        "--dims", type=int, help="number of leading dimensions to keep, best a Matryoshka width of the run (all)"
    )
    sub.add_argument("--dtype", choices=VECTOR_DTYPES, default="float32", help="type of the stored vectors (float32)")
    sub.add_argument(
        "--modalities",
        default=MODALITIES,
        help="modalities of the items that are shown to the model: V, T, A, VT, ... (VTA)",
    )
    sub.add_argument(
        "--fields",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=TEXT_FIELDS,
        help=f"text fields that are shown to the model ({','.join(TEXT_FIELDS)})",
    )
    sub.add_argument(
        "--instruction",
        help="system prompt (that of the documents which the run was trained with)",
    )
    sub.add_argument("--rows-per-part", type=int, default=65_536, help="items of the source per part (65536)")
    sub.add_argument("--batch-size", type=int, help="items per batch (config.eval.batch_size)")
    sub.add_argument("--process", type=int, default=0, help="number of this process, from 0 (0)")
    sub.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of processes that share the work and --output, each on all devices of its host; --distributed "
        "finds both numbers, unless config.mesh splits the model: then the processes embed together (1)",
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Embeds the source."""
    import jax

    from sail_jax.embedding import embedder as embedder_lib
    from sail_jax.embedding.bulk import EmbedOptions, embed
    from sail_jax.embedding.item_source import open_source
    from sail_jax.runs.directory import RunDirectory

    join_processes(options)
    config = config_of_run(options, overrides)
    # Where every device holds all parameters, processes need each other for nothing.
    apart = options.distributed and config.mesh.fsdp == config.mesh.tensor == 1
    if apart:
        options.process, options.processes = jax.process_index(), jax.process_count()
    names = [field.name for field in dataclasses.fields(EmbedOptions)]
    asked = EmbedOptions(**{name: getattr(options, name) for name in names})
    source = open_source(options.source, config)
    if source.assumed:
        console.print(source.assumed, highlight=False)
    embedder = embedder_lib.load(
        options.workdir, config, devices=jax.local_devices() if apart else None, step=options.step
    )
    if embedder.processes.first and options.step is None and embedder.step < total_steps(config):
        console.print(
            f"The model is that of step {embedder.step:,} of {total_steps(config):,}: training has not ended. Vectors "
            "of a later step need another --output.",
            style="yellow",
            highlight=False,
        )
    if apart:
        jax.distributed.shutdown()  # from here on the processes are independent
    report = embed(embedder, source, options.output, asked, model=with_addresses(RunDirectory(options.workdir).path))
    if not embedder.processes.first:
        return
    console.print(f"{report}\nWritten to {options.output.absolute()}", highlight=False)
    print_next(options, "search", "--workdir", options.workdir, "--embeddings", options.output, "--text", "a query")
