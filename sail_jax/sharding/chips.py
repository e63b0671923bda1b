"""Data sheets of chips: peak rates and memory of the accelerators that the project knows."""

import dataclasses

import jax

_GIGA, _TERA = 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Chip:
    """The data sheet of one accelerator.

    Attributes:
        name: its common name.
        flops: peak bfloat16 operations per second, dense.
        memory: bytes.
        memory_rate: bytes per second to and from its memory.
        links: name -> bytes per second that it can send. A TPU sends to its neighbours in the slice; a GPU sends to the
            GPUs of its node, and over its share of the network to those of other nodes, in this order.
        node: number of chips in a node; 0 if a whole slice is connected.
    """

    name: str
    flops: float
    memory: int
    memory_rate: float
    links: dict[str, float]
    node: int = 0

    @property
    def is_gpu(self) -> bool:
        """Returns whether it is a GPU: in a node with a network."""
        return self.node > 0


def _gpu(name: str, flops: float, memory: int, memory_rate: float, nvlink: float, network: float) -> Chip:
    return Chip(name, flops, memory, memory_rate, {"NVLink": nvlink, "network": network}, node=8)


# TPUs: cloud.google.com/tpu/docs, pages v5e, v5p and v6e; the rates of links are given there in Gbit/s per chip (1,600,
# 4,800 and 3,584). GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200, without sparsity;
# NVLink's rates there count both directions, half of which is sent. The network is that of DGX systems: one port of 200
# or 400 Gbit/s per GPU.
CHIPS = {
    "v5e": Chip("TPU v5e", 197 * _TERA, 16 * 2**30, 819 * _GIGA, {"ICI": 200 * _GIGA}),
    "v5p": Chip("TPU v5p", 459 * _TERA, 95 * 2**30, 2765 * _GIGA, {"ICI": 600 * _GIGA}),
    "v6e": Chip("TPU v6e", 918 * _TERA, 32 * 2**30, 1640 * _GIGA, {"ICI": 448 * _GIGA}),
    "a100": _gpu("A100 80GB SXM", 312 * _TERA, 80 * _GIGA, 2039 * _GIGA, 300 * _GIGA, 25 * _GIGA),
    "h100": _gpu("H100 SXM", 989 * _TERA, 80 * _GIGA, 3350 * _GIGA, 450 * _GIGA, 50 * _GIGA),
    "h200": _gpu("H200 SXM", 989 * _TERA, 141 * _GIGA, 4800 * _GIGA, 450 * _GIGA, 50 * _GIGA),
    "b200": _gpu("B200 SXM", 2250 * _TERA, 180 * _GIGA, 8000 * _GIGA, 900 * _GIGA, 50 * _GIGA),
}

# `jax.Device.device_kind` -> name in CHIPS. Cards with other rates, such as an H100 PCIe, are not listed.
_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}


def chip_of(device: jax.Device) -> Chip | None:
    """Returns the data sheet of a device, or None for a kind without one, such as a CPU."""
    return CHIPS.get(_KINDS.get(device.device_kind, ""))
