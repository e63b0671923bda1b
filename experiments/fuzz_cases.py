"""The cases of the fuzzer: what is damaged or made up, how, and how it is read.

`prepare` makes sound originals once; a function of `KINDS` takes a damaged copy of one of them, or makes something up,
and reads it as the command or the library would. It may succeed, or raise a `SailError`.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import faiss
import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import soundfile
from jax.sharding import Mesh
from PIL import Image

from experiments import kills
from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config.schema import meanings
from sail_jax.data.hard_negative_table import NegativesTable, keys_path, query_key, write_negatives
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.media.sound import decode_audio
from sail_jax.data.media.video import video_audio, video_frames
from sail_jax.data.sequence_tables import SequenceTable, write_sequences
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.data.thumbnail import webp_thumbnail
from sail_jax.embedding.item_source import open_source
from sail_jax.errors import BadRecordError, SailError
from sail_jax.logs.log_files import readable_rows
from sail_jax.logs.reader import check_times, count_rows, cut_time, scan_events
from sail_jax.logs.vector_files import read_vectors
from sail_jax.models.model import init_params
from sail_jax.runs.checkpoints import Checkpoints, restore_params
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.search.faiss_index import FaissIndex, IndexSettings, build_index
from sail_jax.search.nearest import ExactSearch
from sail_jax.semantic_ids.codebooks import SemanticIds, fit
from sail_jax.semantic_ids.table import SemanticIdTable, write_table
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet, part_path, write_info, write_part

ROWS, DIMS = 300, 16
LONG = "n" * 300  # longer than the name of a file may be
Rng = np.random.Generator

# ------------------------------------------------------------------------------------------------------- the originals


def prepare(folder: Path) -> None:
    """Makes sound originals of all kinds of files."""
    for path, data in _media().items():
        (folder / "media" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "media" / path).write_bytes(data)
    _prepare_tables(folder / "tables")
    info = EmbeddingInfo("runs/x", "0123", DIMS, "float32", "VTA", ("title",), "")
    z = np.random.default_rng(0).normal(size=(ROWS, DIMS)).astype(np.float32)
    for dtype in ("float32", "bfloat16", "int8", "binary"):
        path = folder / "embeddings" / dtype
        path.mkdir(parents=True)
        for number, rows in enumerate(np.array_split(np.arange(ROWS), 2)):
            write_part(part_path(path, number), [f"i{row}" for row in rows], z[rows], dtype)
        write_info(path, EmbeddingInfo(**vars(info) | {"dtype": dtype}))
    embeddings = EmbeddingSet(folder / "embeddings" / "float32")
    for kind in ("flat", "hnsw", "ivfpq"):
        more = {"nlist": 4} if kind == "ivfpq" else {}
        build_index(embeddings, folder / "indexes" / kind / "items.faiss", IndexSettings(kind, **more))
    codebooks = fit(embeddings.load()[1], (4, 4), embeddings.info)
    codebooks.save(folder / "semantic_ids" / "codebooks", {})
    write_table(codebooks, embeddings, folder / "semantic_ids" / "table.parquet", anchors=0)
    config = kills.get_config()
    run = folder / "run"
    run.mkdir()
    config = config_lib.build(config)
    config_lib.save(config, run / "config.json")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    checkpoints = Checkpoints(RunDirectory(run))
    checkpoints.save(1, {"model": init_params(config.model, 0)}, {})
    checkpoints.close()


def _media() -> dict[str, bytes]:
    """Returns pictures, sounds and videos, by path: KIND/FORMAT."""
    rng, files = np.random.default_rng(0), {}
    picture = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
    for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm", "avif", "jpeg2000"):
        with contextlib.suppress(KeyError, OSError):  # a Pillow without this format
            picture.save(out := io.BytesIO(), name)
            files[f"pictures/{name}"] = out.getvalue()
    wave = (np.sin(np.arange(4000) / 5) * 9000).astype(np.int16)
    for name in ("wav", "flac", "ogg", "mp3", "aiff", "caf"):
        soundfile.write(out := io.BytesIO(), wave, 8000, format=name)
        files[f"sounds/{name}"] = out.getvalue()
    for name, codec in (("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mjpeg"), ("mov", "mjpeg"), ("webm", "vp8")):
        with contextlib.suppress(av.error.FFmpegError, ValueError):  # an FFmpeg without this codec
            files[f"videos/{name}"] = _video(name, codec, wave)
    return files


def _video(name: str, codec: str, wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=name) as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height = 48, 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        sound = container.add_stream("libvorbis" if name == "webm" else "aac", rate=8000)
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 40 * number, np.uint8))
            container.mux(stream.encode(frame))
        frame = av.AudioFrame.from_ndarray(wave[None], layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(), *sound.encode(frame), *sound.encode()])
    return out.getvalue()


def _prepare_tables(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(12)]
    items = {"id": ids, "title": [f"title, {row}" for row in ids], "image": ["a.png"] * 12, "tags": ["x|y"] * 12}
    pairs = {"query": ["a query"] * 12, "item": ids, "score": [1.0] * 12}
    events = {"user": ["u1", "u2"] * 6, "item": ids, "time": [1_700_000_000 + row for row in range(12)]}
    events |= {"like": [1, 0] * 6}
    for name, columns in (("items", items), ("pairs", pairs), ("events", events)):
        table = pa.table(columns)
        pq.write_table(table, folder / f"{name}.parquet")
        pa.csv.write_csv(table, folder / f"{name}.csv")
        pa.csv.write_csv(table, folder / f"{name}.tsv", pa.csv.WriteOptions(delimiter="\t"))
        lines = (json.dumps(row) for row in table.to_pylist())
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=48).astype(np.float32)), 4)
    pq.write_table(pa.table({"item_id": ids, "vector": vectors}), folder / "vectors.parquet")
    write_pairs(folder / "written_pairs.parquet", ((Pair(None, "a query", item), "train") for item in ids))
    rows = {"user_id": ids, "item_ids": [ids] * 12, "target_id": ids, "seen_ids": [ids] * 12, "split": ["train"] * 12}
    write_sequences(folder / "written_sequences.parquet", [pa.table(rows)])
    queries = sorted(ids, key=lambda item: query_key(item, None))
    write_negatives(folder / "written_negatives.parquet", [(item, None, ids[:3], [0.5] * 3) for item in queries], {})


# ----------------------------------------------------------------------------------------------------------- the damage


def damaged(rng: Rng, data: bytes) -> bytes:
    """Returns some bytes, damaged once or a few times: cut off, flipped, overwritten, swapped for something else."""
    for _ in range(rng.integers(1, 4)):
        data = _damaged_once(rng, data)
    return data


def _damaged_once(rng: Rng, data: bytes) -> bytes:
    out = bytearray(data)
    at = int(rng.integers(0, len(out) + 1))
    length = int(rng.integers(1, 65))
    match rng.integers(0, 9):
        case 0:
            return bytes(out[:at])
        case 1 | 2:
            for place in rng.integers(0, max(len(out), 1), min(len(out), int(rng.integers(1, 9)))):
                out[place] ^= 1 << int(rng.integers(0, 8))
        case 3:
            out[at : at + length] = rng.bytes(length)
        case 4:
            out[at : at + length] = bytes([int(rng.choice([0, 255, 127]))]) * length
        case 5:
            out[at:at] = rng.bytes(length)
        case 6:
            del out[at : at + length]
        case 7:
            out[at:at] = out[max(at - length, 0) : at]
        case _:
            whole = [
                b"",
                b"\0" * 100,
                rng.bytes(100),
                b"PAR1",
                b"{}",
                b"[]",
                b"null",
                b"\x89PNG\r\n\x1a\n",
                bytes(out[at:]),
            ]
            return whole[rng.integers(0, len(whole))] if rng.random() < 0.3 else bytes(out)
    return bytes(out)


# Cells that have been trouble somewhere.
CELLS = (
    *("", " ", '"', "'", ",", "\n", "\t", "\0", "\ud800", "é" * 500, LONG, f"{LONG}/{LONG}", "x/" * 3000, "../a.png"),
    *(
        "/etc/passwd",
        "a.png",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1",
        "0",
        "1" * 400,
        "1.0",
        "007",
        "null",
        "None",
        "true",
    ),
    *("2024-01-31", "01/02/2024", "2024-01-31T12:00:00Z", "9999-12-31", "292277026596-12-04", "{}", "[]", "x|y|"),
)


def hostile_table(rng: Rng, table: pa.Table) -> pa.Table:
    """Returns a table in which a column or two are missing, or of types and values that tables seldom have."""
    for name in rng.choice(table.column_names, rng.integers(1, 3)):
        if name in table.column_names and rng.random() < 0.1:
            table = table.drop_columns([str(name)])
        elif name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, str(name), _hostile_column(rng, len(table)))
    return table.append_column("more", _hostile_column(rng, len(table))) if rng.random() < 0.1 else table


def _hostile_column(rng: Rng, rows: int) -> pa.Array:
    cells = [CELLS[place] for place in rng.integers(0, len(CELLS), rows)]
    texts = [cell.encode("utf-8", "replace").decode() for cell in cells]
    numbers = rng.choice([0, 1, -1, 2**31, 2**62, -(2**63)], rows).tolist()
    floats = rng.choice([0.0, 1.5, np.nan, np.inf, -np.inf, 1e300, 1_700_000_000.0], rows).tolist()
    with_null = [None if rng.random() < 0.3 else text for text in texts]
    columns: list[Callable[[], pa.Array]] = [
        lambda: pa.array(texts),
        lambda: pa.array(with_null),
        lambda: pa.array([f"i{row}" for row in range(rows)]),
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(texts).dictionary_encode(),
        lambda: pa.array([rng.bytes(8) for _ in texts]),
        lambda: pa.array(numbers),
        lambda: pa.array(floats),
        lambda: pa.array(floats, pa.float32()),
        lambda: pa.array(floats).cast(pa.float16()),
        lambda: pa.array([True, None] * rows)[:rows],
        lambda: pa.nulls(rows),
        lambda: pa.array(numbers, pa.timestamp("us")),
        lambda: pa.array(numbers, pa.timestamp("ns", "UTC")),
        lambda: pa.array([int(number) % 2**31 for number in numbers], pa.date32()),
        lambda: pa.array(numbers, pa.duration("ms")),
        lambda: pa.array([1] * rows, pa.decimal128(30, 5)),
        lambda: pa.array([int(number) % 86_400 for number in numbers], pa.time32("s")),
        lambda: pa.array([[text] for text in texts]),
        lambda: pa.array([floats[: int(length)] for length in rng.integers(0, 5, rows)]),
        lambda: pa.array([floats[:4]] * rows, pa.list_(pa.float32(), 4)),
        lambda: pa.array([[0.5] * DIMS] * (rows - 1) + [None], pa.list_(pa.float32(), DIMS)),
        lambda: pa.array([[0.5] * (DIMS - 1) + [floats[0]]] * rows, pa.list_(pa.float32(), DIMS)),
        lambda: pa.array([{"bytes": b"x", "path": text} for text in texts]),
        lambda: pa.array([[("a", text)] for text in texts], pa.map_(pa.string(), pa.string())),
    ]
    with contextlib.suppress(pa.ArrowException):
        return columns[rng.integers(0, len(columns))]()
    return pa.array(texts)


def _hostile_file(rng: Rng, original: Path, path: Path) -> None:
    """Writes a table to a path: the original damaged as bytes, or cell by cell, or another with its columns."""
    suffix, how = original.suffix, rng.integers(0, 3)
    if how == 0:
        path.write_bytes(damaged(rng, original.read_bytes()))
    elif suffix == ".parquet":
        pq.write_table(hostile_table(rng, pq.read_table(original)), path)
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in original.read_text().splitlines()]
        for row in rows:
            if rng.random() < 0.3 and row:
                row[str(rng.choice(list(row)))] = _hostile_value(rng)
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        separator = "\t" if suffix == ".tsv" else ","
        lines = [line.split(separator) for line in original.read_text().splitlines()]
        for cells in lines[int(rng.integers(0, 2)) :]:
            if rng.random() < 0.3:
                cells[rng.integers(0, len(cells))] = CELLS[rng.integers(0, len(CELLS))]
        path.write_bytes("\n".join(map(separator.join, lines)).encode("utf-8", "surrogatepass"))


def _hostile_value(rng: Rng) -> object:
    values = (
        None,
        True,
        10**30,
        -1,
        1e308,
        float("nan"),
        float("inf"),
        [],
        {},
        [[1, 2], ["x"]],
        {"bytes": "x"},
        "\ud800",
    )
    return values[rng.integers(0, len(values))] if rng.random() < 0.5 else CELLS[rng.integers(0, len(CELLS))]


def _copied(rng: Rng, original: Path, folder: Path) -> Path:
    """Copies a folder, and damages, removes, empties or duplicates one of its files; returns the copy."""
    copy = folder / "copy"
    shutil.copytree(original, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    file = files[rng.integers(0, len(files))]
    match rng.integers(0, 8):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(files[rng.integers(0, len(files))].read_bytes())
        case 2 if file.suffix == ".json":
            file.write_text(json.dumps(_changed(rng, json.loads(file.read_text()))))
        case 3 if file.suffix == ".parquet":
            pq.write_table(hostile_table(rng, pq.read_table(file)), file)
        case _:
            file.write_bytes(damaged(rng, file.read_bytes()))
    return copy


def _changed(rng: Rng, value: object) -> object:
    """Returns a JSON value in which one entry is another value, or missing."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = str(rng.choice(list(value)))
        if rng.random() < 0.2:
            return {name: entry for name, entry in value.items() if name != key}
        return value | {key: _changed(rng, value[key])}
    return _hostile_value(rng)


def _chosen(rng: Rng, folder: Path, pattern: str = "*") -> Path:
    paths = sorted(folder.glob(pattern))
    return paths[rng.integers(0, len(paths))]


# ------------------------------------------------------------------------------------------------------------ the kinds


def picture(rng: Rng, originals: Path, scratch: Path) -> None:
    """Decodes a damaged picture as training and pages do."""
    data = damaged(rng, _chosen(rng, originals / "media" / "pictures").read_bytes())
    webp_thumbnail(data, 32)
    decode_image(data, 32)


def sound(rng: Rng, originals: Path, scratch: Path) -> None:
    """Decodes a damaged sound; or a picture or a video as one."""
    kind = "sounds" if rng.random() < 0.9 else "*"
    decode_audio(damaged(rng, _chosen(rng, originals / "media", f"{kind}/*").read_bytes()), 16_000)


def video(rng: Rng, originals: Path, scratch: Path) -> None:
    """Takes frames and sound out of a damaged video; or of a sound or a picture as one."""
    kind = "videos" if rng.random() < 0.9 else "*"
    data = damaged(rng, _chosen(rng, originals / "media", f"{kind}/*").read_bytes())
    try:
        video_frames(data, 2)
    finally:
        video_audio(data)


def items(rng: Rng, originals: Path, scratch: Path) -> None:
    """Ingests damaged tables of items, pairs and vectors, and reads the items as `embed --source` does."""
    source = scratch / "source"
    source.mkdir()
    (source / "a.png").write_bytes((originals / "media" / "pictures" / "png").read_bytes())
    named = {}
    for name in ("items", "pairs", "vectors"):
        original = _chosen(rng, originals / "tables", f"{name}.*")
        named[name] = original.name
        if rng.random() < 0.5:
            _hostile_file(rng, original, source / original.name)
        else:
            shutil.copy(original, source / original.name)
    config = config_lib.default_config()
    config.ingest.source.update(path=named["items"], id="id", frames="image", text={"title": "title", "tags": "tags"})
    config.ingest.tables = {
        "pairs": {"path": named["pairs"], "query_text": "query", "target_id": "item", "score": "score"}
    }
    config.ingest.vectors = {"x": named["vectors"]}
    config.ingest.update(tokenizer_vocab=0, max_bad_records=int(rng.integers(0, 2)) * 100)
    config = config_lib.build(config)
    with contextlib.suppress(SailError):
        for entry in open_source(source / named["items"], config).entries(0):
            with contextlib.suppress(BadRecordError):
                entry.load()
    ingest(config, source, scratch / "data")
    for item in ItemStore.open(scratch / "data" / "items"):
        assert item.item_id


def log(rng: Rng, originals: Path, scratch: Path) -> None:
    """Reads a damaged log of events, and a table of a recommender's vectors."""
    original = _chosen(rng, originals / "tables", "events.*")
    _hostile_file(rng, original, scratch / original.name)
    _hostile_file(rng, originals / "tables" / "vectors.parquet", scratch / "vectors.parquet")
    config = config_lib.default_config()
    columns = {"path": original.name, "user": "user", "item": "item", "time": "time", "flags": ("like",)}
    config.logs.events.update(columns, watch_share="")
    config.logs.catalogue.path = config.logs.searches.path = config.logs.live.path = config.logs.hashtags.path = ""
    config = config_lib.build(config)
    with contextlib.suppress(SailError):
        for _ in read_vectors(scratch / "vectors.parquet"):
            pass
    count_rows(config, scratch, "events")
    check_times(config, scratch, ("events",))
    cut_time(config, scratch)
    with readable_rows(scratch):  # as those who build tables of it do
        scan_events(config, scratch).collect(engine="streaming")


def table(rng: Rng, originals: Path, scratch: Path) -> None:
    """Reads a damaged table of pairs, sequences or hard negatives that our own commands wrote."""
    original = _chosen(rng, originals / "tables", "written_*.parquet")
    path = scratch / original.name
    _hostile_file(rng, original, path)
    if "negatives" in original.name:
        keys = keys_path(original).read_bytes()
        keys_path(path).write_bytes(keys if rng.random() < 0.7 else damaged(rng, keys))
        negatives = NegativesTable(path)
        negatives.get("i0", None)
        for _ in negatives.iter_negatives():
            pass
        return
    opened = (PairTable if "pairs" in original.name else SequenceTable).open(path, str(rng.choice(["train", ""])))
    opened.digest()
    for number in range(min(len(opened), 3)):
        assert opened[number]
    for _ in opened.iter_batches():
        pass


def override(rng: Rng, originals: Path, scratch: Path) -> None:
    """Loads an experiment with a strange value of a setting, or a strange name of one."""
    values = (
        *("1e400", "-1e400", "nan", str(10**30), "9" * 5000, "-1", "0", "1.5", "None", "True", "()", "[]", "{}"),
        *("x" * 1_000_000, "(" * 1000, "[" * 200 + "]" * 200, "-" * 100_000 + "1", "{[]: 1}", "{1: {2: 3}}", "'"),
        *("(1, 'x')", "{'a': {'b': ()}}", "b'x'", "...", "1j", "\ud800", LONG, "gs://x/y", "(10**30,)", f"({10**30},)"),
        f"{10**400}",
    )
    key = str(rng.choice([key.removeprefix("config.") for key, *_ in meanings(config_lib.Config)]))
    if rng.random() < 0.2:
        key = damaged(rng, key.encode()).decode("utf-8", "replace")
    key = key.replace("NAME", "copair" if rng.random() < 0.8 else LONG)
    value = values[rng.integers(0, len(values))]
    words = [f"{key}={value}" if rng.random() < 0.95 else key]
    if rng.random() < 0.2:
        words.insert(int(rng.integers(0, 2)), f"{key.rpartition('.')[0]}={values[rng.integers(0, len(values))]}")
    config_lib.load("quickstart", words)


def saved_config(rng: Rng, originals: Path, scratch: Path) -> None:
    """Loads the config of a run that was damaged, or changed by hand."""
    data = (originals / "run" / "config.json").read_bytes()
    text = json.dumps(_changed(rng, json.loads(data))).encode()
    (scratch / "config.json").write_bytes(text if rng.random() < 0.7 else damaged(rng, data))
    RunDirectory(scratch).load_config()


def embeddings(rng: Rng, originals: Path, scratch: Path) -> None:
    """Searches a folder of embeddings with a damaged, foreign or missing file."""
    opened = EmbeddingSet(_copied(rng, _chosen(rng, originals / "embeddings"), scratch))
    opened.sample(5, 0)
    search = ExactSearch(opened, block=128)
    rows, scores = search.nearest(np.ones((1, search.dims), np.float32), 3)
    assert np.isfinite(scores[rows >= 0]).all()


def faiss_file(rng: Rng, originals: Path, scratch: Path) -> None:
    """Searches an index with a damaged, foreign or missing file."""
    folder = _copied(rng, _chosen(rng, originals / "indexes"), scratch)
    index = FaissIndex(folder / "items.faiss")
    index.nearest(rng.normal(size=(2, index.dims)).astype(np.float32), 5)
    index.vectors(np.array([0, len(index) - 1]))
    index.position("i1")


def semantic_ids(rng: Rng, originals: Path, scratch: Path) -> None:
    """Assigns and looks up semantic IDs with a damaged, foreign or missing file."""
    folder = _copied(rng, originals / "semantic_ids", scratch)
    codebooks = SemanticIds.load(folder / "codebooks")
    codebooks.assign(rng.normal(size=(3, DIMS)).astype(np.float32))
    codebooks.decode(np.zeros((1, 2), np.int32))
    SemanticIdTable(folder / "table.parquet").find(str(rng.choice(["0", "3-3", "9", "1" * 30, "0-0-0"])))


def checkpoint(rng: Rng, originals: Path, scratch: Path) -> None:
    """Restores a run with a damaged, foreign or missing file."""
    run = RunDirectory(_copied(rng, originals / "run", scratch))
    config = run.load_config()
    read_training_log(run)
    checkpoints = Checkpoints(run, saves=False)
    try:
        restore_params(
            checkpoints, config, Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
        )
    finally:
        checkpoints.close()


def command(rng: Rng, originals: Path, scratch: Path) -> None:
    """Runs a command whose paths are too long, missing, of another kind or odd, among those that are right."""
    known = ("embeddings/float32", "indexes/flat/items.faiss", "tables/items.csv", "semantic_ids/codebooks")
    right = [str(originals / path) for path in (*known, "semantic_ids/table.parquet", "tables", "run")]
    odd = (LONG, f"{LONG}/{LONG}", "x/" * 3000, "", ".", "gs://x/y", "é" * 200, "a\nb")

    def path() -> str:
        chosen = odd[rng.integers(0, len(odd))] if rng.random() < 0.6 else right[rng.integers(0, len(right))]
        return chosen if chosen.startswith("/") or not chosen else str(scratch / chosen)

    # Within the scratch folder: a command run by root would replace a device.
    written = str(scratch / str(rng.choice([LONG, f"{LONG}/{LONG}", "a", ".", "é" * 200, "a\nb"])))
    recommender = ["--config", "recommender", "--source", path()]
    commands = (
        ["ingest", "--config", "quickstart", "--source", path(), "--workdir", str(scratch / LONG)],
        ["ingest", "--config", path(), "--source", path(), "--workdir", str(scratch / "data")],
        [
            "index",
            "--embeddings",
            str(originals / "embeddings/float32"),
            "--output",
            written,
        ],
        ["index", "--embeddings", path(), "--output", str(scratch / "a.faiss")],
        ["semantic-ids", "fit", "--embeddings", path(), "--output", str(scratch / LONG), "--levels", "4,4"],
        [
            "semantic-ids",
            "assign",
            "--codebooks",
            path(),
            "--embeddings",
            path(),
            "--output",
            str(scratch / "t" / LONG),
        ],
        ["semantic-ids", "lookup", "--table", path(), "--id", str(rng.choice(["1", "x", "9" * 5000]))],
        ["pairs", *recommender, "--output", str(scratch / LONG)],
        ["sequences", *recommender, "--output", str(scratch / "tables")],
        ["report", "--workdir", path()],
        ["search", "--workdir", path(), "--embeddings", path(), "--text", "x"],
        ["evaluate", "--workdir", path()],
        ["inspect", "--checkpoint", path()],
        ["describe", "--config", path()],
    )
    words = commands[rng.integers(0, len(commands))]
    status = main([word.replace(str(scratch) + "/" + str(scratch), str(scratch)) for word in words])
    if status:
        raise SailError(f"status {status}")


KINDS = {
    "picture": (picture, 5),
    "sound": (sound, 4),
    "video": (video, 3),
    "items": (items, 3),
    "log": (log, 4),
    "table": (table, 6),
    "override": (override, 6),
    "saved config": (saved_config, 3),
    "embeddings": (embeddings, 5),
    "faiss": (faiss_file, 5),
    "semantic IDs": (semantic_ids, 3),
    "checkpoint": (checkpoint, 1),
    "command": (command, 2),
}
# Of each stretch of so many cases, how many are of which kind.
CYCLE = tuple(kind for kind, (_, count) in KINDS.items() for _ in range(count))


def run_case(seed: int, number: int, originals: Path, scratch: Path) -> None:
    """Runs a case, by its number alone.

    Raises:
        SailError: the input was refused, as it should be. Any other exception is a fault.
    """
    rng = np.random.default_rng([seed, number])
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(scratch)
    try:
        KINDS[CYCLE[number % len(CYCLE)]][0](rng, originals, scratch)
    finally:
        os.chdir(before)


faiss.omp_set_num_threads(1)
