"""Reports what a step compiled ahead of time needs: memory, operations, traffic and time bounds."""

import dataclasses
from collections.abc import Mapping

from sail_jax.batch import Batch
from sail_jax.embedding.memory import REMEDY as EMBEDDING_REMEDY
from sail_jax.sharding.chips import Chip
from sail_jax.sharding.device_memory import show_bytes
from sail_jax.training.memory import REMEDY

# Share of the peak that large matrix products reach in practice; the roofline is an unattainable bound.
EFFICIENCY = 0.5
# On GPUs, the driver, the communication library and fragmentation take part of the memory.
_GPU_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of one device in bytes.

    Attributes:
        parameters: the parameters of the model, trained or not, and of the objective.
        optimizer: the optimiser's state.
        batch: this device's part of the batch, or of two micro-batches.
        gradients: the accumulators of micro-batches; 0 without micro-batches.
        padding: padding of the first three to the tiles of the device, and the numbers that the step takes as data.
        temporaries: activations, gradients and buffers at their peak, as laid out by the compiler.
        outputs: results that do not reuse the memory of an argument.
        code: the program.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    padding: int
    temporaries: int
    outputs: int
    code: int

    @property
    def total(self) -> int:
        """Returns the sum of all parts."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class AheadReport:
    """The result of `compile_ahead` or `compile_embedding`.

    Attributes:
        program: "step" of training, or "batch" of the embedder.
        topology: the requested name.
        chip: its chips.
        devices: their number.
        mesh: axis -> size.
        stage: the stage of the run; empty without stages.
        datasets: the training sets that may occur in the batch.
        batch: shapes of the global batch, or of a micro-batch.
        micro_batches: their number.
        larger_stages: stages of the run with larger batches.
        memory: bytes of a device; only the compiler's figure if it refused.
        refusal: the compiler's message if it refused for lack of memory; else empty.
        executed: operations of a step, over all devices.
        model: the operations of the loss and its gradient without recomputation.
        sent: link -> kind of collective -> bytes that a device sends in a step; empty if the compiler refused.
        kernels: tower -> its attention kernels; empty if the compiler refused.
        seconds: time of tracing and compiling.
    """

    program: str
    topology: str
    chip: Chip
    devices: int
    mesh: Mapping[str, int]
    stage: str
    datasets: tuple[str, ...]
    batch: Batch
    micro_batches: int
    larger_stages: tuple[str, ...]
    memory: Memory
    refusal: str
    executed: int
    model: int
    sent: Mapping[str, Mapping[str, float]]
    kernels: Mapping[str, tuple[str, ...]]
    seconds: float

    @property
    def room(self) -> float:
        """Bytes of a device that the step may use."""
        return self.chip.memory * (_GPU_SHARE if self.chip.is_gpu else 1)

    @property
    def fits(self) -> bool:
        """Returns whether the memory suffices; for TPUs the compiler decides, which knows the reserved memory."""
        return not self.refusal and self.memory.total <= self.room

    @property
    def items(self) -> int:
        """Returns the number of items in a step: all sides of all pairs."""
        pairs, sides = self.batch.valid.shape
        return pairs * sides * self.micro_batches

    @property
    def bounds(self) -> dict[str, float]:
        """Lower bounds of the seconds per step, by resource, if the work is split evenly."""
        state = self.memory.parameters + self.memory.optimizer
        # At least: everything is read once, and by a step the state is written once.
        moved = self.memory.batch + (2 if self.program == "step" else 1) * state
        return {
            "arithmetic": self.executed / self.devices / self.chip.flops,
            "memory": moved / self.chip.memory_rate,
            **{link: sum(sent.values()) / self.chip.links[link] for link, sent in self.sent.items()},
        }

    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """Heading -> rows (name, figure), for display."""
        return {
            f"{self.topology}: {self.devices} x {self.chip.name}": self._setup(),
            "Memory of a device": self._memory(),
            f"A {self.program}": self._work(),
            f"Time of a {self.program}": self._time(),
        }

    def verdict(self) -> str:
        """Returns a sentence on whether the program fits, and what to change if not."""
        needed = f"{show_bytes(self.memory.total)} of {show_bytes(self.room)}."
        remedy = REMEDY if self.program == "step" else EMBEDDING_REMEDY
        lines = [f"It fits: {needed}"] if self.fits else [f"It does not fit: {needed}", self.refusal, remedy]
        if self.larger_stages:
            lines.append(f"Larger batches come in: {', '.join(self.larger_stages)}. Check them with --stage.")
        return "\n".join(filter(None, lines))

    def _setup(self) -> list[tuple[str, str]]:
        pairs, sides = self.batch.valid.shape
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.items())
        of_step = [
            ("batch", f"{pairs * self.micro_batches:,} pairs x {sides} sides of {', '.join(self.datasets)}"),
            ("micro-batches", f"{self.micro_batches}"),
        ]
        rows = [
            ("mesh", axes),
            *(of_step if self.program == "step" else [("batch", f"{pairs:,} items")]),
            ("frames, clips of each", f"{self.batch.frames.shape[0]:,}, {self.batch.clips.shape[0]:,}"),
            ("compiled in", f"{self.seconds:.0f} s"),
        ]
        return [("stage", self.stage), *rows] if self.stage else rows

    def _memory(self) -> list[tuple[str, str]]:
        sizes = dataclasses.asdict(self.memory) | {"total": self.memory.total, "available": self.room}
        return [(name, show_bytes(count)) for name, count in sizes.items() if count or self.program == "step"]

    def _work(self) -> list[tuple[str, str]]:
        rows = [("FLOPs executed", f"{self.executed:.3e}, {self.executed / self.devices:.3e} per device")]
        if self.program == "step":
            rows.append(("FLOPs of the model", f"{self.model:.3e}"))
            rows.append(("executed over model", f"{self.executed / self.model:.2f}"))
        rows += [(f"attention of {tower}", " and ".join(kernels)) for tower, kernels in self.kernels.items()]
        for link, sent in self.sent.items():
            rows += [(f"{kind}, sent by {link}", show_bytes(count)) for kind, count in sent.items() if count]
        return rows

    def _time(self) -> list[tuple[str, str]]:
        rows = [(f"{name}, at least", _seconds(bound)) for name, bound in self.bounds.items() if bound]
        step = max(self.bounds.values())
        likely = step / EFFICIENCY
        return [
            *rows,
            ("roofline, a bound", f"{_seconds(step)}, {self.items / step:,.0f} items/s"),
            (f"at {EFFICIENCY:.0%} of it", f"{_seconds(likely)}, {self.items / likely:,.0f} items/s"),
        ]


def _seconds(time: float) -> str:
    return f"{time:.3f} s" if time >= 0.1 else f"{time * 1e3:.3f} ms"
