"""The layout of a batch's rows, and the axes of its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.batch import Batch, RowLayout
from sail_jax.models.model import example_batch

B, S, D = 3, 4, 5


@pytest.mark.parametrize("numpy", [np, jnp])
def test_rows_are_laid_out_by_view_and_back(numpy):
    """Each value names its pair and side, which identifies the rows."""
    layout = RowLayout((("VTA", "T"), ("V", "O")), S)
    assert layout.rows == [(0, "VTA"), (0, "T"), (1, "V"), (2, "V"), (3, "V"), (1, "O"), (2, "O"), (3, "O")]
    of_sides = numpy.asarray(np.arange(B * S).reshape(B, S, 1).repeat(D, axis=2))
    rows = layout.of_items(of_sides.reshape(B * S, D))
    np.testing.assert_array_equal(rows, layout.of_sides(of_sides))
    np.testing.assert_array_equal(rows[:, :, 0] % S, [[side for side, _ in layout.rows]] * B)
    queries, targets = layout.split(rows)
    assert queries.shape == (2, B, D) and targets.shape == (2, B, S - 1, D)
    np.testing.assert_array_equal(queries, np.stack([of_sides[:, 0]] * 2))
    np.testing.assert_array_equal(targets, np.stack([of_sides[:, 1:]] * 2))
    np.testing.assert_array_equal(layout.join((queries, targets)), rows)


def test_one_side_has_only_queries():
    layout = RowLayout((("V", "T"),), 1)
    rows = layout.of_items(np.arange(B * D).reshape(B, D))
    (queries,) = layout.split(rows)
    assert queries.shape == (2, B, D)
    np.testing.assert_array_equal(layout.join((queries,)), rows)


@pytest.mark.parametrize(("views", "sides"), [((("V",),), 2), ((("V",), ("V",)), 1)])
def test_views_have_to_fit_the_sides(views, sides):
    with pytest.raises(ValueError, match=f"{sides} sides"):
        RowLayout(views, sides)


def test_the_first_axis_of_every_field(settings):
    """All fields but the media are one row a pair; what the losses read is among these."""
    batch = example_batch(config_lib.build(settings).model, pairs=7)
    shown = {name: len(array) for name, array in batch._asdict().items() if array is not None}
    counted = {name: count for name, count in batch.by_axis(7, 14, 14)._asdict().items() if count is not None}
    assert counted == shown
    read = batch.read_by_losses()
    assert all(len(array) == 7 for array in jax.tree.leaves(read))
    assert read.valid is batch.valid and read.tokens is None and isinstance(read, Batch)
