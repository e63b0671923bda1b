"""Bicubic interpolation as in PyTorch, which the published checkpoints were trained with.

`jax.image.resize` has neither PyTorch's kernel nor aligned corners, and it antialiases when it shrinks.

Axis letters: P positions of a grid, D width.
"""

import math

import numpy as np
from jaxtyping import Float, Float32

from sail_jax.errors import SailError


def bicubic_matrix(size_in: int, size_out: int, *, align_corners: bool) -> Float32[np.ndarray, "{size_out} {size_in}"]:
    """Returns the matrix that interpolates along one axis.

    Matches `torch.nn.functional.interpolate(mode="bicubic")` without antialiasing: Keys' kernel with a = -0.75, and
    repeated edges.

    Args:
        size_in: number of samples.
        size_out: number of interpolated samples.
        align_corners: whether to align the centres of the first and last samples, not their outer edges.
    """
    a = -0.75
    # The reference rounds positions to float32, which shifts those at the end of a long axis by 1e-4 of a sample.
    position = np.arange(size_out, dtype=np.float32)
    if align_corners:
        position *= np.float32((size_in - 1) / max(size_out - 1, 1))
    else:
        position = np.float32(size_in / size_out) * (position + np.float32(0.5)) - np.float32(0.5)
    matrix = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        sample = np.floor(position).astype(int) + tap
        x = np.abs(position - sample)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(matrix, (np.arange(size_out), np.clip(sample, 0, size_in - 1)), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def resize_grid(table: Float[np.ndarray, "P D"], side_out: int) -> Float[np.ndarray, "{side_out}**2 D"]:
    """Resizes a square grid of position embeddings.

    Matches `interpolate_pos_encoding` of transformers' vision towers.

    Args:
        table: a square grid, row by row.
        side_out: number of rows and columns of the new grid.

    Returns:
        float32, row by row; `table` itself if it already has `side_out` rows.

    Raises:
        SailError: if the number of positions is not a square.
    """
    side_in = math.isqrt(len(table))
    if side_in**2 != len(table):
        raise SailError(
            f"A table of {len(table)} positions is no square grid of patches, so it can't be resized to {side_out} x "
            f"{side_out}; leave out positions of class tokens."
        )
    if side_in == side_out:
        return table
    matrix = bicubic_matrix(side_in, side_out, align_corners=False)
    grid = table.astype(np.float32).reshape(side_in, side_in, -1)
    grid = np.einsum("oi,pj,ijd->opd", matrix, matrix, grid, optimize=True)
    return grid.reshape(side_out**2, -1)
