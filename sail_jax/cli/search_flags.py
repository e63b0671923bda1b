"""The flags that `search` and `serve` share: the vectors to search, and how."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.terminal import Terminal

if TYPE_CHECKING:
    from sail_jax.data.store import ItemStore
    from sail_jax.search.searcher import Searcher


def add_search_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags for the vectors to search and for the search."""
    sub.add_argument("--embeddings", type=place, help="folder that `embed` wrote; search is exact without a shortlist")
    sub.add_argument("--index", type=Path, help="index file; with --embeddings, it makes the shortlist")
    sub.add_argument(
        "--shortlist-dims", type=int, default=0, help="number of leading dimensions that make the shortlist"
    )
    sub.add_argument("--shortlist", type=int, help="length of the shortlist, which the full vectors rerank (1000)")
    sub.add_argument("--nprobe", type=int, default=0, help="ivfpq index: inverted lists to search (32)")
    sub.add_argument("--ef-search", type=int, default=0, help="hnsw index: candidates during search (128)")
    sub.add_argument(
        "--text-instruction",
        help="system prompt of queries with only text (that of queries in training)",
    )


def open_searcher(options: argparse.Namespace, config: Config) -> "Searcher":
    """Returns the searcher that the flags describe.

    Raises:
        SailError: the flags contradict each other, or a folder cannot be searched.
    """
    from sail_jax.embedding import embedder as embedder_lib
    from sail_jax.search.faiss_index import FaissIndex
    from sail_jax.search.searcher import Searcher, Shortlist
    from sail_jax.vectors.embedding_set import EmbeddingSet

    # Mistakes in flags and folders fail before the model is loaded, which takes long.
    if options.embeddings is None and options.index is None:
        raise SailError(
            "There is nothing to search: name embeddings, an index of them, or both (--embeddings, --index)."
        )
    if options.index is None and (options.nprobe or options.ef_search):
        raise SailError("--nprobe and --ef-search are for an index; name it with --index.")
    if options.index is None and options.shortlist is not None and not options.shortlist_dims:
        raise SailError("--shortlist needs --shortlist-dims or an --index to make the shortlist.")
    embeddings = None if options.embeddings is None else EmbeddingSet(options.embeddings)
    index = None
    if options.index is not None:
        index = FaissIndex(options.index, nprobe=options.nprobe, ef_search=options.ef_search)
    shortlist = None
    if options.shortlist_dims or options.shortlist is not None:
        size = Shortlist.size if options.shortlist is None else options.shortlist
        shortlist = Shortlist(options.shortlist_dims, size)
    embedder = embedder_lib.load(options.workdir, config, step=options.step)
    return Searcher(embedder, embeddings, index, shortlist=shortlist, text_instruction=options.text_instruction)


def store_or_none(config: Config) -> "ItemStore | None":
    """Returns the item store of the run; prints why and returns None if it cannot be opened."""
    from sail_jax.data.pipeline import open_store

    try:
        return open_store(config)
    except SailError as error:
        Terminal(stderr=True).print(f"Only the ids of items are shown: {error}")
        return None
