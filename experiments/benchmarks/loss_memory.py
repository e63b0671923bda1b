"""Memory of the contrastive loss, compiled for 16 TPU v5e chips: the ring against all scores at once.

    python -m experiments.benchmarks.loss_memory

Forward and backward pass of InfoNCE with three Matryoshka slices, both directions, masks of duplicates and
temperatures, at width 1536. The figure is the temporary memory of a device by the compiler's account; a device also
holds its share of the embeddings and of their gradients. Nothing is run; only libtpu (the `tpu` extra) is needed.
"""

import argparse

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import common
from sail_jax.aot.chips import find_devices
from sail_jax.batch import Batch
from sail_jax.config.training import MeshConfig
from sail_jax.objectives.contrast import Contrast, ContrastLoss, ContrastSettings, plain_contrast
from sail_jax.objectives.ring_contrast import RingContrast
from sail_jax.patterns import Pattern
from sail_jax.sharding.mesh import AXES, make_mesh

WIDTH = 1536
SLICES = (1536, 768, 128)
BLOCK = 1024


def temporary_bytes(mesh: Mesh, contrast: ContrastLoss, pairs: int, hard: int) -> int | None:
    """Temporary memory of a device, or None where the compiler finds that it does not fit."""
    split = NamedSharding(mesh, PartitionSpec(AXES))

    def array(*shape: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((pairs, *shape), dtype, sharding=split)

    keys = array(2 + hard, 2, dtype=jnp.uint32)
    embeddings = (array(WIDTH), array(WIDTH), array(hard, WIDTH), array())
    rest = (array(dtype=bool), array(hard, dtype=bool), array(), keys)

    def value(
        query: jax.Array, target: jax.Array, negatives: jax.Array, temperature: jax.Array, rest: tuple
    ) -> jax.Array:
        valid, valid_hard, weight, keys = rest
        batch = Batch(**dict.fromkeys(Batch._fields) | {"item_keys": keys, "text_keys": keys})
        targets = jnp.concatenate([target[:, None], negatives], axis=1)
        given = Contrast(query, targets, valid, valid_hard, temperature, weight, batch, Pattern("O", "O"))
        return contrast(given, ContrastSettings(SLICES, True, True))[0]

    gradients = jax.value_and_grad(value, argnums=(0, 1, 2, 3))
    step = jax.jit(gradients, out_shardings=(NamedSharding(mesh, PartitionSpec()), (split,) * 4))
    try:
        compiled = step.lower(*embeddings, rest).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return compiled.memory_analysis().temp_size_in_bytes


def rows(found: dict[str, dict[int, int | None]]) -> list[dict]:
    """The lines of the table in docs/benchmarks.md."""

    def mebibytes(name: str, pairs: int) -> str:
        count = found.get(name, {}).get(pairs, "")
        return {None: "does not fit", "": ""}.get(count) if count in (None, "") else f"{count / 2**20:,.0f} MiB"

    return [
        {
            "what": f"InfoNCE of {pairs:,} pairs, width {WIDTH}, forward and backward, on 16 TPU v5e (compiled): "
            "temporaries per device; peer: all scores at once",
            "ours": mebibytes("ring", pairs),
            "peer": mebibytes("plain", pairs),
            "ratio": None,
        }
        for pairs in sorted(found["ring"])
    ]


def main() -> None:
    """Parses the command line, compiles, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2**16, 2**17, 2**18, 2**20], help="global batches")
    parser.add_argument("--plain-pairs", type=int, nargs="*", default=[2**16, 2**17], help="those of the plain form")
    options = parser.parse_args()
    mesh = make_mesh(MeshConfig(), find_devices("v5e:4x4")[1])
    forms = {"ring": (RingContrast(mesh, BLOCK), options.pairs), "plain": (plain_contrast, options.plain_pairs)}
    found: dict[str, dict[int, int | None]] = {}
    for name, (contrast, sizes) in forms.items():
        for pairs in sizes:
            found.setdefault(name, {})[pairs] = temporary_bytes(mesh, contrast, pairs, 0)
            print(name, pairs, found[name][pairs], flush=True)
    machine, versions = common.machine(), common.versions("jaxlib", "libtpu")
    common.write(
        "loss_memory", {"machine": machine, "versions": versions, "block": BLOCK, "bytes": found, "rows": rows(found)}
    )


if __name__ == "__main__":
    main()
