"""Draws a sample page: a few pairs of each table, with pictures and texts if there is an item store."""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable
from sail_jax.data.thumbnail import short_caption, thumbnail
from sail_jax.errors import BadRecordError

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2430; }
h2 { margin: 2rem 0 .5rem; } h2 small { font-weight: normal; color: #5c6675; }
.pairs { display: flex; flex-wrap: wrap; gap: 1rem; }
.pair { display: flex; gap: .5rem; border: 1px solid #d8dee6; border-radius: 6px; padding: .5rem; }
.item { width: 7rem; overflow-wrap: anywhere; font-size: 12px; }
.item img, .blank { width: 96px; height: 96px; object-fit: contain; background: #f0f2f5; }
.blank { display: flex; align-items: center; justify-content: center; color: #5c6675; text-align: center; }
.id { color: #5c6675; }
"""


def sample_page(tables: Mapping[str, Path | None], pairs: int, store: ItemStore | None) -> str:
    """Returns the page: up to `pairs` evenly spaced rows of each table that is there."""
    sections = "".join(_section(path, name, pairs, store) for name, path in tables.items() if path)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Pairs</title><style>{_STYLE}</style>'
        f"<h1>Pairs</h1>{sections}</html>\n"
    )


def _section(path: Path, name: str, pairs: int, store: ItemStore | None) -> str:
    table = PairTable.open(path, "")
    rows = np.unique(np.linspace(0, len(table) - 1, min(pairs, len(table))).astype(int)) if len(table) else []
    shown = "".join(_pair(table[int(row)], store) for row in rows)
    body = f'<div class="pairs">{shown}</div>' if shown else "<p>No pairs.</p>"
    return f"<h2>{html.escape(name)} <small>{len(table):,} pairs</small></h2>{body}"


def _pair(pair: Pair, store: ItemStore | None) -> str:
    query = _item(pair.query_id, store) if pair.query_id is not None else _text(pair.query_text)
    score = "" if pair.score is None else f"<div>score {pair.score:.2f}</div>"
    return f'<div class="pair">{query}{_item(pair.target_id, store)}{score}</div>'


def _text(text: str) -> str:
    return f'<div class="item"><div class="blank" dir="auto">{html.escape(short_caption(text))}</div></div>'


def _item(item_id: str, store: ItemStore | None) -> str:
    picture, words = None, ""
    if store is not None:
        try:
            item = store.get(item_id)
            picture = thumbnail(item.frames[0]) if item.frames else None
            words = " ".join(text for text in item.text.values() if text)
        except BadRecordError as error:
            words = str(error)
    image = f'<img src="{html.escape(picture)}" alt="">' if picture else '<div class="blank">no picture</div>'
    return (
        f'<div class="item">{image}<div class="id">{html.escape(item_id)}</div>'
        f'<div dir="auto">{html.escape(short_caption(words))}</div></div>'
    )
