"""The audio tower against transformers' ClapAudioModelWithProjection, on tiny random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from parity import copied_params
from transformers import ClapAudioConfig, ClapAudioModelWithProjection
from transformers.models.clap.modeling_clap import ClapAudioSelfAttention

from sail_jax.config.model import ClapConfig
from sail_jax.convert import weight_map
from sail_jax.errors import SailError
from sail_jax.models.clap import ClapAudio
from sail_jax.models.log_mel import log_mel

# 16 x 16 patches with shifted windows, then 8 x 8 with shifted windows, then 4 x 4 in one window.
TINY = ClapConfig(
    sample_rate=16_000,
    clip_seconds=1.0,
    n_fft=256,
    hop=160,
    mel_bins=32,
    f_min=0.0,
    f_max=8000.0,
    spec_size=64,
    width=8,
    depths=(2, 2, 2),
    heads=(2, 2, 4),
    window=4,
    projection=24,
)
# For gradients, whose compilation takes seconds per block: 16 x 16 patches with shifted windows, then 8 x 8 without.
SMALL = dataclasses.replace(TINY, depths=(2, 1), heads=(2, 4))

# The layers that only clips longer than the model's input go through.
FUSION = ("patch_embed.fusion_model.", "patch_embed.mel_conv2d.")


def reference_config(config, **variant):
    return ClapAudioConfig(
        window_size=config.window,
        num_mel_bins=config.mel_bins,
        spec_size=config.spec_size,
        patch_size=config.patch_size,
        patch_stride=[config.patch_size, config.patch_size],
        hidden_size=config.width * 2 ** (len(config.depths) - 1),
        projection_dim=config.projection,
        depths=list(config.depths),
        num_attention_heads=list(config.heads),
        num_hidden_layers=len(config.depths),
        patch_embeds_hidden_size=config.width,
        mlp_ratio=config.mlp_ratio,
        **variant,
    )


def randomise(model):
    """Random values everywhere, so that no bias, scale or statistic can be left out unnoticed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = 1.0 if "relative_position" in name else value.shape[-1] ** -0.5 if value.ndim > 1 else 0.2
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(offset + spread * torch.randn_like(value))
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.copy_(-30 + 10 * torch.randn_like(norm.running_mean))
        norm.running_var.copy_(100 + 800 * torch.rand_like(norm.running_var))
    return model.eval()


def shrink_windows(model, config):
    """Shrinks windows that are larger than the map of their stage, on which the reference would fail."""
    for index, stage in enumerate(model.audio_model.audio_encoder.layers):
        side = config.spec_size // config.patch_size // 2**index
        for block in stage.blocks:
            if side < config.window:
                width = config.width * 2**index
                block.attention.self = ClapAudioSelfAttention(model.config, width, config.heads[index], side)


def import_weights(model, config):
    return copied_params(ClapAudio(config), weight_map.clap(config), model, make_clips(config))


def make_clips(config, count=3):
    rng = np.random.default_rng(1)
    loudness = np.linspace(0, 1, config.clip_samples) * 10.0 ** -np.arange(count)[:, None]
    return jnp.asarray(np.round(np.clip(rng.normal(size=loudness.shape) * 0.2 * loudness, -1, 1) * 32767), jnp.int16)


def assert_close(ours, theirs, tolerance=2e-5):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hop": 130, "window": 8},
        {"hop": 125, "clip_seconds": 0.9921875},
        {"depths": (2,), "heads": (2,)},
        {"mel_bins": 16, "hop": 80, "mlp_ratio": 2.0},
    ],
    ids=["stretched 101 frames", "window over map", "unstretched 128 frames", "one stage", "four chunks"],
)
def test_matches_the_reference_stage_by_stage(changes):
    config = dataclasses.replace(TINY, **changes)
    model = ClapAudioModelWithProjection(reference_config(config))
    shrink_windows(model, config)
    variables = import_weights(randomise(model), config)
    clips = make_clips(config)

    embedding, out = jax.jit(ClapAudio(config).apply)(variables, clips)
    with torch.no_grad():
        features = torch.from_numpy(np.array(out.log_mel))[:, None]
        expected = model(features, output_hidden_states=True)
        pooled = model.audio_model(features).pooler_output
    for ours, theirs in zip([out.patches, *out.stages], expected.hidden_states, strict=True):
        assert_close(ours, theirs.permute(0, 2, 3, 1))
    assert_close(out.pooled, pooled)
    assert_close(embedding, expected.audio_embeds)


def test_fused_checkpoints_need_no_fusion_layers_for_short_clips():
    config = dataclasses.replace(TINY, depths=(2,), heads=(2,), mel_scale="htk")
    model = randomise(ClapAudioModelWithProjection(reference_config(config, enable_fusion=True, aff_block_r=2)))
    names = model.state_dict().keys()
    assert all(any(part in name for name in names) for part in FUSION)
    clips = make_clips(config)
    embedding, out = jax.jit(ClapAudio(config).apply)(import_weights(model, config), clips)
    features = torch.from_numpy(np.array(out.log_mel))[:, None].expand(-1, 4, -1, -1)
    with torch.no_grad():
        short, long = (model(features, is_longer=torch.full((len(clips), 1), longer)) for longer in (False, True))
    assert_close(embedding, short.audio_embeds)
    assert not np.allclose(embedding, long.audio_embeds, rtol=0, atol=0.01)


@pytest.mark.slow
def test_gradients_match_the_reference():
    model = randomise(ClapAudioModelWithProjection(reference_config(SMALL)))
    variables = import_weights(model, SMALL)
    clips = make_clips(SMALL)
    weights = np.random.default_rng(2).normal(size=(len(clips), SMALL.projection)).astype(np.float32)
    features = log_mel(jnp.asarray(clips), SMALL)
    model.zero_grad()
    (model(torch.from_numpy(np.array(features))[:, None]).audio_embeds * torch.from_numpy(weights)).sum().backward()
    gradients = jax.jit(jax.grad(lambda v: jnp.sum(ClapAudio(SMALL).apply(v, clips)[0] * weights)))(variables)["params"]

    stage = model.audio_model.audio_encoder.layers[0]
    ours = gradients["stages_0"]["blocks_1"]
    assert_close(ours["attention"]["query"]["kernel"].T, stage.blocks[1].attention.self.query.weight.grad, 1e-4)
    assert_close(
        ours["attention"]["relative_position_bias"],
        stage.blocks[1].attention.self.relative_position_bias_table.grad,
        1e-4,
    )
    assert_close(gradients["input_norm"]["scale"], model.audio_model.audio_encoder.batch_norm.weight.grad, 1e-4)
    assert not np.any(gradients["input_norm"]["mean"]) and not np.any(gradients["input_norm"]["var"])


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients():
    config = dataclasses.replace(TINY, depths=(2,), heads=(2,))
    clips = make_clips(config)
    variables = import_weights(randomise(ClapAudioModelWithProjection(reference_config(config))), config)

    def run(remat):
        model = ClapAudio(config, remat=remat)
        grad = jax.jit(jax.value_and_grad(lambda v: jnp.sum(jnp.sin(model.apply(v, clips)[0]))))
        checkpoints = str(jax.make_jaxpr(grad)(variables)).count("policy=")
        return checkpoints, jax.tree.leaves(grad(variables))

    none, plain = run("none")
    # XLA fuses the programs differently, so they agree up to rounding. The gradient of the keys' bias is only rounding,
    # since the bias shifts all logits of a query equally.
    floor = 1e-7 * max(np.abs(leaf).max() for leaf in plain)
    assert none == 0
    for remat in ("dots", "full"):
        checkpoints, leaves = run(remat)
        assert checkpoints >= sum(config.depths)
        for ours, expected in zip(leaves, plain, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max() + floor)


@pytest.mark.slow
def test_from_scratch_is_finite_in_bfloat16_and_in_silence():
    config = dataclasses.replace(TINY, depths=(1,), heads=(2,))
    model = ClapAudio(config, dtype=jnp.bfloat16)
    clips = np.concatenate([make_clips(config), np.zeros((1, config.clip_samples), np.int16)])
    variables = jax.jit(model.init)(jax.random.key(0), clips)
    assert all(value.dtype == jnp.float32 for value in jax.tree.leaves(variables))
    # Blocks keep the scale of what they read, and patches of different frequencies differ in sounds of equal loudness.
    up = variables["params"]["stages_0"]["blocks_0"]["mlp"]["up"]["kernel"]
    assert 0.8 < np.std(up) * len(up) ** 0.5 < 1.2
    assert np.std(variables["params"]["input_norm"]["bias"]) > 0.3

    def loss(variables, clips):
        embedding, out = model.apply(variables, clips)
        return jnp.sum(embedding.astype(jnp.float32) ** 2), (embedding, out)

    grad = jax.jit(jax.grad(loss, has_aux=True))
    gradients, (embedding, out) = grad(variables, clips)
    assert embedding.dtype == jnp.bfloat16 and out.pooled.dtype == jnp.bfloat16
    assert out.log_mel.dtype == jnp.float32
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((embedding, gradients)))
    for path, gradient in traverse_util.flatten_dict(gradients["params"]).items():
        assert np.any(gradient) != (path[-1] in ("mean", "var")), path
    # The same sound as float32.
    same = grad(variables, clips.astype(np.float32) / 32768)[1][0].astype(jnp.float32)
    np.testing.assert_allclose(embedding.astype(jnp.float32), same, rtol=0, atol=0.02 * np.abs(same).max())


def test_full_size_has_the_reference_parameters():
    config = ClapConfig()
    clips = jax.ShapeDtypeStruct((2, config.clip_samples), jnp.int16)
    model = ClapAudio(config, dtype=jnp.bfloat16, remat="dots")
    (embedding, out), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), clips)
    assert embedding.shape == (2, 512)
    assert out.log_mel.shape == (2, 1001, 64)
    assert [stage.shape for stage in out.stages] == [
        (2, 32, 32, 192),
        (2, 16, 16, 384),
        (2, 8, 8, 768),
        (2, 8, 8, 768),
    ]
    with torch.device("meta"):
        reference = ClapAudioModelWithProjection(ClapAudioConfig())
    leaves = traverse_util.flatten_dict(variables["params"])
    statistics = {path for path in leaves if path[-1] in ("mean", "var")}
    assert statistics == {("input_norm", "mean"), ("input_norm", "var")}
    trained = sum(leaf.size for path, leaf in leaves.items() if path not in statistics)
    assert trained == sum(value.numel() for value in reference.parameters())
    # The reference's other buffers are the number of batches seen and the relative position indices: constants for us.
    running = [value for name, value in reference.named_buffers() if name.rpartition(".")[2].startswith("running_")]
    assert sum(leaves[path].size for path in statistics) == sum(value.numel() for value in running) == 2 * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 1)}, "one entry per stage"),
        ({"depths": (), "heads": ()}, "at least one"),
        ({"mel_bins": 30}, "spec_size 64 must be a multiple of mel_bins 30"),
        ({"hop": 100}, "161 frames.*room for 128.*raise hop to 126"),
        ({"patch_size": 3}, "spec_size 64 must be a multiple of patch_size 3 times 4"),
        ({"patch_size": 32}, "patch_size 32 times 4"),
        ({"window": 3}, "Stage 0 .* 16 x 16 patches.*window 3 don't"),
        ({"heads": (2, 3, 4)}, r"heads\[1\] is 3.*16"),
    ],
)
def test_impossible_sizes_are_named(changes, message):
    config = dataclasses.replace(TINY, **changes)
    with pytest.raises(SailError, match=message):
        ClapAudio(config).init(jax.random.key(0), make_clips(config))


def test_wrong_clips_and_remat_are_named():
    with pytest.raises(SailError, match=r"\[clips, 16000\], not \(3, 15999\)"):
        ClapAudio(TINY).init(jax.random.key(0), make_clips(TINY)[:, 1:])
    with pytest.raises(SailError, match="model.remat is 'some'"):
        ClapAudio(TINY, remat="some").init(jax.random.key(0), make_clips(TINY))
