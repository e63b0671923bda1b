"""The useful work of a step: tokens as the model masks them, and time at the peak rate of the devices."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from sail_jax import config as config_lib
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.models.model import abstract_params, make_model
from sail_jax.objectives.objective import make_objective
from sail_jax.sharding.chips import CHIPS
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training import work as work_lib
from sail_jax.training.time_spent import TimeSpent
from sail_jax.training.work import WorkCounter


@pytest.fixture
def counted(settings):
    """Returns the work of the first batch in its first half, which stands for the batch, and half of that batch."""

    def count(**patterns):
        for name, patterns_of_set in patterns.items():
            settings.data.datasets[name].patterns = patterns_of_set
        config = config_lib.build(settings)
        loaded = BatchSource(config, HostShare(0, config.data.batch_size // 2, 1))[0]
        recipe = make_objective(config).recipe(loaded.datasets)
        with contextlib.closing(TimeSpent()) as spent:
            counter = WorkCounter(config, make_mesh(config.mesh, jax.devices()[:2]), None, spent)
            return config, loaded, recipe, [counter(loaded, recipe) for _ in range(2)]

    return count


@pytest.mark.slow
def test_tokens_are_those_that_the_fusion_reads(counted):
    config, loaded, recipe, (work, _) = counted(copair=("VTA->T", "T->O"), search=("T->O", "T->V"))

    @jax.jit
    def tokens_read(params, batch):
        return make_model(config.model).apply({"params": params}, batch, recipe.views)[1].mask.sum()

    mesh = make_mesh(config.mesh, jax.devices()[:1])
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(config, mesh))
    assert work.tokens == 2 * tokens_read(params, loaded.arrays)
    assert work.items == 2 * loaded.arrays.valid.sum() == 2 * loaded.arrays.valid.size
    assert work.ideal_seconds is None  # nobody knows the peak of this CPU


def test_a_dual_tower_reads_texts_once(counted, settings):
    settings.model.kind = "dual_tower"
    _, loaded, _, (work, _) = counted(copair=("T->T", "T->O"), search=("T->T", "T->O"))
    assert work.tokens == 2 * (loaded.arrays.tokens != 0).sum()


def test_time_at_the_peak_is_counted_once_for_a_kind_of_batch(counted, monkeypatch):
    asked = []

    def flops(config, names, params, recipe, shards, encodings):
        asked.append((names, shards))
        return 7e12

    monkeypatch.setattr(work_lib, "model_flops", flops)
    monkeypatch.setattr(work_lib, "chip_of", lambda device: CHIPS["h100"])
    _, loaded, _, works = counted()
    assert [work.ideal_seconds for work in works] == [7e12 / (2 * 989e12)] * 2
    assert asked == [([["copair", "search"][loaded.datasets[0]]], 2)]
