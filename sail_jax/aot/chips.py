"""Finds devices to compile for, without having the hardware.

Names are NAME:SHAPE, "v5e:16x16" for a slice of TPUs, "h100:64" for a number of GPUs. libtpu compiles for TPUs without
having one. There is no such compiler for GPUs here: their program is compiled for as many devices of the host's CPU.
"""

import contextlib
import os

import jax
from jax.experimental import topologies

from sail_jax.errors import SailError
from sail_jax.sharding.chips import CHIPS, Chip


def find_devices(topology: str) -> tuple[Chip, list[jax.Device]]:
    """Returns the chip of a topology and devices to compile for; only host devices can also run programs.

    Call it before any other use of JAX: host devices are created only once in a process.

    Raises:
        SailError: the name or the shape is unknown, or libtpu is missing.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        raise SailError(
            f"The topology is {topology!r}; write 'v5e:16x16', 'v5p:4x4x4', 'v6e:16x16', or a number of GPUs as "
            f"'h100:64'. Known chips: {', '.join(CHIPS)}."
        )
    chip = CHIPS[name]
    jax.config.update("jax_platforms", "cpu")  # this machine has none of the chips to compile for
    if not chip.is_gpu:
        return chip, _tpu_devices(topology)
    if not shape.isdecimal() or int(shape) < 1:
        raise SailError(f"The topology is {topology!r}; write the number of GPUs, as '{name}:64'.")
    return chip, _host_devices(int(shape))


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


def _host_devices(count: int) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # JAX is in use already, as in tests; its devices may be enough
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise SailError(f"{count} devices are needed, but JAX was started with {len(devices)}; use a fresh process.")
    return devices[:count]
