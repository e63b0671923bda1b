"""Batches of items that are alike: the same vectors, in order, as from batches in the order of the items."""

import io
import itertools

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from sail_jax import config as config_lib
from sail_jax import embedder as embedder_lib
from sail_jax.data.collate import collate
from sail_jax.data.features import View
from sail_jax.data.pipeline import make_extractor
from sail_jax.embedder import Embedder, NothingShownError
from sail_jax.items import TEXT_FIELDS, Item, text_item
from sail_jax.models.model import init_params, make_model
from sail_jax.parallel.mesh import make_mesh

VIEW = View("VTA", TEXT_FIELDS, "Find it.")
VIEWS = ("VTA", "T")
BATCH = 4


@pytest.fixture(scope="module", params=[1, 2], ids=["one device", "two devices"])
def embedder(request, world):
    values = tiny.experiment(world)
    values.eval.batch_size = BATCH
    config = config_lib.build(values)
    mesh = make_mesh(config.mesh, jax.local_devices()[: request.param])
    return Embedder(config, jax.jit(lambda: init_params(config.model, 0))(), make_extractor(config), mesh)


def picture(seed):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(255, size=(9, 9, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def mixed_items():
    """Items of all lengths, with and without media, two of them of no use."""
    rng = np.random.default_rng(0)
    items = [text_item(" ".join(["word"] * n)) for n in rng.integers(1, 60, 14)]
    items += [Item(f"seen-{i}", {"title": "a b c" * i}, tuple(map(picture, range(i % 3)))) for i in range(1, 8)]
    items += [Item("heard", audio_embedding=rng.normal(size=16).astype(np.float32))]
    items += [Item("bad", frames=(b"no picture",)), Item("empty")]
    return [items[i] for i in rng.permutation(len(items))]


def plain_vectors(embedder, items):
    """Each item alone, at full length; zeros where it is of no use."""
    config = embedder.config
    model, extractor = make_model(config.model), make_extractor(config)
    apply = jax.jit(lambda batch: model.apply({"params": embedder.params}, batch, (VIEWS,))[0][0])
    out = np.zeros((len(VIEWS), len(items), config.model.llm.width), np.float32)
    for i, item in enumerate(items):
        if item.item_id in ("bad", "empty"):
            continue
        room = {"frame_capacity": 2, "clip_capacity": 0, "audio_width": config.model.audio.projection}
        batch, _ = collate([[extractor(item, VIEW)]], [0], [None], groups=1, **room)
        out[:, i] = apply(batch)[:, 0]
    return out


def test_vectors_are_those_of_each_item_alone_at_full_length(embedder, monkeypatch):
    monkeypatch.setattr(embedder_lib, "_WINDOW_BATCHES", 3)
    items = mixed_items()
    expected = plain_vectors(embedder, items)
    blocks = list(embedder.stream(iter(items), VIEW, VIEWS))
    assert [z.shape[1] for z, _ in blocks] == [12, 12]
    np.testing.assert_allclose(np.concatenate([z for z, _ in blocks], axis=1), expected, atol=2e-5)
    bad = {12 * block + i: error for block, (_, errors) in enumerate(blocks) for i, error in errors.items()}
    assert {items[i].item_id: isinstance(error, NothingShownError) for i, error in bad.items()} == {
        "bad": False,
        "empty": True,
    }


def test_a_window_is_bounded_and_closes_early_on_media(embedder, monkeypatch):
    monkeypatch.setattr(embedder_lib, "_WINDOW_BATCHES", 2)
    taken = itertools.count()
    endless = (text_item(f"text {next(taken)}") for _ in itertools.count())
    assert next(embedder.stream(endless, VIEW, VIEWS))[0].shape[1] == 2 * BATCH
    assert next(taken) == 4 * BATCH  # the next window is prepared while the device works
    monkeypatch.setattr(embedder_lib, "_WINDOW_BYTES", 1)
    seen = [Item(f"seen-{i}", frames=(picture(i),)) for i in range(3 * BATCH)]
    assert [z.shape[1] for z, _ in embedder.stream(seen, VIEW, VIEWS)] == [BATCH] * 3
    assert not list(embedder.stream([], VIEW, VIEWS))


def test_batches_are_as_long_as_what_they_hold(embedder, monkeypatch):
    shapes = []
    forward = embedder_lib._forward

    def spy(model, params, batch, views):
        shapes.append(batch.tokens.shape)
        return forward(model, params, batch, views)

    monkeypatch.setattr(embedder_lib, "_forward", spy)
    long = " ".join(["word"] * 200)
    embedder.embed(["a", long, "b", long, "c", long, "d", long, "e"], instruction="")
    lengths, rows = [n for *_, n in shapes], [rows for rows, *_ in shapes]
    assert rows[:2] == [BATCH, BATCH] and rows[2] < BATCH
    assert lengths[0] < 40 and lengths[1:] == [96, 96]


def test_lengths_come_in_few_steps():
    steps = {embedder_lib._step_up(length) for length in range(513)}
    assert len(steps) == 20 and all(embedder_lib._step_up(step) == step for step in steps)
    assert all(length <= embedder_lib._step_up(length) <= length * 1.25 + 8 for length in range(513))


def test_kernels_see_the_mesh(embedder, monkeypatch):
    """A fused kernel has to be run shard by shard, for which it reads the mesh that is set."""
    seen = []
    monkeypatch.setattr(
        embedder_lib, "_forward", lambda *_: seen.append(jax.sharding.get_abstract_mesh()) or np.zeros((1, 8, 32))
    )
    next(embedder.stream([text_item("glass")], VIEW, ("T",)))
    assert [mesh.shape for mesh in seen] == [embedder.mesh.shape]
