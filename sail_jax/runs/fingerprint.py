"""A short name for the parameters of a model."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(params: Any) -> str:
    """A short name for parameters that changes with any bit of their entries, and with their names, shapes and types.

    It is the same on all processes, devices and meshes: integers are added, so their order does not matter.
    """
    named, _ = jax.tree_util.tree_flatten_with_path(params)
    sums = jax.device_get(_sums([leaf for _, leaf in named]))
    digest = hashlib.blake2b(digest_size=8)
    for (path, leaf), of_leaf in zip(named, sums, strict=True):
        what = [jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype), of_leaf.tolist()]
        digest.update(json.dumps(what).encode())
    return digest.hexdigest()


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_sums_of_bits(leaf) for leaf in leaves]


def _sums_of_bits(leaf: jax.Array) -> jax.Array:
    """[2] uint32, two sums over all entries of a hash of the entry's bits and of its place."""
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    seeds = (0, 0x9E3779B9)
    return jnp.stack([jnp.sum(_mixed(bits ^ _mixed(place + np.uint32(seed))), dtype=jnp.uint32) for seed in seeds])


def _mixed(x: jax.Array) -> jax.Array:
    """Every bit of the result depends on all bits of a uint32: the end of MurmurHash3 (`fmix32`)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
