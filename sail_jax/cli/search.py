"""The verbs of search: index, search, serve."""

import argparse
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sail_jax.cli.common import add_verb, config_of_run, console, one_line, print_wide, without_config
from sail_jax.config import Config
from sail_jax.data.pipeline import open_store
from sail_jax.data.store import ItemStore
from sail_jax.embedding import embedder as embedder_lib
from sail_jax.errors import BadRecordError, SailError
from sail_jax.runs.directory import RunDirectory
from sail_jax.search.faiss_index import KINDS, FaissIndex, IndexSettings, build_index
from sail_jax.search.searcher import FILE_KINDS, Hit, QueryFile, Searcher, Shortlist, caption, query_item
from sail_jax.search.web import SearchPage, SearchServer
from sail_jax.vectors.embedding_set import EmbeddingSet

_CAPTION = 160  # characters of a caption in a table


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this room to the parser."""
    _add_index(verbs)
    _add_search(verbs)
    _add_serve(verbs)


def _add_index(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "index",
        _index,
        "build a faiss index file of embeddings, part by part",
        "--embeddings embeddings/glyphs --output indexes/glyphs.faiss --kind hnsw",
        workdir="",
        config="",
    )
    sub.add_argument("--embeddings", required=True, type=Path, help="folder that `embed` wrote")
    sub.add_argument("--output", required=True, type=Path, help="index file; its ids and a JSON of it lie beside it")
    sub.add_argument("--kind", choices=KINDS, default="flat", help="exact, compressed, or a graph (flat)")
    sub.add_argument("--dims", type=int, default=0, help="index the first dimensions only (all)")
    sub.add_argument("--nlist", type=int, default=0, help="ivfpq: inverted lists (4 sqrt(N), at most N / 39)")
    sub.add_argument("--m", type=int, default=0, help="ivfpq: bytes of a vector, a divisor of the dims (dims / 4)")
    sub.add_argument("--hnsw-m", type=int, default=0, help="hnsw: neighbours of a vector (32)")
    sub.add_argument("--ef-construction", type=int, default=0, help="hnsw: candidates while building (200)")
    sub.add_argument("--seed", type=int, default=0, help="ivfpq: seed of its training (0)")


def _add_search(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "search",
        _search,
        "print the items nearest to a text, an image, a sound, a video, any mixture of them, or to an item",
        "--workdir runs/glyphs --embeddings embeddings/glyphs --text 'a smiling cat' --image cat.jpg",
        workdir="run directory of the model that embedded the items",
        config="of run",
    )
    _add_searched(sub)
    sub.add_argument("--text", default="", help="free text")
    for kind in FILE_KINDS:
        sub.add_argument(f"--{kind}", type=Path, action="append", default=[], help=f"{kind} file")
    sub.add_argument("--item", default="", help="id of an item that is searched: what is like it, itself left out")
    sub.add_argument("-k", type=int, default=10, help="items that are printed (10)")


def _add_serve(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "serve",
        _serve,
        "show a page on this machine where a query is typed or a file dropped, and the items are seen; Ctrl-C ends it",
        "--workdir runs/glyphs --embeddings embeddings/glyphs",
        workdir="run directory of the model that embedded the items",
        config="of run",
    )
    _add_searched(sub)
    sub.add_argument("--port", type=int, default=8017, help="port of 127.0.0.1; 0 for any that is free (8017)")


def _add_searched(sub: argparse.ArgumentParser) -> None:
    """What is searched, and how."""
    sub.add_argument("--embeddings", type=Path, help="folder that `embed` wrote; searched exactly if it stands alone")
    sub.add_argument("--index", type=Path, help="index file; beside --embeddings it makes the shortlist for them")
    sub.add_argument("--shortlist-dims", type=int, default=0, help="shortlist by so many of the first dimensions")
    sub.add_argument("--shortlist", type=int, help="items on the shortlist that the full vectors rank anew (1000)")
    sub.add_argument("--nprobe", type=int, default=0, help="ivfpq index: lists that are looked into (32)")
    sub.add_argument("--ef-search", type=int, default=0, help="hnsw index: candidates on the way (128)")
    sub.add_argument("--text-instruction", help="system prompt of queries that are text alone (that of the items)")


def _index(options: argparse.Namespace, overrides: list[str]) -> None:
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
    console.print(
        f"Indexed {info.count:,} vectors of {info.dims} dimensions: {output}. "
        f"Search them: python -m sail_jax search --workdir RUN --index {output} --text 'a query'",
        highlight=False,
    )


def _search(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_of_run(options, overrides)
    files = [QueryFile.read(kind, path) for kind in FILE_KINDS for path in getattr(options, kind)]
    if options.item and (options.text or files):
        raise SailError("--item searches for what is like a stored item; leave out --text and files, or --item.")
    query = None if options.item else query_item(options.text, files, config)
    searcher = _open_searcher(options, config)
    hits = searcher.like([options.item], options.k) if query is None else searcher.search([query], options.k)
    _print_hits(hits[0], _store_or_none(config))


def _open_searcher(options: argparse.Namespace, config: Config) -> Searcher:
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


def _store_or_none(config: Config) -> ItemStore | None:
    try:
        return open_store(config)
    except SailError as error:
        Console(stderr=True, soft_wrap=True, markup=False).print(f"Items are shown by their ids alone: {error}")
        return None


def _print_hits(hits: list[Hit], store: ItemStore | None) -> None:
    table = Table("rank", "cosine", "id", *(["caption"] if store is not None else []))
    for rank, hit in enumerate(hits, 1):
        words = []
        if store is not None:
            try:
                words = [Text(one_line(shorten(caption(store.get(hit.id)), _CAPTION, placeholder=" …")))]
            except BadRecordError:
                words = [Text("not in the item store", style="dim")]
        table.add_row(str(rank), f"{hit.score:.3f}", Text(one_line(hit.id)), *words)
    print_wide(table)


def _serve(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_of_run(options, overrides)
    searcher = _open_searcher(options, config)
    page = SearchPage(searcher, config, _store_or_none(config), title=RunDirectory(options.workdir).path.name)
    with SearchServer(page, options.port) as server:
        console.print(f"{len(searcher):,} items at {server.url} (this machine alone can open it); Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("Stopped.")
