"""Writes the report of one run, or of several side by side, as one HTML file.

The file needs no other file: pictures are data URIs, charts are inline SVG that follows the light or dark colour
scheme, and its own scripts sort tables, save charts and draw the map. The charts are written beside it as PNGs too.
"""

import base64
import dataclasses
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from sail_jax.buckets import put_changed
from sail_jax.evaluation.report.charts import (
    band_charts,
    map_charts,
    modality_charts,
    separability_charts,
    training_charts,
    widths_charts,
)
from sail_jax.evaluation.report.data import RunReport
from sail_jax.evaluation.report.explorer import SCRIPTS, explorer_html
from sail_jax.evaluation.report.failures import failures_html
from sail_jax.evaluation.report.figures import Chart, inline_svg, save_png
from sail_jax.evaluation.report.gallery import gallery_html
from sail_jax.evaluation.report.seed_groups import CAPTION, SeedGroup, group_by_seed, seed_table
from sail_jax.evaluation.report.story import first_screen
from sail_jax.evaluation.report.style import STYLE
from sail_jax.evaluation.report.tables import (
    BOUNDS,
    facts,
    further_table,
    headline_metric,
    main_figures,
    main_metrics,
    same_data,
    settings,
    subject,
    task_table,
    tasks_of,
)
from sail_jax.evaluation.report.words import glossary
from sail_jax.files import commit_bytes

# Keep the page below 8 MB: charts beyond the first limit are PNGs only, the map has the second one, and the gallery
# fills the page to the last.
_CHART_LIMIT = 1_500_000
_MAP_LIMIT = 4_000_000
_PAGE_LIMIT = 7_500_000

_TABLES = (
    "Each task under its own view. Point at the name of a metric, or open the words of this page, for what it is. A "
    "spread/mean_norm near 1 means that all items have nearly one vector, spread/effective_dimension near 1 that they "
    "lie on a line: the model has collapsed. Click the head of a column to sort by it."
)
_BEST = (
    "The best value of each row is bold, by the direction in which the metric is better, where all columns are of the "
    "same queries and items. "
)
_OVER_SEEDS = "Runs whose configs differ by their seed alone are one row; the first row is the baseline of the others. "
_BANDS = (
    "Mean over seeds of the running means of the logged values, and its 95 % interval. Losses of different data sets "
    "differ in scale and are not comparable. While training waited for data, the devices were idle."
)
_MODALITIES = (
    "Results by modality: V frames, T text, A sound. A model that uses all of them should find more with VTA than with "
    "any single letter. Bars are views with the same modalities on both sides, and the task's own view; the matrix "
    "combines every set of modalities of the query with every set of the target."
)
_WIDTHS = (
    "Results with only the first dimensions of the embeddings. With Matryoshka training the curve is flat over a wide "
    "range."
)
_SEPARABILITY = (
    "Cosines of queries with relevant items and with other items; in a trained model the two should lie apart. The "
    "overlap is the share that both have in common, d′ the distance of the means in standard deviations."
)
_TRAINING = (
    "Logged values (faint) and their running mean (strong). Losses of different data sets differ in scale and are not "
    "comparable. While training waited for data, the devices were idle."
)
_MAP = (
    "Items of the corpus, placed by principal components and t-SNE so that neighbours stay together; far distances and "
    "the axes mean nothing. Point at an item to see it, click it for its nearest neighbours by their vectors, drag to "
    "move the map, draw with Lasso to list items. ▶ plays the beginning of a sound; the page has some of them. "
)
_FAILED = "What went wrong, most telling first, with the setting to change where there is one. "
_GALLERY = (
    "Each row is a query and its nearest items, best first. A check mark and a solid frame mark the items that the "
    "test set lists as relevant; other items may still be sensible results. The number is the cosine; ♪ marks items "
    "with sound."
)


def png_folder(path: Path) -> Path:
    """Returns the folder of a report's PNGs: NAME_files beside NAME.html."""
    return path.with_name(f"{path.stem}_files")


def write_report(path: Path, runs: Sequence[RunReport]) -> None:
    """Writes the report of at least one run, and its charts as PNGs into `png_folder`.

    An earlier page is replaced only when the new one is complete.
    """
    folder = png_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(folder)
    title = "sail_jax: " + " | ".join(run.name for run in runs)
    groups = group_by_seed(runs)
    several = len(groups) < len(runs)
    if several:
        page.add("Over seeds", _OVER_SEEDS + CAPTION, _seed_tables(runs, groups))
    page.add("What failed, and why", _FAILED, failures_html(runs))
    page.add("Figures", _BEST * (not several) + _TABLES, _tables(runs, best=not several))
    page.charts("Modalities", _MODALITIES, modality_charts(runs))
    page.charts("Matryoshka sizes", _WIDTHS, widths_charts(runs))
    page.charts("Separability", _SEPARABILITY, separability_charts(runs))
    if several:
        page.charts("Training", _BANDS, band_charts(groups))
    else:
        page.charts("Training", _TRAINING, training_charts(runs))
    _add_map(page, runs)
    _add_gallery(page, runs)
    page.add("Notes", "", _notes(runs))
    page.add("The run" if len(runs) == 1 else "The runs", "", facts(runs))
    head = ("" if several else first_screen(runs)) + glossary(runs)
    text = page.text(title, head, settings(runs))
    put_changed(folder)
    # Text from the web may contain unpaired surrogates, which no encoding can write.
    commit_bytes(path, text.encode(errors="replace"))


class Page:
    """Collects the sections of the page, and writes the PNGs of their charts.

    Args:
        folder: folder of the PNGs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._sections, self._names = folder, [], set()
        self._chart_size = 0

    @property
    def size(self) -> int:
        """Returns the length of all sections added."""
        return sum(len(section) for _, section in self._sections)

    def add(self, heading: str, caption: str, body: str) -> None:
        """Adds a section, unless it is empty."""
        if body:
            name = re.sub(r"\W+", "-", heading.lower())
            words = f'<p class="caption">{html.escape(caption)}</p>' if caption else ""
            section = f'<section id="{name}"><h2>{html.escape(heading)}</h2>{words}{body}</section>\n'
            self._sections.append((f'<a href="#{name}">{html.escape(heading)}</a>', section))

    def charts(self, heading: str, caption: str, charts: Sequence[Chart], above: str = "") -> None:
        """Adds a section of charts; charts that would make the page too large are only written as PNGs.

        Args:
            heading: its heading.
            caption: what the charts show.
            charts: the charts.
            above: HTML between the caption and the charts, which then are folded away.
        """
        shown, left_out = [], 0
        for chart in charts:
            chart = self._renamed(chart)
            svg = inline_svg(chart)
            save_png(chart, self._folder)
            if self._chart_size + len(svg) > _CHART_LIMIT:
                left_out += 1
                continue
            self._chart_size += len(svg)
            shown.append(f'<figure data-name="{chart.name}">{svg}{_links(chart)}</figure>')
        body = f'<div class="charts">{"".join(shown)}</div>' if shown else ""
        if above and body:
            body = f"{above}<details><summary>As pictures</summary>{body}</details>"
        if left_out:
            folder = html.escape(self._folder.name)
            body += f'<p class="caption">{left_out} charts are only in {folder}/, to keep the page small.</p>'
        self.add(heading, caption, body)

    def _renamed(self, chart: Chart) -> Chart:
        """Returns the chart under a unique name: different texts may give the same file name."""
        name, number = chart.name, 1
        while name.lower() in self._names:
            number += 1
            name = f"{chart.name}-{number}"
        self._names.add(name.lower())
        return dataclasses.replace(chart, name=name)

    def text(self, title: str, head: str, tail: str) -> str:
        """Returns the HTML of the page."""
        links = "".join(link for link, _ in self._sections)
        script = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
        sections = "".join(section for _, section in self._sections)
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body><main>
<header><h1>{html.escape(title)}</h1>{head}</header>
<nav aria-label="Sections">{links}</nav>
{sections}{tail}
</main><script>{script}</script></body></html>
"""


def _policy(script: str) -> str:
    """Returns the content security policy: the page's own script by its hash, pictures within the page."""
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{own}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "media-src data:; "
        "base-uri 'none'"
    )


def _links(chart: Chart) -> str:
    """Returns the HTML of what saves a chart: its values, and a place for what its script adds."""
    values = html.escape("data:text/csv;charset=utf-8," + quote(chart.csv.encode(errors="replace")))
    label = html.escape(f"Save the values as CSV: {chart.label}")
    link = f'<a href="{values}" download="{chart.name}.csv" aria-label="{label}">CSV</a>' if chart.rows else ""
    return f'<figcaption class="links">{link}</figcaption>'


def _seed_tables(runs: Sequence[RunReport], groups: Sequence[SeedGroup]) -> str:
    """Returns a table for the main figure of each task, and folded away one for each further figure."""
    shown, folded = "", ""
    baseline = groups[0].name if len(groups) > 1 else ""
    for task in tasks_of(runs):
        mains = [main_figures(run, task, subject(run)) for run in runs]
        names = main_metrics(list(dict.fromkeys(name for main in mains if main for name in main.metrics)))
        first = headline_metric(names, next((main.corpus for main in mains if main), 0))
        for name in sorted(names, key=lambda name: name != first):
            figure = f"{task}/{name}"
            drawn = seed_table(groups, figure, baseline, compared=same_data(runs, task))
            drawn = f"<h3>{html.escape(figure)}</h3>{drawn}"
            shown, folded = (shown + drawn, folded) if name == first else (shown, folded + drawn)
    details = f"<details><summary>Further figures</summary>{folded}</details>" if folded else ""
    return f'<div class="wide">{shown}</div>{details}' if shown else ""


def _tables(runs: Sequence[RunReport], *, best: bool) -> str:
    tables = [
        f"<div><h3>{html.escape(task)}</h3>{task_table(runs, task, best=best)}{further_table(runs, task)}</div>"
        for task in tasks_of(runs)
    ]
    # Tables of one run are narrow enough to stand side by side.
    kind = "tables" if len(runs) == 1 else "wide"
    return f'<div class="{kind}">{"".join(tables)}</div>' if tables else ""


def _add_map(page: Page, runs: Sequence[RunReport]) -> None:
    explorer, shown, count = explorer_html(runs, _MAP_LIMIT)
    sampled = f"The page shows {shown:,} of {count:,} items, a sample, to stay small." if shown < count else ""
    page.charts("Map of the space", _MAP + sampled, map_charts(runs), above=explorer)


def _add_gallery(page: Page, runs: Sequence[RunReport]) -> None:
    galleries = [(run.name, run.gallery) for run in runs if run.gallery]
    sheets, shown, count = gallery_html(galleries, _PAGE_LIMIT - page.size)
    caption = _GALLERY
    if shown < count:
        caption += f" {count - shown:,} of {count:,} queries are left out to keep the file small."
    page.add("Nearest items", caption, sheets)


def _notes(runs: Sequence[RunReport]) -> str:
    notes = [
        f"{task}: the runs were evaluated on different data or another task of this name, so that none is marked as "
        "the best."
        for task in tasks_of(runs)
        if not same_data(runs, task)
    ]
    for run in runs:
        of = f"{run.name}, " if len(runs) > 1 else ""
        notes += [
            f"{of}{f.task}, {f.model}, {f.view}: {f.skipped:,} queries are left out, because they or all their "
            "relevant items lack the modalities of the task."
            for f in run.figures
            if f.main and f.skipped and f.model not in BOUNDS
        ]
        if not run.gallery and not run.maps:
            notes.append(
                f"{run.name} has no report_data.json, so its nearest items and its map are missing; evaluate it again."
            )
    return "".join(f"<p>{html.escape(note)}</p>" for note in dict.fromkeys(notes))
