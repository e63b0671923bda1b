"""Compiles the programs of a config ahead of time, for hardware that this machine does not have."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Traced

from sail_jax.aot.chips import GPU_OPTIONS, find_devices
from sail_jax.aot.collectives import KINDS, bytes_by_link
from sail_jax.aot.kernels import attention_kernels
from sail_jax.aot.report import AheadReport, Memory
from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.config.schema import nearest
from sail_jax.data.batch_shapes import batch_kinds, batch_shapes, estimated_token_room
from sail_jax.embedding.forward import inference_mesh, traced_forward
from sail_jax.errors import SailError
from sail_jax.models.model import abstract_params
from sail_jax.objectives.matching import Recipe
from sail_jax.objectives.objective import make_objective
from sail_jax.patterns import MODALITIES
from sail_jax.sharding.chips import Chip
from sail_jax.sharding.device_memory import bytes_per_device, is_out_of_memory
from sail_jax.sharding.mesh import abstract_batch, check_batch, data_shards, make_mesh
from sail_jax.training.flops import jaxpr_flops
from sail_jax.training.loop import make_step
from sail_jax.training.model_flops import model_flops
from sail_jax.training.setup import TrainSetup
from sail_jax.training.stages import Stage, plan
from sail_jax.training.state import TrainState, split

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
# "... required for HLO temporaries (72.99G) exceeds ..."; "Used 20.5G of 15.75G hbm."
_REFUSED = re.compile(r"(HLO temporaries \(|Used )([\d.]+)([KMG]?)")


def compile_ahead(config: Config, topology: str, *, stage: str = "", dataset: str = "") -> AheadReport:
    """Compiles the step that `train` would run on some hardware, and reports its memory and time.

    Args:
        config: the experiment; neither checkpoints nor data are read, except the file of `data.weights`.
        topology: the hardware; see `aot.chips.find_devices`.
        stage: name of a stage of `config.stages`; empty for the first.
        dataset: the training set of the batch; empty for the set with the largest batches.

    Raises:
        SailError: a name or a setting is wrong, or the batch does not split over the devices.
    """
    step, began = _plan_step(config, topology, stage, dataset), time.monotonic()
    compiled = [(_compile(traced, step.chip), times) for traced, times in step.programs]
    refusal = next((refusal for (_, refusal), _ in compiled if refusal), "")
    done = [(program, times) for (program, _), times in compiled if program]
    executed, model = _operations(step)
    return AheadReport(
        program="step",
        topology=topology,
        chip=step.chip,
        devices=step.setup.mesh.size,
        mesh=dict(step.setup.mesh.shape),
        stage=step.stage.name,
        datasets=step.datasets,
        batch=step.batch,
        micro_batches=config.train.micro_batches,
        larger_stages=step.larger_stages,
        memory=_memory(config, step.setup.abstract, step.batch, [program for program, _ in done], refusal),
        refusal=refusal,
        executed=executed,
        model=model,
        sent=_sent(done, step.chip, step.setup.mesh) if not refusal else {},
        kernels=attention_kernels([program.as_text() for program, _ in done]),
        seconds=time.monotonic() - began,
    )


def compile_embedding(config: Config, topology: str) -> AheadReport:
    """Compiles the program that `embed` would run on some hardware, for a batch of the longest items.

    Args:
        config: the experiment; items have all modalities, `eval.batch_size` of them form a batch.
        topology: the hardware; see `aot.chips.find_devices`.

    Raises:
        SailError: a name or a setting is wrong.
    """
    began = time.monotonic()
    chip, devices = find_devices(topology)
    mesh = inference_mesh(config.mesh, devices)
    rows = -(-config.eval.batch_size // data_shards(mesh)) * data_shards(mesh)
    most = {"frames": rows * config.model.perceiver.max_frames, "clips": rows * config.model.audio.max_clips}
    traced = traced_forward(config, mesh, rows=rows, length=config.prompt.max_tokens, views=(MODALITIES,), **most)
    program, refusal = _compile(traced, chip)
    (_, batch), _ = traced.args_info
    operations = jaxpr_flops(traced.jaxpr, _platform(chip))
    return AheadReport(
        program="batch",
        topology=topology,
        chip=chip,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        stage="",
        datasets=(),
        batch=batch,
        micro_batches=1,
        larger_stages=(),
        memory=_memory_of_embedding(bytes_per_device(abstract_params(config, mesh)), program, refusal),
        refusal=refusal,
        executed=operations,
        model=operations,
        sent=_sent([(program, 1)], chip, mesh) if program else {},
        kernels=attention_kernels([program.as_text()] if program else []),
        seconds=time.monotonic() - began,
    )


def count_ahead(config: Config, topology: str, *, stage: str = "", dataset: str = "") -> tuple[int, int]:
    """Returns the executed operations of a step and those that the model needs, without compiling.

    Arguments and errors are those of `compile_ahead`.
    """
    return _operations(_plan_step(config, topology, stage, dataset))


class _PlannedStep(NamedTuple):
    """The traced step of the training loop for some hardware.

    Attributes:
        chip: the type of its chips.
        setup: the setup of the stage on its devices.
        stage: the stage of the run.
        datasets: the training sets that may occur in the batch.
        batch: shapes and shardings of a global micro-batch.
        recipe: the recipe of the batch.
        larger_stages: names of the stages with larger batches.
        programs: each program with its number of runs per step.
    """

    chip: Chip
    setup: TrainSetup
    stage: Stage
    datasets: tuple[str, ...]
    batch: Batch
    recipe: Recipe
    larger_stages: tuple[str, ...]
    programs: list[tuple[Traced, int]]


def _plan_step(config: Config, topology: str, stage: str, dataset: str) -> _PlannedStep:
    chip, devices = find_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    check_batch(mesh, config.data.batch_size, config.train.micro_batches)
    stages = plan(config, Path("mined"))
    chosen = _stage(stages, stage)
    names, batch, recipe = _batch(chosen.config, dataset, data_shards(mesh))
    larger = _larger(stages, batch, data_shards(mesh))
    batch = abstract_batch(batch, mesh)
    setup = TrainSetup.of(config, mesh).for_stage(chosen)
    with jax.set_mesh(mesh):
        programs = make_step(setup).programs(setup.abstract, batch, recipe)
    return _PlannedStep(chip, setup, chosen, names, batch, recipe, larger, programs)


def _operations(step: _PlannedStep) -> tuple[int, int]:
    """Returns the executed operations, and those of the model."""
    executed = sum(times * jaxpr_flops(traced.jaxpr, _platform(step.chip)) for traced, times in step.programs)
    shards = data_shards(step.setup.mesh)
    return executed, model_flops(step.stage.config, step.datasets, step.setup.abstract.params, step.recipe, shards)


def _platform(chip: Chip) -> str:
    return "cuda" if chip.is_gpu else "tpu"


def _stage(stages: list[Stage], name: str) -> Stage:
    names = [stage.name for stage in stages]
    if name and name not in names:
        raise SailError(f"There is no stage {name!r}. Did you mean {nearest(name, names)}?")
    return stages[names.index(name) if name else 0]


def _batch(config: Config, dataset: str, shards: int) -> tuple[tuple[str, ...], Batch, Recipe]:
    """Returns data sets, shapes and recipe of the batches of a data set, by default the one with the most frames."""
    kinds = [kind for kind in batch_kinds(config) if dataset in kind or not dataset]
    if not kinds:
        names = [name for kind in batch_kinds(config) for name in kind]
        raise SailError(f"No batch of this stage has the data set {dataset!r}. Did you mean {nearest(dataset, names)}?")
    objective, names = make_objective(config), list(config.data.datasets)

    def described(kind: tuple[str, ...]) -> tuple[tuple[str, ...], Batch, Recipe]:
        room = estimated_token_room(config, kind, shards)
        recipe = objective.recipe([names.index(name) for name in kind], room)
        return kind, batch_shapes(config, kind, shards), recipe

    def size(entry: tuple[tuple[str, ...], Batch, Recipe]) -> tuple[int, ...]:
        _, batch, recipe = entry
        return batch.frames.shape[0], batch.valid.shape[1], sum(map(len, recipe.views))

    return max(map(described, kinds), key=size)


def _larger(stages: list[Stage], batch: Batch, shards: int) -> tuple[str, ...]:
    """Returns the stages whose batches have more frames or more sides, such as mined hard negatives."""

    def sizes(batch: Batch) -> tuple[int, int]:
        return batch.frames.shape[0], batch.valid.shape[1]

    found = [(stage.name, _batch(stage.config, "", shards)[1]) for stage in stages]
    return tuple(name for name, other in found if sizes(other) > sizes(batch))


def _sent(programs: Sequence[tuple[Compiled, int]], chip: Chip, mesh: Mesh) -> dict[str, dict[str, float]]:
    """Returns the bytes that a device sends, by link and kind of collective."""
    # Each node of GPUs has one process here; a slice of TPUs is connected as a whole.
    nodes = [device.process_index if chip.is_gpu else 0 for device in mesh.devices.flat]
    total: dict[str, dict[str, float]] = {link: dict.fromkeys(KINDS, 0.0) for link in chip.links}
    for program, times in programs:
        for kind, counts in bytes_by_link(program.as_text(), nodes).items():
            for link, count in zip(chip.links, counts, strict=False):  # a slice of TPUs has one kind of link
                total[link][kind] += times * count
    return total


def _compile(traced: Traced, chip: Chip) -> tuple[Compiled | None, str]:
    """Returns the compiled step, or None and the error if the compiler runs out of memory."""
    try:
        return traced.lower().compile(compiler_options=GPU_OPTIONS if chip.is_gpu else None), ""
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error).splitlines()[0]


def _memory(config: Config, abstract: TrainState, batch: Batch, programs: Sequence[Compiled], refusal: str) -> Memory:
    """Returns the memory of the program that needs most; the state stays on the devices all the time."""
    trained = split(config, abstract.params)[0]
    cached = config.train.micro_batches > 1
    held = {
        "parameters": bytes_per_device(abstract.params),
        "optimizer": bytes_per_device((abstract.opt_state, abstract.ema)),
        "batch": bytes_per_device(batch) * (2 if cached else 1),  # the next part is being sent
        "gradients": bytes_per_device(trained) if cached else 0,
    }
    if refusal:
        return Memory(**held, padding=0, temporaries=_refused(refusal, sum(held.values())), outputs=0, code=0)
    largest = max((program.memory_analysis() for program in programs), key=lambda usage: usage.temp_size_in_bytes)
    return Memory(
        **held,
        # The program does not count arguments that it does not read, but they stay in memory.
        padding=max(0, largest.argument_size_in_bytes - sum(held.values())),
        temporaries=largest.temp_size_in_bytes,
        outputs=0 if cached else largest.output_size_in_bytes - largest.alias_size_in_bytes,
        code=sum(program.memory_analysis().generated_code_size_in_bytes for program in programs),
    )


def _memory_of_embedding(parameters: int, program: Compiled | None, refusal: str) -> Memory:
    held = {"parameters": parameters, "optimizer": 0, "gradients": 0, "padding": 0}
    if not program:
        return Memory(**held, batch=0, temporaries=_refused(refusal, parameters), outputs=0, code=0)
    usage = program.memory_analysis()
    return Memory(
        **held,
        batch=max(0, usage.argument_size_in_bytes - parameters),
        temporaries=usage.temp_size_in_bytes,
        outputs=usage.output_size_in_bytes,
        code=usage.generated_code_size_in_bytes,
    )


def _refused(refusal: str, held: int) -> int:
    """Returns the bytes of temporaries in the message of a compiler that ran out of memory, 0 if it has none."""
    found = _REFUSED.search(refusal)
    needed = int(float(found.group(2)) * _UNITS[found.group(3)]) if found else 0
    return max(0, needed - held) if found and found.group(1) == "Used " else needed
