"""Compile times of a step with scanned layers, with unrolled layers, and with the persistent cache.

    python -m experiments.benchmarks.compile_time

The model is a Qwen2 stack with the depth of the full-size model and a small width, because the time hardly depends on
the width. Each step is compiled in its own process with an empty cache, and then again in another process with the
cache that the first one left.

Axis letters: B sequences, N tokens, D width.
"""

import functools
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.common import machine, versions, write
from sail_jax.config.model import LlmConfig
from sail_jax.models import transformer
from sail_jax.models.llm import Llm

CONFIG = LlmConfig(vocab_size=2048, width=128, layers=28, heads=4, kv_heads=2, head_dim=32, mlp_width=256)
SEQUENCES, LENGTH = 4, 64


def scanned_loss(params: Any, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean square of the output of the stack, [] float32; x is [B, N, D]."""
    hidden, _ = Llm(CONFIG).apply({"params": params}, x, positions, mask)
    return jnp.mean(hidden**2)


def unrolled_loss(params: Any, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
    """As `scanned_loss`, with each layer traced separately."""
    angles = transformer.rotary_angles(positions, CONFIG.head_dim, CONFIG.rope_theta)
    block = transformer.Block(
        heads=CONFIG.heads,
        kv_heads=CONFIG.kv_heads,
        head_dim=CONFIG.head_dim,
        mlp_width=CONFIG.mlp_width,
        norm=transformer.RMSNorm,
        mlp=transformer.SwiGluMlp,
        norm_eps=CONFIG.norm_eps,
        qkv_bias=CONFIG.qkv_bias,
    )
    for layer in range(CONFIG.layers):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        x = block.apply({"params": own}, x, mask, angles)
    norm = transformer.RMSNorm(CONFIG.norm_eps)
    return jnp.mean(norm.apply({"params": params["final_norm"]}, x) ** 2)


LOSSES = {"scanned": scanned_loss, "unrolled": unrolled_loss}


def compile_seconds(name: str, cache: str) -> float:
    """Seconds to trace, lower and compile the loss with its gradient."""
    jax.config.update("jax_compilation_cache_dir", cache)
    x = jax.ShapeDtypeStruct((SEQUENCES, LENGTH, CONFIG.width), jnp.float32)
    positions = jax.ShapeDtypeStruct((SEQUENCES, LENGTH), jnp.int32)
    mask = jax.ShapeDtypeStruct((SEQUENCES, LENGTH), jnp.bool_)
    params = jax.eval_shape(Llm(CONFIG).init, jax.random.key(0), x, positions, mask)["params"]
    jax.block_until_ready(jnp.zeros(1) + 1)
    began = time.perf_counter()
    jax.jit(jax.value_and_grad(LOSSES[name])).lower(params, x, positions, mask).compile()
    return time.perf_counter() - began


def check_equal() -> float:
    """The relative difference of the two losses; fails if it is too large."""
    x = jax.random.normal(jax.random.key(1), (SEQUENCES, LENGTH, CONFIG.width))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), x.shape[:2])
    mask = jnp.ones(x.shape[:2], bool)
    params = Llm(CONFIG).init(jax.random.key(0), x, positions, mask)["params"]
    one, other = (float(jax.jit(loss)(params, x, positions, mask)) for loss in LOSSES.values())
    apart = abs(one / other - 1)
    assert apart < 1e-4, f"the losses are {one} and {other}"
    return apart


def in_a_process(name: str, cache: str) -> float:
    """`compile_seconds` in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(compile_seconds, name, cache).result()


def main() -> None:
    """Measures and writes."""
    seconds = {}
    for name in LOSSES:
        with tempfile.TemporaryDirectory() as cache:
            run = functools.partial(in_a_process, name, cache)
            seconds[name] = {"first": run(), "from the cache": run()}
    ours, peer = seconds["scanned"], seconds["unrolled"]
    rows = [
        {
            "what": f"compile the gradient of a stack of {CONFIG.layers} layers: ours scanned over layers, "
            "peer the same layers unrolled (time)",
            "ours": f"{ours['first']:.1f} s; {ours['from the cache']:.1f} s with the persistent cache",
            "peer": f"{peer['first']:.1f} s; {peer['from the cache']:.1f} s with the cache",
            "ratio": ours["first"] / peer["first"],
        }
    ]
    write(
        "compile_time",
        {
            "machine": machine(),
            "versions": versions("jaxlib", "flax"),
            "relative_difference_of_losses": check_equal(),
            "seconds": seconds,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
