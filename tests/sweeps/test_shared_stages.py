"""Members that begin alike: who forks from whom, and that a fork ends as a run of its own."""

import jax
import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.sweeps import SweepFolder
from sail_jax.sweeps.folder import Status
from sail_jax.sweeps.shared_stages import Fork, find_forks, may_start, read_forks, take_over, waves, write_forks
from sail_jax.training.loop import train


@pytest.fixture
def staged(settings):
    """Builds the config of two or three stages with changes."""
    settings.data.datasets = {"copair": {"table": "tables/copair.parquet", "patterns": ("T->T",)}}
    settings.eval.tasks = {"i2i": {"table": "tables/copair.parquet", "corpus": "targets"}}
    settings.optimizer.warmup_steps = 0
    settings.stages = {"1_a": {"steps": 2}, "2_b": {"steps": 2}, "10_c": {"steps": 1}}

    def build(*overrides):
        values = config_lib.schema.override(config_lib.Config, settings.to_dict(), overrides)
        return config_lib.build(values)

    return build


def test_members_fork_where_they_begin_to_differ(staged):
    forks = find_forks(
        {
            "a": staged(),
            "last": staged("stages.10_c.peak=0.1"),
            "second": staged("stages.2_b.peak=0.1"),
            "third of second": staged("stages.2_b.peak=0.1", "stages.10_c.steps=3"),
            "evaluated otherwise": staged("eval.batch_size=3"),
            "seed": staged("seed=1"),
            "rate": staged("optimizer.peak=0.1"),
            "first": staged("stages.1_a.steps=3"),
            "data": staged("data.batch_size=8"),
            "at once": staged("train.progressive=False"),
        }
    )
    assert forks == {
        "last": Fork("a", 4, ("1_a", "2_b"), (2, 4)),
        "second": Fork("a", 2, ("1_a",), (2,)),
        "third of second": Fork("second", 4, ("1_a", "2_b"), (2, 4)),
        "evaluated otherwise": Fork("a", 5, ("1_a", "2_b", "10_c"), (2, 4, 5)),
    }


def test_forks_are_read_as_they_were_written(tmp_path):
    folder, forks = SweepFolder(tmp_path), {"b,seed=0": Fork("a,seed=0", 4, ("1", "2"), (2, 4))}
    assert read_forks(folder) == {}
    write_forks(folder, forks)
    assert read_forks(folder) == forks
    assert not take_over(folder, "b,seed=0", forks["b,seed=0"])  # nothing is trained yet


def losses(run):
    return {line["step"]: line["loss"] for line in read_training_log(run)}


def test_forks_start_after_those_that_they_fork_from_or_alone(tmp_path):
    folder = SweepFolder(tmp_path)
    forks = {"b": Fork("a", 2, ("1",), (2,)), "c": Fork("b", 4, ("1", "2"), (2, 4)), "d": Fork("x", 2, ("1",), (2,))}
    assert waves(folder, ["a", "b", "c", "d"], forks) == [["a", "d"], ["b"], ["c"]]
    assert may_start(folder, None) and not may_start(folder, forks["b"])
    folder.write_status("a", Status("failed"))
    assert may_start(folder, forks["b"])
    folder.write_status("a", Status("running"))
    assert not may_start(folder, forks["b"])
    (folder.run("a").checkpoints / "2").mkdir(parents=True)
    assert may_start(folder, forks["b"]) and waves(folder, ["a", "b"], forks) == [["a", "b"]]


@pytest.mark.slow
def test_a_forked_run_is_bit_equal_to_one_trained_alone(staged, tmp_path, one_device):
    folder = SweepFolder(tmp_path)
    leader, follower = staged(), staged("stages.2_b.peak=0.01", "stages.10_c.steps=2")
    (fork,) = find_forks({"leader": leader, "follower": follower}).values()
    train(leader, folder.run("leader").path)
    assert take_over(folder, "follower", fork) and not take_over(folder, "follower", fork)
    run = folder.run("follower")
    assert run.steps() == [2]
    forked = train(follower, run.path)
    alone = train(follower, tmp_path / "alone")
    assert (forked.start, forked.steps, alone.start) == (2, 6, 0)
    assert fingerprint(forked.state.params) == fingerprint(alone.state.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(forked.state), jax.device_get(alone.state))
    assert losses(run) == losses(RunDirectory(tmp_path / "alone"))
