"""Pools the item vectors of a history into one vector, and applies this to the sequences of a batch.

The source is arXiv 2510.12709, sec. 3.3.5.

Axis letters: B sequences, S places per sequence, L items of a history, L1 = 1 + L with the target, D width, V views, G
groups of sequences (data-parallel shards).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from sail_jax.batch import NO_MEMBER, BySide, Outputs, Parts
from sail_jax.config.model import SequenceConfig
from sail_jax.errors import SailError
from sail_jax.models import transformer
from sail_jax.models.media import Embeddings, masked_mean
from sail_jax.vectors.unit import normalize

_NORM_EPS = 1e-6


def mean_pool(vectors: Float[Array, "*batch L D"], mask: Bool[Array, "*batch L"]) -> Float32[Array, "*batch D"]:
    """Returns the mean of the unit vectors of the valid items; zeros if none is valid."""
    return masked_mean(normalize(vectors), mask)


class SequenceEncoder(nn.Module):
    """A bidirectional Transformer over a special token and the unit vectors of a history.

    The output at the special token is the vector of the history. Positions count back from the latest item, so that a
    short history has the positions of the end of a long one.

    Attributes:
        config: sizes.
        width: D.
        dtype: type of the computation.
    """

    config: SequenceConfig
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, vectors: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float32[Array, "B D"]:
        """Embeds histories.

        Args:
            vectors: the vectors of the items, oldest first.
            mask: True at valid items.

        Returns:
            The vectors of the histories; zeros if no item is valid.

        Raises:
            SailError: if a history is too long, or the heads do not divide the width.
        """
        config, (batch, length, _) = self.config, vectors.shape
        if length > config.max_items:
            raise SailError(
                f"A history has {length} items; config.model.sequence.max_items allows {config.max_items}. "
                "Raise it before training, or lower `history`."
            )
        init = transformer.EMBEDDING_INIT
        special = self.param("special_token", init, (self.width,), jnp.float32)
        positions = self.param("position_embedding", init, (config.max_items, self.width), jnp.float32)
        items = normalize(vectors) + positions[:length][::-1]
        tokens = jnp.concatenate([jnp.broadcast_to(special, (batch, 1, self.width)), items], axis=1)
        seen = jnp.concatenate([jnp.ones((batch, 1), bool), mask], axis=1)
        block = transformer.Block(
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=transformer.split_width(self.width, config.heads, "model.sequence"),
            mlp_width=config.mlp_width,
            norm=transformer.RMSNorm,
            mlp=transformer.SwiGluMlp,
            norm_eps=_NORM_EPS,
            dtype=self.dtype,
            name="layers",
        )
        hidden, _ = transformer.scan_layers(block, tokens.astype(self.dtype), seen, layers=config.layers, remat="none")
        pooled = transformer.RMSNorm(_NORM_EPS, name="norm")(hidden[:, 0])
        return jnp.where(mask.any(-1)[:, None], pooled, 0.0)


class SequenceHead(nn.Module):
    """Turns the item embeddings of a batch into embeddings of its histories and their targets.

    A batch without sequences is returned unchanged.

    Attributes:
        config: how to pool the items of a history.
        width: D.
        groups: G; all items of a sequence are in one group.
        dtype: type of the computation.
    """

    config: SequenceConfig
    width: int
    groups: int = 1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the encoder if the config has one."""
        if self.config.pooling == "transformer":
            self.encoder = SequenceEncoder(self.config, self.width, self.dtype)

    # Without axis letters in what it returns: a batch of sequences has K targets in each row, but one for each history.
    def __call__(self, z: Embeddings, out: Outputs, members: Int32[Array, "B L1"] | None) -> tuple[BySide, Outputs]:
        """Pools the items that `members` refers to.

        Args:
            z: embeddings of the first place of each row, and of the other places.
            out: outputs of the model. Fields in the layout of `z` are pooled; the others are returned unchanged.
            members: see `batch.Batch`; with None, `z` and `out` are returned unchanged.

        Returns:
            z: embeddings of the histories, and of their targets, one each.
            out: outputs in that layout. A history fills a view if one of its items does; its parts are the means of the
                items' parts.
        """
        if self.is_initializing() and self.config.pooling == "transformer":
            self.encoder(jnp.zeros((1, 1, self.width)), jnp.ones((1, 1), bool))
        if members is None:
            return z, out
        exists = (members != NO_MEMBER) & self._of_members(out.filled, members)
        vectors = self._of_members(z, members)
        history = vectors[:, :, 1:] if self.config.learn_history else jax.lax.stop_gradient(vectors[:, :, 1:])
        query = jnp.stack([self.pool(*of_view) for of_view in zip(history, exists[:, :, 1:], strict=True)])

        def pooled(part: BySide) -> BySide:
            values = self._of_members(part, members)
            return masked_mean(values[:, :, 1:], exists[:, :, 1:]), values[:, :, :1]

        filled = exists[:, :, 1:].any(-1), exists[:, :, :1]
        parts = Parts(*map(pooled, out.parts))
        return (query, vectors[:, :, :1]), out._replace(filled=filled, parts=parts)

    def pool(self, vectors: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float32[Array, "B D"]:
        """Returns the vectors of histories.

        `vectors` are those of the items, oldest first; `mask` is True at valid items.
        """
        return self.encoder(vectors, mask) if self.config.pooling == "transformer" else mean_pool(vectors, mask)

    def _of_members(self, sides: BySide, members: jax.Array) -> jax.Array:
        """Returns the values of the members of every sequence, [V, B, 1 + L, ...]."""
        places = jnp.concatenate([sides[0][:, :, None], *sides[1:]], axis=2)
        return jax.vmap(lambda values: _take(values, members, self.groups))(places)


def _take(places: jax.Array, members: jax.Array, groups: int) -> jax.Array:
    """Gathers members: [B, S, ...] -> [B, 1 + L, ...]; missing members get the first place of the group."""
    rows, sides = len(members) // groups, places.shape[1]
    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * sides
    index = members.reshape(groups, rows, -1)
    index = jnp.where(index == NO_MEMBER, 0, index + first)
    grouped = places.reshape(groups, rows * sides, *places.shape[2:])
    taken = jax.vmap(lambda of_group, at: of_group[at])(grouped, index)
    return taken.reshape(*members.shape, *places.shape[2:])
