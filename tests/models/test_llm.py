import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import (
    assert_close,
    copied_params,
    parameter_count,
    random_params,
    randomise,
    record,
    torch_parameter_count,
)
from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from sail_jax.config.model import LlmConfig
from sail_jax.convert import weight_map
from sail_jax.errors import SailError
from sail_jax.models.llm import Llm

QWEN2 = LlmConfig(
    vocab_size=97, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=48, rope_theta=1000.0, causal=True
)
QWEN3 = dataclasses.replace(QWEN2, head_dim=10, qkv_bias=False, qk_norm=True)
CONFIGS = {"qwen2": QWEN2, "qwen3": QWEN3}
BATCH, LENGTH = 3, 11


def reference(config):
    cls, config_cls = (Qwen3Model, Qwen3Config) if config.qk_norm else (Qwen2Model, Qwen2Config)
    return cls(
        config_cls(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_width,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_eps,
            attn_implementation="eager",
        )
    )


def inputs(config, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(config.vocab_size, size=(BATCH, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array([[LENGTH], [7], [4]])
    # Positions that are neither 0, 1, 2, ... nor the same in every row.
    positions = (np.arange(LENGTH) * 2 + np.array([[0], [5], [40]])).astype(np.int32)
    return tokens, positions, mask


@functools.partial(jax.jit, static_argnums=0)
def forward(model, variables, tokens, positions, mask):
    embeddings = model.apply(variables, tokens, method="embed")
    return model.apply(variables, embeddings, positions, mask)


def drawn(config, **fields):
    model = Llm(config, **fields)
    tokens, positions, mask = inputs(config)
    return model, random_params(model, jnp.zeros((*tokens.shape, config.width)), positions, mask)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", CONFIGS)
def test_matches_transformers_layer_by_layer(name, causal):
    config = dataclasses.replace(CONFIGS[name], causal=causal)
    tokens, positions, mask = inputs(config)
    model = randomise(reference(config))
    layers = record(model.layers)
    # The causal case goes through transformers' own masks, the bidirectional one needs an explicit bias.
    bias = np.where(mask[:, None, None, :], 0.0, np.finfo(np.float32).min) * np.ones((1, 1, LENGTH, 1))
    theirs_mask = torch.tensor(mask.astype(np.int64)) if causal else torch.tensor(bias, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), theirs_mask, torch.tensor(positions)).last_hidden_state.numpy()

    ours = Llm(config, keep_layers=True)
    variables = copied_params(
        ours, weight_map.qwen(config), model, jnp.zeros((*tokens.shape, config.width)), positions, mask
    )
    hidden, out = forward(ours, variables, tokens, positions, mask)
    assert_close(hidden[mask], theirs[mask])
    assert out.layers.shape == (config.layers, BATCH, LENGTH, config.width)
    for layer, expected in zip(out.layers, layers, strict=True):
        assert_close(layer[mask], expected[mask])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_padding_changes_nothing(causal):
    config = dataclasses.replace(QWEN2, causal=causal)
    model, variables = drawn(config)
    tokens, positions, mask = inputs(config)
    hidden, out = forward(model, variables, tokens, positions, mask)
    other, _ = forward(model, variables, np.where(mask, tokens, 5), np.where(mask, positions, 999), mask)
    np.testing.assert_array_equal(hidden[mask], other[mask])
    short, _ = forward(model, variables, tokens[1:2, :7], positions[1:2, :7], mask[1:2, :7])
    np.testing.assert_allclose(hidden[1, :7], short[0], atol=1e-5)
    assert out.layers is None


def test_no_valid_token_gives_finite_values_and_gradients():
    model, variables = drawn(QWEN2)
    tokens, positions, mask = inputs(QWEN2)
    loss_and_gradients = jax.jit(
        jax.value_and_grad(lambda v: forward(model, v, tokens, positions, np.zeros_like(mask))[0].sum())
    )
    value, gradients = loss_and_gradients(variables)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_bidirectional_sees_the_future_and_causal_does_not():
    tokens, positions, mask = inputs(QWEN2)
    changed = tokens.copy()
    changed[0, -1] = (changed[0, -1] + 1) % QWEN2.vocab_size
    for causal in (True, False):
        model, variables = drawn(dataclasses.replace(QWEN2, causal=causal))
        before = forward(model, variables, tokens, positions, mask)[0][0, :-1]
        after = forward(model, variables, changed, positions, mask)[0][0, :-1]
        assert np.array_equal(before, after) == causal


def test_bfloat16_stays_close_to_float32():
    tokens, positions, mask = inputs(QWEN3)
    model, variables = drawn(QWEN3)
    shapes = jax.eval_shape(
        Llm(QWEN3, dtype="bfloat16").init, jax.random.key(0), jnp.zeros((*tokens.shape, QWEN3.width)), positions, mask
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    expected, _ = forward(model, variables, tokens, positions, mask)
    hidden, _ = forward(Llm(QWEN3, dtype="bfloat16"), variables, tokens, positions, mask)
    assert hidden.dtype == jnp.bfloat16
    assert_close(hidden.astype(jnp.float32)[mask], expected[mask], tolerance=0.05)


def test_unknown_token_is_not_mistaken_for_another():
    model, variables = drawn(QWEN2)
    tokens = jnp.array([[QWEN2.vocab_size - 1, QWEN2.vocab_size]], jnp.int32)
    embeddings = model.apply(variables, tokens, method="embed")
    np.testing.assert_array_equal(embeddings[0, 0], variables["params"]["embedding"][-1])
    assert np.isnan(embeddings[0, 1]).all()


def test_heads_that_do_not_share_evenly_are_refused():
    with pytest.raises(SailError, match="kv_heads, 3"):
        drawn(dataclasses.replace(QWEN2, kv_heads=3))


@pytest.mark.parametrize("config", [LlmConfig(), LlmConfig(qkv_bias=False, qk_norm=True)], ids=["qwen2", "qwen3"])
def test_full_size_has_the_parameters_of_transformers(config):
    arguments = jnp.zeros((1, 4, config.width)), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    assert parameter_count(Llm(config), *arguments) == torch_parameter_count(lambda: reference(config))
