"""The verb `serve`: serves a search page on this machine."""

import argparse
from typing import Any

from sail_jax.cli.common import config_of_run, console, declare
from sail_jax.cli.search_flags import add_search_flags, open_searcher, store_or_none


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "serve",
        run,
        "serve a search page on this machine, for queries of text and files; Ctrl-C ends it",
        "--workdir runs/quickstart --embeddings embeddings/quickstart",
        workdir="run directory of the model that embedded the items",
        config="of run",
        step=True,
    )
    add_search_flags(sub)
    sub.add_argument("--port", type=int, default=8017, help="port of 127.0.0.1; 0 for any free port (8017)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Serves the page until Ctrl-C."""
    from sail_jax.runs.directory import RunDirectory
    from sail_jax.search.web import SearchPage, SearchServer

    config = config_of_run(options, overrides)
    searcher = open_searcher(options, config)
    page = SearchPage(searcher, config, store_or_none(config), title=RunDirectory(options.workdir).path.name)
    with SearchServer(page, options.port) as server:
        console.print(f"{len(searcher):,} items at {server.url} (only this machine can open it); Ctrl-C ends it.")
        console.print("Next: open this address in a browser.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("Stopped.")
