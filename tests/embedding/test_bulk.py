"""Bulk embedding equals `encode` for all sources, parts and numbers of processes, and after kills."""

import dataclasses
import io
import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import make_video, sine, sound_file
from PIL import Image
from pyarrow import csv

import training_runs as runs
from sail_jax.cli import main
from sail_jax.config.data import ItemSourceConfig
from sail_jax.data.instructions import instructions_of
from sail_jax.data.pipeline import make_extractor
from sail_jax.embedding import embedder as embedder_lib
from sail_jax.embedding.bulk import EmbedOptions, embed
from sail_jax.embedding.embedder import Embedder
from sail_jax.embedding.item_source import open_source
from sail_jax.errors import BadRecordError, SailError
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.vectors.embedding_set import EmbeddingSet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The items of the world, embedded by the verb in one go."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with runs.on_devices(1):
        assert verb(run, output) == 0
    return output


def verb(run, output, *more):
    return main(command(run, output, *more))


def command(run, output, *more):
    options = ["--rows-per-part", "6", "--modalities", "T"]
    return ["embed", "--workdir", str(run), "--output", str(output), *options, *map(str, more)]


def assert_same_folders(left, right):
    """All files bit for bit, the marker and the list of bad records included."""
    names = {path.name for path in left.iterdir()}
    assert names == {path.name for path in right.iterdir()}
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


# ------------------------------------------------------------------------------------------------------------ the store


def test_the_store_is_the_default(whole, embedder, store, run):
    found = EmbeddingSet(whole)
    ids, z = found.load()
    shown = [item for item in map(store.__getitem__, range(len(store))) if any(item.text.values())]
    assert ids == [item.item_id for item in shown] and len(list(whole.glob("part-*"))) == 27
    np.testing.assert_allclose(z, embedder.encode(shown, modalities="T"), atol=2e-5)
    assert found.info.model == str(run) and found.info.fingerprint == fingerprint(embedder.params)
    assert (whole / "bad_records.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("dtype", "least"), [("float32", 1 - 1e-6), ("bfloat16", 0.9999), ("int8", 0.999), ("binary", 0.5)]
)
def test_dims_dtype_and_view(embedder, store, world, tmp_path, dtype, least):
    view = {"modalities": "T", "fields": ("title",), "instruction": "Find it."}
    options = EmbedOptions(dims=16, dtype=dtype, rows_per_part=64, **view)
    report = embed(embedder, open_source(world, embedder.config), tmp_path / "out", options, model="m")
    shown = [item for item in map(store.__getitem__, range(len(store))) if item.text.get("title")]
    assert (report.vectors, report.vectors + report.nothing_shown) == (len(shown), 160)
    assert (report.parts, report.missing, report.written) == (3, 0, 3)
    found = EmbeddingSet(tmp_path / "out")
    assert (found.info.dims, found.info.dtype, found.info.fields) == (16, dtype, ("title",))
    ids, z = found.load()
    assert ids == [item.item_id for item in shown]
    expected = embedder.encode(shown, dims=16, **view)
    assert np.sum(z * expected, axis=1).min() > least


def test_a_killed_run_goes_on_without_gaps_or_duplicates(run, whole, tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "sail_jax", *command(run, output)],
        env=runs.environment(len(jax.local_devices())),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    runs.kill_when(process, (output / "part-00002.parquet").exists)
    done = {path: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}
    assert 3 <= len(done) < 27 and not (output / "embeddings.json").exists()
    with pytest.raises(SailError, match="no complete embeddings"):
        EmbeddingSet(output)
    (output / "part-00026.parquet.partial").write_bytes(b"cut off")
    assert verb(run, output) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())  # what was there is not written again
    assert_same_folders(output, whole)


def test_finished_output_is_not_changed(run, whole, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert verb(run, whole) == 0
    assert "already complete" in capsys.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in whole.iterdir()}


# ------------------------------------------------------------------------------------------------------- many processes


@pytest.mark.parametrize("order", [(0, 1, 2), pytest.param((2, 0, 1), marks=pytest.mark.slow)])
def test_processes_share_the_parts(run, whole, tmp_path, capsys, order):
    output = tmp_path / "out"
    for number, process in enumerate(order):
        assert verb(run, output, "--process", process, "--processes", 3) == 0
        assert (output / "embeddings.json").exists() == (number == 2)
        assert ("to be written by other processes" in capsys.readouterr().out) == (number < 2)
        there = {int(path.stem[5:]) for path in output.glob("part-*.parquet")}
        assert there == {part for part in range(27) if part % 3 in order[: number + 1]}
    assert_same_folders(output, whole)


def test_distributed_processes(run, whole, tmp_path):
    """Their numbers come from the environment, here that of Open MPI; each uses its own devices."""
    output, port = tmp_path / "out", free_port()
    environment = runs.environment(4) | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "OMPI_MCA_orte_hnp_uri": f"1.0;tcp://127.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "sail_jax", *command(run, output, "--distributed")],
            env=environment | {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        runs.finish(process)
    (ids, z), (expected_ids, expected) = EmbeddingSet(output).load(), EmbeddingSet(whole).load()
    assert ids == expected_ids
    np.testing.assert_allclose(z, expected, atol=2e-5)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------------------------- other sources


@pytest.mark.parametrize("named", ["items.jsonl", ""])
def test_a_table_is_read_as_ingest_reads_it(run, world, whole, tmp_path, named):
    source = world.parent / "raw" / named  # the export folder stands for the table that the config names
    assert verb(run, tmp_path / "out", "--source", source) == 0
    for (ids, z), (expected_ids, expected) in zip(
        EmbeddingSet(tmp_path / "out").batches(), EmbeddingSet(whole).batches(), strict=True
    ):
        assert ids == expected_ids
        np.testing.assert_array_equal(z, expected)


def test_rows_of_a_csv_are_counted_not_its_lines(run, embedder, tmp_path):
    rows = ["item_id,title", 'a,"one\ntwo\nthree"', "", "b,glass", "c", "d,bread", ""]
    (tmp_path / "items.csv").write_text("\n".join(rows))
    columns = [f"--config.ingest.source.{name}=" for name in ("frames", "audio")]
    text = "--config.ingest.source.text={'title': 'title'}"
    assert verb(run, tmp_path / "out", "--source", tmp_path / "items.csv", *columns, text, "--rows-per-part", 2) == 0
    ids, z = EmbeddingSet(tmp_path / "out").load()
    assert ids == ["a", "b", "d"] and len(list((tmp_path / "out").glob("part-*"))) == 2
    titles = [{"title": "one\ntwo\nthree"}, {"title": "glass"}, {"title": "bread"}]
    np.testing.assert_allclose(z, embedder.encode(titles), atol=1e-5)
    (bad,) = map(json.loads, (tmp_path / "out" / "bad_records.jsonl").read_text().splitlines())
    assert bad["record"] == "row 3" and "1 cells" in bad["problem"]


def test_a_table_without_a_header_line_takes_that_of_the_settings(run, embedder, tmp_path):
    (tmp_path / "items.tsv").write_text("a\tglass\nb\tbread\n")
    columns = [f"--config.ingest.source.{name}=" for name in ("frames", "audio")]
    columns += ["--config.ingest.source.text={'title': 'title'}", "--config.ingest.source.header=('item_id', 'title')"]
    assert verb(run, tmp_path / "out", "--source", tmp_path / "items.tsv", *columns) == 0
    ids, z = EmbeddingSet(tmp_path / "out").load()
    assert ids == ["a", "b"]
    np.testing.assert_allclose(z, embedder.encode([{"title": "glass"}, {"title": "bread"}]), atol=1e-5)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_of_rows_with_one_id_the_first_is_embedded(run, embedder, tmp_path, suffix, monkeypatch):
    titles = {"item_id": ["a", "b", "", "a", "c", "", "a"], "title": ["one", "two", "x", "three", "four", "y", "five"]}
    table = pa.table(titles)
    (csv.write_csv if suffix == "csv" else pq.write_table)(table, tmp_path / f"items.{suffix}")
    monkeypatch.setattr("sail_jax.embedding.item_source.item_key", lambda text: len(text))  # keys that collide
    columns = [f"--config.ingest.source.{name}=" for name in ("frames", "audio")]
    text = "--config.ingest.source.text={'title': 'title'}"
    source = ("--source", tmp_path / f"items.{suffix}", *columns, text, "--config.data.max_bad_records=4")
    assert verb(run, tmp_path / "out", *source, "--rows-per-part", 3) == 0
    ids, z = EmbeddingSet(tmp_path / "out").load()
    assert ids == ["a", "b", "c"]
    np.testing.assert_allclose(z, embedder.encode([{"title": title} for title in ("one", "two", "four")]), atol=1e-5)
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_records.jsonl").read_text().splitlines()]
    repeated = [line for line in bad if "an earlier row has the same id" in line["problem"]]
    assert len(bad) == 4 and [(line["record"], line["field"]) for line in repeated] == [("a", "item_id")] * 2


def test_media_of_a_table_are_decoded_once(run, store, tmp_path, monkeypatch):
    item = next(item for item in map(store.__getitem__, range(len(store))) if item.audio and item.frames)
    row = {"item_id": "a", "title": "glass", "frames": [item.frames[0]], "audio": item.audio}
    broken = [{"frames": [b"no picture"]}, {"audio": b""}, {"audio": b"no sound"}]
    rows = [row] + [row | change | {"item_id": f"broken-{i}"} for i, change in enumerate(broken)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    decoded = {"image": 0, "sound": 0}

    def counted(kind, function):
        def count(*arguments, **options):
            decoded[kind] += 1
            return function(*arguments, **options)

        return count

    for module in ("features", "ingest.records"):
        for name, kind in (
            ("decode_image", "image"),
            ("decode_audio", "sound"),
            ("check_image", "image"),
            ("check_audio", "sound"),
        ):
            if (function := getattr(sys.modules[f"sail_jax.data.{module}"], name, None)) is not None:
                monkeypatch.setattr(f"sail_jax.data.{module}.{name}", counted(kind, function))
    columns = ("--config.ingest.source.frames=frames", "--config.ingest.source.audio=audio", "--modalities", "VTA")
    text = "--config.ingest.source.text={'title': 'title'}"
    assert verb(run, tmp_path / "out", "--source", tmp_path / "items.parquet", *columns, text) == 0
    assert EmbeddingSet(tmp_path / "out").load()[0] == ["a", "broken-1"]  # an empty cell is no sound
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_records.jsonl").read_text().splitlines()]
    assert [(line["record"], line["field"]) for line in bad] == [("broken-0", "frames[0]"), ("broken-2", "audio")]
    assert decoded == {"image": 4, "sound": 2}


def png(seed):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(255, size=(9, 9, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path, store):
    """Files of all kinds, two of them broken, and files that are not embedded."""
    sounding = next(item for item in map(store.__getitem__, range(len(store))) if item.audio)
    files = {
        "b.png": png(0),
        "a/z.JPG": png(1),
        "a/note.txt": "blue glass".encode("utf-8-sig"),
        "a/y.flac": sounding.audio,
        "a.md": b"bread",
        "broken.png": b"no picture",
        "broken.txt": b"\xff\xfe\xff",
        "skipped.zip": b"PK",
        ".hidden/x.txt": b"hidden",
    }
    for name, data in files.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "files"


def test_a_folder_of_files(run, embedder, folder, tmp_path, capsys):
    assert verb(run, tmp_path / "out", "--source", folder, "--modalities", "VTA", "--rows-per-part", 3) == 0
    ids, z = EmbeddingSet(tmp_path / "out").load()
    assert ids == ["a/note.txt", "a/y.flac", "a/z.JPG", "a.md", "b.png"]
    items = ["blue glass", {"audio": folder / "a/y.flac"}, {"image": folder / "a/z.JPG"}, "bread", {"image": png(0)}]
    document = instructions_of(embedder.config).document
    np.testing.assert_allclose(z, embedder.encode(items, instruction=document), atol=1e-5)
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_records.jsonl").read_text().splitlines()]
    assert [(line["record"], line["field"]) for line in bad] == [("broken.png", "frames[0]"), ("broken.txt", "")]
    assert all(line["file"] == str(folder) and line["problem"] and line["remedy"] for line in bad)
    said = capsys.readouterr().out
    assert "5 vectors in 3 parts" in said and "2 bad records" in said and str(tmp_path / "out") in said
    assert '2 files passed over, of kinds that are not read: hidden 1, .zip 1; such as ".hidden"' in said


@pytest.mark.parametrize("steps", [1, 99])
def test_a_run_that_still_trains_is_told(run, folder, tmp_path, capsys, steps):
    """The run is at step 1."""
    assert verb(run, tmp_path / "out", "--source", folder, f"--config.train.steps={steps}") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("step 1 of 99: training has not ended" in said) == ("has not ended" in said) == (steps > 1)


def test_files_of_a_folder_are_read_or_counted(embedder, tmp_path):
    picture, sound, video = (
        png(0),
        sound_file(sine(0.5, 16_000), 16_000),
        make_video(tmp_path / "video.mp4").read_bytes(),
    )
    found, others = tmp_path / "found", ["a.heic", "b.HEIC", "notes.pdf", "photo", "nested/items.csv", ".thumbs"]
    read = {"p.jfif": picture, "q.JPE": picture, "s.AIFF": sound, "u.caf": sound, "v.3gp": video, "w.MPG": video}
    for name, data in (read | dict.fromkeys(others, b"x")).items():
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_bytes(data)
    source = open_source(found, embedder.config)
    items = [entry.load() for entry in source.entries(0)]
    assert [item.item_id for item in items] == sorted(read) and [item.modalities for item in items] == [*"VVAAVV"]
    frames = embedder.config.ingest.frames_per_video
    assert items[0].frames == (picture,) and items[2].audio == sound and len(items[4].frames) == frames
    counts = ".heic 2, hidden 1, .csv 1, .pdf 1, without suffix 1"
    assert source.passed_over == f'6 files passed over, of kinds that are not read: {counts}; such as ".thumbs"'
    for name in read:
        (found / name).unlink()
    with pytest.raises(SailError, match=r"no file of a known kind .*6 files passed over"):
        open_source(found, embedder.config)


def test_paths_of_a_table_stay_inside_its_folder(embedder, tmp_path):
    (tmp_path / "outside.png").write_bytes(png(0))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "items.csv").write_text("item_id,frames\na,../outside.png\n")
    columns = ItemSourceConfig(id="item_id", frames="frames", text={}, audio="")
    ingest = dataclasses.replace(embedder.config.ingest, source=columns)
    for allowed in (False, True):
        config = dataclasses.replace(embedder.config, ingest=dataclasses.replace(ingest, outside_paths=allowed))
        source = open_source(tmp_path / "inside" / "items.csv", config)
        assert source.assumed == "items.csv: cells are separated by commas."
        (entry,) = source.entries(0)
        assert ("config.ingest.outside_paths" in source.identity) == allowed
        if allowed:
            assert entry.load().frames == (png(0),)
        else:
            with pytest.raises(BadRecordError, match="leads out of the source folder"):
                entry.load()


def test_links_pipes_and_undecodable_names_are_bad_records(run, folder, tmp_path):
    (folder / "a" / "round").symlink_to(folder)  # a folder within itself
    (folder / "elsewhere").symlink_to(folder / "a")
    (folder / "itself.txt").symlink_to("itself.txt")
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.txt")
    (folder / "two\nlines \U0001f600.txt").write_text("glass")
    (folder / os.fsdecode(b"\xff.txt")).write_text("glass")
    assert verb(run, tmp_path / "out", "--source", folder) == 0
    ids, _ = EmbeddingSet(tmp_path / "out").load()
    assert ids == ["a/note.txt", "a.md", "elsewhere/note.txt", "two\nlines \U0001f600.txt"]
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_records.jsonl").read_text().splitlines()]
    assert [line["record"] for line in bad] == ["broken.txt", "gone.png", "itself.txt", "pipe.txt", "\\xff.txt"]


def test_items_with_nothing_to_show_are_left_out_and_not_bad_records(run, folder, tmp_path, capsys):
    more = ("--config.data.max_bad_records=0", "--rows-per-part", 2)
    assert verb(run, tmp_path / "out", "--source", folder / "a", "--modalities", "V", *more) == 0
    assert EmbeddingSet(tmp_path / "out").load()[0] == ["z.JPG"]  # the first part is empty
    assert "2 items left out" in capsys.readouterr().out
    assert (tmp_path / "out" / "bad_records.jsonl").read_text() == ""


def test_too_many_bad_records_stop_it_and_a_higher_limit_resumes(run, folder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ("--source", folder, "--modalities", "VTA", "--rows-per-part", 3)
    assert verb(run, output, *arguments, "--config.data.max_bad_records=1") == 2
    said = capsys.readouterr().err
    assert "broken.png" in said and "broken.txt" in said and "config.data.max_bad_records=1" in said
    assert len((output / "bad_records.jsonl").read_text().splitlines()) == 2
    first = (output / "part-00000.parquet").stat().st_mtime_ns
    assert verb(run, output, *arguments, "--config.data.max_bad_records=2") == 0
    assert len(EmbeddingSet(output)) == 5 and (output / "part-00000.parquet").stat().st_mtime_ns == first


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--dims", "16"), "dims was 32, is 16"),
        (("--dtype", "int8"), "dtype was 'float32', is 'int8'"),
        (("--instruction", "x"), "instruction was"),
        (("--fields", "title"), "fields was"),
        (("--rows-per-part", "7"), "rows_per_part was 6, is 7"),
        (("--config.prompt.max_tokens=95",), "config.prompt.max_tokens was 96, is 95"),
        (("--source", "SOURCE"), "source was"),
    ],
)
def test_another_request_is_refused(run, whole, folder, capsys, more, message):
    more = [str(folder) if word == "SOURCE" else word for word in more]
    assert verb(run, whole, *more) == 2
    said = capsys.readouterr().err
    assert message in said and "another --output" in said


def test_another_model_and_a_changed_source_are_refused(embedder, folder, tmp_path):
    options, output = EmbedOptions(modalities="T", rows_per_part=2), tmp_path / "out"
    embed(embedder, open_source(folder, embedder.config), output, options, model="m")
    params = jax.tree.map(lambda leaf: leaf + 1, embedder.params)
    other = Embedder(embedder.config, params, make_extractor(embedder.config), embedder.mesh)
    with pytest.raises(SailError, match="model fingerprint was"):
        embed(other, open_source(folder, embedder.config), output, options, model="m")
    (folder / "a.md").write_text("longer")
    with pytest.raises(SailError, match="source was"):
        embed(embedder, open_source(folder, embedder.config), output, options, model="m")


def test_a_source_that_shrinks_meanwhile_is_noticed(embedder, folder, tmp_path):
    source = open_source(folder, embedder.config)
    shutil.rmtree(folder / "a")
    with pytest.raises(SailError, match="changed while it was read"):
        embed(embedder, source, tmp_path / "out", EmbedOptions(), model="m")
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": 33}, "1 to 32"),
        ({"dtype": "float8"}, "float8"),
        ({"dims": 12, "dtype": "binary"}, "multiple of 8"),
        ({"modalities": "X"}, "'X'"),
        ({"fields": ("titel",)}, "titel"),
        ({"rows_per_part": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"process": 2, "processes": 2}, "numbered from 0"),
    ],
)
def test_wrong_options_are_refused(embedder, folder, tmp_path, arguments, message):
    with pytest.raises(SailError, match=message):
        embed(embedder, open_source(folder, embedder.config), tmp_path / "out", EmbedOptions(**arguments), model="m")


def test_paths_that_are_no_source(embedder, folder, tmp_path):
    config = embedder.config
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "absent", "There is no"), (tmp_path / "empty", "no item store, no table")):
        with pytest.raises(SailError, match=message):
            open_source(path, config)
    (folder / "more.csv").write_text("item_id,title\na,glass\n")
    with pytest.raises(SailError, match="name the table itself"):
        open_source(folder, config)
    with pytest.raises(SailError, match="Change config.ingest.source"):
        open_source(folder / "more.csv", config)
    with pytest.raises(SailError, match="not written by embed"):
        embed(embedder, open_source(None, config), folder, EmbedOptions(), model="m")


# ------------------------------------------------------------------------------------------------------------ padding


def test_short_texts_do_not_pay_for_long_ones(embedder, tmp_path, monkeypatch):
    """Compares executed tokens with tokens of the texts, and with batches in the order of the files."""
    files = tmp_path / "files"
    files.mkdir()
    for i in range(128):
        (files / f"{i:03}.txt").write_text(" ".join(["word"] * (90 if i % 16 == 0 else 1)))
    shapes, used, forward = [], [], embedder_lib.forward

    def spy(model, params, batch, views):
        shapes.append(batch.tokens.shape)
        used.append(np.count_nonzero(np.asarray(batch.token_types).reshape(-1, batch.tokens.shape[-1]), axis=1))
        return forward(model, params, batch, views)

    monkeypatch.setattr(embedder_lib, "forward", spy)
    options = EmbedOptions(instruction="", rows_per_part=128)
    embed(embedder, open_source(files, embedder.config), tmp_path / "out", options, model="m")
    executed = sum(rows * length for rows, _, length in shapes)
    lengths = np.concatenate(used)
    assert len(lengths) == 128
    assert executed < 1.3 * lengths.sum()
    assert executed < 0.4 * 128 * lengths.max()  # in the order of the files, each batch of 16 holds a long text
