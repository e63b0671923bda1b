"""GradCache (arXiv 2101.06983): a contrastive step on a batch that is encoded in parts, with the gradient of the whole.

The parts are encoded without gradients, and of each only its embeddings are kept. The loss of all of them gives the gradient of every
embedding; then the parts are encoded again, one after the other, and their embeddings' gradients flow back into the
parameters. Pixels and sound come to the devices part by part, twice.

Axes: V views, B pairs of the global batch, K targets of a pair, G data-parallel shards, m parts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Traced

from sail_jax.batch import Batch, BySide, Outputs, Parts
from sail_jax.models.model import make_model
from sail_jax.objectives.matching import Recipe
from sail_jax.sharding.activations import mapped_over
from sail_jax.sharding.mesh import BATCH_SPEC, data_shards, shard_batch
from sail_jax.sharding.parameters import shardings_of
from sail_jax.training.setup import TrainSetup
from sail_jax.training.state import TrainState, join, split
from sail_jax.training.step import Metrics, make_encode, make_update


class Embedded(NamedTuple):
    """What the loss reads of a model's outputs; of a part, or of all parts joined.

    Attributes:
        z: embeddings of queries [V, B, D] and of targets [V, B, K, D].
        parts: as `batch.Outputs` has them.
    """

    z: BySide
    parts: Parts


class CachedStep:
    """A step on batches in parts, each an equal share of the pairs of every host.

    Gradients of the parts are added up on each device and summed over `data` once, when the last is done.
    """

    def __init__(self, setup: TrainSetup) -> None:
        config, mesh = setup.config, setup.mesh
        self._config, self._mesh, self._objective = config, mesh, setup.objective
        shards, self._data = data_shards(mesh), mesh.shape["data"]
        self._encode_part = make_encode(make_model(config.model, groups=shards), config.lora)
        # For the shards that have one place on `data`.
        self._encode_there = make_encode(make_model(config.model, groups=shards // self._data), config.lora)
        self._apply = make_update(setup)
        trained = split(config, setup.abstract.params)[0]
        trained = {name: tree for name, tree in trained.items() if name != "objective"}
        self._sums = jax.tree.map(self._unsummed, trained)
        shardings, sums = setup.shardings, shardings_of(self._sums)
        batch, whole = NamedSharding(mesh, BATCH_SPEC), NamedSharding(mesh, PartitionSpec())
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
            in_shardings=(shardings, sums, None, None, None),
            out_shardings=(shardings, whole),
        )

    def _unsummed(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """The gradient of a parameter, on every device of `data` its own: [data, ...]."""
        sharding = NamedSharding(self._mesh, PartitionSpec("data", *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((self._data, *leaf.shape), leaf.dtype, sharding=sharding)

    def put(self, batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
        """Leaves the parts on the host; they come to the devices one by one."""
        return batches

    def __call__(self, state: TrainState, batches: Sequence[Batch], recipe: Recipe) -> tuple[TrainState, Metrics]:
        """One optimiser step; the state given is used up."""
        with jax.set_mesh(self._mesh):
            return self._run(state, batches, recipe)

    def _run(self, state: TrainState, batches: Sequence[Batch], recipe: Recipe) -> tuple[TrainState, Metrics]:
        encoded, read = [], []
        for part in batches:
            arrays = shard_batch(part, self._mesh)
            read.append(arrays.read_by_losses())
            encoded.append(self.encode(state.params, arrays, recipe))
            # No part is sent before the last but one is done with, so that two at most are on the devices.
            jax.block_until_ready(encoded[-2:-1])
        loss, metrics, of_objective, gradients = self.loss(state.params["objective"], encoded, read, recipe)
        sums, done = self.begin(), []
        for part, gradient in zip(batches, gradients, strict=True):
            jax.block_until_ready(done[-2:-1])
            sums, zero = self.backward(state.params, sums, shard_batch(part, self._mesh), gradient, recipe)
            done.append(zero)  # the sums themselves are used up by the next part
        return self.update(state, sums, of_objective, loss, metrics)

    def programs(self, state: TrainState, part: Batch, recipe: Recipe) -> list[tuple[Traced, int]]:
        """What is compiled for a step, of abstract arguments: traced programs, and how often each of them runs.

        Args:
            state: shapes and shardings of the state.
            part: those of a micro-batch.
            recipe: what is computed.
        """
        micro_batches = self._config.train.micro_batches
        encode = self.encode.trace(state.params, part, recipe)
        placed = NamedSharding(self._mesh, PartitionSpec(None, *BATCH_SPEC))
        encoded = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), encode.out_info)
        of_parts = [encoded] * micro_batches, [part.read_by_losses()] * micro_batches
        loss = self.loss.trace(state.params["objective"], *of_parts, recipe)
        value, metrics, of_objective, gradients = loss.out_info
        backward = self.backward.trace(state.params, self._sums, part, gradients[0], recipe)
        update = self.update.trace(state, self._sums, of_objective, value, metrics)
        return [(encode, micro_batches), (loss, 1), (backward, micro_batches), (update, 1)]

    def _encode(self, params: Any, batch: Batch, recipe: Recipe) -> tuple[Embedded, BySide]:
        """What the loss reads of the outputs of the model: with a gradient, and `Outputs.filled`, which has none."""
        z, out = self._encode_part(params, batch, recipe)
        return Embedded(z, out.parts), out.filled

    def _loss(
        self, objective_params: Any, encoded: list[tuple[Embedded, BySide]], read: list[Batch], recipe: Recipe
    ) -> tuple[jax.Array, Metrics, Any, list[Embedded]]:
        """The loss of all parts, with its gradients by the objective's parameters and by the embeddings of each part."""
        filled = self._joined([filled for _, filled in encoded], axis=1)
        batch = self._joined(read, axis=0)

        def loss(params: Any, values: list[Embedded]) -> tuple[jax.Array, Metrics]:
            whole = self._joined(values, axis=1)
            return self._objective(params, whole.z, Outputs(filled, whole.parts), batch, recipe)

        values = [embedded for embedded, _ in encoded]
        (value, metrics), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(objective_params, values)
        return value, metrics, *gradients

    def _joined(self, parts: Sequence[Any], axis: int) -> Any:
        """Puts parts together so that every pair stays on its device: along `axis`, shard by shard."""
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
        """Adds what the embeddings of a part give to the gradients of the trained parameters; a zero comes with the sums.

        Every place on `data` has a copy of the parameters of its own, which is where they lie anyway, and so a gradient of its
        own: nothing has to be summed.
        """
        trained, frozen = split(self._config, params)
        objective = {"objective": trained.pop("objective")}
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (self._data, *x.shape)), trained)
        copies = jax.lax.with_sharding_constraint(copies, shardings_of(self._sums))

        def on_place(trained: Any, batch: Batch, gradient: Embedded) -> Any:
            def embedded(trained: Any) -> Embedded:
                z, out = self._encode_there(join(trained | objective, frozen), batch, recipe)
                return Embedded(z, out.parts)

            return jax.vjp(embedded, trained)[1](gradient)[0]

        by_place = jax.tree.map(lambda x: x.reshape(self._data, -1, *x.shape[1:]), batch)
        gradient = jax.tree.map(lambda x: x.reshape(len(x), self._data, -1, *x.shape[2:]), gradient)
        with mapped_over("data"):
            found = jax.vmap(on_place, in_axes=(0, 0, 1), spmd_axis_name="data")(copies, by_place, gradient)
        sums = jax.tree.map(jnp.add, sums, found)
        # All results of a program are there at once, so that this one tells of the others.
        return sums, jnp.zeros(())

    def _update(
        self, state: TrainState, sums: Any, of_objective: Any, loss: jax.Array, metrics: Metrics
    ) -> tuple[TrainState, Metrics]:
        gradient = jax.tree.map(lambda x: x.sum(axis=0), sums)
        return self._apply(state, gradient | {"objective": of_objective}, loss, metrics)
