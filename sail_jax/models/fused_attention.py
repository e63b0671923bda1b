"""Which kernel computes attention: the fastest exact one of the device, here alone; `transformer.attend` is the plain form.

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

from sail_jax.sharding.activations import batch_axes

Queries = Float[Array, "B N H K"]
Keys = Float[Array, "B S G K"]
Attend = Callable[[Queries, Keys, Keys, Bool[Array, "B S"] | None], Queries]

# What attention gives, by its name for `jax.checkpoint`; see `transformer.REMAT_POLICIES`.
KEPT = "attention"
# Below so many keys the scores of a head fit well in memory, and the TPU kernel, which computes them twice, gains nothing.
_TPU_KEYS = 2048
# Queries and keys come to the TPU kernel in blocks of one of these sizes, or where they are fewer, all at once, filled up to lanes.
_TPU_BLOCKS = (768, 640, 512)
_TPU_LANES = 128
_HALF = (jnp.bfloat16, jnp.float16)


def choose_kernel(plain: Attend, query: Queries, key: Keys, *, causal: bool) -> Attend:
    """The kernel for some queries and keys; all of them compute softmax(q k / sqrt(K)) v with the masked keys left out.

    On an NVIDIA GPU it is cuDNN's flash attention, on a TPU with many keys the Pallas splash attention that comes with JAX, both for
    16-bit types and head widths that they support; else `plain`. For a TPU the choice is made when the program is lowered, so a program that is
    compiled ahead of time on another machine has the kernel too.

    Args:
        plain: (query, key, value, key_mask) -> mixed values, in any type and on any device.
        query: the queries.
        key: the keys.
        causal: whether query i sees keys 0 to i alone.
    """
    width = query.shape[-1]
    if keeps_itself(query, key):
        on_tpu = functools.partial(_by_shard, functools.partial(tpu_attention, causal=causal))
        kept = functools.partial(_kept, plain)
        return lambda *arrays: jax.lax.platform_dependent(*arrays, tpu=on_tpu, default=kept)
    on_gpu = jax.default_backend() == "gpu" and query.dtype in _HALF and width % 8 == 0 and width <= 128
    return functools.partial(cudnn_attention, causal=causal) if on_gpu else plain


def keeps_itself(query: Queries, key: Keys) -> bool:
    """Whether the kernel for these arrays gives `KEPT` its name, and none is due outside: where a TPU has a kernel of its own."""
    fits = query.dtype == jnp.bfloat16 and query.shape[-1] % 8 == 0 and jax.default_backend() != "gpu"
    return fits and query.shape[1] >= _TPU_LANES and key.shape[1] >= _TPU_KEYS


def _kept(plain: Attend, *arrays: jax.Array | None) -> jax.Array:
    return checkpoint_name(plain(*arrays), KEPT)


def cudnn_attention(
    query: Queries, key: Keys, value: Keys, key_mask: Bool[Array, "B S"] | None, *, causal: bool
) -> Queries:
    """Flash attention of cuDNN; arguments as of `transformer.attend`."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation="cudnn")


def tpu_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    key_mask: Bool[Array, "B S"] | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> Queries:
    """Splash attention of `jax.experimental.pallas`; arguments as of `transformer.attend`.

    It runs on any device with `interpret`.

    Its backward pass is one kernel, which computes the scores once more; flash attention, whose queries and keys have kernels of
    their own, computes them twice. The queries carry the scale, which rounds them once more where K is no power of 4.
    """
    batch, length, heads, width = query.shape
    keys = key.shape[1]
    query = (query.astype(jnp.float32) * width**-0.5).astype(query.dtype)
    q, k = _block(length), _block(keys)
    query, key, value = (_filled_up(x, side).transpose(0, 2, 1, 3) for x, side in ((query, q), (key, k), (value, k)))
    valid = jnp.ones((batch, keys), bool) if key_mask is None else key_mask
    # Without any valid key, the mean of all values, as everywhere: queries of zero see all keys alike.
    seen = valid.any(axis=1)
    query = jnp.where(seen[:, None, None, None], query, 0)
    valid |= ~seen[:, None]
    # A query sees the keys of its segment: those that count, and none that only fill up a block.
    of_keys = _filled_up(valid, k).astype(jnp.int32)
    segments = splash.SegmentIds(jnp.ones((batch, query.shape[2]), jnp.int32), of_keys)
    mask = (masks.CausalMask if causal else masks.FullMask)((query.shape[2], key.shape[2]))
    attend = _splash(masks.MultiHeadMask([mask] * heads), q, k, interpret)
    # One after the other: in the backward pass a row holds the gradient of its queries once for every block of keys.
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
        residual_checkpoint_name=KEPT,  # the sums of exponentials too, without which the scores would be computed again
        interpret=interpret,
    )


def _block(length: int) -> int:
    """The size of the blocks that so many queries or keys are cut in: that which fills up least, of those the largest."""
    if length <= max(_TPU_BLOCKS):
        return -(-length // _TPU_LANES) * _TPU_LANES
    return min(_TPU_BLOCKS, key=lambda side: (-(-length // side) * side, -side))


def _filled_up(x: jax.Array, side: int) -> jax.Array:
    """Zeros up to a multiple of a block along the second axis."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % side), *[(0, 0)] * (x.ndim - 2)])


def _by_shard(
    kernel: Attend, query: jax.Array, key: jax.Array, value: jax.Array, key_mask: jax.Array | None
) -> jax.Array:
    """Runs a kernel on every shard of the mesh that is set: the compiler cannot split it by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query, key, value, key_mask)
    heads = "tensor" if key.shape[2] % mesh.shape["tensor"] == 0 else None
    split, mask = PartitionSpec(batch_axes(), None, heads), PartitionSpec(batch_axes())
    arrays = [(query, split), (key, split), (value, split), (key_mask, mask)]
    run = jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=tuple(spec if array is not None else None for array, spec in arrays),
        out_specs=split,
        check_vma=False,
    )
    return run(*(array for array, _ in arrays))
