"""`init` makes sense of folders as they come, and its configs are read by ingestion."""

import csv
import io
import json
import random
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.data.ingest.ingest import ingest

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "pink", "grey")
THINGS = ("car", "house", "tree", "boat", "chair")
NAMES = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]


def picture(number):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 5 % 256, number * 11 % 256, 90)).save(stream, "PNG")
    return stream.getvalue()


def sound(number):
    stream = io.BytesIO()
    soundfile.write(
        stream, np.sin(np.arange(4000) * (0.05 + number / 100)).astype(np.float32) * 0.3, 8000, format="WAV"
    )
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_csv(path, rows, delimiter=","):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    write(path, stream.getvalue())


def write_jsonl(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def init(folder, capsys, *words):
    """Runs `init --yes`; returns the config, the lines of its file and what was printed."""
    output = folder.parent / "configs" / "mine.py"
    status = main(["init", str(folder), "--output", str(output), "--yes", *words])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert f"Next: python -m sail_jax fit {folder} --config {output}" in said.out
    text = output.read_text()
    assert len(text.splitlines()) <= 20 and 'preset("tiny")' in text
    return config_lib.load(output, ["ingest.tokenizer_vocab=0"]), text, said.out


def counts(config, folder):
    """What ingestion makes of it."""
    report = ingest(config, folder, folder.parent / "data")
    assert report.bad_records == 0
    return report


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "export"


def test_tables_of_items_pairs_and_queries(folder, capsys):
    ids = [f"i{number}" for number in range(40)]
    rows = [
        {
            "item_id": i,
            "title": name,
            "tags": "|".join(name.split()),
            "group": name.split()[1],
            "image": f"media/{i}.png",
        }
        for i, name in zip(ids, NAMES, strict=True)
    ]
    write_csv(folder / "items.csv", [row | {"sound": f"media/{row['item_id']}.wav"} for row in rows])
    for number, i in enumerate(ids):
        write(folder / "media" / f"{i}.png", picture(number))
        write(folder / "media" / f"{i}.wav", sound(number))
    pairs = [
        {"query_id": a, "target_id": b, "score": 0.5 + n / 100, "split": "train" if n < 30 else "test"}
        for n, (a, b) in enumerate(zip(ids, ids[1:], strict=False))
    ]
    write_csv(folder / "pairs.csv", pairs)
    found = {thing: [i for i, name in zip(ids, NAMES, strict=True) if thing in name] for thing in THINGS}
    queries = [{"query": t, "item_ids": "|".join(f), "split": "test"} for t, f in found.items()]
    more = [{"query": name.split()[1], "item_ids": i, "split": "train"} for i, name in zip(ids, NAMES, strict=True)]
    write_csv(folder / "queries.csv", queries + more)

    config, text, said = init(folder, capsys)
    source = config.ingest.source
    assert (source.id, source.frames, source.audio, source.labels) == ("item_id", "image", "sound", "group")
    assert source.text == {"title": "title"}, "tags hold the queries"
    assert config.ingest.tables["pairs"].query_id == "query_id" and config.ingest.tables["pairs"].score == "score"
    assert config.ingest.tables["queries"].query_text == "query"
    assert config.ingest.tables["queries"].target_id == "item_ids"
    assert config.data.datasets["queries"].patterns == ("T->O",)
    assert config.data.datasets["same"].patterns == ("V->T", "A->T")
    assert set(config.eval.tasks) == {"pairs", "queries", "text_to_image", "sound_to_text"}
    assert "give the answer away" in " ".join(said.split()).replace("│ ", "")
    assert "left out: tags" in text and "queries.csv: cells are separated by commas." in said
    report = counts(config, folder)
    assert report.modalities == {"VTA": 40} and set(report.tables) == {"pairs", "queries", "same"}


def test_a_plain_folder_of_pictures_named_after_what_they_show(folder, capsys):
    for number, name in enumerate(NAMES):
        write(folder / name.split()[2] / f"{name.replace(' ', '_')}-{number:03}.png", picture(number))
    config, _, said = init(folder, capsys)
    table = folder.parent / "configs" / "mine_items.jsonl"
    assert config.ingest.source.path == str(table) and f"{table} was written" in said
    assert config.ingest.source.text == {"title": "caption"} and config.ingest.source.labels == "label"
    first = json.loads(table.read_text().splitlines()[0])
    assert first == {
        "item_id": "boat/a_black_boat-018.png",
        "image": "boat/a_black_boat-018.png",
        "caption": "a black boat",
        "label": "boat",
    }
    assert counts(config, folder).modalities == {"VT": 40}
    assert not list(folder.glob("*.jsonl")), "the folder is left as it is"


def test_captions_in_text_files_of_the_same_stem_and_sounds_beside_them(folder, capsys):
    for number, name in enumerate(NAMES[:24]):
        write(folder / f"IMG_{number:04}.png", picture(number))
        write(folder / f"IMG_{number:04}.txt", name + "\nin two lines")
        write(folder / f"IMG_{number:04}.wav", sound(number))
    config, _, _ = init(folder, capsys)
    assert config.data.datasets["same"].patterns == ("V->T", "A->T") and config.data.batch_size < 24
    report = counts(config, folder)
    assert report.modalities == {"VTA": 24} and report.tables["same"]["test"] >= 3


def test_pictures_in_folders_of_classes(folder, capsys):
    for number in range(30):
        write(folder / ("cat" if number % 2 else "dog") / f"{number:05}.png", picture(number))
    config, _, said = init(folder, capsys)
    assert config.ingest.source.labels == "label" and config.ingest.source.text == {"tags": "label"}
    assert "label, and text" in " ".join(said.split()).replace("│ ", "")
    assert counts(config, folder).modalities == {"VT": 30}


def test_an_image_and_caption_table_as_open_clip_takes_it(folder, capsys):
    rows = [{"filepath": str(folder / "jpg" / f"{n}.png"), "title": name} for n, name in enumerate(NAMES)]
    write_csv(folder / "train.csv", rows, "\t")
    for number in range(40):
        write(folder / "jpg" / f"{number}.png", picture(number))
    config, _, _ = init(folder, capsys)
    assert config.ingest.source.path == "train.csv"
    assert (config.ingest.source.id, config.ingest.source.frames) == ("filepath", "filepath")
    assert counts(config, folder).modalities == {"VT": 40}


def test_several_captions_of_a_picture_need_ids(folder, capsys):
    rows = [{"image": f"{n % 20}.png", "caption": f"{name}, as seen"} for n, name in enumerate(NAMES)]
    write_csv(folder / "captions.csv", rows)
    for number in range(20):
        write(folder / "images" / f"{number}.png", picture(number))
    config, _, said = init(folder, capsys)
    assert "rows numbered" in said and "with paths of media" in said
    assert config.ingest.source.id == "item_id"
    assert counts(config, folder).items == 40


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_imagefolder_with_metadata_in_each_split(folder, name, capsys):
    for split, numbers in (("train", range(30)), ("test", range(30, 40))):
        rows = [{"file_name": f"{n}.png", "text": NAMES[n]} for n in numbers]
        (write_csv if name.endswith("csv") else write_jsonl)(folder / split / name, rows)
        for number in numbers:
            write(folder / split / f"{number}.png", picture(number))
    config, _, said = init(folder, capsys)
    assert config.ingest.source.frames == "file_name" and "test/metadata" in said
    assert counts(config, folder).modalities == {"VT": 40}


def test_an_audiofolder_with_metadata(folder, capsys):
    write_jsonl(
        folder / "metadata.jsonl", [{"file_name": f"{n}.wav", "transcript": name} for n, name in enumerate(NAMES)]
    )
    for number in range(40):
        write(folder / f"{number}.wav", sound(number))
    config, _, _ = init(folder, capsys)
    assert config.ingest.source.audio == "file_name" and config.ingest.source.text == {"asr": "transcript"}
    assert config.ingest.source.path == "metadata.jsonl"
    assert config.data.datasets["same"].patterns == ("A->T",) and set(config.eval.tasks) == {"sound_to_text"}
    assert counts(config, folder).modalities == {"TA": 40}


def test_webdataset_tars(folder, capsys):
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:05}.tar", "w") as archive:
            for number in range(20 * shard, 20 * shard + 20):
                facts = {"url": f"http://x/{number}", "lang": "en", "nested": {"a": 1}}
                files = {"png": picture(number), "txt": NAMES[number].encode(), "json": json.dumps(facts).encode()}
                for extension, data in files.items():
                    member = tarfile.TarInfo(f"{number:06}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    config, _, said = init(folder, capsys)
    assert config.ingest.source.path.endswith("mine_items.parquet") and "tar archives" in said
    assert config.ingest.source.frames == "image" and config.ingest.source.text == {"title": "caption"}
    assert counts(config, folder).modalities == {"VT": 40}


def test_a_data_set_that_datasets_saved_to_disk(folder, capsys):
    """The files that `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir()
    cells = [{"bytes": picture(n), "path": None} for n in range(40)]
    table = pa.table({"image": cells, "caption": NAMES, "label": [n % 5 for n in range(40)]})
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=16)
    features = {"label": {"names": list(THINGS), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    write(folder / "dataset_info.json", json.dumps({"features": features}))
    write(folder / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    config, _, said = init(folder, capsys)
    assert config.ingest.source.frames == "image" and config.ingest.source.labels == "label" and "car" in said
    assert counts(config, folder).modalities == {"VT": 40}


def test_shards_of_parquet_as_the_hub_has_them(folder, capsys):
    (folder / "data").mkdir(parents=True)
    for shard in range(2):
        numbers = range(20 * shard, 20 * shard + 20)
        cells = [{"bytes": picture(n), "path": f"{n}.png"} for n in numbers]
        table = pa.table({"image": cells, "caption": [NAMES[n] for n in numbers], "id": [f"h{n}" for n in numbers]})
        pq.write_table(table, folder / "data" / f"train-{shard:05}-of-00002.parquet")
    config, _, _ = init(folder, capsys)
    assert (config.ingest.source.path, config.ingest.source.id) == ("data", "id")
    assert counts(config, folder).modalities == {"VT": 40}


def test_texts_in_pairs_have_no_items_of_their_own(folder, capsys):
    rows = [
        {"question": f"what is {name}?", "answer": f"{name} is a thing of its own, number {n}"}
        for n, name in enumerate(NAMES)
    ]
    write_jsonl(folder / "faq.jsonl", rows)
    config, _, _ = init(folder, capsys)
    assert config.ingest.source.text == {"title": "question", "asr": "answer"}
    same = config.data.datasets["same"]
    assert (same.patterns, same.query_fields, same.target_fields) == (("T->T",), ("title",), ("asr",))
    assert counts(config, folder).items == 40


def write_recommender(folder):
    items = [
        {"movieId": n + 1, "title": f"{name} ({1990 + n})", "genres": "|".join(name.split()[1:])}
        for n, name in enumerate(NAMES)
    ]
    write_csv(folder / "movies.csv", items)
    draw = random.Random(0)
    ratings = [
        {
            "userId": user,
            "movieId": draw.randint(1, 40),
            "rating": draw.choice([0.5, 3, 4, 5]),
            "timestamp": 1_500_000_000 + n,
        }
        for n, user in enumerate(list(range(50)) * 20)
    ]
    write_csv(folder / "ratings.csv", ratings)


def test_a_recommender_with_a_log(folder, capsys):
    write_recommender(folder)
    config, _, _ = init(folder, capsys)
    events = config.logs.events
    assert (events.path, events.user, events.item, events.time) == ("ratings.csv", "userId", "movieId", "timestamp")
    assert events.flags == ("rating>=4",) and config.logs.time_unit == "s" and config.logs.searches.path == ""
    assert config.data.datasets["copair"].table == "tables/copair.parquet"
    assert config.ingest.source.id == "movieId" and config.ingest.source.text["title"] == "title"


def write_logs(folder):
    """Items, events, searches and vectors under short names."""
    write_csv(folder / "items.csv", [{"iid": f"p{n}", "title": name} for n, name in enumerate(NAMES)])
    draw, start = random.Random(0), 1_700_000_000_000
    rows = [{"uid": f"u{n % 50}", "iid": f"p{draw.randrange(40)}", "ts": start + n * 60_000} for n in range(1000)]
    done = ["page_view", "page_view", "like", "purchase"]
    write_csv(folder / "events.csv", [row | {"event": done[n % 4]} for n, row in enumerate(rows)])
    write_csv(folder / "searches.csv", [row | {"q": THINGS[n % 5]} for n, row in enumerate(rows[:100])])
    vectors = pa.table({"iid": [f"p{n}" for n in range(40)], "emb": [[0.25] * 8] * 40})
    pq.write_table(vectors, folder / "factors.parquet")


def test_logs_under_short_names(folder, capsys):
    """A `uid` that repeats is a user, views are no positives, and vectors need no names of ours."""
    write_logs(folder)
    config, _, said = init(folder, capsys)
    events, searches = config.logs.events, config.logs.searches
    assert (events.path, events.user, events.item, events.time) == ("events.csv", "uid", "iid", "ts")
    assert events.flags == ("event==like", "event==purchase") and config.logs.time_unit == "ms"
    assert (searches.path, searches.user, searches.query, searches.clicked) == ("searches.csv", "uid", "q", "")
    assert set(config.data.datasets) == {"copair", "searches"} and not config.ingest.tables
    assert "positive: like, purchase" in said and "[0.25, 0.25, 0.25, …]" in said
    assert counts(config, folder).embeddings == {"factors": 40}


def test_of_two_logs_of_a_kind_one_is_read_and_the_other_is_told(folder, capsys):
    write_logs(folder)
    (folder / "factors.parquet").unlink()
    more = [{"uid": f"u{n % 9}", "iid": f"p{n % 40}", "ts": 1_700_000_000 + n} for n in range(100)]
    write_csv(folder / "plays.csv", more)
    write_csv(folder / "searches.csv", [row | {"q": THINGS[n % 5]} for n, row in enumerate(more)])
    config, _, said = init(folder, capsys)
    assert config.logs.events.path == "events.csv" and config.logs.searches.path == ""
    assert "plays.csv is left out: events.csv is the log of events" in said
    assert "searches.csv is left out: its times count s, those of another log ms" in said


def test_a_uid_that_stands_once_is_an_id(folder, capsys):
    write_csv(folder / "items.csv", [{"uid": f"p{n}", "title": name, "text": name} for n, name in enumerate(NAMES)])
    config, _, _ = init(folder, capsys)
    assert config.ingest.source.id == "uid"


def test_ids_that_name_the_pictures(folder, capsys):
    write_csv(
        folder / "products.csv",
        [{"sku": f"p{n}", "name": name, "lang": "en", "price": n + 0.5} for n, name in enumerate(NAMES)],
    )
    for number in range(40):
        write(folder / "photos" / f"p{number}.png", picture(number))
    config, _, said = init(folder, capsys)
    assert config.ingest.source.frames_pattern == "photos/{item_id}.png" and config.ingest.source.id == "sku"
    assert "codes of languages" in said and "price" in said
    assert counts(config, folder).modalities == {"VT": 40}


def write_items(folder):
    write_csv(folder / "items.csv", [{"id": n, "title": name, "year": 1990 + n % 3} for n, name in enumerate(NAMES)])


def test_many_tables_of_pairs_fit_into_twenty_lines(folder, capsys):
    write_items(folder)
    for letter in "abcdef":
        write_csv(folder / f"pairs_{letter}.csv", [{"a_id": n, "b_id": n + 1} for n in range(30)])
    config, _, said = init(folder, capsys)
    assert (
        set(config.ingest.tables) == {"pairs_a", "pairs_b", "pairs_c", "pairs_d"} and "pairs_e.csv is left out" in said
    )
    assert config.ingest.source.labels == "", "a year is no label"
    assert config.eval.tasks["pairs_a"].split == "holdout" and config.data.batch_size < 64
    assert counts(config, folder).tables["pairs_a"]["holdout"] > 0


def test_splits_by_other_names(folder, capsys):
    write_items(folder)
    rows = [{"query": name, "id": n, "split": "Train" if n % 3 else "val"} for n, name in enumerate(NAMES)]
    write_csv(folder / "q.csv", rows)
    config, _, _ = init(folder, capsys)
    assert (config.data.datasets["q"].split, config.eval.tasks["q"].split) == ("Train", "val")


def test_tests_in_a_file_of_their_own(folder, capsys):
    write_items(folder)
    for name, numbers in (("pairs", range(30)), ("pairs_test", range(30, 39))):
        write_csv(folder / f"{name}.csv", [{"id": n, "similar_id": n + 1} for n in numbers])
    config, _, _ = init(folder, capsys)
    assert set(config.data.datasets) == {"pairs"}
    assert config.ingest.tables["pairs_test"].target_id == "similar_id"
    assert config.eval.tasks["pairs_test"].split == "train", "ingestion calls rows so where no column says it"


def test_vectors_of_a_recommender(folder, capsys):
    write_items(folder)
    write_csv(folder / "sim.csv", [{"id": n, "similar_id": n * 7 % 40, "similarity": n / 40} for n in range(40)])
    table = pa.table({"item_id": [str(n) for n in range(40)], "vector": [[n / 40, 1.0, 2.0, 3.0] for n in range(40)]})
    pq.write_table(table, folder / "cf.parquet")
    config, _, _ = init(folder, capsys)
    assert config.ingest.vectors == {"cf": "cf.parquet"} and config.ingest.tables["sim"].score == "similarity"
    assert counts(config, folder).items == 40


def test_texts_with_labels_in_two_files(folder, capsys):
    for name, numbers in (("train", range(30)), ("test", range(30, 40))):
        write_csv(
            folder / f"{name}.csv", [{"text": f"{NAMES[n]}, at length", "label": NAMES[n].split()[1]} for n in numbers]
        )
    config, _, _ = init(folder, capsys)
    assert config.ingest.source.text == {"asr": "text", "tags": "label"}
    assert config.data.datasets["same"].target_fields == ("tags",)
    assert counts(config, folder).items == 40


def test_ids_that_repeat(folder, capsys, monkeypatch):
    """As in tables with a row for each caption of a picture; a question about a column of such a table comes once."""
    kinds = ["toy car", "real house", "old tree"]
    rows = [{"item_id": n // 2, "caption": name, "sort": kinds[n % 3], "text": "x y"} for n, name in enumerate(NAMES)]
    write_csv(folder / "captions.csv", rows)
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "2")
    output = folder.parent / "mine.py"
    assert main(["init", str(folder), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert len(asked) == 1 and "rows numbered as row_id" in said
    assert "It does not follow later changes of captions.csv" in said
    config = config_lib.load(output, ["ingest.tokenizer_vocab=0"])
    assert (config.ingest.source.id, config.ingest.source.labels) == ("row_id", "sort")
    assert counts(config, folder).items == 40


def test_a_row_that_stands_there_twice_costs_no_ids(folder, capsys):
    rows = [{"sku": f"P{n}", "name": name, "category": name.split()[2]} for n, name in enumerate(NAMES)]
    write_csv(folder / "products.csv", [*rows, rows[3]])
    config, text, _ = init(folder, capsys)
    assert config.ingest.source.id == "sku" and "sku: 40 of the sample's 41 differ" in text
    report = ingest(config, folder, folder.parent / "data")
    assert report.items == 40 and report.bad_records == 1


def test_names_that_are_no_names_of_python(folder, capsys):
    column = 'a "title"\n\\ of\rit'
    write_csv(folder / "items.csv", [{"id": n, column: name} for n, name in enumerate(NAMES)])
    for name in ("class", "values", "same", "a/pairs", "b/pairs"):
        write_csv(folder / f"{name}.csv", [{"x_id": n, "y_id": n + 1, "a\nb": 0} for n in range(30)])
    config, text, _ = init(folder, capsys)
    assert config.ingest.source.text == {"title": column}
    assert set(config.ingest.tables) == {"pairs_1", "pairs_2", "table_class", "table_same"}
    assert all(line.strip().startswith(("config", "#", "return")) for line in text.splitlines()[6:])


def test_long_texts_odd_names_and_no_line_of_names(folder, capsys):
    rows = [{"id": n, "body": "word " * 400 + ".jpg", 'the "headline"': name} for n, name in enumerate(NAMES)]
    write_jsonl(folder / "x.jsonl", rows)
    config, _, _ = init(folder, capsys)
    assert config.ingest.source.text == {"title": 'the "headline"', "asr": "body"}
    (folder.parent / "configs" / "mine.py").unlink()
    (folder / "x.jsonl").unlink()
    write(folder / "x.csv", "".join(f"{n}.png,{name}\n" for n, name in enumerate(NAMES)))
    for number in range(40):
        write(folder / f"{number}.png", picture(number))
    assert "may have no line of names" in init(folder, capsys)[2]


# -------------------------------------------------------------------------------------------------- what is not certain


def ambiguous(folder):
    kinds = ["toy car", "real house", "old tree"]
    rows = [{"item_id": n, "title": name, "sort": kinds[n % 3], "about": f"{name} {n}"} for n, name in enumerate(NAMES)]
    write_csv(folder / "items.csv", rows)


def test_both_readings_of_an_ambiguous_column_are_shown_with_a_sample(folder, capsys):
    ambiguous(folder)
    _, text, said = init(folder, capsys)
    said = " ".join(said.replace("│", " ").split())
    assert "or label: 3 values for 40 rows" in said and "toy car, real house, old tree" in said
    assert "or sort is label" in text


def test_a_question_is_asked_where_it_must_be(folder, capsys, monkeypatch):
    ambiguous(folder)
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or ("7" if len(asked) == 1 else "2"))
    output = folder.parent / "mine.py"
    assert main(["init", str(folder), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert len(asked) == 2, "an answer that is none is asked again, and no other column is asked about"
    assert "items.csv: what is the column 'sort', with cells such as toy car, real house, old tree?" in said
    assert "3 values for 40 rows; a category, by which the search page filters" in said
    assert "; words that the model reads" in said
    assert config_lib.load(output).ingest.source.labels == "sort"


def test_nobody_to_ask(folder, capsys, monkeypatch):
    ambiguous(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["init", str(folder), "--output", str(folder.parent / "mine.py")]) == 2
    assert "--yes" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- what cannot be guessed


def fails(folder, capsys, *words):
    output = folder.parent / "mine.py"
    assert main(["init", str(folder), "--output", str(output), "--yes", *words]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.strip().splitlines()) == 1
    return said


def test_a_folder_nobody_can_make_sense_of(folder, capsys):
    write(folder / "model.bin", b"\0" * 9)
    write(folder / "notes.docx", b"\0" * 9)
    said = fails(folder, capsys)
    assert "No sense can be made" in said and "1 .bin, 1 .docx" in said
    assert "item_id,image,title" in said and not (folder.parent / "mine.py").exists()


def test_pictures_alone_teach_nothing(folder, capsys):
    for number in range(9):
        write(folder / f"IMG_{number:04}.png", picture(number))
    assert "9 image files. Of that pictures alone can be used" in fails(folder, capsys)
    assert [path.name for path in folder.parent.iterdir()] == ["export"], "nothing is left behind"


def test_a_spreadsheet_is_not_read_and_told(folder, capsys):
    for number in range(9):
        write(folder / f"IMG_{number:04}.png", picture(number))
    write(folder / "products.xlsx", b"PK")
    assert "spreadsheets (.xlsx) are not read: save them as CSV. Of that pictures alone" in fails(folder, capsys)
    for number, name in enumerate(NAMES):
        write(folder / f"{name}.png", picture(number))
    _, _, said = init(folder, capsys)
    assert "49 image files, 1 .xlsx; spreadsheets (.xlsx) are not read: save them as CSV." in said.replace("\n", " ")


def test_a_table_of_numbers(folder, capsys):
    write_csv(folder / "measured.csv", [{"x": n / 7, "y": n / 3} for n in range(9)])
    assert "holds 1 table." in fails(folder, capsys)


def test_files_that_a_table_names_and_that_are_not_there(folder, capsys):
    write_csv(folder / "items.csv", [{"image": f"{n}.jpg", "title": name} for n, name in enumerate(NAMES)])
    assert "names files, but only 0 of 40 are in the folder" in fails(folder, capsys)


def test_a_damaged_archive(folder, capsys):
    write(folder / "a.tar", b"no tar at all" * 100)
    assert "a.tar cannot be read" in fails(folder, capsys)


def test_no_folder_and_no_preset_and_a_config_that_is_there(folder, capsys, tmp_path):
    assert "is no folder" in fails(folder, capsys)
    ambiguous(folder)
    assert "Did you mean tiny" in fails(folder, capsys, "--preset", "tinny")
    (tmp_path / "mine.py").write_text("mine")
    assert "mine.py exists" in fails(folder, capsys)
    assert (tmp_path / "mine.py").read_text() == "mine"
