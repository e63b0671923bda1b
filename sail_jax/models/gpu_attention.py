"""Flash attention of cuDNN on NVIDIA GPUs, without a matrix of masks in memory.

cuDNN masks keys by the number of valid keys in each row, so a row's valid keys must come first. XLA runs cuDNN where a
program calls `__cudnn$fmhaSoftmax`. `jax.nn.dot_product_attention(implementation="cudnn")` makes the same calls, but
only where cuDNN is installed and the host's backend is a GPU, its statistics of the softmax cannot be kept by
`jax.checkpoint`, and a `jax.vmap` of it breaks.

Axis letters: B batch, N queries, S keys, H heads, G key and value heads, K head width.
"""

import functools
import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Float32, Int32

from sail_jax.models.packing import move

# The name of attention outputs for `jax.checkpoint`; see `transformer.REMAT_POLICIES`.
KEPT = "attention"
# What cuDNN supports on all GPUs since Ampere.
MAX_WIDTH = 128
_WIDTH_STEP = 8
# Prefix of the names of cuDNN's attention calls in a compiled program.
CALL = "__cudnn$fmha"


class Calls(NamedTuple):
    """Attention of rows whose valid keys come first, and its gradient.

    Attributes:
        forward: (scale, causal, query, key, value, *lengths) -> (mixed values, [B, H, N] statistics of the softmax).
        backward: (scale, causal, query, key, value, mixed, statistics, gradient of mixed, *lengths) -> gradients of
            query, key and value.
    """

    forward: Callable[..., tuple[Float[Array, "B N H K"], Float32[Array, "B H N"]]]
    backward: Callable[..., tuple[Float[Array, "B N H K"], Float[Array, "B S G K"], Float[Array, "B S G K"]]]


def gpu_attention(
    query: Float[Array, "B N H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    key_mask: Bool[Array, "B S"] | None,
    *,
    causal: bool,
    valid_first: bool = False,
    calls: Calls | None = None,
) -> Float[Array, "B N H K"]:
    """Runs the flash attention of cuDNN; see `transformer.attend` for the arguments.

    Args:
        query: in bfloat16 or float16, with a head width up to `MAX_WIDTH`.
        key: the keys; as many as queries if `causal`.
        value: the values.
        key_mask: True at keys that may be attended to; None for all keys.
        causal: whether query i sees only keys 0 to i.
        valid_first: whether the valid keys of each row are known to come first; otherwise they are moved there.
        calls: replaces cuDNN, in tests.
    """
    width = query.shape[-1]
    # Zeros change neither the products of queries and keys nor the other columns of the values.
    query, key, value = (_widen(x) for x in (query, key, value))
    attend = functools.partial(_attend, calls or CUDNN, width**-0.5, causal)
    if key_mask is None:
        return attend(query, key, value, None)[..., :width]
    # Without any valid key, the result is the mean of all values, as in the plain form: zero queries weigh all keys
    # equally.
    seen = key_mask.any(axis=1)
    query = jnp.where(seen[:, None, None, None], query, 0)
    valid = key_mask | ~seen[:, None]
    lengths = valid.sum(axis=1, dtype=jnp.int32)
    if valid_first:
        return attend(query, key, value, lengths)[..., :width]
    # Without positions, attention does not depend on the order of the keys; with `causal`, only on that of valid ones,
    # for queries that are valid.
    order, place = valid_to_front(valid)
    # The gradients of other keys are zero; cuDNN does not say what it writes there.
    key, value = (move(jnp.where(valid[:, :, None, None], x, 0), order, place) for x in (key, value))
    if not causal:
        return attend(query, key, value, lengths)[..., :width]
    return move(attend(move(query, order, place), key, value, lengths), place, order)[..., :width]


def valid_to_front(valid: Bool[Array, "B S"]) -> tuple[Int32[Array, "B S"], Int32[Array, "B S"]]:
    """Returns the order of slots with the valid ones first, and the place of each slot in that order."""
    invalid = valid.sum(axis=1, keepdims=True) + jnp.cumsum(~valid, axis=1)
    place = (jnp.where(valid, jnp.cumsum(valid, axis=1), invalid) - 1).astype(jnp.int32)
    return jnp.argsort(place, axis=1).astype(jnp.int32), place


def _widen(x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * 3 + [(0, -x.shape[-1] % _WIDTH_STEP)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    calls: Calls,
    scale: float,
    causal: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
) -> jax.Array:
    return _attend_forward(calls, scale, causal, query, key, value, lengths)[0]


def _attend_forward(
    calls: Calls,
    scale: float,
    causal: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    run = _merging_rows(functools.partial(calls.forward, scale, causal))
    mixed, statistics = run(query, key, value, *_given(lengths))
    # Both are kept, so that the backward pass does not run the forward kernel again.
    mixed, statistics = checkpoint_name(mixed, KEPT), checkpoint_name(statistics, KEPT)
    return mixed, (query, key, value, mixed, statistics, lengths)


def _attend_backward(
    calls: Calls, scale: float, causal: bool, saved: tuple, gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    *arrays, lengths = saved
    run = _merging_rows(functools.partial(calls.backward, scale, causal))
    return *run(*arrays, gradient, *_given(lengths)), None


_attend.defvjp(_attend_forward, _attend_backward)


def _given(lengths: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if lengths is None else (lengths,)


def _merging_rows(call: Callable) -> Callable:
    """Makes a function of arrays [B, ...] run once under `jax.vmap`, on the merged axis of mapped rows."""
    run = jax.custom_batching.custom_vmap(call)

    @run.def_vmap
    def run_merged(size: int, is_mapped: list[bool], *arrays: jax.Array) -> tuple[tuple[jax.Array, ...], tuple]:
        # Within `jax.shard_map`, a device holds fewer than `size`.
        size = next(len(x) for x, mapped in zip(arrays, is_mapped, strict=True) if mapped)
        mapped = [
            x if mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, mapped in zip(arrays, is_mapped, strict=True)
        ]
        results = run(*(x.reshape(-1, *x.shape[2:]) for x in mapped))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in results), (True,) * len(results)

    return run


def _cudnn_forward(
    scale: float, causal: bool, query: jax.Array, key: jax.Array, value: jax.Array, *lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    batch, length, heads, width = query.shape
    results = [
        jax.ShapeDtypeStruct((batch, heads, length, width), query.dtype),
        jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
    ]
    products = {"bmm1": ((3, 3), (0, 2), (0, 2)), "bmm2": ((3, 1), (0, 1), (0, 2))}
    mixed, statistics = _cudnn(
        "Softmax", scale, causal, (query, key, value), (query, key, value), lengths, results, products
    )
    return mixed.transpose(0, 2, 1, 3), statistics


def _cudnn_backward(
    scale: float,
    causal: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mixed: jax.Array,
    statistics: jax.Array,
    gradient: jax.Array,
    *lengths: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    arrays = (query, key, value)
    results = [jax.ShapeDtypeStruct(x.transpose(0, 2, 1, 3).shape, x.dtype) for x in arrays]
    products = {
        "bmm1_grad_gemm1": ((2, 1), (0, 1), (0, 2)),
        "bmm1_grad_gemm2": ((3, 1), (0, 1), (0, 2)),
        "bmm2_grad_gemm1": ((2, 1), (0, 1), (0, 2)),
        "bmm2_grad_gemm2": ((3, 3), (0, 2), (0, 2)),
    }
    operands = (*arrays, statistics, gradient, mixed)
    found = _cudnn("SoftmaxBackward", scale, causal, arrays, operands, lengths, results, products)
    return tuple(x.transpose(0, 2, 1, 3) for x in found)


def _cudnn(
    name: str,
    scale: float,
    causal: bool,
    arrays: tuple[jax.Array, ...],
    operands: tuple[jax.Array, ...],
    lengths: tuple[jax.Array, ...],
    results: list[jax.ShapeDtypeStruct],
    products: dict[str, tuple],
) -> list[jax.Array]:
    """Calls cuDNN through XLA; the results with four axes are [B, H, N, K], laid out in memory as [B, N, H, K]."""
    query, key, _ = arrays
    batch, length, heads, _ = query.shape
    shape = {
        "element_type": {"bfloat16": "BF16", "float16": "F16"}[query.dtype.name],
        "dimensions": [str(size) for size in (batch, heads, length, key.shape[1])],
        "layout": {"minor_to_major": ["3", "2", "1", "0"]},
        "is_dynamic_dimension": [False] * 4,
    }
    config = {
        "algorithm": {"algo_id": "0", "math_type": "TENSOR_OP_MATH", "is_cudnn_frontend": True, "workspace_size": "0"},
        "fmha_scale": scale,
        "intermediate_tensor_shape": shape,
        "is_flash_attention": True,
        "mask_type": ("PADDING_CAUSAL" if causal else "PADDING") if lengths else ("CAUSAL" if causal else "NO_MASK"),
        "max_seg_per_batch": 1,
        **{f"{product}_dot_dimension_numbers": _dimension_numbers(*axes) for product, axes in products.items()},
    }
    workspace = jax.ShapeDtypeStruct((0,), jnp.uint8)
    call = jax.ffi.ffi_call(
        f"{CALL}{name}",
        [*results, workspace],
        output_layouts=[(0, 2, 1, 3) if len(result.shape) == 4 else None for result in [*results, workspace]],
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config}),
    )
    of_queries = tuple(jnp.full_like(valid, length) for valid in lengths)
    return call(*operands, *of_queries, *lengths)[:-1]


def _dimension_numbers(contracted: tuple, left_batch: tuple, right_batch: tuple) -> dict[str, list[str]]:
    left, right = contracted
    return {
        "lhs_contracting_dimensions": [str(left)],
        "rhs_contracting_dimensions": [str(right)],
        "lhs_batch_dimensions": [str(axis) for axis in left_batch],
        "rhs_batch_dimensions": [str(axis) for axis in right_batch],
    }


CUDNN = Calls(_cudnn_forward, _cudnn_backward)
