"""Sweeps from the command line: what is checked, run, extended, refused, watched and mended."""

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import time

import polars
import pytest

import training_runs
from sail_jax import config as config_lib
from sail_jax import sweeps
from sail_jax.cli import main
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory
from sail_jax.sweeps import local
from sail_jax.sweeps.attempt import lives_here
from sail_jax.sweeps.folder import Status, SweepFolder

# A sweep of a tiny base config; AXES and SEEDS are put in.
FILE = """
from sail_jax.sweeps import Sweep, grid, variants

def sweep():
    return Sweep(base={base!r}, axes=[{axes}], seeds={seeds}, metric={metric!r})
"""


@pytest.fixture
def write(settings, tmp_path):
    """Writes a sweep file; returns the words of `sweep run` for it."""
    settings.eval.update(untrained=False, tfidf=False)
    settings.data.datasets = {"copair": {"table": "tables/copair.parquet", "patterns": ("T->T",)}}
    settings.eval.tasks = {"i2i": {"table": "tables/copair.parquet", "corpus": "targets"}}
    settings.train.update(steps=2, checkpoint_every=1, log_every=1)
    settings.optimizer.warmup_steps = 1
    config_lib.save(config_lib.build(settings), tmp_path / "base.json")

    def write(axes="grid('optimizer.peak', [1e-3, 2e-3])", seeds="[0]", metric="i2i/recall@10", **others):
        text = FILE.format(base=str(tmp_path / "base.json"), axes=axes, seeds=seeds, metric=metric)
        (tmp_path / "rates.py").write_text(text)
        return ["sweep", "run", str(tmp_path / "rates.py"), "--workdir", str(tmp_path / "sweep")]

    return write


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """Members that write their status and end as `ends` says: name -> Python code."""
    ends: dict[str, str] = {}
    begin = (
        "import os, sys, time\nfrom sail_jax.sweeps.attempt import attempt\nfrom sail_jax.errors import SailError\n"
        "from sail_jax.cli.signals import Signals\nfrom sail_jax.sweeps.folder import SweepFolder\n"
        "def end(stopped): os._exit(stopped.status)\n"
        "try:\n with Signals(end), attempt(SweepFolder(sys.argv[1]), sys.argv[2], devices=lambda: 2):\n  "
    )
    after = "\nexcept BaseException as error: sys.exit(getattr(error, 'status', 1))\n"

    def command(folder, name):
        code = f"{begin}{ends.get(name, 'print(name := sys.argv[2])')}{after}"
        return [local.sys.executable, "-c", code, str(folder.path), name]

    monkeypatch.setattr(local, "member_command", command)
    return ends


def states(tmp_path):
    return {member.name: member.status.state for member in sweeps.read(tmp_path / "sweep").members}


@pytest.mark.slow
def test_a_dry_run_shows_the_members_and_writes_nothing(write, tmp_path, capsys):
    assert main([*write(), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "peak=0.001,seed=0: optimizer.peak=0.001 seed=0" in said and ", 1 different train steps" in said
    assert "Next:" in said and not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("axes", "others", "said"),
    [
        ("grid('optimizer.peek', [1])", {}, "peek=1,seed=0 is refused: There is no setting config.optimizer.peek. Did"),
        ("grid('optimizer.peak', [1e-3, -1])", {}, "peak=-1,seed=0 is refused: config.optimizer.peak is -1.0"),
        (
            "grid('optimizer.peak', [1e-5])",
            {},
            "peak=1e-05,seed=0 is refused: config.optimizer.floor is 0.0002; choose",
        ),
        ("grid('data.batch_size', [8, 4096])", {}, "batch_size=4096,seed=0 is refused: The data set"),
        ("grid('model.llm.heads', [5])", {}, "heads=5,seed=0 is refused: "),
        ("grid('optimizer.peak', [1, 1])", {}, "Two members have the name 'peak=1'"),
        ("", {"metric": "i3i/recall@10"}, "main,seed=0 is refused: The sweep's metric is 'i3i/recall@10'"),
    ],
)
def test_members_that_cannot_run_are_refused_before_anything_starts(axes, others, said, write, tmp_path, capsys):
    assert main(write(axes, **others)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "sweep").exists()


def test_a_member_whose_tracker_is_missing_is_refused(write, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "trackio" else find(name, *of))
    assert main(write("grid('train.trackers', [(), ('trackio',)])")) == 2
    said = capsys.readouterr().err
    assert "trackers=trackio,seed=0 is refused: The tracker trackio of config.train is not installed: pip" in said


def test_a_sweep_is_a_group_in_the_trackers(write, untrained, tmp_path):
    assert main(write()) == 0
    config = config_lib.load(SweepFolder(tmp_path / "sweep").config("peak=0.001,seed=0"))
    assert (config.train.tracker_group, config.train.tracker_name) == ("rates", "")


def test_members_that_do_not_fit_are_refused_once_per_program(write, tmp_path, monkeypatch, capsys):
    compiled = []

    def compile_ahead(config, topology, *, stage):
        compiled.append((config.data.batch_size, topology))
        report = type("Report", (), {"fits": config.data.batch_size < 16})()
        report.verdict = lambda: "It does not fit: 20 GiB of 16 GiB.\nLower the batch."
        return report

    monkeypatch.setattr("sail_jax.aot.compile.compile_ahead", compile_ahead)
    axes = "grid('optimizer.peak', [1e-3, 2e-3]), grid('data.batch_size', [8, 16])"
    assert main([*write(axes), "--topology", "h100:8"]) == 2
    error = capsys.readouterr().err
    assert "peak=0.001,batch_size=16,seed=0 and 1 more members are refused: It does not fit: 20 GiB of" in error
    assert compiled == [(8, "h100:8"), (16, "h100:8")]


@pytest.mark.slow
def test_a_member_that_fails_or_dies_stops_no_other_and_is_retried_alone(write, untrained, tmp_path, capsys):
    names = [f"peak={peak},seed=0" for peak in (0.001, 0.002, 0.003, 0.004)]
    untrained[names[0]] = "print('about to fail'); raise SailError('The disk is full.\\nMake room.')"
    untrained[names[1]] = "print('about to die', flush=True); os.kill(os.getpid(), 9)"
    untrained[names[2]] = "raise ValueError('odd')"
    words = write("grid('optimizer.peak', [1e-3, 2e-3, 3e-3, 4e-3])")
    assert main([*words, "--jobs", "2"]) == 2
    said, error = capsys.readouterr()
    assert "1 done, 3 failed" in said and "Next: python -m sail_jax sweep retry" in said
    assert "3 of 4 members failed, such as peak=0.001,seed=0: Make room." in error
    status = {member.name: member.status for member in sweeps.read(tmp_path / "sweep").members}
    assert [status[name].error for name in names] == [
        "Make room.",
        "the process was killed by SIGKILL: about to die",
        "ValueError: odd",
        "",
    ]
    assert [status[name].exit_code for name in names] == [2, -9, 1, 0]
    done = status[names[3]]
    assert done.devices == 2 and done.device_seconds == pytest.approx(2 * (done.ended - done.started))
    untrained.clear()
    assert main(words) == 0 and list(states(tmp_path).values()).count("failed") == 3  # only `retry` runs them
    assert main(["sweep", "retry", "--workdir", str(tmp_path / "sweep")]) == 0
    assert "about to die" in capsys.readouterr().out
    assert set(states(tmp_path).values()) == {"done"}
    assert [sweeps.read(tmp_path / "sweep").folder.status(name).attempts for name in names] == [2, 2, 2, 1]
    assert main(["sweep", "logs", names[1], "--workdir", str(tmp_path / "sweep"), "--lines", "2"]) == 0
    assert names[1] in capsys.readouterr().out
    assert main(["sweep", "logs", "peak=0.1,seed=0", "--workdir", str(tmp_path / "sweep")]) == 2
    assert "has no member 'peak=0.1,seed=0'. Did you mean" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_is_extended_and_never_changed(write, untrained, tmp_path, settings, capsys):
    assert main(write()) == 0
    assert main(write("grid('optimizer.peak', [2e-3, 1e-3, 3e-3])", seeds="[0, 1]")) == 0
    assert "2 members were there, 4 are new" in capsys.readouterr().out
    assert len(states(tmp_path)) == 6 and set(states(tmp_path).values()) == {"done"}
    folder = SweepFolder(tmp_path / "sweep")
    assert {folder.status(name).attempts for name in states(tmp_path)} == {1}
    before = folder.file.read_bytes()
    more = "grid('optimizer.peak', [2e-3, 1e-3, 3e-3])"
    for axes, seeds, words, said in [
        (more, "[1]", [], "has 3 members that the sweep has no more"),
        (more, "[0, 1]", ["--config.train.steps=3"], "another config; different: train.steps (was 2, is 3)"),
        (more, "[0, 1]", ["--workdir", str(tmp_path)], "has other files and no sweep"),
    ]:
        assert main([*write(axes, seeds), *words]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "other.py").write_text((tmp_path / "rates.py").read_text())
    assert main(["sweep", "run", str(tmp_path / "other.py"), "--workdir", str(folder.path)]) == 2
    assert "has the sweep 'rates' of" in capsys.readouterr().err
    assert folder.file.read_bytes() == before


SEARCH = """
from sail_jax.sweeps import Search, Sweep, log_uniform

def sweep():
    return Sweep(
        base={base!r},
        metric={metric!r},
        search=Search({{"optimizer.peak": log_uniform({low}, 1e-2)}}, trials={trials}, startup=2, pruner={pruner!r}),
    )
"""
# What a member does: a line of an evaluation while it trains, then the end.
TRIAL = (
    "import json; run = SweepFolder(sys.argv[1]).run(sys.argv[2]); run.path.mkdir(parents=True, exist_ok=True); "
    "run.training_log.write_text(json.dumps({{'step': 1, 'eval/i2i/recall@10': {figure}}}) + chr(10)); time.sleep(1); "
    "{then}; run.metrics.write_text(json.dumps({{'trained': {{'i2i/recall@10': {figure}, 'i2i/queries': 5}}}}))"
)


@pytest.fixture
def write_search(write, tmp_path):
    """Writes the file of a search; returns the words of `sweep run` for it."""
    pytest.importorskip("optuna")
    words = write()

    def write_search(trials=4, low=1e-3, pruner="median", metric="i2i/recall@10", every=1):
        base = str(tmp_path / "base.json")
        text = SEARCH.format(base=base, metric=metric, low=low, trials=trials, pruner=pruner)
        (tmp_path / "rates.py").write_text(text)
        return [*words, f"--config.train.evaluate_every={every}"]

    return write_search


@pytest.mark.slow
def test_a_search_prunes_retries_goes_on_and_is_never_changed(write_search, untrained, tmp_path, capsys):
    path = str(tmp_path / "sweep")
    untrained["trial=0,seed=0"] = TRIAL.format(figure=0.5, then="0")
    untrained["trial=1,seed=0"] = "os.kill(os.getpid(), 15); time.sleep(9)"
    untrained["trial=2,seed=0"] = "raise SailError('no room')"
    untrained["trial=3,seed=0"] = TRIAL.format(figure=0.1, then="time.sleep(60)")
    assert main(write_search(2)) == 0
    assert states(tmp_path) == {"trial=0,seed=0": "done", "trial=1,seed=0": "preempted"}
    chosen = [member.record.member.axes for member in sweeps.read(path).members]
    untrained["trial=1,seed=0"] = TRIAL.format(figure=0.6, then="0")
    assert main(write_search()) == 2  # one fails
    assert "1 of 3 members failed, such as trial=2,seed=0: no room" in capsys.readouterr().err
    now = {"trial=0,seed=0": "done", "trial=1,seed=0": "done", "trial=2,seed=0": "failed", "trial=3,seed=0": "pruned"}
    assert states(tmp_path) == now
    assert [member.record.member.axes for member in sweeps.read(path).members][:2] == chosen
    untrained["trial=2,seed=0"] = TRIAL.format(figure=0.7, then="0")
    assert main(["sweep", "retry", "--workdir", path]) == 0
    assert main(write_search()) == 0 and states(tmp_path) == now | {"trial=2,seed=0": "done"}
    assert main(["sweep", "status", "--once", "--workdir", path]) == 0 and "3 done, 1 pruned" in capsys.readouterr().out
    for changes, words, said in [
        ({"low": 2e-3}, [], "has another search; different: settings"),
        ({"metric": "i2i/recall@1"}, [], "has another search; different: metric"),
        ({"every": 0}, [], "set config.train.evaluate_every"),
        ({}, ["--launcher", "slurm"], "can't be queued at once"),
    ]:
        assert main([*write_search(**changes), *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["sweep", "collect", "--workdir", path]) == 0
    assert "Not compared: trial=3,seed=0 (pruned; its figures are those of step 1)" in capsys.readouterr().out
    table = polars.read_csv(tmp_path / "sweep" / "results.csv")
    assert table["i2i/recall@10"].to_list() == [0.5, 0.6, 0.7, 0.1] and table["state"].to_list()[3] == "pruned"
    assert table["optimizer.peak"].to_list()[:2] == [axes["optimizer.peak"] for axes in chosen]


@pytest.mark.slow
def test_optuna_is_told_what_trials_reach(write_search, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", training_runs.environment(1)["XLA_FLAGS"])
    words = write_search(1, pruner="")
    assert main([*words, "--dry-run"]) == 0 and not (tmp_path / "sweep").exists()
    assert "0 of 1 trials of" in capsys.readouterr().out
    assert main(words) == 0, capsys.readouterr()
    folder = SweepFolder(tmp_path / "sweep")
    optuna = importlib.import_module("optuna")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder.trials)))
    study = optuna.load_study(study_name="rates", storage=storage)
    for trial, member in zip(study.trials, sweeps.read(folder.path).members, strict=True):
        assert trial.value == json.loads(member.run.metrics.read_text())["trained"]["i2i/recall@10"]
        assert trial.params == member.record.member.axes == {"optimizer.peak": member.run.load_config().optimizer.peak}
        assert list(trial.intermediate_values) == [1, 2]


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(write, untrained, tmp_path, capsys):
    names = [f"peak={peak},seed=0" for peak in (0.001, 0.002)]
    untrained[names[0]] = (
        "import subprocess; words = ['-m', 'sail_jax', 'sweep', 'stop', '--workdir', sys.argv[1]]; "
        "subprocess.run([sys.executable, *words]); time.sleep(20)"
    )
    assert main([*write(), "--jobs", "1"]) == 0
    assert states(tmp_path) == dict.fromkeys(names, "stopped")
    assert main(["sweep", "status", "--workdir", str(tmp_path / "sweep")]) == 0
    assert "2 stopped" in capsys.readouterr().out
    untrained.clear()
    assert main(write()) == 0
    assert states(tmp_path) == dict.fromkeys(names, "done")


@pytest.mark.slow
def test_a_process_that_died_without_a_word_is_noticed(write, untrained, tmp_path, capsys):
    assert main(write()) == 0
    folder, name = SweepFolder(tmp_path / "sweep"), "peak=0.001,seed=0"
    gone = dataclasses.replace(folder.status(name), state="running", pid=2**22 + 1, ended=0.0)
    folder.write_status(name, gone)
    folder.write_status("peak=0.002,seed=0", Status("running", pid=1, host="elsewhere", started=1.0))
    assert main(["sweep", "status", "--once", "--workdir", str(folder.path)]) == 0
    assert "1 running, 1 failed" in capsys.readouterr().out
    assert "ended without a word" in folder.status(name).error


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["run", "retry"])
def test_members_that_run_on_after_their_launcher_was_killed_are_taken_back(write, untrained, tmp_path, capsys, verb):
    name, other = "peak=0.001,seed=0", "peak=0.002,seed=0"
    words = write()
    assert main(words) == 0
    folder, mark = SweepFolder(tmp_path / "sweep"), tmp_path / "mark"
    folder.write_status(name, Status())
    if verb == "retry":
        folder.write_status(other, Status("failed"))
        words = ["sweep", "retry", "--workdir", str(folder.path)]
    untrained[name] = f"open({str(mark)!r}, 'a').write('begun '); time.sleep(600)"
    orphan = subprocess.Popen(local.member_command(folder, name))
    while not mark.exists():
        time.sleep(0.05)
    assert main(["sweep", "status", "--once", "--workdir", str(folder.path)]) == 0
    assert "1 running" in capsys.readouterr().out
    untrained[name] = f"open({str(mark)!r}, 'a').write('again')"
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{name}: runs on without the command that launched it" in said and f"{name}: started" in said
    assert orphan.wait() == 75 and mark.read_text() == "begun again"
    assert set(states(tmp_path).values()) == {"done"} and folder.status(name).attempts == 2


@pytest.mark.slow
def test_a_process_with_the_number_of_a_member_is_left_alone(write, untrained, tmp_path):
    assert main(write()) == 0
    folder, name = SweepFolder(tmp_path / "sweep"), "peak=0.001,seed=0"
    gone = dataclasses.replace(folder.status(name), state="running", pid=os.getpid(), born="1", ended=0.0)
    folder.write_status(name, gone)
    assert local.take_back(folder, print) == [] and lives_here(gone) is False
    assert main(["sweep", "stop", "--workdir", str(folder.path)]) == 0
    assert states(tmp_path)[name] == "failed"


@pytest.mark.slow
def test_a_member_whose_launcher_is_gone_does_not_start(write, untrained, tmp_path, capsys):
    assert main(write()) == 0
    folder, name = SweepFolder(tmp_path / "sweep"), "peak=0.001,seed=0"
    before = folder.status(name)
    assert main(["sweep", "member", name, "--workdir", str(folder.path), "--launcher", str(os.getpid())]) == 75
    assert "the command that launched it was killed" in capsys.readouterr().err
    assert folder.status(name) == before


def test_gpus_and_processors_are_shared_out(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert [share.gpus for share in local.shares(None)] == [("0",), ("1",), ("2",), ("3",)]
    assert [share.gpus for share in local.shares(2)] == [("0", "2"), ("1", "3")]
    with pytest.raises(local.SailError, match="--jobs is 5, but there are 4 GPUs"):
        local.shares(5)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert [share.gpus for share in local.shares(3)] == [None] * 3
    processors = [number for share in local.shares(2) for number in share.processors]
    assert set(processors) == os.sched_getaffinity(0) and all(share.processors for share in local.shares(99))


@pytest.mark.slow
def test_a_sweep_trains_and_evaluates_its_members_and_shares_their_first_stage(
    write, settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XLA_FLAGS", training_runs.environment(1)["XLA_FLAGS"])
    settings.stages = {"1_a": {"steps": 2}, "2_b": {"steps": 2}}
    config_lib.save(config_lib.build(settings), tmp_path / "base.json")
    assert main([*write("grid('stages.2_b.peak', [1e-3, 2e-3])"), "--jobs", "2"]) == 0, capsys.readouterr()
    assert set(states(tmp_path).values()) == {"done"}
    assert main(["sweep", "status", "--workdir", str(tmp_path / "sweep")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"peak=0.002,seed=0\W+done\W+4/4", said) and "i2i/recall@10 0." in said
    folder = SweepFolder(tmp_path / "sweep")
    assert "Forked from peak=0.001,seed=0 at step 2." in folder.log("peak=0.002,seed=0").read_text()
    for member in sweeps.read(folder.path).members:
        assert config_lib.load(member.run.config).stages["2_b"].peak == member.record.member.axes["stages.2_b.peak"]
        assert Checkpoints(RunDirectory(member.run.path), saves=False).latest() == 4
        assert "i2i/recall@10" in json.loads(member.run.metrics.read_text())["trained"]
        assert member.status.devices == 1 and member.status.device_seconds > 0
    assert main(["sweep", "collect", "--workdir", str(tmp_path / "sweep")]) == 0, capsys.readouterr()
    table = polars.read_csv(tmp_path / "sweep" / "results.csv")
    assert table["state"].to_list() == ["done"] * len(table) and table["i2i/recall@10"].null_count() == 0
    assert table["step"].to_list() == [4] * len(table) and table["device_hours"].min() > 0
