import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, random_params, run
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

from sail_jax.errors import SailError
from sail_jax.models import transformer

BATCH, LENGTH, SOURCE, HEADS, GROUPS, WIDTH = 2, 7, 9, 6, 3, 8


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def triple(source=SOURCE):
    return (
        jnp.asarray(normal(BATCH, LENGTH, HEADS, WIDTH, seed=1)),
        jnp.asarray(normal(BATCH, source, GROUPS, WIDTH, seed=2)),
        jnp.asarray(normal(BATCH, source, GROUPS, WIDTH, seed=3)),
    )


def key_mask(source=SOURCE):
    return jnp.arange(source) < jnp.array([[source], [4]])


def torch_attention(query, key, value, mask):
    query, key, value = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in (query, key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=torch.tensor(np.asarray(mask)), enable_gqa=True
    )
    return mixed.transpose(1, 2).numpy()


@pytest.mark.parametrize("block_size", [0, 1, 3, 7, 100])
def test_attend_matches_torch(block_size):
    query, key, value = triple()
    ours = transformer.attend(query, key, value, key_mask(), block_size=block_size)
    np.testing.assert_allclose(ours, torch_attention(query, key, value, key_mask()[:, None, None]), atol=1e-6)


@pytest.mark.parametrize("block_size", [0, 3])
def test_causal_attend_matches_torch(block_size):
    query, key, value = triple(LENGTH)
    mask = key_mask(LENGTH)[:, None, None] & np.tril(np.ones((LENGTH, LENGTH), bool))
    ours = transformer.attend(query, key, value, key_mask(LENGTH), causal=True, block_size=block_size)
    np.testing.assert_allclose(ours, torch_attention(query, key, value, mask), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_give_the_same_gradients(causal):
    def loss(arrays, block_size):
        return jnp.sin(transformer.attend(*arrays, key_mask(LENGTH), causal=causal, block_size=block_size)).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    expected, blocked = gradient(triple(LENGTH), 0), gradient(triple(LENGTH), 3)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), blocked, expected)
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(expected))


def test_blocks_bound_the_memory_of_the_gradient():
    length, block = 1024, 64
    x = jax.ShapeDtypeStruct((1, length, 4, 8), jnp.float32)

    def peak(block_size):
        def loss(query, key, value):
            return transformer.attend(query, key, value, block_size=block_size).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(block) < peak(0) / 4


def test_a_query_without_keys_is_finite_in_value_and_gradient():
    query, key, value = triple()
    nothing = jnp.zeros((BATCH, SOURCE), bool)
    mixed = transformer.attend(query, key, value, nothing)
    means = np.repeat(value.mean(axis=1, keepdims=True), HEADS // GROUPS, axis=2)
    np.testing.assert_allclose(mixed, np.broadcast_to(means, mixed.shape), atol=1e-6)
    gradients = jax.grad(lambda arrays: transformer.attend(*arrays, nothing).sum())((query, key, value))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_rotation_matches_transformers():
    positions = np.array([[0, 1, 5, 2, 100, 7, 7], [3, 3, 900, 0, 1, 2, 40]], np.int32)
    query, key, _ = triple(LENGTH)
    inverse = 1.0 / (1000.0 ** (torch.arange(0, WIDTH, 2, dtype=torch.float) / WIDTH))
    angles = torch.tensor(positions)[..., None] * inverse
    cos, sin = (torch.cat([f(angles), f(angles)], -1) for f in (torch.cos, torch.sin))
    torch_query, torch_key = (torch.tensor(np.asarray(x)) for x in (query, key))
    theirs = apply_rotary_pos_emb(torch_query, torch_key, cos, sin, unsqueeze_dim=2)
    ours = transformer.rotary_angles(jnp.asarray(positions), WIDTH, 1000.0)
    for x, expected in zip((query, key), theirs, strict=True):
        np.testing.assert_allclose(transformer.rotate(x, ours), expected, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_matches_transformers(dtype):
    theirs = Qwen2RMSNorm(16, eps=1e-3)
    scale = normal(16, seed=4)
    theirs.weight.data = torch.tensor(scale).to(getattr(torch, dtype))
    x = torch.tensor(normal(5, 16)).to(getattr(torch, dtype))
    expected = theirs(x).detach().float().numpy()
    module = transformer.RMSNorm(1e-3, dtype)
    ours = module.apply({"params": {"scale": scale}}, jnp.asarray(x.float().numpy(), dtype))
    assert ours.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, atol=1e-6, rtol=1e-2 if dtype == "bfloat16" else 0)


def test_layer_norm_matches_torch_far_from_zero():
    x = normal(5, 16) + 1000
    ours, _ = transformer.LayerNorm(epsilon=1e-6).init_with_output(jax.random.key(0), x)
    theirs = torch.nn.functional.layer_norm(torch.tensor(x), (16,), eps=1e-6)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


class Tower(nn.Module):
    remat: str = "none"
    keep_layers: bool = False
    layers: int = 3

    @nn.compact
    def __call__(self, x, mask):
        block = transformer.Block(
            heads=4,
            kv_heads=2,
            head_dim=6,
            mlp_width=20,
            norm=transformer.RMSNorm,
            mlp=transformer.SwiGluMlp,
            norm_eps=1e-6,
            name="layers",
        )
        return transformer.scan_layers(
            block, x, mask, layers=self.layers, remat=self.remat, keep_layers=self.keep_layers
        )


def tower_inputs():
    return jnp.asarray(normal(BATCH, LENGTH, 16)), key_mask(LENGTH)


def test_scan_runs_the_layers_one_after_the_other():
    x, mask = tower_inputs()
    variables = random_params(Tower(), x, mask)
    y, kept = run(Tower(keep_layers=True), variables, x, mask)
    for layer in range(3):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer : layer + 1], variables)
        x, none = run(Tower(layers=1), one, x, mask)
        assert none is None
        np.testing.assert_allclose(kept[layer], x, atol=1e-5)
    np.testing.assert_array_equal(y, kept[-1])


def test_layers_start_apart_at_the_deviation_of_one_layer():
    variables = jax.jit(Tower().init)(jax.random.key(0), *tower_inputs())
    kernel = np.asarray(variables["params"]["layers"]["mlp"]["gate"]["kernel"])
    assert kernel.shape == (3, 16, 20)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    # LeCun: one over the root of the inputs of a layer, whatever the number of layers.
    np.testing.assert_allclose(kernel.std(axis=(1, 2)), 16**-0.5, rtol=0.15)


def tower_loss(remat):
    x, mask = tower_inputs()
    return lambda variables: jnp.sin(Tower(remat=remat).apply(variables, x, mask)[0]).sum()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_gives_the_same_gradients(remat):
    variables = random_params(Tower(), *tower_inputs())
    expected = jax.jit(jax.grad(tower_loss("none")))(variables)
    rematerialised = jax.jit(jax.grad(tower_loss(remat)))(variables)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), rematerialised, expected)


def test_remat_keeps_less_for_the_backward_pass():
    variables = random_params(Tower(), *tower_inputs())

    def kept(remat):
        residuals = jax.eval_shape(lambda v: jax.vjp(tower_loss(remat), v)[1], variables)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize("block_size", [0, 3])
def test_bfloat16_gradients_stay_close_to_float32(block_size):
    def loss(arrays):
        mixed = transformer.attend(*arrays, key_mask(), block_size=block_size)
        return jnp.sin(mixed.astype(jnp.float32)).sum()

    gradient = jax.jit(jax.grad(loss))
    expected = gradient(triple())
    half = gradient(tuple(jnp.asarray(array, jnp.bfloat16) for array in triple()))
    for ours, theirs in zip(half, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert_close(ours.astype(jnp.float32), theirs, tolerance=0.05)


def test_unknown_remat_is_refused():
    with pytest.raises(SailError, match="'some'; choose one of none, dots, full"):
        Tower(remat="some").init(jax.random.key(0), *tower_inputs())
