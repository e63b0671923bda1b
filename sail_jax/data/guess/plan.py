"""Says what the tables of a folder are for: items, pairs, queries, logs, vectors."""

import collections
import dataclasses
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from sail_jax.data.guess.inventory import Inventory, take_inventory
from sail_jax.data.guess.items_table import EXAMPLE, ITEM_WORDS, MEDIA, choose_items, id_column
from sail_jax.data.guess.readings import FIELDS, SPLITS, Reading, rivals, time_unit, words_of
from sail_jax.data.guess.tables import Choose, ReadTable
from sail_jax.data.ingest.cells import id_cell, is_empty, list_cell
from sail_jax.data.media.folders import kind_of
from sail_jax.data.tables import is_held_out
from sail_jax.errors import SailError

_LETTERS = {"image": "V", "video": "V", "audio": "A"}
_SURE = 0.5  # numbers of few values are no labels
_FEWEST = 8  # pairs of a table that trains
_REFERENCES = 4  # tables of pairs and queries that a config names
_QUERY_WORDS = {"query", "q", "source", "src", "anchor", "left", "a", "from", "user"}
_SEARCH_WORDS = {"query", "search", "keyword", "q", "term", "phrase"}
# Words of columns that say what a user did, and of what is no sign that they liked it.
_DONE_WORDS = {"event", "action", "behavior", "behaviour", "interaction", "activity", "type"}
_PASSIVE = {
    *("view", "views", "viewed", "impression", "impressions", "show", "shown", "exposure", "pv", "seen"),
    *("skip", "skipped", "dislike", "disliked", "unlike", "hide", "hidden"),
    *("remove", "removed", "unfollow", "report", "return"),
}
_MOST_DONE = 12  # kinds of events; a column with more says something else
_TARGET_WORDS = {"target", "positive", "right", "b", "to", "related", "similar", "answer", "doc"}


class Finding(NamedTuple):
    """What is said of a column.

    Attributes:
        table: its table.
        column: its name.
        taken: what it is taken for.
        why: why.
        sample: some of its cells.
        other: another reading that is about as likely; empty if there is none.
    """

    table: str
    column: str
    taken: str
    why: str
    sample: str
    other: str


class Reference(NamedTuple):
    """A table of pairs or queries.

    Attributes:
        name: its name in the config.
        settings: `config.ingest.tables.NAME`.
        queries: whether its queries are texts.
        train: the split that trains; None if it is for tests alone.
        test: the split that tests; None if it is for training alone.
        rows: number of its pairs that train; None if there are more than the sample.
    """

    name: str
    settings: dict[str, str]
    queries: bool
    train: str | None
    test: str | None
    rows: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a folder is taken for.

    Attributes:
        items: the table of items, relative to the folder, or absolute beside the config.
        source: settings of `config.ingest.source`.
        text: text field -> column.
        modalities: those that items have, of "VTA".
        references: tables of pairs and of queries.
        logs: settings of `config.logs`; empty without logs.
        vectors: name -> table of ID embeddings.
        holdout: share of the items that are kept for tests.
        rows: number of items, None if there are more than the sample.
        findings: what is said of each column.
        notes: further remarks.
    """

    items: str
    source: dict[str, Any]
    text: dict[str, str]
    modalities: str
    references: tuple[Reference, ...]
    logs: dict[str, Any]
    vectors: dict[str, str]
    holdout: float
    rows: int | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def understand(folder: Path, target: Path, choose: Choose) -> Plan:
    """Says what a folder holds; writes a small table beside the config where ingestion needs one.

    Args:
        folder: the folder.
        target: path of the config without its suffix, which begins the name of that table.
        choose: decides between readings of a column that are about as sure.

    Raises:
        SailError: nobody can make sense of it; the message says what was found, and what a table could look like.
    """
    found, beside = take_inventory(folder), target.with_name(f"{target.name}_items")
    try:
        notes = [f"{folder} holds {found}."] if found.unread else []
        items, others = choose_items(found, beside, choose, notes)
        return _Planner(found, items, others, notes).plan()
    except SailError:  # nothing is left of what was written for it
        for suffix in (".jsonl", ".parquet"):
            beside.with_name(f"{beside.name}{suffix}").unlink(missing_ok=True)
        raise


class _Planner:
    """Puts the tables of a folder together."""

    def __init__(self, found: Inventory, items: ReadTable, others: list[ReadTable], notes: list[str]) -> None:
        self._found, self._items, self._others, self._notes = found, items, others, notes
        self._taken: dict[tuple[str, str], tuple[str, str]] = {}
        self._id = id_column(items)
        self._ids = {id_cell(cell): row for row, cell in self._cells(items, self._id)}

    @staticmethod
    def _cells(table: ReadTable, column: str) -> Iterator[tuple[Mapping[str, Any], Any]]:
        return ((row, row[column]) for row in table.sample.rows if not is_empty(row.get(column)))

    def plan(self) -> Plan:
        """Returns the plan."""
        source, modalities = self._source()
        references, logs, vectors = self._tables()
        text = self._text()
        for name in self._leaks(references, text):
            text = {field: column for field, column in text.items() if column != name}
            self._take(
                self._items, name, "left out", "holds the words of the queries, which would give the answer away"
            )
        label = source.get("labels")
        alone = not (references or logs) and len(text) < 2 and not (text and modalities)
        if label and (alone or not text):
            text = {**text, "tags": label}
            self._take(self._items, label, "label, and text", "there is no other text that goes with the items")
        modalities = "".join(letter for letter in "VTA" if letter in modalities + "T" * bool(text))
        self._check(modalities, text, references, logs)
        if wrong := [name for name in self._items.sample.columns if kind_of(name) or re.fullmatch(r"[\d.]+", name)]:
            self._notes.append(
                f"{self._items.path} may have no line of names, as one would be {wrong[0]!r}: write one, or set "
                "config.ingest.source.header."
            )
        complete = self._items.sample.complete and len(self._items.parts) == 1
        return Plan(
            items=self._items.path,
            source=source,
            text=text,
            modalities=modalities,
            references=references,
            logs=logs,
            vectors=vectors,
            holdout=self._holdout() if complete else 0.1,
            rows=len(self._items.sample.rows) if complete else None,
            findings=tuple(self._findings()),
            notes=tuple(self._notes),
        )

    def _take(self, table: ReadTable, column: str, taken: str, why: str = "") -> None:
        self._taken[table.path, column] = taken, why or table.chosen[column].reason

    # ------------------------------------------------------------------------------------------------------------ items

    def _source(self) -> tuple[dict[str, Any], str]:
        """Returns the settings of the items' source but for texts, and the media that items have."""
        items, source, letters = self._items, {"id": self._id}, ""
        self._take(items, self._id, "id")
        for kind, setting in MEDIA.items():
            if columns := items.columns(kind):
                source[setting] = columns[0]
                letters += _LETTERS[kind]
                taken = f"id, and {kind}" if columns[0] == self._id else kind
                self._take(items, columns[0], taken, items.chosen[columns[0]].reason)
            elif kind in self._found.media and (pattern := self._pattern(kind)):
                source[f"{setting}_pattern"] = pattern
                letters += _LETTERS[kind]
                self._notes.append(f"{pattern} are the {kind} files: the ids of {items.path} name them.")
        column = items.best("label")
        if column and items.chosen[column].sure > _SURE:
            source["labels"] = column
            self._take(items, column, "label")
        for column in items.columns("vector"):
            name = re.sub(r"\W", "_", column)
            if {"audio", "clap"} & set(words_of(column)) and "audio" not in source:
                source["audio_embedding"] = column
                letters += "A"
                self._take(items, column, "sound, as a CLAP vector")
            else:
                source.setdefault("id_embeddings", {})[name] = column
                self._take(items, column, "ID embedding")
        return source, letters

    def _pattern(self, kind: str) -> str:
        """Returns the pattern of file names in which the ids stand; empty if there is none."""
        ids = [item_id for item_id in list(self._ids)[:30] if item_id]
        for place, (found, suffix, _) in self._found.places.items():
            name = f"{place}/{{item_id}}{suffix}" if place != "." else f"{{item_id}}{suffix}"
            there = [(self._found.folder / name.replace("{item_id}", item_id)).is_file() for item_id in ids]
            if found == kind and ids and sum(there) >= 0.5 * len(ids):
                return name
        return ""

    def _text(self) -> dict[str, str]:
        """Returns text field -> column of the items."""
        items, text = self._items, {}
        columns = [name for name in items.columns("text") if name != self._id]
        for field, names in FIELDS.items():
            # In the order of the names, of which the first say it best.
            named = [column for word in names for column in columns if word in words_of(column)]
            if fits := [column for column in named if column not in text.values()]:
                text[field] = fits[0]
        for field in ("title", "asr", "ocr"):
            left = [column for column in columns if column not in text.values()]
            if field not in text and left:
                text[field] = left[0]
        if column := items.best("tags"):
            text["tags"] = column
        for field, column in text.items():
            self._take(items, column, f"text ({field})")
        return {field: text[field] for field in ("title", "asr", "ocr", "nickname", "tags") if field in text}

    def _leaks(self, references: Sequence[Reference], text: Mapping[str, str]) -> list[str]:
        """Returns the columns of tags in which the queries of a table stand word for word."""
        column, leaks = text.get("tags"), []
        for reference in references if column else ():
            table = next(t for t in self._others if t.path == reference.settings["path"])
            pairs = [
                (str(query).strip().lower(), self._ids[target])
                for row, query in self._cells(table, reference.settings.get("query_text", ""))
                for target in _entries(row.get(reference.settings["target_id"]))
                if target in self._ids
            ]
            told = [query in [str(t).lower() for t in list_cell(row.get(column), "|")] for query, row in pairs]
            if told and sum(told) >= 0.5 * len(told):
                leaks.append(column)
        return leaks[:1]

    def _holdout(self) -> float:
        """Returns the smallest share of held-out items that leaves some for tests."""
        ids = [item_id for item_id in self._ids if item_id]
        for share in (0.1, 0.2, 0.3):
            if sum(is_held_out(item_id, 0, share) for item_id in ids) >= 3:
                return share
        return 0.4

    # ----------------------------------------------------------------------------------------------------- other tables

    def _tables(self) -> tuple[tuple[Reference, ...], dict[str, Any], dict[str, str]]:
        references, logs, vectors = [], {}, {}
        for table in self._others:
            refers = [column for column in table.sample.columns if self._refers(table, column)]
            if not refers:
                self._notes.append(f"{table.path} is left out: no column of it has ids of the items.")
            elif (time := table.best("time")) and (user := table.best("user")):
                self._add_log(logs, table, user, refers[0], time)
            elif (vector := table.best("vector")) and table.path.endswith(".parquet"):
                vectors[_name(table.path)] = table.path
                self._take(table, vector, "ID embedding")
                self._take(table, refers[0], "id of an item", "its cells are ids of the items")
            elif reference := self._reference(table, refers):
                references.append(reference)
            else:
                self._notes.append(f"{table.path} is left out: it has ids of items, but neither pairs nor queries.")
        names = collections.Counter(reference.name for reference in references)
        for number, reference in enumerate(references):
            if names[reference.name] > 1:
                references[number] = reference._replace(name=f"{reference.name}_{number + 1}")
        for reference in references[_REFERENCES:]:
            self._notes.append(f"{reference.settings['path']} is left out, to keep the config short: add it there.")
        return tuple(references[:_REFERENCES]), logs, vectors

    def _refers(self, table: ReadTable, column: str) -> bool:
        """Returns whether the cells of a column are ids of the items, as far as the samples tell."""
        if table.chosen[column].kind in ("split", "flag", "time", "user", "vector", "image", "video", "audio"):
            return False
        entries = [e for cell in table.sample.values(column)[:300] for e in _entries(cell)]
        known = sum(entry in self._ids for entry in entries)
        # Of many items, the sample has few: then the name decides.
        words, many = set(words_of(column)), not self._items.sample.complete
        named = bool(words & {"id", "ids"}) and bool(words & (_QUERY_WORDS | _TARGET_WORDS | ITEM_WORDS))
        same_name = column == self._id or column.removesuffix("s") == self._id
        return known >= max(1, 0.5 * len(entries)) or (same_name and (many or known > 0)) or (named and many)

    def _reference(self, table: ReadTable, refers: list[str]) -> Reference | None:
        settings = {"path": table.path}
        texts = [name for name in table.columns("text", "label", "tags", "id") if name not in refers]
        if len(refers) > 1:
            query, target = _sides(refers)
            settings |= {"query_id": query, "target_id": target}
            self._take(table, query, "id of the query", "its cells are ids of the items")
        elif texts:
            target = refers[0]
            settings |= {"query_text": texts[0], "target_id": target}
            self._take(table, texts[0], "text of the query")
        else:
            return None
        self._take(table, target, "id of the target", "its cells are ids of the items")
        if score := next((name for name in table.columns("score") if name not in refers), ""):
            settings["score"] = score
            self._take(table, score, "score")
        name = _name(table.path)
        if split := next((name for name in table.columns("split") if name not in refers), ""):
            words = list(dict.fromkeys(str(cell).strip() for cell in table.sample.all_values(split)))
            train = next((word for word in words if word.lower() in SPLITS["train"]), None)
            held = [word for kind in ("test", "other") for word in words if word.lower() in SPLITS[kind]]
            settings["split"] = split
            self._take(table, split, "split")
            if train != "train" and train is not None:
                self._notes.append(f"{table.path} trains on the rows of the split {train!r}.")
            rows = [row for row in table.sample.rows if str(row.get(split)).strip() == train]
            test = held[0] if held else "holdout"
            return self._of_rows(table, rows, Reference(name, settings, "query_text" in settings, train, test, None))
        words = set(words_of(Path(table.path).stem))
        if words & {*SPLITS["test"], *SPLITS["other"], "dev"}:
            return Reference(name, settings, "query_text" in settings, None, "train", None)
        untold = Reference(name, settings, "query_text" in settings, "train", "holdout", None)
        return self._of_rows(table, table.sample.rows, untold)

    def _of_rows(self, table: ReadTable, rows: Sequence[Mapping[str, Any]], reference: Reference) -> Reference:
        """Returns a reference with the number of pairs that train; too few of them train nothing."""
        if not table.sample.complete:
            return reference
        count = sum(len(_entries(row.get(reference.settings["target_id"]))) for row in rows)
        if count < _FEWEST:
            self._notes.append(f"{table.path} is for tests alone: {count} of its pairs would train.")
        return reference._replace(rows=count, train=reference.train if count >= _FEWEST else None)

    def _add_log(self, logs: dict[str, Any], table: ReadTable, user: str, item: str, time: str) -> None:
        """Adds the settings of a log, unless there is one of its kind, or its times have another unit."""
        log = self._log(table, user, item, time)
        (kind,) = log.keys() - {"time_unit"}
        if kind in logs:
            why = f"{logs[kind]['path']} is the log of {kind}; to read both, write them as parts of one folder"
        elif logs.get("time_unit", log["time_unit"]) != log["time_unit"]:
            why = f"its times count {log['time_unit']}, those of another log {logs['time_unit']}: write them alike"
        else:
            logs |= log
            return
        self._taken = {at: taken for at, taken in self._taken.items() if at[0] != table.path}
        self._notes.append(f"{table.path} is left out: {why}.")

    def _log(self, table: ReadTable, user: str, item: str, time: str) -> dict[str, Any]:
        """Returns the settings of a log of events, or of searches where it has their texts."""
        self._take(table, user, "user")
        self._take(table, item, "id of an item", "its cells are ids of the items")
        self._take(table, time, "time")
        log = {"path": table.path, "user": user, "item": item, "time": time}
        flags = table.columns("flag")
        unit = {"time_unit": time_unit(table.sample.values(time)) or "s"}
        texts = [name for name in table.columns("text", "label") if name != item]
        if query := next((name for name in texts if _SEARCH_WORDS & set(words_of(name))), ""):
            self._take(table, query, "text of the search")
            if flags:
                self._take(table, flags[0], "clicked")
            return unit | {"searches": log | {"query": query, "clicked": (*flags, "")[0]}}
        for flag in flags:
            self._take(table, flag, "positive behaviour")
        if not flags and (score := table.best("score")):
            most = max(float(cell) for cell in table.sample.values(score))
            flags = [f"{score}>={0.8 * most:g}"]
            self._take(table, score, f"positive from {0.8 * most:g} on")
        if not flags:
            flags = self._done(table)
        return unit | {"events": log | {"flags": tuple(flags), "watch_share": ""}}

    def _done(self, table: ReadTable) -> list[str]:
        """Returns the conditions of positive events, where a column says what users did and not all of it is one."""
        for column in table.columns("label"):
            done = sorted({str(cell).strip() for cell in table.sample.all_values(column)})
            liked = [word for word in done if not _PASSIVE & set(words_of(word.replace("_", " ")))]
            plain = all(re.fullmatch(r"[A-Za-z][\w -]*", word) for word in done)
            if set(words_of(column)) & _DONE_WORDS and plain and 0 < len(liked) < len(done) <= _MOST_DONE:
                self._take(table, column, f"positive: {', '.join(liked)}", "says what users did")
                return [f"{column}=={word}" for word in liked]
        return []

    # ----------------------------------------------------------------------------------------------------------- checks

    def _check(self, modalities: str, text: Mapping[str, str], references: Sequence[Reference], logs: Mapping) -> None:
        """Raises SailError if nothing can be learned from what was found."""
        if len(modalities) > 1 or references or logs or len(text) > 1:
            return
        told = {
            "V": "pictures alone",
            "T": "one text of each item",
            "A": "sounds alone",
            "": "no pictures and no texts",
        }
        columns = "; ".join(f"{f.table} {f.column}: {f.taken}, {f.why}" for f in self._findings())
        raise SailError(
            f"{self._found.folder} holds {self._found}. Of that {told[modalities]} can be used ({columns}), and "
            "nothing that belongs together: a model learns from captions, labels, pairs of items or queries. "
            f"{EXAMPLE}"
        )

    def _findings(self) -> Iterator[Finding]:
        for table in [self._items, *self._others]:
            for column in table.sample.columns:
                reading = table.chosen[column]
                taken, why = self._taken.get(
                    (table.path, column), ("left out", _left_out(reading, table is self._items))
                )
                close = [other for other in rivals(table.readings[column]) if other.kind != reading.kind]
                told = f"{close[0].kind}: {close[0].reason}" if close else ""
                shown = ", ".join(table.shown(column))
                yield Finding(Path(table.path).name, column, taken, why, shown, told)


def _left_out(reading: Reading, of_items: bool) -> str:
    used = {
        "text": "another text has its place",
        "id": "another column has the ids",
        "label": "another column has them",
    }
    why = used.get(reading.kind) if of_items else None
    return f"{reading.kind}: {reading.reason}" + (f"; {why}" if why else "")


def _entries(cell: Any) -> list[str]:
    """Returns the ids in a cell, or the text in it."""
    if isinstance(cell, bytes | Mapping):
        return []
    return [entry for part in list_cell(cell, "|") if not isinstance(part, list | dict) and (entry := id_cell(part))]


def _sides(refers: list[str]) -> tuple[str, str]:
    """Returns the columns of query and target among those that refer to items."""
    query = next((name for name in refers if set(words_of(name)) & _QUERY_WORDS), None)
    others = [name for name in refers if name != query]
    target = next((name for name in others if set(words_of(name)) & _TARGET_WORDS), others[-1])
    return query or next(name for name in refers if name != target), target


def _name(path: str) -> str:
    """Returns a name for the config of a table's path."""
    name = re.sub(r"\W+", "_", Path(path).stem).strip("_").lower() or "table"
    taken = keyword.iskeyword(name) or hasattr(ml_collections.ConfigDict, name) or name == "same"
    return f"table_{name}" if taken or not name.isidentifier() else name
