"""The cases of the fuzzer: what is damaged or made up, and how it is read.

A function of `KINDS` takes a damaged copy of one of the originals of `fuzz_originals.py`, or makes something up, and
reads it as the command or the library would. It may succeed, or raise a `SailError`.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import faiss
import jax
import numpy as np
from jax.sharding import Mesh

from experiments.fuzz_damage import (
    LONG,
    Rng,
    changed,
    chosen,
    copied,
    damaged,
    hostile_file,
)
from experiments.fuzz_originals import DIMS
from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config.schema import meanings
from sail_jax.data.hard_negative_table import NegativesTable, keys_path
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.ingest.join import join_vectors
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.media.sound import decode_audio
from sail_jax.data.media.video import video_audio, video_frames
from sail_jax.data.sequence_tables import SequenceTable
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable
from sail_jax.data.thumbnail import webp_thumbnail
from sail_jax.embedding.item_source import open_source
from sail_jax.errors import BadRecordError, SailError
from sail_jax.logs.log_files import readable_rows
from sail_jax.logs.reader import check_rows, check_times, count_rows, cut_time, scan_events
from sail_jax.logs.vector_files import read_vectors
from sail_jax.runs.checkpoints import Checkpoints, restore_params
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.search.faiss_index import FaissIndex
from sail_jax.search.nearest import ExactSearch
from sail_jax.semantic_ids.codebooks import SemanticIds
from sail_jax.semantic_ids.table import SemanticIdTable
from sail_jax.vectors.embedding_set import EmbeddingSet


def picture(rng: Rng, originals: Path, scratch: Path) -> None:
    """Decodes a damaged picture as training and pages do."""
    data = damaged(rng, chosen(rng, originals / "media" / "pictures").read_bytes())
    webp_thumbnail(data, 32)
    decode_image(data, 32)


def sound(rng: Rng, originals: Path, scratch: Path) -> None:
    """Decodes a damaged sound; or a picture or a video as one."""
    kind = "sounds" if rng.random() < 0.9 else "*"
    decode_audio(damaged(rng, chosen(rng, originals / "media", f"{kind}/*").read_bytes()), 16_000)


def video(rng: Rng, originals: Path, scratch: Path) -> None:
    """Takes frames and sound out of a damaged video; or of a sound or a picture as one."""
    kind = "videos" if rng.random() < 0.9 else "*"
    data = damaged(rng, chosen(rng, originals / "media", f"{kind}/*").read_bytes())
    try:
        video_frames(data, 2)
    finally:
        video_audio(data)


def items(rng: Rng, originals: Path, scratch: Path) -> None:
    """Ingests damaged tables of items, pairs and vectors, joins vectors, and reads items as `embed --source` does."""
    source = scratch / "source"
    source.mkdir()
    (source / "a.png").write_bytes((originals / "media" / "pictures" / "png").read_bytes())
    named = {}
    for name in ("items", "pairs", "vectors"):
        original = chosen(rng, originals / "tables", f"{name}.*")
        named[name] = original.name
        if rng.random() < 0.5:
            hostile_file(rng, original, source / original.name)
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
    store = scratch / "data" / "items"
    assert all(item.item_id for item in ItemStore.open(store))
    joined, _ = join_vectors(scratch / "data", "late", source / named["vectors"], max_bad_records=100)
    file = chosen(rng, joined.folder)
    file.write_bytes(damaged(rng, file.read_bytes()))
    assert all(item.item_id for item in ItemStore.open(store))


def log(rng: Rng, originals: Path, scratch: Path) -> None:
    """Reads a damaged log of events, and a table of a recommender's vectors."""
    original = chosen(rng, originals / "tables", "events.*")
    hostile_file(rng, original, scratch / original.name)
    hostile_file(rng, originals / "tables" / "vectors.parquet", scratch / "vectors.parquet")
    config = config_lib.default_config()
    columns = {"path": original.name, "user": "user", "item": "item", "time": "time", "flags": ("like",)}
    config.logs.events.update(columns, watch_share="")
    config.logs.catalogue.path = config.logs.searches.path = config.logs.live.path = config.logs.hashtags.path = ""
    config = config_lib.build(config)
    with contextlib.suppress(SailError):
        for _ in read_vectors(scratch / "vectors.parquet"):
            pass
    with contextlib.suppress(SailError):
        check_rows(config, scratch, ("events",))
    count_rows(config, scratch, "events")
    check_times(config, scratch, ("events",))
    cut_time(config, scratch)
    with readable_rows(scratch):  # as those who build tables of it do
        scan_events(config, scratch).collect(engine="streaming")


def table(rng: Rng, originals: Path, scratch: Path) -> None:
    """Reads a damaged table of pairs, sequences or hard negatives that our own commands wrote."""
    original = chosen(rng, originals / "tables", "written_*.parquet")
    path = scratch / original.name
    hostile_file(rng, original, path)
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
    text = json.dumps(changed(rng, json.loads(data))).encode()
    (scratch / "config.json").write_bytes(text if rng.random() < 0.7 else damaged(rng, data))
    RunDirectory(scratch).load_config()


def embeddings(rng: Rng, originals: Path, scratch: Path) -> None:
    """Searches a folder of embeddings with a damaged, foreign or missing file."""
    opened = EmbeddingSet(copied(rng, chosen(rng, originals / "embeddings"), scratch))
    opened.sample(5, 0)
    search = ExactSearch(opened, block=128)
    rows, scores = search.nearest(np.ones((1, search.dims), np.float32), 3)
    assert np.isfinite(scores[rows >= 0]).all()


def faiss_file(rng: Rng, originals: Path, scratch: Path) -> None:
    """Searches an index with a damaged, foreign or missing file."""
    folder = copied(rng, chosen(rng, originals / "indexes"), scratch)
    index = FaissIndex(folder / "items.faiss")
    index.nearest(rng.normal(size=(2, index.dims)).astype(np.float32), 5)
    index.vectors(np.array([0, len(index) - 1]))
    index.position("i1")


def semantic_ids(rng: Rng, originals: Path, scratch: Path) -> None:
    """Assigns and looks up semantic IDs with a damaged, foreign or missing file."""
    folder = copied(rng, originals / "semantic_ids", scratch)
    codebooks = SemanticIds.load(folder / "codebooks")
    codebooks.assign(rng.normal(size=(3, DIMS)).astype(np.float32))
    codebooks.decode(np.zeros((1, 2), np.int32))
    SemanticIdTable(folder / "table.parquet").find(str(rng.choice(["0", "3-3", "9", "1" * 30, "0-0-0"])))


def checkpoint(rng: Rng, originals: Path, scratch: Path) -> None:
    """Restores a run with a damaged, foreign or missing file."""
    run = RunDirectory(copied(rng, originals / "run", scratch))
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
        ["atlas", "--workdir", path(), "--embeddings", path(), "--output", f"{written}.parquet", "--no-serve"],
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
