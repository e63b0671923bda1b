"""Packed equals unpacked: the flat axis of sequences of different lengths, in values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.models.model import init_params, make_model
from sail_jax.models.packing import pack
from sail_jax.objectives.objective import make_objective
from sail_jax.training.step import make_loss


def test_rows_come_back_from_the_flat_axis():
    rng = np.random.default_rng(0)
    mask = rng.random((6, 5)) < 0.6
    rows = rng.normal(size=(6, 5, 3)).astype(np.float32) * mask[..., None]
    packing, fits = pack(jnp.asarray(mask), 12, groups=2)
    flat = packing.to_flat(jnp.asarray(rows))
    assert fits.all() and flat.shape == (24, 3)
    compact = packing.from_front()
    for row, kept, moved, filled in zip(rows, mask, compact.to_rows(flat), compact.filled, strict=True):
        np.testing.assert_array_equal(moved[: kept.sum()], row[kept])
        assert filled.sum() == kept.sum() and not moved[kept.sum() :].any()
    np.testing.assert_array_equal(compact.to_flat(compact.to_rows(flat)), flat)
    np.testing.assert_array_equal(packing.filled, mask)
    np.testing.assert_array_equal(packing.to_rows(flat), rows)
    for group in range(2):
        kept = rows[3 * group : 3 * group + 3][mask[3 * group : 3 * group + 3]]
        np.testing.assert_array_equal(flat[12 * group : 12 * group + len(kept)], kept)
        assert not np.any(flat[12 * group + len(kept) : 12 * (group + 1)])


def test_its_gradient_is_that_of_plain_indexing():
    rng = np.random.default_rng(1)
    mask = rng.random((4, 5)) < 0.5
    packing, _ = pack(jnp.asarray(mask), 20, groups=1)
    weights = rng.normal(size=(20, 2)).astype(np.float32)
    rows = rng.normal(size=(4, 5, 2)).astype(np.float32)
    gradient = jax.grad(lambda x: (packing.to_flat(x) ** 2 * weights).sum())(jnp.asarray(rows))
    count = mask.sum()

    def plain(x):
        return (x.reshape(-1, 2)[np.flatnonzero(mask)] ** 2 * weights[:count]).sum()

    np.testing.assert_allclose(gradient, jax.grad(plain)(jnp.asarray(rows)), atol=1e-6)


def loss_of(settings, **changes):
    """The loss, as a function of the parameters and a batch, of a small experiment with several views."""
    copair = settings.data.datasets.copair.to_dict()
    settings.data.datasets = {"copair": copair | {"patterns": ("O->O", "V->T", "T->VT")}}
    settings.objective.weights.update(micl=0.2, late_fusion=0.2)
    settings.objective.matryoshka = (32,)  # more widths are the same loss again
    config = config_lib.build(settings)
    objective = make_objective(config)
    model = make_model(dataclasses.replace(config.model, **changes), groups=2)
    loss = make_loss(model, objective, config.lora)
    return config, objective, lambda params, batch, recipe: loss(params, batch, recipe)[0]


def assert_alike(left, right):
    np.testing.assert_allclose(left[0], right[0], rtol=1e-5)
    assert right[0] > 0.1 and np.abs(right[1]["model"]["perceiver"]["latents"]).max() > 1e-5
    for a, b in zip(jax.tree.leaves(left[1]), jax.tree.leaves(right[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(np.abs(b).max(), 1e-2))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["joint", "latents"])
def test_a_packed_fusion_equals_a_padded_one(settings, attention):
    settings.model.perceiver.attention = attention
    config, objective, loss = loss_of(settings)
    batch = jax.tree.map(jnp.asarray, BatchSource(config, HostShare(0, 16, 2))[0].arrays)
    params = {"model": init_params(config.model, 0), "objective": objective.init()}
    recipe = objective.recipe([0])
    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=2)
    plain = value_and_grad(params, batch, recipe)
    assert_alike(value_and_grad(params, batch, recipe._replace(room=4500)), plain)
    assert np.isnan(jax.jit(loss, static_argnums=2)(params, batch, recipe._replace(room=300)))  # never silent


@pytest.mark.slow
def test_media_in_chunks_and_encoded_once_equal_all_at_once(settings):
    settings.model.update(media_chunk=4)
    settings.data.encode_once = True
    config, objective, loss = loss_of(settings)
    source = BatchSource(config, HostShare(0, 16, 2))
    step = next(step for step in range(99) if source[step].media_shared > 1)
    chunked = jax.tree.map(jnp.asarray, source[step].arrays)
    params = {"model": init_params(config.model, 0), "objective": objective.init()}
    recipe = objective.recipe([0])
    value = jax.jit(jax.value_and_grad(loss), static_argnums=2)(params, chunked, recipe)
    settings.model.update(media_chunk=0)
    settings.data.encode_once = False
    config, _, loss = loss_of(settings)
    batch = jax.tree.map(jnp.asarray, BatchSource(config, HostShare(0, 16, 2))[step].arrays)
    assert (chunked.frame_item >= 0).sum() < (batch.frame_item >= 0).sum()
    assert_alike(value, jax.jit(jax.value_and_grad(loss), static_argnums=2)(params, batch, recipe))
