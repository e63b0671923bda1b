import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from transformers import PreTrainedTokenizerFast

from sail_jax.config import build
from sail_jax.data.ingest import records
from sail_jax.data.ingest.ingest import IngestReport, ingest
from sail_jax.data.ingest.journal import Journal
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable, is_held_out
from sail_jax.errors import SailError

COUNT = 25
ITEMS = {
    "path": "items.csv",
    "text": {"title": "title", "tags": "tags"},
    "frames": "frames",
    "audio": "audio",
    "audio_embedding": "clap",
    "labels": "labels",
    "id_embeddings": {"gid": "gid"},
}
TABLES = {
    "i2i": {"path": "pairs.csv", "query_id": "query", "target_id": "target", "score": "score", "split": "split"},
    "q2i": {"path": "queries.csv", "query_text": "query", "target_id": "targets", "split": "split"},
    "self": {},
}


def config(seed=0, items=None, tables=TABLES, **settings):
    return build({"seed": seed, "ingest": {"source": ITEMS | (items or {}), "tables": tables, **settings}})


def image_bytes(value, kind="PNG", size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, (value % 256, 0, 0)).save(out, kind)
    return out.getvalue()


def item_row(i):
    return {
        "item_id": f"id{i}",
        "title": f'Title, with "quotes"\nand line {i}',
        "tags": ["red", f"tag{i}"],
        "frames": [f"images/{i}.png", "images/0.png"][: i % 3],
        "audio": f"audio/{i}.wav" if i % 4 == 0 else None,
        "clap": [0.5, i / 4, -1.0] if i % 4 == 1 else None,
        "labels": ["even" if i % 2 == 0 else "odd", "all"],
        "gid": [float(i), 2.0],
    }


def as_text(row):
    return {
        key: "|".join(map(str, cell)) if isinstance(cell, list) else "" if cell is None else cell
        for key, cell in row.items()
    }


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(map(as_text, rows))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_export(source, rows):
    (source / "images").mkdir(parents=True)
    (source / "audio").mkdir()
    for i in range(len(rows)):
        (source / f"images/{i}.png").write_bytes(image_bytes(i))
        soundfile.write(source / f"audio/{i}.wav", np.full(800, i, np.int16), 8000)
    write_csv(source / "items.csv", rows)
    pairs = [(i, i + 1, "train" if i % 3 else "test") for i in range(len(rows) - 1)]
    write_csv(
        source / "pairs.csv",
        [{"query": f"id{q}", "target": f"id{t}", "score": q / 4, "split": split} for q, t, split in pairs],
    )
    write_csv(
        source / "queries.csv",
        [{"query": f"search {i}", "targets": [f"id{i}", f"id{i + 1}"], "split": "train"} for i in range(5)],
    )
    return source


@pytest.fixture
def source(tmp_path):
    return write_export(tmp_path / "source", [item_row(i) for i in range(COUNT)])


def change_items(source, change):
    rows = [item_row(i) for i in range(COUNT)]
    change(rows)
    write_csv(source / "items.csv", rows)


def bad_records(output):
    return [json.loads(line) for line in (output / "bad_records.jsonl").read_text().splitlines()]


def files_of(output):
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != "ingest.json"
    }


# ------------------------------------------------------------------------------------------------------- good input


def test_items_and_tables(source, tmp_path, capsys):
    output = tmp_path / "output"
    report = ingest(config(items_per_shard=10), source, output)
    # Frames unless i % 3 == 0, sound or its vector if i % 4 < 2.
    modalities = {"T": 4, "TA": 5, "VT": 8, "VTA": 8}
    tables = {"i2i": {"test": 8, "train": 16}, "q2i": {"train": 10}, "self": {"train": COUNT}}
    assert report == IngestReport(COUNT, modalities, tables, 0, embeddings={"gid": COUNT})
    said = capsys.readouterr().out
    assert str(report) in said and "cells are separated by commas." in said
    store = ItemStore.open(output / "items")
    assert [item.item_id for item in store] == [f"id{i}" for i in range(COUNT)]
    item = store.get("id5")
    assert dict(item.text) == {"title": 'Title, with "quotes"\nand line 5', "tags": "red, tag5"}
    assert item.frames == (image_bytes(5), image_bytes(0))
    assert item.audio is None
    assert item.audio_embedding.tolist() == [0.5, 1.25, -1.0]
    assert item.labels == ("odd", "all")
    assert item.id_embeddings["gid"].tolist() == [5.0, 2.0]
    assert store.get("id4").audio == (source / "audio/4.wav").read_bytes()
    pairs = PairTable.open(output / "tables/i2i.parquet", "test")
    assert [pairs[i] for i in range(3)] == [Pair(f"id{i}", None, f"id{i + 1}", i / 4) for i in (0, 3, 6)]
    queries = PairTable.open(output / "tables/q2i.parquet")
    assert queries[3] == Pair(None, "search 1", "id2", None)
    assert PairTable.open(output / "tables/self.parquet")[7] == Pair("id7", None, "id7", None)
    assert sorted(path.name for path in output.iterdir()) == ["bad_records.jsonl", "ingest.json", "items", "tables"]
    assert len(list((output / "items").glob("*.array_record"))) == 3


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder", "embedded"])
def test_every_format_makes_the_same_store(source, tmp_path, kind):
    rows = [item_row(i) for i in range(COUNT)]
    pairs = list(csv.DictReader((source / "pairs.csv").open()))
    name = "items.parquet" if kind == "embedded" else f"items.{kind}"
    if kind == "jsonl":
        write_jsonl(source / name, rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source / name, row_group_size=4)
    elif kind == "folder":
        (source / name).mkdir()
        write_jsonl(source / name / "part-1.jsonl", rows[:7])
        write_jsonl(source / name / "part-2.jsonl", rows[7:])
    else:
        for row in rows:
            row["frames"] = [{"bytes": (source / frame).read_bytes(), "path": None} for frame in row["frames"]]
            row["audio"] = row["audio"] and (source / row["audio"]).read_bytes()
        pq.write_table(pa.Table.from_pylist(rows), source / name)
    pq.write_table(pa.Table.from_pylist([row | {"score": float(row["score"])} for row in pairs]), source / "p.parquet")
    tables = TABLES | {"i2i": TABLES["i2i"] | {"path": "p.parquet"}}
    reports = [
        ingest(config(items_per_shard=10), source, tmp_path / "csv"),
        ingest(config(items={"path": name}, tables=tables, items_per_shard=10), source, tmp_path / "other"),
    ]
    assert reports[0] == reports[1]
    assert files_of(tmp_path / "csv") == files_of(tmp_path / "other")


def test_holdout(source, tmp_path):
    report = ingest(config(seed=3, holdout=0.3), source, tmp_path / "output")
    held_out = {f"id{i}" for i in range(COUNT) if is_held_out(f"id{i}", 3, 0.3)}
    assert 2 <= len(held_out) <= 15
    assert report.tables["self"] == {"test": len(held_out), "train": COUNT - len(held_out)}
    rows = list(csv.DictReader((source / "pairs.csv").open()))
    touched = [row for row in rows if held_out & {row["query"], row["target"]}]
    splits = {}
    for split in ("train", "test", "holdout"):
        table = PairTable.open(tmp_path / "output/tables/i2i.parquet", split)
        splits[split] = {(pair.query_id, pair.target_id) for batch in table.iter_batches() for pair in batch}
    assert splits["test"] == {(row["query"], row["target"]) for row in rows if row["split"] == "test"}
    assert splits["holdout"] == {(row["query"], row["target"]) for row in touched if row["split"] == "train"}
    assert len(splits["train"]) + len(splits["holdout"]) == 16
    queries = PairTable.open(tmp_path / "output/tables/q2i.parquet", "")
    total = report.tables["q2i"]
    assert total.get("train", 0) + total.get("holdout", 0) == len(queries) == 10


def test_tokenizer(source, tmp_path):
    ingest(config(tokenizer_vocab=300), source, tmp_path / "output")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "output/tokenizer")
    assert 256 < len(tokenizer) <= 300
    # Words of items and of queries became tokens.
    assert len(tokenizer.tokenize("Title")) < 5
    assert len(tokenizer.tokenize("search")) < 6


def test_video(tmp_path):
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=44_100, layout="mono")
        for i in range(20):
            pixels = np.full((32, 32, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.mp4").write_bytes(out.getvalue())
    soundfile.write(source / "a.wav", np.zeros(100), 8000)
    write_jsonl(source / "items.jsonl", [{"item_id": "a", "video": "a.mp4", "audio": "a.wav"}])
    items = {"path": "items.jsonl", "video": "video"}

    def item(name, **more):
        settings = build({"ingest": {"source": items | more, "frames_per_video": 4}})
        ingest(settings, source, tmp_path / name)
        return ItemStore.open(tmp_path / name / "items").get("a")

    ours = item("own sound")
    greys = [np.asarray(Image.open(io.BytesIO(frame))).mean() for frame in ours.frames]
    np.testing.assert_allclose(greys, [20, 70, 120, 170], atol=12)
    assert soundfile.info(io.BytesIO(ours.audio)).samplerate == 44_100
    assert item("other sound", audio="audio").audio == (source / "a.wav").read_bytes()


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"item_id": ""}, "item_id", "has no id"),
        ({"frames": ["images/none.png"]}, "frames", "no file 'images/none.png'"),
        ({"frames": ["n" * 300 + ".png"]}, "frames", "no file 'nnn"),
        ({"frames": [("n" * 100 + "/") * 60]}, "frames", "no file 'nnn"),
        ({"frames": ["bad.jpg"]}, "frames", "cannot be decoded"),
        ({"frames": ["huge.png"]}, "frames", "9000 x 9000 pixels"),
        ({"audio": "bad.jpg"}, "audio", "holds no sound"),
        ({"audio": "bad.wav"}, "audio", "cannot be decoded"),
        ({"audio": "x" * 999}, "audio", "there is no file"),
        ({"audio": "a\0b.wav"}, "audio", "there is no file"),
        ({"audio": "empty.wav"}, "audio", "no samples"),
        ({"audio": "long.wav"}, "audio", "10,800 s long"),
        ({"clap": "1|two"}, "clap", "not a vector"),
        ({"clap": "1|nan|3"}, "clap", "finite"),
        ({"clap": "1|2"}, "audio_embedding", "has 2 numbers, but earlier ones have 3"),
        ({"gid": "1|2|3"}, "id_embeddings.gid", "has 3 numbers, but earlier ones have 2"),
        ({"title": "", "tags": "", "frames": "", "audio": "", "clap": ""}, "", "no text, frames or sound"),
    ],
)
def test_bad_item(source, tmp_path, change, field, problem):
    (source / "bad.jpg").write_bytes(image_bytes(0, "JPEG")[:100] + b"corrupt")
    (source / "bad.wav").write_bytes(b"RIFF....WAVEcorrupt")
    Image.new("1", (9000, 9000)).save(source / "huge.png", compress_level=1)
    soundfile.write(source / "empty.wav", np.zeros(0), 8000)
    soundfile.write(source / "long.wav", np.zeros(3 * 3600 * 100, np.int16), 100)
    change_items(source, lambda rows: rows[12].update(change))
    # The bad item is the first of its shard.
    report = ingest(config(tables={}, items_per_shard=12), source, tmp_path / "output")
    assert (report.items, report.bad_records) == (COUNT - 1, 1)
    (bad,) = bad_records(tmp_path / "output")
    assert bad["file"] == "items.csv"
    assert bad["record"] == ("row 13" if field == "item_id" else "id12 (row 13)")
    assert bad["field"] == field
    assert problem in bad["problem"]
    assert bad["remedy"]
    assert ItemStore.open(tmp_path / "output/items").position("id12") is None


def test_half_a_character_in_a_path_is_no_file(source, tmp_path):
    rows = [item_row(i) for i in range(COUNT)]
    rows[1]["frames"] = ["\ud800.png"]
    write_jsonl(source / "items.jsonl", rows)
    ingest(config(items={"path": "items.jsonl"}, tables={}), source, tmp_path / "output")
    (bad,) = bad_records(tmp_path / "output")
    assert bad["field"] == "frames" and r"there is no file '\ud800.png'" in bad["problem"]


@pytest.mark.parametrize("column", ["frames", "audio"])
@pytest.mark.parametrize("way", ["absolute", "above", "link", "folder", "pattern"])
def test_paths_in_tables_stay_inside_the_source_folder(source, tmp_path, column, way):
    inside = {"frames": "images/5.png", "audio": "audio/5.wav"}[column]
    outside = tmp_path / "outside" / inside
    outside.parent.mkdir(parents=True)
    shutil.copy(source / inside, outside)
    (source / "link").symlink_to(outside)
    (source / "folder").symlink_to(tmp_path / "outside")
    (source / "within").symlink_to("images" if column == "frames" else "audio")
    names = {"absolute": str(outside), "above": f"../outside/{inside}", "link": "link", "folder": f"folder/{inside}"}
    items = {}
    if way == "pattern":
        names["pattern"], items = "", {column: "", f"{column}_pattern": f"folder/{inside}{{item_id}}"}
        outside.rename(f"{outside}id12")
    change_items(source, lambda rows: rows[12].update({column: names[way]}))
    report = ingest(config(items=items, tables={}), source, tmp_path / "refused")
    (bad,) = bad_records(tmp_path / "refused")
    assert report.items == COUNT - 1 and (bad["file"], bad["record"]) == ("items.csv", "id12 (row 13)")
    assert bad["field"] == (items[f"{column}_pattern"].replace("{item_id}", "id12") if items else column)
    assert "leads out of the source folder" in bad["problem"] and "config.ingest.outside_paths=True" in bad["remedy"]
    allowed = ingest(config(items=items, tables={}, outside_paths=True), source, tmp_path / "allowed")
    assert allowed.bad_records == 0
    item = ItemStore.open(tmp_path / "allowed/items").get("id12")
    assert (item.frames[0] if column == "frames" else item.audio) == (source / inside).read_bytes()
    for name in (f"within/{inside.split('/')[1]}", f"images/../{inside}", str(source / inside)):  # these stay inside
        change_items(source, lambda rows, name=name: rows[12].update({column: name}))
        shutil.rmtree(tmp_path / "inside", ignore_errors=True)
        assert ingest(config(tables={}), source, tmp_path / "inside").bad_records == 0


def test_empty_cells_lack_the_modality(source, tmp_path):
    change_items(source, lambda rows: rows[12].update({"title": "", "frames": "", "audio": "", "clap": ""}))
    report = ingest(config(tables={}), source, tmp_path / "output")
    assert report.bad_records == 0
    assert ItemStore.open(tmp_path / "output/items").get("id12").modalities == "T"


def test_repeated_ids(source, tmp_path):
    def change(rows):
        rows[3]["item_id"] = ""
        rows[20]["item_id"] = rows[8]["item_id"] = "id6"

    change_items(source, change)
    report = ingest(config(tables={"self": {}}, items_per_shard=7), source, tmp_path / "output")
    assert (report.items, report.bad_records, report.tables["self"]["train"]) == (COUNT - 3, 3, COUNT - 3)
    assert sum(report.modalities.values()) == COUNT - 3
    places = [(bad["record"], bad["problem"]) for bad in bad_records(tmp_path / "output")[1:]]
    assert places == [(f"id6 (row {row})", "row 7 has the same id") for row in (9, 21)]
    assert ItemStore.open(tmp_path / "output/items").get("id6").text["title"].endswith("line 6")


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"item_id": "x", "title": "\\ud800"}'])
def test_unreadable_lines_of_jsonl(source, tmp_path, line):
    write_jsonl(source / "items.jsonl", [item_row(i) for i in range(5)])
    with (source / "items.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    report = ingest(config(items={"path": "items.jsonl"}, tables={}), source, tmp_path / "output")
    assert (report.items, report.bad_records) == (5, 1)
    assert "row 6" in bad_records(tmp_path / "output")[0]["record"]


def test_rows_of_csv_with_too_many_cells(source, tmp_path):
    with (source / "items.csv").open("a") as file:
        file.write("x,y\n\n")
    assert ingest(config(tables={}), source, tmp_path / "output").bad_records == 1
    assert bad_records(tmp_path / "output")[0]["problem"] == "the row has 2 cells, the header has 8"


def test_bad_rows_of_tables(source, tmp_path):
    with (source / "pairs.csv").open("a") as file:
        file.write("id1,none,1,train\nnone,id1,1,train\n,id1,1,train\nid1,,1,train\nid1,id2,high,train\nid1,id2,1,\n")
        file.write("id1,id2,,train\n")
    with (source / "queries.csv").open("a") as file:
        file.write("more,id1|none|id2,train\n ,id1,train\n")
    report = ingest(config(), source, tmp_path / "output")
    assert report.bad_records == 8
    assert report.tables["i2i"]["train"] == 17
    assert report.tables["q2i"]["train"] == 12
    found = [(bad["file"], bad["record"], bad["field"], bad["problem"]) for bad in bad_records(tmp_path / "output")]
    # Rows that are bad in themselves come first within a batch, then those whose items are unknown.
    assert sorted(found) == [
        ("pairs.csv", "row 25", "target", "there is no item 'none'"),
        ("pairs.csv", "row 26", "query", "there is no item 'none'"),
        ("pairs.csv", "row 27", "query", "the cell is empty"),
        ("pairs.csv", "row 28", "target", "the cell is empty"),
        ("pairs.csv", "row 29", "score", "the score 'high' is not a finite number"),
        ("pairs.csv", "row 30", "split", "the cell is empty"),
        ("queries.csv", "row 6", "targets", "there is no item 'none'"),
        ("queries.csv", "row 7", "query", "the cell is empty"),
    ]


def test_the_first_bad_record_is_said_and_where_all_are(source, tmp_path, capsys):
    change_items(source, lambda rows: rows[11].update(frames=["none.png"]))
    for _ in range(2):  # the second time it is already done
        ingest(config(tables={}), source, tmp_path / "output")
        said = " ".join(capsys.readouterr().out.split())
        assert "1 bad records Bad records are left out whole; the first: " in said
        assert "items.csv, record 'id11 (row 12)', field 'frames': there is no file 'none.png'" in said
        assert f"All are in {tmp_path / 'output/bad_records.jsonl'}" in said


def test_limit_of_bad_records(source, tmp_path):
    def change(rows):
        for row in rows[11:18]:
            row["frames"] = ["none.png"]

    change_items(source, change)
    output = tmp_path / "output"
    with pytest.raises(SailError) as error:
        ingest(config(tables={}, items_per_shard=5, max_bad_records=4), source, output)
    message = str(error.value)
    assert message.startswith("5 bad records are more than config.ingest.max_bad_records=4. The first:")
    assert "items.csv, record 'id11 (row 12)', field 'frames': there is no file 'none.png'" in message
    assert str(output / "bad_records.jsonl") in message
    assert len(bad_records(output)) == 5
    # The first three shards are kept, the fourth is not there, and the way on is the one the message tells.
    finished = {path.name: path.stat().st_mtime_ns for path in (output / "items").glob("*.array_record")}
    assert sorted(finished) == [f"items-0000{i}.array_record" for i in range(3)]
    report = ingest(config(tables={}, items_per_shard=5, max_bad_records=7), source, output)
    assert (report.items, report.bad_records) == (COUNT - 7, 7)
    assert len(bad_records(output)) == 7
    for name, mtime in finished.items():
        assert (output / "items" / name).stat().st_mtime_ns == mtime


def test_missing_columns(source, tmp_path):
    cases = [
        (config(items={"text": {"title": "titel"}}), "items.csv has no column 'titel'", "'title'", "source.text.title"),
        (config(items={"id": "itemid"}), "items.csv has no column 'itemid'", "'item_id'", "source.id"),
        (
            config(tables={"i2i": TABLES["i2i"] | {"score": "scores"}}),
            "pairs.csv has no column 'scores'",
            "'score'",
            "tables.i2i.score",
        ),
    ]
    for settings, missing, nearest, setting in cases:
        with pytest.raises(SailError) as error:
            ingest(settings, source, tmp_path / "output")
        assert missing in str(error.value)
        assert f"Did you mean {nearest}? Change config.ingest.{setting}." in str(error.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(items={"path": ""}), "Set config.ingest.source.path"),
        (config(items={"tfds": "x[train]"}), "Set config.ingest.source.path"),
        (config(items={"path": "itemz.csv"}), "Did you mean items.csv"),
        (config(items={"path": "images"}), "There is no table"),
        (config(items={"path": "images/0.png"}), "write it as one of .csv, .tsv, .jsonl, .parquet"),
        (config(items={"text": {"name": "title"}}), "has no field 'name'; use title, asr"),
        (config(tables={"../x": {}}), "names a file"),
        (config(tables={"t": {"target_id": "target"}}), "tables.t.path names no table"),
        (config(tables={"t": {"path": "pairs.csv", "target_id": "target"}}), "neither query_id nor query_text"),
        (config(tables={"t": {"path": "pairs.csv", "query_id": "query"}}), "tables.t.target_id is empty"),
        (config(items={"path": "broken.parquet"}), "broken.parquet is damaged"),
        (config(items={"path": "latin.csv"}), "latin.csv is not UTF-8"),
    ],
)
def test_wrong_settings_and_files(source, tmp_path, settings, message):
    (source / "broken.parquet").write_bytes(b"PAR1 nonsense")
    (source / "latin.csv").write_bytes((source / "items.csv").read_bytes() + "é".encode("latin-1"))
    with pytest.raises(SailError, match=message):
        ingest(settings, source, tmp_path / "output")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_empty_data_set(source, tmp_path, kind):
    rows = [item_row(0)]
    path = source / f"empty.{kind}"
    if kind == "csv":
        path.write_text(",".join(rows[0]) + "\n")
    elif kind == "jsonl":
        path.write_text("")
    else:
        pq.write_table(pa.Table.from_pylist(rows).slice(0, 0), path)
    with pytest.raises(SailError, match="empty.* (holds no usable item|has no column)"):
        ingest(config(items={"path": path.name}), source, tmp_path / "output")


def test_table_without_a_usable_row(source, tmp_path):
    write_csv(source / "pairs.csv", [{"query": "x", "target": "y", "score": 1, "split": "train"}])
    with pytest.raises(SailError, match="tables.i2i: pairs.csv holds no usable row"):
        ingest(config(), source, tmp_path / "output")
    assert not (tmp_path / "output/tables/i2i.parquet").exists()
    assert not (tmp_path / "output/ingest.json").exists()


# ------------------------------------------------------------------------------------------------------- resumption


def test_finished_output_is_recognised(source, tmp_path, monkeypatch, capsys):
    first = ingest(config(), source, tmp_path / "output")
    before = files_of(tmp_path / "output")
    monkeypatch.setattr(records.RecordReader, "__call__", lambda *_: pytest.fail("an item was read again"))
    assert ingest(config(max_bad_records=7), source, tmp_path / "output") == first
    assert "already done" in capsys.readouterr().out
    assert files_of(tmp_path / "output") == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_or_source_want_another_folder(source, tmp_path, finished):
    output = tmp_path / "output"
    ingest(config(), source, output)
    if not finished:
        identity = json.loads((output / "ingest.json").read_text())["identity"]
        (output / "journal.jsonl").write_text(json.dumps(identity) + "\n")
        (output / "ingest.json").unlink()
    cases = [(config(holdout=0.1), "config.ingest.holdout"), (config(seed=1), "config.seed")]
    for settings, changed in cases:
        with pytest.raises(SailError, match=f"changed: {changed}. Ingest into another --workdir"):
            ingest(settings, source, output)
    with (source / "items.csv").open("a") as file:
        file.write("new,New item,,,,,,\n")
    with pytest.raises(SailError, match="changed: source items.csv"):
        ingest(config(), source, output)
    assert ingest(config(), source, output, resume=False).items == COUNT + 1


def test_foreign_folder_is_left_alone(source, tmp_path):
    (tmp_path / "items").mkdir()
    with pytest.raises(SailError, match="was not written by ingest"):
        ingest(config(), source, tmp_path)


SLOW_INGESTION = """
    import json, sys, time
    from sail_jax.config import build
    from sail_jax.data.ingest import records
    from sail_jax.data.ingest.ingest import ingest

    check = records.check_image
    def slow(data, **options):
        time.sleep(0.05)
        check(data, **options)
    records.check_image = slow
    ingest(build(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3])
"""


def run_until(condition, *arguments):
    """Runs an ingestion in a process of its own and kills it as soon as a condition holds."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SLOW_INGESTION), *map(str, arguments)])
    while not condition():
        assert process.poll() is None, "the ingestion ended before it was killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_ingestion_goes_on(source, tmp_path):
    settings = config(items_per_shard=3, tokenizer_vocab=300)
    change_items(source, lambda rows: rows[1].update(frames=["none.png"]))
    whole, output = tmp_path / "whole", tmp_path / "output"
    expected = ingest(settings, source, whole)

    def third_shard_is_finished():
        journal = output / "journal.jsonl"
        return journal.exists() and journal.read_bytes().count(b"\n") >= 4

    run_until(third_shard_is_finished, json.dumps(dataclasses.asdict(settings)), source, output)
    assert not (output / "ingest.json").exists()
    for name, content in files_of(output).items():
        if name.startswith("items/") and not name.endswith(".partial"):
            assert content == files_of(whole)[name]
    finished = len(list((output / "items").glob("*.array_record")))
    assert 3 <= finished < 9
    # What a finished shard took in is not read again: here it is gone.
    for i in range(1, 9):
        (source / f"images/{i}.png").unlink()
        (source / f"audio/{i}.wav").unlink()
    # The last line of the journal may be cut off.
    with (output / "journal.jsonl").open("a") as file:
        file.write('{"stage": "shard 99", "resu')
    assert ingest(settings, source, output) == expected
    remains = {name: content for name, content in files_of(output).items() if not name.endswith(".partial")}
    assert remains == files_of(whole)
    assert not list(output.rglob("*.partial"))


@pytest.mark.parametrize("stage", ["shard 2", "index", "table i2i", "table self"])
def test_interruption_after_each_stage(source, tmp_path, monkeypatch, stage):
    """The stage has written its files but is not noted as finished."""
    whole, output = tmp_path / "whole", tmp_path / "output"
    expected = ingest(config(items_per_shard=5), source, whole)
    finish = Journal.finish

    def killed(self, name, result):
        if name == stage:
            raise KeyboardInterrupt
        return finish(self, name, result)

    monkeypatch.setattr(Journal, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(config(items_per_shard=5), source, output)
    monkeypatch.undo()
    if not stage.startswith("shard"):
        shutil.rmtree(source / "audio")
    assert ingest(config(items_per_shard=5), source, output) == expected
    assert files_of(output) == files_of(whole)


@pytest.mark.parametrize("stage", ["shard 2", "index", "table i2i"])
def test_a_journal_of_an_older_version_goes_on(source, tmp_path, monkeypatch, stage):
    """It counts modalities alone: no ID embeddings, and of duplicates without a name for what is counted."""
    change_items(source, lambda rows: rows[3].update(item_id=rows[1]["item_id"]))
    expected = ingest(config(items_per_shard=5), source, tmp_path / "whole")
    finish, output = Journal.finish, tmp_path / "output"

    def older(self, name, result):
        if name == stage:
            raise KeyboardInterrupt
        if name == "index":
            return finish(self, name, result["modalities"])
        return finish(self, name, {key: value for key, value in result.items() if key != "embeddings"})

    monkeypatch.setattr(Journal, "finish", older)
    with pytest.raises(KeyboardInterrupt):
        ingest(config(items_per_shard=5), source, output)
    monkeypatch.undo()
    found = ingest(config(items_per_shard=5), source, output)
    assert found.modalities == expected.modalities and found.tables == expected.tables
