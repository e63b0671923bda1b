"""cuDNN's attention equals the plain form, with a reference in place of cuDNN, which needs a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.models import transformer
from sail_jax.models.gpu_attention import Calls, gpu_attention, valid_to_front

BATCH, QUERIES, KEYS, HEADS, GROUPS, WIDTH = 3, 9, 7, 4, 2, 12  # cuDNN takes widths in steps of 8


def reference(scale, causal, query, key, value, *lengths):
    """What cuDNN computes: (mixed values, log-sum-exp), of the first keys of each row."""
    key, value = (jnp.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
    logits = scale * jnp.einsum("bnhk,bshk->bhns", query, key)
    rows, columns = jnp.arange(query.shape[1])[:, None], jnp.arange(key.shape[1])
    for length in lengths:
        logits = jnp.where(columns < length[:, None, None, None], logits, -jnp.inf)
    logits = jnp.where(columns <= rows, logits, -jnp.inf) if causal else logits
    mixed = jnp.einsum("bhns,bshk->bnhk", jax.nn.softmax(logits), value)
    return mixed, jax.nn.logsumexp(logits, axis=-1)


def reference_gradient(scale, causal, query, key, value, mixed, statistics, gradient, *lengths):
    """The gradients, with what cuDNN may leave in the place of keys that no query sees."""
    attend = functools.partial(reference, scale, causal)
    expected, pull = jax.vjp(lambda *arrays: attend(*arrays, *lengths), query, key, value)
    assert [x.shape for x in expected] == [mixed.shape, statistics.shape]
    of_query, *of_keys = pull((gradient, jnp.zeros_like(statistics)))
    for length in lengths:
        unseen = jnp.arange(key.shape[1]) >= length[:, None]
        of_keys = [jnp.where(unseen[:, :, None, None], jnp.nan, x) for x in of_keys]
    return of_query, *of_keys


REFERENCE = Calls(reference, reference_gradient)


def arrays(*, causal=False, rows=(BATCH,)):
    rng = np.random.default_rng(0)
    keys = QUERIES if causal else KEYS
    shapes = [(*rows, QUERIES, HEADS, WIDTH), *[(*rows, keys, GROUPS, WIDTH)] * 2]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes], rng.random((*rows, keys)) < 0.6


def plain(query, key, value, mask, causal):
    return transformer._attend_plainly(query, key, value, mask, causal=causal, block_size=0)


def assert_equal_to_plain(inputs, mask, *, causal=False, **options):
    # A masked query has no meaning if attention is causal.
    counted = np.random.default_rng(1).normal(size=inputs[0].shape) * (mask[..., None, None] if causal else 1)

    def of(attend):
        def loss(*inputs):
            mixed = attend(*inputs) * counted
            return mixed.sum(), mixed

        (_, mixed), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
        return mixed, *gradients

    found = of(lambda *x: gpu_attention(*x, mask, causal=causal, calls=REFERENCE, **options))
    for left, right in zip(found, of(lambda *x: plain(*x, mask, causal)), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_masked_keys_anywhere(causal):
    inputs, mask = arrays(causal=causal)
    mask[1] = causal  # without `causal`, a row without any valid key, whose result is the mean of all values
    mask[2, 0] = False
    assert_equal_to_plain(inputs, jnp.asarray(mask), causal=causal)


def test_no_mask():
    assert_equal_to_plain(arrays()[0], None)


@pytest.mark.parametrize("causal", [False, True])
def test_valid_keys_that_come_first_stay_in_place(causal):
    inputs, mask = arrays(causal=causal)
    mask = -np.sort(-mask.astype(int)) > 0
    run = functools.partial(gpu_attention, causal=causal, calls=REFERENCE, valid_first=True)
    found, expected = jax.jit(run)(*inputs, jnp.asarray(mask)), plain(*inputs, mask, causal)
    np.testing.assert_allclose(found[mask] if causal else found, expected[mask] if causal else expected, atol=2e-5)
    assert "sort" not in str(jax.make_jaxpr(run)(*inputs, jnp.asarray(mask)))


def test_the_order_of_slots():
    valid = jnp.array([[False, True, True, False, True], [False] * 5, [True] * 5])
    order, place = valid_to_front(valid)
    assert order.tolist() == [[1, 2, 4, 0, 3], list(range(5)), list(range(5))]
    assert jnp.take_along_axis(order, place, axis=1).tolist() == [list(range(5))] * 3


@pytest.mark.parametrize("outer", ["map of gradients", "gradient of a map"])
def test_rows_mapped_over(outer):
    inputs, mask = arrays(rows=(2, BATCH))
    key = inputs[1][0]  # not mapped over

    def attend(query, value, mask):
        return gpu_attention(query, key, value, mask, causal=False, calls=REFERENCE)

    def loss(query, value, mask):
        return jnp.sin(attend(query, value, mask)).sum()

    def in_a_loop(query, value, mask):
        return jax.lax.map(lambda x: jax.grad(loss, (0, 1))(*x), (query, value, mask))

    mapped = {
        "map of gradients": jax.vmap(jax.grad(loss, (0, 1))),
        "gradient of a map": jax.grad(lambda *x: jax.vmap(loss)(*x).sum(), (0, 1)),
    }[outer]
    arguments = inputs[0], inputs[2], jnp.asarray(mask)
    for left, right in zip(jax.jit(mapped)(*arguments), jax.jit(in_a_loop)(*arguments), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
