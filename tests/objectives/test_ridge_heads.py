"""Heads in closed form: against scikit-learn's ridge regression; centred and whitened ID embeddings."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from sail_jax.errors import SailError
from sail_jax.objectives.distill import init_heads, students, targets
from sail_jax.objectives.ridge_heads import CANDIDATES, HeadSums, cosines, solve, sums_of

WIDTH, SIZE = 6, 4


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def items():
    """Embeddings, and ID embeddings with a strong common direction that depend on them; which items have one."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, WIDTH)) + 0.5
    teachers = unit(z @ rng.normal(size=(WIDTH, SIZE)) + rng.normal(size=(300, SIZE)) + 4 * np.eye(SIZE)[0])
    return jnp.float32(z), jnp.float32(teachers), jnp.array(rng.random(300) < 0.8)


def of_batches(z, teachers, has):
    """The sums of three batches, added."""
    parts = [sums_of(*part) for part in zip(*(jnp.split(x, 3) for x in (z, teachers, has)), strict=True)]
    return HeadSums(*map(sum, zip(*parts, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["centred", "whitened", "none"])
def test_heads_are_those_of_scikit_learn(items, statistics):
    z, teachers, has = items
    heads = solve(of_batches(*items), name="als", statistics=statistics)
    u, t = unit(np.float64(z[has])), np.float64(teachers[has])
    mean = 0.0 if statistics == "none" else t.mean(0)
    np.testing.assert_allclose(heads[0]["mean"], np.broadcast_to(mean, SIZE), atol=1e-6)
    wanted = (t - mean) @ heads[0]["whitener"]
    if statistics == "whitened":
        np.testing.assert_allclose(np.cov(wanted.T, bias=True), np.eye(SIZE), atol=1e-3)
    else:
        np.testing.assert_array_equal(heads[0]["whitener"], np.eye(SIZE))
    scale = np.trace(np.cov(u.T, bias=True)) / WIDTH
    for candidate, head in zip(CANDIDATES, heads, strict=True):
        ridge = Ridge(alpha=candidate * scale * has.sum()).fit(u, wanted)
        np.testing.assert_allclose(head["kernel"], ridge.coef_.T, atol=2e-4)
        np.testing.assert_allclose(head["bias"], ridge.intercept_, atol=2e-4)


@pytest.mark.slow
def test_cosines_of_stacked_heads_are_those_of_each(items):
    heads = solve(of_batches(*items), name="als", statistics="centred")
    stacked = {part: jnp.stack([head[part] for head in heads]) for part in heads[0]}
    z, teachers, has = items
    heads = [{part: jnp.asarray(value) for part, value in head.items()} for head in heads]
    expected = [(unit(np.asarray(students(h, z))) * np.asarray(targets(h, teachers))).sum(1)[has].sum() for h in heads]
    np.testing.assert_allclose(cosines(stacked, z, teachers, has), expected, rtol=1e-4)


@pytest.mark.slow
def test_a_fitted_head_beats_a_random_one(items):
    z, teachers, has = items
    heads = solve(of_batches(*items), name="als", statistics="centred")
    random = init_heads({"als": SIZE}, WIDTH, 0)["als"] | {"mean": heads[0]["mean"]}
    fitted, drawn = (
        cosines(
            {part: jnp.asarray(value)[None] for part, value in head.items() if part != "ceiling"}, z, teachers, has
        )[0]
        for head in (heads[0], random)
    )
    assert fitted > 0.5 * has.sum() > drawn


def test_an_id_embedding_without_variance_or_items_is_refused(items):
    z, teachers, has = items
    same = jnp.broadcast_to(teachers[:1], teachers.shape)
    with pytest.raises(SailError, match=r"'als' points in the same direction.*config\.objective\.teachers"):
        solve(of_batches(z, same, has), name="als", statistics="centred")
    with pytest.raises(SailError, match=r"'als' is missing.*config\.ingest\.vectors"):
        solve(of_batches(z, teachers, jnp.zeros(300, bool)), name="als", statistics="centred")
