"""Outputs of frozen towers, computed once: same loss and gradient, nothing encoded twice, bounds and other towers."""

import dataclasses
import functools
import io
import pickle

import jax
import numpy as np
import pytest
from jaxprs import shapes_of_products
from PIL import Image

from sail_jax import config as config_lib
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.data.features import FeatureExtractor
from sail_jax.data.pipeline import BatchSource, HostShare, open_store
from sail_jax.data.tower_outputs import NO_ENCODINGS, Encodings
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item
from sail_jax.models.model import make_model
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.process_group import Processes
from sail_jax.training import tower_cache
from sail_jax.training.loop import train
from sail_jax.training.setup import TrainSetup, sharded_init
from sail_jax.training.step import make_gradient
from sail_jax.training.tower_cache import cache_note, cached_encodings

FROZEN = (r"^vit/", r"^audio/")


@pytest.fixture
def frozen(settings):
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    settings.data.encoding_cache_gb = 1.0
    settings.optimizer.freeze = FROZEN
    return settings


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of frames and clips that towers were run on, call by call."""
    run, counts = tower_cache._Filling._encode, []

    def counted(self, media):
        counts.append(len(media))
        return run(self, media)

    monkeypatch.setattr(tower_cache._Filling, "_encode", counted)
    return counts


def setup_of(settings):
    config = config_lib.build(settings)
    return TrainSetup.of(config, make_mesh(config.mesh, jax.devices()[:1]))


def batch_of(config, encodings=NO_ENCODINGS):
    source = BatchSource(config, HostShare(0, config.data.batch_size, 1), encodings=encodings)
    return pickle.loads(pickle.dumps(source))[1]  # as a worker process gets it


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (28, 28), colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fusion", "dual_tower"])
def test_loss_and_gradient_are_those_of_the_towers(frozen, tmp_path, one_device, kind):
    frozen.model.kind = kind
    frozen.data.update(frame_budget=1.4, encode_once=True)  # cuts frames, and shares those of an item
    frozen.model.media_chunk = 4
    frozen.model.vit.width = 20  # that of no other tower
    setup = setup_of(frozen)
    state, _ = sharded_init(setup)
    encodings = cached_encodings(setup, state.params, RunDirectory(tmp_path))
    plain, cached = (batch_of(setup.config, given) for given in (NO_ENCODINGS, encodings))
    filled = sum(int((items >= 0).sum()) for items in (cached.arrays.frame_item, cached.arrays.clip_item))
    assert (plain.media_cached, cached.media_cached) == (0, filled) and filled > 20
    assert cached.arrays.frames.dtype == np.dtype(setup.config.model.dtype)
    shapes = batch_shapes(setup.config, ("copair",), 1, encodings)
    for array, like in zip(jax.tree.leaves(cached.arrays), jax.tree.leaves(shapes), strict=True):
        assert (array.shape, array.dtype) == (like.shape, like.dtype)
    gradient = make_gradient(setup.config, make_model(setup.config.model), setup.objective)
    recipe = setup.objective.recipe(plain.datasets, plain.room)
    whole = jax.jit(functools.partial(gradient, recipe=recipe))
    expected, found = (jax.device_get(whole(state.params, batch.arrays)) for batch in (plain, cached))
    (loss, _), gradients = expected
    np.testing.assert_allclose(found[0][0], loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5 * max(np.abs(other).max(), 2e-3))
    for batch, runs in ((plain, True), (cached, False)):
        shapes = shapes_of_products(jax.make_jaxpr(whole)(state.params, batch.arrays).jaxpr)
        assert any(rows > 32 and width == 20 for rows, *_, width in shapes) == runs  # patches in the ViT's width


@pytest.mark.slow
def test_runs_encode_each_frame_and_clip_once(frozen, tmp_path, one_device, encoded, monkeypatch):
    """A resumed run and another one with the same towers read what is there; a killed one loses a file at most."""
    frozen.data.encoding_cache = str(tmp_path / "shared")
    frozen.data.workers = 1
    frozen.train.update(steps=4, checkpoint_every=2)
    config = config_lib.build(frozen)
    store, extract = open_store(config), FeatureExtractor(config, None)
    items = [store[position] for position in range(len(store))]
    frames = {item.frames[index] for item in items for index in extract.shown(item)}
    sounds = {item.audio for item in items} - {None}

    monkeypatch.setattr(tower_cache, "_FILE_BYTES", 4096)
    write, files = tower_cache.write_outputs, []

    def killed_later(*arguments):
        files.append(arguments)
        if len(files) == 4:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tower_cache, "write_outputs", killed_later)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "one")
    kept = sum(len(keys) for _, keys, _ in files[:3])
    assert 0 < kept < sum(encoded)
    encoded.clear()

    first = train(config, tmp_path / "one")
    assert kept + sum(encoded) == len(frames) + sum(len(extract.clips(item)) for item in items if item.audio)
    assert len(sounds) == len([item for item in items if item.audio])
    encoded.clear()
    lines = read_training_log(RunDirectory(tmp_path / "one"))
    assert sum(line["media_cached"] for line in lines) > 50

    second = train(config, tmp_path / "two")
    assert sum(encoded) == 0
    for one, other in zip(jax.tree.leaves(first.state), jax.tree.leaves(second.state), strict=True):
        np.testing.assert_array_equal(one, other)
    grown = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    assert train(grown, tmp_path / "two").start == 4 and sum(encoded) == 0


@pytest.mark.slow
def test_other_towers_and_other_decoding_have_folders_of_their_own(frozen, tmp_path, one_device):
    folders = set()
    for change in ({}, {"seed": 5}, {"ingest": {"max_pixels": 10**6}}, {"model": {"dtype": "bfloat16"}}):
        frozen.optimizer.freeze = FROZEN[:1]
        frozen.update(change)
        setup = setup_of(frozen)
        state, _ = sharded_init(setup)
        encodings = cached_encodings(setup, state.params, RunDirectory(tmp_path))
        assert encodings.clips is None
        folders.add(encodings.frames.folder)
    assert len(folders) == 4 and {folder.parent for folder in folders} == {tmp_path / "encodings"}


@pytest.mark.slow
def test_processes_share_the_work_as_far_as_they_see_files(frozen, tmp_path, one_device, encoded, monkeypatch):
    frozen.optimizer.freeze = FROZEN[:1]
    setup = setup_of(frozen)
    state, _ = sharded_init(setup)
    fill, filled = tower_cache._Filling._fill, []
    monkeypatch.setattr(tower_cache, "everyone", lambda: Processes(1, 2))
    monkeypatch.setattr(Processes, "wait", lambda _: filled.append(sum(encoded)))
    outputs = cached_encodings(setup, state.params, RunDirectory(tmp_path / "private")).frames
    share, every = filled
    assert 0.3 * every < share < 0.7 * every and len(outputs) == every
    encoded.clear(), filled.clear()

    def fill_of_both(self, positions):
        """As the first process does beside this one."""
        fill(self, range(0, positions.stop, 2))
        encoded.clear()
        fill(self, positions)

    monkeypatch.setattr(tower_cache._Filling, "_fill", fill_of_both)
    outputs = cached_encodings(setup, state.params, RunDirectory(tmp_path / "shared")).frames
    assert 0.3 * every < filled[0] < 0.7 * every and sum(encoded) == 0 and len(outputs) == every


@pytest.mark.slow
def test_what_cannot_be_decoded_is_left_to_training(frozen, tmp_path, one_device):
    """The picture beside a broken one, too, so that the message is that of the broken one."""
    setup = setup_of(frozen)
    state, _ = sharded_init(setup)
    items = [Item("broken", frames=(picture("red"), b"no picture")), Item("none")]
    filling = tower_cache._Filling(setup, {"vit": state.params["model"]["vit"]}, tmp_path, tower_cache._TOWERS[0])
    filling._store = items
    extract = FeatureExtractor(setup.config, None, Encodings(filling.run()))
    assert extract._frames(items[1]).shape == (0, 4, 16)
    with pytest.raises(BadRecordError, match=r"broken.*frames\[1\]|frames\[1\].*broken"):
        extract._frames(items[0])
    with pytest.raises(SailError, match="holds no output for frames.0. of the item 'other'"):
        extract._frames(Item("other", frames=(picture("blue"),)))


@pytest.mark.slow
def test_more_outputs_than_there_is_room_for_are_refused(frozen, tmp_path, one_device):
    frozen.data.encoding_cache_gb = 1e-6
    setup = setup_of(frozen)
    state, _ = sharded_init(setup)
    with pytest.raises(SailError, match=r"need more than config.data.encoding_cache_gb=1e-06: .* encoded by 'vit'"):
        cached_encodings(setup, state.params, RunDirectory(tmp_path))
    assert not list(tmp_path.rglob("*.npy"))


def test_towers_that_are_trained_are_not_cached(frozen, tmp_path, one_device):
    assert not cache_note(setup_of(frozen))
    frozen.optimizer.freeze = (r"^vit/layers",)  # not its patch embedding
    assert "encoding_cache_gb saves nothing" in cache_note(setup_of(frozen))
    assert cached_encodings(setup_of(frozen), {}, RunDirectory(tmp_path)) == NO_ENCODINGS
    frozen.lora.update(rank=2, targets=(r"^vit/layers/.*query/kernel$",))
    assert [tower.name for tower in tower_cache._frozen(setup_of(frozen))] == ["audio"]
    frozen.data.datasets.copair.patterns = ("VT->VT",)
    assert "encoding_cache_gb saves nothing" in cache_note(setup_of(frozen))
    frozen.data.encoding_cache_gb = 0.0
    assert not cache_note(setup_of(frozen))
