"""Layers that the towers share: attention, MLPs, norms, rotary positions, blocks, a scan over layers.

Axis letters: B batch, N tokens (queries), S tokens attended to, D width, H heads, G key and value heads, K head width,
T places on the packed axis, C of them for tokens that are attended to but not updated.

Parameters are float32; the computation is in a module's `dtype`, with norms, rotary positions and softmax in float32.
Kernels are [inputs, outputs], with heads merged into one axis, so that one table of paths defines their sharding.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Float32, Int32

from sail_jax.errors import SailError
from sail_jax.models.fused_attention import Keys, Queries, choose_kernel, keeps_itself
from sail_jax.models.gpu_attention import KEPT
from sail_jax.models.lora import adapter
from sail_jax.models.packing import Packing
from sail_jax.sharding.activations import split_rows

# Embeddings of tokens, as rows or packed.
Tokens = Float[Array, "B N D"] | Float[Array, "T D"]
# Cosines and sines of rotary positions.
Angles = tuple[Float32[Array, "*tokens 1 half"], Float32[Array, "*tokens 1 half"]]

# Finite, so that a row without any valid key averages all values instead of giving NaN; far below any logit, so that
# the weight of a masked key is exactly zero if the row has a valid key.
MASKED_LOGIT = -1e30

EMBEDDING_INIT = nn.initializers.normal(stddev=0.02)

# The fast variance, E[x^2] - E[x]^2, cancels badly on the outlier channels of trained towers.
LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)

# For their size, attention outputs are the costliest to recompute, so they are always kept.
_KEEP_ATTENTION = jax.checkpoint_policies.save_only_these_names(KEPT)
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _KEEP_ATTENTION
    ),
    "full": _KEEP_ATTENTION,
}

# LayerScale starts small, as in InternViT, so that a deep stack starts close to the identity.
LAYER_SCALE_INIT = nn.initializers.constant(0.1)


class Dense(nn.Module):
    """A linear map of the last axis, plus the output of its LoRA adapter if it has one.

    The other axes are merged first, which is 1.7 times as fast on CPU and equally fast elsewhere.
    """

    features: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch {self.features}"]:
        """Maps the last axis; the result is in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        rows = split_rows(x.astype(self.dtype).reshape(-1, x.shape[-1]))
        y = rows @ kernel.astype(self.dtype)
        if lora := adapter(self, "kernel"):
            y += (rows @ lora.a.astype(self.dtype)) @ lora.b.astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return split_rows(y).reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last axis; matches transformers' Qwen2RMSNorm and Aimv2RMSNorm."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Maps the last axis; the result is in `dtype`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return x.astype(self.dtype) * scale.astype(self.dtype)


class SwiGluMlp(nn.Module):
    """down(silu(gate(x)) * up(x)); matches transformers' Qwen2MLP and Aimv2MLP."""

    width: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Maps the last axis; the result is in `dtype`."""
        dense = functools.partial(Dense, use_bias=self.use_bias, dtype=self.dtype)
        inner = nn.silu(dense(self.width, name="gate")(x)) * dense(self.width, name="up")(x)
        return dense(x.shape[-1], name="down")(inner)


class GeluMlp(nn.Module):
    """down(gelu(up(x))), with or without the tanh approximation of GELU.

    Matches transformers' SiglipMLP; without the approximation, InternVLVisionMLP and the MLP of BERT.
    """

    width: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    approximate: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Maps the last axis; the result is in `dtype`."""
        dense = functools.partial(Dense, use_bias=self.use_bias, dtype=self.dtype)
        return dense(x.shape[-1], name="down")(nn.gelu(dense(self.width, name="up")(x), approximate=self.approximate))


ExactGeluMlp = functools.partial(GeluMlp, approximate=False)


def rotary_angles(positions: Int32[Array, "*tokens"], head_dim: int, theta: float) -> Angles:
    """Returns cosines and sines of the rotary position embedding.

    Matches transformers' Qwen2RotaryEmbedding.

    Args:
        positions: positions of the tokens.
        head_dim: K, even.
        theta: base of the frequencies.

    Returns:
        Cosines and sines of K / 2 angles, with an axis of size one for the heads.
    """
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "*tokens H K"], angles: Angles) -> Float[Array, "*tokens H K"]:
    """Rotates the pairs (x[i], x[i + K / 2]) of every head by the rotary angles.

    This is the "rotate_half" convention of Qwen and Llama.

    Args:
        x: heads of tokens.
        angles: cosines and sines from `rotary_angles`.

    Returns:
        Rotated heads in the type of `x`.
    """
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(
    query: Queries,
    key: Keys,
    value: Keys,
    key_mask: Bool[Array, "B S"] | None = None,
    *,
    causal: bool = False,
    block_size: int = 0,
    valid_first: bool = False,
) -> Queries:
    """Computes grouped-query scaled dot-product attention, with softmax in float32.

    It uses the fastest kernel of the device; see `fused_attention`.

    Args:
        query: the queries, H a multiple of G.
        key: the keys.
        value: the values.
        key_mask: True at keys that may be attended to; None for all keys.
        causal: whether query i sees only keys 0 to i.
        block_size: queries per block if no fused kernel is used. The blocks run one after the other and are recomputed
            in the backward pass, so that memory holds the weights of one block at a time. With 0, all queries run at
            once.
        valid_first: whether the valid keys of each row are known to come first, which saves a kernel from moving them.

    Returns:
        Mixed values, in the type of `value`. In a row without any valid key, a query gets the mean of all values. With
        `causal`, a query that sees no valid key gets a finite value without meaning.
    """
    plain = functools.partial(_attend_plainly, causal=causal, block_size=block_size)
    kernel = choose_kernel(plain, query, key, causal=causal, valid_first=valid_first)
    return kernel(query, key, value, key_mask)


def _attend_plainly(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None,
    *,
    causal: bool,
    block_size: int,
) -> jax.Array:
    batch, length, heads, width = query.shape
    if not 0 < block_size < length:
        return _attend_rows(query, key, value, key_mask, jnp.arange(length) if causal else None)
    blocks = -(-length // block_size)
    padded = jnp.pad(query, ((0, 0), (0, blocks * block_size - length), (0, 0), (0, 0)))
    padded = jnp.moveaxis(padded.reshape(batch, blocks, block_size, heads, width), 1, 0)
    rows = jnp.arange(blocks * block_size).reshape(blocks, block_size)

    @jax.checkpoint
    def attend_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _attend_rows(block[0], key, value, key_mask, block[1] if causal else None)

    mixed = jax.lax.map(attend_block, (padded, rows))
    return jnp.moveaxis(mixed, 0, 1).reshape(batch, -1, heads, width)[:, :length]


def _attend_rows(
    query: jax.Array, key: jax.Array, value: jax.Array, key_mask: jax.Array | None, rows: jax.Array | None
) -> jax.Array:
    """Computes attention of some queries; `rows` [N] are their indices if attention is causal, else None.

    The query heads that share a key head are merged with the axis of queries, so that both products are batched matrix
    products. This is 1.4 times as fast on CPU as an einsum over all axes, and equally fast elsewhere.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, -1, width).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    merged = grouped.reshape(batch, groups, -1, width)
    logits = jnp.einsum("bgmk,bgsk->bgms", merged, key, preferred_element_type=jnp.float32)
    logits *= width**-0.5
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, MASKED_LOGIT)
    if rows is not None:
        visible = jnp.arange(key.shape[2]) <= rows[:, None]
        logits = jnp.where(jnp.tile(visible, (heads // groups, 1)), logits, MASKED_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bgms,bgsk->bgmk", weights, value)
    return mixed.reshape(grouped.shape).transpose(0, 3, 1, 2, 4).reshape(query.shape)


class Attention(nn.Module):
    """Multi-head attention with its projections.

    Matches the attention of Qwen2, Qwen3, Aimv2 and Siglip in transformers.

    Attributes:
        heads: query heads H.
        kv_heads: key and value heads G.
        head_dim: K.
        qkv_bias: bias on query, key and value.
        output_bias: bias on the output projection.
        qk_norm: RMSNorm on every head of query and key, before the rotation.
        norm_eps: epsilon of these norms.
        causal: whether a token sees only itself and earlier tokens.
        block_size: see `attend`.
        dtype: type of the computation.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    causal: bool = False
    block_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        source: Float[Array, "B S D"] | Float[Array, "T D"],
        key_mask: Bool[Array, "B S"] | None = None,
        angles: Angles | None = None,
        packing: Packing | None = None,
    ) -> Tokens:
        """Lets the tokens `x` attend to the tokens `source`.

        Args:
            x: tokens that attend; packed only if `source` is packed.
            source: tokens that are attended to; `x` itself for self-attention.
            key_mask: True at the tokens of `source` that may be attended to; None for all.
            angles: rotary positions from `rotary_angles`, only for self-attention; None for none.
            packing: how `source` is packed, each row from its first slot on; a token sees only the tokens of its own
                sequence. None if it is not packed.

        Returns:
            Updates of `x`, in `dtype`.
        """
        query = self._heads(x, self.heads, "query", angles)
        key = self._heads(source, self.kv_heads, "key", angles)
        value = self._heads(source, self.kv_heads, "value", None)
        packed_queries = packing is not None and x.ndim == 2
        if packing is not None:
            key, value, key_mask = packing.to_rows(key), packing.to_rows(value), packing.filled
            query = packing.to_rows(query) if packed_queries else query
        how = {"causal": self.causal, "block_size": self.block_size, "valid_first": packing is not None}
        mixed = attend(query, key, value, key_mask, **how)
        mixed = packing.to_flat(mixed) if packed_queries else mixed
        mixed = mixed if keeps_itself(query, key, causal=self.causal) else checkpoint_name(mixed, KEPT)
        mixed = mixed.reshape(*x.shape[:-1], self.heads * self.head_dim)
        return Dense(x.shape[-1], self.output_bias, self.dtype, name="output")(mixed)

    def _heads(self, x: jax.Array, heads: int, name: str, angles: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        projected = Dense(heads * self.head_dim, self.qkv_bias, self.dtype, name=name)(x)
        projected = projected.reshape(*x.shape[:-1], heads, self.head_dim)
        if self.qk_norm and name != "value":
            projected = RMSNorm(self.norm_eps, self.dtype, name=f"{name}_norm")(projected)
        return projected if angles is None else rotate(projected, angles)


class Block(nn.Module):
    """A pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        mlp_width: inner width of the MLP.
        norm: `RMSNorm` or `LayerNorm`.
        mlp: `SwiGluMlp`, `GeluMlp` or `ExactGeluMlp`.
        norm_eps: epsilon of the norms.
        qkv_bias: bias on query, key and value.
        bias: bias on the attention output and in the MLP.
        qk_norm: RMSNorm on the heads of query and key.
        layer_scale: a learned scale per channel on the outputs of attention and MLP (LayerScale, arXiv 2103.17239).
        causal: whether a token sees only itself and earlier tokens.
        block_size: see `attend`.
        dtype: type of the computation.
    """

    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm: Any
    mlp: Any
    norm_eps: float
    qkv_bias: bool = False
    bias: bool = False
    qk_norm: bool = False
    layer_scale: bool = False
    causal: bool = False
    block_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        key_mask: Bool[Array, "B N"] | None = None,
        angles: Angles | None = None,
        packing: Packing | None = None,
        context: Float[Array, "C D"] | None = None,
    ) -> Tokens:
        """Updates the tokens.

        Args:
            x: the tokens.
            key_mask: True at the tokens that may be attended to; None for all.
            angles: rotary positions of `x`; None for none.
            packing: how `x`, or `x` and `context` together, are packed on one flat axis; None if they are not packed.
            context: packed tokens, C = T - B * N, that are attended to but not updated; they follow `x` in each group.
                None for none.

        Returns:
            The updated tokens, in `dtype`.
        """
        norm = self.norm(epsilon=self.norm_eps, dtype=self.dtype, name="attention_norm")
        normed = norm(x)
        source = normed if context is None else packing.join(normed, norm(context))
        attention = Attention(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            qkv_bias=self.qkv_bias,
            output_bias=self.bias,
            qk_norm=self.qk_norm,
            norm_eps=self.norm_eps,
            causal=self.causal,
            block_size=self.block_size,
            dtype=self.dtype,
            name="attention",
        )
        x = x + self._scaled(attention(normed, source, key_mask, angles, packing), "attention_scale")
        normed = self.norm(epsilon=self.norm_eps, dtype=self.dtype, name="mlp_norm")(x)
        return x + self._scaled(self.mlp(self.mlp_width, self.bias, self.dtype, name="mlp")(normed), "mlp_scale")

    def _scaled(self, update: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return update
        return update * self.param(name, LAYER_SCALE_INIT, update.shape[-1:], jnp.float32).astype(self.dtype)


class StackOutputs(NamedTuple):
    """The intermediates of a tower with a stack of blocks.

    Attributes:
        embedded: the input of the first block.
        layers: the outputs of all blocks, stacked; None without `keep_layers`.
    """

    embedded: Tokens
    layers: Float[Array, "layers ..."] | None = None


def scan_layers(
    block: nn.Module, x: Tokens, *arguments: Any, layers: int, remat: str, keep_layers: bool = False
) -> tuple[Tokens, Float[Array, "{layers} ..."] | None]:
    """Runs `layers` copies of a block one after the other, as one compiled loop.

    The parameters of the copies are stacked on a leading axis under the name of `block`; each copy is initialised
    separately.

    Args:
        block: a module that maps (x, *arguments) to the next x.
        x: the tokens, in the type that the block returns.
        *arguments: arrays or None, the same for every layer.
        layers: number of copies.
        remat: which activations to recompute in the backward pass. "none" keeps all of them, "dots" only the outputs of
            dense layers and of attention, "full" only those of attention.
        keep_layers: whether to return the output of every layer.

    Returns:
        The last output, and the outputs of all layers or None.

    Raises:
        SailError: if `remat` is unknown.
    """

    def step(block: nn.Module, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        x = block(x, *arguments)
        return x, (x if keep_layers else None)

    if remat != "none":
        if remat not in REMAT_POLICIES:
            raise SailError(f"model.remat is {remat!r}; choose one of {', '.join(['none', *REMAT_POLICIES])}.")
        # Inside a scan the compiler cannot merge the recomputation away, so the costly guard against it is off.
        step = nn.remat(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    scan = nn.scan(step, variable_axes={"params": 0, "lora": 0}, split_rngs={"params": True}, length=layers)
    return scan(block, x)


def split_width(width: int, heads: int, setting: str) -> int:
    """Returns the width of a head.

    Raises:
        SailError: if `heads` does not divide `width`; the message names the config group `setting`.
    """
    if width % heads:
        raise SailError(f"{setting}.width is {width}, which {setting}.heads, {heads}, does not divide.")
    return width // heads
