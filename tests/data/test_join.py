"""Vectors joined to a finished store: batches as of an ingestion at once, counts, damage, and what is refused."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.data import joined_vectors
from sail_jax.data.ingest import vector_tables
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.ingest.join import join_vectors
from sail_jax.data.pipeline import BatchSource, HostShare, open_store
from sail_jax.data.store import ItemStore
from sail_jax.data.training_set import materialize
from sail_jax.errors import SailError

COUNT, WIDTH = 24, 5


def settings_of(folder, data="data", vectors=None):
    """Items of text that are matched with themselves and with the ID embedding `cf`."""
    values = tiny.experiment(folder / data)
    values.ingest.update(items_per_shard=7, tokenizer_vocab=300)
    values.ingest.source = {"path": "items.jsonl", "text": {"title": "title"}, "id_embeddings": {"old": "old"}}
    values.ingest.tables, values.ingest.vectors = {"items": {}}, vectors or {}
    values.objective.teachers = {"cf": WIDTH}
    shown = {"table": "tables/items.parquet", "patterns": ("T->T",), "loss_weights": {"distill": 1.0}}
    values.data.datasets = {"ids": {"kind": "items", **shown}, "pairs": shown}
    return values


def write(path, vectors):
    """Writes id -> vector as a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"item_id": list(vectors), "vector": pa.array(list(vectors.values()), pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def source(tmp_path):
    """An export with repeated ids, ingested without vectors, and a table of vectors in three parts."""
    ids = [f"i{number}" for number in range(COUNT)]
    rows = [{"item_id": name, "title": f"title {name}", "old": [1.0]} for name in [*ids[:9], "i3", *ids[9:], "i0"]]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = np.random.default_rng(0)
    some = [f"i{number}" for number in rng.permutation(COUNT + 8)[: COUNT - 4]]  # also ids that no item has
    vectors = {name: rng.standard_normal(WIDTH).astype(np.float32) for name in some}
    for part in range(3):
        write(tmp_path / f"vectors/cf/part-{part}.parquet", {name: vectors[name] for name in some[part::3]})
    ingest(config_lib.build(settings_of(tmp_path)), tmp_path, tmp_path / "data")
    return tmp_path, vectors


def batches(values):
    values.train.steps = 6
    loaded = BatchSource(config_lib.build(values), HostShare(0, 16, 1))
    return [loaded[step].arrays for step in range(6)], loaded


@pytest.mark.parametrize("batch", [2, 1000])
def test_batches_are_those_of_an_ingestion_at_once(source, monkeypatch, batch):
    monkeypatch.setattr(vector_tables, "_BATCH", batch)
    folder, vectors = source
    before = {path.name: path.read_bytes() for path in (folder / "data/items").iterdir() if path.is_file()}
    report, now = join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0)
    known = {name: vector for name, vector in vectors.items() if int(name[1:]) < COUNT}
    assert now and report.bad == 0 and (report.items, report.width) == (COUNT, WIDTH)
    assert (report.vectors, report.unknown) == (len(known), len(vectors) - len(known))
    assert before == {path.name: path.read_bytes() for path in (folder / "data/items").iterdir() if path.is_file()}
    at_once = settings_of(folder, "at_once", {"cf": "vectors/cf"})
    ingest(config_lib.build(at_once), folder, folder / "at_once")
    (joined, loaded), (expected, _) = batches(settings_of(folder)), batches(at_once)
    for one, other in zip(joined, expected, strict=True):
        for name, a, b in zip(one._fields, one, other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert any(batch.has_id.any() for batch in joined) and not all(batch.has_id.all() for batch in joined)
    assert loaded.fingerprint()["joined_vectors"].keys() == {"cf"}
    store = pickle.loads(pickle.dumps(ItemStore.open(folder / "data/items")))
    for item in store:
        assert item.id_embeddings["old"].tolist() == [1.0]
        np.testing.assert_array_equal(item.id_embeddings.get("cf", 0), known.get(item.item_id, 0))
        np.testing.assert_array_equal(store.get(item.item_id).id_embeddings.get("cf", 0), known.get(item.item_id, 0))


def test_a_run_without_the_teacher_stays_the_same_run_and_one_with_another_table_is_another(source):
    folder, vectors = source
    values = settings_of(folder)
    values.data.datasets = {"pairs": {"table": "tables/items.parquet", "patterns": ("T->T",)}}
    before = batches(values)[1].fingerprint()
    join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0)
    assert batches(values)[1].fingerprint() == before
    taught = batches(settings_of(folder))[1].fingerprint()
    shutil.rmtree(folder / "data/items/vectors/cf")
    write(folder / "other.parquet", {name: vector + 1 for name, vector in vectors.items()})
    join_vectors(folder / "data", "cf", folder / "other.parquet", max_bad_records=0)
    assert batches(settings_of(folder))[1].fingerprint() != taught


def test_records_materialized_before_a_teacher_was_joined_are_refused(source):
    folder, _ = source
    config = config_lib.build(settings_of(folder))
    materialize(config, "pairs", folder / "written", open_store(config), epochs=1)
    values = settings_of(folder)
    values.data.datasets.pairs.materialized = str(folder / "written")
    join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0)
    with pytest.raises(SailError, match="joined_vectors"):
        batches(values)


def test_bad_rows_are_left_out_up_to_the_limit_and_nothing_half_joined_stays(source):
    folder, vectors = source
    ids = ["i0", "i1", "i2", "i0", "i3"]
    rows = [[1.0, 2.0], [1.0, float("nan")], [1.0], [3.0, 4.0], None]
    table = pa.table({"item_id": ids, "vector": pa.array(rows, pa.list_(pa.float32()))})
    pq.write_table(table, folder / "bad.parquet")
    with pytest.raises(SailError, match=r"3 bad rows are more than --max-bad-records 2; the last: .*'i0'.*raise"):
        join_vectors(folder / "data", "bad", folder / "bad.parquet", max_bad_records=2)
    assert not list((folder / "data/items").glob("vectors/*"))
    report, _ = join_vectors(folder / "data", "bad", folder / "bad.parquet", max_bad_records=3)
    assert (report.vectors, report.bad) == (1, 3)
    listed = [json.loads(line) for line in (report.folder / "bad_records.jsonl").read_text().splitlines()]
    assert [line["record"] for line in listed] == ["i1 (row 2)", "i2 (row 3)", "i0"]
    assert ItemStore.open(folder / "data/items").get("i0").id_embeddings["bad"].tolist() == [1.0, 2.0]


def test_joining_again_does_nothing_and_another_table_is_refused(source):
    folder, vectors = source
    first, _ = join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0)
    assert join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0) == (first, False)
    write(folder / "other.parquet", dict(list(vectors.items())[1:]))
    with pytest.raises(SailError, match="holds vectors of another table, cf. Choose another --name"):
        join_vectors(folder / "data", "cf", folder / "other.parquet", max_bad_records=0)
    config = config_lib.build(settings_of(folder))
    assert ingest(config, folder, folder / "data").items == COUNT  # an ingestion is as finished as before


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("old", "vectors/cf", "have 'old' since they were ingested"),
        ("a.b", "vectors/cf", "names a folder"),
        ("cf", "vectors/none", "There is no table"),
        ("cf", "strangers.parquet", "has no vector of an item of .*the first id is 'x'.*store 'i0'"),
        ("cf", "items.jsonl", "not a Parquet file"),
        ("cf", "s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_what_cannot_be_joined_is_refused(source, name, table, message):
    folder, _ = source
    write(folder / "strangers.parquet", {"x": [1.0]})
    with pytest.raises(SailError, match=message):
        join_vectors(folder / "data", name, table if "://" in table else folder / table, max_bad_records=0)
    assert not list((folder / "data/items").glob("vectors/*"))


@pytest.mark.parametrize("damage", ["rows", "vectors", "facts", "items"])
def test_damage_is_named_with_the_remedy(source, damage):
    folder, _ = source
    report, _ = join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0)
    facts = report.folder / joined_vectors.FACTS
    if damage == "rows":
        joined_vectors.rows_path(report.folder).write_bytes(b"")
    elif damage == "vectors":
        joined_vectors.vectors_path(report.folder).unlink()
    elif damage == "facts":
        facts.write_text("{")
    else:
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"items": COUNT + 1}))
    with pytest.raises(SailError, match=f"Remove {report.folder} and join the table again"):
        ItemStore.open(folder / "data/items")


def test_a_damaged_row_is_named(source):
    folder, _ = source
    report, _ = join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0)
    np.full(COUNT, 99, "<u8").tofile(joined_vectors.rows_path(report.folder))
    with pytest.raises(SailError, match="rows.u64 is damaged: the item at 0 has the row 99"):
        ItemStore.open(folder / "data/items")[0]


def test_an_id_embedding_that_no_item_has_is_refused_before_training(source):
    """By the ingestion's summary; one of a version that did not count them tells nothing."""
    folder, _ = source
    config = config_lib.build(settings_of(folder))
    with pytest.raises(SailError, match=r"ID embedding 'cf', which the items in .* they have old. Did you mean old\?"):
        BatchSource(config, HostShare(0, 16, 1))
    marker = folder / "data" / "ingest.json"
    summary = json.loads(marker.read_text())
    for report in ({**summary["report"], "embeddings": {}}, {"items": COUNT}):
        marker.write_text(json.dumps(summary | {"report": report}))
        if "embeddings" in report:
            with pytest.raises(SailError, match="they have none. `join-vectors` adds"):
                BatchSource(config, HostShare(0, 16, 1))
    BatchSource(config, HostShare(0, 16, 1))
    marker.write_text(json.dumps(summary))
    join_vectors(folder / "data", "cf", folder / "vectors/cf", max_bad_records=0)
    BatchSource(config, HostShare(0, 16, 1))


def test_the_verb_and_what_describe_says(source, capsys):
    folder, _ = source
    command = ["join-vectors", "--workdir", str(folder / "data"), "--name", "cf", "--table", str(folder / "vectors/cf")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "cf: vectors of 5 numbers for" in said and f"of {COUNT} items" in said and "rows are of no item" in said
    assert "Next: python -m sail_jax train" in said and "--config.objective.teachers.cf=5" in said
    assert main(command) == 0 and "was joined before" in capsys.readouterr().out
    assert main(["describe", "--data", str(folder / "data")]) == 0
    said = capsys.readouterr().out
    assert f"ID embedding old: {COUNT} items have it" in said and "joined ID embedding cf: vectors of 5 numbers" in said
    assert main(["describe", "--data", str(folder / "nothing")]) == 2
    assert "name the folder that `ingest` wrote" in capsys.readouterr().err
