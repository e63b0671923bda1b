"""Counts how often training draws each item as a query, a target or a hard negative.

    DATA/frequencies/IDENTITY/
      ROLE.keys.u64     hashes of the items' ids, or of the shown texts of free-text queries (`Batch.item_keys`), sorted
      ROLE.counts.u64   how often each is drawn
      counted.json      what was counted, and the sum of the counts by role

Counts are exact, not a sketch: the correction is a logarithm, and what a count-min sketch adds to all counts alike is
most of the count of a rare item, as most items are. The files take 16 bytes per different item and are memory-mapped.
While they are made, entries are partitioned by key on disk, so that memory grows neither with the rows nor with the
items. Two ids share a hash with a probability of their number squared over 2^65; their counts are then added up.
"""

import functools
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sail_jax.config.data import DatasetConfig
from sail_jax.data.hard_negative_table import NegativesTable
from sail_jax.data.key_buckets import append_to_buckets
from sail_jax.data.prompts import shown_fields
from sail_jax.data.row_groups import ROW_GROUP, WEIGHT_FIELD
from sail_jax.data.row_order import largest_weights
from sail_jax.data.same_content import SameContent
from sail_jax.data.sequence_tables import SequenceTable
from sail_jax.data.tables import PairTable
from sail_jax.errors import SailError
from sail_jax.files import commit, commit_json
from sail_jax.items import item_key, text_item

# The folder within the folder that `ingest` wrote.
FOLDER = "frequencies"

_FORMAT = {"format": "sail_jax frequencies", "version": 1}
_FACTS = "counted.json"
_U64 = np.dtype("<u8")
_ENTRY = np.dtype([("key", _U64), ("count", _U64)])
# Entries that wait in memory, or are sorted in memory at a time.
_BUCKET = 1 << 22
# Rows whose values are counted together before they are hashed.
_ROWS = 1 << 18
# A hard negative is drawn with a probability, which is counted in this many parts: sums of integers are exact.
_PARTS = 1 << 20
# Likewise the weight of a row, as a share of the largest one; a row that is drawn at all has one part at least.
_WEIGHT_PARTS = 1 << 16
_ALL_DIFFER = SameContent()


class Counts:
    """How often the items of one role are drawn, opened for reading; it may be pickled.

    Args:
        path: the folder.
        role: "query", "target" or "negative".
        total: sum of all counts.
    """

    def __init__(self, path: pathlib.Path, role: str, total: int) -> None:
        self.path, self.role, self.total = path, role, total
        self._keys, self._counts = (
            np.memmap(path / f"{role}.{name}.u64", _U64, mode="r").view(np.ndarray) for name in ("keys", "counts")
        )

    def __reduce__(self):
        return Counts, (self.path, self.role, self.total)

    def of(self, keys: np.ndarray) -> np.ndarray:
        """The counts of some keys, [n] uint64 -> [n] float64; 0 for what is never drawn."""
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._counts[at], 0).astype(np.float64)


class SetCounts(NamedTuple):
    """What is counted of one training set.

    Attributes:
        rows: rows of its table; or the sum of their weights, in parts, if they are drawn by weight.
        counts: role -> counts; no queries for histories, each of which comes as often as any other.
    """

    rows: int
    counts: Mapping[str, Counts]

    @property
    def identity(self) -> list[str]:
        """Hashes of all that the counts depend on."""
        return sorted({counts.path.name for counts in self.counts.values()})


def count_set(
    folder: pathlib.Path,
    name: str,
    table: PairTable | SequenceTable,
    negatives: NegativesTable | None,
    settings: DatasetConfig,
    same: SameContent = _ALL_DIFFER,
) -> SetCounts:
    """Counts a training set as the sampler draws it, or reads what was counted before.

    Every row is drawn equally often, or in proportion to its weight (`by_weight`). Rows below `min_score` are no pairs
    of the contrastive losses, and not counted. The negatives of a query are drawn evenly from its list, once per row of
    the query.

    Args:
        folder: the folder of all frequencies.
        name: the training set, for messages.
        table: its table.
        negatives: its hard negatives, if it has any.
        settings: its settings.
        same: the items with equal content, which are counted as the first one.

    Raises:
        SailError: a table is damaged, a row lacks its item, no row counts, or the folder cannot be written.
    """
    rows = {"table": table.digest(), "split": table.split, "kind": settings.kind, "min_score": settings.min_score}
    rows |= {"same_content": same.digest()} if len(same) else {}
    rows |= {"by_weight": True} if settings.by_weight else {}
    if settings.kind == "sequences":
        chunks = functools.partial(_sequence_columns, table)
    else:
        chunks = functools.partial(_pair_columns, table, settings.min_score, settings.by_weight)
    counts = _counted(folder, rows, len(table), chunks, same, f"{table.path} of the data set {name!r}")
    if negatives is not None:
        drawn = rows | {"negatives": negatives.digest(), "hard_negatives": settings.hard_negatives}
        chunks = functools.partial(_drawn_negatives, negatives, counts["query"], settings.hard_negatives, same)
        counts |= _counted(folder, drawn, negatives.listed, chunks, same, f"{negatives.path} of the data set {name!r}")
    drawn_rows = counts.pop(_ROW).total if settings.by_weight else len(table)
    return SetCounts(drawn_rows, counts)


# ------------------------------------------------------------------------------------------------- what a table draws

# A role, what is drawn in it, and how often each entry is (None for once).
_Chunk = tuple[str, pa.Array, np.ndarray | None]
# The role of a row itself, of whatever it consists.
_ROW = "row"


def _pair_columns(table: PairTable, min_score: float, by_weight: bool) -> Iterator[_Chunk]:
    columns = ["query_id", "query_text", "target_id", "score"]
    largest = float(largest_weights(table).max()) if by_weight else 0.0
    for group in _joined(table.iter_columns([*columns, WEIGHT_FIELD.name] if by_weight else columns)):
        query_id, query_text, target, scores = group[:4]
        # As in the loss: NaN, of a pair without a score, is not too low.
        fits = ~(scores.to_numpy(zero_copy_only=False) < np.float32(min_score))
        times = _weight_parts(group[4], largest) if by_weight else None
        if times is not None:
            yield _ROW, pa.array([_ROW]), times.sum(keepdims=True)
            times = times[fits]
        query_id, query_text, target = (column.filter(pa.array(fits)) for column in (query_id, query_text, target))
        for value, column in ((target, "target_id"), (pc.coalesce(query_id, query_text), "query_id and query_text")):
            _check_no_nulls(value, table.path, column)
        has_id = query_id.is_valid()
        of_ids = None if times is None else times[has_id.to_numpy(zero_copy_only=False)]
        of_texts = None if times is None else times[~has_id.to_numpy(zero_copy_only=False)]
        yield "target", target, times
        yield "query", query_id.filter(has_id), of_ids
        yield "query", _shown_texts(query_text.filter(pc.invert(has_id))), of_texts


def _weight_parts(weights: pa.Array, largest: float) -> np.ndarray:
    """[n] uint64 the weights of rows in parts of the largest one."""
    values = weights.to_numpy(zero_copy_only=False).astype(np.float64)
    parts = np.maximum(np.round(values / largest * _WEIGHT_PARTS), values > 0)
    return parts.astype(np.uint64)


def _sequence_columns(table: SequenceTable) -> Iterator[_Chunk]:
    for (target,) in _joined(table.iter_columns(["target_id"])):
        _check_no_nulls(target, table.path, "target_id")
        yield "target", target, None


def _drawn_negatives(negatives: NegativesTable, queries: Counts, most: int, same: SameContent) -> Iterator[_Chunk]:
    for query_id, query_text, lists in negatives.iter_negatives():
        shown = pc.coalesce(query_id, _shown_texts(query_text).dictionary_decode())
        keys = same.of_keys(np.fromiter(map(item_key, shown.to_pylist()), np.uint64, len(shown)))
        times = queries.of(keys).astype(np.uint64)
        lengths = pc.list_value_length(lists).to_numpy()
        parts = np.round(_PARTS * np.minimum(1.0, most / np.maximum(lengths, 1))).astype(np.uint64)
        yield "negative", lists.flatten(), np.repeat(times * parts, lengths)


def _shown_texts(texts: pa.Array) -> pa.DictionaryArray:
    """Free-text queries as the model reads them, which is what their keys are hashes of."""
    encoded = texts.dictionary_encode()
    shown = [shown_fields(text_item(text), ()) for text in encoded.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(encoded.indices, pa.array(shown, pa.string()))


def _joined(groups: Iterator[list[pa.Array]]) -> Iterator[list[pa.Array]]:
    """Joins small groups of rows, so that a value that occurs often is hashed seldom."""
    waiting: list[list[pa.Array]] = []
    for group in groups:
        waiting.append(group)
        if len(waiting) == _ROWS // ROW_GROUP:
            yield [pa.concat_arrays(column) for column in zip(*waiting, strict=True)]
            waiting = []
    if waiting:
        yield [pa.concat_arrays(column) for column in zip(*waiting, strict=True)]


def _check_no_nulls(values: pa.Array, path: pathlib.Path, column: str) -> None:
    if values.null_count:
        raise SailError(
            f"{path} has a row without {column}, whose frequency cannot be counted: fill it in or leave the row out, "
            "or set correct_popularity to 0."
        )


# ----------------------------------------------------------------------------------------------------- counts on disk


def _counted(
    folder: pathlib.Path,
    facts: Mapping[str, Any],
    most: int,
    chunks: Callable[[], Iterable[_Chunk]],
    same: SameContent,
    what: str,
) -> dict[str, Counts]:
    """Opens the counts with some identifying facts, by role; counts at most `most` entries where they are missing."""
    identity = _FORMAT | facts
    path = folder / hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=12).hexdigest()
    try:
        if not path.is_dir():
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(".partial", f"{path.name}.", folder) as partial:
                _write_counts(pathlib.Path(partial), chunks(), most, identity, same, what)
                _move(pathlib.Path(partial), path)
        totals = json.loads((path / _FACTS).read_text())["totals"]
        return {role: Counts(path, role, total) for role, total in totals.items()}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SailError(
            f"The frequencies of {what} cannot be counted in {path} ({str(error).strip()}). Make the folder writable, "
            "replace what is damaged, or set its correct_popularity to 0."
        ) from error


def _move(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a folder its final name, unless another process was faster with the same counts."""
    made = partial / "made"
    try:
        made.replace(path)
    except OSError:
        if not path.is_dir():
            raise


def _write_counts(
    partial: pathlib.Path,
    chunks: Iterable[_Chunk],
    most: int,
    identity: Mapping[str, Any],
    same: SameContent,
    what: str,
) -> None:
    made, buckets, sums = partial / "made", max(1, -(-most // _BUCKET)), {}
    made.mkdir()
    for role, values, times in chunks:
        if role not in sums:
            sums[role] = _Summation(partial / role, buckets, same)
        sums[role].add(values, times)
    totals = {role: part.write(made, role) for role, part in sums.items()}
    if not totals or not all(totals.values()):
        raise SailError(
            f"Nothing is drawn from {what}: no row reaches its min_score, or no query has a hard negative. Change "
            "these settings, or set its correct_popularity to 0."
        )
    commit_json(made / _FACTS, {**identity, "totals": totals})


class _Summation:
    """Sums counts by key; entries wait in files, partitioned by key."""

    def __init__(self, folder: pathlib.Path, buckets: int, same: SameContent) -> None:
        self._folder, self._buckets, self._same = folder, buckets, same
        self._waiting: list[np.ndarray] = []
        folder.mkdir()

    def add(self, values: pa.Array, times: np.ndarray | None) -> None:
        """Adds values, each drawn so many times; None for once."""
        encoded = values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode()
        counts = np.zeros(len(encoded.dictionary), np.uint64)
        np.add.at(counts, encoded.indices.to_numpy(), np.uint64(1) if times is None else times)
        entries = np.empty(len(counts), _ENTRY)
        keys = np.fromiter(map(item_key, encoded.dictionary.to_pylist()), np.uint64, len(counts))
        entries["key"] = self._same.of_keys(keys)
        entries["count"] = counts
        self._waiting.append(entries)
        if sum(map(len, self._waiting)) >= _BUCKET:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            append_to_buckets(self._folder, np.concatenate(self._waiting), self._buckets)
            self._waiting = []

    def write(self, made: pathlib.Path, role: str) -> int:
        """Writes the sums into a folder, removes the entries, and returns the sum of all counts."""
        self._flush()
        total = 0
        paths = [made / f"{role}.{name}.u64" for name in ("keys", "counts")]
        partial = [path.with_suffix(".partial") for path in paths]
        with partial[0].open("wb") as keys, partial[1].open("wb") as counts:
            for bucket in range(self._buckets):
                entries = np.fromfile(self._folder / str(bucket), _ENTRY)
                entries = entries[entries["count"] > 0]
                found, of_key = np.unique(entries["key"], return_inverse=True)
                sums = np.zeros(len(found), np.uint64)
                np.add.at(sums, of_key, entries["count"])
                keys.write(found.astype(_U64).tobytes())
                counts.write(sums.astype(_U64).tobytes())
                total += int(sums.sum())
        for written, path in zip(partial, paths, strict=True):
            commit(written, path)
        shutil.rmtree(self._folder)
        return total
