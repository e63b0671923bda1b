"""What the search page (`serve`) answers: reads its requests, searches, shows the items found."""

import base64
import binascii
import json
import mimetypes
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sail_jax.config import Config
from sail_jax.config.search import FILE_KINDS
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.items import TEXT_FIELDS, Item
from sail_jax.search.beside import Beside, common_items, shared_items, with_ranks
from sail_jax.search.item_view import LABEL, MODALITIES, ItemView
from sail_jax.search.searcher import QueryFile, Searcher, UnknownItemError, query_item
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
        beside: a second model, of which all is asked too; its items may be others.
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
        beside: Beside | None = None,
    ) -> None:
        self._searcher, self._config, self._title, self._beside = searcher, config, title, beside
        self._examples, self._semantic_ids = list(examples), semantic_ids
        self._shared = shared_items(searcher, beside.searcher) if beside else len(searcher)
        self.items = ItemView(store, beside.store if beside else None)

    def about(self) -> dict[str, Any]:
        """Returns title, number of items, limits, what results are filtered by, example searches.

        With a second model, "beside" has its title and number of items, and how many of them both have ("shared").
        """
        beside = self._beside
        return {
            "title": self._title,
            "items": len(self._searcher),
            "beside": beside and {"title": beside.title, "items": len(beside.searcher), "shared": self._shared},
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

        A hit has id, cosine, caption, and whether the item has an image and a sound. With a second model, "beside" is
        its answer, "common" the number of items that both found, and each hit is as of `beside.with_ranks`. A model
        that does not have the item that is asked by says so in "problem", where the other one has it.

        Raises:
            SailError: there is no item with this id, or `k` is below 1.
        """
        began = time.monotonic()
        found = self._of_each(lambda searcher: self._found(searcher, ask), nothing={"hits": [], "looked_at": 0})
        if self._beside and not any("problem" in each for each in (found, found["beside"])):
            ours, theirs = found["hits"], found["beside"]["hits"]
            found["hits"] = with_ranks(ours, theirs, self._beside.searcher)
            found["beside"]["hits"] = with_ranks(theirs, ours, self._searcher)
            found["common"] = common_items(ours, theirs)
        return found | {"seconds": round(time.monotonic() - began, 3)}

    def why(self, ask: Ask) -> dict[str, Any]:
        """Returns "scores": the cosine of the query with each modality of an item alone, and with "all".

        With a second model, "beside" is its answer; a "problem" is as in `search`.

        Raises:
            SailError: the item is not known.
        """
        item = self.items.get(ask.item)
        if item is None:
            raise SailError(f"There is no item {ask.item!r} in the store, so its score cannot be explained.")
        return self._of_each(lambda searcher: {"scores": searcher.why(ask.query, item)}, nothing={"scores": {}})

    def _found(self, searcher: Searcher, ask: Ask) -> dict[str, Any]:
        """Returns the "hits" of one model, and "looked_at"."""
        by = searcher.like if isinstance(ask.query, str) else searcher.search
        (hits,) = by([ask.query], _MAX_RESULTS if ask.field else ask.k)
        looked_at = len(hits)
        if ask.field:
            hits = [hit for hit in hits if self.items.keeps(hit.id, ask.field, ask.words)][: ask.k]
        return {"hits": [self.items.card(hit.id) | {"cosine": hit.score} for hit in hits], "looked_at": looked_at}

    def _of_each(self, answer: Callable[[Searcher], dict[str, Any]], nothing: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer of the model, with that of a second one as "beside".

        Raises:
            UnknownItemError: no model has the item that is asked by; where only one lacks it, its answer is `nothing`
                with a "problem".
        """
        if self._beside is None:
            return answer(self._searcher)
        answers, errors = [], []
        for searcher in (self._searcher, self._beside.searcher):
            try:
                answers.append(answer(searcher))
            except UnknownItemError as error:
                answers.append(nothing | {"problem": str(error)})
                errors.append(error)
        if len(errors) == len(answers):
            raise errors[0]
        return answers[0] | {"beside": answers[1]}

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
