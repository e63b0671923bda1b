"""Makes the sound originals that the fuzzer damages: media, tables, embeddings, indexes, a run."""

import contextlib
import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from experiments import kills
from sail_jax import config as config_lib
from sail_jax.data.hard_negative_table import query_key, write_negatives
from sail_jax.data.sequence_tables import write_sequences
from sail_jax.data.tables import Pair, write_pairs
from sail_jax.models.model import init_params
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory
from sail_jax.search.faiss_index import IndexSettings, build_index
from sail_jax.semantic_ids.codebooks import fit
from sail_jax.semantic_ids.table import write_table
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet, part_path, write_info, write_part

ROWS, DIMS = 300, 16


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
