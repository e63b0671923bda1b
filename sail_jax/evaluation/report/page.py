"""Writes the report of one run, or of several side by side, as one HTML file.

The file needs no other file: pictures are data URIs, charts are inline SVG that follows the light or dark colour
scheme, and there is no script. The charts are written beside it as PNGs too.
"""

import html
from collections.abc import Sequence
from pathlib import Path

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
from sail_jax.evaluation.report.figures import Chart, inline_svg, save_png
from sail_jax.evaluation.report.gallery import gallery_html
from sail_jax.evaluation.report.seed_groups import CAPTION, SeedGroup, group_by_seed, seed_table
from sail_jax.evaluation.report.style import STYLE
from sail_jax.evaluation.report.tables import (
    BOUNDS,
    facts,
    further_table,
    headline,
    headline_metric,
    main_figures,
    main_metrics,
    same_data,
    settings,
    subject,
    task_table,
    tasks_of,
)
from sail_jax.files import commit_bytes

# Keep the page below 3 MB: charts beyond the first limit are PNGs only, and the gallery fills the page to the second.
_CHART_LIMIT = 1_500_000
_PAGE_LIMIT = 2_900_000

_TABLES = (
    "Each task under its own view. Recall@k is the share of all relevant items "
    "that are among the k nearest items of the corpus. Higher is better, except for separability/overlap, the "
    "share that the cosines of relevant and of other pairs have in common. The untrained model is the same network "
    "before its first step; chance is a random ranking. A spread/mean_norm near 1 means that all items have "
    "nearly one vector, spread/effective_dimension near 1 that they lie on a line: the model has collapsed."
)
_BEST = "The best value of each row is bold. "
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
    "the axes mean nothing. The colour is the first label of the item; the most frequent labels are named."
)
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
    page.add("Figures", _BEST * (not several) + _TABLES, _tables(runs, best=not several))
    page.charts("Modalities", _MODALITIES, modality_charts(runs))
    page.charts("Matryoshka sizes", _WIDTHS, widths_charts(runs))
    page.charts("Separability", _SEPARABILITY, separability_charts(runs))
    if several:
        page.charts("Training", _BANDS, band_charts(groups))
    else:
        page.charts("Training", _TRAINING, training_charts(runs))
    page.charts("Map of the space", _MAP, map_charts(runs))
    _add_gallery(page, runs)
    page.add("Notes", "", _notes(runs))
    text = page.text(title, facts(runs) + ("" if several else headline(runs)), settings(runs))
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
            name = heading.lower().replace(" ", "-")
            words = f'<p class="caption">{html.escape(caption)}</p>' if caption else ""
            section = f'<section id="{name}"><h2>{html.escape(heading)}</h2>{words}{body}</section>\n'
            self._sections.append((f'<a href="#{name}">{html.escape(heading)}</a>', section))

    def charts(self, heading: str, caption: str, charts: Sequence[Chart]) -> None:
        """Adds a section of charts; charts that would make the page too large are only written as PNGs."""
        shown, left_out = [], 0
        for chart in charts:
            chart = self._renamed(chart)
            svg = inline_svg(chart)
            save_png(chart, self._folder)
            if self._chart_size + len(svg) > _CHART_LIMIT:
                left_out += 1
                continue
            self._chart_size += len(svg)
            shown.append(f"<figure>{svg}</figure>")
        body = f'<div class="charts">{"".join(shown)}</div>' if shown else ""
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
        return Chart(name, chart.label, chart.figure)

    def text(self, title: str, head: str, tail: str) -> str:
        """Returns the HTML of the page."""
        links = "".join(link for link, _ in self._sections)
        sections = "".join(section for _, section in self._sections)
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body><main>
<header><h1>{html.escape(title)}</h1>{head}</header>
<nav>{links}</nav>
{sections}{tail}
</main></body></html>
"""


def _seed_tables(runs: Sequence[RunReport], groups: Sequence[SeedGroup]) -> str:
    """Returns a table for the main figure of each task, and folded away one for each further figure."""
    shown, folded = "", ""
    baseline = groups[0].name if len(groups) > 1 else ""
    for task in tasks_of(runs):
        mains = [main_figures(run, task, subject(run)) for run in runs]
        names = main_metrics(list(dict.fromkeys(name for main in mains if main for name in main.metrics)))
        first = headline_metric(names)
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
