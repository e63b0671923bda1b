"""Who trains in a run directory: one process at a time, and none that is gone."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from sail_jax.errors import OwnedError
from sail_jax.runs import ownership
from sail_jax.runs.directory import RunDirectory
from sail_jax.runs.ownership import owning


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def claim(run, **changes):
    """The claim of this process, with changes, as one that was killed leaves it behind."""
    owner = dataclasses.asdict(ownership._Owner.this_process()) | {"owns": True} | changes
    run.owners.mkdir(parents=True, exist_ok=True)
    path = run.owners / "0.json"
    path.write_text(json.dumps(owner))
    return path


def test_a_second_owner_is_refused_while_the_first_lives(run):
    with owning(run):
        first = f"process {os.getpid()} on host {socket.gethostname()}, since .*workdir"
        with pytest.raises(OwnedError, match=first), owning(run):
            pytest.fail("two own it")
        assert len(list(run.owners.iterdir())) == 1
    assert not list(run.owners.iterdir())
    with owning(run):
        pass


def test_a_process_of_this_host_that_is_gone_leaves_no_lock(run):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while (ticks := ownership.started(ended.pid)) and ended.poll() is None:
        time.sleep(0.01)
    left = claim(run, pid=ended.pid, started=ticks or "1")
    with owning(run):
        assert not left.exists()
    left = claim(run, started="1")  # the number of this process was that of another one
    with owning(run):
        assert not left.exists()


def test_a_killed_process_is_gone_before_its_parent_asks(run):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = claim(run, pid=process.pid, started=ownership.started(process.pid))
    with pytest.raises(OwnedError), owning(run):
        pass
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    with owning(run):
        assert not left.exists()
    process.wait()
    process.stdin.close()


def test_a_claim_that_a_killed_process_was_writing_is_removed(run):
    run.owners.mkdir(parents=True)
    (run.owners / "0.json.partial").write_text("{")
    with owning(run):
        (only,) = run.owners.iterdir()
        assert only.suffix == ".json"


def test_a_claim_that_an_owner_removes_as_it_is_written_is_written_again(run, monkeypatch):
    commit, written = ownership.commit_json, []

    def once_removed(claim, values):
        written.append(claim)
        if len(written) == 1:
            raise FileNotFoundError
        commit(claim, values)

    monkeypatch.setattr(ownership, "commit_json", once_removed)
    with owning(run):
        assert written[0] == written[1] == next(run.owners.iterdir())


def test_an_owner_on_another_host_lives_as_long_as_it_touches_its_claim(run, monkeypatch):
    monkeypatch.setattr(ownership, "_LEASE", 60.0)
    left = claim(run, host="elsewhere", kernel="another")

    def touch():
        time.sleep(0.5)
        os.utime(left)

    beats = threading.Thread(target=touch)
    beats.start()
    with pytest.raises(OwnedError, match="on host elsewhere"), owning(run):
        pass
    beats.join()
    monkeypatch.setattr(ownership, "_LEASE", 1.0)
    with owning(run):  # no beat within the lease
        assert not left.exists()
    left = claim(run, host=socket.gethostname(), kernel="another container")
    os.utime(left, (time.time() - 10, time.time() - 10))
    monkeypatch.setattr(ownership.time, "sleep", lambda _: pytest.fail("waits for an owner that is long gone"))
    with owning(run):
        assert not left.exists()


def test_of_many_that_start_at_once_one_owns_it(run):
    gate, verdicts, done = threading.Barrier(6), [], threading.Event()

    def start():
        gate.wait()
        try:
            with owning(run):
                verdicts.append("owns")
                done.wait(60)
        except OwnedError:
            verdicts.append("refused")

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(verdicts) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(verdicts) == ["owns"] + ["refused"] * 5


def test_an_owner_that_slept_too_long_ends(run, monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(ownership, "_BEAT", 0.02)
    monkeypatch.setattr(ownership.os, "_exit", lambda status: ended.set())
    with owning(run):
        (own,) = run.owners.iterdir()
        before = own.stat().st_mtime
        deadline = time.monotonic() + 60
        while own.stat().st_mtime == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert own.stat().st_mtime > before
        own.unlink()
        assert ended.wait(60)
    assert "another one trains there now" in capsys.readouterr().err
