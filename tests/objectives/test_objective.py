"""The losses against independent implementations, in values and gradients, and the handling of false negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from sail_jax import config as config_lib
from sail_jax.batch import Outputs, Parts
from sail_jax.config.model import ModelConfig
from sail_jax.config.training import ObjectiveConfig
from sail_jax.errors import SailError
from sail_jax.models.model import example_batch
from sail_jax.objectives.cosent import cosent
from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.late_fusion import init_gate, late_fusion
from sail_jax.objectives.matryoshka import check_widths, matryoshka
from sail_jax.objectives.micl import Part, micl
from sail_jax.objectives.negative_masks import Negatives, find_negatives
from sail_jax.objectives.objective import LOSSES, Objective, SetRules, make_objective
from sail_jax.patterns import Pattern
from sail_jax.vectors.unit import normalize

B, M, D = 12, 3, 32
ALL = Negatives(~jnp.eye(B, dtype=bool), jnp.ones((B, B * M), bool))
VALID = jnp.ones(B, bool)
OMNI = Pattern("O", "O")


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(B, D)).astype(np.float32)
    return query, (query + 2 * rng.normal(size=(B, D))).astype(np.float32)


@pytest.fixture
def hard(pairs):
    noise = np.random.default_rng(1).normal(size=(B, M, D))
    return (pairs[0][:, None] + 1.5 * noise).astype(np.float32)


class Given(torch.nn.Module):
    """Stands where a model is expected and returns embeddings that are given."""

    def forward(self, features):
        return features


def torch_loss(make, *sides, labels=None):
    """Value and gradients of a loss of sentence-transformers at given embeddings."""
    model = SentenceTransformer(modules=[Given()], device="cpu")
    tensors = [torch.tensor(x, requires_grad=True) for x in sides]
    value = make(model)([{"sentence_embedding": side} for side in tensors], labels)
    value.backward()
    return value.item(), [side.grad.numpy() for side in tensors]


def same(ours, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(ours[0], expected[0], rtol=rtol)
    for gradient, wanted in zip(ours[1], expected[1], strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=atol)


# ------------------------------------------------------------------------------------------- InfoNCE and Matryoshka


def test_info_nce_equals_sentence_transformers(pairs):
    def ours(query, target):
        return info_nce(query, target, jnp.full(B, 0.05), ALL, VALID, symmetric=False)[0]

    expected = torch_loss(lambda model: MultipleNegativesRankingLoss(model, scale=20.0), *pairs)
    same(jax.value_and_grad(ours, argnums=(0, 1))(*pairs), expected, atol=1e-6)


def test_info_nce_with_hard_negatives_equals_sentence_transformers(pairs, hard):
    def ours(query, target, *negatives):
        stacked = jnp.stack(negatives, axis=1)
        return info_nce(query, target, jnp.full(B, 0.05), ALL, VALID, hard=stacked, symmetric=False)[0]

    sides = (*pairs, *(hard[:, m] for m in range(M)))
    expected = torch_loss(lambda model: MultipleNegativesRankingLoss(model, scale=20.0), *sides)
    same(jax.value_and_grad(ours, argnums=tuple(range(2 + M)))(*sides), expected, atol=1e-6)


def test_symmetric_equals_sentence_transformers(pairs):
    def make(model):
        directions = ("query_to_doc", "doc_to_query")
        return MultipleNegativesRankingLoss(model, scale=20.0, directions=directions, partition_mode="per_direction")

    def ours(query, target):
        return info_nce(query, target, jnp.full(B, 0.05), ALL, VALID)[0]

    same(jax.value_and_grad(ours, argnums=(0, 1))(*pairs), torch_loss(make, *pairs), atol=1e-6)


def test_own_hard_negatives_alone(pairs, hard):
    """Without sharing, the denominator of METHOD 1.4, written out."""
    batch = batch_of(*((i, 100 + i, *(1000 + i * M + m for m in range(M))) for i in range(B)))
    own = find_negatives(batch, OMNI, VALID, jnp.ones((B, M), bool), share_hard=False)
    loss, _ = info_nce(*pairs, jnp.full(B, 0.1), own, VALID, hard=jnp.asarray(hard), symmetric=False)
    rows = []
    for i in range(B):
        logits = [cosine(pairs[0][i], t) / 0.1 for t in pairs[1]] + [cosine(pairs[0][i], h) / 0.1 for h in hard[i]]
        rows.append(np.log(np.exp(logits).sum()) - logits[i])
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-5)


def test_matryoshka_equals_sentence_transformers(pairs):
    widths = (32, 16, 4)

    def ours(query, target):
        def loss(q, t):
            return info_nce(q, t, jnp.full(B, 0.05), ALL, VALID, symmetric=False)

        return matryoshka(loss, query, target, widths)[0]

    def make(model):
        return MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=20.0), list(widths))

    same(jax.value_and_grad(ours, argnums=(0, 1))(*pairs), torch_loss(make, *pairs))


def test_weights_of_pairs_weigh_their_rows(pairs):
    def loss(weight):
        return info_nce(*pairs, jnp.full(B, 0.05), ALL, VALID, weight=weight, symmetric=False)[0]

    rows = [B * loss((jnp.arange(B) == i).astype(jnp.float32)) for i in range(B)]
    weight = jnp.linspace(0.0, 2.0, B)
    np.testing.assert_allclose(loss(weight), np.mean(np.asarray(rows) * weight), rtol=1e-5)


def test_invalid_pairs_get_exactly_zero_gradient(pairs, hard):
    valid = VALID.at[3].set(False)
    batch = batch_of(*((i, 100 + i, *(1000 + i * M + m for m in range(M))) for i in range(B)))
    negatives = find_negatives(batch, OMNI, valid, jnp.ones((B, M), bool))

    def loss(query, target, hard):
        return info_nce(query, target, jnp.full(B, 0.05), negatives, valid, hard=hard)[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*pairs, hard)
    kept = np.array([i for i in range(B) if i != 3])
    fewer = Negatives(ALL.targets[1:, 1:], jnp.ones((B - 1, (B - 1) * M), bool))
    arrays = (pairs[0][kept], pairs[1][kept], jnp.full(B - 1, 0.05))
    expected = info_nce(*arrays, fewer, VALID[1:], hard=jnp.asarray(hard[kept]))[0]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient in gradients:
        assert not np.any(gradient[3]) and np.any(gradient[4])


def test_only_valid_rows_are_averaged(pairs):
    """Also where the mask of negatives says nothing of validity."""

    def loss(valid):
        return info_nce(*pairs, jnp.full(B, 0.05), ALL, valid, symmetric=False)[0]

    rows = [loss(jnp.arange(B) == i) for i in range(B)]
    np.testing.assert_allclose(loss(VALID.at[3].set(False)), np.mean(rows[:3] + rows[4:]), rtol=1e-5)


@pytest.mark.parametrize("valid", [jnp.zeros(B, bool), VALID], ids=["nothing valid", "no negative"])
def test_rows_without_anything_to_compare_give_zero_and_no_nan(pairs, hard, valid):
    nothing = Negatives(ALL.targets & False, ALL.hard & False)

    def loss(query, temperature):
        return info_nce(query, pairs[1], temperature, nothing, valid, hard=jnp.asarray(hard))[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(
        jnp.asarray(pairs[0]) * valid[:, None], jnp.full(B, 0.01)
    )
    assert value == 0
    for gradient in gradients:
        assert np.all(np.isfinite(gradient)) and not np.any(gradient)


def test_bfloat16_at_low_temperature_is_finite(pairs, hard):
    query, target, others = (jnp.asarray(x, jnp.bfloat16) for x in (*pairs, hard))

    def loss(query, target, others):
        return info_nce(query, target, jnp.full(B, 0.01), ALL, VALID, hard=others)[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(query, target, others)
    assert np.isfinite(value) and all(np.all(np.isfinite(g.astype(np.float32))) for g in gradients)
    np.testing.assert_allclose(value, loss(*pairs, jnp.asarray(hard)), rtol=0.1)


def test_normalize_keeps_zero_rows():
    z, vjp = jax.vjp(normalize, jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(z, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.all(np.isfinite(vjp(jnp.ones((2, 2)))[0]))


@pytest.mark.parametrize("widths", [(), (0,), (64,), (8, 8)])
def test_wrong_widths_are_refused(widths):
    with pytest.raises(SailError, match="matryoshka"):
        check_widths(widths, 32)


# ----------------------------------------------------------------------------------------------------------- COSENT


def test_cosent_equals_sentence_transformers(pairs):
    scores = np.random.default_rng(2).choice([0.0, 0.25, 0.5, 1.0], B).astype(np.float32)

    def ours(query, target):
        return cosent(query, target, jnp.asarray(scores), 0.05, VALID, jnp.zeros(B, jnp.int32))

    expected = torch_loss(lambda model: CoSENTLoss(model, scale=20.0), *pairs, labels=torch.tensor(scores))
    same(jax.value_and_grad(ours, argnums=(0, 1))(*pairs), expected)


def test_cosent_compares_within_a_group_and_skips_what_is_not_valid(pairs):
    scores, group = jnp.linspace(0, 1, B), jnp.arange(B) % 2
    valid = VALID.at[4].set(False)
    loss = lambda *sides: cosent(*sides, scores, 0.1, valid, group)  # noqa: E731
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*map(jnp.asarray, pairs))
    cosines = [cosine(q, t) / 0.1 for q, t in zip(*pairs, strict=True)]
    terms = [
        np.exp(cosines[b] - cosines[a])
        for a in range(B)
        for b in range(B)
        if a % 2 == b % 2 and a > b and 4 not in (a, b)
    ]
    np.testing.assert_allclose(value, np.log1p(np.sum(terms)), rtol=1e-5)
    assert all(not np.any(g[4]) and np.any(g[5]) for g in gradients)


def test_cosent_without_an_order_is_zero_and_finite_at_low_temperature(pairs):
    query, target = (jnp.asarray(x, jnp.bfloat16) for x in pairs)
    group = jnp.zeros(B, jnp.int32)
    assert cosent(query, target, jnp.ones(B), 0.05, VALID, group) == 0
    assert cosent(query, target, jnp.full(B, jnp.nan), 0.05, VALID, group) == 0
    loss = lambda q: cosent(q, target, jnp.linspace(0, 1, B), 0.01, VALID, group)  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(query)
    assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(np.float32)))


# --------------------------------------------------------------------------------------------- mICL and late fusion


def test_micl_is_the_sum_of_both_modalities(pairs):
    """Against sentence-transformers' loss on each modality, without the pairs in which one side lacks it."""
    rng = np.random.default_rng(3)
    visual, textual = (
        [rng.normal(size=(B, D)).astype(np.float32), rng.normal(size=(B, D)).astype(np.float32)] for _ in range(2)
    )
    visual[0][2] = 0  # a query without vision
    textual[1][7] = 0  # a target without text

    def contrast(query, target, has_query, has_target):
        valid = has_query & has_target[:, 0]
        masks = Negatives(ALL.targets & valid & valid[:, None], ALL.hard)
        loss, _ = info_nce(query, target[:, 0], jnp.full(B, 0.05), masks, valid, symmetric=False)
        return loss, valid.sum()

    def ours(*sides):
        parts = [Part(q, t[:, None]) for q, t in (sides[:2], sides[2:])]
        return micl(contrast, *parts)[0]

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1, 2, 3))(*visual, *textual)
    expected = 0.0
    for sides, missing, got in ((visual, 2, gradients[:2]), (textual, 7, gradients[2:])):
        kept = np.arange(B) != missing
        loss, wanted = torch_loss(
            lambda model: MultipleNegativesRankingLoss(model, scale=20.0), *(side[kept] for side in sides)
        )
        expected += loss
        for gradient, want in zip(got, wanted, strict=True):
            np.testing.assert_allclose(gradient[kept], want, atol=1e-5)
            assert not np.any(gradient[missing])
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_late_fusion_equals_the_gate_in_torch(pairs):
    rng = np.random.default_rng(4)
    params = {"kernel": rng.normal(size=(2 * D, D)).astype(np.float32), "bias": rng.normal(size=D).astype(np.float32)}
    visual, fused = pairs
    linear = torch.nn.Linear(2 * D, D)
    linear.weight.data, linear.bias.data = torch.tensor(params["kernel"].T), torch.tensor(params["bias"])
    v, n = (torch.tensor(x, requires_grad=True) for x in pairs)
    gate = torch.sigmoid(linear(torch.cat([v, n], dim=-1)))
    expected = gate * v + (1 - gate) * n
    expected.square().sum().backward()
    value, gradients = jax.value_and_grad(lambda v, n, p: (late_fusion(p, v, n) ** 2).sum(), argnums=(0, 1, 2))(
        visual, fused, params
    )
    np.testing.assert_allclose(value, expected.square().sum().item(), rtol=1e-5)
    wanted = [v.grad.numpy(), n.grad.numpy(), linear.weight.grad.numpy().T, linear.bias.grad.numpy()]
    got = [gradients[0], gradients[1], gradients[2]["kernel"], gradients[2]["bias"]]
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-3)


def test_late_fusion_starts_as_the_mean_and_leaves_items_without_vision_alone(pairs):
    visual = pairs[0].copy()
    visual[5] = 0
    mixed = late_fusion(init_gate(D), jnp.asarray(visual), jnp.asarray(pairs[1]))
    np.testing.assert_allclose(mixed[0], (visual[0] + pairs[1][0]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(mixed[5], pairs[1][5])


# -------------------------------------------------------------------------------------------------- false negatives


def batch_of(*ids, texts=None, scores=None, dataset=None):
    """A batch whose sides have these ids (and texts): tuples of small numbers, one tuple a pair."""

    def keys(numbers):
        flat = np.array(numbers, np.uint32)
        return jnp.asarray(np.stack([np.zeros_like(flat), flat], axis=-1))

    pairs = len(ids)
    distinct = np.arange(np.size(ids)).reshape(np.shape(ids)) + 50_000
    return example_batch(ModelConfig())._replace(
        item_keys=keys(ids),
        text_keys=keys(distinct if texts is None else texts),
        valid=jnp.ones(np.shape(ids), bool),
        scores=jnp.full(pairs, jnp.nan) if scores is None else jnp.asarray(scores, jnp.float32),
        dataset=jnp.zeros(pairs, jnp.int32) if dataset is None else jnp.asarray(dataset, jnp.int32),
    )


def targets_mask(batch, pattern=OMNI):
    pairs = len(batch.valid)
    return find_negatives(batch, pattern, batch.valid.all(-1), jnp.zeros((pairs, 0), bool)).targets


def without(size, *places):
    expected = ~np.eye(size, dtype=bool)
    for i, j in places:
        expected[i, j] = False
    return expected


def test_related_items_are_no_negatives():
    # Pairs 0 and 1 share a target, 2 and 3 a query; the query of 4 is the target of 5.
    batch = batch_of((1, 10), (2, 10), (3, 11), (3, 12), (4, 13), (5, 4))
    expected = without(6, (0, 1), (1, 0), (2, 3), (3, 2), (4, 5))
    np.testing.assert_array_equal(targets_mask(batch), expected)


def test_a_target_of_another_pair_of_the_same_query_is_no_negative():
    """Pairs (1, 10) and (1, 11): whoever else brings 10 or 11, as a target or as a hard negative, repels neither."""
    batch = batch_of((1, 10, 20), (1, 11, 21), (2, 11, 10), (3, 12, 11))
    masks = find_negatives(batch, OMNI, jnp.ones(4, bool), jnp.ones((4, 1), bool))
    targets = [
        [False, False, False, True],
        [False, False, False, True],
        [True, False, False, True],
        [True] * 3 + [False],
    ]
    np.testing.assert_array_equal(masks.targets, targets)
    # Columns: 20, 21, 10, 11.
    expected = [[True, True, False, False], [True, True, False, False], [True, True, True, False], [True] * 4]
    np.testing.assert_array_equal(masks.hard, expected)


def test_equal_texts_are_the_same_content_where_text_alone_is_shown():
    ids, texts = ((1, 10), (2, 11), (3, 12)), ((1, 7), (2, 7), (3, 8))
    np.testing.assert_array_equal(
        targets_mask(batch_of(*ids, texts=texts), Pattern("V", "T")), without(3, (0, 1), (1, 0))
    )
    np.testing.assert_array_equal(targets_mask(batch_of(*ids, texts=texts), Pattern("V", "VT")), without(3))


def test_hard_negatives_that_are_the_positive_or_the_query_do_not_count():
    batch = batch_of((1, 10, 20, 10), (2, 11, 1, 21))
    mask = find_negatives(batch, OMNI, jnp.ones(2, bool), jnp.array([[True, True], [True, False]])).hard
    # Columns: 20, 10, 1, 21. Row 0 has 10 as its target and 1 as its query; 21 is not valid.
    np.testing.assert_array_equal(mask, [[True, False, False, False], [True, True, True, False]])


def test_pairs_that_share_a_target_do_not_repel_each_other():
    """The gradient of a query must not depend on its twin's copy of the shared target."""
    rng = np.random.default_rng(1)
    query, target = rng.normal(size=(2, 4, 8)).astype(np.float32)
    target[1] = target[0]
    negatives = Negatives(targets_mask(batch_of((1, 10), (2, 10), (3, 11), (4, 12))), None)

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


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# ---------------------------------------------------------------------------------------------------- the objective

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


def value_of(objective, z, out, batch, recipe):
    return objective(objective.init(), z, out, batch, recipe)[0]


IDS = [(i, 100 + i) for i in range(B)]


def test_patterns_are_averaged_over_all_that_count():
    """Two patterns of one set equal the two run separately, each counted by its pairs."""
    objective = objective_of((("V->T", "O->O"), {"nce": 1.0, "cosent": 0.7}, 0.0))
    recipe, batch = objective.recipe([0]), batch_of(*IDS, scores=np.linspace(0, 1, B))
    assert recipe.views == (("V", "O"), ("T", "O"))
    z, out = encoded((2, 2))
    filled = out.filled[0].at[0, :5].set(False), out.filled[1]  # five queries have no frames
    out = out._replace(filled=filled)
    values, counts = [], []
    for view, pattern in enumerate(("V->T", "O->O")):
        single = objective_of(((pattern,), {"nce": 1.0, "cosent": 0.7}, 0.0))
        alone = jax.tree.map(lambda x, at=view: x[at : at + 1], out)
        _, metrics = single(single.init(), tuple(x[view : view + 1] for x in z), alone, batch, single.recipe([0]))
        values.append([metrics["nce"], metrics["cosent"]])
        counts.append(metrics["valid_pairs"])
    assert [int(c) for c in counts] == [B - 5, B]
    expected = np.average(np.array(values).sum(1), weights=counts)
    np.testing.assert_allclose(value_of(objective, z, out, batch, recipe), expected, rtol=1e-5)
    gradients = jax.grad(lambda z: value_of(objective, z, out, batch, recipe))(z)
    assert not np.any(gradients[0][0, :5]) and np.any(gradients[0][1, 0]) and not np.any(gradients[1][0, :5])


def test_a_mixed_batch_gives_each_pair_its_sets_patterns_weights_and_temperature():
    objective = objective_of((("O->O",), {"nce": 1.0}, 0.0), (("V->T", "O->O"), {"nce": 0.5, "micl": 2.0}, 0.0))
    recipe = objective.recipe([0, 1])
    assert recipe[:2] == ((OMNI, Pattern("V", "T")), ("nce", "micl"))
    dataset = np.arange(B) % 2
    batch = batch_of(*IDS, dataset=dataset)
    z, out = encoded((2, 2))
    params = {"log_temperature": jnp.log(jnp.array([0.1, 0.2]))}
    total, metrics = objective(params, z, out, batch, recipe)
    assert metrics["O->O/valid_pairs"] == B and metrics["V->T/valid_pairs"] == B // 2
    gradient = jax.grad(lambda z: objective(params, z, out, batch, recipe)[0])(z)
    assert not np.any(gradient[0][1, dataset == 0]) and np.any(gradient[0][1, dataset == 1])
    np.testing.assert_allclose(metrics["temperature"], 0.15, rtol=1e-6)
    assert np.isfinite(total)


def test_weights_scale_their_losses_and_those_of_zero_are_not_computed():
    z, out = encoded((1, 1))
    batch = batch_of(*IDS, scores=np.linspace(0, 1, B))
    losses = [name for name in LOSSES if name != "distill"]  # which needs ID embeddings
    parts = {}
    for name in losses:
        objective = objective_of((("O->O",), {name: 1.0}, 0.0))
        assert objective.recipe([0]).losses == (name,)
        parts[name] = value_of(objective, z, out, batch, objective.recipe([0]))
        assert parts[name] > 0
    weights = {"nce": 2.0, "cosent": 0.5, "micl": 0.25, "late_fusion": 3.0}
    objective = objective_of((("O->O",), weights, 0.0))
    expected = sum(weights[name] * parts[name] for name in losses)
    np.testing.assert_allclose(value_of(objective, z, out, batch, objective.recipe([0])), expected, rtol=1e-5)


def test_late_fusion_is_left_out_where_nothing_shows_vision():
    objective = objective_of((("T->T", "T->V"), {"late_fusion": 1.0}, 0.0))
    z, out = encoded((1, 2))
    recipe = objective.recipe([0])
    gradient = jax.grad(lambda z: value_of(objective, z, out, batch_of(*IDS), recipe))(z)
    assert not np.any(gradient[1][0]) and np.any(gradient[1][1])


def test_a_mixed_batch_has_the_mean_of_what_its_sets_would_have():
    """A set whose weight is nearly zero and one whose weight is zero come to the same; COSENT counts by its share."""
    dataset, scores = np.arange(B) % 2, np.where(np.arange(B) % 2, np.linspace(0, 1, B), np.nan)
    z, out = encoded((1, 1))
    batch = batch_of(*IDS, dataset=dataset, scores=scores)
    values = []
    for weight in (0.0, 1e-7):
        objective = objective_of((("O->O",), {"nce": 1.0}, 0.0), (("O->O",), {"nce": weight, "cosent": 1.0}, 0.0))
        total, metrics = objective(objective.init(), z, out, batch, objective.recipe([0, 1]))
        values.append(total)
    np.testing.assert_allclose(*values, rtol=1e-5)
    valid = jnp.asarray(dataset == 1)
    alone = cosent(z[0][0], z[1][0, :, 0], jnp.asarray(scores), 0.05, valid, jnp.asarray(dataset))
    np.testing.assert_allclose(metrics["cosent"], alone / 2, rtol=1e-5)


def test_pairs_with_a_low_score_are_no_positives():
    scores = np.where(np.arange(B) < 4, 0.2, 0.9)
    objective = objective_of((("O->O",), {"nce": 1.0}, 0.5))
    z, out = encoded((1, 1))
    _, metrics = objective(objective.init(), z, out, batch_of(*IDS, scores=scores), objective.recipe([0]))
    assert metrics["valid_pairs"] == B - 4
    _, metrics = objective(objective.init(), z, out, batch_of(*IDS), objective.recipe([0]))
    assert metrics["valid_pairs"] == B  # without a score every pair is a positive


def test_micl_needs_both_modalities_on_both_sides():
    objective = objective_of((("T->O", "O->O"), {"micl": 1.0}, 0.0))
    z, out = encoded((2, 1))
    recipe = objective.recipe([0])
    gradient = jax.grad(lambda out: value_of(objective, z, out, batch_of(*IDS), recipe), allow_int=True)(out)
    assert not np.any(gradient.parts.visual[0][0]) and np.any(gradient.parts.visual[0][1])
    assert np.any(gradient.parts.textual[0][1])


def test_hard_negatives_reach_the_objective():
    objective = objective_of((("O->O",), {"nce": 1.0}, 0.0), symmetric=False)
    z, out = encoded((1, 1), sides=1 + M)
    ids = [(i, 100 + i, *(1000 + i * M + m for m in range(M))) for i in range(B)]
    expected, _ = info_nce(z[0][0], z[1][0, :, 0], jnp.full(B, 0.05), ALL, VALID, hard=z[1][0, :, 1:], symmetric=False)
    np.testing.assert_allclose(value_of(objective, z, out, batch_of(*ids), objective.recipe([0])), expected, rtol=1e-5)


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
    ],
)
def test_wrong_settings_are_explained(settings, change, message):
    settings.data.datasets.copair.update(change)
    with pytest.raises(SailError, match=message):
        make_objective(config_lib.build(settings))
