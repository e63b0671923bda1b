"""ID-to-item distillation: pulls embeddings of items towards a recommender's ID embeddings.

Axis letters: N items, D width, T ID embeddings, K width of one of them, E their total width, G groups of items
(data-parallel shards).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int32

from sail_jax.vectors.unit import normalize

# Cosine from which two targets are the same item's, as when an item occurs twice in a batch.
_SAME = 1 - 1e-5

Head = dict[str, Float32[Array, "..."]]
Params = dict[str, Head]
# (name, first coordinate, one past the last) of each ID embedding among the concatenated ones.
Places = tuple[tuple[str, int, int], ...]


class TaughtRows(NamedTuple):
    """The items that a batch teaches, a row for each view.

    Attributes:
        z: embeddings.
        teachers: ID embeddings, as concatenated unit vectors.
        has: which ID embeddings an item has.
        weight: weight of an item; zero excludes it.
    """

    z: Float32[Array, "N D"]
    teachers: Float32[Array, "N E"]
    has: Bool[Array, "N T"]
    weight: Float32[Array, " N"]


def init_heads(teachers: Mapping[str, int], width: int, seed: int | Int32[Array, ""]) -> Params:
    """Returns a head for each ID embedding, with a random kernel; `ridge_heads` fits them to data.

    Returns:
        name -> "kernel" [D, K] and "bias" [K], which are trained; and the constants "mean" [K] and "whitener" [K, K]
        of `targets`, and "ceiling" [], the mean cosine that the fitted head reached; NaN before the fit.
    """
    keys = jax.random.split(jax.random.key(seed), max(1, len(teachers)))
    init = jax.nn.initializers.lecun_normal()
    return {
        name: {
            "kernel": init(key, (width, size), jnp.float32),
            "bias": jnp.zeros(size),
            "mean": jnp.zeros(size),
            "whitener": jnp.eye(size),
            "ceiling": jnp.full((), jnp.nan),
        }
        for key, (name, size) in zip(keys, teachers.items(), strict=False)
    }


def coordinates(heads: Params) -> Places:
    """Returns where each ID embedding stands among the concatenated ones: in the order of the heads."""
    sizes = [head["bias"].shape[0] for head in heads.values()]
    ends = np.cumsum(sizes).tolist()
    return tuple((name, end - size, end) for name, size, end in zip(heads, sizes, ends, strict=True))


def students(head: Head, z: Float32[Array, "N D"]) -> Float32[Array, "N K"]:
    """Returns what a head makes of embeddings: W u + b with u = z / |z|."""
    return normalize(z) @ head["kernel"] + head["bias"]


def targets(head: Head, teacher: Float32[Array, "N K"]) -> Float32[Array, "N K"]:
    """Returns the unit vectors of ID embeddings, centred and whitened by the constants of a head.

    Args:
        head: see `init_heads`.
        teacher: unit ID embeddings; a zero vector stands for a missing one, and its target means nothing.
    """
    return normalize((teacher - head["mean"]) @ head["whitener"])


def distill(
    params: Params,
    z: Float32[Array, "N D"],
    teachers: Float32[Array, "N E"],
    has: Bool[Array, "N T"],
    weight: Float32[Array, " N"],
    *,
    kind: str,
    groups: int = 1,
    temperature: ArrayLike = 0.1,
) -> tuple[Float32[Array, ""], Int32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Computes feature distillation, summed over the ID embeddings (arXiv 2510.12709, sec. 3.3.5).

    With s the `students` and t the `targets`: "cosine" is 1 - cos(s, t); "mse" is |s - t|^2, which also determines the
    scale of s; "relational" (after arXiv 1904.05068) is the squared difference between cos(s_i, s_j) and t_i.t_j over
    the pairs of items of a group, and needs no common coordinate axes; "contrastive" is InfoNCE in which each student
    has to find its own target among those of its group (after arXiv 1910.10699).

    The ID embeddings, and the constants that make targets of them, get no gradient.

    Args:
        params: see `init_heads`; in the order of the ID embeddings.
        z: embeddings of the items.
        teachers: ID embeddings of the items, as concatenated unit vectors.
        has: which ID embeddings each item has.
        weight: weight of each item; zero excludes it.
        kind: "cosine", "mse", "relational" or "contrastive".
        groups: G; "relational" and "contrastive" compare only items of the same group.
        temperature: temperature of "contrastive".

    Returns:
        The loss, which is the sum over ID embeddings of the weighted mean over the items that have it; the number of
        items of positive weight that have any; and metrics: "ID/cosine", the mean cosine to the targets, and
        "ID/ceiling", what the head reached when it was fitted to the frozen model, on items it had not seen.
    """
    total, metrics = jnp.zeros(()), {}
    for at, (name, begin, end) in enumerate(coordinates(params)):
        head = params[name]
        target = jax.lax.stop_gradient(targets(head, teachers[:, begin:end]))
        counts = jnp.where(has[:, at], weight, 0.0)
        student = students(head, z)
        cosine = (normalize(student) * target).sum(-1)
        if kind == "relational":
            loss = _relational(normalize(student), target, counts, groups)
        elif kind == "contrastive":
            loss = _contrastive(normalize(student), target, counts, groups, temperature)
        else:
            distance = 1 - cosine if kind == "cosine" else jnp.square(student - target).sum(-1)
            loss = (distance * counts).sum() / jnp.maximum((counts > 0).sum(), 1)
        total += loss
        metrics[f"{name}/cosine"] = jnp.where(counts > 0, cosine, 0.0).sum() / jnp.maximum((counts > 0).sum(), 1)
        metrics[f"{name}/ceiling"] = jax.lax.stop_gradient(head["ceiling"])
    return total, (has.any(-1) & (weight > 0)).sum(), metrics


def _contrastive(
    student: jax.Array, target: jax.Array, counts: jax.Array, groups: int, temperature: ArrayLike
) -> jax.Array:
    """Returns the mean cross-entropy of each student's own target; the same target of another item is no negative."""
    student, target, counts = (x.reshape(groups, -1, *x.shape[1:]) for x in (student, target, counts))
    logits = jnp.einsum("gik,gjk->gij", student, target) / temperature
    alike = jnp.einsum("gik,gjk->gij", target, target) > _SAME
    own = jnp.eye(target.shape[1], dtype=bool)
    shown = own | ((counts > 0)[:, None, :] & ~alike)
    losses = jax.nn.logsumexp(jnp.where(shown, logits, -jnp.inf), axis=-1) - jnp.diagonal(logits, axis1=1, axis2=2)
    return (losses * counts).sum() / jnp.maximum((counts > 0).sum(), 1)


def _relational(student: jax.Array, teacher: jax.Array, counts: jax.Array, groups: int) -> jax.Array:
    """Returns the mean over pairs of different items of a group; each item is weighted by the root of its weight."""
    student, teacher, counts = (x.reshape(groups, -1, *x.shape[1:]) for x in (student, teacher, counts))
    difference = jnp.einsum("gik,gjk->gij", student, student) - jnp.einsum("gik,gjk->gij", teacher, teacher)
    root = jnp.sqrt(counts)
    pairs = root[:, :, None] * root[:, None, :] * (1 - jnp.eye(student.shape[1]))
    return (jnp.square(difference) * pairs).sum() / jnp.maximum((pairs > 0).sum(), 1)
