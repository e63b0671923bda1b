"""Heads of the distillation that begin as a ridge regression: on a mesh, in micro-batches, and when they are fitted."""

import dataclasses

import jax
import numpy as np
import pytest
from mesh_steps import untrained
from sklearn.linear_model import Ridge

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.models.model import make_model
from sail_jax.objectives.ridge_heads import CANDIDATES
from sail_jax.sharding.mesh import data_shards, make_mesh
from sail_jax.training.head_fit import fit_heads, fits_heads
from sail_jax.training.setup import TrainSetup, sharded_init
from sail_jax.training.stages import plan
from training_runs import give_id_embeddings

SIZE = 4


@pytest.fixture
def taught(settings, monkeypatch):
    """Items whose ID embedding has a strong common direction; every third item has none."""

    def embeddings(number):
        vector = np.random.default_rng(number).normal(size=SIZE) + 3 * np.eye(SIZE)[0]
        return {"als": np.float32(vector)} if number % 3 else {}

    give_id_embeddings(monkeypatch, embeddings)
    settings.objective.teachers = {"als": SIZE}
    settings.data.datasets = {
        "copair": {"table": "tables/copair.parquet", "patterns": ("T->T",)},
        "ids": {
            "kind": "items",
            "table": "tables/copair.parquet",
            "patterns": ("T->T",),
            "loss_weights": {"distill": 2.0},
        },
    }
    return settings


@pytest.mark.slow
def test_fitted_heads_are_those_of_scikit_learn_on_a_mesh_in_micro_batches(taught):
    taught.train.update(steps=40, micro_batches=2)
    taught.objective.distill_fit_items = 160
    config = config_lib.build(taught)
    (stage,) = plan(config, None)
    mesh = make_mesh(MeshConfig(2, 2, 1), jax.devices()[:4])
    setup = TrainSetup.of(config, mesh)
    source = BatchSource(config, HostShare(0, 16, data_shards(mesh)))
    state, _ = sharded_init(setup)
    head = jax.device_get(fit_heads(setup, stage, source, state).params["objective"]["distill"]["als"])

    steps = [step for step in range(40) if source.datasets(step) == (1,)][:10]
    u, t = {}, {}
    _, params = untrained(config)
    encode = jax.jit(make_model(config.model).apply, static_argnums=2)
    whole = BatchSource(
        dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=1)), HostShare(0, 16, 1)
    )
    for step in steps:
        batch = whole[step].arrays
        ((z,),), _ = encode({"params": params["model"]}, batch, (("T",),))
        has = batch.has_id[:, 0, 0] & batch.valid[:, 0]
        u[step] = np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), np.float64)[has]
        t[step] = np.float64(batch.id_vectors[:, 0][has])
    held_out = steps[4::5]
    fitted = [step for step in steps if step not in held_out]
    x, y = (np.concatenate([of[step] for step in fitted]) for of in (u, t))
    np.testing.assert_allclose(head["mean"], y.mean(0), atol=1e-5)
    scale = np.trace(np.cov(x.T, bias=True)) / x.shape[1]
    ridges = [Ridge(alpha=candidate * scale * len(x)).fit(x, y - y.mean(0)) for candidate in CANDIDATES]
    reached = []
    for ridge in ridges:
        found, wanted = (
            ridge.predict(np.concatenate([u[s] for s in held_out])),
            np.concatenate([t[s] for s in held_out]),
        )
        wanted = wanted - y.mean(0)
        reached.append(
            np.mean((found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1))
        )
    best = int(np.argmax(reached))
    np.testing.assert_allclose(head["ceiling"], reached[best], atol=2e-3)
    np.testing.assert_allclose(head["kernel"], ridges[best].coef_.T, atol=2e-2 * np.abs(ridges[best].coef_).max())
    np.testing.assert_allclose(head["bias"], ridges[best].intercept_, atol=2e-3)


def test_the_first_stage_that_distils_fits_the_heads(taught, tmp_path):
    taught.stages = {
        "1": {"steps": 3, "weights": {"copair": 1.0}},
        "2": {"steps": 3, "weights": {"ids": 1.0}},
        "3": {"steps": 3},
    }
    stages = plan(config_lib.build(taught), tmp_path)
    assert [fits_heads(stages, stage) for stage in stages] == [False, True, False]
    taught.objective.update(distill_heads="random")
    stages = plan(config_lib.build(taught), tmp_path)
    assert fits_heads(stages, stages[1])  # the statistics are still wanted
    taught.objective.update(teacher_statistics="none")
    stages = plan(config_lib.build(taught), tmp_path)
    assert not any(fits_heads(stages, stage) for stage in stages)
