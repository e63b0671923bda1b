"""Which targets and hard negatives of other pairs may be negatives of a pair."""

import jax.numpy as jnp
import numpy as np
from small_losses import OMNI, batch_of, masks_of, targets_mask

from sail_jax.patterns import Pattern


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
    masks = masks_of(batch, OMNI, jnp.ones(4, bool), jnp.ones((4, 1), bool))
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
    mask = masks_of(batch, OMNI, jnp.ones(2, bool), jnp.array([[True, True], [True, False]])).hard
    # Columns: 20, 10, 1, 21. Row 0 has 10 as its target and 1 as its query; 21 is not valid.
    np.testing.assert_array_equal(mask, [[True, False, False, False], [True, True, True, False]])
