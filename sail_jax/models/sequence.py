"""From the items of a history to one vector, and from the places of a batch to its sequences (arXiv 2510.12709, sec. 3.3.5).

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
    """The mean of the unit vectors of the items that count; zeros where none does."""
    return masked_mean(normalize(vectors), mask)


class SequenceEncoder(nn.Module):
    """A bidirectional Transformer over the unit vectors of a history behind a special token, whose output is the vector.

    Positions count back from the latest item, so that a short history looks like the end of a long one.

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
            vectors: of the items, oldest first.
            mask: the items that count.

        Returns:
            The vectors of the histories; zeros where no item counts.

        Raises:
            SailError: on histories that are too long, or a width that the heads do not divide.
        """
        config, (batch, length, _) = self.config, vectors.shape
        if length > config.max_items:
            raise SailError(
                f"A history has {length} items; config.model.sequence.max_items allows {config.max_items}. Raise it before "
                "training, or lower `history`."
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
    """Turns the embeddings of a batch's places into those of its histories and their targets, where it has sequences.

    Attributes:
        config: how the items of a history are pooled.
        width: D.
        groups: G; nothing leaves its group.
        dtype: type of the computation.
    """

    config: SequenceConfig
    width: int
    groups: int = 1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the encoder, where there is one."""
        if self.config.pooling == "transformer":
            self.encoder = SequenceEncoder(self.config, self.width, self.dtype)

    def __call__(self, z: Embeddings, out: Outputs, members: Int32[Array, "B L1"] | None) -> tuple[Embeddings, Outputs]:
        """Pools what `members` point at.

        Args:
            z: of the first place of each row and of its others.
            out: what is in the layout of `z` is pooled; what else there is stays as it is.
            members: see `batch.Batch`; None leaves everything as it is.

        Returns:
            z: of histories, and of targets, one each.
            out: in that layout; a history has what a view asks for when one of its items has, and its parts are the means of theirs.
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
        """The vectors of histories, from those of their items, oldest first, and which of them count."""
        return self.encoder(vectors, mask) if self.config.pooling == "transformer" else mean_pool(vectors, mask)

    def _of_members(self, sides: BySide, members: jax.Array) -> jax.Array:
        """[V, B, 1 + L, ...]"""
        places = jnp.concatenate([sides[0][:, :, None], *sides[1:]], axis=2)
        return jax.vmap(lambda values: _take(values, members, self.groups))(places)


def _take(places: jax.Array, members: jax.Array, groups: int) -> jax.Array:
    """[B, S, ...] -> [B, 1 + L, ...]; the first place of the group where there is no member."""
    rows, sides = len(members) // groups, places.shape[1]
    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * sides
    index = members.reshape(groups, rows, -1)
    index = jnp.where(index == NO_MEMBER, 0, index + first)
    grouped = places.reshape(groups, rows * sides, *places.shape[2:])
    taken = jax.vmap(lambda of_group, at: of_group[at])(grouped, index)
    return taken.reshape(*members.shape, *places.shape[2:])
