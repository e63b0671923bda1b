"""COSENT against sentence-transformers, in value and gradients; its groups, and batches without an order."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from small_losses import VALID, B, cosine, same, torch_loss, value_and_grad

from sail_jax.objectives.cosent import cosent


def test_cosent_equals_sentence_transformers(pairs):
    scores = np.random.default_rng(2).choice([0.0, 0.25, 0.5, 1.0], B).astype(np.float32)

    def ours(query, target):
        return cosent(query, target, jnp.asarray(scores), 0.05, VALID, jnp.zeros(B, jnp.int32))

    expected = torch_loss(lambda model: CoSENTLoss(model, scale=20.0), *pairs, labels=torch.tensor(scores))
    same(value_and_grad(ours, argnums=(0, 1))(*pairs), expected)


def test_cosent_compares_within_a_group_and_skips_what_is_not_valid(pairs):
    scores, group = jnp.linspace(0, 1, B), jnp.arange(B) % 2
    valid = VALID.at[4].set(False)
    loss = lambda *sides: cosent(*sides, scores, 0.1, valid, group)  # noqa: E731
    value, gradients = value_and_grad(loss, argnums=(0, 1))(*map(jnp.asarray, pairs))
    cosines = [cosine(q, t) / 0.1 for q, t in zip(*pairs, strict=True)]
    terms = [
        np.exp(cosines[b] - cosines[a])
        for a in range(B)
        for b in range(B)
        if a % 2 == b % 2 and a > b and 4 not in (a, b)
    ]
    np.testing.assert_allclose(value, np.log1p(np.sum(terms)), rtol=1e-5)
    assert all(not np.any(g[4]) and np.any(g[5]) for g in gradients)


@pytest.mark.slow
def test_cosent_without_an_order_is_zero_and_finite_at_low_temperature(pairs):
    query, target = (jnp.asarray(x, jnp.bfloat16) for x in pairs)
    group = jnp.zeros(B, jnp.int32)
    assert cosent(query, target, jnp.ones(B), 0.05, VALID, group) == 0
    assert cosent(query, target, jnp.full(B, jnp.nan), 0.05, VALID, group) == 0
    loss = lambda q: cosent(q, target, jnp.linspace(0, 1, B), 0.01, VALID, group)  # noqa: E731
    value, gradient = value_and_grad(loss)(query)
    assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(np.float32)))
