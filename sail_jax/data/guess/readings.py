"""Says what a column can be taken for, and why, by its name and a sample of its cells.

Each function looks for one kind and returns a reading or None. Readings are compared by how sure they are: a name that
says it counts most, then what the cells look like.
"""

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sail_jax.data.ingest.cells import list_cell
from sail_jax.data.media.folders import kind_of

# Readings that are this close to the best one are told too.
_CLOSE = 0.15
_DULL = ("number", "unknown")  # what is of no use, whatever it is
_MOST = 200  # cells whose files are looked up
_NEARLY_ALL = 0.95  # of the cells of a column of ids differ, where some rows of an export stand there twice

HINTS = {
    "id": ("id", "ids", "key", "uid", "uuid", "asin", "sku", "isbn", "url_id"),
    "user": (
        *("user", "users", "member", "customer", "visitor", "session", "reviewer", "account", "userid"),
        *("buyer", "client", "viewer", "listener"),
    ),
    "time": ("time", "timestamp", "date", "datetime", "created", "published", "updated", "ts", "when"),
    "language": ("language", "lang", "locale"),
    "score": ("score", "similarity", "rating", "relevance", "grade", "weight", "stars", "sim"),
    "flag": ("like", "liked", "click", "clicked", "finish", "finished", "share", "shared", "follow", "bought", "saved"),
    "label": ("label", "labels", "class", "category", "categories", "group", "topic", "genre", "type", "kind"),
    "tags": ("tags", "tag", "keywords", "hashtags", "genres", "topics"),
}
# Text field of an item -> names of columns that mean it.
FIELDS = {
    "title": ("title", "name", "caption", "headline", "subject", "question", "query", "anchor", "prompt", "sentence1"),
    "asr": (
        *("description", "desc", "text", "body", "transcript", "asr", "speech", "content", "article", "answer", "plot"),
        *("passage", "positive", "document", "overview", "summary", "abstract", "lyrics", "response", "sentence2"),
    ),
    "ocr": ("ocr",),
    "nickname": ("author", "artist", "creator", "channel", "nickname", "brand", "director", "singer", "uploader"),
}
_TEXT_NAMES = tuple(word for words in FIELDS.values() for word in words)
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "eval"), "other": ("val", "valid", "validation")}
_SPLIT_WORDS = {word for words in SPLITS.values() for word in words} | {"dev", "holdout"}
_LANGUAGES = re.compile(
    "aa|af|am|ar|az|be|bg|bn|bs|ca|cs|cy|da|de|el|en|eo|es|et|eu|fa|fi|fr|ga|gl|gu|he|hi|hr|hu|hy|id|is|it|ja|ka|kk|km|"
    "kn|ko|ky|la|lo|lt|lv|mk|ml|mn|mr|ms|mt|my|nb|ne|nl|nn|no|pa|pl|ps|pt|ro|ru|si|sk|sl|sq|sr|sv|sw|ta|te|tg|th|tl|tr|"
    "uk|ur|uz|vi|xh|yi|yo|zh|zu"
)
# Times between 2001 and 2100, by unit.
_EPOCHS = {"s": 1, "ms": 1_000, "us": 1_000_000}
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?")
# First bytes of files -> their kind.
_MAGIC = (
    (rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP|....ftypavif|\0\0\0\x0cjP", "image"),
    (rb"RIFF....WAVE|OggS|fLaC|ID3|\xff[\xfb\xf3\xf2\xf1\xf9]|FORM....AIF|....ftypM4A", "audio"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI", "video"),
)


class Reading(NamedTuple):
    """What a column can be taken for.

    Attributes:
        kind: "id", "image", "audio", "video", "text", "tags", "label", "score", "time", "split", "language", "user",
            "flag", "vector", "url", "lost" (names of files that are missing), "number" or "empty".
        sure: how sure it is, up to 1.
        reason: why, for the user.
    """

    kind: str
    sure: float
    reason: str


class Column(NamedTuple):
    """The sample of a column.

    Attributes:
        name: its name.
        cells: its cells that are not empty, of the first rows.
        more: those of further rows.
        rows: number of the first rows.
    """

    name: str
    cells: Sequence[Any]
    more: Sequence[Any]
    rows: int

    def named(self, kind: str) -> bool:
        """Returns whether a word of its name means a kind."""
        return bool(set(words_of(self.name)) & set(HINTS[kind]))

    @property
    def distinct(self) -> int:
        """Returns the number of different cells."""
        return len(set(map(str, self.cells)))


def words_of(name: str) -> list[str]:
    """Returns the words of a column's name in lower case: "userId" and "user_id" are "user" and "id"."""
    return re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def read_column(column: Column, kind_of_file: Callable[[str], str]) -> list[Reading]:
    """Returns what a column can be taken for, the surest first; at least one reading.

    Args:
        column: its sample.
        kind_of_file: the kind of the file that a cell names, empty if there is none.
    """
    if not column.cells:
        return [Reading("empty", 1.0, "has no cell that is filled")]
    readings = [_media(column, kind_of_file), *(read(column) for read in _READERS)]
    return sorted(filter(None, readings), key=lambda reading: -reading.sure)


def rivals(readings: Sequence[Reading]) -> list[Reading]:
    """Returns the best reading, and those that are about as sure, where it matters which of them is right."""
    best = readings[0]
    return [best, *(other for other in readings[1:] if other.sure > best.sure - _CLOSE and other.kind not in _DULL)]


def kind_of_bytes(data: bytes) -> str:
    """Returns the kind of an encoded file by its first bytes; empty if they are of none that is known."""
    return next((kind for pattern, kind in _MAGIC if re.match(pattern, data, re.DOTALL)), "")


def _entries(cell: Any) -> list[Any]:
    return list_cell(cell, "|") if isinstance(cell, str | list | tuple) else [cell]


def _media(column: Column, kind_of_file: Callable[[str], str]) -> Reading | None:
    firsts = [entries[0] for cell in column.cells[:_MOST] if (entries := _entries(cell))]
    loaded = [cell.get("bytes") or cell.get("path") if isinstance(cell, Mapping) else cell for cell in firsts]
    if kinds := [kind for data in loaded if isinstance(data, bytes) and (kind := kind_of_bytes(data))]:
        kind = max(set(kinds), key=kinds.count)
        return Reading(kind, 1.0, f"holds the bytes of {kind} files")
    names = [entry for entry in loaded if isinstance(entry, str)]
    if not names:
        return None
    if sum(name.startswith(("http://", "https://")) for name in names) > 0.8 * len(names):
        return Reading("url", 1.0, "holds addresses, which are not fetched; download the files (img2dataset does)")
    found = [kind for name in names if (kind := kind_of_file(name)) not in ("", "text")]
    if len(found) >= 0.5 * len(names):
        kind = max(set(found), key=found.count)
        return Reading(kind, 1.0, f"{len(found)} of {len(names)} name {kind} files of the folder")
    if sum(kind_of(name) not in ("", "text") and " " not in name for name in names) > 0.8 * len(names):
        return Reading("lost", 1.0, f"names files, but only {len(found)} of {len(names)} are in the folder")
    return None


def _time(column: Column) -> Reading | None:
    if all(isinstance(cell, datetime.date | datetime.datetime) for cell in column.cells):
        return Reading("time", 0.95, "holds dates")
    named = column.named("time")
    if all(isinstance(cell, str) and _DATE.fullmatch(cell.strip()) for cell in column.cells):
        return Reading("time", 0.95, "holds dates as text")
    if unit := time_unit(column.cells):
        reason = f"numbers in the range of times in {unit}" + ", and so named" * named
        return Reading("time", 0.95 if named else 0.6, reason)
    return None


def time_unit(cells: Sequence[Any]) -> str:
    """Returns the unit of times since 1970 ("s", "ms", "us"); empty if some cell is no such time."""
    numbers = _numbers(cells)
    if numbers is None or not all(number == round(number) for number in numbers):
        return ""
    for unit, per_second in _EPOCHS.items():
        if all(978_307_200 * per_second <= number <= 4_102_444_800 * per_second for number in numbers):
            return unit
    return ""


def _numbers(cells: Sequence[Any]) -> list[float] | None:
    """Returns the cells as numbers; None if one is none."""
    try:
        numbers = [float(cell) for cell in cells if not isinstance(cell, bool)]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == len(cells) and all(map(math.isfinite, numbers)) else None


def _split(column: Column) -> Reading | None:
    found = {str(cell).strip().lower() for cell in [*column.cells, *column.more]}
    if not found <= _SPLIT_WORDS:
        return None
    return Reading("split", 1.0, f"its cells are {', '.join(sorted(found))}")


def _language(column: Column) -> Reading | None:
    codes = {re.split(r"[-_]", str(cell).strip())[0].lower() for cell in column.cells}
    if not all(map(_LANGUAGES.fullmatch, codes)) or not all(isinstance(cell, str) for cell in column.cells):
        return None
    return Reading("language", 0.95 if column.named("language") else 0.8, f"codes of languages, as {min(codes)}")


def _vector(column: Column) -> Reading | None:
    cells = column.cells[:20]
    if not all(isinstance(cell, list | tuple | np.ndarray) and len(cell) >= 4 for cell in cells):
        return None
    if not all(isinstance(number, int | float | np.floating) for cell in cells for number in cell):
        return None
    return Reading("vector", 1.0, f"lists of {len(cells[0])} numbers")


def _user(column: Column) -> Reading | None:
    if _mean_words(column.cells) > 2:
        return None
    if column.named("user"):
        return Reading("user", 1.0, "its name says so")
    # The id of an item may be called so too, but stands once.
    if "uid" in words_of(column.name) and column.distinct < _NEARLY_ALL * len(column.cells):
        return Reading("user", 0.98, "its name says so, and its cells repeat")
    return None


def _mean_words(cells: Sequence[Any]) -> float:
    return sum(len(str(cell).split()) for cell in cells) / len(cells)


def _id(column: Column) -> Reading | None:
    texts = [str(cell) for cell in column.cells]
    unfit = any(len(text) > 128 or "\n" in text for text in texts) or len(texts) < column.rows
    numbers = _numbers(column.cells)
    fractions = numbers is not None and any(number != round(number) for number in numbers)
    if (
        column.named("user")
        or unfit
        or fractions
        or not all(isinstance(cell, str | int | float) for cell in column.cells)
    ):
        return None
    named, spaced = column.named("id"), sum(" " in text.strip() for text in texts) > 0.2 * len(texts)
    different, so_named = len(set(texts)), ", and so named" * named
    if different == len(texts):
        sure = 0.97 if named else 0.3 if spaced or len(texts) < 2 else 0.6
        return Reading("id", sure, f"all {different:,} of the sample differ{so_named}")
    if named and different >= _NEARLY_ALL * len(texts):
        reason = f"{different:,} of the sample's {len(texts):,} differ{so_named}; of rows of one id the first is read"
        return Reading("id", 0.9, reason)
    return None


def _score(column: Column) -> Reading | None:
    numbers = _numbers(column.cells)
    if numbers is None:
        return None
    named, fractions = column.named("score"), any(number != round(number) for number in numbers)
    if not named and not fractions:
        return None
    reason = f"numbers from {min(numbers):g} to {max(numbers):g}" + ", and so named" * named
    return Reading("score", 0.95 if named else 0.6, reason)


def _flag(column: Column) -> Reading | None:
    found = {str(cell).lower() for cell in column.cells}
    if not found <= {"true", "false", "0", "1", "0.0", "1.0"}:
        return None
    return Reading("flag", 0.95 if column.named("flag") else 0.7, "its cells say yes or no")


def _tags(column: Column) -> Reading | None:
    named = column.named("tags")
    lists = all(isinstance(cell, list | tuple) and all(isinstance(word, str) for word in cell) for cell in column.cells)
    barred = sum("|" in cell for cell in column.cells if isinstance(cell, str)) >= 0.3 * len(column.cells)
    if lists or barred:
        return Reading("tags", 0.95, "lists of words" if lists else "words separated by |")
    if named and all(isinstance(cell, str) for cell in column.cells):
        return Reading("tags", 0.96, "its name says so")
    return None


def _label(column: Column) -> Reading | None:
    plain = all(isinstance(cell, str | int) and not isinstance(cell, bool) for cell in column.cells)
    short = plain and all(len(str(cell)) <= 64 for cell in column.cells)
    distinct = column.distinct
    if not short or distinct < 2 or distinct > max(2, 0.3 * len(column.cells)) or distinct > 1000:
        return None
    named, numbers = column.named("label"), _numbers(column.cells) is not None
    reason = f"{distinct} values for {len(column.cells):,} rows" + ", and so named" * named
    return Reading("label", 0.96 if named else 0.45 if numbers else 0.75, reason)


def _text(column: Column) -> Reading | None:
    texts = [cell for cell in column.cells if isinstance(cell, str)]
    if len(texts) < len(column.cells) or not any(re.search(r"[^\W\d_]", text) for text in texts):
        return None
    named = bool(set(words_of(column.name)) & set(_TEXT_NAMES)) and not column.named("user")
    words = _mean_words(texts)
    reason = f"text of {words:.0f} words on average" if words >= 1.5 else "single words"
    return Reading("text", 0.92 if named else 0.8 if words >= 2 else 0.4, reason + ", and so named" * named)


def _number(column: Column) -> Reading | None:
    return Reading("number", 0.35, "a number without a known meaning") if _numbers(column.cells) is not None else None


def _unknown(column: Column) -> Reading:
    return Reading("unknown", 0.05, f"cells such as {str(column.cells[0])[:30]!r}")


_READERS = (_time, _split, _language, _vector, _user, _id, _score, _flag, _tags, _label, _text, _number, _unknown)
