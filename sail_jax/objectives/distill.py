"""ID-to-item distillation: pulls embeddings of items towards a recommender's ID embeddings.

Axis letters: N items, D width, T ID embeddings, K width of one of them, E their total width, G groups of items
(data-parallel shards).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from sail_jax.vectors.unit import normalize

Params = dict[str, dict[str, Float32[Array, "_ _"]]]


def init_heads(teachers: Mapping[str, int], width: int, seed: int | Int32[Array, ""]) -> Params:
    """Returns a random projection for each ID embedding: name -> "kernel" [D, K]."""
    keys = jax.random.split(jax.random.key(seed), max(1, len(teachers)))
    init = jax.nn.initializers.lecun_normal()
    return {
        name: {"kernel": init(key, (width, size), jnp.float32)}
        for key, (name, size) in zip(keys, teachers.items(), strict=False)
    }


def distill(
    params: Params,
    z: Float32[Array, "N D"],
    teachers: Float32[Array, "N E"],
    has: Bool[Array, "N T"],
    weight: Float32[Array, " N"],
    *,
    kind: str,
    groups: int = 1,
) -> tuple[Float32[Array, ""], Int32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Computes feature distillation, summed over the ID embeddings (arXiv 2510.12709, sec. 3.3.5).

    With u = z / |z|, s = W u and t the unit ID embedding: "cosine" is 1 - cos(s, t); "mse" is |s - t|^2, which also
    determines the scale of W; "relational" (after arXiv 1904.05068) is the squared difference between cos(s_i, s_j)
    and t_i.t_j over the pairs of items of a group, and needs no common coordinate axes.

    The ID embeddings are constants and get no gradient.

    Args:
        params: see `init_heads`; in the order of the ID embeddings.
        z: embeddings of the items.
        teachers: ID embeddings of the items, as concatenated unit vectors.
        has: which ID embeddings each item has.
        weight: weight of each item; zero excludes it.
        kind: "cosine", "mse" or "relational".
        groups: G; "relational" compares only items of the same group.

    Returns:
        The loss, which is the sum over ID embeddings of the weighted mean over the items that have it; the number of
        items of positive weight that have any; and metrics: "ID/cosine", the mean cosine to each ID embedding.
    """
    teachers = jax.lax.stop_gradient(teachers)
    sizes = [head["kernel"].shape[1] for head in params.values()]
    total, metrics = jnp.zeros(()), {}
    for at, (name, head) in enumerate(params.items()):
        begin = int(np.sum(sizes[:at]))
        teacher = teachers[:, begin : begin + sizes[at]]
        counts = jnp.where(has[:, at], weight, 0.0)
        student = normalize(z) @ head["kernel"]
        cosine = (normalize(student) * teacher).sum(-1)
        if kind == "relational":
            loss = _relational(normalize(student), teacher, counts, groups)
        else:
            distance = 1 - cosine if kind == "cosine" else jnp.square(student - teacher).sum(-1)
            loss = (distance * counts).sum() / jnp.maximum((counts > 0).sum(), 1)
        total += loss
        metrics[f"{name}/cosine"] = jnp.where(counts > 0, cosine, 0.0).sum() / jnp.maximum((counts > 0).sum(), 1)
    return total, (has.any(-1) & (weight > 0)).sum(), metrics


def _relational(student: jax.Array, teacher: jax.Array, counts: jax.Array, groups: int) -> jax.Array:
    """Returns the mean over pairs of different items of a group; each item is weighted by the root of its weight."""
    student, teacher, counts = (x.reshape(groups, -1, *x.shape[1:]) for x in (student, teacher, counts))
    difference = jnp.einsum("gik,gjk->gij", student, student) - jnp.einsum("gik,gjk->gij", teacher, teacher)
    root = jnp.sqrt(counts)
    pairs = root[:, :, None] * root[:, None, :] * (1 - jnp.eye(student.shape[1]))
    return (jnp.square(difference) * pairs).sum() / jnp.maximum((pairs > 0).sum(), 1)
