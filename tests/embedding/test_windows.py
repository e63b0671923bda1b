"""Processes that share windows: equal shapes of batches, and every item in one place."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from sail_jax.data.features import View
from sail_jax.data.pipeline import make_extractor
from sail_jax.embedding import windows
from sail_jax.embedding.windows import NothingShownError, Share, WindowReader
from sail_jax.errors import BadRecordError
from sail_jax.items import TEXT_FIELDS, Item
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.process_group import Processes

SHARES, GROUPS, BATCH = 2, 2, 8


class Told:
    """What two processes tell each other, each in a thread of this one."""

    def __init__(self):
        self.barrier, self.values = threading.Barrier(SHARES, timeout=60), [None] * SHARES

    def gather(self, index, value):
        self.values[index] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


def read_as(index, told, config, items):
    """The windows as process `index` reads them, with their batches; and the items that it loads."""
    reader = WindowReader(config, make_extractor(config), make_mesh(config.mesh, jax.devices()[:1]))
    reader._share, reader.processes = Share(index, SHARES, GROUPS), Processes(index, SHARES)
    object.__setattr__(reader.processes, "gather", lambda value: told.gather(index, value))
    loaded = []

    def loader(place, item):
        def load():
            loaded.append(place)
            if item.item_id == "bad":
                raise BadRecordError("it cannot be read", remedy="Mend it", record="bad")
            return item

        return load

    with ThreadPoolExecutor(2) as pool:
        loaders = (loader(place, item) for place, item in enumerate(items))
        found = [(w, list(w.batches)) for w in reader.read(loaders, View("VTA", TEXT_FIELDS, ""), BATCH, pool)]
    return found, loaded


@pytest.fixture
def items(store):
    """One item more than two windows hold: an unreadable one, one with nothing to show, and items of a world."""
    items = [store[position] for position in range(2 * BATCH - 1)]
    return [*items[:5], Item("bad"), *items[5:9], Item("empty"), *items[9:]]


def test_processes_embed_every_item_once_in_batches_of_one_shape(embedder, items, monkeypatch):
    monkeypatch.setattr(windows, "_WINDOW_BATCHES", 1)
    told = Told()
    with ThreadPoolExecutor(SHARES) as pool:
        read = list(pool.map(lambda index: read_as(index, told, embedder.config, items), range(SHARES)))
    assert sorted(read[0][1] + read[1][1]) == list(range(len(items)))
    assert [window.items for window, _ in read[0][0]] == [BATCH, BATCH, 1]
    extract, start = make_extractor(embedder.config), 0
    for own, other in zip(read[0][0], read[1][0], strict=True):
        assert {place: type(error) for place, error in own[0].bad.items()} == {
            place: type(error) for place, error in other[0].bad.items()
        }
        places_seen = []
        for batches in zip(own[1], other[1], strict=True):
            shapes, places = ([x.shape for x in jax.tree.leaves(batch.arrays)] for batch in batches), batches[0].places
            assert len({str(shape) for shape in shapes}) == 1 and places == batches[1].places
            keys = np.concatenate([batch.arrays.item_keys[:, 0] for batch in batches])
            for first, of_share in places:
                for row, place in enumerate(of_share, first):
                    places_seen.append(place)
                    if place not in own[0].bad:
                        wanted = extract(items[start + place], View("VTA", TEXT_FIELDS, "")).item_key
                        assert int(keys[row, 0]) << 32 | int(keys[row, 1]) == wanted
        assert sorted(places_seen) == list(range(own[0].items))
        start += own[0].items
    bad = {type(error) for window, _ in read[1][0] for error in window.bad.values()}
    assert bad == {BadRecordError, NothingShownError}


@pytest.mark.parametrize("total", [0, 1, 7, 12])
def test_every_row_falls_to_one_process(total):
    rows = [range(total)[Processes(index, 3).rows(total)] for index in range(3)]
    assert [row for part in rows for row in part] == list(range(total))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_an_error_of_the_first_process_is_raised(tmp_path):
    assert Processes().on_first(lambda: 3) == 3
    with Processes().scratch(tmp_path, "vectors-") as folder:
        assert folder.parent == tmp_path
    assert not list(Path(tmp_path).iterdir())
