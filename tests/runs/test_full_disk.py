"""Checkpoints on a disk that is full: the one before stays whole, and the error says so."""

import resource
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.cli.disk import disk_problem
from sail_jax.errors import DiskError
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint of its first step."""
    run = RunDirectory(tmp_path / "run")
    checkpoints = Checkpoints(run)
    checkpoints.save(1, items(1), {})
    checkpoints.close()
    return run


def items(seed):
    return {"model": {"x": jnp.asarray(np.random.default_rng(seed).random((256, 1024), np.float32))}}  # of 1 MB


def restored(run):
    checkpoints = Checkpoints(run)
    (found, _) = checkpoints.restore(items(0))
    checkpoints.close()
    return np.asarray(found["model"]["x"])


def test_a_checkpoint_that_does_not_fit_is_not_begun(run, monkeypatch):
    checkpoints = Checkpoints(run)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1_000_000))
        with pytest.raises(DiskError, match=r"0\.001 GB left, and .* step 2 takes 0\.00105\. That of step 1 is whole"):
            checkpoints.save(2, items(2), {})
    checkpoints.close()
    np.testing.assert_array_equal(restored(run), items(1)["model"]["x"])


def test_a_disk_that_is_full_while_a_checkpoint_is_written_leaves_the_one_before(run, caplog):
    checkpoints = Checkpoints(run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises((OSError, ValueError)) as raised:
            checkpoints.save(2, items(2), {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert disk_problem(raised.value, "").endswith(": File too large")
    assert "Traceback" not in caplog.text
    np.testing.assert_array_equal(restored(run), items(1)["model"]["x"])
    deadline = time.monotonic() + 30
    while [folder.name for folder in run.checkpoints.iterdir()] != ["1"]:  # Orbax removes the rest in the background
        assert time.monotonic() < deadline
        time.sleep(0.05)
