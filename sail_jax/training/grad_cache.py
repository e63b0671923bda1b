"""GradCache (arXiv 2101.06983): encodes a batch in parts and takes the gradient of the whole.

The step encodes the parts without gradients and keeps only their embeddings. The loss of all embeddings gives the
gradient of each. Then the step encodes the parts again, one after another, and backpropagates these gradients into the
parameters. Pixels and sound are sent to the devices part by part, twice.

Axes: V views, B pairs of the global batch, K targets of a pair, G data-parallel shards, m parts.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Traced

from sail_jax.batch import Batch, BySide, Outputs, Parts
from sail_jax.models.model import make_model
from sail_jax.objectives.matching import Recipe
from sail_jax.objectives.objective import LossValues
from sail_jax.sharding.activations import mapped_over
from sail_jax.sharding.mesh import BATCH_SPEC, data_shards, shard_batch
from sail_jax.sharding.parameters import shardings_of
from sail_jax.training.setup import StepValues, TrainSetup
from sail_jax.training.state import TrainState, join, split
from sail_jax.training.step import Metrics, make_encode, make_update
from sail_jax.training.tower_scales import input_scales


class Embedded(NamedTuple):
    """The outputs of a model that the loss reads, of a part or of all parts joined.

    Attributes:
        z: embeddings of queries [V, B, D] and of targets [V, B, K, D].
        parts: see `batch.Outputs`.
    """

    z: BySide
    parts: Parts


class CachedStep:
    """A train step on batches in parts, each an equal share of the pairs of every host.

    Each device adds up the gradients of the parts; they are summed over `data` once, after the last part.
    """

    def __init__(self, setup: TrainSetup) -> None:
        config, mesh = setup.config, setup.mesh
        self._config, self._mesh, self._objective, self._values = config, mesh, setup.objective, setup.values
        shards, self._data = data_shards(mesh), mesh.shape["data"]
        self._encode_part = make_encode(make_model(config.model, groups=shards), config.lora)
        # For the shards of one place on `data`.
        self._encode_on_place = make_encode(make_model(config.model, groups=shards // self._data), config.lora)
        self._apply = make_update(setup)
        trained = split(config, setup.abstract.params)[0]
        trained = {name: tree for name, tree in trained.items() if name != "objective"}
        self._sums = jax.tree.map(self._unsummed, trained)
        shardings, sums = setup.shardings, shardings_of(self._sums)
        batch, whole = NamedSharding(mesh, BATCH_SPEC), setup.replicated
        self.encode = jax.jit(self._encode, static_argnums=2, in_shardings=(shardings.params, batch))
        self.loss = jax.jit(self._loss, static_argnums=3)
        self.begin = jax.jit(
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._sums), out_shardings=sums
        )
        self.backward = jax.jit(
            self._backward,
            static_argnums=4,
            donate_argnums=1,
            in_shardings=(shardings.params, sums, batch, None),
            out_shardings=(sums, whole),
        )
        self.update = jax.jit(
            self._update,
            donate_argnums=(0, 1),
            in_shardings=(shardings, sums, None, None, None, whole),
            out_shardings=(shardings, whole),
        )

    def for_stage(self, setup: TrainSetup) -> "CachedStep":
        """Returns the step of another stage of the run, with the same compiled programs."""
        step = copy.copy(self)
        step._values = setup.values
        return step

    def _unsummed(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Returns the shape of a parameter's gradient before the sum over `data`: [data, ...]."""
        sharding = NamedSharding(self._mesh, PartitionSpec("data", *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((self._data, *leaf.shape), leaf.dtype, sharding=sharding)

    def put(self, batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
        """Leaves the parts on the host; the step sends them to the devices one by one."""
        return batches

    def __call__(self, state: TrainState, batches: Sequence[Batch], recipe: Recipe) -> tuple[TrainState, Metrics]:
        """Takes one optimiser step; the memory of the given state is reused."""
        with jax.set_mesh(self._mesh):
            return self._run(state, batches, recipe)

    def _run(self, state: TrainState, batches: Sequence[Batch], recipe: Recipe) -> tuple[TrainState, Metrics]:
        encoded, read = [], []
        for part in batches:
            arrays = shard_batch(part, self._mesh)
            read.append(arrays.read_by_losses())
            encoded.append(self.encode(state.params, arrays, recipe))
            # Wait for the part before the last one, so that at most two parts are on the devices.
            jax.block_until_ready(encoded[-2:-1])
        loss, metrics, of_objective, gradients = self.loss(
            state.params["objective"], encoded, read, recipe, self._values.losses
        )
        sums, done = self.begin(), []
        for part, gradient in zip(batches, gradients, strict=True):
            jax.block_until_ready(done[-2:-1])
            sums, zero = self.backward(state.params, sums, shard_batch(part, self._mesh), gradient, recipe)
            done.append(zero)  # the next part reuses the memory of the sums
        return self.update(state, sums, of_objective, loss, metrics, self._values)

    def programs(self, state: TrainState, part: Batch, recipe: Recipe) -> list[tuple[Traced, int]]:
        """Traces the programs of a step; returns each with its number of runs per step.

        Args:
            state: shapes and shardings of the state.
            part: shapes and shardings of a micro-batch.
            recipe: the recipe of the batch.
        """
        micro_batches = self._config.train.micro_batches
        encode = self.encode.trace(state.params, part, recipe)
        embedded, (filled, power) = encode.out_info
        embedded, filled = self._placed((embedded, filled), PartitionSpec(None, *BATCH_SPEC))
        encoded = embedded, (filled, self._placed(power, BATCH_SPEC))
        of_parts = [encoded] * micro_batches, [part.read_by_losses()] * micro_batches
        loss = self.loss.trace(state.params["objective"], *of_parts, recipe, self._values.losses)
        value, metrics, of_objective, gradients = loss.out_info
        backward = self.backward.trace(state.params, self._sums, part, gradients[0], recipe)
        update = self.update.trace(state, self._sums, of_objective, value, metrics, self._values)
        return [(encode, micro_batches), (loss, 1), (backward, micro_batches), (update, 1)]

    def _placed(self, outputs: Any, spec: PartitionSpec) -> Any:
        """Returns the shapes of some outputs with their sharding."""
        sharding = NamedSharding(self._mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), outputs)

    def _encode(self, params: Any, batch: Batch, recipe: Recipe) -> tuple[Embedded, tuple[BySide, Any]]:
        """Returns the outputs that are read: those with a gradient, and `Outputs.filled` and `power`, without one."""
        z, out = self._encode_part(params, batch, recipe)
        return Embedded(z, out.parts), (out.filled, out.power)

    def _loss(
        self,
        objective_params: Any,
        encoded: list[tuple[Embedded, tuple[BySide, Any]]],
        read: list[Batch],
        recipe: Recipe,
        numbers: LossValues,
    ) -> tuple[jax.Array, Metrics, Any, list[Embedded]]:
        """Returns loss and metrics of all parts, and the gradients of the objective's parameters and of the outputs."""
        filled = self._joined([filled for _, (filled, _) in encoded], axis=1)
        power = self._joined([power for _, (_, power) in encoded], axis=0)
        batch = self._joined(read, axis=0)

        def loss(params: Any, values: list[Embedded]) -> tuple[jax.Array, Metrics]:
            whole = self._joined(values, axis=1)
            return self._objective(params, whole.z, Outputs(filled, whole.parts), batch, recipe, numbers)

        values = [embedded for embedded, _ in encoded]
        (value, metrics), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(objective_params, values)
        return value, metrics | input_scales(power), *gradients

    def _joined(self, parts: Sequence[Any], axis: int) -> Any:
        """Concatenates parts along `axis`, shard by shard, so that every pair stays on its device."""
        shards = data_shards(self._mesh)

        def join_leaf(*leaves: jax.Array) -> jax.Array:
            shape = leaves[0].shape
            split_up = [x.reshape(*shape[:axis], shards, -1, *shape[axis + 1 :]) for x in leaves]
            joined = jnp.concatenate(split_up, axis=axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])
            spec = PartitionSpec(*[None] * axis, *BATCH_SPEC)
            return jax.lax.with_sharding_constraint(joined, NamedSharding(self._mesh, spec))

        return jax.tree.map(join_leaf, *parts)

    def _backward(
        self, params: Any, sums: Any, batch: Batch, gradient: Embedded, recipe: Recipe
    ) -> tuple[Any, jax.Array]:
        """Adds the gradients that flow from the outputs of a part to the sums; returns the sums and a zero.

        Every place on `data` differentiates its own copy of the parameters, which it holds anyway. So it gets its own
        gradient, and devices need not exchange anything.
        """
        trained, frozen = split(self._config, params)
        objective = {"objective": trained.pop("objective")}
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (self._data, *x.shape)), trained)
        copies = jax.lax.with_sharding_constraint(copies, shardings_of(self._sums))

        def on_place(trained: Any, batch: Batch, gradient: Embedded) -> Any:
            def embedded(trained: Any) -> Embedded:
                z, out = self._encode_on_place(join(trained | objective, frozen), batch, recipe)
                return Embedded(z, out.parts)

            return jax.vjp(embedded, trained)[1](gradient)[0]

        by_place = jax.tree.map(lambda x: x.reshape(self._data, -1, *x.shape[1:]), batch)
        gradient = jax.tree.map(lambda x: x.reshape(len(x), self._data, -1, *x.shape[2:]), gradient)
        with mapped_over("data"):
            found = jax.vmap(on_place, in_axes=(0, 0, 1), spmd_axis_name="data")(copies, by_place, gradient)
        sums = jax.tree.map(jnp.add, sums, found)
        # All results of a program are ready at once, so the caller can wait for the zero instead of the sums.
        return sums, jnp.zeros(())

    def _update(
        self, state: TrainState, sums: Any, of_objective: Any, loss: jax.Array, metrics: Metrics, values: StepValues
    ) -> tuple[TrainState, Metrics]:
        gradient = jax.tree.map(lambda x: x.sum(axis=0), sums)
        trained, _ = split(self._config, state.params | {"objective": of_objective})
        return self._apply(state, gradient | {"objective": trained["objective"]}, loss, metrics, values)
