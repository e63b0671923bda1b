"""Small folders in the layouts of public data sets, with files that real encoders wrote, ingested by their configs."""

import csv
import io
import json

import av
import numpy as np
import polars as pl
import pytest
import soundfile
import tiny
from PIL import Image

from sail_jax import config as config_lib
from sail_jax.config import build
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.logs.columns import whole_seconds
from sail_jax.logs.flags import parse_condition


def jpeg(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (grey,) * 3).save(path, "JPEG")


def mp4(path, grey, seconds=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=44_100, layout="mono")
        for _ in range(10 * seconds):
            pixels = np.full((32, 32, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def grey(frame):
    return np.asarray(Image.open(io.BytesIO(frame))).mean()


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), *rows])


def load(name, *overrides):
    return config_lib.load(tiny.REPO / "configs" / f"{name}.py", ["ingest.tokenizer_vocab=300", *overrides])


def store_of(output):
    return {item.item_id: item for item in ItemStore.open(output / "items")}


@pytest.fixture
def microlens(tmp_path):
    """Item 1 has cover, sound, video; 2 only a cover; 3 only a video; 4 only a title; 5 a video and its own sound."""
    titles = [(n, f'Title, with "quotes" {n}') for n in range(1, 6)]
    write_csv(tmp_path / "MicroLens-100k_title_en.csv", None, titles)
    write_csv(
        tmp_path / "MicroLens-100k_pairs.csv",
        ("user", "item", "timestamp"),
        [(36121, 1, 1583378629552), (36121, 2, 1583378629999), (7, 3, 1583378630000)],
    )
    for item in (1, 2):
        jpeg(tmp_path / f"MicroLens-100k_covers/{item}.jpg", 40 * item)
    for item in (1, 3, 5):
        mp4(tmp_path / f"MicroLens-100k_videos/{item}.mp4", 200)
    (tmp_path / "MicroLens-100k_audio").mkdir()
    for item in (1, 5):
        soundfile.write(tmp_path / f"MicroLens-100k_audio/{item}.wav", np.full(800, item, np.int16), 8000)
    return tmp_path


def test_microlens(microlens, tmp_path):
    report = ingest(load("microlens"), microlens, tmp_path / "data")
    assert (report.items, report.bad_records) == (5, 0)
    assert report.modalities == {"T": 1, "VT": 1, "VTA": 3}
    items = store_of(tmp_path / "data")
    assert items["1"].text == {"title": 'Title, with "quotes" 1'}
    # Files by id: a cover stands for the frames of the video, a sound file for its sound.
    assert items["1"].frames == ((microlens / "MicroLens-100k_covers/1.jpg").read_bytes(),)
    for name in ("1", "5"):
        assert items[name].audio == (microlens / f"MicroLens-100k_audio/{name}.wav").read_bytes()
    for name in ("3", "5"):
        assert [round(grey(frame), -1) for frame in items[name].frames] == [200, 200]
    assert soundfile.info(io.BytesIO(items["3"].audio)).samplerate == 44_100
    assert not items["2"].audio and not items["4"].frames


def test_movielens(tmp_path):
    write_csv(
        tmp_path / "movies.csv",
        ("movieId", "title", "genres"),
        [(1, "Toy Story (1995)", "Adventure|Animation"), (11, "American President, The (1995)", "Comedy")],
    )
    write_csv(
        tmp_path / "ratings.csv",
        ("userId", "movieId", "rating", "timestamp"),
        [(1, 1, 4.0, 964982703), (1, 11, 3.5, 964982704)],
    )
    jpeg(tmp_path / "posters/11.jpg", 90)
    report = ingest(load("movielens"), tmp_path, tmp_path / "data")
    assert report.modalities == {"T": 1, "VT": 1} and not report.bad_records
    items = store_of(tmp_path / "data")
    assert items["1"].labels == ("Adventure", "Animation") and items["1"].text["tags"] == "Adventure, Animation"
    assert items["11"].text["title"] == "American President, The (1995)"
    assert items["11"].frames == ((tmp_path / "posters/11.jpg").read_bytes(),) and not items["1"].frames


@pytest.mark.parametrize("name", ["microlens", "movielens"])
def test_interactions_are_read_by_the_settings_of_the_config(name, microlens):
    """The columns of the settings are there; flags and unit give positives and seconds."""
    config = load(name)
    events = config.logs.events
    if name == "microlens":
        rows = pl.read_csv(microlens / events.path, infer_schema=False)
        assert events.flags == ()
    else:
        rows = pl.DataFrame(
            {"userId": ["1", "1"], "movieId": ["1", "11"], "rating": ["4.0", "3.5"], "timestamp": ["964982703"] * 2}
        )
        (flag,) = [parse_condition(flag, "s", rows.columns) for flag in events.flags]
        assert rows.select(flag.expression(rows.schema[flag.column])).to_series().to_list() == [True, False]
    assert {events.user, events.item, events.time} <= set(rows.columns)
    seconds = rows.select(whole_seconds(pl.col(events.time).cast(pl.Int64), config.logs.time_unit)).to_series()
    assert seconds.to_list() == ([1583378629, 1583378629, 1583378630] if name == "microlens" else [964982703] * 2)


# ---------------------------------------------------------------------------------------------- files by pattern


def settings(**source):
    return build({"ingest": {"source": {"path": "items.tsv", "text": {"title": "title"}} | source}})


def write_items(folder, ids):
    (folder / "items.tsv").write_text("item_id\ttitle\n" + "".join(f"{name}\tA, b {name}\n" for name in ids))


def test_tab_separated_tables_and_ids_with_separators(tmp_path):
    ids = ["a|b", "sub/c", "d {item_id}", "e"]
    write_items(tmp_path, ids)
    for name in ids[:3]:
        jpeg(tmp_path / "covers" / f"{name}.jpg", 50)
    ingest(settings(frames_pattern="covers/{item_id}.jpg"), tmp_path, tmp_path / "data")
    items = store_of(tmp_path / "data")
    assert {name: len(item.frames) for name, item in items.items()} == dict(zip(ids, (1, 1, 1, 0), strict=True))
    assert items["e"].text["title"] == "A, b e"


def test_a_pattern_reads_nothing_outside_of_the_source_folder(tmp_path):
    jpeg(tmp_path / "secret.jpg", 10)
    source = tmp_path / "source"
    (source / "covers").mkdir(parents=True)
    write_items(source, ["../../secret", "fine"])
    report = ingest(settings(frames_pattern="covers/{item_id}.jpg"), source, tmp_path / "data")
    assert (report.items, report.bad_records) == (1, 1)
    (bad,) = map(json.loads, (tmp_path / "data/bad_records.jsonl").read_text().splitlines())
    assert bad["field"] == "item_id" and ".." in bad["remedy"]


def test_a_broken_file_is_a_bad_record_that_names_the_file(tmp_path):
    write_items(tmp_path, ["a", "b"])
    (tmp_path / "a.wav").write_bytes(b"RIFF....WAVEcorrupt")
    report = ingest(settings(audio_pattern="{item_id}.wav"), tmp_path, tmp_path / "data")
    assert (report.items, report.bad_records) == (1, 1)
    (bad,) = map(json.loads, (tmp_path / "data/bad_records.jsonl").read_text().splitlines())
    assert (bad["field"], bad["record"]) == ("a.wav", "a (row 1)")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"frames_pattern": "covers/{id}.jpg"}, "one file for all items"),
        ({"frames_pattern": "{item_id}.jpg", "frames": "title"}, "both set"),
        ({"path": "items.jsonl", "header": ("item_id", "title")}, "has its own column names"),
        ({"header": ("item_id", "name")}, "name.*Change config.ingest.source.text.title"),
    ],
)
def test_wrong_settings(tmp_path, source, message):
    write_items(tmp_path, ["a"])
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "t"}\n')
    with pytest.raises(SailError, match=message):
        ingest(settings(**source), tmp_path, tmp_path / "data")


def test_a_table_without_a_line_of_names_keeps_its_first_row(tmp_path):
    (tmp_path / "items.tsv").write_text("1\tone\n2\ttwo\textra\n3\tthree\n")
    report = ingest(settings(header=("item_id", "title")), tmp_path, tmp_path / "data")
    assert (report.items, report.bad_records) == (2, 1)
    assert {name: item.text["title"] for name, item in store_of(tmp_path / "data").items()} == {
        "1": "one",
        "3": "three",
    }
