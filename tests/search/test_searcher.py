"""Search against brute force in numpy, and from the command line."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from searchable import brute_force, clustered, embed_store, recall, unit, write_embeddings

from sail_jax.cli import main
from sail_jax.cli.common import one_line
from sail_jax.embedding.embedder import load
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item
from sail_jax.search.faiss_index import FaissIndex, IndexSettings, build_index
from sail_jax.search.nearest import ExactSearch, ShortlistSearch
from sail_jax.search.searcher import QueryFile, Searcher, Shortlist, query_item
from sail_jax.vectors.embedding_set import EmbeddingSet
from sail_jax.vectors.score_blocks import TargetBlocks, fits_on_devices

pytestmark = pytest.mark.slow

ROWS, WIDTH = 1500, 32
QUERIES = clustered(40, WIDTH)

# ---------------------------------------------------------------------------------------------------- vectors only


@pytest.fixture(scope="module")
def z():
    z = clustered(ROWS, WIDTH)
    z[[0, 700, 701]] = 0
    return z


@pytest.fixture(scope="module")
def embeddings(z, tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("embeddings") / "e", [f"item-{i}" for i in range(ROWS)], z)


@pytest.fixture(scope="module")
def exact(embeddings):
    return ExactSearch(embeddings, block=400)


def test_exact_search(exact, z):
    rows, cosines = exact.nearest(QUERIES, 10)
    expected_rows, expected = brute_force(QUERIES, z, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)
    assert exact.position("item-700") == 700 and exact.position("nobody") == -1


def test_vectors_stay_on_the_devices_where_they_fit(embeddings, z, monkeypatch):
    copied, copy = [], TargetBlocks._copied
    monkeypatch.setattr(TargetBlocks, "_copied", lambda self, start: copied.append(start) or copy(self, start))
    exact, found = ExactSearch(embeddings, block=400), []
    for dims in (None, None, WIDTH, 8, 8):
        found.append(exact.nearest(QUERIES, 10, dims=dims)[0])
    blocks = [0, 376, 752, 1128]
    assert copied == blocks * 2  # of all dimensions, and of the first eight
    np.testing.assert_array_equal(found[4], brute_force(QUERIES[:, :8], z[:, :8], 10)[0])
    monkeypatch.setattr("sail_jax.vectors.score_blocks._HOST_ROOM", z.nbytes)  # eight devices have room for one copy
    exact = ExactSearch(embeddings, block=400)
    for _ in range(2):
        np.testing.assert_array_equal(exact.nearest(QUERIES, 10)[0], found[0])
    assert copied == blocks * 4


def test_the_memory_of_the_devices_decides_whether_vectors_fit(z, monkeypatch):
    class Device:
        def __init__(self, free):
            self.free = free

        def memory_stats(self):
            return {"bytes_limit": 1000 + self.free, "bytes_in_use": 1000}

    for free, fits in (([2 * z.nbytes] * 2, True), ([2 * z.nbytes, z.nbytes], False)):
        monkeypatch.setattr("jax.local_devices", lambda free=free: [Device(room) for room in free])
        assert fits_on_devices(z) == fits


def test_a_shortlist_of_everything_gives_what_exact_search_gives(exact):
    rows, cosines = ShortlistSearch(exact, ROWS, dims=4).nearest(QUERIES * 3, 10)
    expected_rows, expected = exact.nearest(QUERIES, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)


def test_recall_of_a_shortlist_against_exact_search(exact, z):
    expected, _ = brute_force(QUERIES, z, 10)
    short, long = (recall(ShortlistSearch(exact, n, dims=8).nearest(QUERIES, 10)[0], expected) for n in (20, 200))
    unranked = recall(exact.nearest(QUERIES, 10, dims=8)[0], expected)
    assert unranked < short < long and long > 0.97
    # What is on the shortlist is what the first dimensions say, and nothing else.
    found, _ = ShortlistSearch(exact, 20, dims=8).nearest(QUERIES, 20)
    np.testing.assert_array_equal(np.sort(found), np.sort(brute_force(QUERIES[:, :8], z[:, :8], 20)[0]))


def test_an_index_makes_the_shortlist(embeddings, exact, z, tmp_path):
    build_index(embeddings, tmp_path / "flat", IndexSettings("flat", dims=8))
    by_index = ShortlistSearch(exact, 100, index=FaissIndex(tmp_path / "flat")).nearest(QUERIES, 10)
    by_dims = ShortlistSearch(exact, 100, dims=8).nearest(QUERIES, 10)
    for one, other in zip(by_index, by_dims, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    build_index(embeddings, tmp_path / "ivfpq", IndexSettings("ivfpq"))
    index, expected = FaissIndex(tmp_path / "ivfpq"), brute_force(QUERIES, z, 10)[0]
    alone = index.rows[index.nearest(QUERIES, 10)[0]]
    ranked, cosines = ShortlistSearch(exact, 100, index=index).nearest(QUERIES, 10)
    assert recall(alone, expected) < recall(ranked, expected) > 0.9
    np.testing.assert_allclose(cosines, np.einsum("qd,qkd->qk", unit(QUERIES), unit(z)[ranked]), atol=1e-5)
    others = write_embeddings(tmp_path / "others", [f"item-{i + 1}" for i in range(ROWS)], z)
    narrower = write_embeddings(tmp_path / "narrower", [f"item-{i}" for i in range(ROWS)], z[:, :16])
    for wrong in (others, narrower):
        with pytest.raises(SailError, match="not of these embeddings"):
            ShortlistSearch(ExactSearch(wrong, block=400), 10, index=index)


def test_ties_go_to_the_lower_row(tmp_path):
    z = np.tile(clustered(4, 8), (3, 1))
    exact = ExactSearch(write_embeddings(tmp_path / "e", [str(i) for i in range(12)], z), block=5)
    for search in (exact, ShortlistSearch(exact, 12, dims=2)):
        rows, cosines = search.nearest(z[1:2], 20)
        assert rows[0, :3].tolist() == [1, 5, 9] and sorted(rows[0][rows[0] >= 0].tolist()) == list(range(12))
        assert np.isfinite(cosines[0]).sum() == 12


def test_a_shortlist_that_does_not_fit(exact):
    for dims, size, message in ((0, 5, "by 0 dimensions"), (64, 5, "by 64 dimensions"), (4, 0, "at least one item")):
        with pytest.raises(SailError, match=message):
            ShortlistSearch(exact, size, dims=dims)


# --------------------------------------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def items(embedder, store, tmp_path_factory):
    return embed_store(embedder, tmp_path_factory.mktemp("vta") / "vta", store)


@pytest.fixture(scope="module")
def searcher(embedder, items):
    return Searcher(embedder, items)


def full_items(store, count=6):
    return [item for item in (store[i] for i in range(64)) if item.modalities == "VTA"][:count]


def test_an_item_finds_itself_and_what_brute_force_finds(searcher, embedder, items, store):
    queries = full_items(store)
    hits = searcher.search(queries, 5)
    assert [found[0].id for found in hits] == [item.item_id for item in queries]
    assert all(found[0].score == pytest.approx(1, abs=1e-4) for found in hits)
    ids, z = items.load()
    rows, cosines = brute_force(embedder.encode(queries), z, 5)
    assert [[hit.id for hit in found] for found in hits] == [[ids[row] for row in found] for found in rows]
    np.testing.assert_allclose([[hit.score for hit in found] for found in hits], cosines, atol=1e-4)
    assert searcher.search([], 3) == []


def test_texts_and_mixtures(searcher, embedder, items, store):
    item = full_items(store, 1)[0]
    mixture = Item("", {"query": "red circle"}, item.frames, item.audio)
    by_hand = embedder.encode(["red circle", mixture], modalities="VTA")
    np.testing.assert_allclose(searcher.encode(["red circle", mixture]), by_hand, atol=1e-5)
    asked = Searcher(embedder, items, text_instruction="Find the item.")
    z = asked.encode(["red circle", mixture])
    assert np.abs(z[0] - by_hand[0]).max() > 1e-3  # a text has an instruction of its own,
    np.testing.assert_allclose(z[1], by_hand[1], atol=1e-5)  # and what has media is shown like the items
    np.testing.assert_allclose(z[0], embedder.encode(["red circle"], instruction="Find the item.")[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "shortlist", "flat", "ivfpq"])
def test_items_like_an_item(embedder, items, tmp_path, kind):
    ids, z = items.load()
    if kind == "ivfpq":  # too few items to train it: with vectors in their place
        z = clustered(300, WIDTH)
        ids = [f"item-{i}" for i in range(len(z))]
        items = write_embeddings(tmp_path / "more", ids, z, of=items.info.fingerprint)
    if kind in ("flat", "ivfpq"):
        build_index(items, tmp_path / "i", IndexSettings(kind))
        searcher = Searcher(embedder, index=FaissIndex(tmp_path / "i"))
    else:
        searcher = Searcher(embedder, items, shortlist=Shortlist(4, len(ids)) if kind == "shortlist" else None)
    wanted = [ids[3], ids[60]]
    hits = searcher.like(wanted, 5)
    assert [len(found) for found in hits] == [5, 5]
    for item_id, found in zip(wanted, hits, strict=True):
        assert item_id not in [hit.id for hit in found]
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    rows, cosines = brute_force(z[[3, 60]], z, 6)
    if kind != "ivfpq":
        np.testing.assert_allclose([[hit.score for hit in found] for found in hits], cosines[:, 1:], atol=1e-4)
    assert len(searcher.like([ids[3]], len(ids) + 7)[0]) == len(ids) - 1
    assert searcher.like([], 5) == []
    with pytest.raises(SailError, match="no item 'nobody'"):
        searcher.like(["nobody"], 5)


def test_embeddings_of_fewer_dimensions(embedder, store, items, tmp_path):
    few = embed_store(embedder, tmp_path / "few", store, dims=16, dtype="int8")
    searcher, queries = Searcher(embedder, few), full_items(store)
    assert searcher.encode(queries).shape == (6, 16)
    hits = searcher.search(queries, 3)
    assert [found[0].id for found in hits] == [item.item_id for item in queries]
    _, z = items.load()
    np.testing.assert_allclose([found[0].score for found in hits], 1, atol=0.02)
    _, cosines = brute_force(embedder.encode(queries)[:, :16], z[:, :16], 3)
    np.testing.assert_allclose([[hit.score for hit in found] for found in hits], cosines, atol=0.05)


def test_control_characters_of_an_id_are_escaped():
    assert one_line("a\x1b[31m\n\t\u2028\ud800 é 😀 'b'") == "a\\x1b[31m\\n\\t\\u2028\\ud800 é 😀 'b'"


def test_embeddings_of_another_model_or_width_are_refused(embedder, items, z, tmp_path):
    foreign = write_embeddings(tmp_path / "foreign", [f"item-{i}" for i in range(ROWS)], z, of="feed")
    with pytest.raises(SailError, match="another model.*feed"):
        Searcher(embedder, foreign)
    build_index(foreign, tmp_path / "i", IndexSettings())
    with pytest.raises(SailError, match="another model.*feed"):
        Searcher(embedder, index=FaissIndex(tmp_path / "i"))
    with pytest.raises(SailError, match="nothing to search"):
        Searcher(embedder)
    build_index(items, tmp_path / "j", IndexSettings())
    with pytest.raises(SailError, match="name the embeddings too"):
        Searcher(embedder, index=FaissIndex(tmp_path / "j"), shortlist=Shortlist())
    with pytest.raises(SailError, match="ask for at least one"):
        Searcher(embedder, items).search(["x"], 0)


# ------------------------------------------------------------------------------------------------ queries of files


def png(colour="red"):
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "PNG")
    return out.getvalue()


def wav():
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(8000) / 9), 8000, format="WAV")
    return out.getvalue()


def test_a_query_of_a_text_and_files(embedder):
    config = embedder.config
    files = [QueryFile("image", "a.png", png()), QueryFile("audio", "b.wav", wav())]
    item = query_item("red", files, config)
    assert item == Item("", {"query": "red"}, (png(),), wav()) and item.modalities == "VTA"
    assert query_item(" ", files[:1], config).modalities == "V"
    with pytest.raises(SailError, match="nothing to search for"):
        query_item("  ", [], config)
    with pytest.raises(SailError, match="at most one sound"):
        query_item("", files[1:] * 2, config)
    for kind in ("image", "audio", "video"):
        with pytest.raises(BadRecordError, match="c.bin.*another file"):
            query_item("red", [QueryFile(kind, "c.bin", b"nothing of the kind")], config)
        with pytest.raises(SailError, match=f"The {kind} missing.bin cannot be read"):
            QueryFile.read(kind, Path("missing.bin"))


def test_a_string_is_a_text_or_the_path_of_a_file(searcher, tmp_path):
    (tmp_path / "frame.png").write_bytes(png())
    queries = ["red", str(tmp_path / "frame.png"), {"text": "red"}]
    expected = searcher.encode([Item("", {"query": "red"}), Item("", frames=(png(),)), Item("", {"query": "red"})])
    np.testing.assert_allclose(searcher.encode(queries), expected, atol=1e-5)
    with pytest.raises(BadRecordError, match=r"no file 'missing.png'.*{'text': \.\.\.}"):
        searcher.search(["missing.png"])


# --------------------------------------------------------------------------------------------- the command line


def test_search_from_the_command_line(run, items, store, tmp_path, capsys):
    item = full_items(store, 1)[0]
    (tmp_path / "frame.png").write_bytes(png())
    (tmp_path / "sound.wav").write_bytes(wav())
    search = ["search", "--workdir", str(run), "--embeddings", str(items.path), "-k", "3"]
    assert main([*search, "--item", item.item_id]) == 0
    said = capsys.readouterr().out
    expected = Searcher(load(run), EmbeddingSet(items.path)).like([item.item_id], 3)[0]
    for rank, hit in enumerate(expected, 1):
        (line,) = [line for line in said.splitlines() if hit.id in line.split()]
        assert str(rank) in line and f"{hit.score:.3f}" in line
        assert store.get(hit.id).text.get("title", "")[:20] in line
    media = ["--image", str(tmp_path / "frame.png"), "--audio", str(tmp_path / "sound.wav")]
    assert main([*search, "--text", "a [red] thing", *media, "--shortlist-dims", "4", "--shortlist", "50"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 4
    index = tmp_path / "items.faiss"
    assert main(["index", "--embeddings", str(items.path), "--output", str(index), "--kind", "hnsw"]) == 0
    assert str(index) in capsys.readouterr().out
    by_index = ["search", "--workdir", str(run), "--index", str(index), "-k", "3", "--ef-search", "500"]
    assert main([*by_index, "--item", item.item_id]) == 0
    found = capsys.readouterr().out
    assert all(hit.id in found for hit in expected)


def test_a_search_without_the_item_store_has_no_captions(run, items, store, monkeypatch, capsys):
    def nothing(*_):
        raise SailError("There is no item store.")

    monkeypatch.setattr("sail_jax.data.pipeline.open_store", nothing)
    item = full_items(store, 1)[0]
    command = ["search", "--workdir", str(run), "--embeddings", str(items.path), "--item", item.item_id]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "caption" not in said.out and "no item store" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "x"], "name embeddings, an index"),
        (["--embeddings", "EMB"], "nothing to search for"),
        (["--embeddings", "EMB", "--text", "x", "--item", "y"], "--item"),
        (["--embeddings", "EMB", "--image", "TMP/none.png"], "none.png"),
        (["--embeddings", "EMB", "--image", "TMP/bad.png"], "bad.png"),
        (["--embeddings", "TMP", "--text", "x"], "no complete embeddings"),
        (["--embeddings", "EMB", "--text", "x", "--nprobe", "4"], "--index"),
        (["--embeddings", "EMB", "--text", "x", "--shortlist", "4"], "--shortlist-dims"),
        (["--index", "TMP/i", "--text", "x"], "no complete index"),
    ],
)
def test_mistakes(run, items, tmp_path, capsys, arguments, message):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    arguments = [word.replace("EMB", str(items.path)).replace("TMP", str(tmp_path)) for word in arguments]
    assert main(["search", "--workdir", str(run), *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
