"""What the search page (`serve`) answers: reads its requests, searches, shows the items found."""

import base64
import binascii
import contextlib
import json
import mimetypes
import time
from typing import Any

from sail_jax.config import Config
from sail_jax.config.search import FILE_KINDS
from sail_jax.data.store import ItemStore
from sail_jax.data.thumbnail import webp_thumbnail
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item
from sail_jax.search.searcher import Hit, QueryFile, Searcher, caption, query_item

MAX_UPLOAD = 64 << 20  # bytes of the files of a query
_MAX_FILES = 16
_MAX_TEXT = 10_000  # characters of a text or an id
_MAX_TEXT_BYTES = 30_000  # the same in UTF-8
_MAX_RESULTS = 200
_THUMBNAIL_SIDE = 240


class SearchPage:
    """Answers the requests of the page. Searches must run one at a time, all else may run in parallel.

    Args:
        searcher: searches the items.
        config: limits of media.
        store: source of captions and images, or None.
        title: heading of the page.
    """

    def __init__(self, searcher: Searcher, config: Config, store: ItemStore | None, *, title: str) -> None:
        self._searcher, self._config, self._store, self._title = searcher, config, store, title

    def about(self) -> dict[str, Any]:
        """Returns title, number of items and limits."""
        return {
            "title": self._title,
            "items": len(self._searcher),
            "max_text": _MAX_TEXT,
            "max_upload": MAX_UPLOAD,
            "max_results": _MAX_RESULTS,
        }

    def read(self, body: bytes) -> tuple[Item | str, int]:
        """Returns the query of a request, or the id of an item to search by, and the number of results.

        Args:
            body: the JSON of the request.

        Raises:
            SailError: the request is malformed or over a limit, a file cannot be decoded, or the query is empty.
        """
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SailError("The request is not JSON.") from error
        text, like, k, files = _checked(request)
        return like or query_item(text, files, self._config), k

    def search(self, query: Item | str, k: int) -> dict[str, Any]:
        """Returns the answer to a search: "hits" and "seconds".

        A hit has id, cosine, caption, and whether the item has an image and a sound.

        Raises:
            SailError: there is no item with this id, or `k` is below 1.
        """
        began = time.monotonic()
        by = self._searcher.like if isinstance(query, str) else self._searcher.search
        (hits,) = by([query], k)
        seconds = time.monotonic() - began
        return {"hits": [self._card(hit) for hit in hits], "seconds": round(seconds, 3)}

    def thumbnail(self, item_id: str) -> bytes | None:
        """Returns a small WebP of an item, or None if it has no image."""
        item = self._item(item_id)
        return webp_thumbnail(item.frames[0], _THUMBNAIL_SIDE) if item is not None and item.frames else None

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
    for value, name in ((text, "text"), (like, "id")):
        _check_length(value, name)
    if len(files) > _MAX_FILES:
        raise SailError(f"A query has at most {_MAX_FILES} files, not {len(files)}; leave some out.")
    if k > _MAX_RESULTS:
        raise SailError(f"{k} results are more than the page shows; ask for at most {_MAX_RESULTS}.")
    return text, like, k, [_query_file(file) for file in files]


def _check_length(value: str, name: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise SailError(f"The {name} holds half of a surrogate pair, which is no character; leave it out.") from error
    if len(value) > _MAX_TEXT or size > _MAX_TEXT_BYTES:
        raise SailError(
            f"The {name} has {len(value):,} characters ({size:,} bytes), and a search takes {_MAX_TEXT:,} "
            f"({_MAX_TEXT_BYTES:,} bytes); shorten it."
        )


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
