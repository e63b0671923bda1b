"""Measures whether a small ranking model gains from the embeddings and from semantic IDs.

    python -m experiments.ranking --config configs/recommender.py --source exports/recommender \\
        --embeddings embeddings/recommender --semantic-ids sids/ids.parquet

trains a ranking model on the impressions of the logs before the cut of `config.logs.test_share`, and measures its AUC
on those after it; the label is "was there any positive behaviour". The inputs of the model for an impression:

  base            learned vectors of the candidate and of the user's latest positive items, how often the candidate was
                  shown, and the share of positives among these; all counted before the impression's day
  + embeddings    the cosines of the candidate to the user's items, by our vectors: mean, maximum, and that of the mean
  + semantic IDs  learned vectors of the codes of the candidate and of the user's items, level by level

The variants and their seeds are the sweep configs/sweeps/ranking.py, whose members call `member` here. Finished ones
are not repeated. The confidence intervals are from a bootstrap over users, of the mean over seeds; gains over `base`
are paired by user sample. It writes experiments/results/ranking.json and prints a table.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
from rich.progress import track
from sklearn.metrics import roc_auc_score

from configs.sweeps.ranking import VARIANTS
from experiments.processes import machine
from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.files import partial_file
from sail_jax.logs.reader import cut_time, scan_events
from sail_jax.sweeps import load, variants
from sail_jax.sweeps.declare import VARIANT
from sail_jax.sweeps.run import run_sweep
from sail_jax.vectors.embedding_set import EmbeddingSet

REPO = Path(__file__).parents[1]
HISTORY = 20
DAY = 86_400
WIDTH = 16
BATCH = 1024
EPOCHS = 3
BOOTSTRAPS = 500
# What members read, in the folder of the data, and what they write.
INPUTS, SCORES = "impressions.npz", "scores.npy"


@dataclasses.dataclass(frozen=True)
class Impressions:
    """Impressions as inputs of the ranking model; item 0 is padding.

    Attributes:
        user: [n] int32.
        item: [n] int32, the candidate.
        history: [n, HISTORY] int32, the user's positive items before it, latest first.
        counts: [n, 2] float32, of the candidate before the day: log of how often it was shown, share of positives.
        label: [n] float32, whether there was any positive behaviour.
    """

    user: np.ndarray
    item: np.ndarray
    history: np.ndarray
    counts: np.ndarray
    label: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Impressions":
        """The chosen rows."""
        return Impressions(**{f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)})


def main() -> None:
    """Trains all variants and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=REPO / "configs" / "recommender.py", help="describes the logs")
    parser.add_argument("--source", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--embeddings", type=Path, required=True, help="folder that `embed` wrote")
    parser.add_argument(
        "--semantic-ids", type=Path, help="table that `semantic-ids assign` wrote; without it, the variant is left out"
    )
    parser.add_argument("--workdir", type=Path, default=REPO / "runs" / "ranking", help="folder of the sweep")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (1)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant (3)")
    parser.add_argument("--output", type=Path, default=REPO / "experiments" / "results" / "ranking.json", help="JSON")
    options = parser.parse_args()
    config = config_lib.load(options.config, [])
    train, test, items = read_impressions(config, options.source)
    codes = read_codes(options.semantic_ids, items) if options.semantic_ids else None
    workdir = options.workdir.absolute()
    write_inputs(workdir / "data", train, test, read_vectors(options.embeddings, items), codes)
    scores = run_variants(workdir, codes is not None, options.seeds, options.jobs)
    table = summarise(scores, test)
    result = {
        "machine": machine(),
        "impressions": {"train": len(train.label), "test": len(test.label), "positives": float(test.label.mean())},
        "users": int(len(np.unique(test.user))),
        "seeds": options.seeds,
        "table": table,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(table), f"\n\nWritten to {options.output}")


# ------------------------------------------------------------------------------------------------------------- data


def read_impressions(config: Config, source: Path) -> tuple[Impressions, Impressions, dict[str, int]]:
    """The impressions before and after the cut, and item id -> number from 1."""
    events = scan_events(config, source).sort("time", "user", "item").collect(engine="streaming")
    cut = cut_time(config, source)
    items = {item: number for number, item in enumerate(sorted(events["item"].unique()), start=1)}
    users = {user: number for number, user in enumerate(sorted(events["user"].unique()))}
    time = events["time"].to_numpy()
    whole = Impressions(
        user=np.array([users[user] for user in events["user"]], np.int32),
        item=np.array([items[item] for item in events["item"]], np.int32),
        history=np.zeros((len(events), HISTORY), np.int32),
        counts=np.zeros((len(events), 2), np.float32),
        label=(events["positives"].to_numpy() > 0).astype(np.float32),
    )
    _fill_histories(whole)
    _fill_counts(whole, time // DAY, len(items) + 1)
    known = (whole.history > 0).any(axis=1)
    return whole.rows(known & (time <= cut)), whole.rows(known & (time > cut)), items


def _fill_histories(rows: Impressions) -> None:
    latest: dict[int, np.ndarray] = {}
    nothing = np.zeros(HISTORY, np.int32)
    for row, (user, item, label) in enumerate(zip(rows.user.tolist(), rows.item, rows.label, strict=True)):
        rows.history[row] = before = latest.get(user, nothing)
        if label:
            latest[user] = np.concatenate([[item], before[:-1]])


def _fill_counts(rows: Impressions, day: np.ndarray, size: int) -> None:
    shown, liked = np.zeros(size), np.zeros(size)
    for chosen in np.split(np.arange(len(day)), np.flatnonzero(np.diff(day)) + 1):
        items = rows.item[chosen]
        rows.counts[chosen, 0] = np.log1p(shown[items])
        rows.counts[chosen, 1] = (liked[items] + 1) / (shown[items] + 10)
        np.add.at(shown, items, 1)
        np.add.at(liked, items, rows.label[chosen])


def read_vectors(folder: Path, items: Mapping[str, int]) -> np.ndarray:
    """[items + 1, D] unit vectors by item number; zeros for items without a vector."""
    opened = EmbeddingSet(folder)
    table = np.zeros((len(items) + 1, opened.info.dims), np.float32)
    for ids, z in opened.batches():
        for item_id, vector in zip(ids, z, strict=True):
            if item_id in items:
                table[items[item_id]] = vector
    return table


def read_codes(path: Path, items: Mapping[str, int]) -> np.ndarray:
    """[items + 1, L] int32 codes by item number, from 1; zeros for items without codes."""
    rows = pq.read_table(path, columns=["id", "codes"]).to_pylist()
    table = np.zeros((len(items) + 1, len(rows[0]["codes"])), np.int32)
    for row in rows:
        if row["id"] in items:
            table[items[row["id"]]] = np.array(row["codes"]) + 1
    return table


def write_inputs(
    folder: Path, train: Impressions, test: Impressions, vectors: np.ndarray, codes: np.ndarray | None
) -> None:
    """Writes what the members read, unless it is there.

    Raises:
        SystemExit: the folder has other impressions, embeddings or IDs.
    """
    arrays = {f"train_{name}": array for name, array in vars(train).items()}
    arrays |= {f"test_{name}": array for name, array in vars(test).items()} | {"match": vectors}
    arrays |= {} if codes is None else {"codes": codes}
    file = folder / INPUTS
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with partial_file(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays)
        return
    with np.load(file) as there:
        if set(there.files) != set(arrays) or not all(np.array_equal(there[name], arrays[name]) for name in arrays):
            raise SystemExit(f"{file} has other impressions, embeddings or IDs: name another --workdir.")


# -------------------------------------------------------------------------------------------------------------- sweep


def run_variants(workdir: Path, with_codes: bool, seeds: int, jobs: int) -> dict[str, np.ndarray]:
    """Runs the members that are not done; returns variant -> logits of the test impressions, [seeds, n]."""
    sweep = load(REPO / "configs" / "sweeps" / "ranking.py")
    names = [name for name, features in VARIANTS.items() if with_codes or "codes" not in features]
    sweep = dataclasses.replace(
        sweep,
        axes=[variants(dict.fromkeys(names, ()))],
        overrides=[f"data.dir={workdir / 'data'}"],
        seeds=range(seeds),
    )
    done = run_sweep(sweep, workdir / "sweep", jobs=jobs)
    runs = {(each.record.member.axes[VARIANT], each.record.member.seed): each.run.path for each in done.members}
    return {name: np.stack([np.load(runs[name, seed] / SCORES) for seed in range(seeds)]) for name in names}


def member(config: Config, values: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Trains the ranking model of a member, writes its logits of the test impressions, and returns its AUC."""
    with np.load(Path(config.data.dir) / INPUTS) as inputs:
        train, test = (
            Impressions(**{field.name: inputs[f"{part}_{field.name}"] for field in dataclasses.fields(Impressions)})
            for part in ("train", "test")
        )
        tables = {feature: inputs[feature] for feature in VARIANTS[values[VARIANT]]}
        items = len(inputs["match"])
    scores = train_and_score(train, test, items, tables, config.seed, values[VARIANT])
    with partial_file(folder / SCORES) as partial, partial.open("wb") as stream:
        np.save(stream, scores)
    counts = {"queries": len(test.label), "skipped": 0, "corpus": items}
    figures = {"auc": float(roc_auc_score(test.label, scores)), **counts}
    return {f"impressions/{name}": value for name, value in figures.items()}


# ------------------------------------------------------------------------------------------------------------ model


class Ranker(nn.Module):
    """An MLP over vectors of candidate and history, their product, counts, and match features.

    Attributes:
        items: rows of the table of learned vectors.
        codebooks: rows of the table of learned vectors of each level of codes.
    """

    items: int
    codebooks: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, item: jax.Array, history: jax.Array, counts: jax.Array, match: jax.Array, codes: jax.Array
    ) -> jax.Array:
        """Logits [B] of impressions.

        Args:
            item: [B], the candidates.
            history: [B, HISTORY].
            counts: [B, 2].
            match: [B, 0 or 3] match features.
            codes: [items, levels], of all items.
        """
        mask = (history > 0)[..., None].astype(jnp.float32)

        def sides(table: jax.Array, of_items: jax.Array) -> list[jax.Array]:
            candidate, seen = table[of_items[item]], table[of_items[history]]
            mean = (seen * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
            return [candidate, mean, candidate * mean]

        def table(name: str, rows: int) -> jax.Array:
            return self.param(name, nn.initializers.normal(0.05), (rows, WIDTH))

        parts = [counts, match, *sides(table("items", self.items), jnp.arange(self.items))]
        for level, rows in enumerate(self.codebooks):
            parts += sides(table(f"codes_{level}", rows), codes[:, level])
        x = jnp.concatenate(parts, axis=-1)
        for width in (64, 32):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(1)(x)[:, 0]


def match_features(vectors: np.ndarray | None, item: jax.Array, history: jax.Array) -> jax.Array:
    """[B, 3] cosines of the candidate to the history: mean and maximum over items, and that to their mean."""
    if vectors is None:
        return jnp.zeros((len(item), 0))
    candidate, seen = jnp.asarray(vectors)[item], jnp.asarray(vectors)[history]
    mask = history > 0
    cosines = jnp.einsum("bd,bhd->bh", candidate, seen)
    mean = jnp.where(mask, cosines, 0).sum(1) / jnp.maximum(mask.sum(1), 1)
    centre = seen.sum(1)
    to_centre = (candidate * centre).sum(-1) / jnp.maximum(jnp.linalg.norm(centre, axis=-1), 1e-6)
    return jnp.stack([mean, jnp.where(mask, cosines, -1).max(1), to_centre], axis=-1)


def train_and_score(
    train: Impressions, test: Impressions, items: int, tables: Mapping[str, np.ndarray], seed: int, name: str
) -> np.ndarray:
    """Trains one model for `EPOCHS` passes; returns its logits of the test impressions, [n] float32."""
    codes = jnp.asarray(tables.get("codes", np.zeros((items, 0), np.int32)))
    model = Ranker(items, tuple(int(most) + 1 for most in codes.max(axis=0)))
    match = functools.partial(match_features, tables.get("match"))
    columns = ("item", "history", "counts")

    def logits(params: Any, item: jax.Array, history: jax.Array, counts: jax.Array) -> jax.Array:
        return model.apply(params, item, history, counts, match(item, history), codes)

    steps = EPOCHS * (len(train.label) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, max(1, steps)), weight_decay=1e-3)
    first = [getattr(train, column)[:1] for column in columns]
    params = model.init(jax.random.key(seed), *first, match(*first[:2]), codes)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, label: jax.Array, *arrays: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            return optax.sigmoid_binary_cross_entropy(logits(params, *arrays), label).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(seed)
    orders = np.concatenate([rng.permutation(len(train.label))[: steps // EPOCHS * BATCH] for _ in range(EPOCHS)])
    for chosen in track(orders.reshape(-1, BATCH), description=f"{name}, seed {seed}"):
        part = train.rows(chosen)
        params, state = step(params, state, part.label, *(getattr(part, column) for column in columns))
    score = jax.jit(logits)
    parts = np.array_split(np.arange(len(test.label)), -(-len(test.label) // (8 * BATCH)))
    return np.concatenate([score(params, *(getattr(test.rows(p), column) for column in columns)) for p in parts])


# ---------------------------------------------------------------------------------------------------------- figures


def summarise(scores: Mapping[str, np.ndarray], test: Impressions) -> dict[str, dict[str, float]]:
    """Variant -> AUC and gain over base, each with its 95 % interval."""
    auc = {name: np.mean([roc_auc_score(test.label, z) for z in of_seeds]) for name, of_seeds in scores.items()}
    rows_of = [np.flatnonzero(test.user == user) for user in np.unique(test.user)]
    rng = np.random.default_rng(0)
    samples: dict[str, list[float]] = {name: [] for name in scores}
    for _ in track(range(BOOTSTRAPS), description="bootstrap over users"):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(rows_of), len(rows_of))])
        for name, of_seeds in scores.items():
            samples[name].append(np.mean([roc_auc_score(test.label[rows], z[rows]) for z in of_seeds]))
    drawn = {name: np.array(values) for name, values in samples.items()}
    table = {}
    for name in scores:
        gain = np.percentile(drawn[name] - drawn["base"], [2.5, 97.5])
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        figures = {"auc": auc[name], "low": low, "high": high}
        figures |= {"gain": auc[name] - auc["base"], "gain_low": gain[0], "gain_high": gain[1]}
        table[name] = {key: round(float(value), 5) for key, value in figures.items()}
    return table


def markdown(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table, in per cent."""
    lines = ["| ranking model | AUC | gain over base |", "| --- | --- | --- |"]
    for name, row in table.items():
        auc = f"{100 * row['auc']:.2f} ({100 * row['low']:.2f} to {100 * row['high']:.2f})"
        gain = f"{100 * row['gain']:+.2f} ({100 * row['gain_low']:+.2f} to {100 * row['gain_high']:+.2f})"
        lines.append(f"| {name} | {auc} | {'' if name == 'base' else gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
