"""Memory and operations of a train step of the full-size model on one device, compiled ahead of time for TPU v5p.

    python -m experiments.benchmarks.step_memory

The model of configs/sail_1b5.py with items of 8 frames at 448 px, one clip of sound and up to 320 tokens, bfloat16, one pattern. Memory is
the compiler's account for a batch whose media go through the towers in chunks; operations are counted on the jaxpr. Nothing is
run; libtpu (the `tpu` extra) is all that is needed.
"""

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import time
from collections.abc import Sequence

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from experiments.benchmarks import common
from sail_jax import config as config_lib
from sail_jax.config import Config, MeshConfig
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.models.model import make_model
from sail_jax.objectives.objective import make_objective
from sail_jax.parallel.contrast import choose_contrast
from sail_jax.parallel.flops import executed_flops, jaxpr_flops
from sail_jax.parallel.mesh import BATCH_SPEC, make_mesh
from sail_jax.training.loop import make_step
from sail_jax.training.optimizer import make_optimizer
from sail_jax.training.state import abstract_state
from sail_jax.training.step import make_loss

GIB = 2**30
SMALL, LARGE = 45, 135  # pairs of the two batches whose difference says what an item takes
CHUNK = 3
MODES = {
    "selective": ("model.remat=dots",),
    "full": ("model.remat=full",),
    "GradCache and full": ("model.remat=full", "train.micro_batches=4"),
    "media in chunks and full": ("model.remat=full", "model.media_chunk=1"),
}


def experiment(pairs: int, *overrides: str) -> Config:
    """The full-size experiment on one device, with one data set and one pattern."""
    config = config_lib.load("configs/sail_1b5.py").data.datasets["copair"]
    words = [
        f"data.batch_size={pairs}",
        "data.frame_budget=8",
        "data.clip_budget=1",
        "mesh.data=1",
        "mesh.fsdp=1",
        *overrides,
    ]
    values = config_lib.to_dict(config_lib.load("configs/sail_1b5.py", words))
    values["data"]["datasets"] = {"copair": config_lib.to_dict(config) | {"patterns": ("O->O",)}}
    values["stages"] = {}
    return config_lib.build(values)


def programs(config: Config, mesh: Mesh) -> list:
    """The traced programs of a step, and how often each of them runs."""
    objective = make_objective(config, choose_contrast(config, mesh))
    optimizer = make_optimizer(config.optimizer)
    abstract = abstract_state(config, objective, optimizer, mesh)
    step = make_step(config, objective, optimizer, lambda _: 1e-5, abstract, mesh)
    split = NamedSharding(mesh, BATCH_SPEC)
    batch = batch_shapes(config, ("copair",), 1)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), batch)
    with jax.set_mesh(mesh):
        return step.programs(abstract, batch, objective.recipe([0]))


def model_flops(pairs: int, *overrides: str) -> int:
    """Operations of the loss and its gradient with nothing computed twice."""
    config = experiment(pairs, "model.remat=none", "model.perceiver.attention_block=0", *overrides)
    objective = make_objective(config)
    loss = make_loss(make_model(config.model), objective, config.lora)
    state = jax.eval_shape(lambda: abstract_state(config, objective, make_optimizer(config.optimizer), one_device()))
    batch = batch_shapes(config, ("copair",), 1)
    return executed_flops(
        lambda params, batch: jax.value_and_grad(loss, has_aux=True)(params, batch, objective.recipe([0])),
        state.params,
        batch,
    )


def one_device() -> Mesh:
    """A mesh of one v5p chip, which need not be there."""
    devices = topologies.get_topology_desc("v5p:2x2x1", platform="tpu").devices
    return make_mesh(MeshConfig(1, 1, 1), list(devices[:1]))


def ratios(attention: str, pairs: int = 4) -> dict[str, float]:
    """Mode -> executed operations over those of the model."""
    mesh, found = one_device(), {}
    reading = f"model.perceiver.attention={attention}"
    wanted = model_flops(pairs, reading)
    for name, overrides in MODES.items():
        traced = programs(experiment(pairs, reading, *overrides), mesh)
        found[name] = sum(times * jaxpr_flops(program.jaxpr, "tpu") for program, times in traced) / wanted
        print(attention, name, round(found[name], 3), flush=True)
    return found


def memory(pairs: int) -> dict[str, float]:
    """What the compiler says of a step, in bytes, and how long it took."""
    config = experiment(pairs, "model.remat=full", f"model.media_chunk={CHUNK}")
    ((traced, _),) = programs(config, one_device())
    began = time.perf_counter()
    told = traced.lower().compile().memory_analysis()
    return {
        "pairs": pairs,
        "state_and_batch": told.argument_size_in_bytes,
        "temporaries": told.temp_size_in_bytes,
        "code": told.generated_code_size_in_bytes,
        "seconds_to_compile": time.perf_counter() - began,
    }


def total(figures: dict[str, float]) -> float:
    """GiB of a device."""
    return (figures["state_and_batch"] + figures["temporaries"] + figures["code"]) / GIB


def rows(small: dict[str, float], large: dict[str, float], by_mode: dict[str, dict[str, float]]) -> Sequence[dict]:
    """The lines of the README's table."""
    per_item = (total(large) - total(small)) / (2 * (large["pairs"] - small["pairs"]))
    first = {
        "what": f"Full-size step, {2 * large['pairs']} items of 8 frames on one device (compiled for v5p): memory",
        "ours": f"{total(large):.1f} GiB, {per_item:.3f} GiB per item",
        "peer": "",
        "ratio": None,
    }
    return [first] + [
        {
            "what": f"Executed over model operations, full-size step, perceiver '{attention}': {name}",
            "ours": f"{ratio:.2f}",
            "peer": "",
            "ratio": None,
        }
        for attention, found in by_mode.items()
        for name, ratio in found.items()
    ]


def main() -> None:
    """Parses the command line, compiles, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", action="store_true", help="count operations alone, which takes a minute")
    options = parser.parse_args()
    by_mode = {attention: ratios(attention) for attention in ("latents", "joint")}
    if options.operations:
        return
    small, large = memory(SMALL), memory(LARGE)
    figures = {"machine": common.machine(), "versions": common.versions("jaxlib", "libtpu", "flax")}
    common.write(
        "step_memory",
        figures | {"small": small, "large": large, "operations": by_mode, "rows": rows(small, large, by_mode)},
    )


if __name__ == "__main__":
    main()
