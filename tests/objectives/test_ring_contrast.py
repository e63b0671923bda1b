"""The ring form of the contrastive loss equals the plain one, in values and gradients, with all options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sail_jax import config as config_lib
from sail_jax.aot.chips import find_devices
from sail_jax.aot.collectives import collective_bytes
from sail_jax.batch import Batch
from sail_jax.config.training import MeshConfig
from sail_jax.errors import SailError
from sail_jax.objectives.contrast import Contrast, ContrastSettings, plain_contrast
from sail_jax.objectives.info_nce import Correction
from sail_jax.objectives.negative_masks import find_negatives
from sail_jax.objectives.ring_contrast import RingContrast, choose_contrast
from sail_jax.patterns import Pattern
from sail_jax.sharding.mesh import make_mesh

B, D = 48, 24


def keys_of(rng, shape, kinds):
    return rng.integers(0, kinds, (*shape, 1), np.uint32) * np.array([1, 0], np.uint32)


def make_contrast(seed=0, hard=2, pattern="T->T", kinds=60, corrected=False):
    """Few kinds of items and texts, so that queries, targets and hard negatives repeat each other in every way."""
    rng = np.random.default_rng(seed)
    items = keys_of(rng, (B, 2 + hard), kinds)
    # An item may show several texts, as in a mixed batch of data sets that show different fields.
    texts = keys_of(rng, (B, 2 + hard), kinds)
    nothing = dict.fromkeys(Batch._fields)
    batch = Batch(**nothing | {"item_keys": jnp.asarray(items), "text_keys": jnp.asarray(texts)})
    query, target = rng.normal(size=(B, D)).astype(np.float32), rng.normal(size=(B, 1 + hard, D)).astype(np.float32)
    target[:, 0] += 0.7 * query
    query[3], target[5, 0] = 0, 0
    frequencies = [jnp.asarray(rng.uniform(-12, -1, shape), jnp.float32) for shape in ((B,), (B,), (B, hard))]
    correction = Correction(*frequencies, jnp.asarray(rng.choice([0.0, 0.4, 1.0], B), jnp.float32))
    return Contrast(
        jnp.asarray(query),
        jnp.asarray(target),
        jnp.asarray(rng.random(B) < 0.9),
        jnp.asarray(rng.random((B, hard)) < 0.8),
        jnp.asarray(rng.choice([0.05, 0.2], B).astype(np.float32)),
        jnp.asarray(rng.choice([1.0, 0.3], B).astype(np.float32)),
        batch,
        Pattern(*pattern.split("->")),
        correction if corrected else None,
    )


def value_and_gradients(contrast, given, settings):
    def loss(query, target, temperature):
        value, metrics = contrast(given._replace(query=query, target=target, temperature=temperature), settings)
        return value, metrics

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return both(given.query, given.target, given.temperature)


def spread(given, mesh):
    """The arrays split over the data axes of a mesh, as they are in a train step."""
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    place = {"query", "target", "valid", "valid_hard", "temperature", "weight"}
    given = given._replace(**{name: jax.device_put(getattr(given, name), sharding) for name in place})
    keys = {name: jax.device_put(getattr(given.batch, name), sharding) for name in ("item_keys", "text_keys")}
    correction = jax.device_put(given.correction, sharding)
    return given._replace(batch=given.batch._replace(**keys), correction=correction)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "block", "hard", "pattern", "symmetric", "share", "corrected"),
    [
        ((8, 1, 1), 2, 2, "T->T", True, True, True),
        ((4, 2, 1), 64, 2, "O->T", True, False, True),
        ((2, 2, 2), 4, 1, "O->O", False, True, True),
        ((8, 1, 1), 3, 0, "T->O", True, True, False),
        ((1, 1, 8), 3, 2, "T->T", True, True, False),
    ],
    ids=str,
)
def test_it_equals_the_plain_loss(sizes, block, hard, pattern, symmetric, share, corrected):
    given = make_contrast(hard=hard, pattern=pattern, corrected=corrected)
    settings = ContrastSettings((24, 16, 4), symmetric, share)
    mesh = make_mesh(MeshConfig(*sizes))
    (value, metrics), gradients = value_and_gradients(RingContrast(mesh, block), spread(given, mesh), settings)
    (plain, plain_metrics), plain_gradients = value_and_gradients(plain_contrast, given, settings)
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    assert metrics.keys() == plain_metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], plain_metrics[name], rtol=1e-5, err_msg=name)
    for left, right in zip(gradients, plain_gradients, strict=True):
        assert np.abs(right).max() > 0
        np.testing.assert_allclose(left, right, atol=1e-5 * np.abs(right).max())


def test_the_case_is_not_trivial():
    """The duplicates of the case hide many candidates, also those that another pair lists for the same query."""
    given = make_contrast()
    found = find_negatives(given.batch, given.pattern, given.valid, given.valid_hard)
    items, texts = (np.asarray(keys[..., 0]) for keys in (given.batch.item_keys, given.batch.text_keys))
    same = [
        (items[:, None, side] == items[None, :, side]) | (texts[:, None, side] == texts[None, :, side])
        for side in (0, 1)
    ]
    bridged = (same[0].astype(int) @ same[1].astype(int) > 0) & ~same[0] & ~same[1]
    assert bridged.any() and not np.asarray(found.targets)[bridged].any()
    assert 0.1 < np.asarray(found.targets).mean() < 0.9 and 0.1 < np.asarray(found.hard).mean() < 0.9


@pytest.mark.slow
def test_without_any_valid_pair_the_loss_is_zero():
    given = make_contrast()
    given = given._replace(valid=jnp.zeros(B, bool))
    mesh = make_mesh(MeshConfig())
    (value, _), gradients = value_and_gradients(RingContrast(mesh, 8), given, ContrastSettings((D,), True, True))
    assert value == 0 and all(not np.any(gradient) for gradient in gradients)


@pytest.mark.slow
def test_widths_short_of_the_embedding_leave_the_rest_without_gradient():
    given = make_contrast(hard=0)
    settings = ContrastSettings((8,), True, True)
    mesh = make_mesh(MeshConfig())
    _, (query, *_) = value_and_gradients(RingContrast(mesh, 8), given, settings)
    _, (plain, *_) = value_and_gradients(plain_contrast, given, settings)
    assert not np.any(query[:, 8:])
    np.testing.assert_allclose(query, plain, atol=1e-6)


def test_a_batch_that_makes_no_fair_blocks_is_refused(settings):
    settings.data.batch_size = 8 * 257
    settings.objective.score_block = 64
    with pytest.raises(SailError, match="slow"):
        choose_contrast(config_lib.build(settings), make_mesh(MeshConfig()))
    settings.data.batch_size = 8 * 256
    assert isinstance(choose_contrast(config_lib.build(settings), make_mesh(MeshConfig())), RingContrast)


@pytest.mark.parametrize("hard", [0, 2])
def test_no_scores_are_exchanged_on_tpus(hard):
    """The TPU compiler would use an all-to-all for directions or halves that it splits by columns."""
    pytest.importorskip("libtpu")
    mesh = make_mesh(MeshConfig(data=4, fsdp=4), find_devices("v5e:4x4")[1])
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    given = make_contrast(hard=hard)
    arrays = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), given._replace(pattern=None)
    )

    def loss(query, target, arrays):
        given_arrays = arrays._replace(query=query, target=target, pattern=given.pattern)
        return plain_contrast(given_arrays, ContrastSettings((D, 8), True, True))[0]

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(split, split))
        program = step.lower(arrays.query, arrays.target, arrays).compile()
    sent = collective_bytes(program.as_text(), mesh.size)
    assert sent["all-to-all"] == 0 and sent["all-gather"] > 0
