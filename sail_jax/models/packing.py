"""Sequences of different lengths on one flat axis, so that what works token by token does no work on padding.

Dense layers, norms and positions see the flat axis; attention alone sees the sequences, each in a row of its own, whose empty slots
are masked.

Axis letters: G groups (data-parallel shards), R sequences of a group, N slots of a sequence, T places of a group on the
flat axis, D width; RN, GR and GT are two of them as one axis.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped


@functools.partial(jax.tree_util.register_dataclass, data_fields=("place_of", "slot_of"), meta_fields=("length",))
@dataclasses.dataclass(frozen=True)
class Packing:
    """Where the tokens of sequences lie on a flat axis of G * T places; every token has one place.

    Attributes:
        place_of: place of each slot within its group; T where the slot is empty.
        slot_of: slot of each place within its group; R * N where the place is not used.
        length: N.
    """

    place_of: Int32[Array, "G RN"]
    slot_of: Int32[Array, "G T"]
    length: int

    @property
    def filled(self) -> Bool[Array, "GR N"]:
        """The slots that hold a token."""
        return (self.place_of < self.slot_of.shape[1]).reshape(-1, self.length)

    def to_rows(self, flat: Shaped[Array, " GT *token"]) -> Shaped[Array, "GR N *token"]:
        """Every sequence in a row of its own, zeros in empty slots."""
        rows = _move(flat.reshape(*self.slot_of.shape, *flat.shape[1:]), self.place_of, self.slot_of)
        return rows.reshape(-1, self.length, *flat.shape[1:])

    def to_flat(self, rows: Shaped[Array, "GR N *token"]) -> Shaped[Array, " GT *token"]:
        """All sequences on one flat axis, zeros in places that are not used."""
        flat = _move(rows.reshape(*self.place_of.shape, *rows.shape[2:]), self.slot_of, self.place_of)
        return flat.reshape(-1, *rows.shape[2:])

    def join(self, first: Shaped[Array, "*first D"], second: Shaped[Array, "*second D"]) -> Shaped[Array, "GT D"]:
        """Lays two packed axes behind each other within each group."""
        groups, width = len(self.slot_of), first.shape[-1]
        parts = [part.reshape(groups, -1, width) for part in (first, second)]
        return jnp.concatenate(parts, axis=1).reshape(-1, width)


def pack(mask: Bool[Array, "GR N"], room: int, groups: int) -> tuple[Packing, Bool[Array, " {groups}"]]:
    """Packs what a mask keeps, in its order.

    Args:
        mask: the slots that hold a token.
        room: T.
        groups: G.

    Returns:
        The packing, and for each group whether all of a group's tokens have a place.
    """
    kept = mask.reshape(groups, -1)
    count = jnp.cumsum(kept, axis=1, dtype=jnp.int32)
    place_of = jnp.where(kept, jnp.minimum(count - 1, room), room)
    return from_places(place_of, room, mask.shape[1]), count[:, -1] <= room


def from_places(place_of: Int32[Array, "G RN"], room: int, length: int) -> Packing:
    """The packing in which slots have given places, `room` for empty ones."""

    def invert(places: jax.Array) -> jax.Array:
        slots = jnp.arange(len(places), dtype=jnp.int32)
        return jnp.full(room, len(places), jnp.int32).at[places].set(slots, mode="drop")

    return Packing(place_of, jax.vmap(invert)(place_of), length)


@jax.custom_vjp
def _move(x: jax.Array, source: jax.Array, back: jax.Array) -> jax.Array:
    """[G, n, ...], [G, m] -> [G, m, ...] with zeros where a source is out of range; `back` is the way back, [G, n]."""
    return jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="fill", fill_value=0))(x, source)


def _move_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    # Every entry goes to one place at most, so the transposed map is the way back: a gather, not a sum by scattering.
    source, back = saved
    return _move(gradient, back, source), None, None


_move.defvjp(lambda x, source, back: (_move(x, source, back), (source, back)), _move_backward)
