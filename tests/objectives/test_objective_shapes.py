import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from sail_jax.objectives.cosent import cosent
from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.negative_masks import Negatives

PAIRS, WIDTH = 4, 8


def test_more_targets_than_queries_are_refused():
    query, target, valid = jnp.ones((PAIRS, WIDTH)), jnp.ones((PAIRS + 1, WIDTH)), jnp.ones(PAIRS, bool)
    negatives = Negatives(~jnp.eye(PAIRS, dtype=bool), jnp.zeros((PAIRS, 0), bool))
    with pytest.raises(TypeCheckError, match="parameter 'target'"):
        info_nce(query, target, jnp.ones(PAIRS), negatives, valid)


def test_scores_with_an_axis_too_many_are_refused():
    z, valid, group = jnp.ones((PAIRS, WIDTH)), jnp.ones(PAIRS, bool), jnp.zeros(PAIRS, jnp.int32)
    with pytest.raises(TypeCheckError, match="parameter 'scores'"):
        cosent(z, z, jnp.ones((PAIRS, 1)), 0.1, valid, group)
