"""The fusion backbone: a Qwen2 or Qwen3 stack over the tokens of all modalities.

The source is arXiv 2510.12709, sec. 3.2.

Axis letters: B batch, N tokens, D width, T positions on the packed axis.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from sail_jax.config.model import LlmConfig
from sail_jax.errors import SailError
from sail_jax.models import transformer
from sail_jax.models.lora import adapter
from sail_jax.models.packing import Packing
from sail_jax.sharding.activations import look_up


class Llm(nn.Module):
    """An embedding table and a Transformer stack, without a language-model head.

    Attention is bidirectional unless `config.causal`.
    Matches transformers' Qwen2Model (`qkv_bias`, no `qk_norm`) and Qwen3Model (`qk_norm`, no `qkv_bias`).

    Attributes:
        config: sizes and variants.
        dtype: type of the computation.
        remat: "none", "dots" or "full", see `transformer.scan_layers`.
        keep_layers: whether `out` holds the outputs of all layers, which takes memory; for inspection.
    """

    config: LlmConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    keep_layers: bool = False

    def setup(self) -> None:
        """Builds the embedding table, the block and the final norm."""
        config = self.config
        if config.heads % config.kv_heads:
            raise SailError(
                f"model.llm.heads is {config.heads}, which model.llm.kv_heads, {config.kv_heads}, does not divide."
            )
        if config.head_dim % 2:
            raise SailError(f"model.llm.head_dim is {config.head_dim}; the rotary positions need an even width.")
        self.embedding = self.param(
            "embedding", transformer.EMBEDDING_INIT, (config.vocab_size, config.width), jnp.float32
        )
        self.layers = transformer.Block(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            mlp_width=config.mlp_width,
            norm=transformer.RMSNorm,
            mlp=transformer.SwiGluMlp,
            norm_eps=config.norm_eps,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            causal=config.causal,
            dtype=self.dtype,
        )
        self.final_norm = transformer.RMSNorm(config.norm_eps, self.dtype)

    def embed(self, tokens: Int32[Array, "B N"]) -> Float[Array, "B N D"]:
        """Looks tokens up in the embedding table.

        Args:
            tokens: ids below `config.vocab_size`; larger ids give NaN.

        Returns:
            Rows of the table, in `dtype`.
        """
        rows = look_up(self.embedding, tokens, self.dtype)
        if lora := adapter(self, "embedding"):
            rows += jnp.take(lora.a, tokens, axis=0, mode="fill").astype(self.dtype) @ lora.b.astype(self.dtype)
        return rows

    def __call__(
        self,
        embeddings: Float[Array, "B N D"] | Float[Array, "T D"],
        positions: Int32[Array, "B N"] | Int32[Array, " T"],
        mask: Bool[Array, "B N"] | None,
        packing: Packing | None = None,
    ) -> tuple[Float[Array, "B N D"] | Float[Array, "T D"], transformer.StackOutputs]:
        """Returns contextual embeddings of token sequences.

        Args:
            embeddings: embeddings of text tokens (from `embed`) and of the other modalities, as rows or packed.
            positions: rotary positions, as rows or packed.
            mask: False at positions that are not attended to; None if packed.
            packing: how the sequences are packed on a flat axis; None if they are rows.

        Returns:
            hidden: in `dtype`, after the final norm. Masked positions hold finite values without meaning.
            out: see `transformer.StackOutputs`.
        """
        config = self.config
        angles = transformer.rotary_angles(positions, config.head_dim, config.rope_theta)
        embeddings = embeddings.astype(self.dtype)
        packing = packing and packing.from_front()
        hidden, layers = transformer.scan_layers(
            self.layers,
            embeddings,
            mask,
            angles,
            packing,
            layers=config.layers,
            remat=self.remat,
            keep_layers=self.keep_layers,
        )
        return self.final_norm(hidden), transformer.StackOutputs(embeddings, layers)
