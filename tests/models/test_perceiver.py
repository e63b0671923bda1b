import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, parameter_count, paths, random_params, randomise, run, torch_parameter_count

from sail_jax.config.model import PerceiverConfig
from sail_jax.errors import SailError
from sail_jax.models.perceiver import Perceiver

CONFIG = PerceiverConfig(latents=5, width=24, layers=3, heads=4, mlp_width=40, max_frames=4)
BATCH, FRAMES, PATCHES, VIT_WIDTH = 3, 4, 6, 20
MASK = np.array([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
KINDS = ["joint", "latents"]


class Reference(torch.nn.Module):
    """The tower made of torch.nn.TransformerEncoderLayer, whose attention, norms and MLP are torch's own."""

    def __init__(self, config, vit_width):
        super().__init__()
        self.config = config
        self.latents = torch.nn.Parameter(torch.zeros(config.latents, config.width))
        self.times = torch.nn.Parameter(torch.zeros(config.max_frames, config.width))
        self.input = torch.nn.Linear(vit_width, config.width)
        layer = torch.nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.mlp_width,
            dropout=0.0,
            activation=functools.partial(torch.nn.functional.gelu, approximate="tanh"),
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        self.layers = torch.nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False).layers
        self.final_norm = torch.nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, patches, frame_mask):
        batch, _, count, _ = patches.shape
        tokens = (self.input(patches) + self.times[:, None]).flatten(1, 2)
        latents = self.latents.expand(batch, -1, -1)
        valid = torch.cat(
            [torch.ones(batch, self.config.latents, dtype=bool), frame_mask.repeat_interleave(count, 1)], 1
        )
        if self.config.attention == "joint":
            x = torch.cat([latents, tokens], 1)
            for layer in self.layers:
                x = layer(x, src_key_padding_mask=~valid)
            return self.final_norm(x[:, : self.config.latents])
        for layer in self.layers:
            query = layer.norm1(latents)
            source = torch.cat([query, layer.norm1(tokens)], 1)
            latents = latents + layer.self_attn(query, source, source, key_padding_mask=~valid)[0]
            latents = latents + layer.linear2(layer.activation(layer.linear1(layer.norm2(latents))))
        return self.final_norm(latents)


def to_ours(named, layers):
    """Torch's parameters (or their gradients) by our paths; torch packs query, key and value in one matrix."""

    def stack(name):
        return np.stack([named[f"layers.{layer}.{name}"].detach().numpy() for layer in range(layers)])

    def kernel(name):
        return stack(name).transpose(0, 2, 1)

    ours = {
        "latents": named["latents"].detach().numpy(),
        "temporal_embedding": named["times"].detach().numpy(),
        "input_projection/kernel": named["input.weight"].detach().numpy().T,
        "input_projection/bias": named["input.bias"].detach().numpy(),
        "final_norm/scale": named["final_norm.weight"].detach().numpy(),
        "final_norm/bias": named["final_norm.bias"].detach().numpy(),
    }
    for name, theirs in (("attention_norm", "norm1"), ("mlp_norm", "norm2")):
        ours |= {f"layers/{name}/scale": stack(f"{theirs}.weight"), f"layers/{name}/bias": stack(f"{theirs}.bias")}
    dense = (("attention/output", "self_attn.out_proj"), ("mlp/up", "linear1"), ("mlp/down", "linear2"))
    for name, theirs in dense:
        ours |= {f"layers/{name}/kernel": kernel(f"{theirs}.weight"), f"layers/{name}/bias": stack(f"{theirs}.bias")}
    kernels = np.split(kernel("self_attn.in_proj_weight"), 3, axis=2)
    biases = np.split(stack("self_attn.in_proj_bias"), 3, axis=1)
    for name, weight, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
        ours |= {f"layers/attention/{name}/kernel": weight, f"layers/attention/{name}/bias": bias}
    return ours


def reference_params(model, config):
    shapes = jax.eval_shape(Perceiver(config).init, jax.random.key(0), *flat(patches_of(), MASK))["params"]
    weights = to_ours(dict(model.named_parameters()), config.layers)
    assert {path: leaf.shape for path, leaf in paths(shapes).items()} == {p: w.shape for p, w in weights.items()}
    return jax.tree.unflatten(jax.tree.structure(shapes), [weights[path] for path in paths(shapes)])


def patches_of(seed=0):
    return np.random.default_rng(seed).normal(size=(BATCH, FRAMES, PATCHES, VIT_WIDTH)).astype(np.float32)


def flat(patches, mask):
    """Flattens frames [B, F, P, D] with a mask [B, F]: returns patches, frame slots, and the frames of items."""
    batch, frames = mask.shape
    frame_of = jnp.where(mask, np.arange(batch * frames).reshape(mask.shape), batch * frames)
    slots = jnp.tile(jnp.arange(frames), batch)
    return jnp.asarray(patches.reshape(-1, *patches.shape[2:])), slots, frame_of[None].astype(jnp.int32)


@pytest.fixture(scope="module")
def variables():
    return random_params(Perceiver(CONFIG), *flat(patches_of(), MASK))


def config_of(attention, **changes):
    return dataclasses.replace(CONFIG, attention=attention, **changes)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model, variables, patches, mask):
    """((loss, latents), (gradient of the parameters, gradient of the patches)), for a loss that tells latents apart."""

    def loss(params, patches):
        latents, _ = model.apply({"params": params}, *flat(patches, mask))
        return (latents * loss_weights()).sum(), latents

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], patches)


def loss_weights():
    return np.random.default_rng(1).normal(size=(BATCH, CONFIG.latents, CONFIG.width)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("attention", KINDS)
def test_matches_torch_in_value_and_gradients(attention):
    config = config_of(attention)
    model = randomise(Reference(config, VIT_WIDTH))
    theirs_in = torch.tensor(patches_of(), requires_grad=True)
    theirs = model(theirs_in, torch.tensor(MASK))
    (theirs * torch.tensor(loss_weights())).sum().backward()

    params = reference_params(model, config)
    (_, latents), gradients = loss_and_gradients(Perceiver(config), {"params": params}, patches_of(), MASK)
    assert_close(latents, theirs.detach())
    assert_close(gradients[1], theirs_in.grad, tolerance=1e-4)
    expected = to_ours({name: parameter.grad for name, parameter in model.named_parameters()}, config.layers)
    for path, gradient in paths(gradients[0]).items():
        # The gradient of the key bias is zero: softmax does not see what shifts all logits of a query alike.
        if path == "layers/attention/key/bias":
            np.testing.assert_allclose(gradient, expected[path], atol=1e-4)
        else:
            assert_close(gradient, expected[path], tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, 4])
@pytest.mark.parametrize("attention", KINDS)
def test_padding_frames_change_nothing(variables, attention, block):
    model = Perceiver(config_of(attention, attention_block=block))
    (_, latents), (_, gradient) = loss_and_gradients(model, variables, patches_of(), MASK)
    changed = np.where(MASK[..., None, None], patches_of(), 1e4 * patches_of(seed=1))
    np.testing.assert_array_equal(latents, loss_and_gradients(model, variables, changed, MASK)[0][1])
    assert (np.abs(gradient).max(axis=(2, 3)) > 0).tolist() == MASK.tolist()


@pytest.mark.parametrize("attention", KINDS)
def test_the_number_of_padding_frames_changes_nothing(variables, attention):
    model = Perceiver(config_of(attention))
    latents, out = run(model, variables, *flat(patches_of(), MASK))
    short, _ = run(model, variables, *flat(patches_of()[1:2, :2], MASK[1:2, :2]))
    np.testing.assert_allclose(latents[1], short[0], atol=1e-5)
    assert out.tokens.shape == (BATCH * FRAMES, PATCHES, CONFIG.width)


@pytest.mark.parametrize("attention", KINDS)
def test_an_item_without_frames_is_finite_and_leaves_the_others_alone(variables, attention):
    model = Perceiver(config_of(attention))
    none = MASK & np.array([[True], [False], [True]])
    (_, latents), _ = loss_and_gradients(model, variables, patches_of(), MASK)
    (_, without), gradients = loss_and_gradients(model, variables, patches_of(), none)
    np.testing.assert_array_equal(latents[::2], without[::2])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves([without, gradients]))


@pytest.mark.parametrize("attention", KINDS)
def test_frame_order_matters_through_temporal_positions_alone(variables, attention):
    model = Perceiver(config_of(attention))
    patches, every = patches_of(), np.ones_like(MASK)
    order = np.array([2, 0, 3, 1])
    timeless = {"params": variables["params"] | {"temporal_embedding": np.zeros((FRAMES, CONFIG.width), np.float32)}}
    latents, _ = run(model, timeless, *flat(patches, every))
    np.testing.assert_allclose(latents, run(model, timeless, *flat(patches[:, order], every))[0], atol=1e-5)
    latents, _ = run(model, variables, *flat(patches, every))
    shuffled, _ = run(model, variables, *flat(patches[:, order], every))
    assert np.abs(latents - shuffled).max() > 0.1


def test_the_kinds_of_attention_share_their_parameters_but_not_their_result(variables):
    latents = [run(Perceiver(config_of(kind)), variables, *flat(patches_of(), MASK))[0] for kind in KINDS]
    assert np.abs(latents[0] - latents[1]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "remat"), [("joint", "none"), ("latents", "none"), ("latents", "full")])
def test_blocks_of_queries_give_the_same_values_and_gradients(variables, attention, remat):
    blocked = Perceiver(config_of(attention, attention_block=4), remat=remat)
    results = [loss_and_gradients(m, variables, patches_of(), MASK) for m in (blocked, Perceiver(config_of(attention)))]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *results)


@pytest.mark.parametrize("attention", KINDS)
def test_bfloat16_stays_close_to_float32(variables, attention):
    expected, _ = run(Perceiver(config_of(attention)), variables, *flat(patches_of(), MASK))
    latents, _ = run(Perceiver(config_of(attention), dtype="bfloat16"), variables, *flat(patches_of(), MASK))
    assert latents.dtype == jnp.bfloat16
    assert_close(latents.astype(jnp.float32), expected, tolerance=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of("cross"), "'cross'; choose one of joint, latents"),
        (config_of("joint", max_frames=3), "4 frames; model.perceiver.max_frames allows 3"),
        (config_of("joint", heads=5), "model.perceiver.width is 24"),
    ],
)
def test_wrong_settings_are_refused(config, message):
    with pytest.raises(SailError, match=message):
        Perceiver(config).init(jax.random.key(0), *flat(patches_of(), MASK))


def test_full_size_has_the_parameters_of_torch():
    config = PerceiverConfig()
    patches = jax.ShapeDtypeStruct((16, 1024, 1024), jnp.float32)
    slots, frame_of = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((16,), (1, 2, 8)))
    count = parameter_count(Perceiver(config), patches, slots, frame_of)
    assert count == torch_parameter_count(lambda: Reference(config, 1024))
