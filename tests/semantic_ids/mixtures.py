"""Vectors from a mixture of Gaussians of unequal weights, and folders of them."""

import numpy as np

from sail_jax.vectors.embedding_set import EmbeddingInfo, part_path, write_info, write_part
from sail_jax.vectors.unit import unit_rows

INFO = EmbeddingInfo("runs/x", "0123abcd", 16, "float32", "VTA", ("title",), "Represent the item.")


def mixture(n, *, dims=16, centres=40, noise=0.35, seed=0):
    """Draws vectors of unit length, [n, dims] float32."""
    rng = np.random.default_rng(seed)
    at, weights = rng.normal(size=(centres, dims)), rng.dirichlet(np.ones(centres))
    return unit_rows(at[rng.choice(centres, n, p=weights)] + noise * rng.normal(size=(n, dims)))


def write_folder(folder, z, sizes=(), info=INFO):
    """Writes a complete folder of embeddings, in parts of `sizes` rows and the rest; ids are item-0, item-1, ..."""
    folder.mkdir(parents=True)
    ends = [*np.cumsum(sizes, dtype=int), len(z)]
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        ids = [f"item-{row}" for row in range(start, end)]
        write_part(part_path(folder, number), ids, z[start:end], info.dtype)
    write_info(folder, info)
    return folder
