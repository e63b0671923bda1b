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
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest

from sail_jax import __main__
from sail_jax import config as config_lib
from sail_jax.cli import distributed, main
from sail_jax.runs.directory import RunDirectory
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
        os.kill(os.getpid(), signal.{number})
    return reached(self, step)
StopSignals.reached = after
"""


def start(commands, tmp_path, before=""):
    """Starts processes as Slurm does, with one device each; returns them and the files of what they print.

    Args:
        commands: the commands of each process, one after the other.
        tmp_path: the folder of the files.
        before: what each process does before.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0"}
    shared = environment(1) | slurm | {"SLURM_NTASKS": str(len(commands)), "JAX_COORDINATOR_PORT": str(port)}
    said = [tmp_path / f"said.{i}.txt" for i in range(len(commands))]  # no pipe, which could fill up unread
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", before + PROCESS, json.dumps(commands[i])],
            env=shared | {"SLURM_PROCID": str(i)},
            stdout=said[i].open("w"),
            stderr=subprocess.STDOUT,
        )
        for i in range(len(commands))
    ]
    return processes, said


def finish(processes, said):
    """Waits for processes; returns their statuses and what they printed."""
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, [file.read_text() for file in said]


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
    processes, files = start(commands, tmp_path)
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
@pytest.mark.timeout(1800)  # four processes on two loaded cores take minutes to import and compile
@pytest.mark.parametrize(("count", "number"), [(2, "SIGUSR1"), (4, "SIGTERM")])
def test_a_signal_to_one_process_stops_all_after_the_same_step(settings, tmp_path, count, number):
    """As many processes go on from there, and reach bit for bit what a run reaches that was left alone."""
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}
    settings.train.update(steps=8, checkpoint_every=8)
    settings.mesh.update(data=1, fsdp=count)
    path, run, whole = tmp_path / "config.json", RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    config_lib.save(config_lib.build(settings), path)
    stopped, undisturbed = (
        ["train", "--config", str(path), "--workdir", str(of.path), "--distributed"] for of in (run, whole)
    )
    codes, said = finish(*start([[stopped]] * count, tmp_path, SIGNALLED.format(number=number)))
    assert codes == [75] * count, "".join(said)
    (step,) = run.steps()
    assert 1 < step < 8
    for text in said:
        assert f"stopped by {number}: the state is saved at step {step}, and" in text and "Traceback" not in text
    codes, said = finish(*start([[stopped, undisturbed]] * count, tmp_path))
    assert codes == [0] * count, "".join(said)
    assert run.steps()[0] == whole.steps()[0] == 8
    left, right = (saved_arrays(of.checkpoints / "8") for of in (run, whole))
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)


def saved_arrays(checkpoint):
    """The arrays of a checkpoint by name, in host memory."""
    reader, found = ocp.PyTreeCheckpointer(), {}
    for item in ("model", "training"):
        structure = reader.metadata(checkpoint / item).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        arrays = reader.restore(checkpoint / item, restore_args=on_host)
        found |= {jax.tree_util.keystr(path): of for path, of in jax.tree_util.tree_leaves_with_path(arrays)}
    return found


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
