"""Pairs from vectors: near dense features, and neighbours in clusters of ID embeddings.

What is near is found with numpy and faiss (`near_items`, `near_in_clusters`), which write candidates by id; the rules
`rsdf` and `id_pairs` start from these. Vectors are written to a scratch file in the order of the items' ids, so that
the result does not depend on the order of the rows. Items of different splits, by publication, are never compared. Rows
of zeros and rows with non-finite values are dropped.

Axis letters: N items, D width, K neighbours.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import faiss
import ibis.expr.types as ir
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config.log_pairs import IdPairsConfig, RsdfPairsConfig
from sail_jax.logs.pairs.item_pairs import PairRules, item_pairs
from sail_jax.logs.pairs.rules import Made
from sail_jax.logs.rules import Logs
from sail_jax.logs.vector_files import read_vectors
from sail_jax.vectors.faiss_kmeans import faiss_kmeans, nearest_centroids
from sail_jax.vectors.unit import unit_rows

# The columns of candidates, as types of Ibis.
CANDIDATES = {"a": "string", "b": "string", "test": "boolean", "strength": "float32"}
_BLOCK = 16_384
_POINTS_PER_CENTROID = 64
_ROUNDS = 20  # of k-means


def rsdf(logs: Logs) -> Made:
    """Returns the pairs of items with similar dense features."""
    rules = logs.config.builders.rsdf
    thresholds = PairRules(min_support=1, per_item=rules.per_item, min_strength=rules.min_cosine)
    return item_pairs(logs, "rsdf", _together(logs.tables["rsdf"]), thresholds, ())


def id_pairs(logs: Logs) -> Made:
    """Returns the pairs of items that are neighbours within a cluster of an ID embedding."""
    thresholds = PairRules(min_support=1, per_item=logs.config.builders.id.per_item)
    return item_pairs(logs, "id", _together(logs.tables["id"]), thresholds, ())


def _together(near: ir.Table) -> ir.Table:
    """Each pair once: found from either item, in any embedding; n says how often."""
    return near.group_by("a", "b", "test").agg(n=near.count(), strength=near.strength.max())


class Items(NamedTuple):
    """The items that may occur in pairs, sorted by id.

    Attributes:
        ids: [N] ids.
        test: [N] bool, whether the item was published after the cut.
        draw: [N] int64, a seeded hash.
    """

    ids: pa.Array
    test: np.ndarray
    draw: np.ndarray


def collect_items(batches: Iterable[pa.Table]) -> Items:
    """Collects items from batches of item, test and draw (hexadecimal), sorted by item."""
    ids, tests, draws = [pa.array([], pa.string())], [np.zeros(0, bool)], [np.zeros(0, np.int64)]
    for batch in batches:
        ids += batch["item"].cast(pa.string()).chunks
        tests.append(batch["test"].to_numpy())
        draws.append(pl.from_arrow(batch["draw"]).str.head(15).str.to_integer(base=16, dtype=pl.Int64).to_numpy())
    return Items(pa.concat_arrays(ids), np.concatenate(tests), np.concatenate(draws))


class Vectors(NamedTuple):
    """Unit vectors: [N, D] float32 on disk, by item number; the numbers that have a vector; and counts."""

    rows: np.ndarray
    present: np.ndarray
    counts: dict[str, int]


def near_items(
    items: Items, vectors: Vectors, rules: RsdfPairsConfig, seed: int, candidates: Path, show: Callable[[str], None]
) -> None:
    """Writes each item with its nearest items of the same side, as parts of a folder of `CANDIDATES`."""
    for test in (False, True):
        codes = vectors.present[items.test[vectors.present] == test]
        if len(codes) < 2:
            continue
        index = _index(vectors.rows, codes, rules, seed)
        neighbours = min(rules.neighbours + 1, len(codes))
        for start in range(0, len(codes), _BLOCK):
            show(f"rsdf: nearest items, {start:,} of {len(codes):,}")
            mine = codes[start : start + _BLOCK]
            cosine, found = index.search(vectors.rows[mine], neighbours)
            near = (found >= 0) & (cosine >= rules.min_cosine)
            query, slot = np.nonzero(near)
            other, score = codes[found[query, slot]], cosine[query, slot]
            write_candidates(candidates / f"{int(test)}-{start:012d}.parquet", items, mine[query], other, score)


def _index(rows: np.ndarray, codes: np.ndarray, rules: RsdfPairsConfig, seed: int) -> faiss.Index:
    index = faiss.IndexFlatIP(rows.shape[1])
    if len(codes) > rules.exact_items:
        lists = int(4 * math.sqrt(len(codes)))
        index = faiss.IndexIVFFlat(index, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.train(_sample(rows, codes, lists * _POINTS_PER_CENTROID, seed))
        index.nprobe = min(rules.probes, lists)
    for start in range(0, len(codes), _BLOCK):
        index.add(rows[codes[start : start + _BLOCK]])
    return index


def near_in_clusters(
    items: Items, vectors: Vectors, rules: IdPairsConfig, seed: int, candidates: Path, number: int
) -> None:
    """Writes each item with its nearest items of its cluster; `number` is that of the embedding."""
    codes = vectors.present
    if len(codes) < 2:
        return
    clusters = _clusters(items, vectors.rows, codes, rules, seed)
    # Sorted by cluster and split, and shuffled within, so that a large cluster is split at random.
    order = np.lexsort((items.draw[codes], items.test[codes], clusters))
    codes, group = codes[order], clusters[order].astype(np.int64) * 2 + items.test[codes[order]]
    for part, (query, other, cosine) in enumerate(_within(vectors.rows, codes, group, rules)):
        write_candidates(candidates / f"{number}-{part}.parquet", items, query, other, cosine)


def _clusters(items: Items, rows: np.ndarray, codes: np.ndarray, rules: IdPairsConfig, seed: int) -> np.ndarray:
    """[n] the cluster of each item; centroids come from a sample of the train split's items, if there are any."""
    early = codes[~items.test[codes]]
    trained = early if len(early) else codes
    number = max(1, min(len(codes) // rules.cluster_items, rules.max_clusters, len(trained)))
    sample = _sample(rows, trained, number * _POINTS_PER_CENTROID, seed)
    centroids = faiss_kmeans(sample, number, rounds=_ROUNDS, seed=seed, spherical=True)
    blocks = (rows[codes[start : start + _BLOCK]] for start in range(0, len(codes), _BLOCK))
    return np.concatenate([nearest_centroids(block, centroids, spherical=True) for block in blocks])


def _within(
    rows: np.ndarray, codes: np.ndarray, group: np.ndarray, rules: IdPairsConfig
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields items, their nearest neighbours in their group, and cosines."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    waiting, size = [], 0
    for first, last in zip(starts, [*starts[1:], len(codes)], strict=True):
        for start in range(first, last, rules.max_items):
            mine = codes[start : min(start + rules.max_items, last)]
            if len(mine) < 2:
                continue
            x = rows[mine]
            cosine, found = faiss.knn(x, x, min(rules.neighbours + 1, len(mine)), metric=faiss.METRIC_INNER_PRODUCT)
            waiting.append((np.repeat(mine, found.shape[1]), mine[found.ravel()], cosine.ravel()))
            size += found.size
        if size >= _BLOCK * 64:
            yield tuple(map(np.concatenate, zip(*waiting, strict=True)))
            waiting, size = [], 0
    if waiting:
        yield tuple(map(np.concatenate, zip(*waiting, strict=True)))


_NONE = np.zeros(0, np.int64)


def write_candidates(
    path: Path, items: Items, one: np.ndarray = _NONE, other: np.ndarray = _NONE, cosine: np.ndarray = _NONE
) -> None:
    """Writes pairs by id; an item's number is the rank of its id, so that a < b as numbers and as ids."""
    apart = one != other
    columns = {
        "a": items.ids.take(pa.array(np.minimum(one, other)[apart])),
        "b": items.ids.take(pa.array(np.maximum(one, other)[apart])),
        "test": pa.array(items.test[one[apart]]),
        "strength": pa.array(cosine[apart].astype(np.float32)),
    }
    pq.write_table(pa.table(columns), path, compression="lz4")


def store_vectors(items: Items, path: Path, setting: str, scratch: Path) -> Vectors:
    """Writes the vectors of items to a scratch file, at unit length, and returns them.

    Args:
        items: the items.
        path: the vectors, see `read_vectors`.
        setting: the setting that holds the path, for messages.
        scratch: the file.
    """
    numbers = pl.DataFrame({"item": pl.from_arrow(items.ids)}).with_row_index("code")
    rows, present, read, bad, unknown = None, np.zeros(len(numbers), bool), 0, 0, 0
    for ids, vectors in read_vectors(path, setting):
        if rows is None:
            rows = np.memmap(scratch, np.float32, mode="w+", shape=(max(len(numbers), 1), vectors.shape[1]))
        batch = pl.DataFrame({"item": ids}).join(numbers, on="item", how="left", maintain_order="left")
        known = batch["code"].is_not_null().to_numpy()
        good = np.isfinite(vectors).all(1) & (vectors != 0).any(1)
        read, unknown, bad = read + len(ids), unknown + int((~known).sum()), bad + int((known & ~good).sum())
        codes = batch["code"].to_numpy()[known & good].astype(np.int64)
        rows[codes] = unit_rows(vectors[known & good])
        present[codes] = True
    counts = {"rows_read": read, "dropped_rows_not_in_store": unknown, "dropped_rows_zero_or_not_finite": bad}
    return Vectors(np.zeros((0, 1), np.float32) if rows is None else rows, np.flatnonzero(present), counts)


def _sample(rows: np.ndarray, codes: np.ndarray, size: int, seed: int) -> np.ndarray:
    if len(codes) <= size:
        return np.ascontiguousarray(rows[codes])
    drawn = np.random.default_rng(seed).choice(len(codes), size, replace=False)
    return np.ascontiguousarray(rows[codes[np.sort(drawn)]])
