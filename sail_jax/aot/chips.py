"""Data sheets of chips, and devices to compile for without having the hardware.

Names are NAME:SHAPE, "v5e:16x16" for a slice of TPUs, "h100:64" for a number of GPUs. libtpu compiles for TPUs without
having one. There is no such compiler for GPUs here: their program is compiled for as many devices of the host's CPU.
"""

import contextlib
import dataclasses
import math
import os

import jax
from jax.experimental import topologies

from sail_jax.errors import SailError

_GIGA, _TERA = 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Chip:
    """The data sheet of one accelerator.

    Attributes:
        name: its common name.
        flops: peak bfloat16 operations per second, dense.
        memory: bytes.
        memory_rate: bytes per second to and from its memory.
        link_rate: bytes per second that it can send to its neighbours, over all links.
        node: number of chips that these links connect; 0 for a whole slice.
        network_rate: bytes per second of its share of the network between nodes.
    """

    name: str
    flops: float
    memory: int
    memory_rate: float
    link_rate: float
    node: int = 0
    network_rate: float = math.inf

    @property
    def is_gpu(self) -> bool:
        """Returns whether it is a GPU: in a node with a network."""
        return self.node > 0

    def send_rate(self, devices: int) -> float:
        """Returns the bytes per second that each of `devices` chips sends; over the network beyond one node."""
        return self.network_rate if self.is_gpu and devices > self.node else self.link_rate


# TPUs: cloud.google.com/tpu/docs, pages v5e, v5p and v6e; the rates of links are given there in Gbit/s per chip (1,600,
# 4,800 and 3,584). GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM; NVLink's rates there count both
# directions, half of which is sent. The network is that of DGX systems: one port of 200 or 400 Gbit/s per GPU.
CHIPS = {
    "v5e": Chip("TPU v5e", 197 * _TERA, 16 * 2**30, 819 * _GIGA, 200 * _GIGA),
    "v5p": Chip("TPU v5p", 459 * _TERA, 95 * 2**30, 2765 * _GIGA, 600 * _GIGA),
    "v6e": Chip("TPU v6e", 918 * _TERA, 32 * 2**30, 1640 * _GIGA, 448 * _GIGA),
    "a100": Chip("A100 80GB SXM", 312 * _TERA, 80 * _GIGA, 2039 * _GIGA, 300 * _GIGA, 8, 25 * _GIGA),
    "h100": Chip("H100 SXM", 989 * _TERA, 80 * _GIGA, 3350 * _GIGA, 450 * _GIGA, 8, 50 * _GIGA),
    "h200": Chip("H200 SXM", 989 * _TERA, 141 * _GIGA, 4800 * _GIGA, 450 * _GIGA, 8, 50 * _GIGA),
}
CHIPS["gpu"] = CHIPS["h100"]


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
