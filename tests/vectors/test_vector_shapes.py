import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from sail_jax.vectors.top_k import top_k
from sail_jax.vectors.unit import normalize


def test_a_corpus_of_another_width_than_the_queries_is_refused():
    queries, corpus = np.ones((3, 8), np.float32), np.ones((5, 4), np.float32)
    with pytest.raises(TypeCheckError, match="parameter 'corpus'"):
        top_k(queries, corpus, 1, block=8)


def test_integers_are_no_vectors():
    with pytest.raises(TypeCheckError, match="parameter 'z'"):
        normalize(jnp.ones((2, 4), jnp.int32))
