"""The train step on meshes of host devices, and its updates of the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mesh_steps import assert_same, constant_rate, run_steps

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig, OptimizerConfig
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.errors import SailError
from sail_jax.models.model import make_model
from sail_jax.objectives.objective import make_objective
from sail_jax.sharding.mesh import data_shards, make_mesh, shard_batch
from sail_jax.sharding.parameters import WEIGHT_DECAY, match, path_name
from sail_jax.training.optimizer import make_optimizer, make_schedule
from sail_jax.training.setup import TrainSetup, sharded_init
from sail_jax.training.state import abstract_state, averaged, init_state, split
from sail_jax.training.step import WholeStep, compile_step, make_loss, make_update


@pytest.fixture
def config(settings):
    return config_lib.build(settings)


@pytest.fixture
def parts(config):
    objective = make_objective(config)
    return objective, make_optimizer(config.optimizer)


# Settings of which a compiled step knows nothing.
NUMBERS = {
    "seed": 3,
    "train": {"steps": 3},
    "optimizer": {
        "peak": 1e-3,
        "floor": 1e-4,
        "warmup_steps": 0,
        "b1": 0.8,
        "b2": 0.98,
        "eps": 1e-6,
        "weight_decay": 0.1,
        "clip_norm": 0.5,
        "temperature_rate": 9.0,
    },
    "objective": {
        "temperature": 0.1,
        "min_temperature": 0.02,
        "max_temperature": 0.4,
        "cosent_temperature": 0.2,
        "weights": {"nce": 2.0},
    },
}


def batch_for(config, shards, step=1):
    return BatchSource(config, HostShare(0, config.data.batch_size, shards))[step].arrays


def assert_close(left, right):
    """Compares two steps, with tighter tolerances for the loss and the gradients of the first step."""
    np.testing.assert_allclose(left[0][0]["loss"], right[0][0]["loss"], rtol=1e-5)
    for (path, one), other in zip(
        jax.tree_util.tree_flatten_with_path(left[1])[0], jax.tree.leaves(right[1]), strict=True
    ):
        scale = max(np.abs(other).max(), 1e-4)
        np.testing.assert_allclose(one, other, atol=2e-4 * scale, err_msg=path_name(path))
    assert_same(left, right)


@pytest.mark.slow
def test_a_mesh_of_eight_devices_gives_the_loss_and_gradients_of_one(everything, whole, scattered_blocks):
    assert_close(run_steps(everything, (2, 2, 2)), whole)


def test_only_the_optimizer_may_be_split(settings):
    """test_grad_cache.py shows that its update is the same."""
    settings.update(mesh={"shard_optimizer": True}, optimizer={"ema": 0.9})
    split, mesh = config_lib.build(settings), make_mesh(MeshConfig(8, 1, 1))
    state = abstract_state(split, make_objective(split), make_optimizer(split.optimizer), mesh)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name, spec = path_name(path), tuple(leaf.sharding.spec)
        if name.startswith("params"):
            assert "data" not in str(spec), name
        elif any(size and size % 8 == 0 for size in leaf.shape):
            assert "data" in str(spec), name


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("lion", 1), ("muon", 1)])
def test_parameters_are_split_by_the_rules_and_moments_and_average_like_them(settings, name, moments):
    settings.optimizer.update(name=name, ema=0.9)
    config, mesh = config_lib.build(settings), make_mesh(MeshConfig(2, 2, 2))
    parts = make_objective(config), make_optimizer(config.optimizer)
    state = abstract_state(config, *parts, mesh)
    specs = {path_name(p): leaf.sharding.spec for p, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
    wanted = {
        "llm/embedding": ("tensor", "fsdp"),
        "llm/layers/attention/query/kernel": (None, "fsdp", "tensor"),
        "llm/layers/attention/output/kernel": (None, "tensor", "fsdp"),
        "llm/layers/mlp/down/kernel": (None, "tensor", "fsdp"),
        "llm/layers/attention/query/bias": (None, "tensor"),
        "llm/final_norm/scale": (None,),
        "vit/layers/mlp/gate/kernel": (None, "fsdp", "tensor"),
    }
    for path, spec in wanted.items():
        found = {other: tuple(got) for other, got in specs.items() if other.endswith(path)}
        by_adam = name == "muon" and "kernel" not in path
        assert len(found) == 2 + moments + by_adam, path  # the parameter, its average and its moments
        assert set(found.values()) == {spec}, path


@pytest.mark.slow
def test_a_sharded_state_equals_a_plain_one(config, parts):
    plain = jax.jit(lambda: init_state(config, *parts))()
    sharded, _ = sharded_init(TrainSetup.of(config, make_mesh(MeshConfig(2, 2, 2))))
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_steps_learn_and_do_not_change_frozen_parameters(settings):
    settings.optimizer.ema = 0.9
    config, mesh = config_lib.build(settings), make_mesh(MeshConfig(), jax.devices()[:1])
    setup = TrainSetup.of(config, mesh)
    step = compile_step(setup)
    batch = shard_batch(batch_for(config, data_shards(mesh)), mesh)
    state, _ = sharded_init(setup)
    before = jax.device_get(state.params)
    average, losses = before["model"]["vision_adapter"]["kernel"], []
    for number in range(6):
        state, metrics = step(state, batch, setup.objective.recipe([0]), setup.values)
        losses.append(float(metrics["loss"]))
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * np.asarray(state.params["model"]["vision_adapter"]["kernel"])
    np.testing.assert_allclose(averaged(state)["model"]["vision_adapter"]["kernel"], average, rtol=1e-5, atol=1e-7)
    assert losses[-1] < losses[1] - 0.05 and int(state.step) == 6
    assert float(metrics["learning_rate"]) == pytest.approx(float(setup.schedule(5)))
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    normalisation = changed["model"]["audio"]["input_norm"]
    assert not normalisation["mean"] and not normalisation["var"]
    assert changed["objective"]["log_temperature"]
    assert all(changed["model"][tower]["kernel"] for tower in ("vision_adapter", "audio_adapter"))


@pytest.mark.slow
def test_a_step_compiled_ahead_in_another_thread_is_the_same(settings, monkeypatch):
    settings.data.datasets.copair.patterns = ("T->T",)  # compiling the other towers takes long
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict()}
    config = config_lib.build(settings)
    setup = TrainSetup.of(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    recipe, batch, ends = setup.objective.recipe([0]), batch_for(config, 1), []
    kind, other = (batch_shapes(config, ("copair",), 1), recipe), (batch_shapes(config, ("copair",), 1), None)
    for ahead in (False, True):
        step, (state, _) = WholeStep(setup), sharded_init(setup)
        step.compile_ahead(kind, [kind])  # the first kind is left to the step itself
        assert not step._ahead
        if ahead:
            step.compile_ahead(other, [kind, kind])
            (compiling,) = step._ahead.values()
            compiling.result()
            monkeypatch.setattr(step, "_step", None)
        ends.append(step(state, step.put((batch,)), recipe)[0])
    for left, right in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_the_temperatures_have_their_own_learning_rate(settings):
    setup = TrainSetup.of(config_lib.build(settings), make_mesh(MeshConfig(), jax.devices()[:1]))
    setup = dataclasses.replace(setup, schedule=constant_rate(1e-4))
    state, _ = sharded_init(setup)
    gradient = jax.tree.map(jnp.ones_like, split(setup.config, state.params)[0])
    update, values, moved = jax.jit(make_update(setup)), setup.values, []
    for rate in (1.0, 10.0):
        rates = values.optimizer.rates._replace(temperature=np.float32(rate))
        given = values._replace(optimizer=values.optimizer._replace(rates=rates))
        after = update(state, gradient, 0.0, {}, given)[0].params["objective"]["log_temperature"]
        moved.append(after - state.params["objective"]["log_temperature"])
    assert np.all(moved[0] != 0)
    np.testing.assert_allclose(moved[1], 10 * moved[0], rtol=1e-2)


def test_weight_decay_acts_only_on_matrices(config, parts):
    state = jax.eval_shape(lambda: init_state(config, *parts))
    decays = {path_name(p): d for p, d in jax.tree_util.tree_flatten_with_path(match(WEIGHT_DECAY, state.params))[0]}
    assert decays["model/llm/layers/mlp/up/kernel"] and decays["model/llm/embedding"]
    for name, decay in decays.items():
        if name.endswith(("bias", "scale", "latents", "mean", "var", "log_temperature")) or "position" in name:
            assert not decay, name


def test_the_first_moment_may_be_kept_in_bfloat16(settings):
    settings.optimizer.first_moment = "bfloat16"
    config = config_lib.build(settings)
    state = jax.eval_shape(lambda: init_state(config, make_objective(config), make_optimizer(config.optimizer)))
    assert {leaf.dtype for leaf in jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(optax.tree.get(state.opt_state, "nu"))} == {np.dtype(np.float32)}


def test_learning_rate(config):
    settings = config.optimizer
    schedule = make_schedule(settings, 100)
    assert schedule(0) == 0 and float(schedule(settings.warmup_steps)) == pytest.approx(settings.peak)
    assert float(schedule(100)) == pytest.approx(settings.floor)
    middle = (settings.warmup_steps + 100) // 2
    assert float(schedule(middle)) == pytest.approx((settings.peak + settings.floor) / 2, rel=1e-3)
    with pytest.raises(SailError, match="warmup_steps"):
        make_schedule(settings, settings.warmup_steps)


@pytest.mark.parametrize("warmup", [0, 7])
def test_the_schedule_is_that_of_optax_from_the_first_step_of_its_stage(warmup):
    ours = make_schedule(OptimizerConfig(peak=2e-3, floor=3e-4, warmup_steps=warmup), 40, begin=100)
    expected = optax.warmup_cosine_decay_schedule(0.0 if warmup else 2e-3, 2e-3, warmup, 40, 3e-4)
    steps = jnp.arange(45)
    np.testing.assert_allclose(ours(steps + 100), jax.vmap(expected)(steps), rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_numbers_of_the_optimizer_and_the_losses_are_data_of_one_program(settings):
    settings.data.datasets = {
        "copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)},
        "theme": {"table": "tables/theme.parquet", "patterns": ("T->T",), "loss_weights": {"micl": 0.5}},
        "search": settings.data.datasets.search.to_dict() | {"patterns": ("T->T",)},
    }
    programs = []
    for change in ({}, NUMBERS):
        settings.update(change)
        config = config_lib.build(settings)
        setup = TrainSetup.of(config, make_mesh(MeshConfig(), jax.devices()[:1]))
        copair, search, theme = (setup.objective.recipe([at]) for at in range(3))
        assert copair == search and copair.losses == ("nce",) and theme.losses == ("nce", "micl")
        ((traced, _),) = WholeStep(setup).programs(setup.abstract, batch_shapes(config, ("copair",), 1), copair)
        programs.append(traced.lower().as_text())
    assert programs[0] == programs[1]


@pytest.mark.slow
def test_remat_and_dtype_settings_reach_the_towers(settings):
    settings.model.remat = "full"
    settings.model.dtype = "bfloat16"
    config = config_lib.build(settings)
    objective = make_objective(config)
    loss = make_loss(make_model(config.model), objective, config.lora)
    params = jax.eval_shape(lambda: init_state(config, objective, make_optimizer(config.optimizer)).params)
    text = str(
        jax.make_jaxpr(jax.grad(lambda p, b: loss(p, b, objective.recipe([0]))[0]))(
            params, jax.tree.map(jnp.asarray, batch_for(config, 1))
        )
    )
    assert "remat" in text or "checkpoint" in text
    assert "bf16" in text
