"""A run whose parameters were never trained, shared by what embeds and searches with it."""

import pytest
import tiny

import runs
from sail_jax import config as config_lib
from sail_jax.data.pipeline import open_store
from sail_jax.embedder import load


@pytest.fixture(scope="session")
def run(world, tmp_path_factory):
    """The run directory."""
    settings = tiny.experiment(world)
    settings.eval.batch_size = 8  # one row per device: few shapes to compile
    return runs.save_untrained(tmp_path_factory.mktemp("untrained") / "run", config_lib.build(settings))


@pytest.fixture(scope="session")
def embedder(run):
    return load(run)


@pytest.fixture(scope="session")
def store(embedder):
    return open_store(embedder.config)
