"""Index files against brute force in NumPy, and the errors for an index that does not fit."""

import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from searchable import brute_force, clustered, recall, unit, write_embeddings

from sail_jax.errors import SailError
from sail_jax.search.faiss_index import FaissIndex, IndexSettings, build_index

ROWS, WIDTH = 4000, 32
QUERIES = clustered(60, WIDTH)


@pytest.fixture(scope="module")
def z():
    z = clustered(ROWS, WIDTH)
    z[[0, 999, 1000, 2345]] = 0  # at the edges of a part, too
    return z


@pytest.fixture(scope="module")
def embeddings(z, tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("embeddings") / "e", [f"item-{i}" for i in range(ROWS)], z)


@pytest.fixture(scope="module")
def built(embeddings, tmp_path_factory):
    """Kind -> an index file."""
    folder = tmp_path_factory.mktemp("indexes")
    for kind in ("flat", "ivfpq", "hnsw"):
        build_index(embeddings, folder / kind, IndexSettings(kind))
    return folder


def found(index, queries, k):
    """Rows of the embedding folder."""
    positions, cosines = index.nearest(queries, k)
    return np.where(positions >= 0, index.rows[positions], -1), cosines


@pytest.mark.slow
def test_a_flat_index_is_exact(built, z):
    rows, cosines = found(FaissIndex(built / "flat"), QUERIES, 10)
    expected_rows, expected = brute_force(QUERIES, z, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "factory"), [pytest.param("ivfpq", "IVF102,PQ8", marks=pytest.mark.slow), ("hnsw", "HNSW32")]
)
def test_recall_of_the_others_is_that_of_faiss_own_factory(built, z, kind, factory):
    rows, cosines = found(FaissIndex(built / kind), QUERIES, 10)
    exact_rows, _ = brute_force(QUERIES, z, 10)
    reference = faiss.index_factory(WIDTH, factory, faiss.METRIC_INNER_PRODUCT)
    reference.train(unit(z))
    reference.add(unit(z))
    effort = {"ivfpq": {"nprobe": 32}, "hnsw": {}}[kind]
    for name, value in effort.items():
        faiss.ParameterSpace().set_index_parameter(reference, name, value)
    expected = recall(reference.search(unit(QUERIES), 10)[1], exact_rows)
    assert recall(rows, exact_rows) > expected - 0.03
    scores = np.einsum("qd,qkd->qk", unit(QUERIES), unit(z)[rows])
    np.testing.assert_allclose(cosines, scores, atol=1e-5 if kind == "hnsw" else 0.15)


@pytest.mark.parametrize(("kind", "effort"), [("ivfpq", "nprobe"), ("hnsw", "ef_search")])
def test_more_effort_finds_more(built, z, kind, effort):
    exact_rows, _ = brute_force(QUERIES, z, 5)
    low, high = (recall(found(FaissIndex(built / kind, **{effort: n}), QUERIES, 5)[0], exact_rows) for n in (1, 100))
    assert low < high


@pytest.mark.parametrize("kind", ["flat", "ivfpq", "hnsw"])
def test_ids_and_rows_of_zeros(built, z, kind):
    index = FaissIndex(built / kind)
    assert len(index) == ROWS - 4 == index.info.count and index.info.rows == ROWS
    assert index.position("item-999") == -1 and index.position("nobody") == -1
    for row in (1, 998, 1001, 3999):
        position = index.position(f"item-{row}")
        assert index.rows[position] == row and index.ids[position].as_py() == f"item-{row}"
        (stored,) = index.vectors(np.array([position]))
        assert stored @ unit(z)[row] > (0.9 if kind == "ivfpq" else 1 - 1e-5)
    positions, cosines = index.nearest(np.zeros((1, WIDTH), np.float32), 3)
    assert (positions == -1).all() and np.isneginf(cosines).all()


def test_more_results_than_vectors(tmp_path):
    z = clustered(5, 8)
    for kind in ("flat", "hnsw"):
        build_index(write_embeddings(tmp_path / f"e-{kind}", list("abcde"), z), tmp_path / kind, IndexSettings(kind))
        positions, cosines = FaissIndex(tmp_path / kind).nearest(z[:2], 8)
        assert sorted(positions[0].tolist()) == [-1, -1, -1, 0, 1, 2, 3, 4] and np.isneginf(cosines[0, 5:]).all()


def test_files_of_an_index(built, embeddings):
    info = json.loads((built / "ivfpq.json").read_text())
    assert info["kind"] == "ivfpq" and info["fingerprint"] == "0123" and info["model"] == "runs/x"
    assert info["parameters"] == {"nlist": ROWS // 39, "m": 8, "seed": 0}
    assert (info["dims"], info["count"]) == (WIDTH, ROWS - 4)
    index = faiss.read_index(str(built / "ivfpq"))  # anybody's faiss reads it
    assert (index.nlist, index.pq.M, index.ntotal) == (ROWS // 39, 8, ROWS - 4)
    assert pq.read_table(built / "ivfpq.ids.parquet").column_names == ["id", "row"]
    assert len(list(built.iterdir())) == 9  # nothing partial is left


def test_the_first_dimensions(embeddings, z, tmp_path):
    build_index(embeddings, tmp_path / "i", IndexSettings("flat", dims=8))
    index = FaissIndex(tmp_path / "i")
    assert index.dims == 8
    rows, cosines = found(index, QUERIES[:, :8], 5)
    expected_rows, expected = brute_force(QUERIES[:, :8], z[:, :8], 5)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)


def test_the_seed_decides_what_ivfpq_is_trained_on(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr("sail_jax.search.faiss_index._TRAINING_ROWS", 600)
    settings = {name: IndexSettings("ivfpq", nlist=8, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))}
    for name, of in settings.items():
        build_index(embeddings, tmp_path / name, of)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_few_rows(tmp_path, capfd):
    few = write_embeddings(tmp_path / "few", [str(i) for i in range(255)], clustered(255, 16))
    with pytest.raises(SailError, match="255 vectors.*needs 256.*flat"):
        build_index(few, tmp_path / "i", IndexSettings("ivfpq"))
    assert not (tmp_path / "i").exists() and not (tmp_path / "i.json").exists()
    enough = write_embeddings(tmp_path / "enough", [str(i) for i in range(300)], clustered(300, 16))
    assert build_index(enough, tmp_path / "i", IndexSettings("ivfpq")).parameters["nlist"] == 7
    assert "WARNING" not in capfd.readouterr().err  # faiss' own, of few points
    with pytest.raises(SailError, match="301 lists"):
        build_index(enough, tmp_path / "i", IndexSettings("ivfpq", nlist=301))
    assert len(FaissIndex(tmp_path / "i")) == 300  # the old one is still whole
    none = write_embeddings(tmp_path / "none", [], np.zeros((0, 16), np.float32))
    with pytest.raises(SailError, match="no vectors"):
        build_index(none, tmp_path / "i", IndexSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lsh"}, "flat, ivfpq, hnsw"),
        ({"kind": "flat", "nlist": 4}, "nlist is a parameter of ivfpq"),
        ({"kind": "ivfpq", "hnsw_m": 4}, "hnsw_m is a parameter of hnsw"),
        ({"kind": "hnsw", "hnsw_m": 1}, "2 or more"),
        ({"kind": "ivfpq", "m": 5}, "does not divide"),
        ({"kind": "ivfpq", "nlist": -1}, "negative"),
        ({"dims": 64}, "holds 32 dimensions"),
    ],
)
def test_parameters_that_do_not_fit(embeddings, tmp_path, settings, message):
    with pytest.raises(SailError, match=message):
        build_index(embeddings, tmp_path / "i", IndexSettings(**settings))


def test_an_index_that_is_broken_off_leaves_nothing_and_one_that_is_built_again_replaces_it(
    embeddings, tmp_path, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faiss, "write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(embeddings, tmp_path / "i", IndexSettings())
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        build_index(embeddings, tmp_path / "i", IndexSettings())
        assert {path.name for path in tmp_path.iterdir()} == {"i", "i.ids.parquet", "i.json"}


def test_a_folder_is_no_index_file(embeddings, tmp_path):
    with pytest.raises(SailError, match="is a folder; name the index file"):
        build_index(embeddings, tmp_path, IndexSettings())
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))


@pytest.mark.parametrize("kind", ["flat", "ivfpq", "hnsw"])
def test_a_flipped_bit_is_found_before_faiss_reads_it(built, tmp_path, kind):
    """Faiss itself would search on, with other vectors, or crash."""
    for name in (kind, f"{kind}.json", f"{kind}.ids.parquet"):
        (tmp_path / name).write_bytes((built / name).read_bytes())
    for name in (kind, f"{kind}.ids.parquet"):
        data = bytearray((tmp_path / name).read_bytes())
        for place in (0, 10, 40, len(data) // 2, len(data) - 1):
            data[place] ^= 4
            (tmp_path / name).write_bytes(data)
            with pytest.raises(SailError, match=f"{kind}.* is damaged, or of another index; build it again"):
                FaissIndex(tmp_path / kind)
            data[place] ^= 4
            (tmp_path / name).write_bytes(data)
    (tmp_path / kind).write_bytes((built / ("flat" if kind != "flat" else "hnsw")).read_bytes())
    with pytest.raises(SailError, match="of another index"):
        FaissIndex(tmp_path / kind)


def test_an_index_without_a_digest_is_read(built, tmp_path):
    """Version 0.1 wrote none."""
    for name in ("flat", "flat.json", "flat.ids.parquet"):
        (tmp_path / name).write_bytes((built / name).read_bytes())
    fields = json.loads((tmp_path / "flat.json").read_text())
    (tmp_path / "flat.json").write_text(json.dumps({key: of for key, of in fields.items() if key != "digest"}))
    assert len(FaissIndex(tmp_path / "flat")) == len(FaissIndex(built / "flat"))
    for changed in ({"count": "3"}, {"kind": "tree"}, {"fields": None}, {"dims": 2.5}, {"more": 1}):
        (tmp_path / "flat.json").write_text(json.dumps(fields | changed))
        with pytest.raises(SailError, match="flat.json is damaged, or of another format"):
            FaissIndex(tmp_path / "flat")


def test_an_index_that_is_damaged_or_unfinished(built, tmp_path):
    with pytest.raises(SailError, match="nprobe is a parameter of ivfpq"):
        FaissIndex(built / "flat", nprobe=3)
    with pytest.raises(SailError, match="no complete index"):
        FaissIndex(tmp_path / "i")
    names = ("flat", "flat.json", "flat.ids.parquet")
    files = {name: (built / name).read_bytes() for name in names}
    for name, content in (
        ("flat", files["flat"][:100]),
        ("flat.json", b'{"format": "sail_jax index", "version": 0}'),
        ("flat.json", b"{"),
        ("flat.ids.parquet", b"x"),
        ("flat.ids.parquet", None),
    ):
        for other in names:
            (tmp_path / other).write_bytes(files[other])
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
        with pytest.raises(SailError, match="build .*again"):
            FaissIndex(tmp_path / "flat")
