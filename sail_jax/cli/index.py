"""The verb `index`: a faiss index of embeddings."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax.buckets import place
from sail_jax.cli.common import console, declare, print_next, without_config
from sail_jax.config.search import INDEX_KINDS


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "index",
        run,
        "build a faiss index file of embeddings, part by part",
        "--embeddings embeddings/quickstart --output indexes/quickstart.faiss --kind hnsw",
        workdir="",
        config="",
        kept="an earlier index is as it was; run the same command again.",
    )
    sub.add_argument("--embeddings", required=True, type=place, help="folder that `embed` wrote")
    sub.add_argument(
        "--output", required=True, type=Path, help="index file; its ids and settings are written next to it"
    )
    sub.add_argument(
        "--kind", choices=INDEX_KINDS, default="flat", help="flat: exact; ivfpq: compressed; hnsw: a graph (flat)"
    )
    sub.add_argument("--dims", type=int, default=0, help="index the first dimensions only (all)")
    sub.add_argument("--nlist", type=int, default=0, help="ivfpq: inverted lists (4 sqrt(N), at most N / 39)")
    sub.add_argument("--m", type=int, default=0, help="ivfpq: bytes of a vector, a divisor of the dims (dims / 4)")
    sub.add_argument("--hnsw-m", type=int, default=0, help="hnsw: neighbours of a vector (32)")
    sub.add_argument("--ef-construction", type=int, default=0, help="hnsw: candidates while building (200)")
    sub.add_argument("--seed", type=int, default=0, help="ivfpq: seed of its training (0)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Builds the index, and prints how to search it."""
    from sail_jax.search.faiss_index import IndexSettings, build_index
    from sail_jax.vectors.embedding_set import EmbeddingSet

    without_config("index", overrides)
    settings = IndexSettings(
        kind=options.kind,
        dims=options.dims,
        nlist=options.nlist,
        m=options.m,
        hnsw_m=options.hnsw_m,
        ef_construction=options.ef_construction,
        seed=options.seed,
    )
    output = options.output.absolute()
    info = build_index(EmbeddingSet(options.embeddings), output, settings)
    console.print(f"Indexed {info.count:,} vectors of {info.dims} dimensions: {output}.", highlight=False)
    print_next(options, "search", "--workdir", "RUN", "--index", output, "--text", "a query")
