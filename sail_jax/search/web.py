"""Serves the search page on this machine (`serve`).

The server listens on 127.0.0.1 only. Other pages in the same browser cannot use it: requests under another host
name (DNS rebinding) or from another origin are refused, and a search must be JSON, which other sites may not send.

    GET  /                    the page (search_page.html), one file that loads nothing from elsewhere
    GET  /about               title, number of items, limits, example searches
    GET  /start               some items of the set
    POST /search              {"text", "files", "like" (an id), "k", "field", "words"} -> {"hits": [...], "seconds"};
                              a file is {"name", "type", "data" (base64)}; of a second model too: "beside", "common"
    POST /why                 the same with "item" (an id) -> {"scores"}, by modality of the item
    GET  /item?id=ID          texts, labels, number of frames, semantic ID
    GET  /thumbnail?id=ID     a small WebP of an item; &frame=N for another frame than the first
    GET  /sound?id=ID         the sound of an item

A failed request answers {"error": MESSAGE}. Files are decoded side by side, searches run one at a time; clients, told
apart by the header X-Client, take turns. Where too many wait, the answer is 503 with Retry-After.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sail_jax.errors import SailError
from sail_jax.search.page import MAX_UPLOAD, Ask, SearchPage
from sail_jax.search.turns import BusyError, Turns

_HTML = Path(__file__).with_name("search_page.html")
_HOST = "127.0.0.1"
_MAX_BODY = MAX_UPLOAD * 4 // 3 + (1 << 20)  # the same in base64, with a text
_MAX_WAITING, _MAX_WAITING_OF_ONE = 16, 8  # searches, of all clients and of one
_TIMEOUT = 30.0  # seconds in which a search must have come in whole, and after which an idle connection is closed
_RETRY_AFTER = 2  # seconds
_GRACE = 2  # seconds that answers get when the server ends


@contextlib.contextmanager
def _called_at_the_end(number: signal.Signals, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Lets a signal call `meanwhile`, and its handler afterwards, as uvicorn does with SIGINT and SIGTERM.

    What a handler raises while a request is answered, uvicorn takes for an error of the request.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    came = threading.Event()

    def handle(*_: object) -> None:
        came.set()
        meanwhile()

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)
    if came.is_set():
        signal.raise_signal(number)


class SearchServer:
    """HTTP server of a page on 127.0.0.1; as a context manager it closes the port at the end.

    Args:
        page: the page.
        port: the port; 0 for any free one.

    Raises:
        SailError: the port is taken or out of range.
    """

    def __init__(self, page: SearchPage, port: int) -> None:
        self.page, self._turns = page, Turns(_MAX_WAITING, _MAX_WAITING_OF_ONE)
        try:
            self._socket = socket.create_server((_HOST, port))
        except (OSError, OverflowError) as error:
            raise SailError(f"Port {port} of {_HOST} cannot be opened ({error}); name another --port.") from error
        self.server_port = self._socket.getsockname()[1]
        self._html = _HTML.read_bytes()
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._application(),
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # errors are told by `_failed`
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(_TIMEOUT),
                timeout_graceful_shutdown=_GRACE,
                headers=[
                    ("Content-Security-Policy", _policy(self._html.decode())),
                    ("Cross-Origin-Resource-Policy", "same-origin"),
                    ("Referrer-Policy", "no-referrer"),
                    ("X-Content-Type-Options", "nosniff"),
                ],
            )
        )

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{_HOST}:{self.server_port}/"

    def serve_forever(self) -> None:
        """Serves until `shutdown`, or until a signal, whose handler is called once all has ended."""
        with _called_at_the_end(signal.SIGUSR1, self.shutdown):
            self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """Ends `serve_forever`, which another thread runs."""
        self._server.should_exit = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the port and waits for the running search."""
        self._socket.close()
        self._turns.finish()

    def _application(self) -> Starlette:
        names = (_HOST, "localhost")
        hosts = {f"{name}:{self.server_port}" for name in names} | set(names if self.server_port == 80 else ())
        return Starlette(
            routes=[
                Route("/", self._get_page),
                Route("/about", self._get_about),
                Route("/start", self._get_start),
                Route("/item", self._get_item),
                Route("/thumbnail", self._get_thumbnail),
                Route("/sound", self._get_sound),
                Route("/search", self._post_search, methods=["POST"]),
                Route("/why", self._post_why, methods=["POST"]),
            ],
            middleware=[Middleware(_Guard, hosts=hosts, url=self.url)],
            exception_handlers={
                HTTPException: _refused,
                SailError: _bad_request,
                BusyError: _busy,
                ClientDisconnect: _gone,
                Exception: _failed,
            },
        )

    async def _get_page(self, _: Request) -> Response:
        return Response(self._html, headers=_NOT_KEPT, media_type="text/html")

    async def _get_about(self, _: Request) -> Response:
        return _json(self.page.about())

    def _get_start(self, _: Request) -> Response:
        return _json(self.page.start())

    def _get_item(self, request: Request) -> Response:
        return _json(_found(self.page.details, request, "item"))

    def _get_thumbnail(self, request: Request) -> Response:
        frame = request.query_params.get("frame", "0")
        number = int(frame) if re.fullmatch(r"\d{1,9}", frame) else -1
        read = functools.partial(self.page.items.thumbnail, frame=number)
        return Response(_found(read, request, "picture of"), headers=_KEPT, media_type="image/webp")

    def _get_sound(self, request: Request) -> Response:
        data, kind = _found(self.page.items.sound, request, "sound of")
        return Response(data, headers=_KEPT, media_type=kind)

    async def _post_search(self, request: Request) -> Response:
        return await self._answered(request, self.page.search)

    async def _post_why(self, request: Request) -> Response:
        return await self._answered(request, self.page.why)

    async def _answered(self, request: Request, answer_to: Callable[[Ask], dict[str, Any]]) -> Response:
        if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "A search is sent as application/json.")
        length = request.headers.get("Content-Length")
        if length is None:
            raise HTTPException(411, "A search needs a Content-Length.")
        if int(length) > _MAX_BODY:
            raise HTTPException(413, f"The files are over the limit of {MAX_UPLOAD >> 20} MiB; take smaller ones.")
        client = request.headers.get("X-Client", "")
        with self._turns.admitted(client):
            try:
                body = await asyncio.wait_for(request.body(), _TIMEOUT)
            except TimeoutError as error:
                raise HTTPException(408, f"The search did not come in whole within {_TIMEOUT:.0f} s.") from error
            ask = await run_in_threadpool(self.page.read, body)
            del body
            answer = asyncio.wrap_future(self._turns.submit(client, functools.partial(answer_to, ask)))
            return _json(await _unless_gone(request, answer))


class _Guard:
    """Refuses requests under another host name (DNS rebinding) or from another site."""

    def __init__(self, app: ASGIApp, hosts: set[str], url: str) -> None:
        self._app, self._hosts, self._url = app, hosts, url
        self._origins = {f"http://{host}" for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Request(scope).headers
        answer = self._app
        if headers.get("Host", "").lower() not in self._hosts:
            answer = _json({"error": f"This page is served only at {self._url}."}, 403)
        elif any(origin.lower() not in self._origins for origin in headers.getlist("Origin")):
            answer = _json({"error": "Another site may not search here."}, 403)
        await answer(scope, receive, send)


async def _unless_gone(request: Request, answer: asyncio.Future) -> Any:
    """Returns an answer; cancels it where the client has closed the connection before its turn."""
    gone = asyncio.ensure_future(request.receive())  # after the body, only the end of the connection can come
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


_NOT_KEPT, _KEPT = {"Cache-Control": "no-store"}, {"Cache-Control": "private, max-age=600"}


def _found(read: Callable[[str], Any], request: Request, what: str) -> Any:
    """Returns what is read of the item that a request names."""
    item_id = request.query_params.get("id", "")
    found = read(item_id)
    if found is None:
        raise HTTPException(404, f"There is no {what} {item_id!r}.")
    return found


def _json(content: dict[str, Any], status: int = 200, **headers: str) -> Response:
    # Text from the web may hold halves of surrogate pairs; in ASCII JSON they do no harm.
    return Response(json.dumps(content), status, _NOT_KEPT | headers, "application/json")


async def _refused(_: Request, refused: HTTPException) -> Response:
    return _json({"error": refused.detail}, refused.status_code)


async def _bad_request(_: Request, error: SailError) -> Response:
    return _json({"error": str(error)}, 400)


async def _busy(_: Request, error: BusyError) -> Response:
    return _json({"error": str(error)}, 503, **{"Retry-After": str(_RETRY_AFTER)})


async def _gone(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=408)  # nobody reads it


async def _failed(_: Request, error: Exception) -> Response:
    said = f"{type(error).__name__}: {error}"
    print(said, file=sys.stderr)
    return _json({"error": f"The search failed ({said})."}, 500)


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
        "img-src 'self' blob:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
