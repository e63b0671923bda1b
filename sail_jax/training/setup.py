"""The parts of a train step as one frozen object, and the initial state of a run."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.config import Config
from sail_jax.convert.init_from import InitReport, initial_params
from sail_jax.data.pipeline import HostShare
from sail_jax.models.tower_attention import tower_kernels
from sail_jax.objectives.objective import LossValues, Objective, make_objective
from sail_jax.objectives.ring_contrast import choose_contrast
from sail_jax.sharding.mesh import data_shards, host_rows
from sail_jax.sharding.parameters import shardings_of
from sail_jax.training.optimizer import OptimizerValues, Schedule, make_optimizer, make_schedule
from sail_jax.training.rates import check_rates
from sail_jax.training.stages import Stage, plan
from sail_jax.training.state import TrainState, abstract_state, first_state, split


class StepValues(NamedTuple):
    """The numbers that a compiled step takes as data, so that runs and stages share its program."""

    schedule: Schedule
    optimizer: OptimizerValues
    losses: LossValues


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """The parts of a train step; the setups of the stages of a run differ only in their `values`.

    Attributes:
        config: the experiment.
        objective: the losses of the run or of a stage.
        optimizer: the optimiser of the trained parameters.
        schedule: learning rate of the run or of a stage; it scales the optimiser's updates.
        abstract: shapes, types and shardings of the state.
        mesh: the devices.
    """

    config: Config
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: Schedule
    abstract: TrainState
    mesh: Mesh

    @classmethod
    def of(cls, config: Config, mesh: Mesh) -> "TrainSetup":
        """Returns the setup of a run on a mesh, without computing anything.

        Raises:
            SailError: a setting is wrong.
        """
        objective = make_objective(config, choose_contrast(config, mesh), data_shards(mesh))
        optimizer = make_optimizer(config.optimizer)
        abstract = abstract_state(config, objective, optimizer, mesh)
        check_rates(config.optimizer, abstract.params)
        schedule, *_ = schedules(config)  # those of later stages are only checked
        return cls(config, objective, optimizer, schedule, abstract, mesh)

    def for_stage(self, stage: Stage) -> "TrainSetup":
        """Returns the setup with the loss weights and the learning rate of a stage."""
        objective = make_objective(stage.config, self.objective.contrast, self.objective.groups)
        return dataclasses.replace(self, objective=objective, schedule=_schedule(stage))

    @property
    def values(self) -> StepValues:
        """Returns the numbers that a compiled step takes as data."""
        return StepValues(self.schedule, OptimizerValues.of(self.config.optimizer), self.objective.values)

    @property
    def replicated(self) -> NamedSharding:
        """Returns the sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def shardings(self) -> TrainState:
        """Returns the shardings of the state."""
        return shardings_of(self.abstract)

    def hardware(self) -> str:
        """Returns a line with the devices, the mesh, the types of numbers, and the attention kernels."""
        device, processes = self.mesh.devices.flat[0], jax.process_count()
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
        of_processes = f" of {processes} processes" if processes > 1 else ""
        types = sorted({leaf.dtype.name for leaf in jax.tree.leaves(self.abstract.params)})
        return (
            f"Training on {self.mesh.size} x {device.device_kind}{of_processes}, mesh {axes}; "
            f"computing in {self.config.model.dtype}, parameters in {' and '.join(types)}; "
            f"attention: {self._attention(device.platform)}."
        )

    def _attention(self, platform: str) -> str:
        """Returns the attention kernels: "plain", or "cuDNN flash attention (vit, llm), plain (perceiver)"."""
        towers = tower_kernels(self.config.model, self.config.prompt.max_tokens, platform)
        names = dict.fromkeys(towers.values())
        if len(names) == 1:
            return next(iter(names))
        return ", ".join(f"{name} ({', '.join(t for t, n in towers.items() if n == name)})" for name in names)


def schedules(config: Config) -> list[Schedule]:
    """Returns the learning rates of each stage of a run.

    Raises:
        SailError: a warm-up is not shorter than its stage, or a floor is above its peak.
    """
    return [_schedule(stage) for stage in plan(config, Path())]  # mined hard negatives do not matter to them


def _schedule(stage: Stage) -> Schedule:
    return make_schedule(stage.config.optimizer, stage.steps, begin=stage.begin, stage=stage.name)


def host_share(config: Config, mesh: Mesh) -> HostShare:
    """Returns the part of each batch that this process loads for a mesh, in groups as the mesh splits it.

    Raises:
        SailError: the batch does not split evenly, or this process's pairs would not be contiguous.
    """
    size = config.data.batch_size
    start, stop = host_rows(mesh, size, config.train.micro_batches)
    return HostShare(start, stop, data_shards(mesh) * (stop - start) // size)


def sharded_init(setup: TrainSetup) -> tuple[TrainState, InitReport]:
    """Returns the sharded state at step 0, and a report of where its parameters came from.

    Each leaf is made on its shards, so that no host ever holds the whole state.

    Raises:
        SailError: a checkpoint of `config.init_from` cannot be found or does not fit.
    """
    model, report = initial_params(setup.config, setup.mesh)
    make = jax.jit(
        lambda model, seed, values: first_state(setup.config, model, setup.objective, setup.optimizer, seed, values),
        out_shardings=setup.shardings,
        donate_argnums=0,
    )
    return make(model, np.int32(setup.config.seed), setup.objective.values), report


def restart_optimizer(setup: TrainSetup, state: TrainState) -> TrainState:
    """Returns the state with a freshly initialised optimiser, as every stage begins."""

    def fresh(params: dict) -> optax.OptState:
        return setup.optimizer.init(split(setup.config, params)[0])

    return state._replace(opt_state=jax.jit(fresh, out_shardings=setup.shardings.opt_state)(state.params))
