"""What the search page (`serve`) answers: reads its requests, searches, shows the items found."""

import base64
import binascii
import json
import mimetypes
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sail_jax.config import Config
from sail_jax.config.search import FILE_KINDS
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.items import TEXT_FIELDS, Item
from sail_jax.search.item_view import LABEL, MODALITIES, ItemView
from sail_jax.search.searcher import QueryFile, Searcher, query_item
from sail_jax.semantic_ids.table import SemanticIdTable

MAX_UPLOAD = 64 << 20  # bytes of the files of a query
_MAX_FILES = 16
_MAX_TEXT = 10_000  # characters of a text or an id
_MAX_TEXT_BYTES = 30_000  # the same in UTF-8
_MAX_RESULTS = 200


class Ask(NamedTuple):
    """What a request asks for.

    Attributes:
        query: the query, or the id of an item to search by.
        k: number of results.
        field: field that results must have words in; empty for all results.
        words: these words.
        item: id of the item whose score is to be explained; empty in a search.
    """

    query: Item | str
    k: int
    field: str
    words: str
    item: str


class SearchPage:
    """Answers the requests of the page. Searches must run one at a time, all else may run in parallel.

    Args:
        searcher: searches the items.
        config: limits of media.
        store: source of captions and images, or None.
        title: heading of the page.
        examples: texts to search for.
        semantic_ids: table of the items' semantic IDs, or None.
    """

    def __init__(
        self,
        searcher: Searcher,
        config: Config,
        store: ItemStore | None,
        *,
        title: str,
        examples: Sequence[str] = (),
        semantic_ids: SemanticIdTable | None = None,
    ) -> None:
        self._searcher, self._config, self._title = searcher, config, title
        self._examples, self._semantic_ids = list(examples), semantic_ids
        self.items = ItemView(store)

    def about(self) -> dict[str, Any]:
        """Returns title, number of items, limits, what results are filtered by, example searches."""
        return {
            "title": self._title,
            "items": len(self._searcher),
            "max_text": _MAX_TEXT,
            "max_upload": MAX_UPLOAD,
            "max_results": _MAX_RESULTS,
            "fields": [*TEXT_FIELDS, LABEL, MODALITIES],
            "examples": self._examples,
        }

    def start(self) -> dict[str, Any]:
        """Returns some items of the set, for the page before the first search."""
        return {"hits": [self.items.card(item_id) for item_id in self._searcher.sample(_FIELDS["k"])]}

    def read(self, body: bytes) -> Ask:
        """Returns what a request asks for.

        Args:
            body: the JSON of the request.

        Raises:
            SailError: the request is malformed or over a limit, a file cannot be decoded, or the query is empty.
        """
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SailError("The request is not JSON.") from error
        text, like, k, files, field, words, item = _checked(request)
        return Ask(like or query_item(text, files, self._config), k, field, words, item)

    def search(self, ask: Ask) -> dict[str, Any]:
        """Returns the answer to a search: "hits", "seconds", and "looked_at", those that a filter chose from.

        A hit has id, cosine, caption, and whether the item has an image and a sound.

        Raises:
            SailError: there is no item with this id, or `k` is below 1.
        """
        began = time.monotonic()
        by = self._searcher.like if isinstance(ask.query, str) else self._searcher.search
        (hits,) = by([ask.query], _MAX_RESULTS if ask.field else ask.k)
        looked_at = len(hits)
        if ask.field:
            hits = [hit for hit in hits if self.items.keeps(hit.id, ask.field, ask.words)][: ask.k]
        cards = [self.items.card(hit.id) | {"cosine": hit.score} for hit in hits]
        return {"hits": cards, "looked_at": looked_at, "seconds": round(time.monotonic() - began, 3)}

    def why(self, ask: Ask) -> dict[str, Any]:
        """Returns "scores": the cosine of the query with each modality of an item alone, and with "all".

        Raises:
            SailError: the item is not known.
        """
        item = self.items.get(ask.item)
        if item is None:
            raise SailError(f"There is no item {ask.item!r} in the store, so its score cannot be explained.")
        return {"scores": self._searcher.why(ask.query, item)}

    def details(self, item_id: str) -> dict[str, Any] | None:
        """Returns all that is known of an item, with its semantic ID; None for an unknown one."""
        found = self.items.details(item_id)
        if found is None:
            return None
        return found | {"semantic_id": self._semantic_ids.of_item(item_id) if self._semantic_ids else ""}


def _checked(request: Any) -> tuple[str, str, int, list[QueryFile], str, str, str]:
    """Returns the fields of a request in the order of `_FIELDS`, checked, with its files decoded."""
    if not isinstance(request, dict):
        raise SailError("The request is not a JSON object.")
    text, like, k, files, field, words, item = (request.get(key, default) for key, default in _FIELDS.items())
    texts = {"text": text, "id": like, "field": field, "filter": words, "item": item}
    if not (all(isinstance(value, str) for value in texts.values()) and type(k) is int and isinstance(files, list)):
        raise SailError("A field of the request has the wrong type.")
    for name, value in texts.items():
        _check_length(value, name)
    if field and field not in (*TEXT_FIELDS, LABEL, MODALITIES):
        raise SailError(f"Results cannot be filtered by {field!r}; choose one of the fields of the page.")
    if len(files) > _MAX_FILES:
        raise SailError(f"A query has at most {_MAX_FILES} files, not {len(files)}; leave some out.")
    if k > _MAX_RESULTS:
        raise SailError(f"{k} results are more than the page shows; ask for at most {_MAX_RESULTS}.")
    return text, like, k, [_query_file(file) for file in files], field, words, item


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


_FIELDS = {"text": "", "like": "", "k": 24, "files": [], "field": "", "words": "", "item": ""}


def _query_file(file: Any) -> QueryFile:
    try:
        name, kind, data = str(file["name"]), str(file["type"]), base64.b64decode(file["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise SailError("A file of the request is malformed; send name, type and data in base64.") from error
    kind = (kind or mimetypes.guess_type(name)[0] or "").partition("/")[0]
    if kind not in FILE_KINDS:
        raise SailError(f"{name} is not an image, sound or video by its name and type; choose another file.")
    return QueryFile(kind, name, data)
