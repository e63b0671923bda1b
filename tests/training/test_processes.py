"""Runs of several processes: they train like one, and others go on from what they saved."""

import json
import shutil
import socket
import subprocess
import sys

import numpy as np

from sail_jax import config as config_lib
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.loop import train
from training_runs import environment

PROCESS = """
import sys, jax
jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
from sail_jax import config as config_lib
from sail_jax.training.loop import train
result = train(config_lib.load(sys.argv[1]), sys.argv[2])
print([float(x) for x in result.state.params["objective"]["log_temperature"]])
"""


def train_in_processes(config, workdir, count, devices=8):
    """Trains in `count` processes, which share the devices; the temperatures in the end, on which all must agree."""
    path = workdir.with_suffix(".json")
    config_lib.save(config, path)
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(path), str(workdir), address, str(count), str(i)],
            env=environment(devices // count),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    outputs = [process.communicate(timeout=400) for process in processes]
    assert all(process.returncode == 0 for process in processes), "".join(errors[-2000:] for _, errors in outputs)
    said = {out.splitlines()[-1] for out, _ in outputs}
    assert len(said) == 1
    return json.loads(said.pop())


def losses_of(workdir):
    return [line["loss"] for line in read_training_log(RunDirectory(workdir))]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_train_like_one(settings, tmp_path):
    settings.train.update(checkpoint_every=3, log_every=1)
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    # The second stage trains on what the first process mines, while the other one waits.
    settings.stages = {"1": {"steps": 2}, "2": {"steps": 1, "mine": ("copair",), "hard_negatives": 1}}
    settings.optimizer.warmup_steps = 0
    config = config_lib.build(settings)
    temperatures = train_in_processes(config, tmp_path / "two", 2)
    one = train(config, tmp_path / "one")
    np.testing.assert_allclose(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), rtol=1e-4)
    np.testing.assert_allclose(temperatures, one.state.params["objective"]["log_temperature"], atol=1e-5)


def test_what_four_processes_saved_two_and_one_go_on_from(settings, tmp_path):
    """With parameters split over the processes, moments too, in micro-batches, and the loss around a ring."""
    settings.train.update(steps=3, checkpoint_every=1, keep_checkpoints=3, log_every=1, micro_batches=2)
    settings.mesh.update(data=4, fsdp=2, shard_optimizer=True)
    settings.objective.score_block = 2
    # Text alone, so that the many processes have little to compile.
    copair = settings.data.datasets.copair.to_dict()
    settings.data.datasets = {"copair": copair | {"patterns": ("T->T",)}}
    settings.data.text_budget = 40.0
    config = config_lib.build(settings)
    temperatures = train_in_processes(config, tmp_path / "four", 4)
    losses = losses_of(tmp_path / "four")
    assert len(losses) == 3
    for count in (2, 1):
        workdir = tmp_path / str(count)
        shutil.copytree(tmp_path / "four", workdir)
        for step in (2, 3):
            shutil.rmtree(workdir / "checkpoints" / str(step))
        again = train_in_processes(config, workdir, count)
        np.testing.assert_allclose(losses_of(workdir), losses, rtol=1e-4)
        np.testing.assert_allclose(again, temperatures, atol=1e-5)
