"""The losses against sentence-transformers, in values and gradients, and the handling of false negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

from sail_jax.config import ObjectiveConfig
from sail_jax.errors import SailError
from sail_jax.objectives.info_nce import info_nce, normalize
from sail_jax.objectives.matryoshka import check_widths, matryoshka
from sail_jax.objectives.negatives import negative_mask
from sail_jax.objectives.objective import Objective

B, D = 12, 32
ALL = ~jnp.eye(B, dtype=bool)
VALID = jnp.ones(B, bool)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(B, D)).astype(np.float32)
    return query, (query + rng.normal(size=(B, D))).astype(np.float32)


class Given(torch.nn.Module):
    """Stands where a model is expected and returns embeddings that are given."""

    def forward(self, features):
        return features


def torch_loss(query, target, scale, widths=None):
    model = SentenceTransformer(modules=[Given()], device="cpu")
    loss = MultipleNegativesRankingLoss(model, scale=scale)
    if widths:
        loss = MatryoshkaLoss(model, loss, widths)
    sides = [torch.tensor(x, requires_grad=True) for x in (query, target)]
    value = loss([{"sentence_embedding": side} for side in sides], None)
    value.backward()
    return value.item(), [side.grad.numpy() for side in sides]


def test_info_nce_equals_sentence_transformers(pairs):
    temperature = 0.05

    def ours(query, target):
        return info_nce(query, target, jnp.full(B, temperature), ALL, VALID, symmetric=False)[0]

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(*pairs)
    expected, expected_gradients = torch_loss(*pairs, 1 / temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_symmetric_is_the_mean_of_both_directions(pairs):
    temperature, (query, target) = jnp.full(B, 0.1), pairs
    forth = info_nce(query, target, temperature, ALL, VALID, symmetric=False)[0]
    back = info_nce(target, query, temperature, ALL, VALID, symmetric=False)[0]
    both = info_nce(query, target, temperature, ALL, VALID)[0]
    np.testing.assert_allclose(both, (forth + back) / 2, rtol=1e-6)


def test_matryoshka_equals_sentence_transformers(pairs):
    widths = (32, 16, 4)

    def ours(query, target):
        def loss(q, t):
            return info_nce(q, t, jnp.full(B, 0.05), ALL, VALID, symmetric=False)

        return matryoshka(loss, query, target, widths)[0]

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(*pairs)
    expected, expected_gradients = torch_loss(*pairs, 20.0, list(widths))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def keys(*ids):
    """[B, 2, 2] uint32 from pairs of small ids."""
    flat = np.array(ids, np.uint32)
    return jnp.asarray(np.stack([np.zeros_like(flat), flat], axis=-1))


def test_related_items_are_no_negatives():
    # Pairs 0 and 1 share a target, 2 and 3 a query; the query of 4 is the target of 5.
    mask = negative_mask(keys((1, 10), (2, 10), (3, 11), (3, 12), (4, 13), (5, 4)), jnp.ones((6, 2), bool))
    expected = ~np.eye(6, dtype=bool)
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 5)):
        expected[i, j] = False
    np.testing.assert_array_equal(mask, expected)


def test_pairs_that_share_a_target_do_not_repel_each_other():
    """The gradient of a query must not depend on its twin's copy of the shared target."""
    rng = np.random.default_rng(1)
    query, target = rng.normal(size=(2, 4, 8)).astype(np.float32)
    target[1] = target[0]
    negatives = negative_mask(keys((1, 10), (2, 10), (3, 11), (4, 12)), jnp.ones((4, 2), bool))

    def loss(query, target, negatives):
        return info_nce(query, target, jnp.full(4, 0.1), negatives, jnp.ones(4, bool), symmetric=False)[0]

    masked = loss(query, target, negatives)
    rows = []
    for i in range(4):  # query i among its positive and the targets of other content, written out
        others = [j for j in range(4) if j != i and not (i < 2 and j < 2)]
        scores = np.array([cosine(query[i], target[j]) for j in [i, *others]]) / 0.1
        rows.append(np.log(np.exp(scores).sum()) - scores[0])
    np.testing.assert_allclose(masked, np.mean(rows), rtol=1e-5)
    assert loss(query, target, ~jnp.eye(4, dtype=bool)) > masked + 0.1


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_invalid_pairs_get_exactly_zero_gradient(pairs):
    valid = VALID.at[3].set(False)
    negatives = negative_mask(keys(*((i, 100 + i) for i in range(B))), jnp.stack([valid, valid], axis=1))

    def loss(query, target):
        return info_nce(query, target, jnp.full(B, 0.05), negatives, valid)[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*pairs)
    kept = [i for i in range(B) if i != 3]
    expected = info_nce(pairs[0][kept], pairs[1][kept], jnp.full(B - 1, 0.05), ALL[1:, 1:], VALID[1:])[0]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient in gradients:
        assert not np.any(gradient[3]) and np.any(gradient[4])


def test_only_valid_rows_are_averaged(pairs):
    """Also where the mask of negatives says nothing of validity."""

    def loss(valid):
        return info_nce(*pairs, jnp.full(B, 0.05), ALL, valid, symmetric=False)[0]

    rows = [loss(jnp.arange(B) == i) for i in range(B)]
    np.testing.assert_allclose(loss(VALID.at[3].set(False)), np.mean(rows[:3] + rows[4:]), rtol=1e-5)


def test_nothing_valid_gives_zero_and_no_nan(pairs):
    none = jnp.zeros(B, bool)
    loss = lambda query: info_nce(query * 0, pairs[1], jnp.full(B, 0.01), ALL & False, none)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(pairs[0]))
    assert value == 0 and np.all(np.isfinite(gradient))


def test_bfloat16_at_low_temperature_is_finite(pairs):
    query, target = (jnp.asarray(x, jnp.bfloat16) for x in pairs)
    value, gradient = jax.value_and_grad(lambda q: info_nce(q, target, jnp.full(B, 0.01), ALL, VALID)[0])(query)
    assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(np.float32)))
    exact = info_nce(*pairs, jnp.full(B, 0.01), ALL, VALID)[0]
    np.testing.assert_allclose(value, exact, rtol=0.1)


def test_normalize_keeps_zero_rows():
    z, vjp = jax.vjp(normalize, jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(z, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.all(np.isfinite(vjp(jnp.ones((2, 2)))[0]))


def test_temperature_comes_from_the_data_set_of_a_pair():
    objective = Objective(ObjectiveConfig(min_temperature=0.02, max_temperature=0.3), 3)
    params = {"log_temperature": jnp.log(jnp.array([0.001, 0.1, 9.0]))}
    np.testing.assert_allclose(jnp.exp(objective.project(params)["log_temperature"]), [0.02, 0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(objective.init()["log_temperature"]), 0.05, rtol=1e-6)


@pytest.mark.parametrize("widths", [(), (0,), (64,), (8, 8)])
def test_wrong_widths_are_refused(widths):
    with pytest.raises(SailError, match="matryoshka"):
        check_widths(widths, 32)


def test_a_temperature_outside_of_its_bounds_is_refused():
    with pytest.raises(SailError, match="max_temperature"):
        Objective(ObjectiveConfig(temperature=0.9), 1)
