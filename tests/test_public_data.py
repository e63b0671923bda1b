"""The commands of docs/public_data.md run as they stand there, from raw files to the figures of a model."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from test_docs import DOCS, commands
from test_public_layouts import jpeg, mp4, write_csv

from experiments import id_embeddings
from experiments.reproduce.__main__ import main as reproduce
from sail_jax.cli import main
from sail_jax.config.evaluation import BASELINES
from sail_jax.data.sequence_tables import SequenceTable
from sail_jax.data.tables import PairTable

ITEMS, USERS = 96, 120
# What makes the model and its training small; all else is as the commands and the configs say.
SMALL = [
    *("train.steps=2", "train.checkpoint_every=2", "optimizer.warmup_steps=1", "data.batch_size=4", "data.workers=0"),
    *("model.llm.layers=1", "model.vit.layers=1", "model.vit.image_size=28", "model.perceiver.layers=1"),
    *("model.audio.depths=(1,)", "model.audio.heads=(2,)"),
    "eval.batch_size=8",
]
GENRES = ("Comedy", "Drama", "Horror")


def visits():
    """(user, item, second): users of three tastes take new items minutes apart, later users later items."""
    rng = np.random.default_rng(0)
    for user in range(USERS):
        of_taste = range(1 + user % 3, ITEMS + 1, 3)
        first = user * (len(of_taste) - 10) // USERS
        for place, item in enumerate(rng.permutation(of_taste[first : first + 10])):
            yield user, int(item), 1_000_000_000 + 100_000 * user + 60 * place


def write_movielens(folder):
    films = [(n, f"Film {n}, The ({1950 + n})", f"{GENRES[n % 3]}|{GENRES[n % 2]}") for n in range(1, ITEMS + 1)]
    write_csv(folder / "movies.csv", ("movieId", "title", "genres"), films)
    ratings = [(user, item, (4.0, 4.5, 5.0, 2.5)[item % 4], second) for user, item, second in visits()]
    write_csv(folder / "ratings.csv", ("userId", "movieId", "rating", "timestamp"), ratings)
    jpeg(folder / "posters/11.jpg", 90)


def write_microlens(folder):
    name = "MicroLens-100k"
    write_csv(folder / f"{name}_title_en.csv", None, [(n, f'Video, "{n}"') for n in range(1, ITEMS + 1)])
    comments = [(user, item, second * 1000) for user, item, second in visits()]
    write_csv(folder / f"{name}_pairs.csv", ("user", "item", "timestamp"), comments)
    for item in range(1, ITEMS // 2):
        jpeg(folder / f"{name}_covers/{item}.jpg", 5 * item)
    mp4(folder / f"{name}_videos/{ITEMS}.mp4", 200)


def write_lastfm(folder):
    artists = [(n, f"Band {n}", "rock|slow" if n % 3 else "") for n in range(1, ITEMS + 1)]
    write_csv(folder / "items.csv", ("artist_id", "name", "tags"), artists)
    plays = [(user, item, 1 + second % 97, "train" if user % 5 else "test") for user, item, second in visits()]
    write_csv(folder / "plays.csv", ("user_id", "artist_id", "listens", "split"), plays)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("name", "write", "folder"),
    [
        ("movielens", write_movielens, "ml-32m"),
        ("microlens", write_microlens, "MicroLens-100k"),
        ("lastfm", write_lastfm, "exports/lastfm"),
    ],
)
def test_the_commands_lead_from_the_raw_files_to_a_model(name, write, folder, tmp_path, monkeypatch, capsys):
    written = [shlex.split(command.text) for command in commands(DOCS / "public_data.md")]
    walk = [words for words in written if {f"configs/{name}.py", f"runs/{name}"} & set(words) and words[1] != "export"]
    assert list(dict.fromkeys(words[1] for words in walk)) == ["ingest", "pairs", "sequences", "train", "evaluate"]
    (tmp_path / "configs").symlink_to(tiny.REPO / "configs")
    (tmp_path / folder).mkdir(parents=True)
    write(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for _, verb, *words in walk:
        small = [f"--config.{setting}" for setting in SMALL] if verb == "train" else []
        assert main([verb, *words, *small]) == 0, f"{verb}: {capsys.readouterr().err}"

    tables = tmp_path / "data" / name / "tables"
    assert len(PairTable.open(tables / "copair.parquet")) > 20
    assert len(SequenceTable.open(tables / "histories.parquet")) > 20
    assert len(SequenceTable.open(tables / "eval_vanilla.parquet", "test")) > 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"After \d+ steps the model (finds|reaches) [\d.]+", said)  # the report's first sentence
    metrics = json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
    assert {"trained", "untrained", "tfidf", "chance", *BASELINES} == set(metrics)
    queries = {figures["i2i/queries"] for figures in metrics.values()}
    assert len(queries) == 1 and queries.pop() > 0
    if name == "lastfm":
        go_on_with_logs(written, monkeypatch, capsys)


def go_on_with_logs(written, monkeypatch, capsys):
    """The further commands of Last.fm, up to the plan of what they would train."""
    export, join = (next(words for words in written if words[1] == verb) for verb in ("export", "join-vectors"))
    make, compare = (
        next(words for words in written if f"experiments.{name}" in words) for name in ("id_embeddings", "reproduce")
    )
    assert main(export[1:]) == 0, capsys.readouterr().err
    monkeypatch.setattr("sys.argv", make[2:])
    id_embeddings.main()
    check_vectors(Path(make[make.index("--output") + 1]), Path(make[make.index("--workdir") + 1]))
    assert main(join[1:]) == 0, capsys.readouterr().err
    reproduce([*compare[3:], "--dry-run"])
    assert "sequences: 10 members" in (said := capsys.readouterr().out) and "ids: 10 members" in said


def check_vectors(table, data):
    """Products of vectors are about how many train users two items share: the best approximation of so few numbers."""
    found = pq.read_table(table)
    vectors = np.array(found["vector"].to_pylist())
    histories = SequenceTable.open(data / "tables" / "histories.parquet")
    users = np.array(
        [[item in (*row.item_ids, row.target_id) for item in found["item_id"].to_pylist()] for row in histories], float
    )
    _, values, right = np.linalg.svd(users, full_matrices=False)
    best = right.T[:, : vectors.shape[1]] * values[: vectors.shape[1]]
    np.testing.assert_allclose(vectors @ vectors.T, best @ best.T, atol=0.2)
    assert vectors.shape[1] == 64 and np.abs(vectors @ vectors.T - users.T @ users).mean() < 0.1
