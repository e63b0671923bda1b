"""The journal of finished stages and bad records, with which an interrupted ingestion resumes.

`journal.jsonl` starts with the identity of the ingestion (settings and source); each further line is a finished stage:
its name, its result and its bad records. A stage counts once its line is complete.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from sail_jax.buckets import put_changed, remove
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import commit_bytes

_SHOWN = 5
BAD_RECORDS = "bad_records.jsonl"
JOURNAL = "journal.jsonl"


class Journal:
    """The journal of the ingestion into folder `path`.

    Args:
        path: the folder.
        identity: settings and source; a resumed ingestion must have the same.
        max_bad_records: with more bad records the ingestion stops.

    Attributes:
        bad_records: number of bad records so far, including those of finished stages.

    Raises:
        SailError: the folder holds an ingestion with another identity.
    """

    def __init__(self, path: pathlib.Path, identity: dict[str, Any], max_bad_records: int):
        self._path, self._file = path, path / JOURNAL
        self._limit = max_bad_records
        self._stages: dict[str, dict[str, Any]] = {}
        self._bad: list[dict[str, str]] = []
        path.mkdir(parents=True, exist_ok=True)
        lines = list(_complete_lines(self._file))
        if lines:
            check_identity(path, lines[0], identity)
        commit_bytes(self._file, b"".join(_line(line) for line in lines or [identity]))
        self._stages = {line["stage"]: line for line in lines[1:]}
        finished = [bad for line in lines[1:] for bad in line["bad"]]
        self.bad_records, self._first = len(finished), finished[:_SHOWN]
        commit_bytes(path / BAD_RECORDS, b"".join(map(_line, finished)))

    def result(self, stage: str) -> dict[str, Any] | None:
        """The result that `finish` stored for a stage, or None if the stage is not finished."""
        return self._stages.get(stage, {}).get("result")

    def bad(self, error: BadRecordError) -> None:
        """Records a bad record of the running stage.

        Raises:
            SailError: the limit is exceeded.
        """
        line = append_bad(self._path, error)
        self._bad.append(line)
        self._first = [*self._first, line][:_SHOWN]
        self.bad_records += 1
        if self.bad_records > self._limit:
            put_changed(self._path / BAD_RECORDS)
            raise SailError(self._too_many())

    def finish(self, stage: str, result: dict[str, Any]) -> dict[str, Any]:
        """Records a stage as finished, and returns its result."""
        line = {"stage": stage, "result": result, "bad": self._bad}
        _append(self._file, line)
        put_changed(self._path / BAD_RECORDS)
        put_changed(self._file)
        self._stages[stage], self._bad = line, []
        return result

    def remove(self) -> None:
        """Removes the journal after the whole ingestion; the list of bad records stays."""
        remove(self._file)

    def _too_many(self) -> str:
        shown = "".join(f"\n  {bad_of_line(line)}" for line in self._first)
        return (
            f"{self.bad_records} bad records are more than config.ingest.max_bad_records={self._limit}. The first:"
            f"{shown}\nAll of them are in {self._path / BAD_RECORDS}. Repair the source and ingest into another "
            "--workdir, or raise config.ingest.max_bad_records and run again: bad records are skipped, and "
            "finished shards stay."
        )


def check_identity(path: pathlib.Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Checks that the identity of the ingestion in folder `path` is the wanted one.

    Raises:
        SailError: it is not; the message names the differences.
    """
    wanted = json.loads(json.dumps(wanted))
    if found != wanted:
        changed = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise SailError(
            f"{path} holds an ingestion with other settings or another source; changed: {', '.join(changed)}. "
            f"Ingest into another --workdir, or remove {path}."
        )


def said_of_bad(folder: pathlib.Path) -> str:
    """Returns a line on the bad records of an ingestion: the first of them, and where all are listed."""
    first = next(_complete_lines(folder / BAD_RECORDS), None)
    if first is None:
        return ""
    return f"Bad records are left out whole; the first: {bad_of_line(first)}. All are in {folder / BAD_RECORDS}"


def append_bad(folder: pathlib.Path, error: BadRecordError) -> dict[str, str]:
    """Adds a bad record to the list in a folder, and returns its line."""
    line = line_of_bad(error)
    _append(folder / BAD_RECORDS, line)
    return line


def line_of_bad(error: BadRecordError) -> dict[str, str]:
    """Returns the line of a list of bad records for an error."""
    return {
        "file": error.source,
        "record": error.record,
        "field": error.field,
        "problem": error.problem,
        "remedy": error.remedy,
    }


def bad_of_line(line: Mapping[str, str]) -> BadRecordError:
    """Returns the error of a line of a list of bad records."""
    place = {"source": line["file"], "record": line["record"], "field": line["field"]}
    return BadRecordError(line["problem"], remedy=line["remedy"], **place)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _append(path: pathlib.Path, value: dict[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(_line(value))
        file.flush()
        os.fsync(file.fileno())


def _complete_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a journal; a truncated last line is skipped."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))
