"""The moments at which `experiments.kills` kills a training run."""

import random
import signal
import subprocess
import sys

import pytest

from experiments.kill_moments import BY_FILES, DRAWN, Pace, _kind, draw, left_by

WRITER = """
import sys
from pathlib import Path
from experiments.kill_moments import KillAt, Moment
output = Path(sys.argv[1])
with KillAt(output, Moment("save", 2), output / "counts.json"):
    (output / "checkpoints/2.orbax-checkpoint-tmp").mkdir()
    (output / "checkpoints/2.orbax-checkpoint-tmp/first").write_text("")
    (output / "checkpoints/2.orbax-checkpoint-tmp/second").write_text("")
"""
WRITES = ("w", 0o1101)  # mode and flags of an `open` that writes


@pytest.mark.parametrize(
    ("event", "place", "kind"),
    [
        ("os.rename", "owners/a.json.partial", "claim"),
        ("open", "mined/2/copair.parquet.partial", "mine"),
        ("open", "checkpoints/2.orbax-checkpoint-tmp/model/d/1", "save"),
        ("open", "checkpoints/2.orbax-checkpoint-tmp/verification/SHA256SUMS", "commit"),
        ("os.rename", "checkpoints/2.orbax-checkpoint-tmp", "commit"),
        ("shutil.rmtree", "checkpoints/2", "delete"),
        ("open", "checkpoints/2/model/d/1", ""),
        ("open", "metrics.jsonl", ""),
        ("open", "../other/owners/a.json", ""),
    ],
)
def test_what_happens_to_files_is_of_a_kind(tmp_path, event, place, kind):
    more = WRITES if event == "open" else (-1,)
    assert _kind(event, ((tmp_path / place).resolve(), *more), tmp_path.resolve()) == kind
    if event == "open":
        assert _kind(event, (tmp_path / place, "r", 0), tmp_path) == ""


def test_a_moment_lies_within_an_undisturbed_run():
    pace, rng = Pace(10.0, 1.0, 2.0, 16, dict.fromkeys(BY_FILES, 8)), random.Random(0)
    for kind in (*DRAWN, "end") * 20:
        moment = draw(kind, pace, rng)
        assert moment.kind == kind and 0 <= moment.delay <= 10
        assert kind not in BY_FILES or 1 <= moment.number <= 4


def test_what_a_kill_left_is_told(tmp_path):
    assert left_by(tmp_path) == []
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "2" / "model").mkdir(parents=True)
    (tmp_path / "init.txt.partial").touch()
    assert left_by(tmp_path) == ["unfinished checkpoint", "partly deleted checkpoint", "partial file"]


@pytest.mark.slow
def test_a_process_kills_itself_before_an_event(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    process = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], timeout=600)
    assert process.returncode == -signal.SIGKILL
    assert not any((tmp_path / "checkpoints/2.orbax-checkpoint-tmp").iterdir())  # the folder was the first event
    assert not (tmp_path / "counts.json").exists()
