"""The verb `search`: prints the items nearest to a query."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from sail_jax.cli.common import config_of_run, declare, one_line, print_next, print_wide
from sail_jax.cli.search_flags import add_search_flags, open_searcher, store_or_none
from sail_jax.config.search import FILE_KINDS
from sail_jax.errors import BadRecordError, SailError

if TYPE_CHECKING:
    from sail_jax.data.store import ItemStore
    from sail_jax.search.searcher import Hit

_CAPTION = 160  # characters of a caption in a table


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "search",
        run,
        "print the items nearest to a text, an image, a sound, a video, any mixture of them, or to an item",
        "--workdir runs/quickstart --embeddings embeddings/quickstart --text 'a smiling cat' --image cat.jpg",
        workdir="run directory of the model that embedded the items",
        config="of run",
        step=True,
    )
    add_search_flags(sub)
    sub.add_argument("--text", default="", help="free text")
    for kind in FILE_KINDS:
        sub.add_argument(f"--{kind}", type=Path, action="append", default=[], help=f"{kind} file")
    sub.add_argument(
        "--item", default="", help="id of an item of the set, instead of a query; the results leave it out"
    )
    sub.add_argument("-k", type=int, default=10, help="number of items to print (10)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the items."""
    from sail_jax.search.searcher import QueryFile, query_item

    config = config_of_run(options, overrides)
    files = [QueryFile.read(kind, path) for kind in FILE_KINDS for path in getattr(options, kind)]
    if options.item and (options.text or files):
        raise SailError("--item searches for items like a stored one; leave out --text and files, or --item.")
    query = None if options.item else query_item(options.text, files, config)
    searcher = open_searcher(options, config)
    hits = searcher.like([options.item], options.k) if query is None else searcher.search([query], options.k)
    _print_hits(hits[0], store_or_none(config))
    folders = {"--embeddings": options.embeddings, "--index": options.index}
    given = [word for flag, path in folders.items() if path is not None for word in (flag, path)]
    print_next(options, "serve", "--workdir", options.workdir, *given)


def _print_hits(hits: Sequence["Hit"], store: "ItemStore | None") -> None:
    from sail_jax.search.searcher import caption

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
