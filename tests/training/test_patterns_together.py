"""All patterns of a batch in one forward pass: equal to one after another, with towers run once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import shapes_of_products

from sail_jax import config as config_lib
from sail_jax.batch import TokenType
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.models.model import init_params, make_model
from sail_jax.objectives.objective import make_objective
from sail_jax.training.step import make_loss

PATTERNS = ("VTA->VTA", "V->T", "A->VT")


@pytest.fixture
def experiment(settings):
    def make(*patterns):
        settings.data.datasets = {"copair": {**settings.data.datasets.copair.to_dict(), "patterns": patterns}}
        config = config_lib.build(settings)
        objective = make_objective(config)
        loss = make_loss(make_model(config.model), objective, config.lora)
        return config, objective, lambda params, batch: loss(params, batch, objective.recipe([0]))

    return make


@pytest.fixture
def batch(experiment):
    """A batch with all modalities on both sides."""
    config, *_ = experiment(*PATTERNS)
    return jax.tree.map(jnp.asarray, BatchSource(config, HostShare(0, 16, 1))[0].arrays)


@pytest.fixture
def params(experiment):
    config, objective, _ = experiment(*PATTERNS)
    return {"model": init_params(config.model, 0), "objective": objective.init()}


def has(batch, side, view):
    """Returns which items of a side have all modalities of a view, by the arrays of the batch."""
    kinds = {"V": TokenType.VISION, "T": TokenType.TEXT, "A": TokenType.AUDIO}
    return np.all([np.any(batch.token_types[:, side] == kinds[letter], axis=-1) for letter in view], axis=0)


@pytest.mark.slow
def test_patterns_together_equal_each_pattern_on_its_own(experiment, batch, params):
    _, _, together = experiment(*PATTERNS)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(together, has_aux=True))(params, batch)
    values, gradients, counts = [], [], []
    for pattern in PATTERNS:
        _, _, alone = experiment(pattern)
        (part, details), its_gradient = jax.jit(jax.value_and_grad(alone, has_aux=True))(params, batch)
        query, target = pattern.split("->")
        assert int(details["valid_pairs"]) == (has(batch, 0, query) & has(batch, 1, target)).sum()
        assert details["valid_pairs"] == metrics[f"{pattern}/valid_pairs"]
        values.append(part)
        gradients.append(its_gradient)
        counts.append(int(details["valid_pairs"]))
    assert len(set(counts)) > 1 and min(counts) > 0  # some items lack something, so patterns differ in their pairs
    weights = np.array(counts) / sum(counts)
    np.testing.assert_allclose(value, np.dot(weights, values), rtol=1e-5)
    wanted = jax.tree.map(lambda *parts: sum(w * p for w, p in zip(weights, parts, strict=True)), *gradients)
    for left, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4 * max(np.abs(right).max(), 1e-2))


@pytest.mark.slow
def test_an_item_that_lacks_a_modality_gets_exactly_no_gradient_from_its_pattern(experiment, batch, params):
    """The frames of an item without text teach nothing under V->T as a target of text, nor does its partner."""
    _, _, loss = experiment("VTA->VTA")

    def of_sound(audio):
        given = batch._replace(audio_vectors=audio, has_audio_vector=jnp.ones(audio.shape[:2], bool))
        return loss(params, given)[0]

    gradient = jax.jit(jax.grad(of_sound))(jnp.ones_like(batch.audio_vectors))
    counted = has(batch, 0, "VTA") & has(batch, 1, "VTA")
    assert 0 < counted.sum() < len(counted)
    moved = np.any(np.asarray(gradient) != 0, axis=(1, 2))
    np.testing.assert_array_equal(moved, counted)


@pytest.mark.slow
def test_the_towers_run_once_however_many_patterns(experiment, batch, params):
    def products(*patterns):
        config, _, loss = experiment(*patterns)
        jaxpr = jax.make_jaxpr(lambda p, b: loss(p, b)[0])(params, batch)
        patches = config.model.vit.patches
        return [s for s in shapes_of_products(jaxpr.jaxpr) if patches in s or patches * len(batch.frames) in s]

    assert products("VTA->VTA") and products("VTA->VTA") == products(*PATTERNS)
