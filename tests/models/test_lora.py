"""Adapters against PEFT, merged against unmerged, and what may be adapted."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny
import torch
from parity import assert_close, copied_params, copy_weights, paths, random_params, randomise
from test_llm import QWEN2, forward, inputs, reference

from sail_jax import config as config_lib
from sail_jax.batch import TokenType
from sail_jax.config.training import LoraConfig
from sail_jax.convert import weight_map
from sail_jax.convert.weight_map import LINEAR, Row
from sail_jax.errors import SailError
from sail_jax.models.fusion import OmniEmbedder
from sail_jax.models.llm import Llm
from sail_jax.models.lora import init_lora, merge, scaled
from sail_jax.models.model import example_batch, init_params

# Every matrix there is.
ALL = LoraConfig(rank=3, alpha=4.5, targets=(r"kernel$", r"^llm/embedding$"), trained=())
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def peft_rows():
    names = {f"attention/{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()}
    names |= {f"mlp/{ours}": f"mlp.{theirs}" for ours, theirs in MLP.items()}
    rows = []
    for x in "AB":
        rows.append(Row(f"llm/embedding_{x.lower()}", f"embed_tokens.lora_embedding_{x}.default", LINEAR))
        for ours, theirs in names.items():
            row = f"llm/layers/{ours}/kernel_{x.lower()}", f"layers.{{}}.{theirs}.lora_{x}.default.weight"
            rows.append(Row(*row, LINEAR))
    return rows


def adapters_of(model, shapes, value=lambda parameter: parameter):
    """The adapters of a PEFT model, or their gradients, as a tree of ours."""
    named = {
        name.removeprefix("base_model.model."): value(p) for name, p in model.named_parameters() if "lora_" in name
    }
    return copy_weights(peft_rows(), named, shapes)


@pytest.mark.slow
def test_outputs_and_gradients_equal_those_of_peft():
    tokens, positions, mask = inputs(QWEN2)
    base = randomise(reference(QWEN2))
    ours = Llm(QWEN2)
    params = copied_params(
        ours, weight_map.qwen(QWEN2), base, jnp.zeros((*tokens.shape, QWEN2.width)), positions, mask
    )["params"]
    settings = peft.LoraConfig(
        r=ALL.rank, lora_alpha=ALL.alpha, target_modules=["embed_tokens", *ATTENTION.values(), *MLP.values()]
    )
    model = peft.get_peft_model(base, settings).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    weights = np.random.default_rng(2).normal(size=(*tokens.shape, QWEN2.width)).astype(np.float32) * mask[..., None]
    hidden = model(torch.tensor(tokens), torch.tensor(mask), torch.tensor(positions)).last_hidden_state
    (hidden * torch.tensor(weights)).sum().backward()

    shapes = jax.eval_shape(lambda: init_lora({"llm": params}, ALL, 0))
    lora = adapters_of(model, shapes)

    def loss(lora):
        hidden, _ = forward(ours, {"params": params, "lora": scaled(lora, ALL)["llm"]}, tokens, positions, mask)
        return jnp.sum(hidden * weights), hidden

    gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(lora)
    assert_close(outputs[mask], hidden.detach().numpy()[mask])
    expected = paths(adapters_of(model, shapes, lambda parameter: parameter.grad))
    for path, gradient in paths(gradients).items():
        assert_close(gradient, expected[path])


@pytest.fixture(scope="module")
def whole():
    """The tiny model with every tower, its parameters, and a batch that shows all of them something."""
    config = config_lib.build(tiny.experiment("unused")).model
    rng = np.random.default_rng(0)
    batch = example_batch(config, pairs=2, tokens=8)
    types = [TokenType.PROMPT, TokenType.AUDIO, *[TokenType.VISION] * 2, *[TokenType.TEXT] * 3, TokenType.PROMPT]
    batch = batch._replace(
        tokens=rng.integers(512, size=batch.tokens.shape).astype(np.int32),
        token_types=np.broadcast_to(np.array(types, np.int8), batch.tokens.shape),
        frames=rng.integers(256, size=batch.frames.shape).astype(np.uint8),
        clips=rng.integers(-9000, 9000, size=batch.clips.shape).astype(np.int16),
    )
    model = OmniEmbedder(config)
    params = random_params(model, batch)["params"]
    params["audio"]["input_norm"]["var"] = np.full(config.audio.mel_bins, 900.0, np.float32)  # no variance is negative
    return model, params, batch


@functools.partial(jax.jit, static_argnums=0)
def embed(model, params, lora, batch):
    """[B, S, D] of queries and targets."""
    (query, target), _ = model.apply({"params": params, "lora": lora}, batch)
    return jnp.concatenate([query[0][:, None], target[0]], axis=1)


@pytest.mark.slow
def test_merged_equals_unmerged_in_every_tower(whole):
    model, params, batch = whole
    rng = np.random.default_rng(3)
    lora = jax.tree.map(
        lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_lora(params, ALL, 0)),
    )
    kernels = [name for name in paths(params) if name.endswith(("kernel", "llm/embedding"))]
    assert len(paths(lora)) == 2 * len(kernels) > 60
    merged = merge(params, lora, ALL)
    name = "llm/layers/mlp/up/kernel"
    expected = paths(params)[name] + 1.5 * paths(lora)[f"{name}_a"] @ paths(lora)[f"{name}_b"]
    np.testing.assert_allclose(paths(merged)[name], expected, atol=1e-6)
    used = scaled(lora, ALL)
    assert_close(embed(model, merged, {}, batch), embed(model, params, used, batch))

    def only(tower):
        return {name: part if name == tower else jax.tree.map(np.zeros_like, part) for name, part in used.items()}

    plain = embed(model, params, only(""), batch)
    for tower in lora:
        assert np.abs(embed(model, params, only(tower), batch) - plain).max() > 1e-3, tower


@pytest.mark.slow
def test_fresh_adapters_change_nothing(whole):
    model, params, batch = whole
    fresh = embed(model, params, scaled(init_lora(params, ALL, 0), ALL), batch)
    # Equal but for the rounding of two programs.
    np.testing.assert_allclose(fresh, embed(model, params, {}, batch), atol=1e-6)


@pytest.mark.slow
def test_draws_are_those_of_peft_and_functions_of_seed_and_path(whole):
    _, params, _ = whole
    drawn, again, other = (paths(init_lora(params, ALL, seed)) for seed in (0, 0, 1))
    up = drawn["llm/layers/mlp/up/kernel_a"]
    assert up.shape == (2, 32, 3) and drawn["llm/layers/mlp/up/kernel_b"].shape == (2, 3, 48)
    assert 0.9 * 32**-0.5 < np.abs(up).max() <= 32**-0.5
    np.testing.assert_array_equal(up, again["llm/layers/mlp/up/kernel_a"])
    for same_shape in (other["llm/layers/mlp/up/kernel_a"], drawn["llm/layers/mlp/gate/kernel_a"], up[::-1]):
        assert np.abs(up - same_shape).max() > 0.1
    assert np.std(drawn["llm/embedding_b"]) > 0.5 and not np.any(drawn["llm/embedding_a"])
    assert not any(np.any(leaf) for name, leaf in drawn.items() if name.endswith("kernel_b"))


def test_full_size_has_as_many_as_peft_and_computes_in_bfloat16():
    config = config_lib.load(tiny.REPO / "configs" / "sail_1b5.py", ["lora.rank=16"])
    shapes = jax.eval_shape(lambda: init_params(config.model, 0))
    lora = jax.eval_shape(lambda: init_lora(shapes, config.lora, 0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(lora)) == 18_464_768  # of PEFT on Qwen2.5-1.5B
    hidden = jax.eval_shape(
        lambda params, lora, x: Llm(config.model.llm, jnp.bfloat16).apply(
            {"params": params["llm"], "lora": lora["llm"]}, x, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
        )[0],
        shapes,
        lora,
        jax.ShapeDtypeStruct((1, 4, 1536), jnp.bfloat16),
    )
    assert hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": (r"^llm/layers/mlp/",), "trained": (r"^llm/",)}, "trained trains themselves: llm/layers/mlp/"),
        ({"targets": (r"vit/layers/attention",)}, r"take no adapter: vit/layers/attention_norm/scale\. Only kernels"),
        ({"targets": (r"bias",)}, r"no adapter: audio/.* and \d+ more\."),
        ({"targets": (r"latents$",)}, "no adapter: perceiver/latents"),
        ({"targets": (r"position_embedding$",)}, "no adapter: vit/position_embedding"),
        ({"targets": (r"^llm/layer/.*query/kernel",)}, r"targets.*found in no.*llm/layers/attention/query/kernel"),
        ({"targets": (r"kernel(",)}, "targets: 'kernel\\(' is no regular expression"),
        ({"targets": ()}, "targets is empty"),
        ({"trained": (r"^percever/",)}, "trained.*found in no"),
    ],
)
def test_wrong_targets_are_named(whole, settings, message):
    with pytest.raises(SailError, match=message):
        init_lora(whole[1], LoraConfig(rank=2, **settings), 0)
