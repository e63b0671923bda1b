"""Distillation of ID embeddings: against brute force, on meshes, in micro-batches; teachers stay unchanged."""

import jax
import numpy as np
import pytest
from mesh_steps import assert_same, call, encode, run_steps, untrained

from sail_jax import config as config_lib
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.errors import SailError
from sail_jax.models.model import make_model
from training_runs import give_id_embeddings


@pytest.fixture
def taught(settings, monkeypatch):
    """Items with ID embeddings of two teachers; every third item lacks the second."""

    def embeddings(number):
        rng = np.random.default_rng(number)
        vectors = {"als": rng.normal(size=6).astype(np.float32), "svd": rng.normal(size=3).astype(np.float32)}
        return vectors if number % 3 else {"als": vectors["als"]}

    give_id_embeddings(monkeypatch, embeddings)
    settings.objective.teachers = {"als": 6, "svd": 3}
    settings.data.datasets = {
        "a_ids": {"kind": "items", "table": "tables/copair.parquet", "loss_weights": {"distill": 2.0}},
        "copair": {"table": "tables/copair.parquet", "loss_weights": {"distill": 0.5}},
    }
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cosine", "mse", "relational", "contrastive"])
def test_distillation_equals_brute_force(taught, kind):
    taught.objective.distill = kind
    config = config_lib.build(taught)
    objective, params = untrained(config)
    source = BatchSource(config, HostShare(0, 16, 1))
    step = next(step for step in range(9) if source.datasets(step) == (0,))
    batch, recipe = source[step].arrays, objective.recipe((0,))
    assert batch.tokens.shape[1] == 1 and recipe.losses == ("distill",)
    z, out = encode(make_model(config.model), params["model"], batch, recipe.views)
    expected = 0.0
    for column, (name, begin, width) in enumerate([("als", 0, 6), ("svd", 6, 3)]):
        rows = np.flatnonzero(batch.has_id[:, 0, column])
        unit = np.asarray(z[0][0])[rows]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        head = dict(params["objective"]["distill"][name])
        rng = np.random.default_rng(begin)
        head |= {"bias": rng.normal(size=width), "mean": 0.2 * rng.normal(size=width)}
        head["whitener"] = np.eye(width) + 0.3 * rng.normal(size=(width, width))
        params["objective"]["distill"][name] = {part: np.float32(value) for part, value in head.items()}
        student = unit @ np.asarray(head["kernel"]) + head["bias"]
        teacher = (batch.id_vectors[rows, 0, begin : begin + width] - head["mean"]) @ head["whitener"]
        teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
        cosines = student / np.linalg.norm(student, axis=1, keepdims=True)
        if kind == "cosine":
            expected += 2 * np.mean(1 - (cosines * teacher).sum(1))
        elif kind == "mse":
            expected += 2 * np.mean(((student - teacher) ** 2).sum(1))
        elif kind == "contrastive":
            logits = cosines @ teacher.T / config.objective.distill_temperature
            again = (teacher @ teacher.T > 0.9999) & ~np.eye(len(rows), dtype=bool)  # an item that occurs twice
            assert again.any()
            expected += 2 * np.mean(np.log(np.where(again, 0.0, np.exp(logits)).sum(1)) - np.diag(logits))
        else:
            other = ~np.eye(len(rows), dtype=bool)
            expected += 2 * np.mean(((cosines @ cosines.T - teacher @ teacher.T) ** 2)[other])
    loss, _ = call(objective, params["objective"], z, out, batch, recipe)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert not batch.has_id.all()


@pytest.mark.slow
def test_pairs_are_taught_on_both_sides_under_all_views(taught):
    taught.data.datasets = {
        "copair": {
            "table": "tables/copair.parquet",
            "patterns": ("O->O", "T->O"),
            "loss_weights": {"distill": 0.5, "nce": 0.0},
        }
    }
    config = config_lib.build(taught)
    objective, params = untrained(config)
    batch, recipe = BatchSource(config, HostShare(0, 16, 1))[0].arrays, objective.recipe((0,))
    z, out = encode(make_model(config.model), params["model"], batch, recipe.views)
    loss, metrics = call(objective, params["objective"], z, out, batch, recipe)
    rows = [(0, z[0][0], out.filled[0][0]), (0, z[0][1], out.filled[0][1])]
    rows.append((1, z[1][0][:, 0], out.filled[1][0][:, 0]))
    expected = 0.0
    for column, (name, begin, width) in enumerate([("als", 0, 6), ("svd", 6, 3)]):
        distances = []
        for side, vectors, filled in rows:
            unit = np.asarray(vectors) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
            student = unit @ np.asarray(params["objective"]["distill"][name]["kernel"])
            student /= np.maximum(np.linalg.norm(student, axis=1, keepdims=True), 1e-9)
            cosines = (student * batch.id_vectors[:, side, begin : begin + width]).sum(1)
            distances += (1 - cosines)[np.asarray(filled) & batch.has_id[:, side, column]].tolist()
        expected += 0.5 * np.mean(distances)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert metrics["distill"] == loss


@pytest.mark.slow
def test_items_and_pairs_are_taught_on_any_mesh(taught):
    for dataset in taught.data.datasets.values():
        dataset.patterns = ("T->T",)  # no loss sees which towers made a vector
    taught.optimizer.freeze = ("^audio/", "^vit/")
    config = config_lib.build(taught)
    whole = run_steps(config, (1, 1, 1))
    assert "distill" in whole[0][0] and "als/cosine" in whole[0][0]
    split = config_lib.to_dict(config)
    split["train"]["micro_batches"] = 2
    assert_same(run_steps(config_lib.build(split), (2, 2, 1)), whole)


@pytest.mark.slow
def test_teachers_get_no_gradient_and_stay_as_they_are(taught):
    config = config_lib.build(taught)
    objective, params = untrained(config)
    source = BatchSource(config, HostShare(0, 16, 1))
    step = next(step for step in range(9) if source.datasets(step) == (0,))
    batch, recipe = source[step].arrays, objective.recipe((0,))
    before = batch.id_vectors.copy()

    def loss(vectors, batch):
        taught_batch = batch._replace(id_vectors=vectors)
        z, out = make_model(config.model).apply({"params": params["model"]}, taught_batch, recipe.views)
        return objective(params["objective"], z, out, taught_batch, recipe)[0]

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(batch.id_vectors, batch), 0.0)
    np.testing.assert_array_equal(batch.id_vectors, before)


def test_a_wrong_width_is_a_bad_record_that_says_what_to_do(taught):
    taught.objective.teachers = {"als": 5}
    loaded = BatchSource(config_lib.build(taught), HostShare(0, 16, 1))[0]
    assert len(loaded.bad_records) and "config.objective.teachers.als" in loaded.bad_records[0]


def test_distillation_without_teachers_is_refused(settings):
    settings.data.datasets["copair"].loss_weights = {"distill": 1.0}
    with pytest.raises(SailError, match="teachers"):
        BatchSource(config_lib.build(settings), HostShare(0, 16, 1))
