"""Bulk embedding: embeds any number of items into a folder of Parquet parts (`embedding_set`).

    OUTPUT/
      request.json           the options and the source; a resumed run must have the same
      part-00000.parquet     the vectors of the first `rows_per_part` items of the source, and so on
      bad_records.jsonl      the items that were left out, and why
      embeddings.json        written last

Part k holds items k * rows_per_part to (k + 1) * rows_per_part - 1 of the source, without unusable ones. It appears
under its name when it is complete, so a killed run resumes with the missing parts. Several processes can share the
folder without communication: of N processes, process i writes parts i, i + N, ... Where the model is split over several
processes, these embed every part together, and take turns in writing them.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from sail_jax.buckets import fetch, names, place
from sail_jax.config.schema import to_dict
from sail_jax.data.ingest.journal import BAD_RECORDS, bad_of_line, line_of_bad
from sail_jax.data.instructions import instructions_of
from sail_jax.embedding.embed_pass import embed_into
from sail_jax.embedding.embedder import Embedder, check_dims
from sail_jax.embedding.item_source import Entry, ItemSource
from sail_jax.errors import SailError
from sail_jax.files import commit_bytes, commit_json
from sail_jax.items import TEXT_FIELDS
from sail_jax.patterns import MODALITIES
from sail_jax.progress import NameColumn, Progress
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.vectors.embedding_set import (
    EmbeddingInfo,
    encode_vectors,
    is_complete,
    part_path,
    read_notes,
    write_info,
    write_part,
)

_REQUEST = "request.json"
_BAD, _UNSEEN = "bad_records", "nothing_shown"  # keys of the notes of a part
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """Options of how items are embedded and stored.

    Attributes:
        dims: number of leading dimensions to keep; None for all.
        dtype: type of the stored vectors, one of `VECTOR_DTYPES`.
        modalities: modalities of the items that are shown to the model.
        fields: text fields that are shown to the model.
        instruction: the system prompt; None for that of documents in the training of the run.
        rows_per_part: items of the source per part.
        batch_size: items per batch; None for `config.eval.batch_size`.
        process: number of this process, from 0.
        processes: number of processes that share the work, each with a model of its own.
    """

    dims: int | None = None
    dtype: str = "float32"
    modalities: str = MODALITIES
    fields: tuple[str, ...] = TEXT_FIELDS
    instruction: str | None = None
    rows_per_part: int = 65_536
    batch_size: int | None = None
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Raises SailError for counts out of range."""
        if self.rows_per_part < 1:
            raise SailError(f"rows_per_part is {self.rows_per_part}; it must be at least 1.")
        if not 0 <= self.process < self.processes:
            raise SailError(f"Process {self.process} of {self.processes}: processes are numbered from 0.")


@dataclasses.dataclass(frozen=True)
class EmbedReport:
    """The content of a folder after a run.

    Attributes:
        vectors: vectors in all parts.
        bad_records: items that could not be used.
        nothing_shown: items without any of the shown modalities.
        parts: finished parts.
        missing: parts that other processes still have to write; 0 when the folder is complete.
        written: parts that this run wrote.
        passed_over: what lies beside the items in their folder and is no item; empty for nothing.
    """

    vectors: int
    bad_records: int
    nothing_shown: int
    parts: int
    missing: int
    written: int
    passed_over: str = ""

    def __str__(self) -> str:
        lines = [f"{self.vectors:,} vectors in {self.parts:,} part{'s' * (self.parts != 1)}"]
        if self.bad_records:
            lines.append(f"{self.bad_records:,} bad records left out, listed in {BAD_RECORDS}")
        if self.nothing_shown:
            lines.append(f"{self.nothing_shown:,} items left out, which have none of the shown modalities")
        if self.missing:
            lines.append(f"{self.missing:,} parts are still to be written by other processes")
        elif not self.written:
            lines.append("already complete")
        if self.passed_over:
            lines.append(self.passed_over)
        return "\n".join(lines)


def embed(embedder: Embedder, source: ItemSource, output: Path, options: EmbedOptions, *, model: str) -> EmbedReport:
    """Embeds all items of a source, or resumes a run that was killed.

    Ids are written unchanged; a row of a table that repeats the id of an earlier row is a bad record.

    Args:
        embedder: the model.
        source: the items.
        output: the folder that is written; shared by all processes.
        options: how items are embedded and stored.
        model: name of the model.

    Raises:
        SailError: options are wrong, `output` holds another request or other files, the source changed, or more than
            `config.data.max_bad_records` items could not be used.
    """
    job = _Job(embedder, source, place(output), options, model)
    written = job.write_missing()
    return job.finish(written)


class _Job:
    """One run that writes one folder."""

    def __init__(self, embedder: Embedder, source: ItemSource, output: Path, options: EmbedOptions, model: str) -> None:
        self._embedder, self._source, self._output, self._options = embedder, source, output, options
        asked = instructions_of(embedder.config).document if options.instruction is None else options.instruction
        self._view = embedder.view(options.modalities, options.fields, asked)
        self._info = EmbeddingInfo(
            model=model,
            fingerprint=fingerprint(embedder.params),
            dims=check_dims(options.dims, embedder.width),
            dtype=options.dtype,
            modalities=self._view.modalities,
            fields=self._view.fields,
            instruction=self._view.instruction,
        )
        encode_vectors(np.zeros((0, self._info.dims), np.float32), options.dtype)  # raises for a wrong type
        self._parts = -(-source.rows // options.rows_per_part)
        self._together = embedder.processes
        self._together.on_first(self._open)
        notes = [self._notes(part) for part in self._finished()]
        self._bad = list(itertools.chain.from_iterable(bad for bad, _ in notes))

    def write_missing(self) -> int:
        """Writes the missing parts of this process; returns their number."""
        options = self._options
        mine = range(options.process, self._parts, options.processes)
        missing = self._together.on_first(lambda: set(mine) - set(self._finished()))
        if not missing:
            return 0
        first, last = min(missing), max(missing)
        entries = self._source.entries(first * options.rows_per_part)
        with _progress(quiet=not self._together.first) as progress:
            task = progress.add_task("embed", total=sum(map(self._rows, missing)))
            for part in range(first, last + 1):
                of_part = itertools.islice(entries, self._rows(part))
                if part in missing:
                    self._write(part, of_part, lambda count: progress.advance(task, count))
                else:
                    collections.deque(
                        of_part, maxlen=0
                    )  # skip a part that is finished or another's, without loading items
        return len(missing)

    def finish(self, written: int) -> EmbedReport:
        """Marks the folder as complete if it is, and returns its content."""
        self._together.wait()
        finished = self._finished()
        notes = [self._notes(part) for part in finished]
        self._bad = list(itertools.chain.from_iterable(bad for bad, _ in notes))
        unseen = sum(count for _, count in notes)
        self._check_limit()
        rows = sum(map(self._rows, finished))
        missing = self._parts - len(finished)
        if self._together.first and not missing and not is_complete(self._output):
            self._list_bad()
            write_info(self._output, self._info)
        vectors = rows - len(self._bad) - unseen
        return EmbedReport(vectors, len(self._bad), unseen, len(finished), missing, written, self._source.passed_over)

    def _write(self, part: int, entries: Iterator[Entry], advance: Any) -> None:
        ids: list[str] = []

        def loaders() -> Iterator[Any]:
            for entry in entries:
                ids.append(entry.item_id)
                yield entry.load

        rows, writes = self._rows(part), part % self._together.count == self._together.index
        z = np.empty((1, rows, self._info.dims), np.float32) if writes else None
        bad: list[dict[str, str]] = []
        left_out: set[int] = set()
        done = unseen = 0
        views, batch_size = (self._view.modalities,), self._options.batch_size
        for window in embed_into(z, self._embedder, loaders(), self._view, views, batch_size=batch_size):
            lines = [line_of_bad(e.at(source=self._source.name, record=ids[place])) for place, e in window.bad.items()]
            bad += lines
            self._bad += lines
            self._check_limit()
            left_out |= {*window.bad, *window.nothing_shown}
            unseen += len(window.nothing_shown)
            done += window.rows
            advance(window.rows)
        if done != rows:
            raise SailError(f"{self._source.name} changed while it was read: embed it again, into another --output.")
        if z is None:
            return
        kept = [i for i in range(rows) if i not in left_out]
        notes = {_BAD: json.dumps(bad, ensure_ascii=False), _UNSEEN: str(unseen)}
        vectors = z[0, kept] if left_out else z[0]
        write_part(self._path(part), [ids[i] for i in kept], vectors, self._info.dtype, notes)

    def _open(self) -> None:
        """Writes the request, or checks that the folder holds the same one."""
        request = {"model fingerprint": self._info.fingerprint, "rows_per_part": self._options.rows_per_part}
        request |= {key: value for key, value in to_dict(self._info).items() if key not in ("model", "fingerprint")}
        request |= {f"config.prompt.{key}": value for key, value in to_dict(self._embedder.config.prompt).items()}
        request |= self._source.identity | {"rows": self._source.rows}
        request = json.loads(json.dumps(request))
        path = self._output / _REQUEST
        fetch(path)
        if not path.is_file():
            self._output.mkdir(parents=True, exist_ok=True)
            foreign = sorted(name for name in names(self._output) if not name.startswith(_REQUEST))
            fetch(path)
            if foreign and not path.is_file():  # another process may have just written it
                raise SailError(f"{self._output} is not empty and was not written by embed: name another --output.")
            commit_json(path, request, shared=True, ensure_ascii=False)
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in found.keys() | request.keys() if found.get(key) != request.get(key))
        if changed:
            said = "; ".join(f"{key} was {found.get(key)!r}, is {request.get(key)!r}" for key in changed[:_SHOWN])
            raise SailError(
                f"{self._output} holds embeddings of another request ({said}). "
                "Name another --output, or remove this one."
            )

    def _path(self, part: int) -> Path:
        return part_path(self._output, part)

    def _finished(self) -> list[int]:
        present = names(self._output)
        return [part for part in range(self._parts) if self._path(part).name in present]

    def _rows(self, part: int) -> int:
        """Returns the number of items of the source in a part."""
        size = self._options.rows_per_part
        return min(size, self._source.rows - part * size)

    def _notes(self, part: int) -> tuple[list[dict[str, str]], int]:
        """Returns the bad records of a part, and its number of items with nothing to show."""
        notes = read_notes(self._path(part))
        return json.loads(notes[_BAD]), int(notes[_UNSEEN])

    def _check_limit(self) -> None:
        limit = self._embedder.config.data.max_bad_records
        if len(self._bad) <= limit:
            return
        self._list_bad()
        shown = "".join(f"\n  {bad_of_line(line)}" for line in self._bad[:_SHOWN])
        raise SailError(
            f"{len(self._bad)} items cannot be used, more than config.data.max_bad_records={limit}. The first:{shown}\n"
            f"All of them are in {self._output / BAD_RECORDS}. Mend the source and embed it into another --output, or "
            "raise config.data.max_bad_records and run again: bad items are left out, and finished parts stay."
        )

    def _list_bad(self) -> None:
        if not self._together.first:
            return
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in self._bad)
        commit_bytes(self._output / BAD_RECORDS, "".join(lines).encode(), shared=True)


def _progress(*, quiet: bool) -> Progress:
    columns = [NameColumn(), BarColumn(), MofNCompleteColumn()]
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=quiet)
