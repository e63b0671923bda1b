"""Measures what the sampling-bias correction and random negatives are worth on co-consumption.

    python -m experiments.popularity --source exports/listening

reads `items.csv` (artist_id, name, tags) and `plays.csv` (user_id, artist_id, listens, split). Pairs are a user's items
by listens, each with the next three. An encoder of the words of name and tags is trained by the loss of the package on
the pairs of train users and scored by recall among all items on those of test users. Encoder, rates and steps are the
same in all variants; differences to the uncorrected loss are paired by seed, with a 95 % interval by Student's t.

It writes experiments/results/popularity.json and prints a table.
"""

import argparse
import csv
import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.feature_extraction.text import CountVectorizer

from experiments.processes import machine
from sail_jax.evaluation.metrics.seeds import paired
from sail_jax.objectives.info_nce import Correction, info_nce
from sail_jax.objectives.negative_masks import Negatives
from sail_jax.vectors.unit import normalize

REPO = Path(__file__).parents[1]
BATCH, WIDTH, PEAK = 256, 128, 3e-3
CUTS = (10, 50, 100)
# Strength of the correction, random negatives per pair.
VARIANTS = {
    "uncorrected": (0.0, 0),
    "strength 0.5": (0.5, 0),
    "strength 1": (1.0, 0),
    "random negatives": (0.0, 1),
    "strength 1, random negatives": (1.0, 1),
}


class Data(NamedTuple):
    """Words of items, [n, N] int32 with 0 for none, and pairs of items by split, [p, 2]."""

    words: np.ndarray
    train: np.ndarray
    test: np.ndarray


def main() -> None:
    """Trains and scores all variants, writes the figures and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of items.csv and plays.csv")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of a run")
    options = parser.parse_args()
    data = read(options.source)
    popularity = np.bincount(data.train.ravel(), minlength=len(data.words)).astype(np.float32)
    found: dict[str, list[Any]] = {
        "popularity alone": [recalls(data, lambda rows: popularity[None].repeat(len(rows), 0))]
    }
    for name, variant in VARIANTS.items():
        found[name] = [one_run(data, *variant, seed=seed, steps=options.steps) for seed in range(options.seeds)]
        print(name, [round(run["R@50"], 2) for run in found[name]], flush=True)
    report = {"machine": machine(), "steps": options.steps, "batch": BATCH, "items": len(data.words), "runs": found}
    report["differences at R@50"] = {name: difference(found, name) for name in VARIANTS if name != "uncorrected"}
    (REPO / "experiments" / "results" / "popularity.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, runs in found.items():
        means = [f"{np.mean([run[f'R@{k}'] for run in runs]):.2f}" for k in CUTS]
        print(f"| {name} | {' | '.join(means)} | {report['differences at R@50'].get(name, '')} |")


def difference(found: Mapping[str, list[Any]], name: str) -> str:
    """Mean difference of R@50 to the uncorrected loss, with its 95 % interval."""
    of_seeds = [dict(enumerate(run["R@50"] for run in found[which])) for which in (name, "uncorrected")]
    gain = paired(*of_seeds).interval
    return f"{gain.mean:+.2f} ± {gain.high - gain.mean:.2f}"


def read(source: Path) -> Data:
    """Reads items and pairs."""
    with (source / "items.csv").open(encoding="utf-8") as file:
        items = list(csv.DictReader(file))
    row = {item["artist_id"]: number for number, item in enumerate(items)}
    histories: dict[str, dict[str, list[tuple[int, int]]]] = {"train": defaultdict(list), "test": defaultdict(list)}
    with (source / "plays.csv").open(encoding="utf-8") as file:
        for play in csv.DictReader(file):
            histories[play["split"]][play["user_id"]].append((-int(play["listens"]), row[play["artist_id"]]))
    pairs = {
        split: np.array(
            [
                (history[i][1], history[j][1])
                for history in map(sorted, users.values())
                for i in range(len(history))
                for j in range(i + 1, min(i + 4, len(history)))
            ]
        )
        for split, users in histories.items()
    }
    counted = CountVectorizer(token_pattern=r"\S+").fit_transform(
        [item["name"] + " " + item["tags"].replace("|", " ") for item in items]
    )
    words = np.zeros((len(items), int(counted.getnnz(axis=1).max())), np.int32)
    for number in range(len(items)):
        own = counted.indices[counted.indptr[number] : counted.indptr[number + 1]]
        words[number, : len(own)] = own + 1
    return Data(words, pairs["train"], pairs["test"])


def encode(params: Any, words: jax.Array) -> jax.Array:
    """Embeds items by their words, [..., N] -> [..., D]."""
    known = (words > 0)[..., None]
    mean = (params["words"][words] * known).sum(-2) / jnp.maximum(known.sum(-2), 1)
    return mean + jax.nn.gelu(mean @ params["in"]) @ params["out"]


def one_run(data: Data, strength: float, random: int, *, seed: int, steps: int) -> dict[str, float]:
    """Trains an encoder and returns its recall in %, by cut."""
    rng = np.random.default_rng(seed)
    sizes = {"words": (int(data.words.max()) + 1, WIDTH), "in": (WIDTH, 2 * WIDTH), "out": (2 * WIDTH, WIDTH)}
    params = {
        name: jnp.asarray(rng.normal(size=size) / np.sqrt(size[0] if name != "words" else 1), jnp.float32)
        for name, size in sizes.items()
    }
    params["log_temperature"] = jnp.log(0.05)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, PEAK, steps // 20, steps), b2=0.98)
    state, words, items = optimizer.init(params), jnp.asarray(data.words), len(data.words)
    frequencies = [np.log(np.maximum(np.bincount(side, minlength=items), 1) / len(side)) for side in data.train.T]
    step = jax.jit(functools.partial(train_step, optimizer, words, *map(jnp.asarray, frequencies), strength))
    for number in range(steps):
        rows = np.random.default_rng([seed, number]).choice(len(data.train), BATCH, replace=False)
        others = np.random.default_rng([seed, number, 1]).integers(items, size=(BATCH, random))
        params, state = step(params, state, data.train[rows], others)
    vectors = np.asarray(normalize(encode(params, words)))
    return recalls(data, lambda rows: vectors[rows] @ vectors.T)


def train_step(
    optimizer: optax.GradientTransformation,
    words: jax.Array,
    query_frequency: jax.Array,
    target_frequency: jax.Array,
    strength: float,
    params: Any,
    state: Any,
    pairs: jax.Array,
    others: jax.Array,
) -> tuple[Any, Any]:
    """Takes one optimiser step on pairs of items [B, 2] with random negatives [B, M]."""
    query, target = pairs.T
    same = (target[:, None] == target) | (query[:, None] == target) | (query[:, None] == query)
    flat = others.reshape(-1)
    negatives = Negatives(~same, (query[:, None] != flat) & (target[:, None] != flat))
    valid, uniform = jnp.ones(len(pairs), bool), jnp.full(others.shape, -jnp.log(len(words)))
    frequencies = query_frequency[query], target_frequency[target]
    correction = Correction(*frequencies, uniform, jnp.full(len(pairs), strength)) if strength else None

    def loss(params: Any) -> jax.Array:
        z = [encode(params, words[rows]) for rows in (query, target, others)]
        temperature = jnp.exp(jnp.clip(params["log_temperature"], jnp.log(0.01), jnp.log(0.5)))
        hard = z[2] if others.shape[1] else None
        return info_nce(*z[:2], jnp.full(len(pairs), temperature), negatives, valid, hard=hard, correction=correction)[
            0
        ]

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


def recalls(data: Data, score: Any) -> dict[str, float]:
    """Recall in % of the partners of each test item among all other items, averaged over the items that have any."""
    relevant = defaultdict(set)
    for left, right in data.test.tolist():
        relevant[left].add(right)
        relevant[right].add(left)
    queries, hits = np.array(sorted(relevant)), defaultdict(list)
    for start in range(0, len(queries), 512):
        rows = queries[start : start + 512]
        scores = np.array(score(rows))
        scores[np.arange(len(rows)), rows] = -np.inf
        best = np.argpartition(-scores, CUTS[-1], axis=1)[:, : CUTS[-1]]
        order = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)
        for query, ranked in zip(rows.tolist(), order.tolist(), strict=True):
            for cut in CUTS:
                hits[f"R@{cut}"].append(len(relevant[query] & set(ranked[:cut])) / len(relevant[query]))
    return {name: 100 * float(np.mean(values)) for name, values in hits.items()}


if __name__ == "__main__":
    main()
