"""The omni-modal model and the baseline, which share an interface: what must not change an embedding, and what must."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sail_jax import config as config_lib
from sail_jax.batch import Batch, TokenType
from sail_jax.models.media import Media, mean_per_item, sound_vectors
from sail_jax.models.model import init_params, make_model

pytestmark = pytest.mark.slow

N, B, S = 24, 4, 2
LATENTS = 2
KINDS = ("fusion", "dual_tower")


def tiny_model(kind):
    values = tiny.experiment("unused")
    values.model.kind = kind
    return config_lib.build(values).model


def drawn_params(config):
    """Parameters far from the initialisation, where every part matters."""
    params = init_params(config, 0)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


@functools.partial(jax.jit, static_argnames=("config", "views", "groups"))
def forward(config, params, batch, views, groups=1):
    return make_model(config, groups).apply({"params": params}, batch, views)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def params(model):
    return drawn_params(model)


@pytest.fixture(scope="module")
def apply(model, params):
    """[V, B, S, D] of all sides, which are all seen in the same views."""

    def run(batch, views=("VTA",), groups=1):
        (query, target), _ = forward(model, params, batch, (views, views), groups)
        return jnp.concatenate([query[:, :, None], target], axis=2)

    return run


@pytest.fixture
def batch(model):
    return make_batch(model)


def make_batch(model, sides=S):
    """Four pairs; every item has prompt, sound, vision and text, one to two frames and one clip."""
    rng = np.random.default_rng(0)
    items, size = B * sides, model.vit.image_size
    frames_of = rng.integers(1, 3, items)
    row = np.repeat(np.arange(items), frames_of)
    types = np.full((items, N), TokenType.PAD, np.int8)
    for i in range(items):
        layout = [TokenType.PROMPT] * 5 + [TokenType.AUDIO] + [TokenType.VISION] * LATENTS
        layout += [TokenType.TEXT] * int(rng.integers(2, 8)) + [TokenType.PROMPT] * 2
        types[i, : len(layout)] = layout
    textual = (types == TokenType.PROMPT) | (types == TokenType.TEXT)
    return Batch(
        tokens=(rng.integers(5, 500, (items, N)) * textual).astype(np.int32).reshape(B, sides, N),
        token_types=types.reshape(B, sides, N),
        frames=rng.integers(0, 255, (len(row), size, size, 3)).astype(np.uint8),
        frame_item=row.astype(np.int32),
        frame_slot=np.concatenate([np.arange(n) for n in frames_of]).astype(np.int32),
        clips=rng.integers(-9000, 9000, (items, model.audio.clip_samples)).astype(np.int16),
        clip_item=np.arange(items, dtype=np.int32),
        audio_vectors=np.zeros((B, sides, model.audio.projection), np.float32),
        has_audio_vector=np.zeros((B, sides), bool),
        item_keys=np.zeros((B, sides, 2), np.uint32),
        text_keys=np.zeros((B, sides, 2), np.uint32),
        valid=np.ones((B, sides), bool),
        scores=np.full(B, np.nan, np.float32),
        dataset=np.zeros(B, np.int32),
    )


def close(left, right, atol=2e-6):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), atol=atol)


def test_every_modality_matters(apply, batch):
    z = apply(batch)
    assert z.shape == (1, B, S, 32) and z.dtype == jnp.float32 and np.all(np.isfinite(z))
    for name in ("frames", "clips", "tokens"):
        changed = batch._replace(**{name: np.roll(getattr(batch, name), 1, axis=0)})
        assert np.abs(np.asarray(apply(changed) - z)).max(axis=-1).min() > 1e-4


def test_padding_of_the_sequence_changes_nothing(apply, batch):
    wide = [(0, 0), (0, 0), (0, 9)]
    longer = batch._replace(tokens=np.pad(batch.tokens, wide), token_types=np.pad(batch.token_types, wide))
    garbage = np.where(longer.token_types == TokenType.PAD, 77, longer.tokens)
    close(apply(longer._replace(tokens=garbage)), apply(batch))


def test_padding_frames_and_clips_change_nothing(apply, batch):
    noise = np.full((3, *batch.frames.shape[1:]), 200, np.uint8)
    padded = batch._replace(
        frames=np.concatenate([batch.frames, noise]),
        frame_item=np.concatenate([batch.frame_item, [-1] * 3]).astype(np.int32),
        frame_slot=np.concatenate([batch.frame_slot, [0] * 3]).astype(np.int32),
        clips=np.concatenate([batch.clips, batch.clips[:1]]),
        clip_item=np.concatenate([batch.clip_item, [-1]]).astype(np.int32),
    )
    close(apply(padded), apply(batch))


def test_order_on_the_flat_axis_changes_nothing_but_the_slot_does(model, apply, batch):
    order = np.random.default_rng(2).permutation(len(batch.frames))
    shuffled = batch._replace(**{k: getattr(batch, k)[order] for k in ("frames", "frame_item", "frame_slot")})
    close(apply(shuffled), apply(batch))
    if model.kind == "dual_tower":  # which has no temporal positions
        return
    two = np.flatnonzero(np.bincount(batch.frame_item) == 2)
    swapped = batch._replace(
        frame_slot=np.where(np.isin(batch.frame_item, two), 1 - batch.frame_slot, 0).astype(np.int32)
    )
    changed = np.abs(np.asarray(apply(swapped) - apply(batch))).max(axis=-1).reshape(-1)
    assert changed[two].min() > 1e-6 and np.all(changed[np.setdiff1d(np.arange(B * S), two)] < 2e-6)


PARTS = ("V", "T", "A", "VT", "VA", "TA")


@pytest.mark.parametrize("view", PARTS)
def test_a_view_equals_a_batch_that_lacks_the_rest(apply, batch, view):
    """Masking a modality on the device gives the embedding of an item that never had it."""
    keep = {"V": TokenType.VISION, "T": TokenType.TEXT, "A": TokenType.AUDIO}
    wanted = [TokenType.PROMPT, *(keep[letter] for letter in view)]
    tokens, types = np.zeros_like(batch.tokens), np.zeros_like(batch.token_types)
    for b in range(B):
        for s in range(S):
            at = np.flatnonzero(np.isin(batch.token_types[b, s], wanted))
            tokens[b, s, : len(at)], types[b, s, : len(at)] = batch.tokens[b, s, at], batch.token_types[b, s, at]
    lacking = batch._replace(tokens=tokens, token_types=types)
    if "V" not in view:
        lacking = lacking._replace(
            frames=batch.frames[:0], frame_item=batch.frame_item[:0], frame_slot=batch.frame_slot[:0]
        )
    if "A" not in view:
        lacking = lacking._replace(clips=batch.clips[:0], clip_item=batch.clip_item[:0])
    # All views at once, and whatever an item has: few programs to compile.
    close(apply(batch, PARTS)[PARTS.index(view)], apply(lacking, ("O",))[0])


def test_stacked_views_equal_single_ones(apply, batch):
    views = ("VTA", "T", "VA")
    together = apply(batch, views)
    for i, view in enumerate(views):
        close(together[i], apply(batch, (view,))[0])


def test_media_positions_without_media_count_for_nothing(apply, batch):
    """Frames that did not fit the budget leave their positions empty: as if the item had none."""
    without = batch._replace(frames=batch.frames[:0], frame_item=batch.frame_item[:0], frame_slot=batch.frame_slot[:0])
    close(apply(without), apply(batch, ("TA",)))


def test_an_item_that_shows_nothing_is_zero(apply, batch):
    types = np.where(batch.token_types == TokenType.TEXT, TokenType.PAD, batch.token_types)
    z = apply(batch._replace(token_types=types), ("T",))
    assert not np.any(z)


def test_items_do_not_see_each_other(apply, batch):
    z = apply(batch)
    tokens = batch.tokens.copy()
    tokens[2, 1, :5] += 1
    changed = np.abs(np.asarray(apply(batch._replace(tokens=tokens)) - z)).max(axis=-1)[0]
    assert changed[2, 1] > 1e-5 and np.delete(changed.reshape(-1), 5).max() < 2e-6


def test_a_precomputed_vector_takes_the_place_of_the_tower(model, params, apply, batch):
    listen = functools.partial(make_model(model).apply, method=lambda m, clips: m.audio(clips)[0])
    heard = jax.jit(listen)({"params": params}, batch.clips)
    given = batch._replace(
        audio_vectors=np.asarray(heard).reshape(B, S, -1),
        has_audio_vector=np.ones((B, S), bool),
        clips=batch.clips[:0],
        clip_item=batch.clip_item[:0],
    )
    close(apply(given), apply(batch), atol=1e-5)


def test_several_clips_are_averaged():
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    mean, heard = mean_per_item(jnp.asarray(vectors), jnp.array([0, 2, 0, -1]), items=3, groups=1)
    np.testing.assert_allclose(mean, [(vectors[0] + vectors[2]) / 2, [0, 0, 0], vectors[1]])
    np.testing.assert_array_equal(heard, [True, False, True])


def test_groups_change_the_layout_and_not_the_result(apply, batch):
    """Two groups of two pairs, each with the frames of its own block."""
    half = B * S // 2
    first = batch.frame_item < half
    most = max(first.sum(), (~first).sum())

    def block(array, chosen, fill):
        pad = np.full((most - chosen.sum(), *array.shape[1:]), fill, array.dtype)
        return np.concatenate([array[chosen], pad])

    def blocks(array, fill):
        return np.concatenate([block(array, first, fill), block(array, ~first, fill)])

    grouped = batch._replace(
        frames=blocks(batch.frames, 0),
        frame_item=np.concatenate([block(batch.frame_item, first, -1), block(batch.frame_item - half, ~first, -1)]),
        frame_slot=blocks(batch.frame_slot, 0),
        clip_item=(batch.clip_item % half).astype(np.int32),
    )
    close(apply(grouped, groups=2), apply(batch))


def test_bfloat16_stays_near_float32(model, params, batch):
    views = (("VTA",), ("VTA",))
    (z, _), _ = forward(dataclasses.replace(model, dtype="bfloat16"), params, batch, views)
    (exact, _), _ = forward(model, params, batch, views)
    cosine = (z * exact).sum(-1) / jnp.linalg.norm(z, axis=-1) / jnp.linalg.norm(exact, axis=-1)
    assert z.dtype == jnp.float32 and cosine.min() > 0.99


def test_views_of_their_own_equal_the_same_on_both_sides(model, params, apply, batch):
    views = (("VTA", "T"), ("VA", "O", "V"))
    (query, target), _ = forward(model, params, batch, views)
    assert query.shape == (2, B, 32) and target.shape == (3, B, S - 1, 32)
    every = apply(batch, views[0] + views[1])
    close(query, every[:2, :, 0])
    close(target, every[2:, :, 1:])


def sides_of(batch, sides):
    """The batch with these sides of each pair alone."""
    every = batch.tokens.shape[1]

    def renumbered(item):
        pair, side = np.divmod(item, every)
        return np.where(np.isin(side, sides), pair * len(sides) + np.searchsorted(sides, side), -1).astype(np.int32)

    by_side = ("tokens", "token_types", "audio_vectors", "has_audio_vector", "item_keys", "text_keys", "valid")
    chosen = {name: getattr(batch, name)[:, sides] for name in by_side}
    media = {name: renumbered(getattr(batch, name)) for name in ("frame_item", "clip_item")}
    return batch._replace(**chosen, **media)


def test_hard_negatives_are_seen_as_targets(model, params):
    """Three sides give what batches of the query with the one and with the other give."""
    batch, views = make_batch(model, sides=3), (("VTA",), ("VTA", "T"))
    (query, target), out = forward(model, params, batch, views)
    assert target.shape == (2, B, 2, 32)
    for part in (out.filled, *out.parts):
        assert [x.shape[:3] for x in part] == [query.shape[:2] + part[0].shape[2:3], target.shape[:3]]
    for number, side in enumerate((1, 2)):
        (alone, other), parts = forward(model, params, sides_of(batch, [0, side]), views)
        close(query, alone)
        close(target[:, :, number], other[:, :, 0])
        for part, of_two in zip((out.filled, *out.parts), (parts.filled, *parts.parts), strict=True):
            close(part[0], of_two[0])
            close(part[1][:, :, number], of_two[1][:, :, 0])


def test_one_side_takes_one_tuple_of_views(model, params, apply, batch):
    (z,), out = forward(model, params, sides_of(batch, [0]), (("VTA", "T"),))
    close(z, apply(batch, ("VTA", "T"))[:, :, 0])
    assert [x.shape for x in out.filled] == [(2, B)]
    with pytest.raises(ValueError, match="2 sides takes views for 2"):
        forward(model, params, batch, (("VTA",),))


def test_filled_is_strict_for_sets_and_any_for_omni(model, params, batch):
    """The queries lack nothing, vision, text, and sound and vision; the targets lack nothing."""
    types = batch.token_types.copy()
    types[2, 0][types[2, 0] == TokenType.TEXT] = TokenType.PAD
    lacking = batch._replace(
        token_types=types,
        frame_item=np.where(np.isin(batch.frame_item, (2, 6)), -1, batch.frame_item),
        clip_item=np.where(batch.clip_item == 6, -1, batch.clip_item),
    )
    views = ("VTA", "VT", "V", "T", "A", "O")
    (z, _), out = forward(model, params, lacking, (views, views))
    expected = {
        "VTA": [1, 0, 0, 0],
        "VT": [1, 0, 0, 0],
        "V": [1, 0, 1, 0],
        "T": [1, 1, 0, 1],
        "A": [1, 1, 1, 0],
        "O": [1, 1, 1, 1],
    }
    np.testing.assert_array_equal(out.filled[0], np.array([expected[view] for view in views], bool))
    assert out.filled[1].all() and out.filled[1].shape == (6, B, 1)
    close(z[0], z[-1])  # shown is the same
    empty = np.array(
        [[not any(letter in view for letter in has) for has in ("VTA", "TA", "VA", "T")] for view in views]
    )
    empty[-1] = False
    np.testing.assert_array_equal(~np.any(z, axis=-1), empty)
    hidden = np.array(["V" not in view and view != "O" for view in views])
    assert not np.any(out.parts.visual[0][hidden]) and not np.any(out.parts.visual[0][:, [1, 3]])
    shown = np.any(out.parts.encoded[0], axis=-1)
    np.testing.assert_array_equal(shown, ~hidden[:, None] & np.array([True, False, True, False]))


def test_modalities_enter_the_llm_at_one_scale():
    model, batch = tiny_model("fusion"), make_batch(tiny_model("fusion"))
    _, out = forward(model, init_params(model, 0), batch, (("VTA", "T"), ("VT",)))
    scales = np.sqrt(np.asarray(out.power).sum(0))
    scales = scales[:, 0] / scales[:, 1]
    assert scales.max() < 3 * scales.min(), scales


def test_normalised_sound_has_one_scale_and_silence_stays_zero():
    media = Media.of(make_batch(tiny_model("fusion")))
    given = np.arange(len(media.audio_vectors)) != 1
    vectors = np.where(given[:, None], np.random.default_rng(0).normal(size=media.audio_vectors.shape), 0)
    media = media._replace(audio_vectors=vectors.astype(np.float32), has_audio_vector=given, clips=media.clips[:0])
    found, _ = sound_vectors(lambda clips: None, jax.tree.map(jnp.asarray, media), groups=1, normalized=True)
    close(np.sqrt(np.square(found).mean(-1)), given.astype(np.float32))
    close(found[0] / np.linalg.norm(found[0]), vectors[0] / np.linalg.norm(vectors[0]))


def test_visual_and_textual_are_means_of_the_hidden_states():
    model = tiny_model("fusion")
    batch = make_batch(model)
    _, out = forward(model, drawn_params(model), batch, (("VTA", "T"), ("VT",)))
    for part, kind in ((out.parts.visual, TokenType.VISION), (out.parts.textual, TokenType.TEXT)):
        for row, (side, place) in enumerate([(0, (0, 0)), (0, (0, 1)), (1, (1, 0))]):
            values = np.asarray(part[place[0]][place[1]]).reshape(B, -1)
            for pair in range(B):
                at = np.asarray(out.mask[pair, row]) & (batch.token_types[pair, side] == kind)
                assert at.any() == (kind == TokenType.TEXT or row != 1)
                expected = np.tanh(out.hidden[pair, row][at]).mean(axis=0) if at.any() else np.zeros(32)
                close(values[pair], expected)
    close(out.parts.encoded[1][0, :, 0], out.vision.reshape(B, S, LATENTS, 32)[:, 1].mean(axis=1))
    inputs = [np.asarray(x).reshape(B, -1, 32) for x in (out.vision, out.audio)]
    for kind, given in zip((0, 2), inputs, strict=True):  # every item has frames and sound
        close(out.power[:, kind, 0], (given**2).mean(-1).sum(-1))
        np.testing.assert_array_equal(out.power[:, kind, 1], given.shape[1])
    assert out.power[:, 1, 1].sum() == (batch.token_types == TokenType.TEXT).sum()
