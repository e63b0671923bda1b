"""COSENT: a ranking loss that orders the cosines of pairs by their graded scores.

Axis letters: B pairs of the global batch, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from sail_jax.vectors.unit import normalize

_MASKED = -1e30


def cosent(
    query: Float[Array, "B D"],
    target: Float[Array, "B D"],
    scores: Float32[Array, " B"],
    temperature: float | Float32[Array, ""],
    valid: Bool[Array, " B"],
    group: Int32[Array, " B"],
) -> Float32[Array, ""]:
    """Computes the ranking loss of arXiv 2510.12709, sec. 3.3.2.

        L = log( 1 + sum over pairs with score_a > score_b of exp((cos_b - cos_a) / tau) )

    Unlike InfoNCE it uses no negatives, only the order of the graded scores. Equals CoSENTLoss (scale = 1 / tau) of
    sentence-transformers.

    Args:
        query: embeddings of the queries; computed in float32.
        target: embeddings of the targets.
        scores: graded similarity, on any scale; NaN marks a pair without a score, which is ignored.
        temperature: tau.
        valid: pairs that count. The loss is 0 unless two of them differ in score.
        group: data set of each pair; scores are compared only within a group, as data sets may differ in scale.
    """
    cosines = (normalize(query) * normalize(target)).sum(-1) / temperature
    # After sorting by score, all pairs with a lower score precede a pair, so that running sums of exponentials replace
    # the comparison of all pairs of pairs. Ignored pairs form a separate group.
    valid &= ~jnp.isnan(scores)
    group = jnp.where(valid, group, jnp.iinfo(jnp.int32).max)
    group, scores, order = jax.lax.sort((group, jnp.where(valid, scores, 0.0), jnp.arange(len(group))), num_keys=2)
    cosines = cosines[order]
    begins_group = jnp.append(True, group[1:] != group[:-1])
    place = jnp.arange(len(group))
    first_equal = jax.lax.cummax(jnp.where(begins_group | jnp.append(True, scores[1:] != scores[:-1]), place, 0))
    lower = jnp.where(begins_group[first_equal], _MASKED, _running_logsumexp(cosines, begins_group)[first_equal - 1])
    differences = jnp.where(valid[order], lower - cosines, _MASKED)
    return jax.nn.logsumexp(jnp.append(differences, 0.0))


def _running_logsumexp(x: jax.Array, begins: jax.Array) -> jax.Array:
    """Returns the running log-sum-exp [B] of x [B], which restarts wherever `begins` [B] is True."""

    def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return left[0] | right[0], jnp.where(right[0], right[1], jnp.logaddexp(left[1], right[1]))

    return jax.lax.associative_scan(join, (begins, x))[1]
