"""Computes a short hash that identifies the parameters of a model."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(params: Any) -> str:
    """Returns a short hash of the bits, names, shapes and types of parameters.

    It is the same on all processes, devices and meshes: it sums integers, whose order does not matter.
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
    """Returns two sums, [2] uint32, of a hash of each entry's bits and position."""
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    seeds = (0, 0x9E3779B9)
    return jnp.stack([jnp.sum(_mixed(bits ^ _mixed(place + np.uint32(seed))), dtype=jnp.uint32) for seed in seeds])


def _mixed(x: jax.Array) -> jax.Array:
    """Mixes the bits of a uint32, so that each bit of the result depends on all: `fmix32` of MurmurHash3."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
