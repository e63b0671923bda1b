"""Runs of several processes: equal to one process, and resumed by another number of processes."""

import json
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.loop import train
from training_runs import environment, on_devices

PROCESS = """
import sys, jax
jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
from sail_jax import config as config_lib
from sail_jax.training import loop
ordered = loop.make_mesh
loop.make_mesh = lambda config: ordered(config, [jax.devices()[int(at)] for at in sys.argv[6:]])
result = loop.train(config_lib.load(sys.argv[1]), sys.argv[2])
print("temperatures", [float(x) for x in result.state.params["objective"]["log_temperature"]])
"""


def train_in_processes(config, workdir, count, order=(0, 1, 2, 3)):
    """Trains in `count` processes, which share four devices; the temperatures in the end, on which all must agree.

    The devices take their places on the mesh in the given order.
    """
    path = workdir.with_suffix(".json")
    config_lib.save(config, path)
    address = f"127.0.0.1:{free_port()}"
    written = [workdir.with_suffix(f".{i}.txt") for i in range(count)]  # no pipe, which could fill up unread
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(path), str(workdir), address, str(count), str(i), *map(str, order)],
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
    return [line["loss"] for line in read_training_log(RunDirectory(workdir))]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def go_on_after_two_steps(whole, workdir):
    """Makes `workdir` the run `whole` as it was after two steps of its four."""
    shutil.copytree(whole, workdir)
    for step in (3, 4):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    return workdir


@pytest.mark.slow
def test_processes_train_like_one_and_what_four_saved_two_and_one_go_on_from(settings, tmp_path):
    """With parameters and moments split over the processes, in micro-batches, around a ring, in stages that mine."""
    settings.train.update(checkpoint_every=1, keep_checkpoints=4, log_every=1, micro_batches=2)
    settings.mesh.update(data=2, fsdp=2, shard_optimizer=True)
    settings.objective.score_block = 2
    # Text alone, so that the many processes have little to compile; and one shape of a batch, with hard negatives.
    copair = settings.data.datasets.copair.to_dict()
    settings.data.datasets = {"copair": copair | {"patterns": ("T->T",)}}
    settings.data.text_budget = 60.0
    # A stage trains on what the first process mines, while the others wait.
    mined = {"mine": ("copair",), "hard_negatives": 1}
    settings.stages = {"1": {"steps": 1} | mined, "2": {"steps": 3} | mined}
    settings.optimizer.warmup_steps = 0
    config = config_lib.build(settings)
    with on_devices(4):
        one = train(config, tmp_path / "one")
        temperatures = one.state.params["objective"]["log_temperature"]
        losses = losses_of(tmp_path / "one")
        assert len(losses) == 4
        four = tmp_path / "four"
        check = {4: train_in_processes(config, four, 4)}
        # Each of two processes has places of the mesh that do not adjoin, as on the torus of a TPU slice.
        check[2] = train_in_processes(config, go_on_after_two_steps(four, tmp_path / "two"), 2, order=(0, 2, 1, 3))
        again = train(config, go_on_after_two_steps(four, tmp_path / "again"))
    check[1] = again.state.params["objective"]["log_temperature"]
    assert (again.start, again.steps) == (2, 4)
    for name, count in (("four", 4), ("two", 2), ("again", 1)):
        np.testing.assert_allclose(losses_of(tmp_path / name), losses, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(check[count], temperatures, atol=1e-5, err_msg=name)
