"""Pages that tests serve: how they are asked by HTTP and looked at in a browser, and requests that none can answer."""

import base64
import contextlib
import http.client
import json
import threading

from sail_jax.search.web import SearchServer


@contextlib.contextmanager
def serving(page):
    server = SearchServer(page, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10)
        server.__exit__()


def ask(server, method, path, body=None, **headers):
    """(status, headers, body) of a request; `None` leaves a header out."""
    headers = {"Host": f"127.0.0.1:{server.server_port}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in headers.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None and "Content-Length" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def search(server, request, **headers):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    status, _, content = ask(server, "POST", "/search", body, **{"Content_Type": "application/json"} | headers)
    return status, json.loads(content)


def file(name, data, kind=""):
    return {"name": name, "type": kind, "data": base64.b64encode(data).decode()}


def pictured(store):
    """An item that has one frame, so that the frame as a file is what was embedded."""
    return next(item for item in (store[i] for i in range(64)) if len(item.frames) == 1)


def post(server, path, request):
    status, _, body = ask(server, "POST", path, json.dumps(request).encode(), Content_Type="application/json")
    return status, json.loads(body)


def ids(tab, of="hits"):
    return tab.locator(f"#{of} .id").all_inner_texts()


def wait_for(tab, what):
    # By locators: functions that are polled in the page would be evaluated there, which its policy forbids.
    tab.locator("#status", has_text=what).wait_for(timeout=300_000)


def wait_for_picture(tab):
    assert tab.locator("#hits img").first.evaluate("async image => (await image.decode(), image.naturalWidth)") > 0


def drop(tab, name, kind, data):
    """Drops a file onto the page as a hand does."""
    tab.evaluate(
        """([name, type, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            for (const kind of ["dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [name, kind, base64.b64encode(data).decode()],
    )


def problems_of(tab, axe):
    """What assistive technology cannot read, of a tab that may run axe-core's script."""
    tab.add_script_tag(path=axe)
    return tab.evaluate("async () => (await axe.run()).violations.map((of) => of.id + of.nodes[0].html.slice(0, 200))")


# (request, part of the message)
BAD_REQUESTS = [
    ({}, "nothing to search for"),
    ({"text": "  "}, "nothing to search for"),
    ({"files": [file("cat.jpg", b"no picture", "image/jpeg")]}, "cat.jpg: the image cannot be decoded"),
    ({"files": [file("a.mp4", b"no video")]}, "a.mp4: the video cannot be decoded"),
    ({"files": [file("a.txt", b"text")]}, "a.txt is not an image, sound or video"),
    ({"files": [{"name": "a.png"}]}, "malformed"),
    ({"files": [{"name": "a.png", "type": "", "data": "%%%"}]}, "malformed"),
    ({"files": ["a.png"]}, "malformed"),
    ({"files": "a.png"}, "wrong type"),
    ({"text": 3}, "wrong type"),
    ({"text": "x" * 600_000}, "600,000 characters (600,000 bytes), and a search takes 10,000"),
    ({"text": "\N{CAT FACE}" * 9_000}, "9,000 characters (36,000 bytes), and a search takes 10,000"),
    ({"like": "x" * 20_000}, "The id has 20,000 characters"),
    ({"like": "\ud800"}, "half of a surrogate pair"),
    ({"files": [file("a.png", b"")] * 17}, "at most 16 files, not 17"),
    ({"text": "x", "k": 0}, "at least one"),
    ({"text": "x", "k": 100000}, "at most 200"),
    ({"like": "nobody"}, "no item 'nobody'"),
    ([], "not a JSON object"),
    (b"{", "not JSON"),
    (b"\xff", "not JSON"),
]
