"""Texts are cut to the room that the packed rows have, the longest first."""

import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.batch import RowLayout, TokenType
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.objectives.objective import make_objective


def texts(batch):
    """[B, S] text tokens of every side."""
    return (np.asarray(batch.token_types) == TokenType.TEXT).sum(-1)


@pytest.mark.parametrize("sampling", ["specialized", "mixed"])
def test_what_is_shown_fits_the_room_of_every_shard(settings, sampling):
    settings.data.update(text_budget=12.0, sampling=sampling)
    settings.data.datasets.copair.patterns = ("O->O", "T->V", "A->T")
    config = config_lib.build(settings)
    loaded = BatchSource(config, HostShare(0, 16, 2))[0]
    assert loaded.text_cut > 0
    batch = loaded.arrays
    for shard in np.split(texts(batch), 2):
        assert (shard.sum(axis=0) <= 8 * 12).all()
    recipe = make_objective(config).recipe(loaded.datasets)
    types = np.asarray(batch.token_types).reshape(2, 8, 2, -1)
    shown = {"O": (1, 2, 3, 4), "V": (1, 3), "T": (1, 2), "A": (1, 4)}
    used = sum(
        np.isin(types[:, :, side], shown[view]).sum(axis=(1, 2)) for side, view in RowLayout(recipe.views, 2).rows
    )
    assert (used <= loaded.room).all()
    assert used.max() > 0.6 * loaded.room


def test_only_the_longest_are_cut_and_from_their_end(settings):
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    whole = BatchSource(config_lib.build(settings), HostShare(0, 16, 1))[0].arrays
    budget = float(texts(whole).mean())
    settings.data.text_budget = budget
    loaded = BatchSource(config_lib.build(settings), HostShare(0, 16, 1))[0]
    before, after = texts(whole), texts(loaded.arrays)
    assert loaded.text_cut == (before - after).sum()
    for side in range(2):
        most = after[:, side].max()
        assert (after[:, side] >= np.minimum(before[:, side], most - 1)).all()
    row, side = np.unravel_index(np.argmax(before - after), before.shape)
    kinds, kept = (batch.token_types[row, side] == TokenType.TEXT for batch in (whole, loaded.arrays))
    assert 0 < kept.sum() < kinds.sum()
    np.testing.assert_array_equal(np.flatnonzero(kept), np.flatnonzero(kinds)[: kept.sum()])
    np.testing.assert_array_equal(whole.tokens[row, side][kept], loaded.arrays.tokens[row, side][kept])


def test_without_a_budget_nothing_is_packed(settings):
    loaded = BatchSource(config_lib.build(settings), HostShare(0, 16, 1))[0]
    assert loaded.room is None and loaded.text_cut == 0
    settings.prompt.max_tokens = 300
    whole = BatchSource(config_lib.build(settings), HostShare(0, 16, 1))[0]
    assert whole.prompt_cut == 0 < loaded.prompt_cut == (texts(whole.arrays) - texts(loaded.arrays)).sum()


def test_a_dual_tower_packs_nothing(settings):
    settings.data.text_budget = 12.0
    settings.model.update(kind="dual_tower", media_chunk=2)
    loaded = BatchSource(config_lib.build(settings), HostShare(0, 16, 1))[0]
    settings.data.text_budget = 0.0
    settings.model.media_chunk = 0
    plain = BatchSource(config_lib.build(settings), HostShare(0, 16, 1))[0]
    assert loaded.room is None
    for left, right in zip(loaded.arrays, plain.arrays, strict=True):
        np.testing.assert_array_equal(left, right)
