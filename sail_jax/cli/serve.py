"""The verb `serve`: serves a search page on this machine."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax.cli.beside_flags import add_beside_flags, open_beside, second_model, titles
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
    sub.add_argument("--semantic-ids", type=Path, help="table that `semantic-ids assign` wrote, to show each item's")
    sub.add_argument("--port", type=int, default=8017, help="port of 127.0.0.1; 0 for any free port (8017)")
    add_beside_flags(sub)


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Serves the page until Ctrl-C."""
    from sail_jax.search.examples import example_searches
    from sail_jax.search.web import SearchPage, SearchServer
    from sail_jax.semantic_ids.table import SemanticIdTable

    config = config_of_run(options, overrides)
    semantic_ids = SemanticIdTable(options.semantic_ids) if options.semantic_ids else None
    second = second_model(options, overrides)
    searcher, store = open_searcher(options, config), store_or_none(config)
    page = SearchPage(
        searcher,
        config,
        store,
        title=titles(options)[0],
        examples=example_searches(config, store),
        semantic_ids=semantic_ids,
        beside=open_beside(options, second) if second else None,
    )
    with SearchServer(page, options.port) as server:
        counted = _counted(page.about())
        console.print(f"{counted} at {server.url} (only this machine can open it); Ctrl-C ends it.")
        console.print("Next: open this address in a browser.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("Stopped.")


def _counted(about: dict[str, Any]) -> str:
    """Returns how many items are searched, and how many of them both models have."""
    counted, beside = f"{about['items']:,} items", about["beside"]
    if beside is None:
        return counted
    return f"{counted} and, beside them, {beside['items']:,} of {beside['title']} ({beside['shared']:,} are in both)"
