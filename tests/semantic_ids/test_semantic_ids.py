"""Semantic IDs from embeddings to a lookup, and their figures, against brute force, scipy and scikit-learn."""

import collections
import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from semantic_ids.mixtures import INFO, mixture, write_folder
from sklearn.cluster import KMeans
from sklearn.metrics import r2_score

from sail_jax.cli import main
from sail_jax.config.semantic_ids import VQSettings
from sail_jax.errors import SailError
from sail_jax.semantic_ids import codebooks as lib
from sail_jax.semantic_ids import table as table_lib
from sail_jax.semantic_ids.codebooks import SemanticIds, draw_rows, fit, fit_folder, parse_levels
from sail_jax.semantic_ids.metrics import (
    Anchors,
    IdTally,
    Meter,
    Neighbourhoods,
    Reconstruction,
    level_figures,
    prefix_figures,
)
from sail_jax.semantic_ids.residual_kmeans import quantize, reconstruct, residual_kmeans
from sail_jax.semantic_ids.table import SemanticIdTable, write_table
from sail_jax.vectors.embedding_set import EmbeddingSet

LEVELS = (8, 8, 4)


@pytest.fixture(scope="module")
def z():
    return mixture(1200)


@pytest.fixture(scope="module")
def embeddings(z, tmp_path_factory):
    return EmbeddingSet(write_folder(tmp_path_factory.mktemp("embeddings") / "items", z, (500, 7)))


@pytest.fixture(scope="module")
def folder(embeddings, tmp_path_factory):
    """Codebooks of residual k-means."""
    output = tmp_path_factory.mktemp("sids") / "kmeans"
    fit_folder(embeddings, {output: LEVELS}, seed=1, anchors=50)
    return output


@pytest.fixture(scope="module")
def sids(folder):
    return SemanticIds.load(folder)


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Writes vectors of items that were not in the fit; two of them have no usable vector."""
    z = mixture(700, seed=0, noise=0.4)
    z[3], z[650, 5] = 0, np.nan
    return EmbeddingSet(write_folder(tmp_path_factory.mktemp("embeddings") / "new", z, (100, 400)))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "unique"])
def table(request, sids, new, tmp_path_factory):
    output = tmp_path_factory.mktemp("tables") / "ids.parquet"
    figures = write_table(sids, new, output, unique=request.param, anchors=30)
    return SemanticIdTable(output), figures


def columns(table):
    rows = pq.read_table(table.path)
    return rows["id"].to_pylist(), np.array(rows["codes"].to_pylist()), rows["semantic_id"].to_pylist()


@pytest.mark.slow
def test_kmeans_on_the_devices_reconstructs_as_well(z, sids):
    errors = []
    for fitted in (sids, fit(z, LEVELS, INFO, method="device-kmeans", seed=1)):
        errors.append(np.mean((fitted.decode(fitted.assign(z)) - z) ** 2))
    assert errors[1] == pytest.approx(errors[0], rel=0.1) and errors[1] < 0.5 * np.var(z, axis=0).mean()


def plain_codes(z, codebooks):
    left, codes = z.astype(np.float64), []
    for codebook in codebooks:
        codes.append(np.argmin(((left[:, None] - codebook[None].astype(np.float64)) ** 2).sum(-1), axis=1))
        left = left - codebook[codes[-1]]
    return np.stack(codes, axis=1)


# Codebooks


def test_each_level_is_a_k_means_of_the_residual(z):
    left = z
    for level, codebook in enumerate(residual_kmeans(z, (12, 6), rounds=25, seed=0)):
        ours = np.sum((left - codebook[plain_codes(left, [codebook])[:, 0]]) ** 2)
        peer = KMeans(len(codebook), init="random", n_init=1, random_state=level).fit(left).inertia_
        assert ours < 1.1 * peer
        left = left - codebook[plain_codes(left, [codebook])[:, 0]]


def test_codes_equal_brute_force(z, sids):
    np.testing.assert_array_equal(sids.assign(z), plain_codes(z, sids.codebooks))
    assert sids.assign(z).dtype == np.int32
    np.testing.assert_array_equal(sids.assign(3 * z[:9].astype(np.float64)), sids.assign(z[:9]))
    assert sids.assign(z[:0]).shape == (0, 3)


def test_of_equally_near_codes_the_first_is_taken():
    codebook = np.array([[0, 1], [1, 0], [1, 0], [0, 1]], np.float32)
    np.testing.assert_array_equal(quantize(np.eye(2, dtype=np.float32)[[0, 1] * 30], [codebook])[:, 0], [1, 0] * 30)


def test_one_fit_has_every_granularity(embeddings, sids):
    z = embeddings.load()[1]
    coarse = fit(z, LEVELS[:2], INFO, seed=1)
    for level in range(2):
        np.testing.assert_array_equal(coarse.codebooks[level], sids.codebooks[level])
    codes = sids.assign(z)
    errors = [np.sum((z - sids.decode(codes[:, :length])) ** 2) for length in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_allclose(
        sids.decode(codes[:, :2]), sum(sids.codebooks[level][codes[:, level]] for level in (0, 1)), rtol=1e-6
    )


@pytest.mark.slow
def test_codebooks_are_read_back_unchanged(z, tmp_path):
    saved = fit(z, (4, 4), INFO, method="vq", seed=2, vq=VQSettings(steps=3, batch=64, latent=6))
    saved.save(tmp_path / "vq", {"items": 1})
    loaded = SemanticIds.load(tmp_path / "vq")
    assert loaded.info == saved.info and loaded.info.vectors == INFO
    codes = loaded.assign(z)
    np.testing.assert_array_equal(codes, saved.assign(z))
    assert loaded.decode(codes[:, :1]).shape == z.shape
    np.testing.assert_array_equal(loaded.decode(codes), saved.decode(codes))
    assert loaded.codebooks[0].shape == (4, 6)
    other = fit(z, (4, 4), INFO, seed=2)
    assert other.info.fingerprint != saved.info.fingerprint


def test_the_fit_names_the_model_and_keeps_its_figures(folder):
    written = json.loads((folder / "semantic_ids.json").read_text())
    assert written["method"] == "kmeans" and written["levels"] == list(LEVELS) and written["seed"] == 1
    assert written["vectors"]["fingerprint"] == INFO.fingerprint and written["vectors"]["model"] == INFO.model
    assert [prefix["levels"] for prefix in written["figures"]["prefixes"]] == [1, 2, 3]
    assert written["figures"]["items"] == 1200 and written["figures"]["anchors"] == 50
    assert (folder / "utilisation.png").read_bytes().startswith(b"\x89PNG")


# What is refused


def test_vectors_of_another_model_or_width_are_refused(z, sids, tmp_path):
    other = write_folder(tmp_path / "other", z[:20], info=dataclasses.replace(INFO, fingerprint="ffff", model="runs/y"))
    with pytest.raises(SailError, match=r"runs/y.*ffff.*kmeans.*0123abcd.*embed the items"):
        write_table(sids, EmbeddingSet(other), tmp_path / "t.parquet")
    narrow = write_folder(tmp_path / "narrow", z[:20, :8], info=dataclasses.replace(INFO, dims=8))
    with pytest.raises(SailError, match="8 dimensions.*16.*embed"):
        write_table(sids, EmbeddingSet(narrow), tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()
    with pytest.raises(SailError, match=r"\(N, 16\), not \(1200, 8\)"):
        sids.assign(z[:, :8])


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_an_unusable_vector_is_refused(z, sids, bad):
    some = z[:4].copy()
    some[2] = bad
    with pytest.raises(SailError, match="Vector 2 "):
        sids.assign(some)


def test_codes_outside_the_codebooks_are_refused(sids):
    for codes in ([[0, 0, 4]], [[-1]], [[8, 0]]):
        with pytest.raises(SailError, match="outside"):
            sids.decode(np.array(codes))
    for shape in ((2, 4), (2, 0), (3,)):
        with pytest.raises(SailError, match="1 to 3"):
            sids.decode(np.zeros(shape, int))


def test_damaged_or_unfinished_codebooks_are_refused(z, tmp_path):
    with pytest.raises(SailError, match="no complete codebooks"):
        SemanticIds.load(tmp_path)
    fit(z, (4, 4), INFO).save(tmp_path, {})
    arrays = (tmp_path / "codebooks.safetensors").read_bytes()
    (tmp_path / "codebooks.safetensors").write_bytes(arrays[:-1] + bytes([arrays[-1] ^ 1]))
    with pytest.raises(SailError, match="does not match"):
        SemanticIds.load(tmp_path)
    (tmp_path / "codebooks.safetensors").write_bytes(arrays[:100])
    with pytest.raises(SailError, match="cannot be read"):
        SemanticIds.load(tmp_path)
    written = json.loads((tmp_path / "semantic_ids.json").read_text())
    (tmp_path / "semantic_ids.json").write_text(json.dumps(written | {"version": 2}))
    with pytest.raises(SailError, match="another format or version"):
        SemanticIds.load(tmp_path)


def test_complete_outputs_are_not_overwritten(folder, embeddings, table, sids, new):
    with pytest.raises(SailError, match="exists and is of another command; name another"):
        fit_folder(embeddings, {folder: (2,)})
    with pytest.raises(SailError, match="exists and is of another command; name another"):
        write_table(sids, new, table[0].path)


def test_the_same_command_once_more_keeps_what_is_there(embeddings, new, tmp_path, monkeypatch):
    """One of two folders was finished; the table was."""
    first, second, table = tmp_path / "a", tmp_path / "b", tmp_path / "t.parquet"
    done = fit_folder(embeddings, {first: (4, 4)}, anchors=8)
    written = (first / "codebooks.safetensors").stat().st_mtime_ns
    both = fit_folder(embeddings, {first: (4, 4), second: (4,)}, anchors=8)
    assert list(both) == [first, second] and both[first] == done[first]
    assert (first / "codebooks.safetensors").stat().st_mtime_ns == written
    sids = SemanticIds.load(first)
    figures = write_table(sids, new, table, anchors=8)
    monkeypatch.setattr(EmbeddingSet, "batches", None)  # nothing is read again
    assert write_table(sids, new, table, anchors=8) == figures
    assert fit_folder(embeddings, {first: (4, 4), second: (4,)}, anchors=8) == both


def test_wrong_settings(z, tmp_path):
    with pytest.raises(SailError, match="cannot fill"):
        fit(z[:5], (4, 8), INFO)
    with pytest.raises(SailError, match="0 vectors cannot fill"):
        fit_folder(EmbeddingSet(write_folder(tmp_path / "empty", z[:0])), {tmp_path / "sids": (4,)})
    with pytest.raises(SailError, match="at least two codes"):
        fit(z, (8, 1), INFO)
    with pytest.raises(SailError, match="kmeans, vq"):
        fit(z, (8,), INFO, method="pq")
    assert parse_levels("256,64") == (256, 64)
    for text in ("256,", "", "a", "2 5", "-3"):
        with pytest.raises(SailError, match="256,256,256"):
            parse_levels(text)


# Reading and writing


def test_the_sample_depends_only_on_the_seed(z, embeddings, tmp_path):
    rows, sample = draw_rows(embeddings, 300, 5, "")
    assert len(rows) == 300 and np.all(np.diff(rows) > 0) and rows.max() > 1100 and rows.min() < 100
    np.testing.assert_allclose(sample, z[rows], atol=1e-6)
    otherwise = EmbeddingSet(write_folder(tmp_path / "x", z, (1, 1000)))
    np.testing.assert_array_equal(draw_rows(otherwise, 300, 5, "")[0], rows)
    assert not np.array_equal(draw_rows(embeddings, 300, 6, "")[0], rows)
    np.testing.assert_array_equal(draw_rows(embeddings, 5000, 5, "")[0], np.arange(1200))


def test_unusable_rows_are_not_drawn(new):
    rows, sample = draw_rows(new, 700, 0, "")
    assert len(rows) == 698 and not {3, 650} & set(rows) and np.isfinite(sample).all()


def test_the_table_equals_an_assignment_of_all_vectors_at_once(sids, new, table):
    names, z = new.load()
    good = [row for row in range(700) if row not in (3, 650)]
    ids, codes, written = columns(table[0])
    assert ids == [names[row] for row in good]
    expected = sids.assign(z[good])
    np.testing.assert_array_equal(codes, expected)
    seen, suffixed = collections.Counter(), []
    for row in map(tuple, expected.tolist()):
        suffix = [seen[row]] * table[0].unique
        suffixed.append("-".join(map(str, [*row, *suffix])))
        seen[row] += 1
    assert written == suffixed
    assert len(set(written)) == (698 if table[0].unique else len(seen)) and len(seen) < 698
    schema = pq.read_schema(table[0].path)
    assert schema.field("codes").type == pa.list_(pa.int32(), 3)
    assert table[0].made_of["model_fingerprint"] == INFO.fingerprint
    assert table[0].made_of["fingerprint"] == sids.info.fingerprint


def test_the_table_has_figures_beside_it(table):
    path, figures = table[0].path, table[1]
    assert json.loads(path.with_suffix(".json").read_text())["figures"] == figures
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert figures["items"] == 698 and figures["left_out"] == 2
    assert figures["left_out_ids"] == ["item-3", "item-650"]


def test_purity_of_a_table_equals_brute_force(sids, new, tmp_path):
    """All items are anchors; skipped rows must not shift the row numbers of neighbours."""
    figures = write_table(sids, new, tmp_path / "ids.parquet", anchors=700)
    z = np.delete(new.load()[1], [3, 650], axis=0)
    assert figures["anchors"] == 698
    expected = plain_purity(z, sids.assign(z), np.arange(698), 10)
    np.testing.assert_allclose([prefix["purity"] for prefix in figures["prefixes"]], expected, atol=1e-3)


def test_a_folder_without_a_usable_vector(sids, tmp_path):
    empty = EmbeddingSet(write_folder(tmp_path / "zeros", np.zeros((4, 16), np.float32)))
    with pytest.raises(SailError, match="no item with a usable vector"):
        write_table(sids, empty, tmp_path / "t.parquet")
    assert not list(tmp_path.glob("t.*"))


def test_lookup_equals_brute_force(table):
    ids, codes, written = columns(table[0])
    for prefix in ([int(codes[10, 0])], codes[10, :2].tolist(), codes[10].tolist(), [7, 7, 3]):
        rows = np.flatnonzero(np.all(codes[:, : len(prefix)] == prefix, axis=1))
        found = table[0].find("-".join(map(str, prefix)))
        assert found.items == [(ids[row], written[row]) for row in rows]
        assert found.count == len(rows) and found.distinct == len({tuple(codes[row]) for row in rows})
        if not len(rows):
            continue
        following = collections.Counter(codes[rows, len(prefix)].tolist()) if len(prefix) < 3 else {}
        assert found.next_codes == following
        assert list(found.next_codes.values()) == sorted(following.values(), reverse=True)
    found = table[0].find(str(codes[10, 0]), limit=2)
    assert len(found.items) == 2 < found.count


def test_lookup_of_an_id_without_items_names_its_longest_prefix_with_items(tmp_path):
    codes = np.array([[5, 1, 0], [5, 1, 2], [5, 7, 0], [2, 0, 0]], np.int32)
    made_of = {"levels": (16, 16, 16), "unique": True, "fingerprint": "f"}
    columns = {
        "id": [f"item-{i}" for i in range(4)],
        "codes": pa.array(codes.tolist(), pa.list_(pa.int32(), 3)),
        "semantic_id": ["-".join(map(str, row)) + "-0" for row in codes.tolist()],
    }
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata({table_lib._METADATA: json.dumps(made_of)}), path)
    expected = {
        "5-1-0": ("5-1-0", 1, {}),
        "5-1-9": ("5-1", 2, {0: 1, 2: 1}),
        "5-1-0-3": ("5-1-0", 1, {}),
        "5-3": ("5", 3, {1: 2, 7: 1}),
        "5-3-3": ("5", 3, {1: 2, 7: 1}),
        "12-3": ("", 4, {5: 3, 2: 1}),
    }
    for asked, (nearest, count, following) in expected.items():
        found = SemanticIdTable(path).find(asked)
        assert (found.nearest, found.nearest_count, found.next_codes) == (nearest, count, following), asked
        assert found.count == len(found.items) == (1 if asked == "5-1-0" else 0)
        if not found.count:
            assert f"No item has an ID that begins with {asked}" in found.summary(asked)
    said = SemanticIdTable(path).find("5-3").summary("5-3")
    assert (
        "with items is 5: 3 items; list them with --id 5." in said and "after 5, and their items: 1 (2), 7 (1)" in said
    )
    assert "of the first level, and their items: 5 (3), 2 (1)" in SemanticIdTable(path).find("12-3").summary("12-3")


def test_lookup_of_a_suffix_and_of_malformed_ids(table):
    ids, codes, written = columns(table[0])
    if table[0].unique:
        row = next(row for row, name in enumerate(written) if name.endswith("-2"))
        assert table[0].find(written[row]).items == [(ids[row], written[row])]
        assert table[0].find(f"0{written[row]}").items == [(ids[row], written[row])]
    else:
        with pytest.raises(SailError, match="has 4 numbers"):
            table[0].find("1-1-1-0")
    for text, message in (("8", "code 8 at level 1"), ("1-1-4", "code 4 at level 3")):
        with pytest.raises(SailError, match=message):
            table[0].find(text)
    for text in ("a-1", "1-", "9" * 5000):
        with pytest.raises(SailError, match="not a semantic ID"):
            table[0].find(text)
    with pytest.raises(SailError, match="has 5 numbers"):
        table[0].find("1-1-1-1-1")


def test_another_file_is_refused_as_a_table(tmp_path, embeddings):
    with pytest.raises(SailError, match="There is no table"):
        SemanticIdTable(tmp_path / "none.parquet")
    with pytest.raises(SailError, match="is not a table of semantic IDs"):
        SemanticIdTable(embeddings.path / "part-00000.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(SailError, match="cannot be read"):
        SemanticIdTable(tmp_path / "text.parquet")


def test_damaged_tables_are_named(tmp_path, sids, new):
    output = tmp_path / "ids.parquet"
    write_table(sids, new, output, anchors=0)
    data = output.read_bytes()
    whole = pq.read_table(output)
    for content in (data[:-50], data[:100] + b"\xff" * 300 + data[400:], b"", b"PAR1"):
        output.write_bytes(content)
        with pytest.raises(SailError, match=r"ids.parquet (cannot be read|is no Parquet file, or damaged)"):
            SemanticIdTable(output).find("0")
    for name, column, message in (
        ("codes", [[1]] * len(whole), "has the columns .*, which are not those of its levels; assign again"),
        ("id", [None] * len(whole), "has the columns .*; assign again"),
        ("id", pa.array([None, *whole["id"].to_pylist()[1:]], pa.string()), "has rows with gaps; assign again"),
    ):
        pq.write_table(whole.set_column(whole.column_names.index(name), name, [column]), output)
        with pytest.raises(SailError, match=f"ids.parquet {message}"):
            SemanticIdTable(output).find("0")
    for metadata in (b"{", b"[]", b"{}", b'{"levels": "x", "unique": 1}'):
        pq.write_table(whole.replace_schema_metadata({b"sail_jax semantic IDs": metadata}), output)
        with pytest.raises(SailError, match="ids.parquet has damaged metadata"):
            SemanticIdTable(output)


def test_damaged_codebooks_are_named(tmp_path, sids):
    sids.save(tmp_path, {})
    marker, arrays = tmp_path / "semantic_ids.json", tmp_path / "codebooks.safetensors"
    fields, data = json.loads(marker.read_text()), arrays.read_bytes()
    for content in (data[:100], b"", data[:-1] + bytes([data[-1] ^ 1])):
        arrays.write_bytes(content)
        with pytest.raises(SailError, match="codebooks.safetensors .*fit again"):
            SemanticIds.load(tmp_path)
    arrays.write_bytes(data)
    changed = ({"levels": 3}, {"levels": [8]}, {"vectors": 3}, {"vectors": {}}, {"fingerprint": "x"}, {"version": 9})
    for content in [b"{", b"[]", b"\xff", b"[" * 100_000, *(json.dumps(fields | some).encode() for some in changed)]:
        marker.write_bytes(content)
        with pytest.raises(SailError, match="semantic_ids.json.*fit again"):
            SemanticIds.load(tmp_path)


# Figures


def test_use_of_codes_equals_scipy():
    counts = np.array([5, 0, 1, 10, 0, 3])
    figures = level_figures(counts)
    assert (figures["codes"], figures["used"]) == (6, 4) and figures["utilisation"] == pytest.approx(4 / 6)
    assert figures["entropy_bits"] == pytest.approx(stats.entropy(counts, base=2))
    assert figures["perplexity"] == pytest.approx(np.exp(stats.entropy(counts)))
    assert level_figures(np.array([0, 7]))["entropy_bits"] == 0
    assert level_figures(np.full(16, 3))["perplexity"] == pytest.approx(16)


def test_collisions_equal_a_count_item_by_item():
    codes = np.random.default_rng(0).integers(0, (4, 5, 6), (60, 3)).astype(np.int32)
    tally = IdTally(3)
    earlier = np.concatenate([tally.add(codes[:17]), tally.add(codes[17:17]), tally.add(codes[17:])])
    rows = list(map(tuple, codes.tolist()))
    assert earlier.tolist() == [rows[:row].count(rows[row]) for row in range(60)]
    distinct, counts = tally.distinct()
    for length in (1, 2, 3):
        cut = [row[:length] for row in rows]
        figures = prefix_figures(distinct[:, :length], counts)
        assert figures["distinct_ids"] == len(set(cut))
        assert figures["collision_rate"] == pytest.approx(np.mean([cut.count(row) > 1 for row in cut]))
        assert figures["largest"] == max(map(cut.count, cut))
        assert figures["entropy_bits"] == pytest.approx(stats.entropy(list(collections.Counter(cut).values()), base=2))
        pairs = [cut[a] == cut[b] for a in range(60) for b in range(60) if a != b]
        assert figures["purity_by_chance"] == pytest.approx(np.mean(pairs))
    alone = prefix_figures(np.array([[1, 2]]), np.array([1]))
    assert alone["collision_rate"] == 0 and alone["purity_by_chance"] == 0


def test_reconstruction_equals_scikit_learn(z, sids):
    codes, measured = sids.assign(z), Reconstruction(16, 3)
    for start, stop in ((0, 100), (100, 100), (100, 1200)):
        part = codes[start:stop]
        measured.add(z[start:stop], [reconstruct(part[:, : length + 1], sids.codebooks) for length in range(3)])
    for length in (1, 2, 3):
        found, other = measured.figures(length - 1), sids.decode(codes[:, :length])
        assert found["relative_error"] == pytest.approx(
            1 - r2_score(z, other, multioutput="variance_weighted"), rel=1e-4
        )
        norms = np.linalg.norm(z, axis=1) * np.linalg.norm(other, axis=1)
        assert found["cosine"] == pytest.approx(np.mean(np.sum(z * other, axis=1) / norms), rel=1e-5)


def plain_purity(z, codes, rows, k):
    scores = z @ z.T
    np.fill_diagonal(scores, -np.inf)
    near = np.argsort(-scores[rows], axis=1)[:, :k]
    return [
        np.mean(np.all(codes[near][:, :, :length] == codes[rows][:, None, :length], axis=2))
        for length in range(1, codes.shape[1] + 1)
    ]


@pytest.mark.parametrize("k", [1, 10, 2000])
def test_purity_equals_brute_force(z, sids, k):
    codes, rows = sids.assign(z), np.array([0, 3, 499, 500, 1199])
    near = Neighbourhoods(z[rows], rows, k, 3)
    for start, stop in ((0, 5), (5, 5), (5, 500), (500, 1200)):
        near.add(np.arange(start, stop), z[start:stop], codes[start:stop])
    expected = plain_purity(z, codes, rows, min(k, 1199))
    np.testing.assert_allclose(near.purity(codes[rows]), expected)
    assert expected[0] > expected[2]


def test_an_anchor_is_not_its_own_neighbour_but_an_equal_item_is():
    z = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    codes = np.array([[5, 1], [5, 2], [6, 1], [7, 1]], np.int32)
    near = Neighbourhoods(z[:1], np.array([0]), 1, 2)
    near.add(np.arange(4), z, codes)
    assert near.purity(codes[:1]) == [1.0, 0.0]
    alone = Neighbourhoods(z[:1], np.array([0]), 3, 2)
    alone.add(np.arange(1), z[:1], codes[:1])
    assert alone.purity(codes[:1]) == [None, None]


def test_all_figures_together(z, sids):
    codes, rows = sids.assign(z), np.arange(0, 1200, 60)
    meter = Meter(LEVELS, 16, sids.decode, Anchors(rows, z[rows], codes[rows], 10))
    for start in range(0, 1200, 250):
        meter.add(np.arange(start, min(start + 250, 1200)), z[start : start + 250], codes[start : start + 250])
    figures = meter.figures()
    for level in range(3):
        counts = np.bincount(codes[:, level], minlength=LEVELS[level])
        np.testing.assert_array_equal(meter.code_counts()[level], counts)
        assert figures["levels"][level]["entropy_bits"] == pytest.approx(stats.entropy(counts, base=2))
    purity = [prefix["purity"] for prefix in figures["prefixes"]]
    np.testing.assert_allclose(purity, plain_purity(z, codes, rows, 10))
    assert purity[0] > 2 * figures["prefixes"][0]["purity_by_chance"]  # the mixture is clustered
    json.dumps(figures, allow_nan=False)


# The command line


def test_from_fit_to_lookup_on_the_command_line(embeddings, new, tmp_path, capsys):
    output, table = tmp_path / "sids", tmp_path / "ids.parquet"
    command = ["semantic-ids", "fit", "--embeddings", str(embeddings.path), "--output", str(output), "--anchors", "20"]
    assert main([*command, "--levels", "8,8", "--levels", "4,2,2", "--samples", "600"]) == 0
    said = capsys.readouterr().out
    assert "purity" in said and str(output / "8-8") in said and str(output / "4-2-2") in said
    assert SemanticIds.load(output / "4-2-2").info.rows == 600
    before = (output / "8-8" / "codebooks.safetensors").read_bytes()
    command = ["semantic-ids", "assign", "--codebooks", str(output / "8-8"), "--embeddings", str(new.path)]
    assert main([*command, "--output", str(table), "--unique", "--anchors", "20"]) == 0
    said = capsys.readouterr().out
    assert str(table) in said and "2 items have no usable vector" in said and "'item-3'" in said
    assert re.search(r"assigning ([\d,]+)/\1,", said)
    assert (output / "8-8" / "codebooks.safetensors").read_bytes() == before
    ids, codes, written = columns(SemanticIdTable(table))
    prefix = str(codes[0, 0])
    assert main(["semantic-ids", "lookup", "--table", str(table), "--id", prefix, "--limit", "3"]) == 0
    said = capsys.readouterr().out
    count = np.sum(codes[:, 0] == codes[0, 0])
    assert (
        f"{written[0]}\t{ids[0]}" in said and f"{count} items, 3 of them listed" in said and f"after {prefix}" in said
    )


def test_a_vq_on_the_command_line(embeddings, tmp_path, capsys):
    command = ["semantic-ids", "fit", "--embeddings", str(embeddings.path), "--output", str(tmp_path / "sids")]
    settings = ["--levels", "8,4", "--method", "vq", "--steps", "5", "--batch", "64", "--seed", "3"]
    assert main([*command, *settings]) == 0
    assert "semantic-ids assign --codebooks" in capsys.readouterr().out
    info = SemanticIds.load(tmp_path / "sids").info
    assert info.method == "vq" and info.seed == 3 and info.settings["steps"] == 5 and info.settings["batch"] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--levels", "8;8"], "256,256,256"),
        (["--levels", "8", "--steps", "5"], "--method vq"),
        (["--levels", "8", "--config.seed=3"], "reads no config"),
        (["--levels", "4000"], "fewer codes"),
    ],
)
def test_mistakes_on_the_command_line(words, message, embeddings, tmp_path, capsys):
    command = ["semantic-ids", "fit", "--embeddings", str(embeddings.path), "--output", str(tmp_path / "sids")]
    assert main([*command, *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "sids").exists()


@pytest.mark.parametrize("words", [[], ["fit"], ["assign"], ["lookup"]])
def test_help_with_an_example(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["semantic-ids", *words, "--help"])
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"example: python -m sail_jax semantic-ids {' '.join(words) or 'fit'} --" in said


def test_the_measured_batches_are_smaller_than_the_sample(embeddings, tmp_path, monkeypatch, folder):
    """Figures and codebooks do not depend on how the vectors are cut into batches."""
    monkeypatch.setattr(lib, "_BATCH", 500)
    fit_folder(embeddings, {tmp_path / "x": LEVELS}, seed=1, anchors=50)
    small, large = (json.loads((path / "semantic_ids.json").read_text()) for path in (tmp_path / "x", folder))
    assert small["fingerprint"] == large["fingerprint"]
    for ours, theirs in zip(small["figures"]["prefixes"], large["figures"]["prefixes"], strict=True):
        assert ours == pytest.approx(theirs)
