"""Heads of the distillation in closed form: ridge regression from embeddings to ID embeddings.

It needs only sums over items, so that any number of items is streamed through it, split over any devices.

Axis letters: N items of a batch, D width, K width of an ID embedding, C candidates of the regularisation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from sail_jax.errors import SailError
from sail_jax.objectives.distill import Head, students, targets
from sail_jax.vectors.unit import normalize

# Regularisation, as a share of the mean variance of a coordinate of the embeddings.
CANDIDATES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Unit ID embeddings that vary less than this are all the same: rounding of the sums alone makes 1e-6.
_LEAST_VARIANCE = 1e-5


class HeadSums(NamedTuple):
    """Sums over the items that have an ID embedding, of unit embeddings u and unit ID embeddings t.

    Attributes:
        count: items.
        u: sum of u.
        t: sum of t.
        uu: sum of u u^T.
        ut: sum of u t^T.
        tt: sum of t t^T.
    """

    count: Float32[Array, ""]
    u: Float32[Array, " D"]
    t: Float32[Array, " K"]
    uu: Float32[Array, "D D"]
    ut: Float32[Array, "D K"]
    tt: Float32[Array, "K K"]


def sums_of(z: Float32[Array, "N D"], teacher: Float32[Array, "N K"], counts: Bool[Array, " N"]) -> HeadSums:
    """Returns the sums over the items of a batch; those of several batches are added.

    Args:
        z: embeddings of the items.
        teacher: their unit ID embeddings.
        counts: items that count.
    """
    u, t = (jnp.where(counts[:, None], x, 0.0) for x in (normalize(z), teacher))
    product = jax.lax.Precision.HIGHEST
    uu, ut, tt = (jnp.matmul(a.T, b, precision=product) for a, b in ((u, u), (u, t), (t, t)))
    return HeadSums(counts.sum().astype(jnp.float32), u.sum(0), t.sum(0), uu, ut, tt)


def solve(sums: HeadSums, *, name: str, statistics: str) -> list[dict[str, Float32[np.ndarray, "..."]]]:
    """Returns a head for each of `CANDIDATES`: the least squares fit to the centred ID embeddings.

    With covariances S of the items, the kernel is (S_uu + c tr(S_uu) / D)^-1 S_ut, and the bias lets the mean
    embedding meet the mean ID embedding.

    Args:
        sums: the sums over all items.
        name: the ID embedding, for messages.
        statistics: `objective.teacher_statistics`.

    Raises:
        SailError: fewer than two items have the ID embedding, or it is the same for all of them.
    """
    sums = HeadSums(*(np.asarray(x, np.float64) for x in sums))
    if sums.count < 2:
        raise SailError(
            f"The ID embedding {name!r} is missing from the items that the stage begins with ({sums.count:.0f} have "
            f"it), so its head cannot be fitted: remove it from config.objective.teachers, or ingest it "
            "(config.ingest.vectors)."
        )
    u, t = sums.u / sums.count, sums.t / sums.count
    s_uu, s_ut, s_tt = (
        x / sums.count - np.outer(a, b) for x, a, b in ((sums.uu, u, u), (sums.ut, u, t), (sums.tt, t, t))
    )
    if np.trace(s_tt) < _LEAST_VARIANCE:
        raise SailError(
            f"The ID embedding {name!r} points in the same direction for all {sums.count:.0f} items that were read, so "
            "nothing can be learned from it: remove it from config.objective.teachers, or ingest the right column."
        )
    mean, whitener = _statistics(t, s_tt, statistics)
    # In whitened coordinates the targets are (t - mean) @ whitener.
    shift, s_ut = (t - mean) @ whitener, s_ut @ whitener
    scale = np.trace(s_uu) / len(u)
    heads = []
    for candidate in CANDIDATES:
        kernel = np.linalg.solve(s_uu + candidate * scale * np.eye(len(u)), s_ut)
        heads.append({"kernel": kernel, "bias": shift - u @ kernel, "mean": mean, "whitener": whitener})
    return [{part: value.astype(np.float32) for part, value in head.items()} for head in heads]


def _statistics(mean: np.ndarray, covariance: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is subtracted from the unit ID embeddings, [K], and what they are multiplied by then, [K, K]."""
    if kind == "none":
        return np.zeros_like(mean), np.eye(len(mean))
    if kind == "centred":
        return mean, np.eye(len(mean))
    values, vectors = np.linalg.eigh(covariance)
    # Directions of hardly any variance are noise, which must not be blown up to the size of the others.
    floor = 1e-2 * values.max()
    return mean, (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T


def cosines(
    heads: Head, z: Float32[Array, "N D"], teacher: Float32[Array, "N K"], counts: Bool[Array, " N"]
) -> Float32[Array, " C"]:
    """Returns the sum, over a batch, of the cosines of students and targets, for each of C heads.

    Args:
        heads: the arrays of a head, each with a first axis of C.
        z: embeddings of the items.
        teacher: their unit ID embeddings.
        counts: items that count.
    """

    def of_one(head: Head) -> jax.Array:
        found = (normalize(students(head, z)) * targets(head, teacher)).sum(-1)
        return jnp.where(counts, found, 0.0).sum()

    return jax.vmap(of_one)(heads)
