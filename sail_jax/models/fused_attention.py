"""Chooses and runs the fastest exact attention kernel of the device.

`transformer.attend` calls this module, and gives it the implementation that runs on any device.

Axis letters: B batch, N queries, S keys, H heads, G key and value heads, K head width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from sail_jax.models.gpu_attention import KEPT, MAX_WIDTH, gpu_attention
from sail_jax.sharding.activations import batch_axes, splits

Queries = Float[Array, "B N H K"]
Keys = Float[Array, "B S G K"]
Abstract = jax.ShapeDtypeStruct
Attend = Callable[[Queries, Keys, Keys, Bool[Array, "B S"] | None], Queries]

# With fewer keys, the scores of a head fit in memory, and the TPU kernel, which computes them twice, is no faster.
_TPU_KEYS = 2048
# Sizes of the blocks of queries and of keys in the TPU kernel. Fewer of them form one block, padded to whole lanes.
_TPU_BLOCKS = (768, 640, 512)
_TPU_LANES = 128
_HALF = (jnp.bfloat16, jnp.float16)


def choose_kernel(plain: Attend, query: Queries, key: Keys, *, causal: bool, valid_first: bool = False) -> Attend:
    """Returns the attention kernel for arrays of these shapes and types.

    All kernels compute softmax(q k / sqrt(K)) v without the masked keys. On an NVIDIA GPU the kernel is cuDNN's flash
    attention; on a TPU with many keys it is the Pallas splash attention of JAX. Both need 16-bit types and head widths
    that they support; otherwise the kernel is `plain`. The choice is made when the program is lowered, so a program
    that another machine compiles ahead of time has the kernel too.

    Args:
        plain: (query, key, value, key_mask) -> mixed values, for any type and device.
        query: the queries.
        key: the keys.
        causal: whether query i sees only keys 0 to i.
        valid_first: whether the valid keys of each row are known to come first.
    """
    kernels = {}
    if _fits_gpu(query, key, causal=causal):
        kernels["cuda"] = functools.partial(gpu_attention, causal=causal, valid_first=valid_first)
    if _fits_tpu(query, key):
        kernels["tpu"] = functools.partial(tpu_attention, causal=causal)
    if not kernels:
        return plain
    by_shard = {platform: functools.partial(_by_shard, kernel) for platform, kernel in kernels.items()}
    named = functools.partial(_run_and_name, plain)
    return lambda *arrays: jax.lax.platform_dependent(*arrays, default=named, **by_shard)


def kernel_name(query: Abstract, key: Abstract, *, causal: bool, platform: str) -> str:
    """Returns the name of the kernel that `choose_kernel` chooses on a platform.

    `platform` is "cpu", "cuda" or "tpu".
    """
    if platform == "cuda" and _fits_gpu(query, key, causal=causal):
        return "cuDNN flash attention"
    return "splash attention" if platform == "tpu" and _fits_tpu(query, key) else "plain"


def keeps_itself(query: Queries, key: Keys, *, causal: bool) -> bool:
    """Returns whether the kernel for these arrays names its outputs `KEPT` itself.

    This holds for shapes and types that a kernel of some device supports; otherwise the caller must name the outputs.
    """
    return _fits_gpu(query, key, causal=causal) or _fits_tpu(query, key)


def _fits_gpu(query: Queries | Abstract, key: Keys | Abstract, *, causal: bool) -> bool:
    fits = query.dtype in _HALF and query.shape[-1] <= MAX_WIDTH
    return fits and (not causal or query.shape[1] == key.shape[1])


def _fits_tpu(query: Queries | Abstract, key: Keys | Abstract) -> bool:
    fits = query.dtype == jnp.bfloat16 and query.shape[-1] % 8 == 0
    return fits and query.shape[1] >= _TPU_LANES and key.shape[1] >= _TPU_KEYS


def _run_and_name(plain: Attend, *arrays: jax.Array | None) -> jax.Array:
    return checkpoint_name(plain(*arrays), KEPT)


def tpu_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    key_mask: Bool[Array, "B S"] | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> Queries:
    """Runs the splash attention of `jax.experimental.pallas`; see `transformer.attend` for the arguments.

    With `interpret` it runs on any device. Its backward pass is one kernel, which recomputes the scores once; flash
    attention has separate kernels for queries and keys, and recomputes them twice. The scale is applied to the queries,
    which rounds them once more if K is not a power of 4.
    """
    batch, length, heads, width = query.shape
    keys = key.shape[1]
    query = (query.astype(jnp.float32) * width**-0.5).astype(query.dtype)
    q, k = _block(length), _block(keys)
    query, key, value = (_pad_to_block(x, side).transpose(0, 2, 1, 3) for x, side in ((query, q), (key, k), (value, k)))
    valid = jnp.ones((batch, keys), bool) if key_mask is None else key_mask
    # Without any valid key, the result is the mean of all values, as in `plain`: zero queries weigh all keys equally.
    seen = valid.any(axis=1)
    query = jnp.where(seen[:, None, None, None], query, 0)
    valid |= ~seen[:, None]
    # A query sees the keys of its segment: valid keys, not the padding of a block.
    of_keys = _pad_to_block(valid, k).astype(jnp.int32)
    segments = splash.SegmentIds(jnp.ones((batch, query.shape[2]), jnp.int32), of_keys)
    mask = (masks.CausalMask if causal else masks.FullMask)((query.shape[2], key.shape[2]))
    attend = _splash(masks.MultiHeadMask([mask] * heads), q, k, interpret)
    # Rows run one after the other: the backward pass holds one gradient of a row's queries per block of keys.
    mixed = jax.lax.map(lambda row: attend(*row), (query, key, value, segments))
    return mixed.transpose(0, 2, 1, 3)[:, :length]


def _splash(mask: masks.MultiHeadMask, q: int, k: int, interpret: bool) -> splash.SplashAttentionKernel:
    blocks = splash.BlockSizes(
        block_q=q, block_kv=k, block_q_dkv=q, block_kv_dkv=k, block_kv_dkv_compute=k, use_fused_bwd_kernel=True
    )
    return splash.make_splash_mha(
        mask,
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        # This keeps the sums of exponentials too; otherwise the scores would be computed again.
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )


def _block(length: int) -> int:
    """Returns the block size for a number of queries or keys: the largest size with the least padding."""
    if length <= max(_TPU_BLOCKS):
        return -(-length // _TPU_LANES) * _TPU_LANES
    return min(_TPU_BLOCKS, key=lambda side: (-(-length // side) * side, -side))


def _pad_to_block(x: jax.Array, side: int) -> jax.Array:
    """Pads the second axis with zeros to a multiple of the block size."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % side), *[(0, 0)] * (x.ndim - 2)])


def _by_shard(
    kernel: Attend, query: jax.Array, key: jax.Array, value: jax.Array, key_mask: jax.Array | None
) -> jax.Array:
    """Runs a kernel on every shard of the current mesh, since the compiler cannot split a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query, key, value, key_mask)
    rows = batch_axes() if splits(len(query)) else None
    heads = "tensor" if key.shape[2] % mesh.shape["tensor"] == 0 else None
    split, mask = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    arrays = [(query, split), (key, split), (value, split), (key_mask, mask)]
    run = jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=tuple(spec if array is not None else None for array, spec in arrays),
        out_specs=split,
        check_vma=False,
    )
    return run(*(array for array, _ in arrays))
