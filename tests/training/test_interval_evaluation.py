"""Evaluation at an interval: the figures it logs, and training that it does not change."""

import contextlib

import jax
import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.data.pipeline import open_store
from sail_jax.embedding import embedder as embedder_lib
from sail_jax.errors import SailError
from sail_jax.evaluation.suite import evaluate_task
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.evaluation.vector_sources import ModelVectors
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.loop import train
from sail_jax.training.time_spent import TimeSpent
from sail_jax.training.training_log import TrainingLog


@pytest.fixture
def short(settings):
    """An experiment with only text, since compiling the other towers takes long."""
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    settings.data.datasets.copair.patterns = ("T->T",)
    settings.train.update(steps=2, checkpoint_every=1, log_every=1)
    settings.optimizer.warmup_steps = 1
    task = settings.eval.tasks.i2i
    task.update(query="T", target="T", views=(), corpus="targets")
    settings.eval.tasks = {"i2i": task}
    return settings


@pytest.mark.slow
def test_training_with_it_and_without_it_gives_the_same_parameters(short, tmp_path, one_device):
    plain = train(config_lib.build(short), tmp_path / "plain")
    short.train.evaluate_every = 2
    run = RunDirectory(tmp_path / "evaluated")
    evaluated = train(config_lib.build(short), run.path)
    for left, right in zip(jax.tree.leaves(plain.state), jax.tree.leaves(evaluated.state), strict=True):
        np.testing.assert_array_equal(left, right)
    log = read_training_log(run)
    assert [line["step"] for line in log] == [1, 2, 2]
    assert "loss" in log[1] and "loss" not in log[2] and not any("eval/" in key for line in log[:2] for key in line)
    assert {"eval/i2i/ndcg@10", "eval/i2i/auc", "eval/i2i/clustering/nmi", "eval/i2i/bijective"} <= log[2].keys()
    assert not list(run.path.glob("embeddings-*"))
    for name, value in figures_of_the_checkpoint(config_lib.build(short), run, tmp_path / "scratch").items():
        assert log[2][f"eval/i2i/{name}"] == pytest.approx(value), name
    with contextlib.closing(TimeSpent()) as spent:
        TrainingLog(run, ["copair"], 1, spent).close()  # a run that goes on from step 1 evaluates step 2 again
    assert [line["step"] for line in read_training_log(run)] == [1]


def figures_of_the_checkpoint(config, run, scratch):
    store = open_store(config)
    scratch.mkdir()
    source = ModelVectors("trained", embedder_lib.load(run.path, config), store, scratch)
    (result,) = evaluate_task(source, load_tasks(config, store)["i2i"], config, main_only=True)
    return result.metrics


def test_a_wrong_task_stops_a_run_before_it_begins(short, tmp_path):
    short.train.evaluate_every = 2
    short.eval.tasks.i2i.split = "tset"
    with pytest.raises(SailError, match="tset"):
        train(config_lib.build(short), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
