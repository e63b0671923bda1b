"""A loss at several widths, against sentence-transformers, in value and gradients."""

import jax.numpy as jnp
import pytest
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from small_losses import ALL, VALID, B, same, torch_loss, value_and_grad

from sail_jax.errors import SailError
from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.matryoshka import check_widths, matryoshka


def test_matryoshka_equals_sentence_transformers(pairs):
    widths = (32, 16, 4)

    def ours(query, target):
        def loss(q, t):
            return info_nce(q, t, jnp.full(B, 0.05), ALL, VALID, symmetric=False)

        return matryoshka(loss, query, target, widths)[0]

    def make(model):
        return MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=20.0), list(widths))

    same(value_and_grad(ours, argnums=(0, 1))(*pairs), torch_loss(make, *pairs))


@pytest.mark.parametrize("widths", [(), (0,), (64,), (8, 8)])
def test_wrong_widths_are_refused(widths):
    with pytest.raises(SailError, match="matryoshka"):
        check_widths(widths, 32)
