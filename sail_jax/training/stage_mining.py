"""Mines the hard negatives of a stage, with the model at the stage's start."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sail_jax.buckets import fetch
from sail_jax.config import Config
from sail_jax.curation.mining.dataset import mine_dataset
from sail_jax.data.hard_negative_table import NegativesTable
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.models.lora import merge
from sail_jax.models.model import abstract_params
from sail_jax.runs.directory import RunDirectory
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.sharding.parameters import shardings_of
from sail_jax.sharding.process_group import everyone
from sail_jax.training.stages import Stage, mined_table


def mine_for_stage(stage: Stage, params: Any, run: RunDirectory, mesh: Mesh) -> None:
    """Mines the hard negatives of a stage, unless the same model has already mined them.

    All processes mine together.

    Args:
        stage: the stage that begins.
        params: the parameters of the training state.
        run: the run directory, whose `mined` folder is written; all processes must share it.
        mesh: the mesh of the training.
    """
    if not stage.mine:
        return
    config, folder = stage.config, run.mined / stage.name
    identity = _identity(config, params)
    # The first process decides: another process may look after a table has been written.
    missing = everyone().on_first(
        lambda: [name for name in stage.mine if not _is_mined(mined_table(folder, name), identity)]
    )
    if not missing:
        return
    embedder = embedder_of(config, params, mesh)
    for name in missing:
        done = mine_dataset(embedder, config, open_store(config), name, mined_table(folder, name), model=identity)
        if embedder.processes.first:
            print(done)


def check_mined(stage: Stage, run: RunDirectory) -> None:
    """Raises SailError if the hard negatives that a started stage mined are missing."""
    for name in stage.mine:
        path = mined_table(run.mined / stage.name, name)
        fetch(path)
        if not path.is_file():
            raise SailError(
                f"The hard negatives {path}, mined when stage {stage.name!r} began, are gone. Put the file back, or "
                f"remove the checkpoints after step {stage.begin} in {run.checkpoints} to begin the stage, and its "
                "mining, again."
            )


def _is_mined(path: Path, identity: str) -> bool:
    fetch(path)
    return path.is_file() and NegativesTable.open(path).metadata.get("model") == identity


def _identity(config: Config, params: Any) -> str:
    """Returns a fingerprint of the model and of the settings that mining depends on, equal on all processes."""
    settings = [dataclasses.asdict(part) for part in (config.data, config.mining, config.model, config.prompt)]
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"model {fingerprint(params)}, settings {digest}"


def embedder_of(config: Config, params: Any, mesh: Mesh) -> Embedder:
    """Returns what embeds with the parameters of a training state, on the mesh of the training.

    All processes embed together. Adapters are merged; without any, no parameter is moved or copied.
    """
    model = params["model"]
    if config.lora.rank:
        placed = shardings_of(abstract_params(config, mesh))
        model = jax.jit(merge, static_argnames="config", out_shardings=placed)(model, params["lora"], config.lora)
    return Embedder(config, model, make_extractor(config), mesh)
