"""Files for TensorBoard's projector: a line and a tile for each point of the sample."""

import re

import numpy as np
import pytest
from atlas.written_items import IDS, open_items
from PIL import Image
from search.searchable import clustered, unit, write_embeddings

from sail_jax.atlas import projector as lib
from sail_jax.atlas.points import AtlasSettings, Points
from sail_jax.atlas.projector import Projector
from sail_jax.data.media.pictures import decode_small
from sail_jax.errors import SailError


def written(folder, ids, z, store=None):
    """What is said; the files are in `folder / "p"`."""
    embeddings = write_embeddings(folder / "e", ids, z)
    projector = Projector(folder / "p", len(embeddings), 0)
    for block in Points(embeddings, store, AtlasSettings()).blocks():
        projector.add(block)
    return projector.write()


def metadata(folder):
    lines = (folder / "p" / "metadata.tsv").read_text().splitlines()
    head, *rows = (line.split("\t") for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_lines_and_tiles_are_of_the_same_items(tmp_path, monkeypatch):
    monkeypatch.setattr(lib, "MOST", 30)
    store = open_items()
    z = clustered(48, 16)
    z[5] = 0
    said = written(tmp_path, IDS, z, store)
    rows = metadata(tmp_path)
    assert said == f"{len(rows)} points, of 30 rows that were drawn" and len(rows) in (29, 30)
    tensors = np.loadtxt(tmp_path / "p" / "tensors.tsv", delimiter="\t")
    np.testing.assert_allclose(tensors, unit(z)[[IDS.index(row["id"]) for row in rows]], atol=1e-5)
    sprite = Image.open(tmp_path / "p" / "sprite.png")
    assert sprite.size == (6 * 64, 6 * 64)
    for number, row in enumerate(rows):
        item = store.get(row["id"])
        assert row["label"] == item.labels[0] and row["modalities"] == item.modalities
        left, top = number % 6 * 64, number // 6 * 64
        tile = np.asarray(sprite.crop((left, top, left + 64, top + 64)), np.float32)
        if item.frames:
            frame = decode_small(item.frames[0], 64).resize((64, 64))
            assert np.abs(tile - np.asarray(frame, np.float32)).mean() < 20
        else:
            assert not tile.any()


def test_the_config_names_the_files(tmp_path):
    assert written(tmp_path, ["a\tb", "c\nd"], np.eye(2, 8, dtype=np.float32)) == "2 points"
    config = (tmp_path / "p" / "projector_config.pbtxt").read_text()
    assert re.findall(r'_path: "(.*)"', config) == ["tensors.tsv", "metadata.tsv"] and "sprite" not in config
    assert [row["id"] for row in metadata(tmp_path)] == ["a b", "c d"]
    assert {file.name for file in (tmp_path / "p").iterdir()} == {
        "tensors.tsv",
        "metadata.tsv",
        "projector_config.pbtxt",
    }
    with pytest.raises(SailError, match="exists; name another --projector, or remove it"):
        Projector(tmp_path / "p", 2, 0)


def test_the_largest_sprite_can_be_drawn_by_browsers():
    assert lib._TILE * np.ceil(np.sqrt(lib.MOST)) <= 8192
