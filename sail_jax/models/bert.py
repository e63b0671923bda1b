"""BERT, the text tower of the CLIP-like baseline of arXiv 2510.12709.

Axis letters: B batch, N tokens, D width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from sail_jax.config.model import BertConfig
from sail_jax.errors import SailError
from sail_jax.models import transformer
from sail_jax.sharding.activations import look_up


class Bert(nn.Module):
    """Encodes text tokens with a bidirectional Transformer, without a pooling head.

    All tokens are of the first token type.
    Matches transformers' BertModel (`add_pooling_layer=False`, `hidden_act="gelu"`).

    Attributes:
        config: sizes.
        dtype: type of the computation.
        remat: "none", "dots" or "full", see `transformer.scan_layers`.
        keep_layers: whether `out` holds the outputs of all layers, which takes memory; for inspection.
    """

    config: BertConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    keep_layers: bool = False

    @nn.compact
    def __call__(
        self, tokens: Int32[Array, "B N"], mask: Bool[Array, "B N"]
    ) -> tuple[Float[Array, "B N D"], transformer.StackOutputs]:
        """Returns contextual embeddings of text tokens.

        Args:
            tokens: ids below `config.vocab_size`; larger ids give NaN. N is at most `config.max_positions`; token n has
                position n, including padding.
            mask: False at padding, which is not attended to.

        Returns:
            hidden: in `dtype`. Masked positions hold finite values without meaning.
            out: see `transformer.StackOutputs`.

        Raises:
            SailError: if there are too many tokens, or the heads do not divide the width.
        """
        config = self.config
        embedded = self._embed(tokens)
        block = PostNormBlock(
            heads=config.heads,
            head_dim=transformer.split_width(config.width, config.heads, "model.bert"),
            mlp_width=config.mlp_width,
            norm_eps=config.norm_eps,
            dtype=self.dtype,
            name="layers",
        )
        hidden, layers = transformer.scan_layers(
            block, embedded, mask, layers=config.layers, remat=self.remat, keep_layers=self.keep_layers
        )
        return hidden, transformer.StackOutputs(embedded, layers)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        config, length = self.config, tokens.shape[1]
        if length > config.max_positions:
            raise SailError(
                f"A text has {length} tokens; model.bert.max_positions allows {config.max_positions}. Cut the text."
            )
        words = look_up(self._table("word_embedding", config.vocab_size), tokens, jnp.float32)
        positions = self._table("position_embedding", config.max_positions)[:length]
        first_type = self._table("type_embedding", config.token_types)[0]
        norm = transformer.LayerNorm(epsilon=config.norm_eps, dtype=self.dtype, name="embedding_norm")
        return norm(words + first_type + positions)

    def _table(self, name: str, rows: int) -> jax.Array:
        return self.param(name, transformer.EMBEDDING_INIT, (rows, self.config.width), jnp.float32)


class PostNormBlock(nn.Module):
    """A post-norm Transformer block: norm(x + attention(x)), then norm(x + mlp(x)).

    Matches transformers' BertLayer.

    Attributes:
        heads: number of attention heads.
        head_dim: width of a head.
        mlp_width: inner width of the MLP.
        norm_eps: epsilon of the norms.
        dtype: type of the computation.
    """

    heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B N D"]:
        """Updates the tokens `x`; `mask` is True at tokens that may be attended to."""
        norm = functools.partial(transformer.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
        attention = transformer.Attention(
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.head_dim,
            qkv_bias=True,
            output_bias=True,
            dtype=self.dtype,
            name="attention",
        )
        x = norm(name="attention_norm")(x + attention(x, x, mask))
        mlp = transformer.ExactGeluMlp(self.mlp_width, True, self.dtype, name="mlp")
        return norm(name="mlp_norm")(x + mlp(x))
