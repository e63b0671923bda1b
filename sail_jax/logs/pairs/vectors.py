"""Builds i2i pairs from vectors: near dense features, and neighbours in clusters of ID embeddings.

Vectors are written to a scratch file in the order of the items' numbers, so that the result does not depend on the
order of the rows or on the number of parts. Items of different splits, by publication, are never compared. Rows of
zeros and rows with non-finite values are dropped.

Axis letters: N items, D width, K neighbours.
"""

import math
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import polars as pl

from sail_jax.logs.pairs.context import BuildContext
from sail_jax.logs.pairs.hashing import hash_one
from sail_jax.logs.pairs.item_pairs import PairRules, write_item_pairs
from sail_jax.logs.vector_files import read_vectors
from sail_jax.vectors.faiss_kmeans import faiss_kmeans, nearest_centroids
from sail_jax.vectors.unit import unit_rows

_BLOCK = 16_384
_POINTS_PER_CENTROID = 64
_ROUNDS = 20  # of k-means


class _Vectors(NamedTuple):
    """Unit vectors: [N, D] float32 on disk, by item number; the numbers that have a vector; and counts."""

    rows: np.ndarray
    present: np.ndarray
    counts: dict[str, int]


def build_rsdf(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes the pairs of items with similar dense features; returns counts."""
    rules, setting = build.config.builders.rsdf, "config.logs.dense_features"
    vectors = _write_vectors(build, "rsdf", build.config.logs.dense_features, setting)
    candidates = build.folder("rsdf.candidates")
    is_test = build.catalogue.test()
    for test in (False, True):
        codes = vectors.present[is_test[vectors.present] == test]
        if len(codes) > 1:
            _near(build, vectors.rows, codes, test, candidates)
    thresholds = PairRules(min_support=1, per_item=rules.per_item, min_strength=rules.min_cosine)
    return vectors.counts | write_item_pairs(build, "rsdf", candidates, thresholds, output)


def _near(build: BuildContext, rows: np.ndarray, codes: np.ndarray, test: bool, candidates: Path) -> None:
    rules = build.config.builders.rsdf
    index = faiss.IndexFlatIP(rows.shape[1])
    if len(codes) > rules.exact_items:
        lists = int(4 * math.sqrt(len(codes)))
        index = faiss.IndexIVFFlat(index, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = build.config.seed
        index.train(_sample(rows, codes, lists * _POINTS_PER_CENTROID, build.config.seed))
        index.nprobe = min(rules.probes, lists)
    for start in range(0, len(codes), _BLOCK):
        index.add(rows[codes[start : start + _BLOCK]])
    neighbours = min(rules.neighbours + 1, len(codes))
    for start in range(0, len(codes), _BLOCK):
        build.show(f"rsdf: nearest items, {start:,} of {len(codes):,}")
        mine = codes[start : start + _BLOCK]
        cosine, found = index.search(rows[mine], neighbours)
        near = (found >= 0) & (cosine >= rules.min_cosine)
        query, slot = np.nonzero(near)
        other, score = codes[found[query, slot]], cosine[query, slot]
        _write(candidates / f"{int(test)}-{start:012d}.parquet", mine[query], other, score, test)


def build_id(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes the pairs of items that are neighbours within a cluster of an ID embedding; returns counts."""
    rules, candidates = build.config.builders.id, build.folder("id.candidates")
    counts: dict[str, int] = {}
    is_test = build.catalogue.test()
    for number, (name, path) in enumerate(sorted(build.config.logs.id_embeddings.items())):
        vectors = _write_vectors(build, f"id.{number}", path, f"config.logs.id_embeddings.{name}")
        for key, value in vectors.counts.items():
            counts[key] = counts.get(key, 0) + value
        codes = vectors.present
        if len(codes) < 2:
            continue
        clusters = _clusters(build, vectors.rows, codes, is_test)
        # Sorted by cluster and split, and shuffled within, so that a large cluster is split at random.
        draw = pl.select(hash_one(pl.Series(codes), build.config.seed)).to_series().to_numpy()
        order = np.lexsort((draw, is_test[codes], clusters))
        codes, group = codes[order], clusters[order].astype(np.int64) * 2 + is_test[codes[order]]
        build.show(f"id: neighbours within the clusters of {name}")
        _within(vectors.rows, codes, group, rules.max_items, rules.neighbours, candidates / str(number), is_test)
    thresholds = PairRules(min_support=1, per_item=rules.per_item)
    return counts | write_item_pairs(build, "id", candidates, thresholds, output)


def _clusters(build: BuildContext, rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """[n] the cluster of each item; centroids come from a sample of the train split's items, if there are any."""
    rules, seed = build.config.builders.id, build.config.seed
    build.show("id: clusters")
    early = codes[~is_test[codes]]
    trained = early if len(early) else codes
    number = max(1, min(len(codes) // rules.cluster_items, rules.max_clusters, len(trained)))
    sample = _sample(rows, trained, number * _POINTS_PER_CENTROID, seed)
    centroids = faiss_kmeans(sample, number, rounds=_ROUNDS, seed=seed, spherical=True)
    blocks = (rows[codes[start : start + _BLOCK]] for start in range(0, len(codes), _BLOCK))
    return np.concatenate([nearest_centroids(block, centroids, spherical=True) for block in blocks])


def _within(
    rows: np.ndarray,
    codes: np.ndarray,
    group: np.ndarray,
    max_items: int,
    neighbours: int,
    candidates: Path,
    is_test: np.ndarray,
) -> None:
    """Pairs each item with its nearest neighbours in its group; file names of candidates begin with `candidates`."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    waiting, size, written = [], 0, 0
    for first, last in zip(starts, [*starts[1:], len(codes)], strict=True):
        for start in range(first, last, max_items):
            mine = codes[start : min(start + max_items, last)]
            if len(mine) < 2:
                continue
            x = rows[mine]
            cosine, found = faiss.knn(x, x, min(neighbours + 1, len(mine)), metric=faiss.METRIC_INNER_PRODUCT)
            query = np.repeat(mine, found.shape[1])
            waiting.append((query, mine[found.ravel()], cosine.ravel(), is_test[query]))
            size += len(query)
        if size >= _BLOCK * 64:
            _write(
                candidates.with_name(f"{candidates.name}-{written}.parquet"),
                *map(np.concatenate, zip(*waiting, strict=True)),
            )
            waiting, size, written = [], 0, written + 1
    if waiting:
        _write(
            candidates.with_name(f"{candidates.name}-{written}.parquet"),
            *map(np.concatenate, zip(*waiting, strict=True)),
        )


def _write(path: Path, one: np.ndarray, other: np.ndarray, cosine: np.ndarray, test: np.ndarray | bool) -> None:
    """Writes candidates without duplicates."""
    apart = one != other
    pairs = pl.DataFrame(
        {
            "a": np.minimum(one, other)[apart].astype(np.uint32),
            "b": np.maximum(one, other)[apart].astype(np.uint32),
            "test": np.broadcast_to(test, one.shape)[apart],
            "strength": cosine[apart].astype(np.float32),
        }
    )
    unique = pairs.group_by("a", "b", "test").agg(pl.lit(1, pl.UInt32).alias("n"), pl.col("strength").max())
    unique.select("a", "b", "test", "n", "strength").write_parquet(path, compression="lz4")


def _write_vectors(build: BuildContext, name: str, path: str, setting: str) -> _Vectors:
    build.show(f"{name}: reading {path}")
    folder, items = build.folder(name), build.catalogue.frame.select("item", "code")
    rows, present, read, bad, unknown = None, np.zeros(len(items), bool), 0, 0, 0
    for ids, vectors in read_vectors(build.source / path, setting):
        if rows is None:
            rows = np.memmap(folder / "rows.f32", np.float32, mode="w+", shape=(max(len(items), 1), vectors.shape[1]))
        batch = pl.DataFrame({"item": ids}).join(items, on="item", how="left", maintain_order="left")
        known = batch["code"].is_not_null().to_numpy()
        good = np.isfinite(vectors).all(1) & (vectors != 0).any(1)
        read, unknown, bad = read + len(ids), unknown + int((~known).sum()), bad + int((known & ~good).sum())
        codes = batch["code"].to_numpy()[known & good].astype(np.int64)
        rows[codes] = unit_rows(vectors[known & good])
        present[codes] = True
    counts = {"rows_read": read, "dropped_rows_not_in_store": unknown, "dropped_rows_zero_or_not_finite": bad}
    return _Vectors(np.zeros((0, 1), np.float32) if rows is None else rows, np.flatnonzero(present), counts)


def _sample(rows: np.ndarray, codes: np.ndarray, size: int, seed: int) -> np.ndarray:
    if len(codes) <= size:
        return np.ascontiguousarray(rows[codes])
    drawn = np.random.default_rng(seed).choice(len(codes), size, replace=False)
    return np.ascontiguousarray(rows[codes[np.sort(drawn)]])
