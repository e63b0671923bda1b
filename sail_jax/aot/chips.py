"""Finds devices to compile for, without having the hardware.

Names are NAME:SHAPE, "v5e:16x16" for a slice of TPUs, "h100:64" for a number of GPUs. libtpu and JAX's CUDA plugin
compile for chips that the machine does not have.
"""

import importlib.resources
import os

import jax
from jax.experimental import topologies

from sail_jax.errors import SailError
from sail_jax.sharding.chips import CHIPS, Chip

# Without a GPU, XLA cannot try which Triton tiles are fastest, and its default ones do not fit all products.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
_MOST_GPUS = 512


def find_devices(topology: str) -> tuple[Chip, list[jax.Device]]:
    """Returns the chip of a topology and devices to compile for, which cannot run programs.

    Raises:
        SailError: the name or the shape is unknown, or the compiler is missing.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        raise SailError(
            f"The topology is {topology!r}; write 'v5e:16x16', 'v5p:4x4x4', 'v6e:16x16', or a number of GPUs as "
            f"'h100:64'. Known chips: {', '.join(CHIPS)}."
        )
    chip = CHIPS[name]
    jax.config.update("jax_platforms", "cpu")  # this machine has none of the chips to compile for
    return chip, (_gpu_devices(name, shape, chip.node) if chip.is_gpu else _tpu_devices(topology))


def _gpu_devices(name: str, shape: str, node: int) -> list[jax.Device]:
    count = int(shape) if shape.isdecimal() else 0
    if not 1 <= count <= _MOST_GPUS or (count > node and count % node):
        below = max(1, min(count, _MOST_GPUS) // node * node)
        fits = f"{below} or {below + node}" if node < count < _MOST_GPUS else f"a number from 1 to {_MOST_GPUS}"
        raise SailError(
            f"The topology is {name}:{shape}; write a number of GPUs, at most {_MOST_GPUS}, and beyond {node} whole "
            f"nodes of {node}, as '{name}:64'. {fits} would do."
        )
    target = importlib.resources.files("sail_jax.aot").joinpath(f"gpus/{name}.txtpb").read_text()
    layout = f"1x{-(-count // node)}x{min(count, node)}"  # slices, processes of each, GPUs of each
    try:
        found = topologies.get_topology_desc(platform="cuda", topology_name="", topology=layout, target_config=target)
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise SailError(
            f"Compiling for NVIDIA GPUs needs no GPU, but JAX's CUDA plugin ({reason}); pip install -e '.[cuda]', "
            "which takes about 5 GB."
        ) from error
    return list(found.devices)


def _tpu_devices(topology: str) -> list[jax.Device]:
    # Without these, libtpu asks the cloud which TPU this machine has, warns, and locks out a second process.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise SailError(f"The topology {topology!r} is refused by libtpu: {error}") from error
    except (ImportError, RuntimeError) as error:
        raise SailError(f"Compiling for TPUs needs libtpu ({error}); pip install -e '.[tpu]'.") from error
