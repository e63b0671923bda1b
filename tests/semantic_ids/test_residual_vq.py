"""The learned residual VQ, against plain numpy and against residual k-means."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from semantic_ids.mixtures import mixture

from sail_jax.config.semantic_ids import VQSettings
from sail_jax.errors import SailError
from sail_jax.semantic_ids.residual_kmeans import quantize, reconstruct, residual_kmeans
from sail_jax.semantic_ids.residual_vq import (
    Autoencoder,
    Codebook,
    apply,
    choose,
    fit_residual_vq,
    loss_and_codes,
    train_step,
    update,
)

SIZES = (16, 16, 16)
FAST = VQSettings(steps=200, batch=512, decay=0.97)


def errors(z, codebooks):
    """Returns the squared error of each prefix over the variance."""
    codes, variance = quantize(z, codebooks), np.sum((z - z.mean(0)) ** 2)
    found = [reconstruct(codes[:, : level + 1], codebooks) for level in range(len(codebooks))]
    return np.array([np.sum((z - other) ** 2) / variance for other in found])


@pytest.fixture(scope="module")
def z():
    return mixture(3000)


@pytest.fixture(scope="module")
def fitted(z):
    return fit_residual_vq(z, SIZES, FAST, seed=3)[0]


@pytest.mark.slow
def test_a_vq_is_as_good_as_residual_k_means(z, fitted):
    vq, kmeans = errors(z, fitted), errors(z, residual_kmeans(z, SIZES, rounds=25, seed=3))
    assert np.all(vq < 1.15 * kmeans)


def test_every_level_lowers_the_error(z, fitted):
    for sample in (z, mixture(500, noise=0.4)):
        found = errors(sample, fitted)
        assert found[0] < 1 and np.all(np.diff(found) < -0.02)


def test_training_improves_on_its_start(z, fitted):
    start = fit_residual_vq(z, SIZES, dataclasses.replace(FAST, steps=0), seed=3)[0]
    assert errors(z, fitted)[2] < 0.99 * errors(z, start)[2]


def test_the_seed_decides_the_result(z):
    short = dataclasses.replace(FAST, steps=5)
    first, again, other = (fit_residual_vq(z, (8, 4), short, seed=seed)[0] for seed in (1, 1, 2))
    for level in range(2):
        np.testing.assert_array_equal(first[level], again[level])
        assert not np.array_equal(first[level], other[level])


def test_an_update_equals_plain_numpy():
    rng, settings = np.random.default_rng(0), VQSettings(decay=0.9, epsilon=1e-3)
    codes, counts = rng.normal(size=(5, 3)), np.array([3.0, 1.0, 0.0, 2.0, 4.0])
    book, sums = Codebook.start(codes, counts), codes * counts[:, None]
    for step in range(3):
        x = rng.normal(size=(10, 3))
        chosen = np.array([0, 0, 1, 3, 3, 3, 4, 4, 0, 1])  # nothing chooses code 2
        book = update(book, jnp.asarray(x, jnp.float32), jnp.asarray(chosen), settings, jax.random.key(step))
        for k in range(5):
            counts[k] = 0.9 * counts[k] + 0.1 * np.sum(chosen == k)
            sums[k] = 0.9 * sums[k] + 0.1 * x[chosen == k].sum(axis=0)
        smoothed = (counts + 1e-3) / (counts.sum() + 5e-3) * counts.sum()
        np.testing.assert_allclose(book.codes, sums / smoothed[:, None], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(book.counts, counts, rtol=1e-6)
    np.testing.assert_array_equal(book.idle, [0, 0, 3, 0, 0])


def test_dead_codes_become_rows_of_the_batch():
    settings = VQSettings(dead_after=4)  # 4 rows for each of 6 codes are 3 batches of 8
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    far = np.concatenate([np.zeros((2, 2)), np.full((4, 2), 1e3)])
    book = Codebook.start(far, np.array([4.0, 4, 0, 0, 0, 0]))
    for step in range(3):
        revived = np.array([np.any(np.all(np.asarray(x) == code, axis=1)) for code in np.asarray(book.codes)])
        assert not revived.any()
        book = update(book, x, jnp.array([0, 1] * 4), settings, jax.random.key(step))
    drawn = [np.flatnonzero(np.all(np.asarray(x) == code, axis=1)) for code in np.asarray(book.codes)]
    assert [len(rows) for rows in drawn] == [0, 0, 1, 1, 1, 1]
    assert len(np.unique(np.concatenate(drawn))) == 4  # four different rows
    np.testing.assert_array_equal(book.idle, 0)
    np.testing.assert_array_equal(book.counts[2:], 1)
    np.testing.assert_array_equal(book.sums[2:], book.codes[2:])


def test_a_level_that_starts_far_away_ends_up_using_all_codes(z):
    settings = VQSettings(dead_after=20, decay=0.9)
    module = Autoencoder(16, 0)
    rng = np.random.default_rng(0)
    books = [Codebook.start(50 + rng.normal(size=(16, 16)), np.ones(16)) for _ in range(2)]
    state = {"params": {}, "optimizer": optax.adam(1e-3).init({}), "books": books}
    for step in range(60):
        batch = z[rng.choice(len(z), 256)]
        state = train_step(state, batch, jax.random.key(step), module=module, settings=settings)
    codebooks = [np.asarray(book.codes) for book in state["books"]]
    codes = quantize(z, codebooks)
    assert all(len(np.unique(codes[:, level])) == 16 for level in range(2))
    assert errors(z, codebooks)[1] < 1.5 * errors(z, residual_kmeans(z, (16, 16), rounds=25, seed=0))[1]


def test_a_rare_code_is_not_dead():
    settings, x = VQSettings(dead_after=8), jnp.ones((8, 2))  # 8 rows for each of 2 codes are 2 batches
    book = Codebook.start(np.array([[1.0, 1], [5, 5]]), np.array([8.0, 1]))
    for step in range(20):
        chosen = jnp.zeros(8, jnp.int32) if step % 2 else jnp.array([0] * 7 + [1])
        book = update(book, x, chosen, settings, jax.random.key(step))
    assert np.abs(np.asarray(book.codes[1]) - 1).max() > 0.1


def test_the_nearest_code_is_the_one_that_assignment_takes(z):
    codebook = z[:50]
    np.testing.assert_array_equal(choose(z, jnp.asarray(codebook)), quantize(z, [codebook])[:, 0])
    twice = np.concatenate([codebook, codebook])  # of equally near ones the first
    assert choose(z, jnp.asarray(twice)).max() < 50


def test_the_gradient_goes_straight_through_the_codes():
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    module, settings = Autoencoder(5, 3), VQSettings(latent=3, commitment=0.3)
    params = jax.jit(module.init)(jax.random.key(0), z)["params"]
    books = [Codebook.start(rng.normal(size=(4, 3)), np.ones(4)) for _ in range(2)]
    gradient = jax.jit(jax.grad(loss_and_codes, has_aux=True), static_argnums=(3, 4))
    found, levels = gradient(params, books, z, module, settings)

    def decoding_loss(p, q):
        return jnp.sum((z - module.apply({"params": p}, q, method="decode")) ** 2) / 6 / 2

    @jax.jit
    def by_hand(params):
        x, back = jax.vjp(lambda p: module.apply({"params": p}, z, method="encode"), params)
        total, expected, at_x = 0.0, jax.tree.map(jnp.zeros_like, params), 0.0
        for book, (_, chosen) in zip(books, levels, strict=True):
            at_x += 0.3 * 2 * (x - total - book.codes[chosen]) / 6
            total += book.codes[chosen]
            of_decoder, at_codes = jax.grad(decoding_loss, argnums=(0, 1))(params, total)
            at_x += at_codes
            expected = jax.tree.map(jnp.add, expected, of_decoder)
        return jax.tree.map(jnp.add, expected, back(at_x)[0])

    expected = by_hand(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    assert np.abs(np.asarray(found["encoder_0"]["kernel"])).max() > 1e-3


@pytest.mark.slow
def test_an_encoder_and_decoder_are_learned(z):
    settings = VQSettings(steps=150, batch=512, latent=8, decay=0.9, learning_rate=3e-3)
    found = []
    for steps in (0, 150):
        codebooks, params = fit_residual_vq(z, (16, 16), dataclasses.replace(settings, steps=steps), seed=0)
        module = Autoencoder(16, 8)
        codes = quantize(np.asarray(apply(module, params, z, "encode")), codebooks)
        for length in (1, 2):
            x = reconstruct(codes[:, :length], codebooks)
            error = np.sum((z - np.asarray(apply(module, params, x, "decode"))) ** 2)
            found.append(error / np.sum((z - z.mean(0)) ** 2))
    assert found[2] < 0.6 * found[0] and found[3] < 0.6 * found[1]
    assert found[3] < found[2] - 0.02  # the second level helps


def test_mistakes(z):
    with pytest.raises(SailError, match="10 vectors cannot fill a codebook of 16"):
        fit_residual_vq(z[:10], SIZES, FAST, seed=0)
    with pytest.raises(SailError, match="batch of 0"):
        fit_residual_vq(z, SIZES, VQSettings(batch=0), seed=0)
    with pytest.raises(SailError, match="diverged"):
        fit_residual_vq(z[:100], (4,), VQSettings(steps=1, decay=float("nan")), seed=0)
