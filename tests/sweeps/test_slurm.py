"""Sweeps on a real SLURM of one node: preempted and killed members end as those of a local run."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import polars
import pytest

import training_runs
from sail_jax import config as config_lib
from sail_jax import sweeps
from sail_jax.cli import main
from sail_jax.errors import SailError
from sail_jax.sweeps import slurm
from sail_jax.sweeps.folder import Status, SweepFolder

# Before any test captures its output: it closes the handlers of logs that are open when it is imported.
pytest.importorskip("submitit")
# Each member, here and by SLURM, takes half a minute of processor time.
PEAKS, SEEDS = [1e-3, 2e-3, 3e-3, 4e-3], [0, 1]
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "runuser")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# `sweep run` of these members trains long enough to be met in the middle.
STEPS = 30
FILE = """
from sail_jax.sweeps import Sweep, grid

def sweep():
    return Sweep(base={base!r}, axes=[grid("optimizer.peak", {peaks})], seeds={seeds}, metric="i2i/recall@10")
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def wait_for(happened, what, seconds=600, every=0.05):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(every)


@contextlib.contextmanager
def munged():
    """The service that signs the messages of SLURM; one that runs already is left alone."""
    if answers("munge", "-n").returncode:
        subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
        wait_for(lambda: answers("munge", "-n").returncode == 0, "munged does not answer", 20)
        yield
        subprocess.run(["runuser", "-u", "munge", "--", "munged", "--stop"])
    else:
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A SLURM of one node on this machine."""
    missing = [name for name in COMMANDS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing or os.getuid() != 0:
        pytest.skip(f"needs slurm-wlm and munge, as root: {', '.join(missing) or 'not root'}")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, controller_port=free_port(), node_port=free_port()))
    with munged(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        patch.setenv("SLURM_CONF", str(conf))
        with contextlib.ExitStack() as at_end:
            for name in ("slurmctld", "slurmd"):
                subprocess.run([name, "-f", str(conf)], check=True, timeout=60)
                at_end.callback(lambda name=name: os.kill(int((folder / f"{name}.pid").read_text()), 15))
            at_end.callback(end_jobs)
            wait_for(lambda: "idle" in answers("sinfo", "--noheader").stdout, "SLURM has no idle node", 60)
            yield


def end_jobs():
    """Ends all jobs, with all of their processes."""
    answers("scancel", "--user=root")
    answers("scancel", "--user=root", "--signal=KILL", "--full")
    wait_for(lambda: not answers("squeue", "--noheader").stdout.strip(), "jobs stay", 60)


def done_steps(folder, name):
    log = folder.run(name).training_log
    return len(log.read_text().splitlines()) if log.is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(1500)  # SLURM lets a requeued job wait for two minutes; a busy machine takes long for the rest
def test_members_that_are_requeued_or_killed_end_as_those_of_a_local_run(
    cluster, settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XLA_FLAGS", training_runs.environment(1)["XLA_FLAGS"])
    monkeypatch.setenv("NPROC", "1")  # threads of XLA; results differ by rounding with their number
    settings.eval.update(untrained=False, tfidf=False)
    settings.data.datasets = {"copair": {"table": "tables/copair.parquet", "patterns": ("T->T",)}}
    settings.eval.tasks = {"i2i": {"table": "tables/copair.parquet", "corpus": "targets"}}
    settings.train.update(steps=STEPS, checkpoint_every=10, log_every=1)
    config_lib.save(config_lib.build(settings), tmp_path / "base.json")
    (tmp_path / "rates.py").write_text(FILE.format(base=str(tmp_path / "base.json"), peaks=PEAKS, seeds=SEEDS))
    folder = SweepFolder(tmp_path / "queued")
    slurm = ["--launcher", "slurm", "--cpus", "1", "--partition", "all"]
    run = ["sweep", "run", str(tmp_path / "rates.py"), "--workdir", str(folder.path)]
    assert main([*run, *slurm]) == 0, capsys.readouterr()
    names = [member.name for member in sweeps.read(folder.path).members]
    requeued, killed = names[:2]
    assert all(folder.status(name).job for name in names)
    wait_for(lambda: done_steps(folder, requeued) > 3, "the member does not train")
    assert answers("scontrol", "requeue", folder.status(requeued).job).returncode == 0
    wait_for(lambda: done_steps(folder, killed) > 3, "the member does not train")
    os.kill(folder.status(killed).pid, signal.SIGKILL)

    def ended():
        assert main(["sweep", "status", "--once", "--workdir", str(folder.path)]) == 0
        return all(folder.status(name).state in ("done", "failed") for name in names)

    wait_for(ended, "the jobs do not end", every=2)
    states = {name: folder.status(name).state for name in names}
    assert states == {**dict.fromkeys(names, "done"), killed: "failed"}, folder.log(requeued).read_text()[-2000:]
    assert folder.status(requeued).attempts == 2 and "ended without a word" in folder.status(killed).error
    assert 3 < done_steps(folder, killed) < STEPS
    assert main([*run, *slurm]) == 0 and folder.status(killed).state == "failed"  # only `retry` runs it again
    assert main(["sweep", "retry", "--workdir", str(folder.path), *slurm]) == 0
    wait_for(ended, "the job does not end", every=2)
    assert folder.status(killed).attempts == 2 and all(folder.status(name).attempts == 1 for name in names[2:])
    local = SweepFolder(tmp_path / "local")
    assert main([*run[:-1], str(local.path), "--jobs", "2"]) == 0
    tables = []
    for path in (folder.path, local.path):
        assert main(["sweep", "collect", "--workdir", str(path)]) == 0
        tables.append(polars.read_parquet(path / "results.parquet"))
    own = ("attempts", "started", "ended", "host", "devices", "device_hours")  # of when and where members ran
    assert len(tables[0]) == len(names) and tables[0].drop(own).equals(tables[1].drop(own))


def test_a_queue_that_rejects_is_quoted(cluster, tmp_path):
    folder = SweepFolder(tmp_path)
    with pytest.raises(SailError, match="SLURM refused the members: invalid partition specified: none; Batch job"):
        slurm.submit(folder, ["a,seed=0"], slurm.JobRequest(partition="none"))


def test_jobs_ask_for_what_was_said():
    request = slurm.JobRequest(partition="p", account="a", gpus=8, nodes=2, signal_seconds=30, others={"qos": "high"})
    parameters = request.parameters(4, ["7_0", "7_1", "9"])
    options = parameters.pop("slurm_additional_parameters")
    assert options == {"signal": "USR1@30", "requeue": True, "qos": "high", "dependency": "afterany:7:9"}
    assert parameters["gpus_per_node"] == 8 and parameters["slurm_array_parallelism"] == 4
    assert "cpus_per_task" not in parameters and parameters["nodes"] == 2


def test_a_machine_without_slurm_or_submitit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SailError, match="There is no sbatch here"):
        slurm.submit(SweepFolder(tmp_path), ["a"], slurm.JobRequest())
    assert slurm.queued_jobs() is None
    (tmp_path / "sbatch").write_text("")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SailError, match="needs submitit"):
        slurm.submit(SweepFolder(tmp_path), ["a"], slurm.JobRequest())


def test_a_job_is_requeued_unless_the_sweep_stops_or_it_was_cancelled(tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command[1])
        assert "5_2" in command  # not 5, which is the whole array
        return subprocess.CompletedProcess(command, 0, stdout=f"JobId=5 JobState={state} Requeue=1")

    folder, state = SweepFolder(tmp_path), "RUNNING"
    monkeypatch.setattr(slurm.subprocess, "run", run)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not slurm.requeue_if_preempted(folder) and not asked
    for name, value in {"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert slurm.requeue_if_preempted(folder) and asked == ["show", "requeue"]
    state = "CANCELLED"
    assert not slurm.requeue_if_preempted(folder) and asked[2:] == ["show"]
    folder.stop.touch()
    assert not slurm.requeue_if_preempted(folder) and len(asked) == 3


def test_a_job_becomes_its_member(tmp_path, monkeypatch):
    folder, became = SweepFolder(tmp_path), []
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    folder.write_status("a", Status(job="7_3"))
    monkeypatch.setattr(slurm.os, "dup2", lambda log, stream: became.append(stream))
    monkeypatch.setattr(slurm.os, "execv", lambda file, words: became.append(words))
    slurm.MemberJob(folder, "a", ["python", "-m", "sail_jax"])()
    assert became == [1, 2, ["python", "-m", "sail_jax"]] and folder.log("a").is_file()
