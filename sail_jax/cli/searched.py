"""What `search` and `serve` share: what is searched, and how."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sail_jax.config import Config
from sail_jax.errors import SailError

if TYPE_CHECKING:
    from sail_jax.data.store import ItemStore
    from sail_jax.search.searcher import Searcher


def add_searched(sub: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is searched, and how."""
    sub.add_argument("--embeddings", type=Path, help="folder that `embed` wrote; searched exactly if it stands alone")
    sub.add_argument("--index", type=Path, help="index file; beside --embeddings it makes the shortlist for them")
    sub.add_argument("--shortlist-dims", type=int, default=0, help="shortlist by so many of the first dimensions")
    sub.add_argument("--shortlist", type=int, help="items on the shortlist that the full vectors rank anew (1000)")
    sub.add_argument("--nprobe", type=int, default=0, help="ivfpq index: lists that are looked into (32)")
    sub.add_argument("--ef-search", type=int, default=0, help="hnsw index: candidates on the way (128)")
    sub.add_argument("--text-instruction", help="system prompt of queries that are text alone (that of the items)")


def open_searcher(options: argparse.Namespace, config: Config) -> "Searcher":
    """The searcher that the flags ask for.

    Raises:
        SailError: on flags that contradict each other, or folders that cannot be searched.
    """
    from sail_jax.embedding import embedder as embedder_lib
    from sail_jax.search.faiss_index import FaissIndex
    from sail_jax.search.searcher import Searcher, Shortlist
    from sail_jax.vectors.embedding_set import EmbeddingSet

    # What is wrong with the folders is said before a model is loaded.
    if options.embeddings is None and options.index is None:
        raise SailError(
            "There is nothing to search: name embeddings, an index of them, or both (--embeddings, --index)."
        )
    if options.index is None and (options.nprobe or options.ef_search):
        raise SailError("--nprobe and --ef-search are for an index; name it with --index.")
    if options.index is None and options.shortlist is not None and not options.shortlist_dims:
        raise SailError("--shortlist needs --shortlist-dims or an --index, by which the shortlist is made.")
    embeddings = None if options.embeddings is None else EmbeddingSet(options.embeddings)
    index = None
    if options.index is not None:
        index = FaissIndex(options.index, nprobe=options.nprobe, ef_search=options.ef_search)
    shortlist = None
    if options.shortlist_dims or options.shortlist is not None:
        size = Shortlist.size if options.shortlist is None else options.shortlist
        shortlist = Shortlist(options.shortlist_dims, size)
    embedder = embedder_lib.load(options.workdir, config)
    return Searcher(embedder, embeddings, index, shortlist=shortlist, text_instruction=options.text_instruction)


def store_or_none(config: Config) -> "ItemStore | None":
    """The item store of the run, or None where it cannot be opened, which is said."""
    from sail_jax.data.pipeline import open_store

    try:
        return open_store(config)
    except SailError as error:
        Console(stderr=True, soft_wrap=True, markup=False).print(f"Items are shown by their ids alone: {error}")
        return None
