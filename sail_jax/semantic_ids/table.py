"""Writes the table of the semantic IDs of items, and looks up the items of an ID.

The table is a Parquet file with the columns `id` (string), `codes` (a list of L int32) and `semantic_id` ("12-3-77", or
"12-3-77-0" if IDs are made unique). Its metadata describe the codebooks and the vectors.

Axes: N rows, L levels.
"""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.config.semantic_ids import ANCHORS
from sail_jax.data.parquet_files import readable
from sail_jax.errors import SailError
from sail_jax.files import commit_json, partial_file, written_before
from sail_jax.semantic_ids.codebooks import NEIGHBOURS, SemanticIds, draw_rows, track_parts, usable
from sail_jax.semantic_ids.metrics import Anchors
from sail_jax.semantic_ids.report import draw_frequencies
from sail_jax.vectors.embedding_set import EmbeddingSet

_METADATA = b"sail_jax semantic IDs"
_BATCH = 65_536
_NAMED = 100  # maximum number of ids of skipped items listed in the figures


def write_table(
    sids: SemanticIds,
    embeddings: EmbeddingSet,
    output: Path,
    *,
    unique: bool = False,
    seed: int = 0,
    anchors: int = ANCHORS,
) -> dict[str, Any]:
    """Assigns semantic IDs to the items of a folder of embeddings, in its order, without fitting.

    Items whose vector is not finite or all zeros get no ID; the figures count them and list the first ones. A batch of
    vectors and an entry per distinct ID are held in memory. The figures are written beside the table as .json and .png.

    Args:
        sids: the codebooks.
        embeddings: the folder.
        output: the Parquet file; it appears when it is complete.
        unique: whether to add a suffix to `semantic_id`: the number of earlier items with the same codes (like the
            fourth code of TIGER, arXiv 2305.05065, sec. 3.1, which counts from 0).
        seed: seed of the draw of anchors.
        anchors: number of items whose nearest neighbours are compared; with 0 the vectors are read once, else twice.

    Returns:
        The figures; those that are there, if the same command wrote the output before.

    Raises:
        SailError: the vectors have another model or width, the output is of another command, or no item can be used.
    """
    sids.require(embeddings)
    schema, figures_path = _schema(sids, unique), output.with_suffix(".json")
    request = json.loads(schema.metadata[_METADATA]) | {"embeddings": str(embeddings.path), "rows": len(embeddings)}
    request |= {"seed": seed, "anchors": anchors}
    if output.exists():
        return written_before(figures_path, request, output)["figures"]
    output.parent.mkdir(parents=True, exist_ok=True)
    empty = np.zeros(0, np.int64), np.zeros((0, embeddings.info.dims), np.float32)
    rows, z = draw_rows(embeddings, anchors, seed, "reading anchors") if anchors else empty
    meter = sids.meter(Anchors(rows, z, sids.assign(z), NEIGHBOURS))
    start, left_out, named = 0, 0, []
    with partial_file(output) as partial:
        with pq.ParquetWriter(partial, schema, write_page_checksum=True) as writer:
            for ids, part in track_parts(embeddings, "assigning"):
                good = usable(part)
                codes = sids.assign(part[good])
                suffix = meter.add(start + np.flatnonzero(good), part[good], codes)
                kept = list(itertools.compress(ids, good))
                writer.write_table(_rows(schema, kept, codes, suffix if unique else None))
                left_out += len(ids) - len(kept)
                named += list(itertools.compress(ids, ~good))[: _NAMED - len(named)]
                start += len(ids)
        if left_out == start:
            raise SailError(f"{embeddings.path} has no item with a usable vector; embed the items again.")
        figures = meter.figures() | {"left_out": left_out, "left_out_ids": named}
        commit_json(figures_path, request | {"figures": figures}, ensure_ascii=False)
        title = f"{sids.info.method} {'-'.join(map(str, sids.levels))}, {figures['items']:,} items"
        draw_frequencies(output.with_suffix(".png"), title, meter.code_counts())
    return figures


def _schema(sids: SemanticIds, unique: bool) -> pa.Schema:
    info = sids.info
    made_of = {"levels": info.levels, "unique": unique, "codebooks": str(sids.path), "fingerprint": info.fingerprint}
    made_of |= {"method": info.method, "model": info.vectors.model, "model_fingerprint": info.vectors.fingerprint}
    return _columns(len(info.levels)).with_metadata({_METADATA: json.dumps(made_of, ensure_ascii=False)})


def _columns(levels: int) -> pa.Schema:
    codes = pa.list_(pa.int32(), levels)
    return pa.schema([("id", pa.string()), ("codes", codes), ("semantic_id", pa.string())])


def _rows(schema: pa.Schema, ids: list[str], codes: np.ndarray, suffix: np.ndarray | None) -> pa.Table:
    numbers = codes if suffix is None else np.concatenate([codes, suffix[:, None]], axis=1)
    names = ["-".join(map(str, row)) for row in numbers.tolist()]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), type=schema.field("codes").type)
    return pa.Table.from_arrays([pa.array(ids, pa.string()), lists, pa.array(names, pa.string())], schema=schema)


@dataclasses.dataclass(frozen=True)
class Matches:
    """The items of a semantic ID or of a prefix of one.

    Attributes:
        items: (id, semantic ID) of the first items, in the order of the table.
        count: number of all items.
        distinct: number of distinct IDs among them.
        next_codes: code of the next level -> number of items; empty if the ID has all levels.
        nearest: the ID as codes with "-" between them, or, if no item has it, its longest prefix with items; empty if
            no item has its first code.
        nearest_count: number of items of `nearest`.
    """

    items: list[tuple[str, str]]
    count: int
    distinct: int
    next_codes: dict[int, int]
    nearest: str
    nearest_count: int

    def summary(self, semantic_id: str) -> str:
        """Returns one or two sentences on the items of an ID, or on its longest prefix with items."""
        if self.count:
            found = f"{self.count:,} items, {len(self.items):,} of them listed"
            text = f"{found}; {self.distinct:,} distinct IDs of all levels."
        elif self.nearest:
            text = (
                f"No item has an ID that begins with {semantic_id}. Its longest prefix with items is {self.nearest}: "
            )
            text += f"{self.nearest_count:,} items; list them with --id {self.nearest}."
        else:
            text = f"No item has an ID that begins with {semantic_id}, or with its first code."
        following = ", ".join(f"{code} ({count:,})" for code, count in list(self.next_codes.items())[:10])
        place = f"after {self.nearest}" if self.nearest else "of the first level"
        return text + (f" Most frequent codes {place}, and their items: {following}" if following else "")


class SemanticIdTable:
    """Looks up items in a table that `write_table` wrote.

    Args:
        path: the file.

    Raises:
        SailError: the file is missing, or it is not such a table.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SailError(f"There is no table {self.path}: name the --output of `semantic-ids assign`.")
        try:
            schema = pq.read_schema(self.path)
        except (OSError, pa.ArrowException) as error:
            raise SailError(f"{self.path} cannot be read ({error}); assign again.") from error
        if _METADATA not in (schema.metadata or {}):
            raise SailError(f"{self.path} is not a table of semantic IDs: name the --output of `semantic-ids assign`.")
        try:
            self.made_of: dict[str, Any] = json.loads(schema.metadata[_METADATA])
            self.levels, self.unique = tuple(map(int, self.made_of["levels"])), bool(self.made_of["unique"])
            wanted = _columns(len(self.levels))
        except (ValueError, KeyError, TypeError) as error:
            raise SailError(f"{self.path} has damaged metadata ({error}); assign again.") from error
        if not schema.equals(wanted):
            found = schema.remove_metadata().to_string().replace("\n", ", ")
            raise SailError(f"{self.path} has the columns {found}, which are not those of its levels; assign again.")

    def find(self, semantic_id: str, limit: int | None = None) -> Matches:
        """Finds the items of an ID, or of all IDs that begin with it if it has fewer levels.

        Args:
            semantic_id: such as "12-3-77", "12-3", or with a suffix if the table's IDs have one.
            limit: maximum number of items returned; all are counted.

        Returns:
            The items. If no item has the ID, there are none, and `next_codes` are of its longest prefix with items.

        Raises:
            SailError: the ID is malformed, or has levels or codes that the table does not have.
        """
        codes, exact = self._parse(semantic_id)
        found = self._find(codes, exact, limit)
        if found.count:
            return found
        prefix = codes if exact else codes[:-1]
        while not (found := self._find(prefix, "", 0)).count:
            prefix = prefix[:-1]  # all items have the empty prefix, and a table has at least one
        return dataclasses.replace(found, count=0, distinct=0)

    def of_item(self, item_id: str) -> str:
        """Returns the semantic ID of an item; empty if the table does not have it."""
        for batch in self._batches():
            row = pc.index(batch["id"], pa.scalar(item_id, pa.string())).as_py()
            if row >= 0:
                return batch["semantic_id"][row].as_py()
        return ""

    def _find(self, codes: list[int], exact: str, limit: int | None) -> Matches:
        """Returns the items whose codes begin with `codes`; only those of the semantic ID `exact`, if given."""
        items, count, distinct, following = [], 0, set(), collections.Counter()
        for batch in self._batches():
            found = batch["codes"].flatten().to_numpy().reshape(len(batch), -1)
            mask = np.all(found[:, : len(codes)] == codes, axis=1)
            if exact:
                mask &= np.asarray(batch["semantic_id"].to_pylist()) == exact
            matched = found[mask]
            count += len(matched)
            distinct.update(map(bytes, np.ascontiguousarray(matched)))
            if len(codes) < len(self.levels):
                following.update(matched[:, len(codes)].tolist())
            rows = np.flatnonzero(mask)[: None if limit is None else max(limit - len(items), 0)]
            taken = batch.take(pa.array(rows, pa.int64()))
            items += zip(taken["id"].to_pylist(), taken["semantic_id"].to_pylist(), strict=True)
        nearest = exact or "-".join(map(str, codes))
        return Matches(items, count, len(distinct), dict(following.most_common()), nearest, count)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with readable(self.path), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_BATCH):
                batch.validate(full=True)
                if any(column.null_count for column in (*batch.columns, batch["codes"].flatten())):
                    raise SailError(f"{self.path} has rows with gaps; assign again.")
                yield batch

    def _parse(self, semantic_id: str) -> tuple[list[int], str]:
        """Returns the codes of an ID; and if it has a suffix, the ID as the table writes it, else ""."""
        shape = f"{len(self.levels)} levels of {', '.join(map(str, self.levels))} codes"
        if not re.fullmatch(r"\d{1,18}(-\d{1,18})*", semantic_id):
            raise SailError(
                f"{semantic_id!r:.200} is not a semantic ID; write codes with '-' between them, such as 12-3."
            )
        numbers = list(map(int, semantic_id.split("-")))
        suffix = self.unique and len(numbers) == len(self.levels) + 1
        codes = numbers[:-1] if suffix else numbers
        if len(codes) > len(self.levels):
            raise SailError(f"{semantic_id!r} has {len(numbers)} numbers, but the IDs of {self.path} have {shape}.")
        for level, (code, size) in enumerate(zip(codes, self.levels, strict=False), 1):
            if code >= size:
                raise SailError(f"{semantic_id!r} has code {code} at level {level}, but {self.path} has {shape}.")
        return codes, "-".join(map(str, numbers)) if suffix else ""
