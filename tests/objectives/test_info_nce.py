"""InfoNCE against sentence-transformers and the formula, in values and gradients; invalid pairs do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from small_losses import (
    ALL,
    OMNI,
    VALID,
    B,
    M,
    batch_of,
    cosine,
    masks_of,
    same,
    targets_mask,
    torch_loss,
    value_and_grad,
)

from sail_jax.objectives.info_nce import Correction, info_nce
from sail_jax.objectives.negative_masks import Negatives


def test_info_nce_equals_sentence_transformers(pairs):
    def ours(query, target):
        return info_nce(query, target, jnp.full(B, 0.05), ALL, VALID, symmetric=False)[0]

    expected = torch_loss(lambda model: MultipleNegativesRankingLoss(model, scale=20.0), *pairs)
    same(value_and_grad(ours, argnums=(0, 1))(*pairs), expected, atol=1e-6)


def test_info_nce_with_hard_negatives_equals_sentence_transformers(pairs, hard):
    def ours(query, target, *negatives):
        stacked = jnp.stack(negatives, axis=1)
        return info_nce(query, target, jnp.full(B, 0.05), ALL, VALID, hard=stacked, symmetric=False)[0]

    sides = (*pairs, *(hard[:, m] for m in range(M)))
    expected = torch_loss(lambda model: MultipleNegativesRankingLoss(model, scale=20.0), *sides)
    same(value_and_grad(ours, argnums=tuple(range(2 + M)))(*sides), expected, atol=1e-6)


def test_symmetric_equals_sentence_transformers(pairs):
    def make(model):
        directions = ("query_to_doc", "doc_to_query")
        return MultipleNegativesRankingLoss(model, scale=20.0, directions=directions, partition_mode="per_direction")

    def ours(query, target):
        return info_nce(query, target, jnp.full(B, 0.05), ALL, VALID)[0]

    same(value_and_grad(ours, argnums=(0, 1))(*pairs), torch_loss(make, *pairs), atol=1e-6)


def test_own_hard_negatives_alone(pairs, hard):
    """Without sharing, the denominator of METHOD 1.4, written out."""
    batch = batch_of(*((i, 100 + i, *(1000 + i * M + m for m in range(M))) for i in range(B)))
    own = masks_of(batch, OMNI, VALID, jnp.ones((B, M), bool), share_hard=False)

    @jax.jit
    def ours(query, target, hard):
        return info_nce(query, target, jnp.full(B, 0.1), own, VALID, hard=hard, symmetric=False)[0]

    rows = []
    for i in range(B):
        logits = [cosine(pairs[0][i], t) / 0.1 for t in pairs[1]] + [cosine(pairs[0][i], h) / 0.1 for h in hard[i]]
        rows.append(np.log(np.exp(logits).sum()) - logits[i])
    np.testing.assert_allclose(ours(*pairs, hard), np.mean(rows), rtol=1e-5)


def frequencies_of(hard, strength):
    rng = np.random.default_rng(8)
    query, target, others = (rng.uniform(-9, -1, shape).astype(np.float32) for shape in (B, B, hard.shape[:2]))
    return Correction(query, target, others, jnp.broadcast_to(jnp.asarray(strength, jnp.float32), B))


@pytest.mark.slow
def test_the_correction_equals_the_formula_in_values_and_gradients(pairs, hard):
    """Every candidate's logit is s / tau - strength * log q, the positive's too, in both directions."""
    strength, temperature = np.linspace(0, 1, B, dtype=np.float32), np.linspace(0.05, 0.2, B, dtype=np.float32)
    correction = frequencies_of(hard, strength)

    def ours(query, target, hard):
        return info_nce(query, target, jnp.asarray(temperature), ALL, VALID, hard=hard, correction=correction)[0]

    def formula(query, target, hard):
        query, target, hard = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, target, hard))
        with jax.default_matmul_precision("highest"):
            scores, of_hard = query @ target.T, query @ hard.reshape(B * M, -1).T
        forward = scores / temperature[:, None] - strength[:, None] * correction.target[None, :]
        extra = of_hard / temperature[:, None] - strength[:, None] * correction.hard.reshape(1, -1)
        back = scores.T / temperature[:, None] - strength[:, None] * correction.query[None, :]
        logits = jnp.concatenate([forward, extra], axis=1)
        shares = [jax.nn.log_softmax(x, axis=1)[jnp.arange(B), jnp.arange(B)] for x in (logits, back)]
        return -(shares[0] + shares[1]).mean() / 2

    expected = value_and_grad(formula, argnums=(0, 1, 2))(*pairs, hard)
    same(value_and_grad(ours, argnums=(0, 1, 2))(*pairs, hard), expected, atol=1e-6)
    uncorrected = info_nce(*pairs, jnp.asarray(temperature), ALL, VALID, hard=jnp.asarray(hard))[0]
    assert abs(expected[0] - uncorrected) > 0.1


def test_equal_frequencies_and_a_strength_of_zero_correct_nothing(pairs, hard):
    @jax.jit
    def loss(correction):
        return info_nce(*pairs, jnp.full(B, 0.05), ALL, VALID, hard=jnp.asarray(hard), correction=correction)[0]

    equal = jax.tree.map(lambda x: jnp.full(x.shape, -3.0), frequencies_of(hard, 1.0))
    for correction in (equal._replace(strength=jnp.ones(B)), frequencies_of(hard, 0.0)):
        np.testing.assert_allclose(loss(correction), loss(None), rtol=1e-5)


def test_weights_of_pairs_weigh_their_rows(pairs):
    @jax.jit
    def loss(weight):
        return info_nce(*pairs, jnp.full(B, 0.05), ALL, VALID, weight=weight, symmetric=False)[0]

    rows = [B * loss((jnp.arange(B) == i).astype(jnp.float32)) for i in range(B)]
    weight = jnp.linspace(0.0, 2.0, B)
    np.testing.assert_allclose(loss(weight), np.mean(np.asarray(rows) * weight), rtol=1e-5)


@pytest.mark.slow
def test_invalid_pairs_get_exactly_zero_gradient(pairs, hard):
    valid = VALID.at[3].set(False)
    batch = batch_of(*((i, 100 + i, *(1000 + i * M + m for m in range(M))) for i in range(B)))
    negatives = masks_of(batch, OMNI, valid, jnp.ones((B, M), bool))

    def loss(query, target, hard):
        return info_nce(query, target, jnp.full(B, 0.05), negatives, valid, hard=hard)[0]

    value, gradients = value_and_grad(loss, argnums=(0, 1, 2))(*pairs, hard)
    kept = np.array([i for i in range(B) if i != 3])
    fewer = Negatives(ALL.targets[1:, 1:], jnp.ones((B - 1, (B - 1) * M), bool))
    arrays = (pairs[0][kept], pairs[1][kept], jnp.full(B - 1, 0.05))
    expected = info_nce(*arrays, fewer, VALID[1:], hard=jnp.asarray(hard[kept]))[0]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient in gradients:
        assert not np.any(gradient[3]) and np.any(gradient[4])


def test_only_valid_rows_are_averaged(pairs):
    """Also where the mask of negatives says nothing of validity."""

    @jax.jit
    def loss(valid):
        return info_nce(*pairs, jnp.full(B, 0.05), ALL, valid, symmetric=False)[0]

    rows = [loss(jnp.arange(B) == i) for i in range(B)]
    np.testing.assert_allclose(loss(VALID.at[3].set(False)), np.mean(rows[:3] + rows[4:]), rtol=1e-5)


@pytest.mark.parametrize("valid", [jnp.zeros(B, bool), VALID], ids=["nothing valid", "no negative"])
def test_rows_without_anything_to_compare_give_zero_and_no_nan(pairs, hard, valid):
    nothing = Negatives(ALL.targets & False, ALL.hard & False)

    def loss(query, temperature):
        return info_nce(query, pairs[1], temperature, nothing, valid, hard=jnp.asarray(hard))[0]

    value, gradients = value_and_grad(loss, argnums=(0, 1))(jnp.asarray(pairs[0]) * valid[:, None], jnp.full(B, 0.01))
    assert value == 0
    for gradient in gradients:
        assert np.all(np.isfinite(gradient)) and not np.any(gradient)


@pytest.mark.slow
def test_bfloat16_at_low_temperature_is_finite(pairs, hard):
    query, target, others = (jnp.asarray(x, jnp.bfloat16) for x in (*pairs, hard))

    def loss(query, target, others):
        return info_nce(query, target, jnp.full(B, 0.01), ALL, VALID, hard=others)[0]

    value, gradients = value_and_grad(loss, argnums=(0, 1, 2))(query, target, others)
    assert np.isfinite(value) and all(np.all(np.isfinite(g.astype(np.float32))) for g in gradients)
    np.testing.assert_allclose(value, loss(*pairs, jnp.asarray(hard)), rtol=0.1)


def test_pairs_that_share_a_target_do_not_repel_each_other():
    """The gradient of a query must not depend on its twin's copy of the shared target."""
    rng = np.random.default_rng(1)
    query, target = rng.normal(size=(2, 4, 8)).astype(np.float32)
    target[1] = target[0]
    negatives = Negatives(targets_mask(batch_of((1, 10), (2, 10), (3, 11), (4, 12))), None)

    @jax.jit
    def loss(query, target, negatives):
        return info_nce(query, target, jnp.full(4, 0.1), negatives, jnp.ones(4, bool), symmetric=False)[0]

    masked = loss(query, target, negatives)
    rows = []
    for i in range(4):  # query i among its positive and the targets of other content, written out
        others = [j for j in range(4) if j != i and not (i < 2 and j < 2)]
        scores = np.array([cosine(query[i], target[j]) for j in [i, *others]]) / 0.1
        rows.append(np.log(np.exp(scores).sum()) - scores[0])
    np.testing.assert_allclose(masked, np.mean(rows), rtol=1e-5)
    assert loss(query, target, Negatives(~jnp.eye(4, dtype=bool), None)) > masked + 0.1
