"""The page in a browser: nothing is fetched, fails or overflows, on a desktop and on a phone, in light and dark."""

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
