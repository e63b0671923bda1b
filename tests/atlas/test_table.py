"""The points of an atlas as a table: every embedded item once, with its own place, texts, labels and picture."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from atlas.written_items import IDS, open_items
from PIL import Image
from search.searchable import clustered, write_embeddings

from sail_jax.atlas import points as points_lib
from sail_jax.atlas.points import AtlasSettings, Points
from sail_jax.atlas.table import write_table
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.items import Item
from sail_jax.vectors import projection
from sail_jax.vectors.embedding_set import EmbeddingSet
from sail_jax.vectors.projection import project


@pytest.fixture(scope="module")
def store():
    return open_items()


def written(folder, ids, z, store=None, **settings):
    """(what is said, the table) of some vectors."""
    embeddings = write_embeddings(folder / "e", ids, z, rows_per_part=50)
    path = folder / "new" / "atlas.parquet"
    report = write_table(Points(embeddings, store, AtlasSettings(**settings)), len(embeddings), path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return report, pq.read_table(path)


def test_what_the_store_knows_is_shown(store, tmp_path):
    report, table = written(tmp_path, IDS, clustered(48, 16), store, thumbnail=40)
    assert table["id"].to_pylist() == IDS
    shown = 0
    for row in table.to_pylist():
        item = store.get(row["id"])
        assert row["modalities"] == (item.modalities or None)
        assert row["label"] == (item.labels[0] if item.labels else None)
        assert row["labels"] == (", ".join(item.labels) or None)
        assert (row["text"] is None) == (not any(item.text.values()))
        assert all(text.strip()[:5] in row["text"] for text in item.text.values())
        assert (row["image"] is None) == (not item.frames)
        if row["image"]:
            picture = Image.open(io.BytesIO(row["image"]))
            assert picture.format == "JPEG" and max(picture.size) == 40
            shown += 1
    assert report.pictures == shown > 30 and report.unknown == report.zeros == 0


def test_items_without_a_vector_are_left_out_and_unknown_ones_have_an_id(store, tmp_path):
    z = clustered(48, 16)
    z[[0, 7, 47]] = 0
    ids = [*IDS[:10], "a stranger", *IDS[11:]]
    report, table = written(tmp_path, ids, z, store)
    assert table["id"].to_pylist() == [name for row, name in enumerate(ids) if row not in (0, 7, 47)]
    assert (report.points, report.zeros, report.unknown) == (45, 3, 1)
    assert "3 rows of zeros" in str(report) and "1 are of items that the item store lacks" in str(report)
    stranger = table.to_pylist()[ids.index("a stranger") - 2]
    assert stranger["id"] == "a stranger" and {stranger[name] for name in ("text", "label", "image")} == {None}


def test_without_a_store_there_are_places_and_ids(tmp_path):
    report, table = written(tmp_path, ["a", "b"], np.eye(2, 8, dtype=np.float32))
    assert table.column_names == ["x", "y", "id"] and report.unknown == report.texts == 0


def test_no_thumbnails(store, tmp_path):
    report, table = written(tmp_path, IDS, clustered(48, 16), store, thumbnail=0)
    assert report.pictures == table["image"].length() - table["image"].null_count == 0


@pytest.mark.slow
@pytest.mark.parametrize("block", [37, 8192])
def test_places_are_those_of_the_map_of_the_report(block, tmp_path, monkeypatch):
    """With few points all are placed at once; with more, a sample, and the others between, whatever the blocks."""
    monkeypatch.setattr(points_lib, "_BLOCK", block)
    z = clustered(300, 16)
    z[[3, 120]] = 0
    ids = [str(row) for row in range(300)]

    def places(name):
        (tmp_path / name).mkdir()
        _, table = written(tmp_path / name, ids, z)
        return np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)

    all_at_once = places("few")
    _, read = EmbeddingSet(tmp_path / "few" / "e").load()
    present = read[read.any(axis=1)]
    np.testing.assert_allclose(all_at_once, project(present, 0), atol=1e-4)

    monkeypatch.setitem(projection._OF_ALL, "tsne", 200)
    chosen = np.random.default_rng(0).choice(300, 200, replace=False, shuffle=False)
    first = np.isin(np.flatnonzero(read.any(axis=1)), chosen)
    monkeypatch.setattr(projection, "LANDMARKS", int(first.sum()))
    wanted = project(np.concatenate([present[first], present[~first]]), 0)
    found = places("more")
    np.testing.assert_allclose(np.concatenate([found[first], found[~first]]), wanted, atol=1e-3)


def test_texts_from_the_web_can_be_written(store, tmp_path, monkeypatch):
    broken = Item(IDS[0], text={"title": "half \ud83d of it"}, labels=("\udc00",))
    monkeypatch.setattr(ItemStore, "get", lambda self, item_id: broken)
    _, table = written(tmp_path, IDS[:2], np.eye(2, 8, dtype=np.float32), store)
    assert table["text"].to_pylist() == ["title: half ? of it"] * 2 and table["label"].to_pylist() == ["?"] * 2


def test_what_is_cut_short_leaves_the_earlier_file(store, tmp_path, monkeypatch):
    _, before = written(tmp_path, IDS, clustered(48, 16), store)
    embeddings = EmbeddingSet(tmp_path / "e")
    points, path = Points(embeddings, store, AtlasSettings(seed=1)), tmp_path / "new" / "atlas.parquet"

    def stopped(self, item_id):
        raise KeyboardInterrupt

    monkeypatch.setattr(ItemStore, "get", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_table(points, 48, path)
    assert pq.read_table(path).equals(before) and [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_same_command_writes_the_same_file(store, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, IDS, clustered(48, 16), store)
    one, two = ((tmp_path / name / "new" / "atlas.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_place(rows, tmp_path):
    with pytest.raises(SailError, match="holds no vectors that could be placed"):
        written(tmp_path, ["a", "b", "c"][:rows], np.zeros((rows, 8), np.float32))


@pytest.mark.parametrize(("name", "value"), [("thumbnail", -1), ("thumbnail", 513), ("seed", -1), ("seed", 2**32)])
def test_settings_out_of_range(name, value):
    with pytest.raises(SailError, match=f"--{name} is {value}; take "):
        AtlasSettings(**{name: value})
