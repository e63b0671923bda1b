"""Draws a run as one HTML file: headline figures, loss, recall, and a sheet of queries with what was found for them.

The file stands alone: pictures are data URIs, charts are inline SVG that follows the light or dark colour scheme, and
there is no script.
"""

import base64
import dataclasses
import html
import io
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sail_jax.evaluation.report_style import INK, LINES, STYLE
from sail_jax.evaluation.thumbnail import webp_thumbnail

HEADLINE_METRIC = "recall@10"
_THUMBNAIL_SIDE = 96
# Queries beyond this many characters of gallery are left out, so that the file stays below 2 MB.
_GALLERY_LIMIT = 1_600_000
_MAX_CURVE_POINTS = 800


@dataclasses.dataclass(frozen=True)
class Card:
    """An item as the gallery shows it.

    Attributes:
        item_id: its id; empty for a free-text query.
        caption: its text, of any length; a long one is cut.
        thumbnail: an encoded picture as stored, or None.
        has_audio: whether it has sound.
        relevant: for a result, whether it is relevant to the query.
        score: for a result, its cosine to the query.
    """

    item_id: str
    caption: str
    thumbnail: bytes | None = None
    has_audio: bool = False
    relevant: bool = False
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """A query of a task with its nearest items, best first."""

    task: str
    query: Card
    results: Sequence[Card]


@dataclasses.dataclass(frozen=True)
class RecallRow:
    """Figures of one model on one task under one view.

    Attributes:
        task: name of the task.
        model: "trained", "untrained" or the name of a baseline.
        view: the modalities shown, for example "VTA" or "T->VTA".
        metrics: name such as "recall@10" -> value in [0, 1].
        queries: number of queries.
        corpus: number of items that are searched.
    """

    task: str
    model: str
    view: str
    metrics: Mapping[str, float]
    queries: int
    corpus: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What `write_report` draws; empty parts are left out.

    Attributes:
        title: heading of the page.
        facts: label -> value: config name, steps, parameters, duration, versions.
        loss_curve: data set -> (steps, losses).
        recall: figures; the first row of a task whose model is "trained" is its main one, shown in the headline next to
            the "untrained" row of the same view.
        gallery: queries with their nearest items.
        settings: the config as nested dicts.
        notes: paragraphs at the end.
    """

    title: str
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    loss_curve: Mapping[str, tuple[Sequence[int], Sequence[float]]] = dataclasses.field(default_factory=dict)
    recall: Sequence[RecallRow] = ()
    gallery: Sequence[GalleryRow] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: pathlib.Path, report: Report) -> None:
    """Writes `report` as one self-contained HTML file; it appears under its name when complete."""
    title = html.escape(report.title)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title><style>{STYLE}</style></head>
<body><main>
<header><h1>{title}</h1>{_facts(report.facts)}</header>
{_headline(report.recall)}{_recall(report.recall)}{_loss(report.loss_curve)}{_gallery(report.gallery)}{_notes(report.notes)}\
{_settings(report.settings)}
</main></body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Text from the web may hold halves of surrogate pairs, which no encoding can write.
    partial.write_text(page, encoding="utf-8", errors="replace")
    partial.replace(path)


def _facts(facts: Mapping[str, str]) -> str:
    entries = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{"".join(entries)}</dl>' if facts else ""


def _section(heading: str, caption: str, body: str) -> str:
    return f'<section><h2>{heading}</h2><p class="caption">{caption}</p>{body}</section>\n'


def _notes(notes: Sequence[str]) -> str:
    paragraphs = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<section><h2>Notes</h2>{paragraphs}</section>\n" if notes else ""


# ---------------------------------------------------------------------------------------------------------- recall


def _percent(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %"


def _metric_name(row: RecallRow) -> str:
    """The metric that stands for the row where there is room for one."""
    return HEADLINE_METRIC if HEADLINE_METRIC in row.metrics else next(iter(row.metrics), HEADLINE_METRIC)


def _by_task(rows: Sequence[RecallRow]) -> dict[str, list[RecallRow]]:
    tasks: dict[str, list[RecallRow]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    return tasks


def _headline(rows: Sequence[RecallRow]) -> str:
    tiles = []
    for task, of_task in _by_task(rows).items():
        main = next((row for row in of_task if row.model == "trained"), None)
        if main is None:
            continue
        metric = _metric_name(main)
        before = [row for row in of_task if row.model == "untrained" and row.view == main.view]
        was = f'<span class="was">{_percent(before[0].metrics.get(metric))} →</span> ' if before else ""
        models = "untrained → trained" if before else "trained"
        tiles.append(
            f'<div class="tile"><div class="what">{html.escape(task)} · {html.escape(metric)}</div>'
            f'<div class="now">{was}{_percent(main.metrics.get(metric))}</div>'
            f'<div class="what">{models} · {_view(main.view)} · {main.queries:,} queries in {main.corpus:,} items</div></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>\n' if tiles else ""


def _view(view: str) -> str:
    query, _, target = view.partition("->")
    return html.escape(query if target in ("", query) else f"{query} → {target}")


def _recall(rows: Sequence[RecallRow]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<h3>{html.escape(task)}</h3>{_bars(of_task)}{_table(of_task)}" for task, of_task in _by_task(rows).items()
    )
    caption = (
        "Recall@k is the share of all relevant items that are among the k nearest of the corpus; higher is better. "
        "The view names the modalities that the model is shown (V frames, T text, A sound): one that uses all of them "
        "should find more with VTA than with any single letter. The untrained rows are the same network before its first step."
    )
    return _section("Retrieval", caption, body)


def _bars(rows: Sequence[RecallRow]) -> str:
    metric = _metric_name(rows[0])
    values = [row.metrics.get(metric, 0.0) for row in rows]
    # One scale per task, of round ends, so that small figures stay visible and bars of a task can be compared.
    limit = next((end for end in (0.1, 0.25, 0.5) if max(values) <= end), 1.0)
    lines = "".join(
        f'<div class="bar {_kind(row)}"><span>{html.escape(row.model)} {_view(row.view)}</span>'
        f'<span class="track"><span style="width:{100 * value / limit:.1f}%"></span></span>'
        f"<span>{_percent(value)}</span></div>"
        for row, value in zip(rows, values, strict=True)
    )
    return f"<figure><figcaption>{html.escape(metric)}, bars from 0 to {100 * limit:.0f} %</figcaption>{lines}</figure>"


def _kind(row: RecallRow) -> str:
    return row.model if row.model in ("trained", "untrained") else "baseline"


def _table(rows: Sequence[RecallRow]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    best = {name: max(row.metrics.get(name, -np.inf) for row in rows) for name in names}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("model", "view", *names, "queries", "corpus"))
    lines = []
    for row in rows:
        cells = "".join(
            f'<td class="{"best" if row.metrics.get(name) == best[name] else ""}">{_percent(row.metrics.get(name))}</td>'
            for name in names
        )
        lines.append(
            f"<tr><th>{html.escape(row.model)}</th><td>{_view(row.view)}</td>{cells}"
            f"<td>{row.queries:,}</td><td>{row.corpus:,}</td></tr>"
        )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


# ------------------------------------------------------------------------------------------------------------ loss


def _loss(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> str:
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return ""
    caption = (
        "The training loss of each data set as logged (faint) and as a running mean over a twentieth of its points (strong). "
        "It should fall and level off; losses of different data sets differ in scale and are not comparable."
    )
    return _section("Training loss", caption, f'<div class="scroll chart">{_loss_svg(curves)}</div>')


def _loss_svg(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> str:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    dashes = ("-", "--", "-.", ":")
    for number, (name, (steps, losses)) in enumerate(curves.items()):
        colour, dash = LINES[number % len(LINES)], dashes[number % len(dashes)]
        stride = -(-len(steps) // _MAX_CURVE_POINTS)
        smooth = smoothed(losses)
        axes.plot(steps[::stride], losses[::stride], color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(steps[::stride], smooth[::stride], color=colour, linestyle=dash, linewidth=1.8, label=_literal(name))
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    axes.margins(x=0.01)
    axes.legend(frameon=False, labelcolor=INK, ncols=min(len(curves), 4), loc="upper right")
    buffer = io.StringIO()
    # Text stays text, and the hash salt makes the same curves give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sail_jax"}):
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue())


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Centred running mean over a twentieth of the points, over fewer at the ends; NaNs are left out.

    Args:
        losses: [N].

    Returns:
        [N] float64.
    """
    values = np.asarray(losses, np.float64)
    half = max(len(values) // 40, 1)
    present = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(present, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(present)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _literal(name: str) -> str:
    """A name that matplotlib neither typesets as a formula nor hides from the legend."""
    return "\u200b" + name.replace("$", r"\$")


def _inline(svg: str) -> str:
    """A matplotlib SVG as part of a page: no prolog, metadata, fixed size or repeated ids; ink follows the scheme."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", svg)
    return svg.replace(INK, "currentColor").replace("<svg", '<svg role="img" aria-label="Training loss over steps"', 1)


# --------------------------------------------------------------------------------------------------------- gallery


def _gallery(rows: Sequence[GalleryRow]) -> str:
    if not rows:
        return ""
    blocks, size = [], 0
    for row in rows:
        results = "".join(map(_result, row.results))
        block = f'<div class="row"><div class="query">{_card(row.query)}</div><ol class="results">{results}</ol></div>'
        size += len(block)
        if size > _GALLERY_LIMIT:
            break
        blocks.append((row.task, block))
    caption = (
        "Each row is a query (left) and its nearest items, best first. A check mark and a solid frame mark the items that "
        "the test set lists as relevant; an item without them may still be a sensible find. The number is the cosine; "
        "♪ marks items with sound."
    )
    if len(blocks) < len(rows):
        caption += f" {len(rows) - len(blocks):,} of {len(rows):,} queries are left out to keep the file small."
    sheets = (
        f"<h3>{html.escape(task)}</h3>" + "".join(block for _, block in of_task)
        for task, of_task in itertools.groupby(blocks, key=lambda entry: entry[0])
    )
    return _section("Nearest items", caption, "".join(sheets))


def _result(card: Card) -> str:
    score = "" if card.score is None else f"<span>{card.score:.2f}</span>"
    mark = '<span class="check">✓ relevant</span>' if card.relevant else ""
    return f'<li class="{"relevant" if card.relevant else "other"}">{_card(card)}<div class="foot">{score}{mark}</div></li>'


def _card(card: Card) -> str:
    picture = _thumbnail(card.thumbnail)
    label = html.escape(card.item_id, quote=True)
    if picture is None:
        image = f'<div class="blank">{"no picture" if card.item_id else "text query"}</div>'
    else:
        image = f'<img src="{picture}" alt="{label}" width="{_THUMBNAIL_SIDE}" height="{_THUMBNAIL_SIDE}">'
    sound = '<span class="sound" title="has sound">♪</span>' if card.has_audio else ""
    text = card.caption if len(card.caption) <= 90 else card.caption[:89].rstrip() + "…"
    words = html.escape(text) if text.strip() else '<span class="none">no text</span>'
    return f'<div class="picture" title="{label}">{image}{sound}</div><div class="text" dir="auto">{words}</div>'


def _thumbnail(encoded: bytes | None) -> str | None:
    """A small WebP as a data URI; None where there is no picture or it cannot be decoded."""
    small = None if encoded is None else webp_thumbnail(encoded, _THUMBNAIL_SIDE)
    return None if small is None else "data:image/webp;base64," + base64.b64encode(small).decode()


# -------------------------------------------------------------------------------------------------------- settings


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    lines = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in _flat(settings, "")
    )
    return (
        f"<details><summary>All settings</summary>"
        f'<div class="scroll"><table class="settings"><tbody>{lines}</tbody></table></div></details>'
    )


def _flat(settings: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False, default=str)))
    return rows
