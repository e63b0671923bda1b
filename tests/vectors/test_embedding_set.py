"""Folders of embeddings: reading returns the written rows in order; unfinished and foreign folders are refused."""

import dataclasses
import json

import faiss
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.config.storage import VECTOR_DTYPES
from sail_jax.errors import SailError
from sail_jax.vectors import embedding_set
from sail_jax.vectors.embedding_set import (
    EmbeddingInfo,
    EmbeddingSet,
    decode_vectors,
    encode_vectors,
    part_path,
    read_notes,
    write_info,
    write_part,
)

INFO = EmbeddingInfo("runs/x", "f00d", 16, "float32", "VT", ("title", "tags"), "Find it: é")


def vectors(rows=40, dims=16, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dims)).astype(np.float32)


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def folder_of(path, *, dtype="float32", sizes=(7, 0, 33)):
    z, at = vectors(sum(sizes)), 0
    for number, size in enumerate(sizes):
        write_part(part_path(path, number), [f"id-{i}" for i in range(at, at + size)], z[at : at + size], dtype)
        at += size
    write_info(path, dataclasses.replace(INFO, dtype=dtype))
    return z


@pytest.mark.parametrize("dims", [8, 128, 1536])
@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
def test_stored_types(dtype, dims):
    z = vectors(dims=dims)
    stored = encode_vectors(3 * z, dtype)
    expected = {
        "float32": unit(z),
        "bfloat16": unit(z).astype(ml_dtypes.bfloat16).view(np.uint16),
        "int8": np.clip(np.rint(unit(z) * np.sqrt(dims) / 4 * 127), -127, 127).astype(np.int8),
        "binary": np.packbits(z > 0, axis=1),
    }[dtype]
    assert stored.dtype == expected.dtype and stored.shape == expected.shape
    np.testing.assert_allclose(stored.astype(np.float64), expected, atol=1 if dtype in ("bfloat16", "int8") else 1e-6)
    back = decode_vectors(stored, dtype)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, atol=1e-5)
    least = {"float32": 1 - 1e-6, "bfloat16": 0.9999, "int8": 0.998, "binary": 0.6}[dtype]
    assert np.sum(back * unit(z), axis=1).min() > least


def test_zeros_stay_and_large_entries_are_cut():
    z = np.zeros((2, 64), np.float32)
    z[1, 3] = -5  # one entry holds all the length
    for dtype in ("float32", "bfloat16", "int8"):
        back = decode_vectors(encode_vectors(z, dtype), dtype)
        assert not back[0].any()
        np.testing.assert_array_equal(back[1], np.sign(z[1]))
    assert encode_vectors(z, "int8").min() == -127


def test_cosines_of_binary_vectors_are_hamming_distances():
    """faiss' binary index counts the same bits."""
    stored = encode_vectors(vectors(dims=64), "binary")
    index = faiss.IndexBinaryFlat(64)
    index.add(stored)
    distances, rows = index.search(stored[:5], len(stored))
    z = decode_vectors(stored, "binary")
    cosines = np.take_along_axis(z[:5] @ z.T, rows.astype(int), axis=1)
    np.testing.assert_allclose(cosines, 1 - distances / 32, atol=1e-5)


def test_wrong_types_are_refused():
    with pytest.raises(SailError, match="'float8'.*bfloat16"):
        encode_vectors(vectors(), "float8")
    with pytest.raises(SailError, match="multiple of 8, not 12"):
        encode_vectors(vectors(dims=12), "binary")


@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
def test_a_folder_comes_back(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(embedding_set, "_ROW_GROUP", 10)
    z = folder_of(tmp_path, dtype=dtype)
    found = EmbeddingSet(tmp_path)
    assert found.info == dataclasses.replace(INFO, dtype=dtype) and len(found) == 40
    assert pq.ParquetFile(part_path(tmp_path, 2)).num_row_groups == 4
    ids, back = found.load()
    assert ids == [f"id-{i}" for i in range(40)] and back.dtype == np.float32
    np.testing.assert_array_equal(back, decode_vectors(encode_vectors(z, dtype), dtype))
    sizes = [len(some) for some, _ in found.batches(9)]
    assert max(sizes) == 9 and sum(sizes) == 40
    np.testing.assert_array_equal(np.concatenate([part for _, part in found.batches(9)]), back)


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (100_000, 99_999, 2):
        write_part(part_path(tmp_path, number), [str(number)], vectors(1), "float32")
    write_info(tmp_path, INFO)
    assert EmbeddingSet(tmp_path).load()[0] == ["2", "99999", "100000"]


def test_any_parquet_reader_reads_a_part(tmp_path):
    z = folder_of(tmp_path, dtype="int8")
    table = pq.read_table(part_path(tmp_path, 0))
    assert table.column_names == ["id", "vector"]
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), encode_vectors(z[:7], "int8"))


def test_notes(tmp_path):
    write_part(part_path(tmp_path, 0), [], vectors(0), "int8", {"bad": "é"})
    assert read_notes(part_path(tmp_path, 0)) == {"bad": "é"}
    write_part(part_path(tmp_path, 1), ["a"], vectors(1), "int8")
    assert read_notes(part_path(tmp_path, 1)) == {}


def test_what_breaks_off_leaves_no_part(tmp_path):
    with pytest.raises(SailError):
        write_part(part_path(tmp_path, 0), ["a"], vectors(1), "float8")
    with pytest.raises(Exception):  # noqa: B017, whatever Arrow says of columns that differ
        write_part(part_path(tmp_path, 0), ["a", "b"], vectors(1), "float32")
    assert not part_path(tmp_path, 0).exists()


def test_unfinished_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(SailError, match="no complete embeddings"):
        EmbeddingSet(tmp_path / "absent")
    folder_of(tmp_path)
    marker = tmp_path / "embeddings.json"
    fields = json.loads(marker.read_text())
    marker.write_text(json.dumps(fields | {"version": 2}))
    with pytest.raises(SailError, match="another format or version"):
        EmbeddingSet(tmp_path)
    marker.unlink()
    with pytest.raises(SailError, match="no complete embeddings"):
        EmbeddingSet(tmp_path)


def rewrite(path, **columns):
    table = pq.read_table(path)
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)


def lists(rows, dtype=np.float32, width=16):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ones(rows * width, dtype)), width)


def flip(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: flip(path, 300), "is damaged .*copy it again"),
        (lambda path: path.unlink(), "holds 2 parts, and embeddings.json says 3"),
        (lambda path: rewrite(path, vector=lists(33, width=8)), "'vector' is fixed_size_list.*8.*says .*16"),
        (lambda path: rewrite(path, vector=lists(33, np.float64)), "'vector' is .*double.*says .*float"),
        (lambda path: rewrite(path, id=pa.array(range(33))), "'id' is int64"),
        (lambda path: rewrite(path, id=pa.array(["a"] * 32 + [None])), "rows without an id"),
        (lambda path: rewrite(path, vector=lists(33).take(pa.array([None, *range(32)]))), "gaps in the vector"),
        (lambda path: pq.write_table(pq.read_table(path).drop_columns(["vector"]), path), "'vector' is missing"),
    ],
)
def test_a_damaged_part_is_named(tmp_path, damage, message):
    folder_of(tmp_path)
    damage(part_path(tmp_path, 2))
    with pytest.raises(SailError, match=message) as error:
        EmbeddingSet(tmp_path).load()
    assert "\n" not in str(error.value) and ("part-00002" in str(error.value) or "parts" in message)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused_where_they_must_be(tmp_path, value):
    z = vectors(5)
    z[3, 7] = value
    write_part(part_path(tmp_path, 0), list("abcde"), z, "float32")
    write_info(tmp_path, INFO)
    found = EmbeddingSet(tmp_path)
    assert np.isfinite(found.load()[1]).all(axis=1).sum() == 4
    with pytest.raises(SailError, match="part-00000.parquet: the vector of row 4 .'d'. is not finite; embed again"):
        found.load(finite=True)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"null", b"{", b"[" * 100_000]
    + [{"dims": 0}, {"dims": "16"}, {"dims": 1e9}, {"dtype": "float8"}, {"fields": 3}, {"model": None}, {"more": 1}],
)
def test_a_damaged_description_is_named(tmp_path, content):
    folder_of(tmp_path)
    marker = tmp_path / "embeddings.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(marker.read_text()) | content).encode()
    marker.write_bytes(content)
    with pytest.raises(SailError, match="embeddings.json is damaged, or of another format or version; embed again"):
        EmbeddingSet(tmp_path)


def test_vectors_of_another_model_are_refused(tmp_path):
    folder_of(tmp_path)
    EmbeddingSet(tmp_path).require_model("f00d", what="the index")
    with pytest.raises(SailError, match="another model .*f00d.* than the index .*beef"):
        EmbeddingSet(tmp_path).require_model("beef", what="the index")
