"""What the contrastive loss tells of a batch beside its value."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_losses import batch_of, targets_mask

from sail_jax.objectives.contrast import false_negatives


def test_false_negatives_are_what_the_masks_leave_out():
    batch = batch_of((1, 10), (1, 11), (2, 12), (3, 10))  # one query twice, one target twice
    mask = np.asarray(targets_mask(batch))
    left_out = {(i, j) for i in range(4) for j in range(4) if i != j and not mask[i, j]}
    assert {(0, 1), (1, 0), (0, 3), (3, 0)} <= left_out and len(left_out) < 12
    share = false_negatives(jnp.asarray(mask.sum(1)), batch.valid.all(-1))
    assert share == pytest.approx(len(left_out) / 12)
    # Of five pairs of which four count, and of a single one, which has no other target.
    assert false_negatives(jnp.array([3, 3, 3, 2, 0]), jnp.arange(5) < 4) == pytest.approx(1 / 12)
    assert false_negatives(jnp.zeros(2), jnp.arange(2) < 1) == 0
