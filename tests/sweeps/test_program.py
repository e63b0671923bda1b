"""Sweeps whose members run a program of the user in place of training."""

import dataclasses
import json

import pytest

from sail_jax.errors import SailError
from sail_jax.sweeps import Sweep, SweepFolder, expand, load, read, variants
from sail_jax.sweeps.begin import write_sweep
from sail_jax.sweeps.check import check_members
from sail_jax.sweeps.program import run_program
from sail_jax.sweeps.shared_stages import read_forks
from sail_jax.sweeps.watch import rows

PROGRAM = """
def member(config, values, folder):
    (folder / "note").write_text(values["variant"])
    return {"i2i/recall@10": config.seed / 10}
"""


@pytest.fixture
def sweep(tmp_path):
    """A sweep of two variants and two seeds, whose members run a file."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "data").mkdir()
    return Sweep(
        "quickstart",
        [variants({"a": (), "b": ()})],
        overrides=[f"data.dir={tmp_path / 'data'}"],
        seeds=[1, 2],
        name="s",
        program=str(tmp_path / "program.py"),
    )


def test_members_run_the_program_with_their_config_and_values(sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    write_sweep(folder, sweep, check_members(sweep, expand(sweep)))
    assert not read_forks(folder)  # they train no stages that they could share
    run_program(folder.read().program, folder, "b,seed=2")
    run = folder.run("b,seed=2")
    assert json.loads(run.metrics.read_text()) == {"trained": {"i2i/recall@10": 0.2}}
    assert (run.path / "note").read_text() == "b" and rows(read(folder.path))[0].steps == 0


def test_programs_that_are_missing_changed_or_wrong(sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    write_sweep(folder, sweep, check_members(sweep, expand(sweep)))
    other = dataclasses.replace(sweep, program=str(tmp_path / "other.py"))
    with pytest.raises(SailError, match="run .*other.py, which is not there"):
        check_members(other, expand(other))
    (tmp_path / "other.py").write_text("def member(*_): return 1 / 0")
    with pytest.raises(SailError, match="members run .*program.py, not .*other.py: name another --workdir"):
        write_sweep(folder, other, check_members(other, expand(other)))
    with pytest.raises(SailError, match="other.py, line 1: ZeroDivisionError"):
        run_program(other.program, folder, "a,seed=1")
    (tmp_path / "other.py").write_text("")
    with pytest.raises(SailError, match="has no member"):
        run_program(other.program, folder, "a,seed=1")


def test_the_ranking_models_are_such_a_sweep(tmp_path):
    found = load("ranking")
    found = dataclasses.replace(found, overrides=[f"data.dir={tmp_path}"])
    assert len(check_members(found, expand(found))) == 12
