"""Trains ranking models with and without semantic IDs and cosines; each seed is tested on other users."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from experiments import ranking
from experiments.reproduce.claim import Claim
from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.evaluation.report.seed_groups import SeedGroup
from sail_jax.files import commit_bytes, commit_json

_FAILED = "failed.txt"


def rank(claim: Claim, config: Config, made: Path, folder: Path, seeds: int) -> None:
    """Measures the AUC of both arms, and writes it by seed into a folder; what is there is not repeated.

    The users are dealt out to the seeds, so that the differences of two seeds have no user in common and the interval
    holds for other users too. A failure is written down there, as with a training that fails: other claims go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FAILED).unlink(missing_ok=True)
    missing = [seed for seed in range(seeds) if not _file(folder, seed).is_file()]
    try:
        if missing:
            _rank(claim, config, made, folder, seeds, missing)
    except Exception as error:
        commit_bytes(folder / _FAILED, f"failed: {type(error).__name__}: {error}".encode())


def _rank(claim: Claim, config: Config, made: Path, folder: Path, seeds: int, missing: Sequence[int]) -> None:
    train, test, items = ranking.read_impressions(config, made / "histories" / "raw")
    tables = {
        "match": ranking.read_vectors(made / "histories" / "embeddings", items),
        "codes": ranking.read_codes(made / "semantic_ids" / "ids.parquet", items),
    }
    for seed in missing:
        shown = test.rows(test.user % seeds == seed)
        found = {}
        for name, given in ((claim.treatment, tables), (claim.control, {})):
            scores = ranking.train_and_score(train, shown, len(items) + 1, given, seed, name)
            found[name] = float(roc_auc_score(shown.label, np.asarray(scores)))
        commit_json(_file(folder, seed), found)


def read_ranked(claim: Claim, folder: Path, seeds: int) -> list[SeedGroup]:
    """Returns the figures of both arms by seed, of the seeds that were measured.

    Raises:
        SailError: the last attempt failed.
    """
    if (folder / _FAILED).is_file():
        raise SailError((folder / _FAILED).read_text(encoding="utf-8"))
    there = [seed for seed in range(seeds) if _file(folder, seed).is_file()]
    by_seed = {seed: json.loads(_file(folder, seed).read_text(encoding="utf-8")) for seed in there}
    return [
        SeedGroup(name, {seed: {claim.figure: found[name]} for seed, found in by_seed.items()})
        for name in (claim.treatment, claim.control)
    ]


def _file(folder: Path, seed: int) -> Path:
    return folder / f"seed={seed}.json"
