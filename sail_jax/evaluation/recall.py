"""Recall at k by exact nearest-neighbour search, blocked on the device.

Axes: Q queries, N corpus rows, D width, K results.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.embedder import unit_rows

_QUERY_BLOCK = 1024


def top_k(
    queries: np.ndarray, corpus: np.ndarray, k: int, *, block: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k corpus rows with the highest cosine to each query; ties go to the lower row.

    Never more than 1,024 x `block` scores exist at a time.

    Args:
        queries: [Q, D].
        corpus: [N, D]; may be memory-mapped. Rows of zeros are never found.
        k: results per query.
        block: corpus rows scored at a time.
        exclude: [Q] int, the row that a query must not find (itself), or -1.

    Returns:
        rows: [Q, k] int64, -1 where there are fewer than k.
        cosines: [Q, k] float32, -inf there.
    """
    exclude = np.full(len(queries), -1, np.int64) if exclude is None else exclude
    found = [
        _search(queries[i : i + _QUERY_BLOCK], corpus, k, block, exclude[i : i + _QUERY_BLOCK])
        for i in range(0, len(queries), _QUERY_BLOCK)
    ]
    if not found:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    rows, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.where(np.isfinite(cosines), rows, -1), cosines


def _search(
    queries: np.ndarray, corpus: np.ndarray, k: int, block: int, exclude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    block = min(block, len(corpus))
    query = jnp.asarray(unit_rows(queries))
    best = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1))
    for start in range(0, len(corpus), block):
        rows = np.zeros((block, corpus.shape[1]), np.float32)
        part = corpus[start : start + block]
        rows[: len(part)] = unit_rows(np.asarray(part))
        # Relative to the block, so that row numbers never outgrow 32 bits on the device.
        cosines, at = _merge(query, rows, jnp.asarray(exclude - start, jnp.int32), best[0], k)
        best = (
            cosines,
            np.where(at < k, np.take_along_axis(np.asarray(best[1]), np.minimum(at, k - 1), 1), at - k + start),
        )
    return np.asarray(best[1], np.int64), np.asarray(best[0])


@functools.partial(jax.jit, static_argnums=4)
def _merge(
    query: jax.Array, rows: jax.Array, exclude: jax.Array, best: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Top k of the best so far and a block: (cosines, place), where places from k on are rows of the block."""
    cosines = jnp.matmul(query, rows.T, precision=jax.lax.Precision.HIGHEST)
    column = jnp.arange(len(rows))
    hidden = (column == exclude[:, None]) | ~rows.any(axis=-1)
    return jax.lax.top_k(jnp.concatenate([best, jnp.where(hidden, -jnp.inf, cosines)], axis=1), k)


def recall_at_k(rows: np.ndarray, relevant: Sequence[np.ndarray], ks: Sequence[int]) -> dict[str, float]:
    """Recall at several cut-offs: relevant found in the top k over all relevant, averaged over queries.

    Source: arXiv 2510.12709, sec. 4.2.

    Args:
        rows: [Q, K] int, the results of each query, best first.
        relevant: Q arrays of the relevant rows, none empty.
        ks: cut-offs, at most K.

    Returns:
        "recall@k" -> share in [0, 1].
    """
    hits = np.stack([np.isin(found, wanted) for found, wanted in zip(rows, relevant, strict=True)])
    total = np.array([len(np.unique(wanted)) for wanted in relevant])
    return {f"recall@{k}": float((hits[:, :k].sum(axis=1) / total).mean()) for k in ks}
