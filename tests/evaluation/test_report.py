"""The report's page (self-contained, right figures, best values marked, small), and the files that it is drawn from."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import json
import pathlib
import re
import urllib.parse
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import report_runs
import tiny
from PIL import Image
from report_runs import picture

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.data.media.sound import decode_audio
from sail_jax.data.pipeline import open_store
from sail_jax.data.tables import Pair, write_pairs
from sail_jax.data.thumbnail import thumbnail
from sail_jax.errors import SailError
from sail_jax.evaluation.report.charts import (
    figures_by_width,
    map_charts,
    modality_charts,
    separability_charts,
    training_charts,
    widths_charts,
)
from sail_jax.evaluation.report.data import (
    RunReport,
    SpaceMap,
    StoredResult,
    TaskFailures,
    read_runs,
    run_names,
    write_report_data,
)
from sail_jax.evaluation.report.directions import HIGHER, LOWER, NEITHER, facts_of
from sail_jax.evaluation.report.explorer import SCRIPTS, explorer_html
from sail_jax.evaluation.report.failing import failures_of
from sail_jax.evaluation.report.failures import failures_html
from sail_jax.evaluation.report.figures import smoothed
from sail_jax.evaluation.report.gallery import Card, GalleryRow, gallery_html
from sail_jax.evaluation.report.map_items import SHEET
from sail_jax.evaluation.report.page import png_folder, write_report
from sail_jax.evaluation.report.story import farthest, first_screen, sentence, standings
from sail_jax.evaluation.report.summary import gather
from sail_jax.evaluation.report.tables import best_of, format_metric, main_metrics, task_table
from sail_jax.evaluation.retrieval import RetrievalTask, load_retrieval
from sail_jax.evaluation.suite import TaskResult, evaluation_record, headline
from sail_jax.items import Item
from sail_jax.patterns import MODALITY_SETS, Pattern
from sail_jax.runs.directory import RunDirectory
from sail_jax.vectors.top_k import top_k

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert('x')</script>\"'&<img src=http://evil.example/x.png onerror=go()> $a_b$ </style>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Parses a page: elements with their attributes, visible text, and whether every element is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.open, self.errors = [], "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def classes(self, name):
        return sum(name in (attributes.get("class") or "").split() for _, attributes in self.elements)


def write(path, *runs):
    write_report(path, runs)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def full(folder):
    return write(folder / "run" / "report.html", report_runs.run())


@pytest.fixture(scope="module")
def compared(folder):
    return write(folder / "both.html", report_runs.run("a/run"), report_runs.run("b/run", 0.52, 3))


def assert_stands_alone(text, page):
    assert page.errors == []
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "iframe", "object", "embed", "base"}
    own, *others = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert own == "".join(path.read_text() for path in SCRIPTS) and others == []
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert len(policy) == 1 and f"script-src 'sha256-{digest}';" in policy[0] and "default-src 'none'" in policy[0]
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "data:text/csv", "#")), attributes
    assert not [a for a in page.all("script") if set(a) - {"type", "id"}]
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, flags=re.DOTALL)
    styles += [attributes.get("style") or "" for _, attributes in page.elements]
    assert not [style for style in styles if "@import" in style or re.search(r"url\((?!#)", style)]


def assert_ids_are_sound(text, page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


@pytest.mark.parametrize("which", ["full", "compared"])
def test_page_is_well_formed_and_self_contained(which, request):
    text, page = request.getfixturevalue(which)
    assert_stands_alone(text, page)
    assert_ids_are_sound(text, page)
    assert "prefers-color-scheme: dark" in text
    assert any(attributes.get("name") == "viewport" for attributes in page.all("meta"))


def test_values_are_shown(full):
    text = re.sub(r"\s+", " ", full[1].text)
    for shown in (
        *("quick & small", "400 of 400, 64 pairs each", "1,234", "5,678", "recall@1", "TF-IDF", "T → VTA"),
        *("45.0 %", "4.5 %", "22.5 %", "9.9 %", "0.612", "0.811", "20.0 %", "model.llm.width", "1536", "[1, 2]"),
        *(
            "what is asked",
            "free text",
            "first found",
            "0.91",
            "-0.25",
            "copair",
            "step",
            "Learning rate",
            "Temperature",
        ),
        *("Gradient norm", "Time waited for data", "dimensions kept", "shown of the target", "topic 3", "other pairs"),
    ):
        assert shown in text, shown


def test_headline_compares_the_main_view_with_the_untrained_model(full):
    tiles = re.findall(r'<div class="tile">.*?</div></div>', full[0], flags=re.DOTALL)
    tiles = [re.sub(r"\s+", " ", Page(tile).text) for tile in tiles]
    assert len(tiles) == 2
    assert "i2i" in tiles[0] and "3.0 % → 45.0 %" in tiles[0]
    assert "q2i" in tiles[1] and "22.5 %" in tiles[1] and "untrained" not in tiles[1]


def rows_of(table):
    """Returns the rows of the tables: {label: [(text, whether it is bold)]}."""
    rows = re.findall(r"<tr><th[^>]*>([^<]*)</th>(.*?)</tr>", table.partition("<tbody>")[2])
    return {
        label: [(text, bool(mark)) for mark, text in re.findall(r"<td([^>]*)>([^<]*)", cells)] for label, cells in rows
    }


def test_best_of_each_row_is_bold_and_for_some_metrics_it_is_the_lowest():
    a, b = report_runs.run("a"), report_runs.run("b", 0.52)
    rows = rows_of(task_table([a, b], "i2i"))
    assert rows["recall@10"] == [("3.0 %", False), ("45.0 %", False), ("3.0 %", False), ("52.0 %", True)]
    assert rows["separability/overlap"] == [("90.0 %", False), ("20.0 %", True), ("90.0 %", False), ("20.0 %", True)]
    alone = rows_of(task_table([a], "q2i"))
    assert alone["recall@10"] == [("9.9 %", False), ("22.5 %", True)]


def test_chance_and_ceiling_stand_beside_the_figures_and_are_never_the_best():
    view = Pattern("V", "V")
    values = {"ceiling": 0.6, "chance": 0.2, "untrained": 0.1, "trained": 0.3}
    figures = [StoredResult(model, "t", view, True, 8, {"recall@10": value}) for model, value in values.items()]
    page = task_table([RunReport("r", figures)], "t")
    of_models = [("20.0 %", False), ("10.0 %", False), ("30.0 %", True), ("60.0 %", False)]
    assert rows_of(page)["recall@10"] == of_models
    assert "<th>chance</th>" in page and "chance 20.0 % · ceiling 60.0 %" in first_screen([RunReport("r", figures)])


def test_further_cut_offs_are_folded_away_and_none_is_lost():
    names = [f"{family}@{k}" for family in ("recall", "ndcg", "mrr", "map") for k in (1, 10, 50)] + ["auc"]
    values = {name: number / 100 for number, name in enumerate(names)}
    runs = [
        RunReport(
            "r", [StoredResult(model, "<t>", Pattern("V", "V"), True, 8, values) for model in ("untrained", "trained")]
        )
    ]
    shown, folded = task_table(runs, "<t>").split("<details>")
    main = ["recall@1", "recall@10", "recall@50", "ndcg@10", "mrr@10", "map@10", "auc"]
    assert list(rows_of(shown)) == [*main, "view", "queries", "left out", "corpus"]
    assert list(rows_of(folded)) == [name for name in names if name not in main]
    assert [text for text, _ in rows_of(folded)["ndcg@50"]] == ["5.0 %"] * 2
    assert "Further cut-offs of &lt;t&gt; (6)" in folded and Page(shown + "<details>" + folded).errors == []
    assert main_metrics(["recall@1", "ndcg@1", "ndcg@5"]) == ["recall@1", "ndcg@5"]


def test_best_of():
    assert best_of("recall@10", [0.1, None, float("nan"), 0.3]) == 0.3
    assert best_of("separability/overlap", [0.1, 0.3]) == 0.1
    assert best_of("recall@10", [0.1, None]) is None  # nothing to compare it with
    assert best_of("recall@10", []) is None
    assert best_of("recall@10", [1.0, 1.0, None]) is None  # none is better than the other


def test_shares_are_shown_in_per_cent_and_other_metrics_as_numbers():
    assert format_metric("recall@10", 0.4567) == format_metric("bijective", 0.4567) == "45.7 %"
    assert format_metric("kendall", -0.0734) == "-0.073" and format_metric("nmi", 0.65) == "0.650"
    assert format_metric("recall@10", None) == format_metric("auc", float("nan")) == "–"


def test_several_runs_have_a_group_of_columns_each(compared):
    text, page = compared
    groups = re.findall(r'<th class="group" colspan="(\d)">([^<]*)', text)
    assert groups == [("2", "a/run"), ("2", "b/run")] * 2
    assert "Settings that differ" in page.text and "1539" in page.text and "[1, 2]" not in page.text
    nearest = Page(text.partition('id="nearest-items"')[2])
    assert len(nearest.all("img")) == 1 + 2 * 2 + 2 * 1


def test_a_query_that_runs_share_is_shown_once(compared):
    page = Page(compared[0].partition('id="nearest-items"')[2])
    assert page.classes("row") == 2 and page.classes("run") == 4
    assert page.text.count("what is asked") == 1 and page.text.count("second found") == 2


def test_every_chart_is_a_png_too(full, compared, folder):
    one = {path.stem for path in png_folder(folder / "run" / "report.html").iterdir()}
    assert one == {
        *("loss", "evaluation", "learning_rate", "temperature", "gradient_norm", "data_wait", "map-i2i"),
        *("separability-i2i", "separability-q2i", "matryoshka-i2i", "modalities-i2i", "modalities-q2i"),
        "modality_matrix-i2i",
    }
    assert full[0].count("<figure") == len(one)
    both = sorted(png_folder(folder / "both.html").iterdir())
    assert {"map-i2i-a_run", "map-i2i-b_run", "loss-copair", "loss-search"} <= {path.stem for path in both}
    assert compared[0].count("<figure") == len(both)
    for path in both:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
            assert image.width > 800 and pixels[0, 0] == 255 and pixels.min() < 100


def test_matrix_has_every_pair_of_modality_sets_in_its_place():
    figures = [
        StoredResult("trained", "i2i", Pattern(q, t), False, 96, {"recall@10": (10 * i + j) / 1000})
        for i, q in enumerate(MODALITY_SETS)
        for j, t in enumerate(MODALITY_SETS)
        if (q, t) != ("A", "V")
    ]
    figures.append(StoredResult("trained", "i2i", Pattern("VTA", "VTA"), True, 96, {"recall@10": 0.9}))
    figures.append(StoredResult("trained", "i2i", Pattern("V", "T"), False, 48, {"recall@10": 0.8}))  # of another width
    (chart,) = [c for c in modality_charts([RunReport("r", figures)]) if c.name.startswith("modality_matrix")]
    places = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in chart.figure.axes[0].texts
    }
    assert len(places) == 49
    assert places[0, 1] == "0.1" and places[1, 0] == "1.0" and places[5, 3] == "5.3"
    assert places[2, 0] == "–" and places[6, 6] == "90.0"


def test_without_crossed_views_there_is_no_matrix():
    figures = [
        StoredResult("trained", "i2i", Pattern(v, v), v == "VTA", 0, {"recall@10": 0.1}) for v in ("VTA", "T", "V")
    ]
    (chart,) = modality_charts([RunReport("r", figures)])
    assert chart.name == "modalities-i2i" and [bar.get_width() for bar in chart.figure.axes[0].patches] == [0.1] * 3


def test_widths_are_of_the_own_view_and_in_order():
    run = report_runs.run()
    assert list(figures_by_width(run, "i2i", "trained", "recall@10")) == [8, 24, 48, 96]
    assert figures_by_width(run, "i2i", "trained", "recall@10")[96] == 0.45
    (chart,) = widths_charts([run, report_runs.run("other", 0.5)])
    lines = {line.get_label().strip("\u200b"): line for line in chart.figure.axes[0].lines}
    assert set(lines) == {"trained, quick & small", "untrained, quick & small", "trained, other", "untrained, other"}
    assert lines["trained, other"].get_ydata()[-1] == 0.5 and chart.figure.axes[0].get_xscale() == "log"
    long = widths_charts([report_runs.run("a" * 80), report_runs.run("a" * 79 + "b")])[0].figure
    assert len(long.legends[0].texts) == 4  # names that are alike as far as they are shown have a line each
    assert (
        widths_charts([RunReport("r", [StoredResult("trained", "t", Pattern("V", "V"), True, 8, {"recall@10": 0.5})])])
        == []
    )


def test_histograms_are_shares_of_their_pairs():
    edges, positive = [-1.0, 0.0, 0.5, 1.0], [0, 1, 3]
    histogram = {"edges": edges, "positive": positive, "negative": [0, 0, 0]}
    figures = [StoredResult("trained", "t", Pattern("V", "V"), True, 8, {}, histograms=histogram)]
    (chart,) = separability_charts([RunReport("r", figures)])
    filled = chart.figure.axes[0].patches[0]
    np.testing.assert_allclose(filled.get_data().values, [0, 0.25, 0.75])
    assert chart.figure.axes[0].get_xlim() == pytest.approx((-0.02, 1.02))


def test_training_curves_equal_the_training_log():
    charts = {chart.name: chart for chart in training_charts([report_runs.run()])}
    labels = [line.get_label() for line in charts["loss"].figure.axes[0].lines]
    assert [label.strip("\u200b") for label in labels if not label.startswith("_")] == ["copair", "search"]
    evaluated = charts["evaluation"].figure.axes[0].lines
    np.testing.assert_array_equal(evaluated[0].get_xdata(), [80, 160, 240, 320, 400])
    np.testing.assert_allclose(evaluated[1].get_ydata(), [0.042, 0.09, 0.138, 0.186, 0.234])
    both = training_charts([report_runs.run("a"), RunReport("b", log=report_runs.log(1)[:20])])
    (copair,) = [chart for chart in both if chart.name == "loss-copair"]
    assert len(copair.figure.axes[0].lines) == 4  # of each run, as logged and smoothed
    assert training_charts([RunReport("r", log=[{"step": 1, "loss": None, "note": "x"}])]) == []


def test_map_names_the_most_frequent_labels_alike_in_all_runs():
    def space(counts):
        labels = [label for label, count in counts.items() for _ in range(count)]
        return SpaceMap("i2i", [[i, i] for i in range(len(labels))], labels)

    counts = {f"l{i}": 20 - i for i in range(12)}
    runs = [RunReport("a", maps=[space(counts)]), RunReport("b", maps=[space({"l9": 3, "l8": 60, "": 500})])]
    first, second = map_charts(runs)

    def colours(chart):
        return {
            c.get_label().strip("\u200b"): tuple(c.get_facecolor()[0][:3]) for c in chart.figure.axes[0].collections
        }

    assert set(colours(first)) == {"other", "l8", *(f"l{i}" for i in range(7))}
    assert set(colours(second)) == {"other", "l8"}
    assert colours(first)["l8"] == colours(second)["l8"] and len(set(colours(first).values())) == 9


def test_pictures_are_small_and_decode(full):
    images = full[1].all("img")
    assert [attributes["alt"] for attributes in images][-4:] == ["q", "a", "b", "a"]
    for attributes in images:
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as image:
            image.load()
            assert image.size == (96, 72)


def test_thumbnail_shows_the_picture():
    stored = picture("PNG")
    shown = Image.open(io.BytesIO(base64.b64decode(thumbnail(stored).partition(",")[2])))
    expected = Image.open(io.BytesIO(stored)).resize((96, 72))
    assert np.abs(np.asarray(shown, float) - np.asarray(expected, float)).mean() < 10
    assert thumbnail(None) is None and thumbnail(b"not a picture") is None


def test_relevance_is_marked_by_more_than_colour(full):
    text, page = full
    rows = text.partition('id="nearest-items"')[2]
    blocks = re.findall(r"<li class=.*?</li>", rows, flags=re.DOTALL)
    assert len(blocks) == 5 and sum("✓ right" in block for block in blocks) == 3
    for block in blocks:
        assert ("✓" in block) == block.startswith('<li class="relevant"') == ("✗" not in block)
    # The caption explains the note sign; the items with sound carry it.
    assert rows.count('class="sound"') == 3
    assert "no picture" in page.text and "text query" in page.text and "no text" in page.text


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    card = Card(HOSTILE, HOSTILE, '"><script>x()</script>', True, True, 1.0)
    histogram = report_runs.histograms(0.3)
    view, metrics = Pattern(HOSTILE, HOSTILE), {HOSTILE: 0.5, "recall@10": 0.1}
    figures = [
        StoredResult(model, HOSTILE, view, True, width, metrics, 1, 1, 1, histogram)
        for model in ("trained", HOSTILE)
        for width in (8, 16)
    ]
    run = RunReport(
        HOSTILE,
        figures,
        [{"step": i, f"loss/{HOSTILE}": i, "loss/_hidden": i} for i in range(3)],
        facts={HOSTILE: HOSTILE},
        gallery=[GalleryRow(HOSTILE, dataclasses.replace(card, thumbnail=None), [card])],
        maps=[SpaceMap(HOSTILE, [[0, 1], [1, 0]], [HOSTILE, "日本語 _x"])],
        settings={HOSTILE: HOSTILE},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # about glyphs, say, which users can do nothing about
        text, page = write(tmp_path / "r.html", run, dataclasses.replace(run, name="../b"))
    images = page.all("img")
    assert len(images) == 2 and images[0].pop("src") == images[1].pop("src") == '"><script>x()</script>'
    page.elements = [(tag, attributes) for tag, attributes in page.elements if tag != "img"]
    assert_stands_alone(text, page)
    assert page.text.count("<script>alert('x')</script>") >= 9
    assert "_hidden" in page.text and "日本語 _x" in page.text
    assert {path.parent for path in tmp_path.rglob("*.png")} == {png_folder(tmp_path / "r.html")}
    assert not [path for path in tmp_path.rglob("*") if path.suffix not in (".png", ".html") and path.is_file()]


def test_empty_report_and_parts_left_out(tmp_path):
    text, page = write(tmp_path / "r.html", RunReport("nothing yet"))
    assert_stands_alone(text, page)
    assert [attributes["id"] for attributes in page.all("section")] == ["notes"]
    assert not {tag for tag, _ in page.elements} & {"svg", "details", "table"}


def test_stored_embeddings_replace_the_trained_model(tmp_path):
    figures = [dataclasses.replace(f, model="embeddings") for f in report_runs.all_figures() if f.model == "trained"]
    text, page = write(tmp_path / "r.html", RunReport("r", figures))
    assert page.classes("tile") == 2 and "45.0 %" in page.text
    names = {path.stem for path in png_folder(tmp_path / "r.html").iterdir()}
    assert {"matryoshka-i2i", "modality_matrix-i2i", "modalities-i2i", "separability-i2i"} <= names


def test_a_task_without_recall_has_a_table_only(tmp_path):
    figures = [
        StoredResult("trained", "scored", Pattern("VTA", "VTA"), True, 96, {"auc": 0.9}),
        StoredResult("trained", "x", Pattern("V", "V"), True, 0, {}),
    ]
    text, page = write(tmp_path / "r.html", RunReport("r", figures))
    assert "0.900" in page.text and "<figure" not in text


def large_row(task, seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    card = Card("i", "words", thumbnail(buffer.getvalue()), score=0.5)
    return GalleryRow(task, card, [card] * 8)


def test_large_report_stays_below_eight_megabytes_and_counts_what_it_leaves_out(tmp_path):
    rows = [large_row("i2i")] * 190 + [large_row("q2i")] * 60
    large = report_runs.run(figures=(), log=(), gallery=rows, failures=(), maps=())
    text, page = write(tmp_path / "r.html", large)
    assert 7_000_000 < len(text.encode()) < 8_000_000
    left_out = int(re.search(r"(\d+) of 250 queries are left out", page.text).group(1))
    assert 0 < left_out == 250 - page.classes("row")


def test_a_map_beyond_its_limit_is_a_sample_and_says_so(tmp_path, monkeypatch):
    space = report_runs.space_map(count=2000)
    body, shown, count = explorer_html([RunReport("r", maps=[space])], 100_000)
    assert shown == 1000 and count == 2000 and len(body) < 100_000 + 4000
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', body).group(1))["maps"][0]
    assert len(data["ids"]) == len(data["x"]) == len(data["near"]) == 1000 and len(data["sheets"]) == -(-1000 // SHEET)
    assert min(data["x"]) >= 0 and max(data["x"]) <= 1000 and max(map(max, data["near"])) < 1000
    loud = dataclasses.replace(space, sounds={str(row): "x" * 10_000 for row in range(9)})
    assert explorer_html([RunReport("r", maps=[loud])], 100_000)[0].count("x" * 10_000) == 3
    monkeypatch.setattr("sail_jax.evaluation.report.page._MAP_LIMIT", 100_000)
    page = write(tmp_path / "r.html", RunReport("r", maps=[space]))[1]
    assert "The page shows 1,000 of 2,000 items, a sample" in page.text
    # Files of earlier versions have no items: their map is a picture.
    assert explorer_html([RunReport("r", maps=[SpaceMap("t", [[0, 0]], ["x"])])], 10**6) == ("", 0, 0)


def test_the_sentence_names_what_the_model_is_not_better_than():
    run = report_runs.run()
    best = standings(run)[0]
    said = "After 400 steps the model finds 45.0 % of the right answers of i2i among the 10 nearest items (recall@10)"
    assert sentence(run, best) == f"{said}; before training it found 3.0 %."
    view = Pattern("T", "VTA")
    values = {"chance": 0.01, "untrained": 0.02, "tfidf": 0.3, "trained": 0.2, "ceiling": 0.6}
    figures = [StoredResult(model, "q2i", view, True, 8, {"recall@10": value}) for model, value in values.items()]
    weak = RunReport("r", figures, step=5)
    said = sentence(weak, standings(weak)[0])
    assert said.endswith(
        "finds 30.0 %, a random order 1.0 %, a perfect model 60.0 %. It is not yet better than TF-IDF."
    )
    lost = RunReport("r", [dataclasses.replace(f, metrics={"recall@10": 0.01}) for f in figures[:4]])
    assert sentence(lost, standings(lost)[0]).endswith(
        "It is not yet better than a random order, untrained and TF-IDF."
    )
    page = first_screen([run])
    assert page.index("After 400 steps") < page.index("What it finds") and "frames, text and sound" in page
    both = first_screen([report_runs.run("a"), report_runs.run("b", 0.52)])
    assert "(share of all right answers that are among the first k found): b 52.0 % and a 45.0 %." in both


def test_what_failed_names_the_setting_to_change(full):
    text, page = full
    said = re.sub(r"\s+", " ", page.text)
    assert "300 of 1,227 queries of i2i (24%) find nothing right among the first 8." in said
    assert "40% of the wrong items found on i2i carry the label of a right answer" in said
    assert said.count("The query lacks sound.") == 3 and "should be found" in said
    rows = [
        *report_runs.all_figures(),
        *(dataclasses.replace(f, model="chance") for f in report_runs.all_figures()[:1]),
    ]
    flat = {"spread/mean_norm": 0.97, "spread/effective_dimension": 1.2, "recall@10": 0.45}
    rows[0] = dataclasses.replace(rows[0], metrics=flat)
    lines = failures_html([RunReport("r", rows, [{"step": 1, "prompt_cut": 7.0}, {"step": 2, "prompt_cut": 9.0}])])
    assert "The model has collapsed." in lines and "optimizer.peak" in lines
    assert "Training cut 8 text tokens of a batch, on average." in lines and "raise config.prompt.max_tokens" in lines
    assert (
        "Sound alone finds hardly more than a random order on i2i" in lines
        and "patterns=(&#x27;A-&gt;A&#x27;,)" in lines
    )


def small_test(trained, items=12):
    """A report of few queries, in which a random order finds most among the first ten."""
    return RunReport(
        "r",
        [
            StoredResult(
                model,
                "t2i",
                Pattern("T", "V"),
                True,
                8,
                {"recall@1": first, "recall@10": 0.83, "recall@100": 1.0},
                queries=items,
                corpus=items,
            )
            for model, first in (("chance", 0.083), ("untrained", 0.083), ("trained", trained))
        ],
    )


def test_a_small_test_is_told_by_what_a_random_order_does_not_find():
    lost = small_test(0.083)
    assert standings(lost)[0].metric == "recall@1"
    said = sentence(lost, standings(lost)[0])
    assert "8.3 % of the right answers of t2i as the nearest item (recall@1)" in said
    assert said.endswith("It is not yet better than a random order and untrained.")
    lines = failures_html([lost])
    assert "no better on t2i than before training and a random order (recall@1)" in lines and "--preset small" in lines
    assert "t2i has 12 queries: one that is found or missed moves the figures by 8%" in lines
    assert "no better" not in failures_html([small_test(0.5)])
    large = small_test(0.5, 1_000)
    assert standings(large)[0].metric == "recall@10" and "has 1000 queries" not in failures_html([large])


@pytest.mark.parametrize(("values", "bold"), [((0.0, 0.05, 0.067), 0), ((0.05, 0.1, 0.067), 1), ((0.4, 0.4, 0.067), 0)])
def test_nothing_is_bold_that_a_random_order_reaches(values, bold):
    models = zip(("untrained", "trained", "chance"), values, strict=True)
    figures = [StoredResult(m, "t", Pattern("V", "V"), True, 8, {"recall@10": v}, 20, corpus=99) for m, v in models]
    assert task_table([RunReport("r", figures)], "t").count('class="best"') == bold


def test_a_small_test_says_what_gives_it_more_queries_by_where_its_table_comes_from():
    def remedy(table, **changes):
        settings = {"eval": {"tasks": {"t2i": {"table": table}}}, "builders": {"copair": {}, "search": {}}} | changes
        lines = failures_html([dataclasses.replace(small_test(0.5), settings=settings)])
        return re.search(r"has 12 queries.*?What to change: (.*?)\.</span>", lines)[1]

    assert "config.ingest.holdout" in remedy("tables/items.parquet") and "log" not in remedy("tables/items.parquet")
    assert remedy("tables/copair.parquet").endswith("config.logs.test_share or config.builders.copair.held_out")
    assert remedy("tables/search.parquet").endswith("a larger config.logs.test_share")
    assert "holdout" in remedy("tables/copair.parquet", ingest={"tables": {"copair": {}}})


def test_items_of_one_text_are_told_and_sound_that_no_item_has_is_not_missed(gathered, world):
    """Four pictures of two titles: what is found first has the title of the right answer, and is another item."""
    _, task, store, *_ = gathered
    items = [Item(f"i{n}", {"title": "red mug" if n % 2 else "blue mug"}, labels=(f"{n}",)) for n in range(4)]
    relevant, rows = [np.array([n]) for n in range(4)], np.array([[2, 1], [3, 0], [0, 3], [3, 1]])
    of_itself = dataclasses.replace(task.settings, table="trained_on_by_none.parquet")
    small = dataclasses.replace(
        task, settings=of_itself, queries=["mug"] * 4, corpus=np.arange(4), relevant=relevant, exclude=rows[:, 0]
    )
    shelf = SimpleNamespace(entry=lambda at: store.entry(at) if isinstance(at, str) else items[at])
    result = results(rows=rows, cosines=np.full((4, 2), 0.5, np.float32))
    found = failures_of(config_lib.build(tiny.experiment(world)), result, small, shelf)
    assert (found.missed, found.twins) == (3, 1.0)
    assert all("The first item found has the very text of a right answer." in worst.why for worst in found.worst)
    assert not [why for worst in found.worst for why in worst.why if "lacks" in why]
    assert "100% of the wrong items that come first on i2i have the very text" in failures_html(
        [RunReport("r", failures=[found])]
    )


def test_the_sentence_names_the_tasks_on_which_nothing_was_learned():
    good, bad = small_test(0.5), small_test(0.0)
    figures = [*good.figures, *(dataclasses.replace(f, task="clicks") for f in bad.figures)]
    run = dataclasses.replace(good, figures=figures)
    said = sentence(run, standings(run)[0])
    assert "of t2i" in said and said.endswith("On clicks it is no better than a random order.")
    assert "On " not in sentence(good, standings(good)[0])


def test_labels_that_most_items_have_make_no_answer_doubtful():
    def lines(common):
        return failures_html([RunReport("r", failures=[TaskFailures("i2i", 9, 1, 8, doubtful=0.5, common=common)])])

    assert "50% of the wrong items" in lines(0.1) and "50% of the wrong items" not in lines(0.45)


def test_metrics_know_their_direction():
    assert [facts_of(f"separability/{name}").direction for name in ("gap", "overlap", "negative_mean")] == [
        *(HIGHER, LOWER, LOWER)
    ]
    assert best_of("separability/negative_mean", [0.2, 0.9]) == 0.2
    for name in ("separability/positive_mean", "spread/mean_norm", "graded/queries", "unknown"):
        assert facts_of(name).direction == NEITHER and best_of(name, [0.2, 0.9]) is None
    for name in ("recall@1", "accuracy@5", "ndcg@10", "mrr@10", "map@5", "auc", "graded/ndcg@10", "clustering/nmi"):
        assert facts_of(name).direction == HIGHER and facts_of(name).meaning


def test_the_best_is_bold_only_over_the_same_queries():
    view = Pattern("V", "V")
    figures = [
        StoredResult(model, "t", view, True, 8, {"recall@10": value}, queries=queries, corpus=9)
        for model, value, queries in (("tfidf", 0.5, 7), ("trained", 0.3, 9))
    ]
    assert not any(bold for _, bold in rows_of(task_table([RunReport("r", figures)], "t"))["recall@10"])


def test_values_behind_a_chart_are_in_the_page(full):
    links = [a for a in full[1].all("a") if a.get("download")]
    assert len(links) == full[0].count("<figure")
    (loss,) = [a["href"] for a in links if a["download"] == "loss.csv"]
    rows = urllib.parse.unquote(loss.partition(",")[2]).splitlines()
    assert rows[0] == "line,step,loss" and rows[1].startswith("copair,10,") and len(rows) == 1 + 2 * 40


def test_a_short_gallery_has_queries_of_every_task():
    rows = [large_row("i2i")] * 5 + [large_row("q2i")] * 5
    whole = len(gallery_html([("r", rows)], 10**9)[0])
    sheets, shown, count = gallery_html([("r", rows)], int(whole * 0.45))
    assert (shown, count) == (4, 10)
    assert [len(part.split('class="row"')) - 1 for part in sheets.split("<h3>")[1:]] == [2, 2]


def test_charts_beyond_the_limit_are_pngs_only(tmp_path, monkeypatch):
    monkeypatch.setattr("sail_jax.evaluation.report.page._CHART_LIMIT", 40_000)
    text, page = write(tmp_path / "r.html", report_runs.run(figures=(), maps=(), gallery=()))
    assert 0 < text.count("<svg") < 6 and len(list(png_folder(tmp_path / "r.html").iterdir())) == 6
    assert "are only in r_files/" in page.text


def test_same_report_gives_same_bytes_and_replaces_the_old_one(tmp_path):
    path, other = tmp_path / "report.html", tmp_path / "other.html"
    path.write_text("an older report")
    few = report_runs.run(log=[{"step": 1, "loss": 2.0}], figures=report_runs.all_figures()[:3])
    assert write(path, few)[0] == write(other, few)[0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        *("other.html", "other_files", "report.html", "report_files")
    ]
    assert {p.name: p.read_bytes() for p in png_folder(path).iterdir()} == {
        p.name: p.read_bytes() for p in png_folder(other).iterdir()
    }


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("an older report")

    def full_disk(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(path, [RunReport("new")])
    assert path.read_bytes() == b"an older report"


def test_text_that_cannot_be_encoded_does_not_stop_the_report(tmp_path):
    assert "half ? pair" in write(tmp_path / "r.html", RunReport("half \ud800 pair"))[1].text


def test_smoothed_is_the_mean_over_the_window():
    values = np.random.default_rng(0).normal(size=200)
    values[50] = np.nan
    expected = [np.nanmean(values[max(0, i - 5) : i + 6]) for i in range(200)]
    np.testing.assert_allclose(smoothed(values), expected, atol=1e-12)
    assert np.isnan(smoothed([float("nan")])).all()


# --------------------------------------------------------------------------------------------------------------- files


def test_names_of_runs_are_the_shortest_that_differ():
    def names(*paths):
        return run_names([pathlib.Path(path) for path in paths])

    assert names("/a/x/run") == ["run"]
    assert names("/a/x/run", "/a/y/run", "/a/y/other") == ["x/run", "y/run", "other"]
    assert names("/a/x/run", "/b/x/run", "/x/run") == ["a/x/run", "b/x/run", "/x/run"]
    assert names("/run", "/b/run") == ["/run", "b/run"]
    with pytest.raises(SailError, match="named twice"):
        names("/a/run", "/a/run")


def results(**changes):
    values = {
        "model": "trained",
        "task": "i2i",
        "view": Pattern("VTA", "VTA"),
        "main": True,
        "metrics": {"recall@10": 0.5, "nmi": float("nan")},
        "queries": 3,
        "skipped": 1,
        "corpus": 4,
        "rows": np.zeros((0, 8), np.int64),
        "cosines": np.zeros((0, 8), np.float32),
        "width": 32,
        "histograms": {"edges": [-1.0, 0.0, 1.0], "positive": [1, 2], "negative": [3, 4]},
    }
    return TaskResult(**(values | changes))


def evaluated(folder, **changes):
    folder.mkdir(parents=True)
    run = RunDirectory(folder)
    run.evaluation.write_text(json.dumps(evaluation_record([results(**changes)], 12)))
    return run


def test_figures_are_read_back_from_the_file(tmp_path):
    run = evaluated(tmp_path / "run")
    assert "NaN" not in run.evaluation.read_text()  # which other readers of JSON refuse
    (read,) = read_runs([run.path])
    assert (read.name, read.step) == ("run", 12)
    (figures,) = read.figures
    assert figures.metrics["recall@10"] == 0.5 and np.isnan(figures.metrics["nmi"])
    assert dataclasses.replace(figures, metrics={}) == StoredResult(
        *("trained", "i2i", Pattern("VTA", "VTA"), True, 32, {}, 3, 1, 4),
        {"edges": [-1.0, 0.0, 1.0], "positive": [1, 2], "negative": [3, 4]},
    )


def test_report_data_is_read_back_from_the_file(tmp_path):
    run, made = evaluated(tmp_path / "run"), report_runs.run("run")
    write_report_data(run.report_data, made)
    (read,) = read_runs([run.path])
    assert (read.facts, read.gallery, read.maps) == (made.facts, made.gallery, made.maps)
    assert read.failures == made.failures
    tree = json.loads(run.report_data.read_text())
    old = {name: of for name, of in tree.items() if name != "failures"}
    old["maps"] = [{name: of[name] for name in ("task", "points", "labels")} for of in tree["maps"]]
    run.report_data.write_text(json.dumps(old))  # as an earlier version wrote it
    assert read_runs([run.path])[0].failures == [] and read_runs([run.path])[0].maps[0].ids == ()
    assert read.settings == json.loads(json.dumps(made.settings))


@pytest.fixture(scope="module")
def gathered(world):
    """Gathers the report of a model with random vectors on the tiny world."""
    config = config_lib.build(tiny.experiment(world))
    store = open_store(config)
    task = load_retrieval(config, "i2i", store)
    z = np.random.default_rng(0).normal(size=(len(task.corpus), 16)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    z[3] = 0  # an item that lacks what the task shows
    queries = z[task.exclude]
    rows, cosines = top_k(queries, z, 8, block=64, exclude=task.exclude)
    result = results(rows=rows, cosines=cosines, sample=(np.arange(len(z)), z))
    narrow = results(rows=rows[:, ::-1], cosines=cosines[:, ::-1], width=16, sample=None)
    made = gather(config, RunDirectory(world), [narrow, result], {"i2i": task}, store)
    return made, task, store, rows, cosines


def test_gallery_shows_what_was_found(gathered):
    made, task, store, rows, cosines = gathered
    assert len(made.gallery) == 6 and {row.task for row in made.gallery} == {"i2i"}
    query = [store[position].item_id for position in task.queries].index(made.gallery[2].query.item_id)
    row = made.gallery[2]
    assert [card.item_id for card in row.results] == [store[int(task.corpus[r])].item_id for r in rows[query]]
    assert [card.score for card in row.results] == pytest.approx(cosines[query].tolist())
    assert [card.relevant for card in row.results] == [r in task.relevant[query] for r in rows[query]]
    assert sum(card.thumbnail is not None for card in row.results) > 3


@pytest.mark.parametrize("modalities", ["T", "V", "VA"])
def test_a_query_is_shown_as_the_model_gets_it(gathered, world, modalities):
    _, task, store, rows, cosines = gathered
    seen = dataclasses.replace(task, query_view=dataclasses.replace(task.query_view, modalities=modalities))
    config, result = config_lib.build(tiny.experiment(world)), results(rows=rows, cosines=cosines)
    made = gather(config, RunDirectory(world), [result], {"i2i": seen}, store)
    asked = [row.query for row in made.gallery] + [worst.row.query for worst in made.failures[0].worst]
    assert any(card.caption for card in asked) == ("T" in modalities)
    assert any(card.thumbnail for card in asked) == ("V" in modalities)
    assert any(card.has_audio for card in asked) == ("A" in modalities)
    found = [card for row in made.gallery for card in row.results]  # answers are shown whole
    assert any(card.caption for card in found) and any(card.thumbnail for card in found)


@pytest.mark.parametrize(
    ("corpus", "shown"),
    [(1000, ["recall@1", "recall@10", "recall@100"]), (100, ["recall@1", "recall@10"]), (12, ["recall@1", "recall@10"])]
    + [(10, ["recall@1"]), (1, ["recall@1"])],
)
def test_tables_leave_out_recalls_that_count_all_of_the_corpus(corpus, shown):
    figures = dict.fromkeys(("recall@1", "recall@10", "recall@100", "ndcg@10"), 0.5)
    assert list(headline(results(metrics=figures, corpus=corpus))) == shown
    assert list(headline(results(metrics={"accuracy@1": 0.5, "accuracy@5": 1.0}, corpus=3))) == [
        "accuracy@1",
        "accuracy@5",
    ]


def test_failures_are_queries_that_find_nothing_right(gathered):
    made, task, store, rows, cosines = gathered
    (failures,) = made.failures
    missed = [q for q, right in enumerate(task.relevant) if len(right) and not np.isin(rows[q], right).any()]
    asked = sum(len(right) > 0 for right in task.relevant)
    assert (failures.queries, failures.missed, failures.found) == (asked, len(missed), 8)
    surest = max(missed, key=lambda query: cosines[query, 0])
    assert failures.worst[0].row.query.item_id == store[task.queries[surest]].item_id
    assert failures.worst[0].wanted.item_id == store[int(task.corpus[task.relevant[surest][0]])].item_id
    assert 0 <= failures.doubtful <= 1


def test_what_training_had_as_a_right_answer_of_a_query_is_not_among_its_worst(gathered, world, tmp_path, monkeypatch):
    _, task, store, rows, _ = gathered
    table, query, row = str(tmp_path / "pairs.parquet"), 3, len(task.corpus) - 1
    taught = Pair(store[task.queries[query]].item_id, None, store[int(task.corpus[row])].item_id)
    write_pairs(table, [(taught, "train")])
    task = dataclasses.replace(task, settings=dataclasses.replace(task.settings, table=table))
    settings = tiny.experiment(world)
    for name in settings.data.datasets:
        settings.data.datasets[name]["table"] = table
    config = config_lib.build(settings)
    wrong = np.array([next(r for r in range(len(task.corpus)) if r not in right) for right in task.relevant])
    rows = np.repeat(wrong[:, None], 8, axis=1)
    rows[query, 0] = row
    cosines = np.zeros(rows.shape, np.float32)
    cosines[query] = 1
    found = failures_of(config, results(rows=rows, cosines=cosines), task, store)
    assert found.taught == 1 and found.missed == sum(len(right) > 0 for right in task.relevant)
    asked_first = found.worst[0].row.query.item_id
    assert asked_first != store[task.queries[query]].item_id
    assert "queries of i2i find an item first that training had as a right answer" in failures_html(
        [RunReport("r", failures=[found])]
    )
    monkeypatch.setattr("sail_jax.evaluation.report.taught._MOST_ROWS", 0)
    assert failures_of(config, results(rows=rows, cosines=cosines), task, store).taught == 0


def test_labels_of_an_item_are_read_once_for_all_queries(gathered, world, monkeypatch):
    made, task, store, rows, cosines = gathered
    read, corpus_item = [], RetrievalTask.corpus_item
    monkeypatch.setattr(RetrievalTask, "corpus_item", lambda *args: read.append(args[1]) or corpus_item(*args))
    config, result = config_lib.build(tiny.experiment(world)), results(rows=rows, cosines=cosines)
    assert failures_of(config, result, task, store).doubtful == made.failures[0].doubtful
    cards = len(made.failures[0].worst) * (rows.shape[1] + 1)
    assert len(read) <= len(task.corpus) + cards


def test_map_shows_every_embedded_item(gathered):
    made, task, store, *_ = gathered
    (space,) = made.maps
    assert len(space.points) == len(space.labels) == len(task.corpus) - 1
    items = {store[int(position)].item_id: store[int(position)] for position in np.delete(task.corpus, 3)}
    assert sorted(space.ids) == sorted(items)
    assert list(space.labels) == [items[i].labels[0] if items[i].labels else "" for i in space.ids]
    assert list(space.modalities) == [items[i].modalities for i in space.ids]
    assert len(space.sheets) == -(-len(space.ids) // SHEET) and space.sheets[0].startswith("data:image/webp")
    sounding = [row for row, item_id in enumerate(space.ids) if items[item_id].audio is not None]
    assert list(map(int, space.sounds)) == sounding[:120] and len(sounding) > 0
    sound = base64.b64decode(space.sounds[str(sounding[0])].partition(",")[2])
    assert 1000 < len(decode_audio(sound, 16_000)) <= 3 * 16_000 + 2000 and len(sound) < 30_000
    assert all(row not in near and len(near) == 8 for row, near in enumerate(space.neighbours))
    assert np.ptp(np.asarray(space.points), axis=0).min() > 1


# ---------------------------------------------------------------------------------------------------------------- verb


def test_the_verb_draws_one_run_and_several(tmp_path, capsys):
    folders = [tmp_path / name / "run" for name in ("a", "b")]
    for number, folder in enumerate(folders):
        run = evaluated(folder, metrics={"recall@10": 0.25 + number / 4})
        write_report_data(run.report_data, report_runs.run(maps=()))
        lines = [json.dumps({"step": line["step"], "loss/copair": line["loss"]}) for line in report_runs.log(number)]
        run.training_log.write_text("\n".join([*lines, '{"step": 1']))
    output = tmp_path / "pages" / "both.html"
    command = ["report", *(f"--workdir={folder}" for folder in folders), "--output", str(output)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert str(output) in said and str(png_folder(output)) in said
    page = output.read_text()
    assert "a/run" in page and "b/run" in page and "50.0 %" in page
    assert (png_folder(output) / "loss-copair.png").is_file()
    assert main(["report", "--workdir", str(folders[0]), "--output", str(tmp_path / "one.html")]) == 0
    assert "b/run" not in (tmp_path / "one.html").read_text()


def test_error_messages_name_the_remedy(tmp_path, capsys):
    def said(*folders, more=()):
        command = ["report", *(f"--workdir={folder}" for folder in folders), "--output", str(tmp_path / "r.html")]
        assert main([*command, *more]) == 2
        return capsys.readouterr().err

    run = evaluated(tmp_path / "run")
    assert "evaluate --workdir" in said(tmp_path / "nothing") and "named twice" in said(run.path, run.path)
    assert "reads no config" in said(run.path, more=["--config.seed=1"])
    for damaged in ("{", "[]", '{"format": "x"}', json.dumps({"format": "sail_jax report data", "version": 1})):
        run.report_data.write_text(damaged)
        errors = said(run.path)
        assert str(run.report_data) in errors and "evaluate --workdir" in errors
    run.report_data.unlink()
    for damaged in (
        "",
        "[]",
        '{"results": [{"task": 1}]}',
        '{"results": 3}',
        '{"results": [{"metrics": {}, "view": "<b>"}]}',
    ):
        run.evaluation.write_text(damaged)
        assert str(run.evaluation) in said(run.path)
    assert not (tmp_path / "r.html").exists()


def test_the_sentence_is_about_a_task_with_queries_enough_to_tell():
    """21 queries of which 13 find their answer may be chance, where it is 10 of them; 15 of 79 are not, of 3."""
    view = Pattern("T", "VTA")
    figures = [
        StoredResult(model, task, view, True, 8, {"recall@10": value}, queries=queries, corpus=240)
        for task, queries, values in (("pictures", 21, (0.476, 0.619)), ("clicks", 79, (0.042, 0.19)))
        for model, value in zip(("chance", "trained"), values, strict=True)
    ]
    run = RunReport("r", figures)
    said = sentence(run, farthest(standings(run)))
    assert "finds 19.0 % of the right answers of clicks" in said
    assert said.endswith("On pictures (21 queries) it is not clearly better than a random order.")
