"""The tables that map our parameters to tensors of published checkpoints, for import and export.

A table is a list of `Row`s. `ours` is the path of a parameter within its tower, `theirs` the name of the tensor within
its module. "{}" in a name stands for the number of the layer; such a parameter holds all layers, stacked on a leading
axis. Rows that share a tensor hold parts of it, in the order of the table.

Sources of the names: transformers' modules (the first layout of every architecture, which export writes), and the
published repositories of AIMv2 (SAIL-ViT has its layout) and InternViT, whose code differs from transformers'.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sail_jax.config.model import BertConfig, ClapConfig, LlmConfig, VitConfig


@dataclasses.dataclass(frozen=True)
class Form:
    """How an array of ours and a tensor of theirs store the same numbers; the two maps are exact inverses.

    Attributes:
        to_ours: tensor -> array of ours.
        to_theirs: array of ours -> tensor.
        slices: an index into our array -> the index of the same part in the tensor; None if the whole tensor must be
            read.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]
    slices: Callable[[tuple[slice, ...]], tuple[slice, ...]] | None = None


def _conv(channels: int) -> Form:
    """A strided convolution [D, channels, p, p], for us a dense layer [p * p * channels, D] on patches."""

    def to_theirs(kernel: np.ndarray) -> np.ndarray:
        side = math.isqrt(kernel.shape[0] // channels)
        return kernel.reshape(side, side, channels, -1).transpose(3, 2, 0, 1)

    return Form(lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]), to_theirs)


SAME = Form(lambda w: w, lambda w: w, lambda index: index)
LINEAR = Form(lambda w: w.T, lambda w: w.T, lambda index: index[::-1])
RGB_CONV = _conv(3)
GREY_CONV = _conv(1)
LEADING_ONE = Form(lambda w: w[0], lambda w: w[None])  # [1, P, D]
LEADING_ONES = Form(lambda w: w[0, 0], lambda w: w[None, None])  # [1, 1, D]


@dataclasses.dataclass(frozen=True)
class Row:
    """The mapping of one parameter to a tensor.

    Attributes:
        ours: path of the parameter within its tower.
        theirs: name of the tensor, "{}" for the layer.
        form: how the two store the same numbers.
        axis: axis of the tensor along which the parts of rows that share it are joined.
        grid: whether it is a table of positions on a square grid, which is resized to another resolution.
    """

    ours: str
    theirs: str
    form: Form = SAME
    axis: int = 0
    grid: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds all layers."""
        return "{}" in self.theirs


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layout in which an architecture is published.

    Attributes:
        name: for messages.
        rows: the table, a function of the tower's config.
        prefixes: possible prefixes of the module in a checkpoint; the first one with the table's first tensor is used.
        constants: tensors in the PyTorch module's file that are not parameters, a function of the tower's config;
            export writes them.
    """

    name: str
    rows: Callable[[Any], list[Row]]
    prefixes: tuple[str, ...] = ("",)
    constants: Callable[[Any], Iterator[tuple[str, np.ndarray]]] = lambda config: iter(())


def _dense(ours: str, theirs: str, bias: bool) -> list[Row]:
    rows = [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR)]
    return rows + ([Row(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def _norm(ours: str, theirs: str, bias: bool) -> list[Row]:
    rows = [Row(f"{ours}/scale", f"{theirs}.weight")]
    return rows + ([Row(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def _attention(ours: str, theirs: Sequence[str], qkv_bias: bool, output_bias: bool) -> list[Row]:
    """Rows of query, key, value and output, with `theirs` in this order."""
    rows = [
        row
        for name, t in zip(("query", "key", "value"), theirs, strict=False)
        for row in _dense(f"{ours}/{name}", t, qkv_bias)
    ]
    return rows + _dense(f"{ours}/output", theirs[3], output_bias)


def qwen(config: LlmConfig) -> list[Row]:
    """The table of transformers' Qwen2Model and Qwen3Model."""
    layer = "layers.{}"
    rows = [Row("embedding", "embed_tokens.weight"), *_norm("final_norm", "norm", False)]
    rows += _norm("layers/attention_norm", f"{layer}.input_layernorm", False)
    rows += _norm("layers/mlp_norm", f"{layer}.post_attention_layernorm", False)
    names = [f"{layer}.self_attn.{name}_proj" for name in "qkvo"]
    rows += _attention("layers/attention", names, config.qkv_bias, False)
    if config.qk_norm:
        rows += _norm("layers/attention/query_norm", f"{layer}.self_attn.q_norm", False)
        rows += _norm("layers/attention/key_norm", f"{layer}.self_attn.k_norm", False)
    return rows + [
        r for name in ("gate", "up", "down") for r in _dense(f"layers/mlp/{name}", f"{layer}.mlp.{name}_proj", False)
    ]


def aimv2(config: VitConfig) -> list[Row]:
    """transformers' Aimv2VisionModel."""
    layer = "encoder.layers.{}"
    rows = [
        Row("patch_embedding/kernel", "embeddings.patch_embed.weight", RGB_CONV),
        Row("patch_embedding/bias", "embeddings.patch_embed.bias"),
        Row("position_embedding", "embeddings.position_embedding.weight", grid=True),
    ]
    rows += _norm("patch_norm", "embeddings.rms_norm", False) + _norm("final_norm", "rms_norm", False)
    rows += _norm("layers/attention_norm", f"{layer}.rms_norm1", False) + _norm(
        "layers/mlp_norm", f"{layer}.rms_norm2", False
    )
    names = [f"{layer}.attention.{name}_proj" for name in ("q", "k", "v", "out")]
    rows += _attention("layers/attention", names, False, False)
    return rows + [
        r for name in ("gate", "up", "down") for r in _dense(f"layers/mlp/{name}", f"{layer}.ffn.{name}_proj", False)
    ]


def aimv2_original(config: VitConfig) -> list[Row]:
    """The table of the published AIMv2 and of SAIL-ViT in SAIL-VL: query, key and value in one tensor."""
    block = "trunk.blocks.{}"
    rows = [
        Row("patch_embedding/kernel", "preprocessor.patchifier.proj.weight", RGB_CONV),
        Row("patch_embedding/bias", "preprocessor.patchifier.proj.bias"),
        Row("position_embedding", "preprocessor.pos_embed", LEADING_ONE, grid=True),
    ]
    rows += _norm("patch_norm", "preprocessor.patchifier.norm", False) + _norm(
        "final_norm", "trunk.post_trunk_norm", False
    )
    rows += _norm("layers/attention_norm", f"{block}.norm_1", False) + _norm(
        "layers/mlp_norm", f"{block}.norm_2", False
    )
    rows += _attention("layers/attention", [f"{block}.attn.qkv"] * 3 + [f"{block}.attn.proj"], False, False)
    names = (("gate", "fc1"), ("up", "fc3"), ("down", "fc2"))
    return rows + [
        row for ours, theirs in names for row in _dense(f"layers/mlp/{ours}", f"{block}.mlp.{theirs}", False)
    ]


def siglip(config: VitConfig) -> list[Row]:
    """The table of transformers' SiglipVisionModel, of SigLIP and of SigLIP 2 at a fixed resolution."""
    layer = "encoder.layers.{}"
    rows = [
        Row("patch_embedding/kernel", "embeddings.patch_embedding.weight", RGB_CONV),
        Row("patch_embedding/bias", "embeddings.patch_embedding.bias"),
        Row("position_embedding", "embeddings.position_embedding.weight", grid=True),
    ]
    rows += _norm("final_norm", "post_layernorm", True)
    rows += _norm("layers/attention_norm", f"{layer}.layer_norm1", True) + _norm(
        "layers/mlp_norm", f"{layer}.layer_norm2", True
    )
    names = [f"{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    rows += _attention("layers/attention", names, True, True)
    return (
        rows + _dense("layers/mlp/up", f"{layer}.mlp.fc1", True) + _dense("layers/mlp/down", f"{layer}.mlp.fc2", True)
    )


def internvit(config: VitConfig) -> list[Row]:
    """The table of transformers' InternVLVisionModel.

    The class token's position is the first row of the table of positions.
    """
    layer = "encoder.layer.{}"
    rows = [
        Row("patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight", RGB_CONV),
        Row("patch_embedding/bias", "embeddings.patch_embeddings.projection.bias"),
        *_class_and_positions("embeddings.cls_token", "embeddings.position_embeddings"),
    ]
    rows += _internvit_layers(layer, norms=("layernorm_before", "layernorm_after"), scales=("lambda_1", "lambda_2"))
    names = [f"{layer}.attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "projection_layer")]
    return rows + _attention("layers/attention", names, True, True)


def internvit_original(config: VitConfig) -> list[Row]:
    """The table of the published InternViT repositories: query, key and value in one tensor."""
    layer = "encoder.layers.{}"
    rows = [
        Row("patch_embedding/kernel", "embeddings.patch_embedding.weight", RGB_CONV),
        Row("patch_embedding/bias", "embeddings.patch_embedding.bias"),
        *_class_and_positions("embeddings.class_embedding", "embeddings.position_embedding"),
    ]
    rows += _internvit_layers(layer, norms=("norm1", "norm2"), scales=("ls1", "ls2"))
    return rows + _attention("layers/attention", [f"{layer}.attn.qkv"] * 3 + [f"{layer}.attn.proj"], True, True)


def _class_and_positions(token: str, positions: str) -> list[Row]:
    return [
        Row("class_token", token, LEADING_ONES),
        Row("class_position", positions, LEADING_ONES, axis=1),
        Row("position_embedding", positions, LEADING_ONE, axis=1, grid=True),
    ]


def _internvit_layers(layer: str, norms: tuple[str, str], scales: tuple[str, str]) -> list[Row]:
    rows = _norm("layers/attention_norm", f"{layer}.{norms[0]}", True) + _norm(
        "layers/mlp_norm", f"{layer}.{norms[1]}", True
    )
    rows += [Row("layers/attention_scale", f"{layer}.{scales[0]}"), Row("layers/mlp_scale", f"{layer}.{scales[1]}")]
    return (
        rows + _dense("layers/mlp/up", f"{layer}.mlp.fc1", True) + _dense("layers/mlp/down", f"{layer}.mlp.fc2", True)
    )


def bert(config: BertConfig) -> list[Row]:
    """The table of transformers' BertModel without its pooler."""
    layer = "encoder.layer.{}"
    rows = [
        Row("word_embedding", "embeddings.word_embeddings.weight"),
        Row("position_embedding", "embeddings.position_embeddings.weight"),
        Row("type_embedding", "embeddings.token_type_embeddings.weight"),
        *_norm("embedding_norm", "embeddings.LayerNorm", True),
    ]
    names = [f"{layer}.attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    rows += _attention("layers/attention", names, True, True)
    rows += _norm("layers/attention_norm", f"{layer}.attention.output.LayerNorm", True)
    rows += _dense("layers/mlp/up", f"{layer}.intermediate.dense", True)
    return (
        rows
        + _dense("layers/mlp/down", f"{layer}.output.dense", True)
        + _norm("layers/mlp_norm", f"{layer}.output.LayerNorm", True)
    )


def clap(config: ClapConfig) -> list[Row]:
    """The table of transformers' ClapAudioModelWithProjection; a fused checkpoint has extra tensors."""
    encoder = "audio_model.audio_encoder"
    rows = [
        Row("patch_embed/kernel", f"{encoder}.patch_embed.proj.weight", GREY_CONV),
        Row("patch_embed/bias", f"{encoder}.patch_embed.proj.bias"),
        Row("input_norm/mean", f"{encoder}.batch_norm.running_mean"),
        Row("input_norm/var", f"{encoder}.batch_norm.running_var"),
        *_norm("input_norm", f"{encoder}.batch_norm", True),
        *_norm("patch_norm", f"{encoder}.patch_embed.norm", True),
        *_norm("norm", f"{encoder}.norm", True),
        *_dense("projection/up", "audio_projection.linear1", True),
        *_dense("projection/down", "audio_projection.linear2", True),
    ]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            rows += _clap_block(f"stages_{stage}/blocks_{block}", f"{encoder}.layers.{stage}.blocks.{block}")
        if stage < len(config.depths) - 1:
            rows += _dense(f"stages_{stage}/merge", f"{encoder}.layers.{stage}.downsample.reduction", False)
            rows += _norm(f"stages_{stage}/merge_norm", f"{encoder}.layers.{stage}.downsample.norm", True)
    return rows


def _clap_block(ours: str, theirs: str) -> list[Row]:
    names = [f"{theirs}.attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    return [
        *_attention(f"{ours}/attention", names, True, True),
        Row(f"{ours}/attention/relative_position_bias", f"{theirs}.attention.self.relative_position_bias_table"),
        *_norm(f"{ours}/attention_norm", f"{theirs}.layernorm_before", True),
        *_norm(f"{ours}/mlp_norm", f"{theirs}.layernorm_after", True),
        *_dense(f"{ours}/mlp/up", f"{theirs}.intermediate.dense", True),
        *_dense(f"{ours}/mlp/down", f"{theirs}.output.dense", True),
    ]


def perceiver() -> list[Row]:
    """The table of the exported model's Visual Perceiver."""
    layer = "layers.{}"
    rows = [Row("latents", "latents"), Row("temporal_embedding", "temporal_embedding")]
    rows += _dense("input_projection", "input_projection", True) + _norm("final_norm", "final_norm", True)
    rows += _norm("layers/attention_norm", f"{layer}.attention_norm", True)
    rows += _norm("layers/mlp_norm", f"{layer}.mlp_norm", True)
    names = [f"{layer}.attention.{name}" for name in ("query", "key", "value", "output")]
    rows += _attention("layers/attention", names, True, True)
    return (
        rows + _dense("layers/mlp/up", f"{layer}.mlp.up", True) + _dense("layers/mlp/down", f"{layer}.mlp.down", True)
    )


def adapter() -> list[Row]:
    """The table of an adapter of the exported model: one dense layer."""
    return [Row("kernel", "weight", LINEAR), Row("bias", "bias")]


# Parts that only our model has: exported models have them, under the same names, but published checkpoints do not.
OWN_PARTS: Mapping[str, Callable[[], list[Row]]] = {
    "perceiver": perceiver,
    "vision_adapter": adapter,
    "audio_adapter": adapter,
}
