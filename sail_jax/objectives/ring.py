"""Ring passes: devices keep their rows and rotate chunks of columns, to visit all pairs by blocks.

Axis letters: R rows and C columns of a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int32, Shaped

# Arrays by name; their leading axis counts rows or columns.
Rows = dict[str, Shaped[Array, "_ ..."]]


class Ring(NamedTuple):
    """The ring of devices over which the rows and the columns of a matrix are split.

    Attributes:
        mesh: the mesh.
        axes: mesh axes over which rows and columns are split.
        block: largest side of a block of the matrix.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    block: int

    @property
    def size(self) -> int:
        """The number of devices."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes]))

    def by_device(self, function: Callable, by_row: tuple[Any, ...], copied: Any) -> Any:
        """Runs a function on every device.

        Args:
            function: called as function(*by_row, copied).
            by_row: arrays that are split by rows over the devices, as are the results.
            copied: arrays that are replicated on all devices.
        """
        split = PartitionSpec(self.axes)
        specs = (*[split] * len(by_row), PartitionSpec())
        run = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=split, check_vma=False)
        return run(*by_row, copied)


class VisitCallbacks(NamedTuple):
    """The callbacks of a ring pass, which visits every block of the matrix once.

    The states are accumulators: `row_state` stays with its rows, `column_state` travels with its columns.

    Attributes:
        begin: columns -> the initial column_state of a chunk.
        tile: (rows, row_state, columns, column_state) of a block -> (row_state, column_state).
        end_columns: (columns, column_state, index of the chunk) -> the result of a chunk after its last block.
        end_rows: (rows, row_state, index of the block of rows) -> the result of these rows, shaped as `row_state`.
    """

    begin: Callable[[Rows], Rows]
    tile: Callable[[Rows, Rows, Rows, Rows], tuple[Rows, Rows]]
    end_columns: Callable[[Rows, Rows, Int32[Array, ""]], Rows] = lambda _, state, __: state
    end_rows: Callable[[Rows, Rows, Int32[Array, ""]], Rows] = lambda _, state, __: state


def rotate_columns(ring: Ring, rows: Rows, row_state: Rows, columns: Rows, visit: VisitCallbacks) -> tuple[Rows, Rows]:
    """Visits all blocks of rows and columns by rotating the columns once around the ring.

    Each chunk of columns ends on the device where it started. Runs on every device, inside `Ring.by_device`. Large
    arrays are updated one block at a time, so that the compiler updates them in place.

    Args:
        ring: the ring.
        rows: arrays of this device's rows, in blocks [n, R, ...].
        row_state: initial accumulators of the rows, [n, R, ...].
        columns: arrays of this device's columns, in chunks [m, C, ...].
        visit: the callbacks.

    Returns:
        The results of rows and columns, [n * R, ...] and [m * C, ...].
    """
    steps = [(i, (i + 1) % ring.size) for i in range(ring.size)]
    blocks, chunks = (len(jax.tree.leaves(part)[0]) for part in (rows, columns))

    def send(part: Rows) -> Rows:
        return part if ring.size == 1 else jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axes, steps), part)

    def one_chunk(row_state: Rows, chunk: tuple[jax.Array, Rows]) -> tuple[Rows, Rows]:
        number, columns = chunk

        def one_step(_: jax.Array, carry: tuple[Rows, Rows, Rows]) -> tuple[Rows, Rows, Rows]:
            row_state, columns, column_state = carry
            # Sent before they are needed, so that the transfer overlaps with the tiles of this step.
            next_columns = send(columns)

            def one_block(at: jax.Array, carry: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
                row_state, column_state = carry
                block_state, column_state = visit.tile(
                    take_block(rows, at), take_block(row_state, at), columns, column_state
                )
                return _put_block(row_state, at, block_state), column_state

            row_state, column_state = jax.lax.fori_loop(0, blocks, one_block, (row_state, column_state))
            return row_state, next_columns, send(column_state)

        carry = (row_state, columns, visit.begin(columns))
        row_state, columns, column_state = jax.lax.fori_loop(0, ring.size, one_step, carry)
        return row_state, visit.end_columns(columns, column_state, number)

    row_state, column_state = jax.lax.scan(one_chunk, row_state, (jnp.arange(chunks), columns))

    def end_block(at: jax.Array, row_state: Rows) -> Rows:
        return _put_block(row_state, at, visit.end_rows(take_block(rows, at), take_block(row_state, at), at))

    row_state = jax.lax.fori_loop(0, blocks, end_block, row_state)
    return tuple(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part) for part in (row_state, column_state))


def take_block(part: Rows, at: Int32[Array, ""]) -> Rows:
    """Returns block `at` of arrays that are split into blocks."""
    return jax.tree.map(lambda x: x[at], part)


def _put_block(part: Rows, at: jax.Array, block: Rows) -> Rows:
    return jax.tree.map(lambda x, new: x.at[at].set(new), part, block)


def split_into_blocks(part: Rows, most: int) -> Rows:
    """Splits arrays into blocks of the size of `block_side`: [n, ...] -> [n / size, size, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, block_side(len(x), most), *x.shape[1:]), part)


def block_side(rows: int, most: int) -> int:
    """Returns the largest divisor of `rows` that is at most `most`."""
    return next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)
