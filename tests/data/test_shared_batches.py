"""Arrays that worker processes send in shared memory arrive as they are, in blocks that are used again."""

import errno
import os
from typing import NamedTuple

import jax
import numpy as np
import pytest

from sail_jax.data.shared_batches import BlockReader, BlockWriter, shared_folder
from sail_jax.errors import SailError

LARGE = (300, 500)


class Sent(NamedTuple):
    """What stands for a batch."""

    pixels: np.ndarray
    tokens: np.ndarray
    few: np.ndarray
    note: str


@pytest.fixture
def ends():
    with shared_folder() as folder:
        yield BlockWriter(folder), BlockReader(folder), folder
    assert not folder.exists()


def batch(writer, seed, shape=LARGE):
    rng = np.random.default_rng(seed)
    pixels = writer.empty(shape, np.uint8)
    pixels[:] = rng.integers(0, 256, shape)
    return Sent(pixels, rng.normal(size=(50, 400)), rng.normal(size=3).astype(np.float32), f"batch {seed}")


def same(found, expected):
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert found.note == expected.note


def test_what_is_sent_arrives_and_its_blocks_are_used_again(ends):
    writer, reader, folder = ends
    for seed in range(6):
        sent = batch(writer, seed)
        data = writer.dumps(sent)
        assert len(data) < 1000  # the large arrays are not in it
        same(reader.loads(data), sent)
        del sent
    assert len(writer._blocks) == 2  # pixels, which were made there, and tokens, which were copied
    assert not list(folder.iterdir())  # what was read has no name that a killed process could leave behind


def test_a_block_is_not_used_again_while_anything_looks_at_it(ends):
    writer, reader, folder = ends
    first = reader.loads(writer.dumps(batch(writer, 0)))
    part, copy = first.pixels[10:20].reshape(-1), first.pixels[10:20].reshape(-1).copy()
    del first
    for seed in range(1, 4):
        same(reader.loads(writer.dumps(batch(writer, seed))), batch(writer, seed))
        writer.reclaim()
    np.testing.assert_array_equal(part, copy)
    ahead = [writer.dumps(batch(writer, seed)) for seed in range(5)]
    for seed, data in enumerate(ahead):
        expected = batch(writer, seed)
        same(reader.loads(data), expected)
        del expected
        writer.reclaim()
    np.testing.assert_array_equal(part, copy)


def test_blocks_grow_with_what_they_are_used_for(ends):
    writer, reader, folder = ends
    sizes = [(300, 300), (900, 900), (300, 300), (2000, 900), (10, 10)]
    for seed, shape in enumerate(sizes):
        sent = batch(writer, seed, shape)
        same(reader.loads(writer.dumps(sent)), sent)
        del sent
    assert len(writer._blocks) == 2


def test_arrays_outlive_the_folder():
    with shared_folder() as folder:
        writer, reader = BlockWriter(folder), BlockReader(folder)
        sent = batch(writer, 0)
        found = reader.loads(writer.dumps(sent))
    del reader
    same(found, sent)


def test_arrays_that_are_not_sent_give_their_blocks_back(ends):
    writer, _, folder = ends
    for _ in range(5):
        writer.empty(LARGE, np.float32)  # a batch that cannot be made
        writer.reclaim()
    assert len(writer._blocks) == 1


def test_no_room_is_explained(ends, monkeypatch):
    writer, _, _ = ends

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fallocate = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        SailError, match=r"no room for 150,000 bytes .* \(No space left on device\).*--shm-size.*data\.workers"
    ):
        writer.empty(LARGE, np.uint8)
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    assert writer.empty(LARGE, np.uint8).shape == LARGE  # it goes on when there is room


def test_a_device_array_on_the_host_keeps_its_block(ends):
    writer, reader, _ = ends
    found = reader.loads(writer.dumps(batch(writer, 0)))
    expected, on_device = found.pixels.copy(), jax.device_put(found.pixels)  # which may look at the same memory
    del found
    for seed in range(1, 6):
        reader.loads(writer.dumps(batch(writer, seed)))
    np.testing.assert_array_equal(on_device, expected)
