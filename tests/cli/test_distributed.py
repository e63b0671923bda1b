"""Verbs that several processes run together: they write what one process writes, and one that fails ends all."""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from sail_jax import __main__
from sail_jax import config as config_lib
from sail_jax.cli import distributed, main
from sail_jax.runs.directory import RunDirectory
from sail_jax.training.loop import train
from sail_jax.vectors.embedding_set import EmbeddingSet
from training_runs import environment, on_devices

PROCESS = """
import gc, json, sys
gc.set_threshold(100_000, 50, 100)  # as in conftest.py
from sail_jax.__main__ import run
from sail_jax.cli import main
*commands, last = json.loads(sys.argv[1])
assert not any(map(main, commands))
sys.argv[1:] = last
run()
"""


# Before a command: the second process gets a signal after its first step.
SIGNALLED = """
import os, signal
from sail_jax.training.stop_signals import StopSignals
reached = StopSignals.reached
def after(self, step):
    if step == 1 and os.environ["SLURM_PROCID"] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)
    return reached(self, step)
StopSignals.reached = after
"""


def start_two(commands, tmp_path, before=""):
    """Starts two processes as Slurm does, with one device each; returns them and the files of what they print.

    Args:
        commands: the commands of each process, one after the other.
        tmp_path: the folder of the files.
        before: what each process does before.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    shared = environment(1) | slurm | {"JAX_COORDINATOR_PORT": str(port)}
    said = [tmp_path / f"said.{i}.txt" for i in range(2)]  # no pipe, which could fill up unread
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", before + PROCESS, json.dumps(commands[i])],
            env=shared | {"SLURM_PROCID": str(i)},
            stdout=said[i].open("w"),
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]
    return processes, said


def verbs(folder, config, *flags):
    """The commands that read a model: the run in `folder`, where they also write."""
    workdir = ["--workdir", str(folder / "run"), "--config", str(config), *flags]
    return [
        ["evaluate", *workdir],
        ["mine", *workdir, "--dataset", "copair", "--output", str(folder / "negatives.parquet")],
        ["balance", *workdir, "--output", str(folder / "w.json")],
        ["embed", *workdir, "--output", str(folder / "vectors"), "--modalities", "T", "--rows-per-part", "64"],
    ]


@pytest.fixture
def words(settings, tmp_path):
    """The file of an experiment with only text, whose parameters are split over two devices."""
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}
    settings.eval.tasks = {"i2i": settings.eval.tasks.i2i}
    settings.eval.tasks.i2i.update(query="T", target="T", views=(), metrics=("recall", "clustering", "bijective"))
    settings.eval.update(untrained=False, tfidf=False, widths=(32,), clusters=8)
    settings.mesh.update(data=1, fsdp=2)
    settings.balancing.samples = 40
    path = tmp_path / "words.json"
    config_lib.save(config_lib.build(settings), path)
    return path


@pytest.mark.slow
def test_two_processes_write_what_one_writes(run, words, tmp_path):
    """The verbs run one after the other in the same two processes; in the end one of these fails."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        shutil.copytree(run, folder / "run")
    commands = verbs(two, words, "--distributed")
    commands = [[*commands, commands[-1]], [*commands, [*commands[-1], "--config", str(tmp_path / "missing.py")]]]
    processes, files = start_two(commands, tmp_path)
    try:
        with on_devices(1):
            assert not any(map(main, verbs(one, words)))
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [path.read_text() for path in files]
    # The first process finds out that the second one is gone: by a broken connection, or JAX ends it.
    assert codes[0] in (1, -signal.SIGABRT) and codes[1] == 2, "".join(said)
    assert "error in process 1 of 2: There is no config file" in said[1] and "Figures:" not in said[1]
    for once in ("Figures:", r"copair: \d+ queries", "Weights:", "Written to"):
        assert len(re.findall(once, said[0])) == 1, once

    figures, weights = ([read_json(folder / name) for folder in (one, two)] for name in ("run/metrics.json", "w.json"))
    # k-means is as near to ties as the vectors of this model are to each other.
    assert figures[1]["trained"] == pytest.approx(figures[0]["trained"], abs=0.02)
    assert weights[1]["similarity"]["copair"] == pytest.approx(weights[0]["similarity"]["copair"], abs=1e-5)
    mined = [pq.read_table(folder / "negatives.parquet") for folder in (one, two)]
    assert mined[1].drop("scores").equals(mined[0].drop("scores"))
    (ids, vectors), found = (EmbeddingSet(folder / "vectors").load() for folder in (one, two))
    assert found[0] == ids
    np.testing.assert_allclose(found[1], vectors, atol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(settings, tmp_path):
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}
    settings.train.update(steps=12, checkpoint_every=12)
    config, path, run = config_lib.build(settings), tmp_path / "config.json", RunDirectory(tmp_path / "run")
    config_lib.save(config, path)
    command = ["train", "--config", str(path), "--workdir", str(run.path), "--distributed"]
    processes, files = start_two([[command], [command]], tmp_path, SIGNALLED)
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [file.read_text() for file in files]
    assert codes == [75, 75], "".join(said)
    (step,) = (int(folder.name) for folder in run.checkpoints.iterdir())
    assert 1 < step < 12
    for text in said:
        assert f"stopped by SIGUSR1: the state is saved at step {step}, and" in text and "Traceback" not in text
    with on_devices(2):
        resumed, whole = train(config, run.path), train(config, tmp_path / "whole")
    assert resumed.start == step
    for left, right in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def read_json(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("fails", [False, True])
def test_an_unexpected_error_ends_the_process_at_once(monkeypatch, capsys, fails):
    """A shutdown of the interpreter would wait for the other processes."""

    def main(program):
        if fails:
            raise ValueError("unforeseen")
        return 2

    def leave(status):
        raise SystemExit(f"left with {status}")

    monkeypatch.setattr(__main__, "main", main)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(SystemExit, match=f"left with {1 if fails else 2}"):
        __main__.run()
    said = capsys.readouterr().err
    assert ("ValueError: unforeseen" in said) == ("error in process 0 of 4" in said) == fails


def test_sigterm_ends_a_process_as_if_it_ran_alone(monkeypatch):
    def initialize(**_):
        signal.signal(signal.SIGTERM, lambda *_: None)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    before = signal.getsignal(signal.SIGTERM)
    try:
        distributed.join_processes(argparse.Namespace(distributed=True))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_runs_alone_shuts_down(monkeypatch):
    done = []
    monkeypatch.setattr(__main__, "main", lambda program: 2)
    monkeypatch.setattr(__main__, "ignore_signals", lambda: done.append(True))
    with pytest.raises(SystemExit, match="2"):
        __main__.run()
    assert done and distributed.named() == ""
