"""The files of a sweep's folder."""

import json

import pytest

from sail_jax import sweeps
from sail_jax.errors import SailError
from sail_jax.sweeps import Sweep, expand, grid
from sail_jax.sweeps.begin import require_folder_of
from sail_jax.sweeps.folder import Record, Status, SweepFolder, SweepRecord


def write(path):
    members = expand(Sweep("quickstart", [grid("optimizer.peak", [1e-3, 2e-3])], seeds=range(2)))
    records = tuple(Record(member, "d", "p") for member in members)
    folder = SweepFolder(path)
    folder.write(SweepRecord("rates", "quickstart", "peak=0.001", "i2i/recall@10", ("optimizer.peak",), records))
    return folder


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    folder = write(tmp_path)
    folder.write_status("peak=0.001,seed=1", Status("done", attempts=2, devices=4, device_seconds=8.5))
    state = sweeps.read(tmp_path)
    assert state.record == folder.read()
    assert [member.name for member in state.members][:2] == ["peak=0.001,seed=0", "peak=0.002,seed=0"]
    assert [member.status.state for member in state.members] == ["waiting", "waiting", "done", "waiting"]
    assert state.members[2].status.device_seconds == 8.5
    assert state.members[2].run.path == tmp_path / "members" / "peak=0.001,seed=1"
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert saved["version"] == 1 and saved["members"][0] == {
        "name": "peak=0.001,seed=0",
        "axes": {"optimizer.peak": 0.001},
        "seed": 0,
        "overrides": ["optimizer.peak=0.001", "seed=0"],
        "data": "d",
        "program": "p",
    }


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(SailError, match="has no sweep"):
        sweeps.read(tmp_path)
    folder = write(tmp_path)
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "peak=0.001,seed=0.json").write_text("{")
    with pytest.raises(SailError, match=r"peak=0.001,seed=0.json cannot be read"):
        sweeps.read(tmp_path)
    folder.file.write_text(folder.file.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(SailError, match="of version 7"):
        folder.read()
    folder.file.write_text("{}")
    with pytest.raises(SailError, match="cannot be read"):
        folder.read()


def test_what_a_process_leaves_that_was_killed_before_it_wrote_the_sweep_is_no_hindrance(tmp_path):
    sweep = Sweep("quickstart", [grid("optimizer.peak", [1e-3, 2e-3])], seeds=range(2))
    for left in ("owners", "configs"):
        (tmp_path / left).mkdir()
    for left in ("forks.json", "sweep.json.partial"):
        (tmp_path / left).touch()
    require_folder_of(SweepFolder(tmp_path), sweep)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SailError, match="has other files and no sweep"):
        require_folder_of(SweepFolder(tmp_path), sweep)
