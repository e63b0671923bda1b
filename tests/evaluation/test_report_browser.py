"""The page in a browser: nothing is fetched, fails or overflows, on a desktop and on a phone, in light and dark."""

import time

import numpy as np
import pytest
import report_runs
from PIL import Image

from sail_jax.evaluation.report.page import write_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
# Elements that scroll in their own box may be wide. Clipped parts of a chart are hidden, but its text must be inside.
OVERFLOWING = """() => [...document.querySelectorAll('main *')].filter(element => {
    if (element.closest('.scroll') || (element.closest('svg') && element.tagName !== 'text')) return false;
    const box = element.getBoundingClientRect(), chart = element.closest('figure');
    const limit = chart ? chart.getBoundingClientRect() : {left: 0, right: document.documentElement.clientWidth};
    return box.right > limit.right + 1 || box.left < limit.left - 1;
}).map(element => element.outerHTML.slice(0, 200))"""
AXE = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations.map(
    found => found.id + ': ' + found.nodes.map(node => node.html.slice(0, 150)).slice(0, 3).join(' | '))"""
SMALL_TEXT = (
    """() => [...document.querySelectorAll('figure text')].map(element => element.getBoundingClientRect().height)"""
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    hostile = "<b>a_name_without_any_place_where_a_line_could_be_broken_by_a_browser_$x$</b>"
    first = report_runs.run(gallery=report_runs.gallery() * 3)
    other = report_runs.run(f"runs/{hostile}", 0.52, 3, facts={"Versions": hostile * 2}, gallery=report_runs.gallery())
    write_report(folder / "one.html", [first])
    large = report_runs.run(figures=(), log=(), gallery=(), maps=[report_runs.space_map(count=10_000)])
    write_report(folder / "large.html", [large])
    write_report(folder / "several.html", [first, other])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
@pytest.mark.parametrize("name", ["one", "several"])
def test_page_in_a_browser(name, size, scheme, pages, browser, tmp_path):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = (pages / f"{name}.html").as_uri()
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    for details in page.query_selector_all("details"):
        details.evaluate("element => element.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert min(page.evaluate(SMALL_TEXT)) >= 8  # pixels
    shot = tmp_path / f"{name}-{size}-{scheme}.png"
    page.screenshot(path=str(shot), full_page=True)
    page.close()
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.shape[1] == width and (pixels.mean() > 200 if scheme == "light" else pixels.mean() < 70)
    assert pixels.std() > 5  # something is drawn


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
@pytest.mark.parametrize("name", ["one", "several"])
def test_assistive_technology_can_read_the_page(name, size, scheme, pages, browser, axe):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True)
    page.goto((pages / f"{name}.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.add_script_tag(path=axe)
    assert page.evaluate(AXE) == []
    page.close()


def test_tables_sort_and_charts_are_saved(pages, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((pages / "one.html").as_uri())
    table = page.locator("#figures table").first
    before = table.locator("tbody th").all_inner_texts()
    head = table.locator("thead th", has_text="trained").last
    values = []
    for way in ("descending", "ascending"):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == way
        values.append(table.locator("tbody th").all_inner_texts())
    assert values[0] != values[1] and sorted(values[0]) == sorted(values[1]) == sorted(before)
    for what, ending in (("button", ".png"), ("a", ".csv")):
        with page.expect_download() as download:
            page.locator(f"#training .links {what}").first.click()
        assert download.value.suggested_filename.endswith(ending) and download.value.path().stat().st_size > 500
    page.close()


def point_of(page, number=0):
    """Where the map has an item, found by pointing at places until the tip shows."""
    box = page.locator(".view canvas").nth(number).bounding_box()
    for y in range(30, int(box["height"]), 12):
        for x in range(30, int(box["width"]), 12):
            page.mouse.move(box["x"] + x, box["y"] + y)
            if page.locator(".tip").nth(number).is_visible():
                return box["x"] + x, box["y"] + y
    raise AssertionError("there is no item on the map")


def test_the_map_is_explored(pages, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto((pages / "several.html").as_uri())
    page.locator("#explorer").scroll_into_view_if_needed()
    assert page.locator(".view canvas").count() == 2 and page.locator("#map-title").inner_text().startswith("300 items")
    page.locator(".view canvas").first.scroll_into_view_if_needed()
    place = point_of(page)
    assert "the words of item" in page.locator(".tip").first.inner_text()
    page.mouse.click(*place)
    assert page.locator("#map-title").inner_text() == "An item and its nearest neighbours"
    assert page.locator("#map-list .entry").count() == 18 and page.locator("#map-list", has_text="only here").count()
    page.fill("#map-filter", "item 1")
    assert page.locator("#map-list .play").first.get_attribute("aria-label") == "Play the sound of item1"
    page.fill("#map-filter", "topic 3")
    shown = int(page.locator("#map-title").inner_text().split()[0])
    assert 0 < shown < 300 and page.locator("#map-list .entry").count() == shown
    page.click("#map-reset")
    page.select_option("#map-colour", "changed")
    assert "most changed first" in page.locator("#map-title").inner_text()
    page.click("#map-lasso")
    box = page.locator(".view canvas").first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    for x, y in ((0.5, 0.02), (0.5, 0.98), (0.02, 0.98)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.up()
    assert 0 < int(page.locator("#map-title").inner_text().split()[0]) < 300
    page.locator("#map-list .entry").first.press("Enter")
    assert page.locator("#map-title").inner_text() == "An item and its nearest neighbours"
    page.close()


def test_a_map_of_ten_thousand_items_answers_at_once(pages, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto((pages / "large.html").as_uri())
    assert page.locator("#map-title").inner_text().startswith("10,000 items")
    frames = 20
    began = time.monotonic()
    page.evaluate(f"for (let n = 0; n < {frames}; n++) document.querySelector('#map-in').click()")
    print(f"{(time.monotonic() - began) / frames * 1000:.1f} ms a frame")
    page.close()


def test_links_lead_to_their_sections(pages, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((pages / "one.html").as_uri())
    page.click("nav a:has-text('Nearest items')")
    assert abs(page.evaluate("document.querySelector('#nearest-items').getBoundingClientRect().top")) < 20
    page.close()


@pytest.mark.slow
def test_wide_tables_scroll_in_their_own_box(pages, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((pages / "several.html").as_uri())
    widths = page.evaluate(
        "[...document.querySelectorAll('#figures > div > div > .scroll')].map(b => [b.scrollWidth, b.clientWidth])"
    )
    assert widths and max(wide - box for wide, box in widths) > 0
    # The sticky first column leaves room for the columns that scroll under it.
    columns = page.evaluate(
        "[...document.querySelectorAll('.scroll tbody th:first-child')].map(cell => cell.offsetWidth)"
    )
    assert max(columns) < 0.5 * 390
    page.close()
