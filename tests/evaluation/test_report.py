import base64
import html.parser
import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from sail_jax.evaluation.report import Card, GalleryRow, RecallRow, Report, smoothed, write_report

HOSTILE = "<script>alert('x')</script>\"'&<img src=http://evil.example/x.png onerror=go()> $a_b$ </style>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, visible text, and whether every element that opens also closes."""

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
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def classes(self, name):
        return sum(name in (attributes.get("class") or "").split() for _, attributes in self.elements)


def picture(kind="JPEG", size=(640, 480), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1] // 40, size[0] // 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def full_report():
    def row(model, view, low, task="i2i"):
        return RecallRow(task, model, view, {"recall@1": low / 10, "recall@10": low}, 1234, 5678)

    results = [
        Card("a", "first found", picture(), True, relevant=True, score=0.912),
        Card("b", "second found", picture("PNG", mode="P"), False, relevant=False, score=0.5),
        Card("c", "", None, True, relevant=True, score=-0.25),
        Card("d", "broken", b"not a picture", False, relevant=False, score=0.1),
    ]
    return Report(
        title="quick & small",
        facts={"config": "configs/quickstart.py", "steps": "300"},
        loss_curve={
            "copair": (range(10, 310, 10), list(np.linspace(4, 1, 30))),
            "$x_a$ <b>": ([5, 6], [float("nan"), 2.0]),
        },
        recall=[
            row("trained", "VTA->VTA", 0.4567),
            row("trained", "V->V", 0.123),
            row("untrained", "V->V", 0.011),
            row("untrained", "VTA->VTA", 0.0321),
            row("trained", "T->VTA", 0.25, "q2i"),
            row("TF-IDF", "T->T", 0.0987, "q2i"),
        ],
        gallery=[
            GalleryRow("i2i", Card("q", "what is asked", picture()), results),
            GalleryRow("q2i", Card("", "free text"), results[:1]),
        ],
        settings={"model": {"llm": {"width": 1536}}, "names": (1, 2), "empty": {}},
        notes=["A closing remark."],
    )


def write(path, report):
    write_report(path, report)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report") / "run" / "report.html", full_report())


def assert_stands_alone(text, page):
    assert page.errors == []
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#")), attributes
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, flags=re.DOTALL)
    styles += [attributes.get("style") or "" for _, attributes in page.elements]
    assert not [style for style in styles if "@import" in style or re.search(r"url\((?!#)", style)]


def test_page_is_well_formed_and_stands_alone(full):
    assert_stands_alone(*full)
    assert "prefers-color-scheme: dark" in full[0]
    assert any(attributes.get("name") == "viewport" for attributes in full[1].all("meta"))
    ids = [attributes["id"] for _, attributes in full[1].elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', full[0]))
    assert referenced <= set(ids)


def test_values_are_shown(full):
    text = re.sub(r"\s+", " ", full[1].text)
    for shown in (
        *(
            "quick & small",
            "configs/quickstart.py",
            "300",
            "45.7 %",
            "4.6 %",
            "12.3 %",
            "3.2 %",
            "9.9 %",
            "1,234",
            "5,678",
        ),
        *("recall@1", "recall@10", "TF-IDF", "T → VTA", "model.llm.width", "1536", "[1, 2]", "A closing remark."),
        *("what is asked", "free text", "first found", "0.91", "-0.25", "copair", "$x_a$ <b>", "step", "loss"),
    ):
        assert shown in text, shown


def test_headline_compares_the_main_view_with_the_untrained_model(full):
    tiles = re.findall(r'<div class="tile">.*?</div></div>', full[0], flags=re.DOTALL)
    tiles = [re.sub(r"\s+", " ", Page(tile).text) for tile in tiles]
    assert len(tiles) == 2
    assert "i2i" in tiles[0] and "3.2 % → 45.7 %" in tiles[0]
    assert "q2i" in tiles[1] and "25.0 %" in tiles[1] and "untrained" not in tiles[1]


def test_bars_are_in_proportion(full):
    widths = [float(w) for w in re.findall(r'class="track"><span style="width:([\d.]+)%', full[0])]
    assert widths == pytest.approx([91.3, 24.6, 2.2, 6.4, 100.0, 39.5], abs=0.06)
    assert "bars from 0 to 50 %" in full[0] and "bars from 0 to 25 %" in full[0]


def test_best_of_each_column_is_marked(full):
    best = re.findall(r'<td class="best">([^<]*)</td>', full[0])
    assert best == ["4.6 %", "45.7 %", "2.5 %", "25.0 %"]


def test_pictures_are_small_and_decode(full):
    images = full[1].all("img")
    assert [attributes["alt"] for attributes in images] == ["q", "a", "b", "a"]
    for attributes in images:
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as image:
            image.load()
            assert image.size == (96, 72)


def test_thumbnail_shows_the_picture(tmp_path):
    stored = picture("PNG")
    _, page = write(tmp_path / "r.html", Report("t", gallery=[GalleryRow("i2i", Card("q", "x", stored), [])]))
    shown = Image.open(io.BytesIO(base64.b64decode(page.all("img")[0]["src"].partition(",")[2])))
    expected = Image.open(io.BytesIO(stored)).resize((96, 72))
    assert np.abs(np.asarray(shown, float) - np.asarray(expected, float)).mean() < 10


def test_relevance_is_told_by_more_than_colour(full):
    text, page = full
    assert page.text.count("✓ relevant") == 3
    assert page.classes("relevant") == 3
    for block in re.findall(r"<li class=.*?</li>", text, flags=re.DOTALL):
        assert ("✓" in block) == block.startswith('<li class="relevant"')
    # The caption explains the note sign; the items with sound carry it.
    assert page.classes("sound") == 3
    assert "no picture" in page.text and "text query" in page.text and "no text" in page.text


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    card = Card(HOSTILE, HOSTILE, None, True, True, 1.0)
    report = Report(
        HOSTILE,
        {HOSTILE: HOSTILE},
        {HOSTILE: ([1, 2], [1.0, 2.0]), "_hidden": ([1, 2], [2.0, 1.0])},
        [RecallRow(HOSTILE, model, HOSTILE, {HOSTILE: 0.5}, 1, 1) for model in ("trained", HOSTILE)],
        [GalleryRow(HOSTILE, card, [card])],
        {HOSTILE: HOSTILE},
        [HOSTILE],
    )
    text, page = write(tmp_path / "r.html", report)
    assert_stands_alone(text, page)
    assert page.all("img") == []
    assert page.text.count("<script>alert('x')</script>") >= 9
    assert "_hidden" in page.text


def test_empty_report_and_parts_left_out(tmp_path):
    text, page = write(tmp_path / "r.html", Report("nothing yet"))
    assert_stands_alone(text, page)
    assert not {tag for tag, _ in page.elements} & {"section", "svg", "details"}


def test_large_gallery_stays_below_two_megabytes_and_says_so(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    card = Card("i", "words", buffer.getvalue(), score=0.5)
    text, page = write(tmp_path / "r.html", Report("t", gallery=[GalleryRow("i2i", card, [card] * 8)] * 60))
    assert 1_000_000 < len(text.encode()) < 2_000_000
    left_out = int(re.search(r"(\d+) of 60 queries are left out", page.text).group(1))
    assert 0 < left_out == 60 - page.classes("row")


def test_same_report_gives_same_bytes_and_replaces_the_old_one(full, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("an older report")
    assert write(path, full_report())[0] == full[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("an older report")

    def full_disk(self, text, **_):
        self.write_bytes(text[:100].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(path, Report("new"))
    assert path.read_bytes() == b"an older report"


def test_text_that_cannot_be_encoded_does_not_stop_the_report(tmp_path):
    assert "half ? pair" in write(tmp_path / "r.html", Report("half \ud800 pair"))[1].text


def test_smoothed_is_the_mean_over_the_window():
    values = np.random.default_rng(0).normal(size=200)
    values[50] = np.nan
    expected = [np.nanmean(values[max(0, i - 5) : i + 6]) for i in range(200)]
    np.testing.assert_allclose(smoothed(values), expected, atol=1e-12)
    assert np.isnan(smoothed([float("nan")])).all()
