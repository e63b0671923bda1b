"""Trackers: real ones offline, lines that each gets once, and ones that fail, hang or are missing."""

import importlib.util
import json
import struct
import threading
import time

import pytest
import tiny

from sail_jax import config as config_lib
from sail_jax.errors import SailError
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.loop import train
from sail_jax.training.trackers import of_run
from sail_jax.training.trackers.of_run import Trackers, require_trackers
from sail_jax.training.trackers.outbox import Outbox
from training_runs import on_devices


class Kept:
    """A tracker that keeps what it gets, by the id of the run."""

    runs: dict = {}

    def __init__(self, run):
        self.id, self.told = run.id or f"{run.name}.{len(self.runs)}", run
        self.lines = self.runs.setdefault(self.id, [])

    def log(self, step, values):
        self.lines.append((step, dict(values)))

    def finish(self):
        self.lines.append("finished")


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(Kept, "runs", {})
    monkeypatch.setattr(of_run, "_open", lambda kind, run: Kept(run))
    return Kept.runs


def start_run(folder, begin, end, *words, trackers="('wandb',)"):
    """Logs steps after `begin` up to `end`, each with an evaluation, as a start of a run does."""
    run = RunDirectory(folder)
    run.path.mkdir(exist_ok=True)
    config = config_lib.load("glyphs", [f"train.trackers={trackers}", *words])
    sink = Trackers(config, run, begin)
    with run.training_log.open("a") as file:
        for step in range(begin + 1, end + 1):
            for line in ({"loss/pairs": 1 / step}, {"eval/i2i/recall@10": float("nan") if step == 2 else step / 10}):
                file.write(json.dumps({"step": step, **line}) + "\n")
                sink.log(step, line)
    sink.finish()
    return run


def steps_of(lines, key):
    return [line[0] for line in lines if line != "finished" and key in line[1]]


def test_every_line_comes_once_over_the_starts_of_a_run(tmp_path, kept):
    run = start_run(tmp_path / "run", 0, 4)
    start_run(tmp_path / "run", 2, 5)  # it was killed after its checkpoint of step 2
    ((name, lines),) = kept.items()
    assert steps_of(lines, "loss/pairs") == steps_of(lines, "eval/i2i/recall@10") == [1, 2, 3, 4, 5]
    assert json.loads(run.trackers.read_text()) == {"name": "run", "ids": {"wandb": name}}


def test_the_figures_of_an_evaluation_join_the_tracked_run(tmp_path, kept):
    run = start_run(tmp_path / "run", 0, 2)
    config = config_lib.load("glyphs", ["train.trackers=('wandb', 'mlflow')"])
    of_run.send_evaluation(config, run, 2, {"i2i/recall@10": 0.5, "i2i/mrr": None})
    first, second = kept.values()  # one that had the run, and one that gets the lines before too
    for lines in (first, second):
        assert steps_of(lines, "loss/pairs") == [1, 2]
        assert lines[-2:] == [(2, {"final/i2i/recall@10": 0.5}), "finished"]


def test_a_tracker_that_is_named_later_gets_the_lines_before(tmp_path, kept):
    start_run(tmp_path / "run", 0, 2, trackers="()")
    assert not kept and not RunDirectory(tmp_path / "run").trackers.exists()
    start_run(tmp_path / "run", 2, 3, trackers="('mlflow',)")
    (lines,) = kept.values()
    assert steps_of(lines, "loss/pairs") == [1, 2, 3] and lines[0] == (1, {"loss/pairs": 1.0})


def test_a_copy_under_another_name_is_another_run(tmp_path, kept):
    run = start_run(tmp_path / "run", 0, 1)
    run.path.rename(tmp_path / "fork")
    start_run(tmp_path / "fork", 1, 2)
    start_run(tmp_path / "fork", 2, 3, "train.tracker_name=run")
    assert [steps_of(lines, "loss/pairs") for lines in kept.values()] == [[1], [1, 2], [1, 2, 3]]


def test_names_of_run_and_group_come_from_the_settings(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(of_run, "_open", lambda kind, run: told.append((kind, run)) or Kept(run))
    start_run(tmp_path / "run", 0, 1, "train.tracker_group=sweep", trackers="('wandb', 'trackio')")
    (kind, first), (other, second) = told
    assert (kind, other) == ("wandb", "trackio") and first == second
    assert (first.name, first.group, first.id) == ("run", "sweep", "") and first.settings["train"][
        "tracker_group"
    ] == "sweep"


class Failing(Kept):
    def log(self, step, values):
        if step in (2, 3):
            raise ConnectionError("no\nroute")
        super().log(step, values)


def test_a_tracker_that_fails_stops_nothing_and_its_lines_are_counted(tmp_path, kept, monkeypatch, capfd):
    monkeypatch.setattr(of_run, "_open", lambda kind, run: Failing(run))
    start_run(tmp_path / "run", 0, 4)
    assert steps_of(*kept.values(), "loss/pairs") == [1, 4]
    assert capfd.readouterr().err.splitlines() == [
        "wandb did not take the line of step 2 (ConnectionError: no route); the run goes on without it.",
        "wandb lacks 4 of 8 lines of the training log (ConnectionError: no route).",
    ]


def test_a_tracker_that_can_not_be_opened_is_said_and_the_others_go_on(tmp_path, kept, monkeypatch, capfd):
    def opened(kind, run):
        if kind == "wandb":
            raise RuntimeError("api_key not configured")
        return Kept(run)

    monkeypatch.setattr(of_run, "_open", opened)
    start_run(tmp_path / "run", 0, 2, trackers="('wandb', 'mlflow')")
    assert steps_of(*kept.values(), "loss/pairs") == [1, 2]
    assert capfd.readouterr().err == (
        "wandb can't be opened (RuntimeError: api_key not configured); the run goes on without it.\n"
    )


def test_a_tracker_that_hangs_is_left_behind(capfd):
    class Hanging:
        def __init__(self):
            self.free = threading.Event()

        def log(self, step, values):
            self.free.wait()

        finish = Kept.finish

    hanging = Hanging()
    outbox = Outbox("mlflow", hanging)
    for step in range(3):
        outbox.log(step, {"loss": 1.0})
    outbox.finish(patience=0.05)
    hanging.free.set()
    assert capfd.readouterr().err == ("mlflow lacks 3 of 3 lines of the training log (it took over 0 s at the end).\n")


def test_a_missing_package_is_named_with_the_remedy(monkeypatch, tmp_path):
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SailError, match="The tracker only_a_folder of .* is not installed"):
        require_trackers(("json", "only_a_folder"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "trackio" else find(name, *of))
    config = config_lib.load("glyphs", ["train.trackers=('trackio',)"])
    with pytest.raises(SailError, match=r"^The tracker trackio of .* pip install 'sail_jax\[trackio\]'\.$"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SailError, match=r"config.train.trackers is \('aim',\)|choose one of wandb, mlflow, trackio"):
        config_lib.load("glyphs", ["train.trackers=('aim',)"])


@pytest.mark.slow
def test_training_sends_the_lines_of_its_log(world, tmp_path, kept):
    settings = tiny.experiment(world)
    settings.train.update(steps=3, log_every=1, checkpoint_every=3, trackers=("wandb",))
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}
    with on_devices(1):
        train(config_lib.build(settings), tmp_path / "run")
        train(config_lib.build(settings), tmp_path / "run")  # it is finished
    ((name, lines),) = kept.items()
    logged = [(line.pop("step"), line) for line in read_training_log(RunDirectory(tmp_path / "run"))]
    assert name.startswith("run.") and lines == [*logged, "finished", "finished"] and len(logged) == 3


# --------------------------------------------------------------------------------------------------- real ones, offline


def records(path):
    """Yields the bytes of the records of a file of W&B: the log format of LevelDB, after a header of 7 bytes."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def all_records(path, proto):
    """Returns the records of a file, once W&B's own process has written the last one."""
    for _ in range(200):
        found = [proto.Record.FromString(data) for data in records(path)]
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = start_run(tmp_path / "run", 0, 4, "train.tracker_group=sweep", "train.tracker_name=member")
    start_run(tmp_path / "run", 2, 5, "train.tracker_group=sweep", "train.tracker_name=member")
    named, logged = set(), []
    for path in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        for record in all_records(path, proto):
            if record.HasField("run"):
                named.add((record.run.run_id, record.run.project, record.run.display_name, record.run.run_group))
            values = {item.nested_key[0]: item.value_json for item in record.history.item}
            if "loss/pairs" in values:
                logged.append((int(values["step"]), float(values["loss/pairs"])))
    id = json.loads(run.trackers.read_text())["ids"]["wandb"]
    assert named == {(id, "sail_jax", "member", "sweep")}
    assert logged == [(step, pytest.approx(1 / step)) for step in range(1, 6)]


@pytest.mark.slow
def test_mlflow_in_a_database(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    pytest.importorskip("sqlalchemy", reason="needs sqlalchemy, for SQLite")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    words = ("train.tracker_group=sweep", "train.tracker_name=member")
    run = start_run(tmp_path / "run", 0, 4, *words, trackers="('mlflow',)")
    start_run(tmp_path / "run", 2, 5, *words, trackers="('mlflow',)")
    client, id = mlflow.MlflowClient(), json.loads(run.trackers.read_text())["ids"]["mlflow"]
    found = client.get_run(id)
    assert (found.info.run_name, found.info.status, found.data.tags["group"]) == ("member", "FINISHED", "sweep")
    assert found.data.params["train.tracker_group"] == "sweep" and len(found.data.params) > 200
    for name in ("loss/pairs", "eval/i2i/recall_at_10"):
        assert [metric.step for metric in client.get_metric_history(id, name)] == [1, 2, 3, 4, 5]
    assert client.get_metric_history(id, "loss/pairs")[3].value == 0.25


def test_trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="needs trackio, which asks for an older Pillow than the tests' own")
    storage = trackio.sqlite_storage
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    words = ("train.tracker_group=sweep", "train.tracker_name=member")
    run = start_run(tmp_path / "run", 0, 4, *words, trackers="('trackio',)")
    start_run(tmp_path / "run", 2, 5, *words, trackers="('trackio',)")
    name = json.loads(run.trackers.read_text())["ids"]["trackio"]
    assert name.startswith("member-")
    lines = storage.SQLiteStorage.get_logs("sail_jax", name)
    assert [line["step"] for line in lines if "loss/pairs" in line] == [1, 2, 3, 4, 5]
