"""The whole objective: patterns, weights of sets and losses, temperatures, and settings that cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_losses import ALL, OMNI, VALID, B, D, M, batch_of

from sail_jax import config as config_lib
from sail_jax.batch import Outputs, Parts
from sail_jax.config.training import ObjectiveConfig
from sail_jax.errors import SailError
from sail_jax.objectives.cosent import cosent
from sail_jax.objectives.info_nce import Correction, info_nce
from sail_jax.objectives.objective import LOSSES, Objective, SetRules, make_objective
from sail_jax.patterns import Pattern

IDS = [(i, 100 + i) for i in range(B)]
OFF = dict.fromkeys(LOSSES, 0.0)


def objective_of(*sets, **settings):
    rules = [
        SetRules(tuple(Pattern(*p.split("->")) for p in patterns), OFF | weights, low)
        for patterns, weights, low in sets
    ]
    config = ObjectiveConfig(matryoshka=(D,), **settings)
    return Objective(config, tuple(rules), D, gated=any(r.weights["late_fusion"] for r in rules))


def encoded(views, sides=1, seed=5):
    """Random output of a model for [query views, target views]: z and out, everything filled."""
    rng = np.random.default_rng(seed)

    def rows():
        return (
            jnp.asarray(rng.normal(size=(views[0], B, D)), jnp.float32),
            jnp.asarray(rng.normal(size=(views[1], B, sides, D)), jnp.float32),
        )

    z = rows()
    parts = Parts(rows(), rows(), rows())
    return z, Outputs(tuple(jnp.ones(x.shape[:-1], bool) for x in z), parts)


def call(objective, z, out, batch, params=None):
    """The total and the metrics of one call for all sets, compiled as a whole."""
    params, recipe = params or objective.init(), objective.recipe(range(len(objective.sets)))
    return jax.jit(lambda *arrays: objective(*arrays, recipe))(params, z, out, batch)


def gradient_of_z(objective, z, out, batch, params=None):
    return jax.jit(jax.grad(lambda z: call(objective, z, out, batch, params)[0]))(z)


@pytest.mark.slow
def test_patterns_are_averaged_over_all_that_count():
    """Two patterns of one set equal the two run separately, each counted by its pairs."""
    objective = objective_of((("V->T", "O->O"), {"nce": 1.0, "cosent": 0.7}, 0.0))
    batch = batch_of(*IDS, scores=np.linspace(0, 1, B))
    assert objective.recipe([0]).views == (("O", "V"), ("O", "T"))
    z, out = encoded((2, 2))
    filled = out.filled[0].at[1, :5].set(False), out.filled[1]  # five queries have no frames
    out = out._replace(filled=filled)
    values, counts = [], []
    for view, pattern in enumerate(("O->O", "V->T")):
        single = objective_of(((pattern,), {"nce": 1.0, "cosent": 0.7}, 0.0))
        alone = jax.tree.map(lambda x, at=view: x[at : at + 1], out)
        _, metrics = call(single, tuple(x[view : view + 1] for x in z), alone, batch)
        values.append([metrics["nce"], metrics["cosent"]])
        counts.append(metrics["valid_pairs"])
    assert [int(c) for c in counts] == [B, B - 5]
    expected = np.average(np.array(values).sum(1), weights=counts)
    np.testing.assert_allclose(call(objective, z, out, batch)[0], expected, rtol=1e-5)
    gradients = gradient_of_z(objective, z, out, batch)
    assert not np.any(gradients[0][1, :5]) and np.any(gradients[0][0, 0]) and not np.any(gradients[1][1, :5])


@pytest.mark.slow
def test_a_mixed_batch_gives_each_pair_its_sets_patterns_weights_and_temperature():
    objective = objective_of((("O->O",), {"nce": 1.0}, 0.0), (("V->T", "O->O"), {"nce": 0.5, "micl": 2.0}, 0.0))
    recipe = objective.recipe([0, 1])
    assert recipe[:2] == ((OMNI, Pattern("V", "T")), ("nce", "micl"))
    dataset = np.arange(B) % 2
    batch = batch_of(*IDS, dataset=dataset)
    z, out = encoded((2, 2))
    params = {"log_temperature": jnp.log(jnp.array([0.1, 0.2]))}
    total, metrics = call(objective, z, out, batch, params)
    assert metrics["O->O/valid_pairs"] == B and metrics["V->T/valid_pairs"] == B // 2
    gradient = gradient_of_z(objective, z, out, batch, params)
    assert not np.any(gradient[0][1, dataset == 0]) and np.any(gradient[0][1, dataset == 1])
    np.testing.assert_allclose(metrics["temperature"], 0.15, rtol=1e-6)
    assert np.isfinite(total)


@pytest.mark.slow
def test_weights_scale_their_losses_and_those_of_zero_are_not_computed():
    z, out = encoded((1, 1))
    batch = batch_of(*IDS, scores=np.linspace(0, 1, B))
    losses = [name for name in LOSSES if name != "distill"]  # which needs ID embeddings
    parts = {}
    for name in losses:
        objective = objective_of((("O->O",), {name: 1.0}, 0.0))
        assert objective.recipe([0]).losses == (name,)
        parts[name] = call(objective, z, out, batch)[0]
        assert parts[name] > 0
    weights = {"nce": 2.0, "cosent": 0.5, "micl": 0.25, "late_fusion": 3.0}
    objective = objective_of((("O->O",), weights, 0.0))
    expected = sum(weights[name] * parts[name] for name in losses)
    np.testing.assert_allclose(call(objective, z, out, batch)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("losses", "counts", "said"),
    [
        ({}, {}, "has a weight, and nothing in Objective._score_pattern computes it"),
        ({"nce": jnp.zeros(B)}, {"nce": B}, rf"'nce' .* have the shapes \({B},\) and \(\) in Objective._score_pattern"),
        ({"nce": 0.0}, {}, "'nce' .* have no count in Objective._score_pattern"),
    ],
)
def test_a_loss_that_is_half_added_is_named(losses, counts, said, monkeypatch):
    monkeypatch.setattr(Objective, "_score_pattern", lambda *_: (losses, counts, {}))
    objective = objective_of((("O->O",), {"nce": 1.0}, 0.0))
    with pytest.raises(SailError, match=said):
        objective(objective.init(), *encoded((1, 1)), batch_of(*IDS), objective.recipe([0]))


def test_late_fusion_is_left_out_where_nothing_shows_vision():
    objective = objective_of((("T->T", "T->V"), {"late_fusion": 1.0}, 0.0))
    z, out = encoded((1, 2))
    gradient = gradient_of_z(objective, z, out, batch_of(*IDS))
    assert not np.any(gradient[1][0]) and np.any(gradient[1][1])


@pytest.mark.slow
def test_a_mixed_batch_has_the_mean_of_what_its_sets_would_have():
    """A set whose weight is nearly zero and one whose weight is zero come to the same; COSENT counts by its share."""
    dataset, scores = np.arange(B) % 2, np.where(np.arange(B) % 2, np.linspace(0, 1, B), np.nan)
    z, out = encoded((1, 1))
    batch = batch_of(*IDS, dataset=dataset, scores=scores)
    values = []
    for weight in (0.0, 1e-7):
        objective = objective_of((("O->O",), {"nce": 1.0}, 0.0), (("O->O",), {"nce": weight, "cosent": 1.0}, 0.0))
        total, metrics = call(objective, z, out, batch)
        values.append(total)
    np.testing.assert_allclose(*values, rtol=1e-5)
    valid = jnp.asarray(dataset == 1)
    alone = cosent(z[0][0], z[1][0, :, 0], jnp.asarray(scores), 0.05, valid, jnp.asarray(dataset))
    np.testing.assert_allclose(metrics["cosent"], alone / 2, rtol=1e-5)


def test_pairs_with_a_low_score_are_no_positives():
    scores = np.where(np.arange(B) < 4, 0.2, 0.9)
    objective = objective_of((("O->O",), {"nce": 1.0}, 0.5))
    z, out = encoded((1, 1))
    _, metrics = call(objective, z, out, batch_of(*IDS, scores=scores))
    assert metrics["valid_pairs"] == B - 4
    _, metrics = call(objective, z, out, batch_of(*IDS))
    assert metrics["valid_pairs"] == B  # without a score every pair is a positive


def test_micl_needs_both_modalities_on_both_sides():
    objective = objective_of((("T->O", "O->O"), {"micl": 1.0}, 0.0))
    z, out = encoded((2, 1))
    batch = batch_of(*IDS)
    gradient = jax.jit(jax.grad(lambda out: call(objective, z, out, batch)[0], allow_int=True))(out)
    assert not np.any(gradient.parts.visual[0][1]) and np.any(gradient.parts.visual[0][0])
    assert np.any(gradient.parts.textual[0][0])


@pytest.mark.slow
def test_hard_negatives_and_frequencies_reach_the_objective():
    """Each pair of a mixed batch has the strength of its own set."""
    objective = objective_of(*[(("O->O",), {"nce": 1.0}, 0.0)] * 2)
    strengths = zip(objective.sets, (1.0, 0.25), strict=True)
    sets = tuple(dataclasses.replace(rules, correct_popularity=strength) for rules, strength in strengths)
    objective = dataclasses.replace(objective, sets=sets)
    z, out = encoded((1, 1), sides=1 + M)
    ids = [(i, 100 + i, *(1000 + i * M + m for m in range(M))) for i in range(B)]
    dataset, frequency = np.arange(B) % 2, np.random.default_rng(3).uniform(-9, 0, (B, 2 + M)).astype(np.float32)
    batch = batch_of(*ids, dataset=dataset)
    sides = frequency[:, 0], frequency[:, 1], frequency[:, 2:]
    by_set = Correction(*sides, jnp.where(dataset == 0, 1.0, 0.25))
    for given, correction in ((batch, None), (batch._replace(log_frequency=frequency), by_set)):
        arrays = z[0][0], z[1][0, :, 0], jnp.full(B, 0.05), ALL, VALID
        expected, _ = info_nce(*arrays, hard=z[1][0, :, 1:], correction=correction)
        np.testing.assert_allclose(call(objective, z, out, given)[0], expected, rtol=1e-5)


def test_a_recipe_has_the_room_of_its_batches():
    objective = objective_of((("O->O",), {"nce": 1.0}, -np.inf))
    assert objective.recipe([0], 64) == objective.recipe([0])._replace(room=64)
    assert objective.recipe([0]).room is None


def test_temperatures_stay_in_their_bounds():
    objective = objective_of(*[(("O->O",), {"nce": 1.0}, 0.0)] * 3, min_temperature=0.02, max_temperature=0.3)
    params = {"log_temperature": jnp.log(jnp.array([0.001, 0.1, 9.0]))}
    np.testing.assert_allclose(jnp.exp(objective.project(params)["log_temperature"]), [0.02, 0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(objective.init()["log_temperature"]), 0.05, rtol=1e-6)


def test_a_temperature_outside_of_its_bounds_is_refused():
    with pytest.raises(SailError, match="max_temperature"):
        objective_of(temperature=0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patterns": ()}, "at least one pattern"),
        ({"patterns": ("V->T", "V->T")}, "each once"),
        ({"patterns": ("VT",)}, "write a pattern"),
        ({"patterns": ("VX->T",)}, r"datasets\.copair\.patterns"),
        ({"loss_weights": {"infonce": 1.0}}, "nce"),
        ({"loss_weights": {"nce": -1.0}}, "at least 0"),
        (
            {"correct_popularity": 1.5},
            r"datasets\.copair\.correct_popularity is 1.5; it must be at least 0 and at most 1",
        ),
        (
            {"kind": "items", "loss_weights": {"distill": 1.0}, "correct_popularity": 1.0},
            "no negatives whose popularity",
        ),
    ],
)
def test_wrong_settings_are_explained(settings, change, message):
    settings.data.datasets.copair.update(change)
    with pytest.raises(SailError, match=message):
        make_objective(config_lib.build(settings))
