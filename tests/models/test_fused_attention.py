"""The fused kernels equal the plain form of attention, in values and gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import shapes_of

from sail_jax.config.training import MeshConfig
from sail_jax.models import fused_attention, transformer
from sail_jax.models.gpu_attention import gpu_attention
from sail_jax.sharding import activations as placement
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training.flops import executed_flops

KERNELS = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmax"}


def arrays(batch, queries, keys, heads, groups, width, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((batch, queries, heads, width), (batch, keys, groups, width), (batch, keys, groups, width))
    mask = rng.random((batch, keys)) < 0.7
    mask[:, 0] = True
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes], jnp.asarray(mask)


def value_and_gradients(attend, inputs, mask):
    weights = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    def loss(query, key, value):
        mixed = attend(query, key, value, mask).astype(jnp.float32)
        return (mixed * weights).sum(), mixed

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)


def assert_equal_to_plain(kernel, inputs, mask, causal):
    plain = functools.partial(transformer._attend_plainly, causal=causal, block_size=0)
    (_, mixed), gradients = value_and_gradients(functools.partial(kernel, causal=causal), inputs, mask)
    (_, expected), expected_gradients = value_and_gradients(plain, inputs, mask)
    for left, right in zip([mixed, *gradients], [expected, *expected_gradients], strict=True):
        left, right = (np.asarray(x, np.float32) for x in (left, right))
        np.testing.assert_allclose(left, right, atol=0.02 * np.abs(right).max())  # two digits of bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_the_tpu_kernel_equals_the_plain_form(causal):
    inputs, mask = arrays(2, 150, 150 if causal else 300, 4, 2, 16)
    mask = mask if causal else mask.at[1].set(False)  # an item without a valid key
    assert_equal_to_plain(functools.partial(fused_attention.tpu_attention, interpret=True), inputs, mask, causal)


@pytest.mark.slow
def test_the_tpu_kernel_equals_the_plain_form_in_several_blocks():
    expected = {100: 128, 129: 256, 768: 768, 769: 512, 8208: 640, 2048: 512}
    assert {length: fused_attention._block(length) for length in expected} == expected
    inputs, mask = arrays(1, 800, 1100, 2, 1, 16)  # 2 blocks of 512 and 2 of 640
    assert_equal_to_plain(functools.partial(fused_attention.tpu_attention, interpret=True), inputs, mask, False)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_the_gpu_kernel_equals_the_plain_form(causal):
    inputs, mask = arrays(2, 150, 150, 4, 2, 64)
    assert_equal_to_plain(gpu_attention, inputs, mask, causal)


def test_the_choice_falls_when_a_program_is_lowered():
    """On this machine the plain form runs; lowered for a TPU or a GPU, the same program holds the kernel."""
    inputs, mask = arrays(1, 256, 2048, 2, 1, 64)
    for platform, kernel in KERNELS.items():
        assert (
            kernel in jax.jit(transformer.attend).trace(*inputs, mask).lower(lowering_platforms=(platform,)).as_text()
        )
    on_cpu = jax.jit(transformer.attend).lower(*inputs, mask)
    assert "custom_call" not in on_cpu.as_text()
    np.testing.assert_array_equal(
        transformer.attend(*inputs, mask), transformer._attend_plainly(*inputs, mask, causal=False, block_size=0)
    )
    single = [x.astype(jnp.float32) for x in inputs]
    for platform in KERNELS:
        float32 = jax.jit(transformer.attend).trace(*single, mask).lower(lowering_platforms=(platform,))
        assert "custom_call" not in float32.as_text()


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_kernel_runs_once_forwards_and_once_backwards(remat, platform):
    """Two products of queries and keys forwards, and five backwards, with the scores computed once more."""
    (batch, length, heads, width), policy = (2, 2048, 2, 64), transformer.REMAT_POLICIES[remat]
    inputs = [jax.ShapeDtypeStruct((batch, length, heads, width), jnp.bfloat16)] * 3

    def loss(*arrays):
        return jax.checkpoint(transformer.attend, policy=policy)(*arrays).astype(jnp.float32).sum()

    product = 2 * batch * heads * length * length * width
    step = jax.value_and_grad(loss, (0, 1, 2))
    assert executed_flops(step, *inputs, platform=platform) == pytest.approx(7 * product, rel=1e-3)
    # The gradient of the queries, once for each of 4 blocks of keys, is held for one item at a time.
    largest = max(map(math.prod, shapes_of(jax.make_jaxpr(step)(*inputs).jaxpr, "pallas_call")))
    assert largest == 4 * length * heads * width


@pytest.mark.slow
def test_it_lowers_within_a_mesh_and_mapped_over_data():
    """As in a step, and as in the backward pass of micro-batches."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    inputs, mask = arrays(8, 256, 2048, 4, 2, 64)
    with jax.set_mesh(mesh):
        plain = jax.jit(transformer.attend).trace(*inputs, mask)
        odd = jax.jit(transformer.attend).trace(*(x[:3] for x in (*inputs, mask)))  # rows that do not split evenly
        grouped = [x.reshape(2, 4, *x.shape[1:]) for x in (*inputs, mask)]

        def attend_all(*arrays):
            with placement.mapped_over("data"):
                return jax.vmap(jax.grad(lambda *x: transformer.attend(*x).sum()), spmd_axis_name="data")(*arrays)

        mapped = jax.jit(attend_all).trace(*grouped)
        for platform, kernel in KERNELS.items():
            for traced in (plain, odd, mapped):
                assert kernel in traced.lower(lowering_platforms=(platform,)).as_text()
