"""Histories become one vector: the mean, and the Transformer with a special token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.batch import NO_MEMBER, Outputs, Parts
from sail_jax.config.model import SequenceConfig
from sail_jax.errors import SailError
from sail_jax.models.sequence import SequenceEncoder, SequenceHead, mean_pool

CONFIG = SequenceConfig(pooling="transformer", layers=3, heads=2, mlp_width=16, max_items=6)


def vectors(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def test_the_mean_is_of_unit_vectors_that_count():
    z, mask = vectors(2, 4, 6), jnp.array([[True, True, False, True], [False] * 4])
    unit = np.asarray(z[0]) / np.linalg.norm(z[0], axis=-1, keepdims=True)
    np.testing.assert_allclose(mean_pool(z, mask), [unit[[0, 1, 3]].mean(0), np.zeros(6)], atol=1e-6)


@pytest.fixture(scope="module")
def encoder():
    model = SequenceEncoder(CONFIG, 8)
    params = jax.jit(model.init)(jax.random.key(1), vectors(1, 4, 8), jnp.ones((1, 4), bool))
    return jax.jit(lambda z, mask: model.apply(params, z, mask))


@pytest.mark.slow
def test_items_that_do_not_count_change_nothing(encoder):
    z, mask = vectors(2, 4, 8), jnp.array([[False, True, True, True], [True, False, True, True]])
    other = jnp.where(mask[..., None], z, 7.0)
    np.testing.assert_allclose(encoder(z, mask), encoder(other, mask), atol=1e-6)
    # Padding is in front, and positions count from the end: the history alone gives the same.
    np.testing.assert_allclose(encoder(z, mask)[0], encoder(z[:1, 1:], mask[:1, 1:])[0], atol=1e-6)


def test_the_order_matters_and_nothing_gives_zeros(encoder):
    z, mask = vectors(1, 4, 8), jnp.ones((1, 4), bool)
    assert np.abs(encoder(z, mask) - encoder(z[:, ::-1], mask)).max() > 1e-3
    np.testing.assert_array_equal(encoder(z, ~mask), np.zeros((1, 8)))


def test_too_long_a_history_says_what_to_do(encoder):
    with pytest.raises(SailError, match="max_items"):
        encoder(vectors(1, 7, 8), jnp.ones((1, 7), bool))


def test_the_gradient_may_stop_at_the_history():
    """Two sequences of two places each: one item is a target and in the other's history, one is in histories alone."""
    places = vectors(1, 4, 6)
    members = jnp.array([[0, 2, NO_MEMBER], [-2, 1, -1]])  # targets: places 0 and 0; histories: place 2, places 3 and 1
    filled = jnp.ones((1, 2), bool), jnp.ones((1, 2, 1), bool)

    def loss(places, learn_history):
        z = places[:, ::2], places[:, 1::2][:, :, None]
        out = Outputs(filled, Parts(z, z, z))
        head = SequenceHead(SequenceConfig(learn_history=learn_history), 6)
        (query, target), _ = head.apply({}, z, out, members)
        return (query * target[:, :, 0]).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    moved = {learn: np.abs(gradient(places, learn)[0]).max(-1) > 0 for learn in (True, False)}
    np.testing.assert_array_equal(moved[True], [True, True, True, True])
    np.testing.assert_array_equal(moved[False], [True, False, False, False])
