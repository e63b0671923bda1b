"""Reads what the summary of an ingestion says of its items."""

import json
import pathlib
from collections.abc import Iterable

from sail_jax.buckets import fetch
from sail_jax.config.schema import nearest
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError

# Written last by an ingestion: counts, settings and source.
MARKER = "ingest.json"


def require_id_embeddings(data: pathlib.Path, store: ItemStore, names: Iterable[str]) -> None:
    """Checks that items have the ID embeddings of some names, by the ingestion's summary; no item is read.

    Names pass where nothing tells: a store without an ingestion, or one of an earlier version.

    Args:
        data: the data folder.
        store: its items.
        names: the ID embeddings, by their names in `config.objective.teachers`.

    Raises:
        SailError: an ID embedding is neither ingested nor joined.
    """
    asked = [name for name in names if name not in store.joined]
    ingested = _ingested(data) if asked else None
    if ingested is None:
        return
    known = sorted({*ingested, *store.joined})
    for name in asked:
        if name not in ingested:
            have = f"they have {', '.join(known)}. Did you mean {nearest(name, known)}?" if known else "they have none."
            raise SailError(
                f"config.objective.teachers names the ID embedding {name!r}, which the items in {data} lack; {have} "
                "`join-vectors` adds ID embeddings to items."
            )


def _ingested(data: pathlib.Path) -> set[str] | None:
    """Returns the ID embeddings that an ingestion was given; None where that is not known."""
    fetch(data / MARKER)
    try:
        report = json.loads((data / MARKER).read_text(encoding="utf-8"))["report"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return set(report["embeddings"]) if "embeddings" in report else None
