"""Two models side by side: what the page answers of both, and how it looks and works in a browser."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pages import BAD_REQUESTS, ask, ids, pictured, post, problems_of, search, serving, wait_for
from searchable import embed_store, write_embeddings

from sail_jax.cli import main
from sail_jax.errors import BadRecordError
from sail_jax.search.beside import Beside, common_items, shared_items, with_ranks
from sail_jax.search.page import SearchPage
from sail_jax.search.searcher import Searcher
from sail_jax.search.web import SearchServer


@pytest.fixture(scope="module")
def texts(embedder, store, tmp_path_factory):
    """The embeddings of the texts of the items: other vectors than those of the pictures, and of other items."""
    return embed_store(embedder, tmp_path_factory.mktemp("t") / "t", store, modalities="T")


@pytest.fixture(scope="module")
def both(embedder, store, frames, texts):
    """A page of two models."""
    first, second = Searcher(embedder, frames), Searcher(embedder, texts)
    page = SearchPage(first, embedder.config, store, title="pictures", beside=Beside("texts", second))
    with serving(page) as server:
        yield SimpleNamespace(
            server=server,
            first=first,
            second=second,
            here=sorted(set(first.ids.to_pylist()) - set(second.ids.to_pylist())),
            there=sorted(set(second.ids.to_pylist()) - set(first.ids.to_pylist())),
        )


def of_ids(*item_ids):
    return SimpleNamespace(ids=pa.array(item_ids, pa.large_string()))


def hits(*item_ids):
    return [{"id": item_id} for item_id in item_ids]


# ------------------------------------------------------------------------------------------------------- comparing


def test_each_result_has_its_place_among_the_others():
    found = with_ranks(hits("a", "b", "c", "d"), hits("b", "x", "a"), of_ids("a", "b", "c", "x"))
    assert [(hit["rank_there"], hit["only_here"]) for hit in found] == [
        (3, False),
        (1, False),
        (None, False),
        (None, True),
    ]
    assert with_ranks([], hits("a"), of_ids("a")) == []
    assert with_ranks(hits("a"), [], of_ids()) == [{"id": "a", "rank_there": None, "only_here": True}]


def test_items_of_both_are_counted():
    assert common_items(hits("a", "b", "c"), hits("c", "x", "a")) == 2 and common_items([], hits("a")) == 0
    assert shared_items(of_ids("a", "b"), of_ids("b", "c", "d")) == 1
    assert shared_items(of_ids(), of_ids("a")) == shared_items(of_ids("a"), of_ids()) == 0


# ------------------------------------------------------------------------------------------------------ the server


def test_one_query_is_asked_of_both(both):
    status, found = search(both.server, {"text": "a red circle", "k": 12})
    assert status == 200
    ours, theirs = found["hits"], found["beside"]["hits"]
    for shown, searcher in ((ours, both.first), (theirs, both.second)):
        expected = [hit.id for hit in searcher.search(["a red circle"], 12)[0]]
        assert [hit["id"] for hit in shown] == expected
    for shown, others, missing in ((ours, theirs, both.here), (theirs, ours, both.there)):
        order = [hit["id"] for hit in others]
        for hit in shown:
            assert hit["rank_there"] == (order.index(hit["id"]) + 1 if hit["id"] in order else None)
            assert hit["only_here"] == (hit["id"] in missing)
    assert found["common"] == sum(hit["rank_there"] is not None for hit in ours)


def test_it_says_how_many_items_both_have(both):
    about = json.loads(ask(both.server, "GET", "/about")[2])
    assert about["title"] == "pictures" and about["items"] == len(both.first)
    shared = len(both.first) - len(both.here)
    assert (
        about["beside"] == {"title": "texts", "items": len(both.second), "shared": shared} and both.here and both.there
    )


def test_an_item_that_one_model_lacks_is_told_and_no_error(both):
    for item_id, has, lacks in ((both.here[0], "first", "second"), (both.there[0], "second", "first")):
        status, found = search(both.server, {"like": item_id, "k": 5})
        of = {"first": found, "second": found["beside"]}
        assert status == 200 and "common" not in found and "problem" not in of[has]
        expected = [hit.id for hit in getattr(both, has).like([item_id], 5)[0]]
        assert [hit["id"] for hit in of[has]["hits"]] == expected
        assert of[lacks]["hits"] == [] and f"no item {item_id!r}" in of[lacks]["problem"]
        assert all("rank_there" not in hit for hit in of[has]["hits"])
    assert search(both.server, {"like": "nobody"})[0] == 400


def test_an_item_that_the_first_store_lacks_is_read_from_the_second(both, embedder, store):
    class Empty:
        def get(self, item_id):
            raise BadRecordError("it is not there", remedy="")

    item_id = both.there[0]
    for stores in ((None, store), (Empty(), store), (store, None)):
        beside = Beside("texts", both.second, stores[1])
        page = SearchPage(both.first, embedder.config, stores[0], title="pictures", beside=beside)
        assert page.details(item_id)["texts"] == both.server.page.details(item_id)["texts"] != {}
        assert page.details("nobody") is None


def test_both_are_filtered(both, store):
    status, found = search(both.server, {"text": "red", "field": "has", "words": "a"})
    assert status == 200 and found["hits"] and found["beside"]["hits"]
    for column in (found, found["beside"]):
        assert all("A" in store.get(hit["id"]).modalities for hit in column["hits"])
    assert found["looked_at"] == len(both.first) and found["beside"]["looked_at"] == len(both.second)


@pytest.mark.slow
def test_why_each_found_an_item(both, store):
    item = pictured(store)
    status, found = post(both.server, "/why", {"text": "red", "item": item.item_id})
    assert status == 200 and "all" in found["scores"] and "all" in found["beside"]["scores"]
    _, found = post(both.server, "/why", {"like": both.here[0], "item": item.item_id})
    assert found["scores"] and found["beside"]["scores"] == {} and "no item" in found["beside"]["problem"]
    assert post(both.server, "/why", {"like": "nobody", "item": item.item_id})[0] == 400


@pytest.mark.parametrize(("request_", "message"), BAD_REQUESTS)
def test_requests_that_neither_can_answer(both, request_, message):
    status, found = search(both.server, request_)
    assert status == 400 and message in found["error"]


NUMBERS = [True, -1, 0, 1.5, 10**400, float("nan")]
ODD = [None, *NUMBERS, "", "\x00", "\ud800", "9" * 5000, "../..", [], [[]], [None], {}, {"a": 1}]


@pytest.mark.parametrize("path", ["/search", "/why"])
@pytest.mark.parametrize("name", ["text", "like", "k", "files", "field", "words", "item", "beside", "\x00"])
def test_odd_values_are_answered_or_refused(both, path, name, capfd):
    item_id = both.first.ids[0].as_py()
    for value in ODD:
        status, found = post(both.server, path, {"text": "red", "k": 2, "item": item_id} | {name: value})
        assert bool({"hits", "scores"} & set(found)) if status == 200 else status == 400 and found["error"]
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def served(monkeypatch):
    """The pages that the verb would serve."""
    pages = []
    monkeypatch.setattr(SearchServer, "serve_forever", lambda server: pages.append(server.page))
    return pages


def serve(run, frames, *more):
    return main(["serve", "--workdir", str(run), "--embeddings", str(frames.path), "--port", "0", *map(str, more)])


@pytest.mark.slow
def test_serve_takes_a_second_model(run, frames, texts, served, capsys):
    assert serve(run, frames, "--beside-workdir", run, "--beside-embeddings", texts.path) == 0
    about = served[0].about()
    assert about["title"] == f"run: {frames.path}" and about["beside"]["title"] == f"run: {texts.path}"
    said = " ".join(capsys.readouterr().out.split())
    assert f"{about['items']} items and, beside them, {about['beside']['items']} of run: {texts.path}" in said


@pytest.mark.slow
def test_the_vectors_of_the_second_model_must_be_its_own(run, frames, texts, served, tmp_path, capsys):
    other = write_embeddings(tmp_path / "other", *texts.load(), of="0123")
    assert serve(run, frames, "--beside-workdir", run, "--beside-embeddings", other.path) == 2
    said = capsys.readouterr().err
    assert f"{other.path} holds vectors of another model" in " ".join(said.split()) and not served


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beside-workdir", "RUN"], "--beside-workdir and --beside-embeddings"),
        (["--beside-embeddings", "TEXTS"], "--beside-workdir and --beside-embeddings"),
        (["--beside-step", "1"], "--beside-workdir and --beside-embeddings"),
        (["--beside-workdir", "nowhere", "--beside-embeddings", "TEXTS"], "nowhere has no run"),
        (["--beside-workdir", "RUN", "--beside-embeddings", "nowhere"], "nowhere holds no complete embeddings"),
    ],
)
def test_mistakes_in_the_flags_of_the_second_model(run, frames, texts, flags, message, capsys):
    paths = {"RUN": str(run), "TEXTS": str(texts.path)}
    assert serve(run, frames, *(paths.get(flag, flag) for flag in flags)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# --------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.browser
@pytest.mark.slow
def test_two_columns_in_a_browser(both, tab, tmp_path):
    tab.goto(both.server.url)
    tab.locator("#hits .card").first.wait_for()
    assert not tab.locator("#beside").is_visible()
    assert f"{len(both.first) - len(both.here)} are in both" in tab.locator("#count").inner_text()
    tab.fill("#text", "a red circle")
    tab.press("#text", "Enter")
    wait_for(tab, "24 items for “a red circle”")
    _, found = search(both.server, {"text": "a red circle"})
    wait_for(tab, f"{found['common']} of 24 in both columns")
    columns = {"hits": found["hits"], "beside": found["beside"]["hits"]}
    for name, shown in columns.items():
        assert ids(tab, name) == [hit["id"] for hit in shown]
        assert [said_of(line) for line in tab.locator(f"#{name} .there").all_inner_texts()] == [
            hit["rank_there"] or hit["only_here"] for hit in shown
        ]
    assert tab.locator("#hits-title").inner_text() == "pictures"
    tab.screenshot(path=tmp_path / "two.png", full_page=True)

    # The address asks both again, and the keyboard reaches the second column at once.
    address = tab.url
    tab.goto(address)
    wait_for(tab, "24 items for “a red circle”")
    tab.focus("#skip")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "beside-title"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    wait_for(tab, f"items like {columns['beside'][0]['id']}")

    tab.goto(f"{both.server.url}?like={both.there[0]}")
    wait_for(tab, f"0 items like {both.there[0]}")
    assert "There is no item" in tab.locator("#hits-problem").inner_text() and len(ids(tab, "beside")) == 24
    tab.locator("#beside .more").first.click()
    tab.locator("#near .strip").first.wait_for(timeout=120_000)
    assert tab.locator("#near h3").all_inner_texts() == ["Nearest items in pictures", "Nearest items in texts"]
    tab.click("#explain")
    tab.locator("#why .problem").wait_for(timeout=120_000)
    assert tab.locator("#why meter").count() > 0


def said_of(line):
    """What a card says of its place in the other column: the rank, whether it is no item there."""
    return int(line.split(" ")[0][:-2]) if line[0].isdigit() else line == "not an item there"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_columns_on_screens(both, browser, axe, width, tmp_path):
    context = browser.new_context(viewport={"width": width, "height": 800}, bypass_csp=True)
    tab = context.new_page()
    tab.goto(f"{both.server.url}?text=red")
    wait_for(tab, "24 items")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    first, second = (tab.locator(f"#{name}").bounding_box() for name in ("hits", "beside"))
    if width == 390:
        assert second["y"] > first["y"] + first["height"] and abs(second["x"] - first["x"]) < 2
    else:
        assert abs(second["y"] - first["y"]) < 60 and second["x"] > first["x"] + first["width"]
    tab.screenshot(path=tmp_path / f"two-{width}.png")
    assert problems_of(tab, axe) == []
    tab.locator("#hits .more").first.click()
    tab.locator("#near .strip").first.wait_for(timeout=120_000)
    tab.screenshot(path=tmp_path / f"details-{width}.png")
    assert problems_of(tab, axe) == []
    context.close()
