"""All pairs of rows and columns that are split over devices, block by block: rows stay, chunks of columns go around a ring.

Axis letters: R and C rows and columns of a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int32, Shaped

# Arrays by name, whose leading axis is that of rows or of columns.
Rows = dict[str, Shaped[Array, "_ ..."]]


class Ring(NamedTuple):
    """The devices among which the columns of a matrix go around, while its rows stay.

    Attributes:
        mesh: the mesh.
        axes: those of its axes over which rows and columns are split.
        block: greatest side of a block of the matrix.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    block: int

    @property
    def size(self) -> int:
        """Devices."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes]))

    def by_device(self, function: Callable, by_row: tuple[Any, ...], copied: Any) -> Any:
        """Runs a function of (*by_row, copied) on every device: arrays split by rows, and arrays that all devices have alike."""
        split = PartitionSpec(self.axes)
        specs = (*[split] * len(by_row), PartitionSpec())
        run = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=split, check_vma=False)
        return run(*by_row, copied)


class Visit(NamedTuple):
    """What happens when chunks of columns go around; rows, columns and what they collect are arrays by name.

    Attributes:
        begin: columns -> what a chunk has collected when it leaves.
        tile: (rows, row_state, columns, column_state) of a block -> (row_state, column_state).
        end_columns: (columns, column_state, their number among the chunks) -> the result of a chunk that is home again.
        end_rows: (rows, row_state, their number among the blocks) -> the same of rows; of the shapes of `row_state`.
    """

    begin: Callable[[Rows], Rows]
    tile: Callable[[Rows, Rows, Rows, Rows], tuple[Rows, Rows]]
    end_columns: Callable[[Rows, Rows, Int32[Array, ""]], Rows] = lambda _, state, __: state
    end_rows: Callable[[Rows, Rows, Int32[Array, ""]], Rows] = lambda _, state, __: state


def around(ring: Ring, rows: Rows, row_state: Rows, columns: Rows, visit: Visit) -> tuple[Rows, Rows]:
    """Shows all columns of all devices to the rows of each, and brings them home.

    Large arrays are only ever changed a block at a time, so that they stay where they are.

    Args:
        ring: the ring.
        rows: arrays of this device's rows, in blocks [n, R, ...].
        row_state: what the rows have collected before, [n, R, ...].
        columns: arrays of this device's columns, in chunks [m, C, ...].
        visit: what is done.

    Returns:
        What rows and columns have in the end, [n * R, ...] and [m * C, ...].
    """
    steps = [(i, (i + 1) % ring.size) for i in range(ring.size)]
    blocks, chunks = (len(jax.tree.leaves(part)[0]) for part in (rows, columns))

    def send(part: Rows) -> Rows:
        return part if ring.size == 1 else jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axes, steps), part)

    def one_chunk(row_state: Rows, chunk: tuple[jax.Array, Rows]) -> tuple[Rows, Rows]:
        number, columns = chunk

        def one_stop(_: jax.Array, carry: tuple[Rows, Rows, Rows]) -> tuple[Rows, Rows, Rows]:
            row_state, columns, column_state = carry
            coming = send(columns)  # needed at the next stop alone, so it travels while this one computes

            def one_block(at: jax.Array, carry: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
                row_state, column_state = carry
                here, column_state = visit.tile(at_block(rows, at), at_block(row_state, at), columns, column_state)
                return _put(row_state, at, here), column_state

            row_state, column_state = jax.lax.fori_loop(0, blocks, one_block, (row_state, column_state))
            return row_state, coming, send(column_state)

        carry = (row_state, columns, visit.begin(columns))
        row_state, columns, column_state = jax.lax.fori_loop(0, ring.size, one_stop, carry)
        return row_state, visit.end_columns(columns, column_state, number)

    row_state, column_state = jax.lax.scan(one_chunk, row_state, (jnp.arange(chunks), columns))

    def end_block(at: jax.Array, row_state: Rows) -> Rows:
        return _put(row_state, at, visit.end_rows(at_block(rows, at), at_block(row_state, at), at))

    row_state = jax.lax.fori_loop(0, blocks, end_block, row_state)
    return tuple(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part) for part in (row_state, column_state))


def at_block(part: Rows, at: Int32[Array, ""]) -> Rows:
    """The block of a number."""
    return jax.tree.map(lambda x: x[at], part)


def _put(part: Rows, at: jax.Array, block: Rows) -> Rows:
    return jax.tree.map(lambda x, new: x.at[at].set(new), part, block)


def blocked(part: Rows, most: int) -> Rows:
    """[n, ...] -> [n / size, size, ...] with the size of `block_side`."""
    return jax.tree.map(lambda x: x.reshape(-1, block_side(len(x), most), *x.shape[1:]), part)


def block_side(rows: int, most: int) -> int:
    """The largest size up to `most` that divides `rows`."""
    return next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)
