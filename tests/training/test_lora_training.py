"""Trained and frozen parameters: adapters in the train step, in checkpoints and on meshes; freezing."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jaxprs import shapes_of_products

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.embedding import embedder
from sail_jax.errors import SailError
from sail_jax.models.fusion import OmniEmbedder
from sail_jax.models.lora import merge
from sail_jax.objectives.objective import make_objective
from sail_jax.runs.checkpoints import Checkpoints, HostParams
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import data_shards, make_mesh, shard_batch
from sail_jax.sharding.parameters import WEIGHT_DECAY, match, path_name
from sail_jax.training.loop import train
from sail_jax.training.optimizer import make_optimizer
from sail_jax.training.setup import TrainSetup, sharded_init
from sail_jax.training.state import abstract_state, averaged, init_state, join, split
from sail_jax.training.step import make_loss, make_train_step
from training_runs import on_devices

MEDIA = ("frames", "frame_item", "frame_slot", "clips", "clip_item")
TARGETS = (r"^llm/layers/.*kernel$", r"^llm/embedding$", r"^audio/.*query/kernel$")


@pytest.fixture(scope="module")
def config(world):
    settings = tiny.experiment(world)
    settings.train.update(steps=4, checkpoint_every=2)
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    settings.lora.update(rank=2, alpha=4.0, targets=TARGETS)
    settings.optimizer.weight_decay = 0.1  # would move all that it reaches
    settings.optimizer.ema = 0.9
    return config_lib.build(settings)


def parts(config):
    return make_objective(config), make_optimizer(config.optimizer)


def named(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    with on_devices(1):
        return workdir, train(config, workdir).state


@pytest.mark.slow
def test_adapters_and_fresh_parts_move_and_the_base_keeps_its_bits(config, finished):
    before = named(sharded_init(TrainSetup.of(config, make_mesh(config.mesh, jax.devices()[:1])))[0].params)
    moved = {name for name, leaf in named(finished[1].params).items() if np.any(leaf != before[name])}
    adapted = {name for name in before if name.startswith("lora/")}
    fresh = {
        name for name in before if name.startswith(("model/perceiver/", "model/vision_adapter/", "model/audio_ad"))
    }
    assert len(adapted) == 2 * (7 + 1 + 1)
    assert moved == adapted | fresh | {"objective/log_temperature"}


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(config, finished, tmp_path, one_device):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    resumed = train(config, tmp_path / "run")
    assert resumed.start == 2
    for left, right in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(finished[1]), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_a_loaded_model_has_its_adapters_merged(config, finished):
    workdir, state = finished
    assert (workdir / "checkpoints" / "4" / "lora").is_dir()
    last = dataclasses.replace(config, eval=dataclasses.replace(config.eval, ema=False))
    loaded = {}
    for read, params in ((config, averaged(state)), (last, state.params)):
        expected = named(merge(params["model"], params["lora"], config.lora))
        loaded[read.eval.ema] = named(embedder.load(workdir, read).params)
        checkpoints = Checkpoints(RunDirectory(workdir), saves=False)
        exported = HostParams(checkpoints, read, merged=True)
        for name, leaf in loaded[read.eval.ema].items():
            np.testing.assert_allclose(leaf, expected[name], atol=1e-7, err_msg=name)
            np.testing.assert_allclose(exported(name), expected[name], atol=1e-7, err_msg=name)
        checkpoints.close()
    changed = {name for name in loaded[True] if np.any(loaded[True][name] != loaded[False][name])}
    assert "vision_adapter/kernel" in changed and "vit/patch_embedding/kernel" not in changed
    for rank in (0, 3):
        other = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=rank))
        with pytest.raises(SailError, match="another config.*kernel_a"):
            embedder.load(workdir, other)


def test_frozen_parameters_have_no_gradient_and_no_moment(config):
    state = jax.eval_shape(lambda: init_state(config, *parts(config)))
    trained, frozen = split(config, state.params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trained, frozen, state.params)]
    assert sizes[0] + sizes[1] == sizes[2] and sizes[1] > 10_000
    assert set(trained) == {"model", "objective", "lora"} and set(frozen) == {"model"}
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(moments) == 2 * sizes[0]
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(state.params)
    decays = named(match(WEIGHT_DECAY, trained))
    assert all(decays[name] for name in decays if name.startswith("lora/"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "remat"), [(2, "none"), pytest.param(2, "dots", marks=pytest.mark.slow), (2, "full"), (0, "none")]
)
def test_no_matrix_product_makes_a_gradient_of_an_adapted_kernel(config, rank, remat):
    model = dataclasses.replace(config.model, remat=remat)
    config = dataclasses.replace(config, model=model, lora=dataclasses.replace(config.lora, rank=rank))
    setup = TrainSetup.of(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    step = jax.make_jaxpr(make_train_step(setup), static_argnums=2)
    batch = jax.tree.map(jnp.asarray, BatchSource(config, HostShare(0, 16, 1))[1].arrays)
    products = set(shapes_of_products(step(setup.abstract, batch, setup.objective.recipe([0]), setup.values).jaxpr))
    width, inner = config.model.llm.width, config.model.llm.mlp_width
    # Trained in full, gate, up and down have such gradients: the search does find them.
    assert bool(products & {(width, inner), (inner, width)}) == (rank == 0)


@pytest.mark.slow
def test_a_mesh_of_eight_devices_gives_the_loss_and_gradients_of_one(config, finished):
    rng = np.random.default_rng(0)
    params = jax.device_get(finished[1].params)
    params["lora"] = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.1, params["lora"])

    def loss_and_gradient(mesh):
        abstract = abstract_state(config, *parts(config), mesh).params
        placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, abstract)
        loss = make_loss(OmniEmbedder(config.model, groups=data_shards(mesh)), parts(config)[0], config.lora)
        arrays = BatchSource(config, HostShare(0, config.data.batch_size, data_shards(mesh)))[1].arrays
        # Only text, since compiling the other towers takes long.
        arrays = arrays._replace(**{name: getattr(arrays, name)[:0] for name in MEDIA})

        def of_trained(trained, frozen, batch):
            return loss(join(trained, frozen), batch, parts(config)[0].recipe([0]))[0]

        return jax.jit(jax.value_and_grad(of_trained))(*split(config, placed), shard_batch(arrays, mesh))

    (one, gradient_one), (eight, gradient_eight) = (
        loss_and_gradient(make_mesh(sizes, devices))
        for sizes, devices in ((MeshConfig(), jax.devices()[:1]), (MeshConfig(2, 2, 2), None))
    )
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    expected = named(gradient_one)
    for name, gradient in named(gradient_eight).items():
        scale = max(np.abs(expected[name]).max(), 1e-3)
        np.testing.assert_allclose(gradient, expected[name], atol=2e-4 * scale, err_msg=name)


def test_freezing_needs_no_adapters(config):
    without = dataclasses.replace(config.lora, rank=0)
    freeze = dataclasses.replace(config.optimizer, freeze=(r"^vit/", r"^llm/embedding$"))
    config = dataclasses.replace(config, lora=without, optimizer=freeze)
    state = jax.eval_shape(lambda: init_state(config, *parts(config)))
    trained, frozen = (set(named(tree)) for tree in split(config, state.params))
    wanted = {name for name in named(state.params) if name.startswith(("model/vit/", "model/llm/embedding"))}
    assert frozen == wanted | {"model/audio/input_norm/mean", "model/audio/input_norm/var"}
    assert not any("vit/" in name for name in named(state.opt_state))
    assert "lora" not in state.params and "objective/log_temperature" in trained


def test_patterns_without_a_match_are_named(config):
    wrong = [
        dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, freeze=(r"^vti/layers",))),
        dataclasses.replace(config, lora=dataclasses.replace(config.lora, trained=(r"^perciever/layers",))),
    ]
    for config, message in zip(
        wrong, (r"optimizer\.freeze.*vit/layers", r"lora\.trained.*perceiver/layers"), strict=True
    ):
        with pytest.raises(SailError, match=message):
            abstract_state(config, *parts(config), make_mesh(MeshConfig()))
