"""The documented commands for public data, from files of the published layouts to figures, at a tiny size."""

import csv
import json
import shlex

import numpy as np
import pytest
import tiny
from test_docs import DOCS, commands

from sail_jax.cli import main
from sail_jax.config.evaluation import BASELINES

ITEMS, USERS = 200, 100
SOURCES = {"movielens": "ml-32m", "microlens": "MicroLens-100k", "lastfm": "exports/lastfm"}
SMALL = (
    *("ingest.tokenizer_vocab=300", "model.llm.vocab_size=512", "model.llm.layers=1", "model.llm.width=32"),
    *("model.llm.heads=2", "model.llm.kv_heads=1", "model.llm.head_dim=16", "model.llm.mlp_width=32"),
    *("model.vit.layers=1", "model.vit.width=16", "model.vit.mlp_width=16", "model.perceiver.latents=2"),
    *("model.perceiver.width=16", "model.perceiver.mlp_width=16", "model.audio.width=8", "model.audio.heads=(2,2)"),
    *("model.audio.projection=16", "objective.matryoshka=(32,)", "data.batch_size=8", "train.steps=3"),
    *("train.checkpoint_every=3", "optimizer.warmup_steps=1", "eval.ks=(1,10)", "builders.copair.min_users=1"),
    *("builders.copair.min_npmi=-1.0", "logs.test_share=0.3"),
)


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), *rows])


def histories():
    """(user, place in the history, item from 1) of users of two tastes."""
    rng = np.random.default_rng(0)
    for user in range(USERS):
        for place, item in enumerate(rng.permutation(ITEMS // 2)[:12]):
            yield user, place, 1 + 2 * int(item) + user % 2


def write_movielens(folder):
    films = [(n, f"Film {n} ({1990 + n % 9})", "Comedy|War" if n % 2 else "Drama") for n in range(1, ITEMS + 1)]
    write_csv(folder / "movies.csv", ("movieId", "title", "genres"), films)
    rows = [(user, item, 3 + place % 3, 10_000 * user + 60 * place) for user, place, item in histories()]
    write_csv(folder / "ratings.csv", ("userId", "movieId", "rating", "timestamp"), rows)


def write_microlens(folder):
    write_csv(folder / "MicroLens-100k_title_en.csv", None, [(n, f"Video {n % 2} of {n}") for n in range(1, ITEMS + 1)])
    rows = [(user, item, 1000 * (10_000 * user + 60 * place)) for user, place, item in histories()]
    write_csv(folder / "MicroLens-100k_pairs.csv", ("user", "item", "timestamp"), rows)


def write_lastfm(folder):
    artists = [(n, f"Band {n}", "rock|slow" if n % 2 else "") for n in range(1, ITEMS + 1)]
    write_csv(folder / "items.csv", ("artist_id", "name", "tags"), artists)
    rows = [(user, item, 99 - place, "test" if user % 5 == 0 else "train") for user, place, item in histories()]
    write_csv(folder / "plays.csv", ("user_id", "artist_id", "listens", "split"), rows)


WRITERS = {"movielens": write_movielens, "microlens": write_microlens, "lastfm": write_lastfm}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_from_logs_to_figures(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(tiny.REPO / "configs")
    WRITERS[name](tmp_path / SOURCES[name])
    shown = [shlex.split(found.text) for found in commands(DOCS / "public_data.md")]
    shown = [words for words in shown if words[:1] == ["sail-jax"] and any(name in word for word in words)]
    assert list(dict.fromkeys(words[1] for words in shown)) == ["ingest", "pairs", "sequences", "train", "evaluate"]
    for _, verb, *words in shown:
        small = [] if verb == "evaluate" else [f"--config.{word}" for word in SMALL]
        assert main([verb, *words, *small]) == 0
    metrics = json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
    assert {"trained", "untrained", "tfidf", "chance", *BASELINES} == set(metrics)
    queries = {figures["i2i/queries"] for model, figures in metrics.items()}
    assert len(queries) == 1 and queries.pop() > 0
