"""Runs of several processes: equal to one process, and resumed by another number of processes."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sail_jax import config as config_lib
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.loop import train
from sail_jax.vectors.embedding_set import EmbeddingSet
from training_runs import embed_items, environment, on_devices

TESTS = Path(__file__).parents[1]

PROCESS = """
import gc, sys, jax
gc.set_threshold(100_000, 50, 100)  # as in conftest.py
sys.path.insert(0, sys.argv[6])
jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
from sail_jax import config as config_lib
from sail_jax.embedding import forward
from sail_jax.training import loop
from training_runs import embed_items
ordered = loop.make_mesh
devices = [jax.devices()[int(at)] for at in sys.argv[8:]]
loop.make_mesh = forward.make_mesh = lambda config, _=None: ordered(config, devices)
result = loop.train(config_lib.load(sys.argv[1]), sys.argv[2])
if sys.argv[7]:
    embed_items(sys.argv[7], sys.argv[2] + ".vectors")
print("temperatures", [float(x) for x in result.state.params["objective"]["log_temperature"]])
"""


def train_in_processes(config, workdir, count, trained="", order=(0, 1, 2, 3)):
    """Trains in `count` processes, which share four devices; the temperatures in the end, on which all must agree.

    The devices take their places on the mesh in the given order. In the end the processes embed with the run `trained`,
    if it is given, into the folder WORKDIR.vectors.
    """
    path = workdir.with_suffix(".json")
    config_lib.save(config, path)
    address = f"127.0.0.1:{free_port()}"
    written = [workdir.with_suffix(f".{i}.txt") for i in range(count)]  # no pipe, which could fill up unread
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, (path, workdir, address, count, i, TESTS, trained, *order))],
            env=environment(len(order) // count),
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
        )
        for i, output in enumerate(written)
    ]
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs = [output.read_text() for output in written]
    assert not any(codes), "".join(output[-2000:] for output in outputs)
    said = {re.findall(r"^temperatures (.*)$", output, re.M)[-1] for output in outputs}
    assert len(said) == 1
    return json.loads(said.pop())


def losses_of(workdir):
    return [line["loss"] for line in read_training_log(RunDirectory(workdir)) if "loss" in line]


def evaluated(workdir):
    """The figures of the evaluation during training."""
    (line,) = (line for line in read_training_log(RunDirectory(workdir)) if "loss" not in line)
    return {name: value for name, value in line.items() if name.startswith("eval/i2i/")}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def go_on_after_two_steps(whole, workdir):
    """Makes `workdir` the run `whole` as it was after two steps of its four."""
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    return workdir


@pytest.mark.slow
def test_processes_train_like_one_and_what_four_saved_two_go_on_from_and_one_loads(settings, tmp_path):
    """With parameters and moments split over the processes, in micro-batches, around a ring, in stages that mine.

    The first process counts the tables for all, and two go on with what four counted.
    """
    settings.train.update(checkpoint_every=2, keep_checkpoints=2, log_every=1, micro_batches=2)
    settings.mesh.update(data=2, fsdp=2, shard_optimizer=True)
    settings.objective.score_block = 2
    # Text alone, so that the many processes have little to compile; and one shape of a batch, with hard negatives.
    copair = settings.data.datasets.copair.to_dict()
    settings.data.datasets = {"copair": copair | {"patterns": ("T->T",), "correct_popularity": 1.0}}
    settings.data.text_budget = 60.0
    settings.optimizer.freeze = ("^audio/", "^vit/")  # no moments of towers that see nothing
    # A stage trains on what all processes mine together, each with the scores of its queries.
    settings.mining.exact_scores = 0
    mined = {"mine": ("copair",), "hard_negatives": 1}
    settings.stages = {"1": {"steps": 1} | mined, "2": {"steps": 3} | mined}
    settings.optimizer.warmup_steps = 0
    settings.train.evaluate_every = 4
    settings.eval.tasks = {"i2i": settings.eval.tasks.i2i}
    settings.eval.tasks.i2i.update(query="T", target="T", views=(), corpus="targets", metrics=("bijective",))
    config = config_lib.build(settings)
    one, four = tmp_path / "one", tmp_path / "four"
    with on_devices(4):
        temperatures = train(config, one).state.params["objective"]["log_temperature"]
        losses = losses_of(one)
        assert len(losses) == 4
        check = {4: train_in_processes(config, four, 4, trained=one)}
        # Each of two processes has places of the mesh that do not adjoin, as on the torus of a TPU slice.
        two = go_on_after_two_steps(four, tmp_path / "two")
        check[2] = train_in_processes(config, two, 2, order=(0, 2, 1, 3))
        for run in (one, four):
            embed_items(run, tmp_path / f"{run.name}_in_one.vectors")
    for name, count in (("four", 4), ("two", 2)):
        np.testing.assert_allclose(losses_of(tmp_path / name), losses, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(check[count], temperatures, atol=1e-5, err_msg=name)
        assert evaluated(tmp_path / name) == pytest.approx(evaluated(tmp_path / "one"), abs=0.02), name
    # Stage 1 mines with the initial parameters, which are the same in all runs.
    mined = pq.read_table(tmp_path / "one/mined/1/copair.parquet")
    assert pq.read_table(tmp_path / "four/mined/1/copair.parquet").drop("scores").equals(mined.drop("scores"))
    # What `one` embeds with in four processes (test_distributed.py: in two), and a run of four in one process.
    ids, vectors = EmbeddingSet(tmp_path / "one_in_one.vectors").load()
    for name, tolerance in (("four", 1e-5), ("four_in_one", 1e-4)):
        found = EmbeddingSet(tmp_path / f"{name}.vectors").load()
        assert found[0] == ids
        np.testing.assert_allclose(found[1], vectors, atol=tolerance, err_msg=name)
