import dataclasses

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
    run,
    torch_parameter_count,
)
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    CLIPImageProcessorPil,
    InternVLVisionConfig,
    InternVLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from sail_jax.config.model import VitConfig
from sail_jax.convert import weight_map
from sail_jax.errors import SailError
from sail_jax.models.vit import Vit

AIMV2 = VitConfig(image_size=28, patch_size=7, width=32, layers=3, heads=4, mlp_width=40)
# 30 is no multiple of 7: the last two rows and columns of pixels are left out.
SIGLIP = dataclasses.replace(AIMV2, kind="siglip", image_size=30, norm_eps=1e-6)
INTERNVIT = dataclasses.replace(AIMV2, kind="internvit", norm_eps=1e-6)
CONFIGS = {"aimv2": AIMV2, "siglip": SIGLIP, "internvit": INTERNVIT}


def reference(config):
    sizes = {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "attn_implementation": "eager",
    }
    if config.kind == "aimv2":
        return Aimv2VisionModel(Aimv2VisionConfig(use_head=False, rms_norm_eps=config.norm_eps, **sizes))
    if config.kind == "siglip":
        return SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, layer_norm_eps=config.norm_eps, **sizes))
    return InternVLVisionModel(InternVLVisionConfig(attention_bias=True, layer_norm_eps=config.norm_eps, **sizes))


TABLES = {"aimv2": weight_map.aimv2, "siglip": weight_map.siglip, "internvit": weight_map.internvit}


def frames_of(config, count=3, seed=0):
    shape = (count, config.image_size, config.image_size, 3)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def normalised(frames, config):
    pixels = (frames.astype(np.float32) / 255 - np.float32(config.image_mean)) / np.float32(config.image_std)
    return torch.tensor(pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", CONFIGS)
def test_matches_transformers_layer_by_layer(kind):
    config = CONFIGS[kind]
    frames = frames_of(config)
    model = randomise(reference(config))
    blocks = model.encoder.layer if kind == "internvit" else model.encoder.layers
    embedded, layers = record([model.embeddings]), record(blocks)
    with torch.no_grad():
        theirs = model(normalised(frames, config)).last_hidden_state.numpy()
    if kind == "internvit":
        theirs = theirs[:, 1:]

    ours = Vit(config, keep_layers=True)
    patches, out = run(ours, copied_params(ours, TABLES[kind](config), model, frames), frames)
    assert patches.shape == (3, config.patches, config.width)
    assert_close(out.embedded, embedded[0])
    for layer, expected in zip(out.layers, layers, strict=True):
        assert_close(layer, expected)
    assert_close(patches, theirs)


def test_normalisation_matches_the_image_processor_of_transformers():
    # Pixels one per patch, and a projection that passes them through: what is left is the normalisation.
    config = dataclasses.replace(SIGLIP, image_size=4, patch_size=1, width=4, heads=2)
    frames = frames_of(config)
    processor = CLIPImageProcessorPil(
        do_resize=False, do_center_crop=False, image_mean=config.image_mean, image_std=config.image_std
    )
    theirs = processor(list(frames), input_data_format="channels_last", return_tensors="np")["pixel_values"]
    model = Vit(config)
    variables = random_params(model, frames)
    params = variables["params"] | {
        "patch_embedding": {"kernel": np.eye(3, 4, dtype=np.float32), "bias": np.zeros(4, np.float32)},
        "position_embedding": np.zeros((16, 4), np.float32),
    }
    embedded = run(model, {"params": params}, frames)[1].embedded
    assert_close(embedded[..., :3].reshape(3, 4, 4, 3), theirs.transpose(0, 2, 3, 1), tolerance=1e-6)


def test_frames_do_not_see_each_other():
    frames = frames_of(AIMV2)
    model = Vit(AIMV2)
    variables = random_params(model, frames)
    together, out = run(model, variables, frames)
    alone, _ = run(model, variables, frames[1:2])
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)
    assert out.layers is None


@pytest.mark.parametrize("kind", CONFIGS)
def test_bfloat16_stays_close_to_float32(kind):
    frames = frames_of(CONFIGS[kind])
    variables = random_params(Vit(CONFIGS[kind]), frames)
    expected, _ = run(Vit(CONFIGS[kind]), variables, frames)
    patches, _ = run(Vit(CONFIGS[kind], dtype="bfloat16"), variables, frames)
    assert patches.dtype == jnp.bfloat16
    assert_close(patches.astype(jnp.float32), expected, tolerance=0.05)


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (dataclasses.replace(AIMV2, kind="clip"), (1, 28, 28, 3), "'clip'; choose one of aimv2, siglip, internvit"),
        (dataclasses.replace(AIMV2, heads=5), (1, 28, 28, 3), "model.vit.width is 32"),
        (AIMV2, (1, 28, 35, 3), "28 x 28 pixels"),
    ],
)
def test_wrong_settings_are_refused(config, shape, message):
    with pytest.raises(SailError, match=message):
        Vit(config).init(jax.random.key(0), jnp.zeros(shape, jnp.uint8))


@pytest.mark.parametrize(
    "config",
    [
        VitConfig(),
        VitConfig(
            kind="siglip", image_size=384, width=1152, layers=27, heads=16, mlp_width=4304, norm_eps=1e-6
        ),  # so400m-patch14-384, whose images are no multiple of its patches
        VitConfig(kind="internvit", heads=16, mlp_width=4096, norm_eps=1e-6),  # 300M-448px
    ],
    ids=["aimv2", "siglip", "internvit"],
)
def test_full_size_has_the_parameters_of_transformers(config):
    frames = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    assert parameter_count(Vit(config), frames) == torch_parameter_count(lambda: reference(config))
