"""The shapes that are foretold from a config are those of the batches that come."""

import numpy as np
import pytest
import tiny

from sail_jax import config as config_lib
from sail_jax.data.batch_shapes import batch_kinds, batch_shapes, estimated_token_room
from sail_jax.data.hard_negative_table import query_key, write_negatives
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.data.tables import PairTable


def described(batch):
    return {
        name: (tuple(array.shape), np.dtype(array.dtype))
        for name, array in batch._asdict().items()
        if array is not None
    }


def with_hard_negatives(settings, world, path):
    table = PairTable.open(world / "tables" / "copair.parquet", "train")
    ids = sorted({table[i].query_id for i in range(len(table))}, key=lambda q: query_key(q, None))
    write_negatives(path, ((q, None, ids[:4], [0.5] * 4) for q in ids), {})
    settings.data.datasets.copair.update(negatives=str(path), hard_negatives=2)


@pytest.mark.parametrize("sampling", ["specialized", "mixed"])
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_batches_have_the_foretold_shapes(settings, world, tmp_path, sampling, shards):
    settings.data.update(sampling=sampling, frame_budget=1.3, encode_once=shards == 2)
    settings.data.datasets.search.patterns = ("T->VT",)
    settings.data.datasets.copair.correct_popularity = 1.0
    settings.data.datasets.search.random_negatives = 1
    with_hard_negatives(settings, world, tmp_path / "hard.parquet")
    config = config_lib.build(settings)
    source = BatchSource(config, HostShare(0, config.data.batch_size, shards))
    names = list(config.data.datasets)
    seen = set()
    for step in range(6):
        loaded = source[step]
        kind = tuple(names[index] for index in loaded.datasets)
        assert described(loaded.arrays) == described(batch_shapes(config, kind, shards))
        seen.add(kind)
    assert seen == set(batch_kinds(config))


def test_sets_without_weight_make_no_batches(settings):
    settings.data.datasets.search.weight = 0.0
    assert batch_kinds(config_lib.build(settings)) == [("copair",)]


def test_the_full_size_config_needs_no_data():
    config = config_lib.load(tiny.REPO / "configs" / "sail_1b5.py")
    batch = batch_shapes(config, ("copair",), 256)
    assert batch.frames.shape == (4096 * 2 * 5, 448, 448, 3)
    assert batch.clips.shape == (4096 * 2 * 2, 480_000) and batch.tokens.shape == (4096, 2, 320)


def test_micro_batches_and_chunks_have_them_too(settings):
    settings.data.update(frame_budget=1.3, text_budget=20.0, encode_once=True)
    settings.train.micro_batches = 2
    settings.model.media_chunk = 2
    config = config_lib.build(settings)
    loaded = BatchSource(config, HostShare(0, 16, 2))[0]
    names = tuple(list(config.data.datasets)[index] for index in loaded.datasets)
    assert len(loaded.parts) == 2
    for part in loaded.parts:
        assert described(part) == described(batch_shapes(config, names, 2))
    # The tokens of prompts can only be guessed without a tokenizer.
    assert 0.7 < estimated_token_room(config, names, 2) / loaded.room < 1.4
