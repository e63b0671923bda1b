"""The page to search with: what the server refuses, what it answers, and how it looks and works in a browser."""

import dataclasses
import http.client
import io
import json
import signal
import socket
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from pages import (
    BAD_REQUESTS,
    ask,
    drop,
    file,
    ids,
    pictured,
    post,
    problems_of,
    search,
    serving,
    wait_for,
    wait_for_picture,
)
from PIL import Image

from sail_jax.cli import main
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item
from sail_jax.search import web
from sail_jax.search.examples import example_searches
from sail_jax.search.page import SearchPage
from sail_jax.search.searcher import Hit, Searcher
from sail_jax.search.web import SearchServer
from sail_jax.semantic_ids.codebooks import fit
from sail_jax.semantic_ids.table import SemanticIdTable, write_table

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">&amp;\"'"


@pytest.fixture(scope="module")
def server(embedder, store, frames):
    page = SearchPage(Searcher(embedder, frames), embedder.config, store, title="a run", examples=["a red circle"])
    with serving(page) as server:
        yield server


# ---------------------------------------------------------------------------------------------------- the server


def test_the_page_loads_nothing_from_elsewhere(server):
    status, headers, page = ask(server, "GET", "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert (
        b"http:" not in page and b"https:" not in page and b"innerHTML" not in page and b" on" + b"click=" not in page
    )
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and policy.count("'sha256-") == 2 and "unsafe" not in policy
    assert b"prefers-color-scheme: dark" in page and b'name="viewport"' in page
    about = json.loads(ask(server, "GET", "/about")[2])
    assert about["title"] == "a run" and about["items"] == len(server.page._searcher)


def test_it_listens_only_on_this_machine(server):
    assert server._socket.getsockname()[0] == "127.0.0.1" and server.url == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:PORT", "127.0.0.1:1", "127.0.0.1.evil.example:PORT", "", None]
)
@pytest.mark.parametrize("path", ["/", "/about", "/start", "/item?id=x", "/sound?id=x", "/thumbnail?id=x"])
def test_other_hosts_are_refused(server, host, path):
    host = host and host.replace("PORT", str(server.server_port))
    status, _, body = ask(server, "GET", path, Host=host)
    # HTTP/1.1 itself asks for a host.
    assert status == 403 and b"served only at" in body if host is not None else status == 400


def test_other_origins_are_refused(server):
    own = f"http://localhost:{server.server_port}"
    for origin in ("http://evil.example", "null", f"https://localhost:{server.server_port}", own + ".evil.example"):
        assert search(server, {"text": "x"}, Origin=origin)[0] == 403
    assert search(server, {"text": "x", "k": 2}, Origin=own, Host=f"localhost:{server.server_port}")[0] == 200
    # What a form of another site can send without asking first.
    assert search(server, {"text": "x"}, Content_Type="text/plain")[0] == 415


def test_a_file_finds_its_item(server, store):
    item = pictured(store)
    status, found = search(server, {"files": [file("a.png", item.frames[0])], "k": 3})
    assert status == 200 and len(found["hits"]) == 3
    first = found["hits"][0]
    assert first["id"] == item.item_id and first["cosine"] == pytest.approx(1, abs=1e-4) and first["picture"]
    assert first["sound"] == ("A" in item.modalities) and item.text.get("title", "") in first["caption"]


def test_items_like_an_item(server, store):
    item = pictured(store)
    status, found = search(server, {"like": item.item_id, "k": 5})
    assert status == 200 and item.item_id not in [hit["id"] for hit in found["hits"]]
    expected = server.page._searcher.like([item.item_id], 5)[0]
    assert [(hit["id"], hit["cosine"]) for hit in found["hits"]] == expected


def test_the_page_begins_with_some_items(server, store):
    status, _, body = ask(server, "GET", "/start")
    hits = json.loads(body)["hits"]
    assert status == 200 and len(hits) == len({hit["id"] for hit in hits}) == 24 and "cosine" not in hits[0]
    assert all(hit["picture"] for hit in hits)  # the set has items with pictures alone


def test_example_searches_are_the_queries_of_the_data(embedder, store):
    found = example_searches(embedder.config, store)
    assert len(found) == 6 and found == example_searches(embedder.config, store)
    elsewhere = dataclasses.replace(embedder.config.data, dir="nowhere")
    titles = example_searches(dataclasses.replace(embedder.config, data=elsewhere), store)
    assert set(titles) <= {store[position].text.get("title", "") for position in range(6)} and titles != found
    assert example_searches(dataclasses.replace(embedder.config, data=elsewhere), None) == []


def test_all_of_an_item(server, store):
    item = next(item for item in (store[i] for i in range(64)) if item.audio is not None and item.frames)
    status, _, body = ask(server, "GET", f"/item?id={item.item_id}")
    found = json.loads(body)
    assert status == 200 and found["frames"] == len(item.frames) and found["sound"] and found["semantic_id"] == ""
    assert found["labels"] == list(item.labels) and set(found["texts"]) <= set(item.text)
    status, headers, sound = ask(server, "GET", f"/sound?id={item.item_id}")
    assert status == 200 and sound == item.audio and headers["Content-Type"].startswith("audio/")
    no_ids = ("", "?id=", "?id=nobody", "?id=%00", "?id=%ff", "?id=%ED%A0%80", "?id=..%2F..", f"?id={'9' * 5000}")
    for odd in no_ids:
        for path in ("/item", "/sound", "/thumbnail"):
            assert ask(server, "GET", path + odd)[0] == 404


def test_a_semantic_id_stands_with_its_item(embedder, frames, store, tmp_path):
    write_table(fit(frames.load()[1], (4, 4), frames.info), frames, tmp_path / "sids.parquet", anchors=0)
    table = SemanticIdTable(tmp_path / "sids.parquet")
    page = SearchPage(Searcher(embedder, frames), embedder.config, store, title="x", semantic_ids=table)
    item = pictured(store)
    named = page.details(item.item_id)["semantic_id"]
    assert item.item_id in [found for found, _ in table.find(named).items]
    assert table.of_item("nobody") == ""


def test_results_are_filtered_by_a_field(server, store):
    item = next(item for item in (store[i] for i in range(64)) if item.frames and item.text.get("title"))
    word = item.text["title"].split()[0]
    status, found = search(server, {"text": "red", "field": "title", "words": word.upper(), "k": 5})
    assert status == 200 and 0 < len(found["hits"]) <= 5 < found["looked_at"]
    assert all(word.lower() in store.get(hit["id"]).text["title"].lower() for hit in found["hits"])
    _, labelled = search(server, {"text": "red", "field": "label", "words": item.labels[0]})
    assert all(item.labels[0] in store.get(hit["id"]).labels for hit in labelled["hits"]) and labelled["hits"]
    _, sounding = search(server, {"text": "red", "field": "has", "words": "va"})
    assert all({"V", "A"} <= set(store.get(hit["id"]).modalities) for hit in sounding["hits"])
    assert search(server, {"text": "red", "field": "price", "words": "x"})[0] == 400


def test_why_an_item_was_found(server, embedder, store):
    item = pictured(store)
    query = file("a.png", item.frames[0], "image/png")
    status, found = post(server, "/why", {"files": [query], "item": item.item_id})
    assert status == 200 and set(found["scores"]) == {*item.modalities, "all"}
    assert found["scores"]["V"] == pytest.approx(1, abs=1e-4)
    _, like = post(server, "/why", {"like": item.item_id, "item": item.item_id})
    assert like["scores"]["V"] == pytest.approx(1, abs=1e-3)
    assert post(server, "/why", {"text": "x", "item": "nobody"})[0] == 400
    assert post(server, "/why", {"item": item.item_id})[0] == 400
    assert ask(server, "POST", "/why", b"{}", Content_Type="text/plain")[0] == 415
    assert ask(server, "POST", "/why", b"{}", Content_Type="application/json", Origin="http://evil.example")[0] == 403


def test_thumbnails(server, store):
    item = pictured(store)
    status, headers, body = ask(server, "GET", f"/thumbnail?id={item.item_id}")
    assert status == 200 and headers["Content-Type"] == "image/webp"
    with Image.open(io.BytesIO(body)) as image:
        assert image.format == "WEBP" and max(image.size) <= 320
    assert ask(server, "GET", "/thumbnail?id=nobody")[0] == 404
    assert ask(server, "GET", "/thumbnail")[0] == 404
    for frame in ("1", "-1", "x", "9" * 5000):
        assert ask(server, "GET", f"/thumbnail?id={item.item_id}&frame={frame}")[0] == 404
    assert ask(server, "GET", "/etc/passwd")[0] == 404 and ask(server, "GET", "/../setup.py")[0] == 404


@pytest.mark.parametrize(("request_", "message"), BAD_REQUESTS)
def test_requests_that_cannot_be_answered(server, request_, message):
    status, found = search(server, request_)
    assert status == 400 and message in found["error"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"text": "red", "k": true}', b'{"text": "\\ud800"}'])
def test_strange_json_is_an_error_of_the_request(server, body, capsys):
    status, answer = search(server, body)
    assert status == 400 and answer["error"] and "failed" not in answer["error"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("part", [b"", b"{", b'{"text": "x"}'])
def test_a_dropped_connection_prints_no_traceback(server, part, capfd):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        head = f"POST /search HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 13\r\n\r\n".encode() + part)
    assert search(server, b"{")[0] == 400 and capfd.readouterr().err == ""


def test_uploads_have_a_limit(server):
    status, found = search(server, b"", Content_Length=str(web._MAX_BODY + 1))
    assert status == 413 and "64 MiB" in found["error"]
    assert search(server, b"", Content_Length=None)[0] == 411
    for length in ("-1", "many"):
        headers = {"Content_Type": "application/json", "Content_Length": length}
        assert ask(server, "POST", "/search", b"", **headers)[0] == 400


def test_an_upload_that_never_ends_is_given_up(server, monkeypatch):
    monkeypatch.setattr(web, "_TIMEOUT", 0.1)
    status, found = search(server, b"{", Content_Length="100")
    assert status == 408 and "did not come in whole" in found["error"]


def test_a_fault_of_ours_is_an_answer_too(server, monkeypatch, capsys):
    monkeypatch.setattr(server.page._searcher, "search", lambda *_: 1 / 0)
    status, found = search(server, {"text": "x"})
    assert status == 500 and "ZeroDivisionError" in found["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err


class SlowSearcher:
    """Answers one search after another as it is let."""

    def sample(self, count):
        return []

    def __init__(self):
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.texts = []

    def __len__(self):
        return 1

    def search(self, queries, k):
        self.texts.append(queries[0].text["query"])
        self.begun.release()
        assert self.go_on.acquire(timeout=30)
        return [[Hit("a", 1.0)]]


@pytest.fixture
def slow(embedder):
    """A server whose first search runs until it is let on."""
    searcher = SlowSearcher()
    with serving(SearchPage(searcher, embedder.config, None, title="slow")) as server, ThreadPoolExecutor(20) as pool:
        first = pool.submit(search, server, {"text": "first"})
        assert searcher.begun.acquire(timeout=30)
        yield SimpleNamespace(server=server, searcher=searcher, pool=pool, first=first)
        searcher.go_on.release(100)


def waiting(slow, count):
    """Waits until so many searches are admitted, that which runs among them."""
    deadline = time.monotonic() + 30
    while slow.server._turns._admitted.total() != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_row(slow, count):
    """Waits until so many searches wait for their turn; those that are admitted are read before."""
    deadline = time.monotonic() + 30
    while sum(map(len, list(slow.server._turns._row.values()))) != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_clients_take_turns(slow):
    for number in range(3):
        slow.pool.submit(search, slow.server, {"text": f"much {number}"}, X_Client="a")
        in_row(slow, 1 + number)
    slow.pool.submit(search, slow.server, {"text": "little"}, X_Client="b")
    in_row(slow, 4)
    # While a search runs, all else is answered.
    assert ask(slow.server, "GET", "/about")[0] == 200 and search(slow.server, {})[0] == 400
    slow.searcher.go_on.release(100)
    waiting(slow, 0)
    assert slow.searcher.texts == ["first", "much 0", "little", "much 1", "much 2"]


def test_searches_that_wait_have_a_limit(slow):
    for number in range(7):
        slow.pool.submit(search, slow.server, {"text": f"{number}"})
    waiting(slow, 8)
    headers = {"Content_Type": "application/json"}
    status, sent, content = ask(slow.server, "POST", "/search", b'{"text": "x"}', **headers)
    assert status == 503 and int(sent["Retry-After"]) > 0 and "try again" in json.loads(content)["error"]
    for number in range(8):  # of others
        slow.pool.submit(search, slow.server, {"text": "x"}, X_Client=str(number))
    waiting(slow, 16)
    assert search(slow.server, {"text": "x"}, X_Client="late")[0] == 503
    slow.searcher.go_on.release(100)
    assert slow.first.result(30)[0] == 200
    waiting(slow, 0)
    assert search(slow.server, {"text": "x"})[0] == 200


def test_a_search_that_nobody_waits_for_is_left_out(slow):
    connection = http.client.HTTPConnection("127.0.0.1", slow.server.server_port)
    connection.request("POST", "/search", b'{"text": "given up"}', {"Content-Type": "application/json"})
    waiting(slow, 2)
    while not slow.server._turns._row:  # decoded, and in the row
        time.sleep(0.01)
    connection.close()
    waiting(slow, 1)
    slow.searcher.go_on.release(100)
    assert search(slow.server, {"text": "next"})[0] == 200
    assert slow.searcher.texts == ["first", "next"]


def test_a_taken_port(server):
    with pytest.raises(SailError, match=f"Port {server.server_port}.*--port"):
        SearchServer(server.page, server.server_port)
    with pytest.raises(SailError, match="--port"):
        SearchServer(server.page, 70_000)


def test_without_a_store(embedder, frames):
    page = SearchPage(Searcher(embedder, frames), embedder.config, None, title="x")
    (hit,) = page.search(page.read(b'{"text": "red", "k": 1}'))["hits"]
    assert hit["caption"] == "" and not hit["picture"] and page.items.thumbnail(hit["id"]) is None
    assert page.details(hit["id"]) is None and page.items.sound(hit["id"]) is None and page.start()["hits"]
    with pytest.raises(SailError, match="cannot be explained"):
        page.why(page.read(json.dumps({"text": "red", "item": hit["id"]}).encode()))


@pytest.fixture
def interruptible():
    """Ctrl-C reaches this process, as it would not where a shell started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_serve_ends_cleanly_on_a_signal(run, frames, number, interruptible, monkeypatch, capsys):
    """In this process: the verb is interrupted while its page answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    seen, about = [], SearchServer._get_about

    async def interrupted(server, request):
        signal.raise_signal(number)
        return await about(server, request)

    def ask_once():
        deadline = time.monotonic() + 120
        while not seen and time.monotonic() < deadline:
            try:
                seen.append(ask(SimpleNamespace(server_port=port), "GET", "/about"))
            except OSError:
                time.sleep(0.05)

    monkeypatch.setattr(SearchServer, "_get_about", interrupted)
    asking = threading.Thread(target=ask_once, daemon=True)
    asking.start()
    command = ["serve", "--workdir", str(run), "--embeddings", str(frames.path), "--port", str(port)]
    assert main(command) == 0
    asking.join()
    said = capsys.readouterr()
    assert seen[0][0] == 200 and f"http://127.0.0.1:{port}/" in said.out and "Stopped" in said.out
    assert "Traceback" not in said.err
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port))  # the port is free again


# --------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.browser
@pytest.mark.slow
def test_searching_in_a_browser(server, tab, store, tmp_path):
    tab.goto(server.url)
    tab.fill("#text", "a red circle")
    tab.press("#text", "Enter")
    wait_for(tab, "24 items for “a red circle”")
    assert len(set(ids(tab))) == 24
    assert ids(tab) == [hit.id for hit in server.page._searcher.search(["a red circle"], 24)[0]]
    wait_for_picture(tab)
    tab.screenshot(path=tmp_path / "text.png")

    item = pictured(store)
    path = tmp_path / "frame.png"
    path.write_bytes(item.frames[0])
    tab.fill("#text", "")
    tab.set_input_files("#file", path)
    wait_for(tab, "items for frame.png")
    assert ids(tab)[0] == item.item_id and tab.locator("#hits .cosine").first.inner_text() == "1.000"
    assert tab.locator("#chips img").count() == 1

    tab.locator("#hits button").first.click()
    wait_for(tab, f"items like {item.item_id}")
    assert item.item_id not in ids(tab)

    tab.locator("#chips button").click()
    assert tab.locator("#chips li").count() == 0
    drop(tab, "dropped.png", "image/png", item.frames[0])
    wait_for(tab, "items for dropped.png")
    assert ids(tab)[0] == item.item_id


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_opens_with_items_and_remembers_what_was_asked(server, tab, store, axe):
    tab.goto(server.url)
    tab.locator("#hits .card").nth(23).wait_for()
    example = tab.locator("#examples button").first
    text = example.inner_text()
    example.click()
    wait_for(tab, f"24 items for “{text}”")
    found = ids(tab)
    assert tab.url.startswith(f"{server.url}?text=")
    tab.locator("#hits .more").first.click()
    tab.click("#explain")
    tab.locator(".why meter").first.wait_for(timeout=120_000)
    assert tab.locator("#why").inner_text().startswith("its frames alone")
    assert tab.locator("#frames img").first.evaluate("async image => (await image.decode(), image.naturalWidth)") > 0
    tab.click("#similar")
    wait_for(tab, f"items like {found[0]}")
    tab.go_back()
    wait_for(tab, f"24 items for “{text}”")
    assert ids(tab) == found
    tab.select_option("#field", "has")
    tab.fill("#words", "VA")
    tab.press("#words", "Enter")
    wait_for(tab, "that have “VA” in has")
    assert all("A" in store.get(item_id).modalities for item_id in ids(tab))
    address = tab.url
    tab.goto(address)
    wait_for(tab, "that have “VA” in has")
    context = tab.context.browser.new_context(bypass_csp=True)
    other = context.new_page()
    other.goto(address)
    wait_for(other, "that have “VA” in has")
    assert problems_of(other, axe) == []
    context.close()


@pytest.mark.browser
def test_a_sound_with_a_text_and_a_bad_file(server, tab):
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes((np.sin(np.arange(8000) / 5) * 9000).astype("<i2").tobytes())
    tab.goto(server.url)
    tab.fill("#text", "loud")
    drop(tab, "beep.wav", "audio/wav", out.getvalue())
    wait_for(tab, "items for “loud” + beep.wav")
    assert len(ids(tab)) == 24
    drop(tab, "<b>bad</b>.jpg", "image/jpeg", b"no picture")
    tab.wait_for_selector("#error:not([hidden])")
    assert "<b>bad</b>.jpg: the image cannot be decoded" in tab.locator("#error").inner_text()
    assert ids(tab) == [] and tab.locator("#error b").count() == 0


@pytest.mark.browser
@pytest.mark.slow
def test_the_details_of_an_item_show_its_neighbours(server, tab, store):
    item = pictured(store)
    expected = [hit.id for hit in server.page._searcher.like([item.item_id], 8)[0]]
    tab.goto(f"{server.url}?like={item.item_id}")
    wait_for(tab, "24 items like")
    tab.locator("#hits .more").first.click()
    found = ids(tab)[0]
    assert found == expected[0] and tab.locator("#detail-title").inner_text() == found
    tab.locator("#near .strip .card").nth(7).wait_for(timeout=120_000)
    near = [hit.id for hit in server.page._searcher.like([found], 8)[0]]
    assert [title.removeprefix("Details of ") for title in titles_of(tab)] == near
    tab.locator("#near .strip .card").nth(1).click()
    tab.locator(f"#detail-title:text-is('{near[1]}')").wait_for()
    assert tab.evaluate("document.activeElement.id") == "detail-title"
    tab.keyboard.press("Escape")
    assert not tab.locator("#detail").is_visible()


def titles_of(tab):
    return tab.locator("#near .strip .card").evaluate_all("cards => cards.map((card) => card.title)")


@pytest.mark.browser
@pytest.mark.slow
def test_an_upload_tells_how_far_it_is_and_can_be_cancelled(server, tab, store):
    tab.goto(server.url)
    tab.fill("#text", "a red circle")
    tab.press("#text", "Enter")
    wait_for(tab, "24 items for “a red circle”")
    found = ids(tab)
    network = tab.context.new_cdp_session(tab)
    slowly = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200 << 10}
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", slowly)
    item = pictured(store)
    drop(tab, "large.png", "image/png", item.frames[0] + bytes(4 << 20))  # what follows a picture is not read
    tab.locator("#bytes", has_text="of 4.0 MiB").wait_for(timeout=120_000)
    assert tab.locator("#sent").is_visible() and tab.locator("#status").inner_text() == "Sending the files …"
    tab.click("#cancel")
    wait_for(tab, "Cancelled.")
    assert ids(tab) == found and not tab.locator("#cancel").is_visible() and not tab.locator("#sent").is_visible()
    network.send("Network.emulateNetworkConditions", slowly | {"uploadThroughput": -1})
    tab.click("#go")
    wait_for(tab, "24 items for “a red circle” + large.png")


@pytest.mark.browser
@pytest.mark.slow
def test_a_cancelled_search_leaves_the_row(slow, tab):
    tab.goto(slow.server.url)
    tab.fill("#text", "given up")
    tab.press("#text", "Enter")
    in_row(slow, 1)
    tab.click("#cancel")
    wait_for(tab, "Cancelled.")
    waiting(slow, 1)
    slow.searcher.go_on.release(100)
    assert slow.first.result(30)[0] == 200 and slow.searcher.texts == ["first"]


class HostileSearcher:
    """Finds what would run as a script if the page let it."""

    def sample(self, count):
        return [HOSTILE]

    def __len__(self):
        return 1

    def search(self, queries, k):
        return [[Hit(HOSTILE, 0.5)]]

    like = search


class HostileStore:
    def get(self, item_id):
        if item_id != HOSTILE:
            raise BadRecordError("nothing", remedy="")
        return Item(HOSTILE, text={"title": HOSTILE}, frames=(b"no picture",))


@pytest.mark.slow
@pytest.mark.browser
def test_hostile_text_is_shown_and_does_nothing(embedder, tab):
    with serving(SearchPage(HostileSearcher(), embedder.config, HostileStore(), title=HOSTILE)) as server:
        tab.goto(server.url)
        tab.fill("#text", HOSTILE)
        tab.click("#go")
        wait_for(tab, "1 items for")
        assert ids(tab) == [HOSTILE] and tab.locator("h1").inner_text() == HOSTILE
        assert HOSTILE in tab.locator(".caption").inner_text()
        tab.wait_for_selector("text=no picture")
        tab.locator("#hits .more").click()
        tab.locator("#facts dd").first.wait_for()
        assert tab.locator("#detail-title").inner_text() == HOSTILE and HOSTILE in tab.locator("#facts").inner_text()
        assert tab.title() == f"{HOSTILE} · search" and tab.locator("main script, main img[src=x]").count() == 0


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(server, browser, scheme, tmp_path):
    context = browser.new_context(viewport={"width": 375, "height": 760}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(server.url)
    tab.fill("#text", "a red circle")
    tab.click("#go")
    wait_for(tab, "24 items")
    wait_for_picture(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 128) == (scheme == "dark")
    tab.screenshot(path=tmp_path / f"phone-{scheme}.png")
    context.close()
