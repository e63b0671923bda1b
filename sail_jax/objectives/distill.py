"""ID-to-item distillation: embeddings are pulled to a recommender's ID embeddings of the same items.

Axis letters: N items, D width, E widths of all T ID embeddings together, K width of one, G groups of items
(data-parallel shards).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from sail_jax.vectors.unit import normalize

Params = dict[str, dict[str, Float32[Array, "_ _"]]]


def init_heads(teachers: Mapping[str, int], width: int, seed: int) -> Params:
    """A projection for each ID embedding: name -> "kernel" [D, K]."""
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
    """Feature distillation to each ID embedding, summed (arXiv 2510.12709, sec. 3.3.5).

    With u = z / |z|, s = W u and t the unit ID embedding: "cosine" is 1 - cos(s, t); "mse" is |s - t|^2, which fixes the scale of W too;
    "relational" (after arXiv 1904.05068) is the squared difference of cos(s_i, s_j) and t_i.t_j over the pairs of items of a
    group, and asks for no common axes.

    The ID embeddings are data; no gradient goes there.

    Args:
        params: see `init_heads`; in the order of the ID embeddings.
        z: embeddings of the items.
        teachers: their ID embeddings, unit vectors one after the other.
        has: which of them an item has.
        weight: what each item counts; zero where it has no part.
        kind: "cosine", "mse" or "relational".
        groups: G; relations are taken within a group.

    Returns:
        The loss: the sum over ID embeddings of the weighted mean over the items that have it; the number of items that
        have any; and metrics, "ID/cosine" the mean cosine to each.
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
    """Mean over the pairs of different items of a group; an item counts by the root of its weight."""
    student, teacher, counts = (x.reshape(groups, -1, *x.shape[1:]) for x in (student, teacher, counts))
    difference = jnp.einsum("gik,gjk->gij", student, student) - jnp.einsum("gik,gjk->gij", teacher, teacher)
    root = jnp.sqrt(counts)
    pairs = root[:, :, None] * root[:, None, :] * (1 - jnp.eye(student.shape[1]))
    return (jnp.square(difference) * pairs).sum() / jnp.maximum((pairs > 0).sum(), 1)
