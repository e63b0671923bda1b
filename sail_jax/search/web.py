"""Serves the search page on this machine (`serve`).

The server listens on 127.0.0.1 only. Other pages in the same browser cannot use it: requests under another host
name (DNS rebinding) or from another origin are refused, and a search must be JSON, which other sites may not send.

    GET  /                    the page (search_page.html), one file that loads nothing from elsewhere
    GET  /about               title, number of items, limits
    POST /search              {"text", "files", "like" (an id), "k"} -> {"hits": [...], "seconds"};
                              a file is {"name", "type", "data" (base64)}
    GET  /thumbnail?id=ID     a small WebP of an item

A failed search answers {"error": MESSAGE}.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import mimetypes
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sail_jax.config import Config
from sail_jax.config.search import FILE_KINDS
from sail_jax.data.store import ItemStore
from sail_jax.data.thumbnail import webp_thumbnail
from sail_jax.errors import BadRecordError, SailError
from sail_jax.search.searcher import Hit, QueryFile, Searcher, caption, query_item

_PAGE = Path(__file__).with_name("search_page.html")
_HOST = "127.0.0.1"
_THUMBNAIL_SIDE = 240
_MAX_UPLOAD = 64 << 20  # bytes of the files of a query
_MAX_BODY = _MAX_UPLOAD * 4 // 3 + (1 << 20)  # the same in base64, with a text
_MAX_RESULTS = 200
_TIMEOUT = 30.0  # seconds after which an idle connection is closed


class SearchPage:
    """Answers the requests of the page; searches run one at a time, other requests in parallel.

    Args:
        searcher: searches the items.
        config: limits of media.
        store: source of captions and images, or None.
        title: heading of the page.
    """

    def __init__(self, searcher: Searcher, config: Config, store: ItemStore | None, *, title: str) -> None:
        self._searcher, self._config, self._store, self._title = searcher, config, store, title
        self._search_lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """Returns title, number of items and limits."""
        return {
            "title": self._title,
            "items": len(self._searcher),
            "max_upload": _MAX_UPLOAD,
            "max_results": _MAX_RESULTS,
        }

    def search(self, request: Any) -> dict[str, Any]:
        """Answers a search.

        Args:
            request: the decoded JSON of the request.

        Returns:
            "hits" (id, cosine, caption, whether the item has an image and a sound) and "seconds".

        Raises:
            SailError: the request is malformed, a file cannot be decoded, or the query is empty.
        """
        text, like, k, files = _checked(request)
        query = None if like else query_item(text, files, self._config)
        began = time.monotonic()
        with self._search_lock:
            (hits,) = self._searcher.like([like], k) if query is None else self._searcher.search([query], k)
        seconds = time.monotonic() - began
        return {"hits": [self._card(hit) for hit in hits], "seconds": round(seconds, 3)}

    def thumbnail(self, item_id: str) -> bytes | None:
        """Returns a small WebP of an item, or None if it has no image."""
        item = self._item(item_id)
        return webp_thumbnail(item.frames[0], _THUMBNAIL_SIDE) if item is not None and item.frames else None

    def finish(self) -> None:
        """Waits for the running search and prevents further ones."""
        self._search_lock.acquire()

    def _card(self, hit: Hit) -> dict[str, Any]:
        item = self._item(hit.id)
        shown = item.modalities if item is not None else ""
        return {
            "id": hit.id,
            "cosine": hit.score,
            "caption": caption(item) if item is not None else "",
            "picture": "V" in shown,
            "sound": "A" in shown,
        }

    def _item(self, item_id: str) -> Any:
        if self._store is None:
            return None
        with contextlib.suppress(BadRecordError):
            return self._store.get(item_id)
        return None


def _checked(request: Any) -> tuple[str, str, int, list[QueryFile]]:
    """Returns (text, id of the item to search by, K, files) of a request, checked."""
    if not isinstance(request, dict):
        raise SailError("The request is not a JSON object.")
    text, like, k, files = (request.get(key, default) for key, default in _FIELDS.items())
    if not (isinstance(text, str) and isinstance(like, str) and type(k) is int and isinstance(files, list)):
        raise SailError("A field of the request has the wrong type.")
    if k > _MAX_RESULTS:
        raise SailError(f"{k} results are more than the page shows; ask for at most {_MAX_RESULTS}.")
    return text, like, k, [_query_file(file) for file in files]


_FIELDS = {"text": "", "like": "", "k": 24, "files": []}


def _query_file(file: Any) -> QueryFile:
    try:
        name, kind, data = str(file["name"]), str(file["type"]), base64.b64decode(file["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise SailError("A file of the request is malformed; send name, type and data in base64.") from error
    kind = (kind or mimetypes.guess_type(name)[0] or "").partition("/")[0]
    if kind not in FILE_KINDS:
        raise SailError(f"{name} is not an image, sound or video by its name and type; choose another file.")
    return QueryFile(kind, name, data)


class SearchServer(ThreadingHTTPServer):
    """HTTP server of a page on 127.0.0.1; as a context manager it closes the port at the end.

    Args:
        page: the page.
        port: the port; 0 for any free one.

    Raises:
        SailError: the port is taken or out of range.
    """

    daemon_threads = True  # browsers keep idle connections open
    allow_reuse_address = True

    def __init__(self, page: SearchPage, port: int) -> None:
        self.page, self.html = page, _PAGE.read_bytes()
        self.policy = _policy(self.html.decode())
        try:
            super().__init__((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise SailError(f"Port {port} of {_HOST} cannot be opened ({error}); name another --port.") from error
        names = (_HOST, "localhost")
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        if self.server_port == 80:
            self.hosts |= set(names)

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{_HOST}:{self.server_port}/"

    def __exit__(self, *args: Any) -> None:
        """Closes the port and waits for the running search."""
        super().__exit__(*args)
        self.page.finish()


def _policy(html: str) -> str:
    """Returns the content security policy: only the page's own style and script, by their hashes."""
    own = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
            for body in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        )
        for tag in ("style", "script")
    }
    return (
        f"default-src 'none'; style-src {own['style']}; script-src {own['script']}; connect-src 'self'; "
        "img-src 'self' blob:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Refused(Exception):
    """A refused request: HTTP status and reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    server_version, sys_version = "sail_jax", ""
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Any) -> None:
        try:
            self._answer_or_refuse(method)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client is gone

    def _answer_or_refuse(self, method: Any) -> None:
        try:
            self._check_origin()
            method()
        except _Refused as refused:
            self._send_json(refused.status, {"error": str(refused)})
        except SailError as error:
            self._send_json(400, {"error": str(error)})
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            self.log_error("%s: %s", type(error).__name__, error)
            self._send_json(500, {"error": f"The search failed ({type(error).__name__}: {error})."})

    def _check_origin(self) -> None:
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            raise _Refused(403, f"This page is served only at {self.server.url}.")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://").lower() not in self.server.hosts:
            raise _Refused(403, "Another site may not search here.")

    def _get(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.html)
        elif url.path == "/about":
            self._send_json(200, self.server.page.about())
        elif url.path == "/thumbnail":
            (item_id,) = urllib.parse.parse_qs(url.query).get("id", [""])[:1]
            picture = self.server.page.thumbnail(item_id)
            if picture is None:
                raise _Refused(404, f"There is no picture of {item_id!r}.")
            self._send(200, "image/webp", picture, cache="private, max-age=600")
        else:
            raise _Refused(404, "There is nothing here.")

    def _post(self) -> None:
        if self.path != "/search":
            raise _Refused(404, "There is nothing here.")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "A search is sent as application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(411, "A search needs a Content-Length.")
        if int(length) > _MAX_BODY:
            raise _Refused(413, f"The files are over the limit of {_MAX_UPLOAD >> 20} MiB; search with smaller ones.")
        try:
            request = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise _Refused(400, "The request is not JSON.") from error
        self._send_json(200, self.server.page.search(request))

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        # Text from the web may hold halves of surrogate pairs; in ASCII JSON they do no harm.
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, content: bytes, *, cache: str = "no-store") -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", cache),
            ("Content-Security-Policy", self.server.policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Logs nothing: the terminal shows only errors."""
