"""Draws the gallery: queries with thumbnails of their nearest items, relevant ones marked."""

import dataclasses
import html
import itertools
from collections.abc import Sequence

from sail_jax.data.thumbnail import _SIDE, short_caption


@dataclasses.dataclass(frozen=True)
class Card:
    """An item as the gallery shows it.

    Attributes:
        item_id: its id; empty for a free-text query.
        caption: its text, of any length; the gallery shortens it.
        thumbnail: a small picture as a data URI (see `thumbnail`), or None.
        has_audio: whether it has sound.
        relevant: of a result, whether it is relevant to the query.
        score: of a result, its cosine to the query.
    """

    item_id: str
    caption: str
    thumbnail: str | None = None
    has_audio: bool = False
    relevant: bool = False
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """A query of a task with its nearest items, best first."""

    task: str
    query: Card
    results: Sequence[Card]


def gallery_html(galleries: Sequence[tuple[str, Sequence[GalleryRow]]], limit: int) -> tuple[str, int, int]:
    """Returns the HTML of the gallery of one run or several.

    A query that several runs share is shown once, with the results of each run.

    Args:
        galleries: (name of the run, its rows) of every run; the names are shown if there are several runs.
        limit: maximum length of the HTML; queries beyond it are left out, from all tasks equally.

    Returns:
        The HTML, the number of queries it shows, and the number of all queries.
    """
    queries = _by_query(galleries)
    blocks: dict[tuple, str] = {}
    size = 0
    for key in _in_turns(queries):
        block = _block(queries[key], named=len(galleries) > 1)
        size += len(block)
        if size > limit:
            break
        blocks[key] = block
    shown = [(key, blocks[key]) for key in queries if key in blocks]
    sheets = (
        f"<h3>{html.escape(task)}</h3>" + "".join(block for _, block in of_task)
        for task, of_task in itertools.groupby(shown, key=lambda entry: entry[0][0])
    )
    return "".join(sheets), len(blocks), len(queries)


def row_html(row: GalleryRow, most: int, wanted: Card | None = None, note: str = "") -> str:
    """Returns the HTML of a query with its nearest items.

    Args:
        row: the query.
        most: number of items shown.
        wanted: a right answer that it does not find, shown first.
        note: a text below them.
    """
    first = "" if wanted is None else f'<li class="wanted">{_card(wanted)}<div class="foot">should be found</div></li>'
    below = f'<p class="caption">{html.escape(note)}</p>' if note else ""
    return _row(row.query, f'<ol class="results">{first}{"".join(map(_result, row.results[:most]))}</ol>{below}')


def _by_query(galleries: Sequence[tuple[str, Sequence[GalleryRow]]]) -> dict[tuple, list[tuple[str, GalleryRow]]]:
    """Groups the rows by query: {(task, id, text, number of equal queries before): [(run, row)]}.

    The result is ordered by task.
    """
    queries: dict[tuple, list[tuple[str, GalleryRow]]] = {}
    for name, rows in galleries:
        seen: dict[tuple, int] = {}
        for row in rows:
            key = (row.task, row.query.item_id, row.query.caption)
            seen[key] = seen.get(key, -1) + 1
            queries.setdefault((*key, seen[key]), []).append((name, row))
    tasks = list(dict.fromkeys(task for task, *_ in queries))
    return dict(sorted(queries.items(), key=lambda entry: tasks.index(entry[0][0])))


def _in_turns(keys: Sequence[tuple]) -> list[tuple]:
    """Returns the queries in the order: the first of every task, the second of every task, and so on."""
    by_task = [list(of_task) for _, of_task in itertools.groupby(keys, key=lambda key: key[0])]
    return [key for turn in itertools.zip_longest(*by_task) for key in turn if key is not None]


def _block(found: Sequence[tuple[str, GalleryRow]], *, named: bool) -> str:
    strips = "".join(
        (f'<div class="run">{html.escape(name)}</div>' if named else "")
        + f'<ol class="results">{"".join(map(_result, row.results))}</ol>'
        for name, row in found
    )
    return _row(found[0][1].query, strips)


def _row(query: Card, strips: str) -> str:
    return f'<div class="row"><div class="query">{_card(query)}</div><div class="strips">{strips}</div></div>'


def _result(card: Card) -> str:
    score = "" if card.score is None else f"<span>{card.score:.2f}</span>"
    mark = '<span class="check">✓ right</span>' if card.relevant else '<span class="cross">✗</span>'
    kind = "relevant" if card.relevant else "other"
    return f'<li class="{kind}">{_card(card)}<div class="foot">{score}{mark}</div></li>'


def _card(card: Card) -> str:
    label = html.escape(card.item_id)
    if card.thumbnail is None:
        image = f'<div class="blank">{"no picture" if card.item_id else "text query"}</div>'
    else:
        image = f'<img src="{html.escape(card.thumbnail)}" alt="{label}" width="{_SIDE}" height="{_SIDE}">'
    sound = '<span class="sound" title="has sound">♪</span>' if card.has_audio else ""
    text = short_caption(card.caption)
    words = html.escape(text) if text.strip() else '<span class="none">no text</span>'
    return f'<div class="picture" title="{label}">{image}{sound}</div><div class="text" dir="auto">{words}</div>'
