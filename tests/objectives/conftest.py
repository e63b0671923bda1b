"""Embeddings of pairs and of their hard negatives."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_losses import B, D, M


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(B, D)).astype(np.float32)
    return jnp.asarray(query), jnp.asarray(query + 2 * rng.normal(size=(B, D)), jnp.float32)


@pytest.fixture
def hard(pairs):
    noise = np.random.default_rng(1).normal(size=(B, M, D))
    return (pairs[0][:, None] + 1.5 * noise).astype(jnp.float32)
