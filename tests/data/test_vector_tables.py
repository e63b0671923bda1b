"""Vectors of a recommender that ingestion joins to the items by their ids."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.config import build
from sail_jax.data.ingest import vector_tables
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.ingest.journal import Journal
from sail_jax.data.ingest.vector_tables import build_vectors, open_vectors
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError

COUNT = 12


def config(vectors, **settings):
    source = {"path": "items.jsonl", "text": {"title": "title"}}
    return build({"ingest": {"source": source | settings.pop("source", {}), "vectors": vectors, **settings}})


@pytest.fixture
def source(tmp_path):
    rows = [{"item_id": f"i{n}", "title": f"title {n}"} for n in range(COUNT)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write(path, ids, vectors, id_column="item_id", dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = dtype or pa.list_(pa.float32())
    pq.write_table(pa.table({id_column: ids, "vector": pa.array(vectors, dtype)}), path)


def joined(folder, vectors, **settings):
    output = folder / "data"
    shutil.rmtree(output, ignore_errors=True)
    report = ingest(config(vectors, **settings), folder, output)
    assert not list(output.rglob("*.partial"))
    items = {item.item_id: item.id_embeddings for item in ItemStore.open(output / "items")}
    bad = [json.loads(line) for line in (output / "bad_records.jsonl").read_text().splitlines()]
    assert report.bad_records == len(bad)
    return items, bad


def test_items_take_the_vectors_of_their_ids_and_others_stay_without(source):
    rng = np.random.default_rng(0)
    ids = [f"i{n}" for n in rng.permutation(40)[:30]]  # in any order, with items that are not ingested
    values = dict(zip(ids, rng.standard_normal((30, 5)).astype(np.float32), strict=True))
    for part in range(3):
        some = ids[part::3]
        write(source / f"vectors/a/part-{part}.parquet", some, [values[name] for name in some])
    write(source / "b.parquet", [1, 2], [[0.5, 1.0], [2.0, 3.0]], "id", pa.list_(pa.float64(), 2))
    items, bad = joined(source, {"a": "vectors/a", "b": "b.parquet"}, items_per_shard=5)
    assert not bad
    for name, embeddings in items.items():
        assert set(embeddings) == ({"a"} if name in values else set())
        if name in values:
            assert embeddings["a"].dtype == np.float32
            np.testing.assert_array_equal(embeddings["a"], values[name])
    assert 3 < sum(map(len, items.values())) < COUNT


def test_a_table_of_ids_and_vectors_alone_may_call_them_anything(source):
    pq.write_table(pa.table({"emb": [[1.0, 2.0], [3.0, 4.0]], "iid": ["i3", "i5"]}), source / "mine.parquet")
    items, bad = joined(source, {"mine": "mine.parquet"})
    assert not bad
    found = {name: vectors["mine"].tolist() for name, vectors in items.items() if vectors}
    assert found == {"i3": [1.0, 2.0], "i5": [3.0, 4.0]}


def test_it_is_said_how_many_items_have_an_embedding_none_and_duplicates_too(source, capsys):
    with (source / "items.jsonl").open("a") as items:
        items.write('{"item_id": "i3", "title": "again"}\n')
    write(source / "a.parquet", ["i3", "i5"], [[1.0], [2.0]])
    write(source / "b.parquet", ["user 1"], [[1.0]])
    joined(source, {"a": "a.parquet", "b": "b.parquet"})
    said = capsys.readouterr().out
    assert "ID embedding a: 2 items have it\nID embedding b: 0 items have it\n" in said


def test_ids_of_numbers_and_columns_beside_the_tables(source):
    rows = [{"item_id": n, "title": "t", "gid": [float(n)]} for n in range(3)]
    (source / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(source / "b.parquet", [2, 0], [[2.0, 3.0], [0.5, 1.0]], dtype=pa.list_(pa.float64(), 2))
    items, _ = joined(source, {"b": "b.parquet"}, source={"id_embeddings": {"gid": "gid"}})
    assert {name: {key: v.tolist() for key, v in value.items()} for name, value in items.items()} == {
        "0": {"gid": [0.0], "b": [0.5, 1.0]},
        "1": {"gid": [1.0]},
        "2": {"gid": [2.0], "b": [2.0, 3.0]},
    }
    with pytest.raises(SailError, match="both have 'gid'"):
        ingest(config({"gid": "b.parquet"}, source={"id_embeddings": {"gid": "gid"}}), source, source / "other")


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_bad_rows_are_reported_with_the_remedy_and_their_items_lack_the_vector(source, monkeypatch, batch):
    monkeypatch.setattr(vector_tables, "_BATCH", batch)
    rows = [
        ("i0", [1.0, 2.0]),
        ("i1", [1.0, float("nan")]),
        ("i2", [1.0, float("inf")]),
        ("i3", [1.0, 2.0, 3.0]),
        ("i4", None),
        ("i5", []),
        ("i6", [1.0, None]),
        (None, [1.0, 2.0]),
        ("i0", [8.0, 8.0]),
        ("i7", [1e300, 2.0]),
        ("i8", [3.0, 4.0]),
    ]
    write(source / "v.parquet", *zip(*rows, strict=True), dtype=pa.list_(pa.float64()))
    items, bad = joined(source, {"v": "v.parquet"})
    assert {name: value["v"].tolist() for name, value in items.items() if value} == {"i0": [1, 2], "i8": [3, 4]}
    assert all(entry["remedy"] for entry in bad)
    # A repeated id is known when all are read.
    assert [(entry["record"], entry["problem"].split(",")[0]) for entry in bad] == [
        ("i1 (row 2)", "the vector holds numbers that are not finite"),
        ("i2 (row 3)", "the vector holds numbers that are not finite"),
        ("i3 (row 4)", "the vector has 3 numbers"),
        ("i6 (row 7)", "the vector holds numbers that are not finite"),
        ("(row 8)", "the vector has no id"),
        ("i7 (row 10)", "the vector holds numbers that are not finite"),
        ("i0", "the table already has a vector with this id"),
    ]
    assert bad[0]["file"].endswith("v.parquet") and bad[0]["field"] == "vector"
    with pytest.raises(SailError, match="7"):
        ingest(config({"v": "v.parquet"}, max_bad_records=3), source, source / "strict")


def test_ids_that_share_a_hash_are_told_apart(source, monkeypatch):
    monkeypatch.setattr(vector_tables, "item_key", lambda text: 7)
    write(source / "v.parquet", ["i1", "i2", "i3"], [[1.0], [2.0], [3.0]])
    table = build_vectors(open_vectors(source, "v.parquet", "v"), source / "built", pytest.fail, lambda _: None)
    assert [table.get(name).tolist() for name in ("i3", "i1", "i2")] == [[3.0], [1.0], [2.0]]
    assert table.get("i4") is None


def test_a_table_without_vectors_joins_nothing(source):
    write(source / "v.parquet", ["i1"], [None])
    items, bad = joined(source, {"v": "v.parquet"})
    assert not bad and not any(items.values())


def test_wrong_tables_are_refused(source):
    write(source / "v.parquet", ["i1"], [[1.0]])
    pq.write_table(pa.table({"item_id": ["a"], "vectr": [[1.0]], "vec": [[1.0]]}), source / "typo.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "vector": ["1|2"]}), source / "text.parquet")
    for path, message in [
        ("w.parquet", "Did you mean v.parquet.* Change config.ingest.vectors.x"),
        ("items.jsonl", "not a Parquet file"),
        ("typo.parquet", "vectr.*config.ingest.vectors.x"),
        ("text.parquet", "list of numbers"),
    ]:
        with pytest.raises(SailError, match=message):
            ingest(config({"x": path}), source, source / "data")


def test_an_interrupted_ingestion_joins_the_rest_and_notes_bad_rows_once(source, monkeypatch):
    ids = [f"i{n}" for n in range(COUNT)]
    write(source / "v.parquet", [*ids, "i0"], [[float(n)] for n in range(COUNT + 1)])
    settings = config({"v": "v.parquet"}, items_per_shard=4)
    finish = Journal.finish

    def killed(self, name, result):
        if name == "shard 1":
            raise KeyboardInterrupt
        return finish(self, name, result)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(settings, source, source / "data")
    report = ingest(settings, source, source / "data")
    assert (report.items, report.bad_records) == (COUNT, 1)
    store = ItemStore.open(source / "data/items")
    assert [store.get(name).id_embeddings["v"].tolist() for name in ids] == [[float(n)] for n in range(COUNT)]
    write(source / "v.parquet", ids, [[0.0]] * COUNT)
    with pytest.raises(SailError, match="changed: source v.parquet"):
        ingest(settings, source, source / "data")
