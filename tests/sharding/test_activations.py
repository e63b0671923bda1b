"""Parameters that are split over `fsdp` are gathered; activations are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from sail_jax.aot.collectives import collective_bytes
from sail_jax.config.model import LlmConfig
from sail_jax.config.training import MeshConfig
from sail_jax.models.llm import Llm
from sail_jax.sharding.activations import look_up, mapped_over, on_shards, split_rows
from sail_jax.sharding.mesh import BATCH_SPEC, make_mesh
from sail_jax.sharding.parameters import abstract_on_mesh

CONFIG = LlmConfig(vocab_size=64, width=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=128)
SEQUENCES, LENGTH = 64, 32


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 4}])
def test_a_step_sends_parameters_and_no_activations(mesh):
    mesh, model = make_mesh(MeshConfig(**mesh)), Llm(CONFIG)
    tokens = jax.ShapeDtypeStruct((SEQUENCES, LENGTH), jnp.int32, sharding=NamedSharding(mesh, BATCH_SPEC))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (SEQUENCES, LENGTH))
    x = jax.ShapeDtypeStruct((SEQUENCES, LENGTH, CONFIG.width), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, positions, None)["params"]
    params = abstract_on_mesh({"llm": shapes}, mesh)

    def loss(params, tokens):
        # The table is split over `fsdp` along its width, and so are the rows right after the lookup.
        embedded = model.apply({"params": params["llm"]}, tokens, method=Llm.embed)
        return jnp.mean(model.apply({"params": params["llm"]}, embedded, positions, None)[0] ** 2)

    out = jax.tree.map(lambda leaf: leaf.sharding, params)
    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss), out_shardings=out).lower(params, tokens).compile()
    held = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    activation = SEQUENCES * LENGTH * CONFIG.width * 4
    # Gathered in the forward pass and again in the backward pass, and a gradient summed over devices: twice its bytes.
    most = 4 * held + activation / 8
    sent = sum(collective_bytes(program.as_text(), mesh.size).values())
    assert sent <= most


def test_rows_are_unconstrained_without_a_mesh_or_if_they_do_not_split():
    rows = jnp.ones((12, 3))
    assert split_rows(rows) is rows
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=8))):
        assert split_rows(rows) is rows
        assert split_rows(jnp.ones((16, 3))).sharding.spec[0] is not None


def test_an_axis_that_is_mapped_over_is_left_out():
    with jax.set_mesh(make_mesh(MeshConfig(data=4, fsdp=2))), mapped_over("data"):
        np.testing.assert_array_equal(split_rows(jnp.ones((2, 3))), 1)  # two rows do not split over eight devices


MESHES = [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 4}, {"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("width", [16, 6])
@pytest.mark.parametrize("shape", MESHES)
def test_lookups_on_a_mesh_are_lookups(shape, width):
    mesh, rng = make_mesh(MeshConfig(**shape)), np.random.default_rng(0)
    table = jnp.array(rng.normal(size=(12, width)), jnp.float32)
    tokens = jnp.array(rng.integers(0, 14, (16, 5)), jnp.int32)  # two of them are out of range
    weights = jnp.array(rng.normal(size=(16, 5, width)), jnp.float32)

    def loss(table, tokens):
        found = look_up(table, tokens, jnp.float32)
        return jnp.nansum(found * weights), found

    def on(mesh):
        with jax.set_mesh(mesh):
            shapes = {"llm": {"embedding": jax.ShapeDtypeStruct(table.shape, table.dtype)}}
            placed = jax.device_put(table, abstract_on_mesh(shapes, mesh)["llm"]["embedding"].sharding)
            given = jax.device_put(tokens, NamedSharding(mesh, BATCH_SPEC))
            return jax.jit(jax.grad(loss, has_aux=True))(placed, given)

    gradient, found = on(mesh)
    np.testing.assert_array_equal(found, jnp.take(table, tokens, axis=0, mode="fill"))
    expected, _ = on(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_transform_runs_on_the_rows_of_each_device():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows = jax.device_put(
        np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32), NamedSharding(mesh, BATCH_SPEC)
    )

    def power(rows):
        return jnp.abs(jnp.fft.rfft(rows))

    with jax.set_mesh(mesh):
        program = jax.jit(lambda rows: on_shards(power, rows)).lower(rows).compile()
        by_place = jax.vmap(lambda rows: on_shards(power, rows), spmd_axis_name="data")
        with mapped_over("data"):
            mapped = jax.jit(by_place)(rows.reshape(2, 8, 32))
        np.testing.assert_array_equal(on_shards(power, rows[:3]), power(rows[:3]))  # three rows do not split
    np.testing.assert_allclose(program(rows), power(np.asarray(rows)), rtol=1e-6)
    np.testing.assert_allclose(mapped.reshape(16, -1), power(np.asarray(rows)), rtol=1e-6)
    assert not sum(collective_bytes(program.as_text(), mesh.size).values())
