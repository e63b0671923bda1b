"""The loss of single modalities against sentence-transformers, in value and gradients."""

import jax.numpy as jnp
import numpy as np
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from small_losses import ALL, B, D, torch_loss, value_and_grad

from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.micl import Part, micl
from sail_jax.objectives.negative_masks import Negatives


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

    value, gradients = value_and_grad(ours, argnums=(0, 1, 2, 3))(*visual, *textual)
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
