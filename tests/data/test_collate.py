"""Packing of frames and clips on flat axes."""

import numpy as np

from sail_jax.data.collate import capacity, collate, count_again, thin
from sail_jax.data.features import ItemFeatures


def item(frames, clips=0, value=0, vector=None):
    return ItemFeatures(
        tokens=np.full(4, value, np.int32),
        token_types=np.ones(4, np.int8),
        frames=np.full((frames, 2, 2, 3), value, np.uint8) + np.arange(frames, dtype=np.uint8)[:, None, None, None],
        clips=np.full((clips, 5), value, np.int16),
        audio_vector=vector,
        item_key=(value << 32) + 7,
        text_key=(value << 32) + 8,
        valid=value != 9,
    )


def test_an_item_with_one_frame_does_not_pay_for_eight():
    assert capacity(items=64, budget=1.0, groups=4) == 64
    assert capacity(items=64, budget=8.0, groups=4) == 512
    assert capacity(items=6, budget=1.5, groups=2) == 10
    assert capacity(items=0, budget=8.0, groups=4) == 0


def test_frames_lie_in_the_block_of_their_group():
    pairs = [[item(2, value=10), item(1, value=20)], [item(0, value=30), item(2, clips=1, value=40)]]
    batch, cut = collate(pairs, [0, 1], [0.5, None], groups=2, frame_capacity=6, clip_capacity=2, audio_width=3)
    assert cut == 0
    np.testing.assert_array_equal(batch.frame_item, [0, 0, 1, 1, 1, -1])
    np.testing.assert_array_equal(batch.frame_slot, [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(batch.frames[:, 0, 0, 0], [10, 11, 20, 40, 41, 0])
    np.testing.assert_array_equal(batch.clip_item, [-1, 1])
    assert batch.tokens.shape == (2, 2, 4) and batch.tokens[1, 0, 0] == 30
    np.testing.assert_array_equal(batch.item_keys[0], [[10, 7], [20, 7]])
    np.testing.assert_array_equal(batch.text_keys[0], [[10, 8], [20, 8]])
    np.testing.assert_array_equal(batch.scores, np.array([0.5, np.nan], np.float32))
    np.testing.assert_array_equal(batch.dataset, [0, 1])


def test_what_does_not_fit_is_thinned_evenly_and_counted():
    batch, cut = collate(
        [[item(4, value=100), item(1, value=50)]],
        [0],
        [None],
        groups=1,
        frame_capacity=3,
        clip_capacity=0,
        audio_width=3,
    )
    assert cut == 2
    np.testing.assert_array_equal(batch.frame_item, [0, 0, 1])
    np.testing.assert_array_equal(batch.frames[:, 0, 0, 0], [100, 103, 50])  # evenly spread: the first and the last


def test_media_that_come_again_take_room_once():
    """Item 10 comes with frames and sound, with frames alone, and again; 20 comes twice, in two groups."""
    pairs = [[item(2, 1, value=10), item(2, value=10)], [item(2, 1, value=10), item(1, value=20)]]
    pairs += [[item(1, value=20), item(0, value=30)], [item(0, value=30), item(2, value=10)]]
    room = {"groups": 2, "frame_capacity": 10, "clip_capacity": 2, "audio_width": 3}
    batch, cut = collate(pairs, [0] * 4, [None] * 4, once=True, **room)
    assert cut == 0 and count_again(batch, 2) == 1
    np.testing.assert_array_equal(batch.media_item, [[0, 1], [0, 3], [0, 1], [2, 3]])
    np.testing.assert_array_equal(batch.frame_item, [0, 0, 1, 1, 3, 0, 3, 3, -1, -1])
    np.testing.assert_array_equal(batch.clip_item, [0, -1])
    plain, cut = collate(pairs, [0] * 4, [None] * 4, **room)
    assert cut == 3 and plain.media_item is None and count_again(plain, 2) == 0  # two frames and a clip


def test_thin():
    np.testing.assert_array_equal(thin(np.array([8, 1, 5]), 14), [8, 1, 5])
    np.testing.assert_array_equal(thin(np.array([8, 1, 5]), 9), [4, 1, 4])
    np.testing.assert_array_equal(thin(np.array([3, 3]), 5), [2, 3])
    np.testing.assert_array_equal(thin(np.array([1, 1]), 1), [0, 1])


def test_vectors_and_validity():
    vector = np.arange(3, dtype=np.float32)
    batch, _ = collate(
        [[item(0, value=9), item(0, vector=vector)]],
        [0],
        [None],
        groups=1,
        frame_capacity=0,
        clip_capacity=0,
        audio_width=3,
    )
    np.testing.assert_array_equal(batch.audio_vectors[0], [[0, 0, 0], vector])
    np.testing.assert_array_equal(batch.has_audio_vector, [[False, True]])
    np.testing.assert_array_equal(batch.valid, [[False, True]])
    assert batch.frames.shape == (0, 2, 2, 3)
