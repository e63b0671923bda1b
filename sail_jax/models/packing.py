"""Packs sequences of different lengths on one flat axis, so that token-wise layers skip padding.

Dense layers, norms and positions work on the flat axis. Only attention works on rows, one per sequence, whose empty
slots are masked.

Axis letters: G groups (data-parallel shards), R sequences of a group, N slots of a sequence, T places of a group on the
flat axis, D width; RN, GR and GT are merged axes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped


@functools.partial(jax.tree_util.register_dataclass, data_fields=("place_of", "slot_of"), meta_fields=("length",))
@dataclasses.dataclass(frozen=True)
class Packing:
    """Maps the slots of sequences to places on a flat axis of G * T places, one per token.

    Attributes:
        place_of: place of each slot within its group; T if the slot is empty.
        slot_of: slot of each place within its group; R * N if the place is unused.
        length: N.
    """

    place_of: Int32[Array, "G RN"]
    slot_of: Int32[Array, "G T"]
    length: int

    @property
    def filled(self) -> Bool[Array, "GR N"]:
        """Whether each slot holds a token."""
        return (self.place_of < self.slot_of.shape[1]).reshape(-1, self.length)

    def to_rows(self, flat: Shaped[Array, " GT *token"]) -> Shaped[Array, "GR N *token"]:
        """Returns one row per sequence, with zeros in empty slots."""
        rows = move(flat.reshape(*self.slot_of.shape, *flat.shape[1:]), self.place_of, self.slot_of)
        return rows.reshape(-1, self.length, *flat.shape[1:])

    def to_flat(self, rows: Shaped[Array, "GR N *token"]) -> Shaped[Array, " GT *token"]:
        """Returns all sequences on one flat axis, with zeros in unused places."""
        flat = move(rows.reshape(*self.place_of.shape, *rows.shape[2:]), self.slot_of, self.place_of)
        return flat.reshape(-1, *rows.shape[2:])

    def from_front(self) -> "Packing":
        """Returns the packing whose rows hold the same tokens, but from their first slot on.

        Attention kernels can then skip the empty slots. Tokens are in the order of their places; empty slots come last,
        since their place, T, is beyond all others.
        """
        places = jnp.sort(self.place_of.reshape(-1, self.length), axis=1)
        return from_places(places.reshape(self.place_of.shape), self.slot_of.shape[1], self.length)

    def join(self, first: Shaped[Array, "*first D"], second: Shaped[Array, "*second D"]) -> Shaped[Array, "GT D"]:
        """Concatenates two packed axes within each group."""
        groups, width = len(self.slot_of), first.shape[-1]
        parts = [part.reshape(groups, -1, width) for part in (first, second)]
        return jnp.concatenate(parts, axis=1).reshape(-1, width)


def pack(mask: Bool[Array, "GR N"], room: int, groups: int) -> tuple[Packing, Bool[Array, " {groups}"]]:
    """Packs the tokens that a mask selects, in their order.

    Args:
        mask: True at slots that hold a token.
        room: T.
        groups: G.

    Returns:
        The packing, and for each group whether all of its tokens have a place.
    """
    kept = mask.reshape(groups, -1)
    count = jnp.cumsum(kept, axis=1, dtype=jnp.int32)
    place_of = jnp.where(kept, jnp.minimum(count - 1, room), room)
    return from_places(place_of, room, mask.shape[1]), count[:, -1] <= room


def from_places(place_of: Int32[Array, "G RN"], room: int, length: int) -> Packing:
    """Returns the packing with given places of slots; the place of an empty slot is `room`."""

    def invert(places: jax.Array) -> jax.Array:
        slots = jnp.arange(len(places), dtype=jnp.int32)
        return jnp.full(room, len(places), jnp.int32).at[places].set(slots, mode="drop")

    return Packing(place_of, jax.vmap(invert)(place_of), length)


@jax.custom_vjp
def move(
    x: Shaped[Array, "G n *token"], source: Int32[Array, "G m"], back: Int32[Array, "G n"]
) -> Shaped[Array, "G m *token"]:
    """Gathers [G, n, ...] by indices `source` [G, m] -> [G, m, ...], with zeros at indices out of range.

    `back` [G, n] is the inverse of `source`, which the backward pass uses.
    """
    return jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="fill", fill_value=0))(x, source)


def _move_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    # Every entry moves to at most one place, so the transpose is the inverse gather; no scatter-add is needed.
    source, back = saved
    return move(gradient, back, source), None, None


move.defvjp(lambda x, source, back: (move(x, source, back), (source, back)), _move_backward)
