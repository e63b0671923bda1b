"""A step whose loss is not finite stops the run or is passed over, and never changes the state."""

import jax
import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.data.pipeline import BatchSource
from sail_jax.errors import SailError
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.loop import train

BAD = 3  # the step, counted from 1


@pytest.fixture
def bad_step(settings, monkeypatch):
    """An experiment on text alone; the candidates of one of its batches are NaN times as frequent as others."""
    copair = settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",), "correct_popularity": 1.0}
    settings.data.datasets = {"copair": copair}
    settings.train.update(steps=4, checkpoint_every=2, log_every=4)
    good = BatchSource.__getitem__

    def spoilt(self, step):
        loaded = good(self, step)
        if step == BAD - 1:
            parts = [part._replace(log_frequency=part.log_frequency * np.nan) for part in loaded.parts]
            loaded = loaded._replace(parts=tuple(parts))
        return loaded

    monkeypatch.setattr(BatchSource, "__getitem__", spoilt)
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_run_stops_before_it_saves_and_goes_on_over_the_step_without_an_update(
    bad_step, tmp_path, one_device, capsys, micro_batches
):
    bad_step.train.micro_batches = micro_batches
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(
        SailError, match=rf"step {BAD} is not finite \(data set copair; records copair: .*skip_nonfinite=1"
    ):
        train(config_lib.build(bad_step), run.path)
    assert run.steps() == [2]
    records = (run.nonfinite / f"{BAD}.txt").read_text().splitlines()
    assert len(records) == bad_step.data.batch_size and all(" -> item" in record for record in records)

    bad_step.train.skip_nonfinite = 1
    result = train(config_lib.build(bad_step), run.path)
    assert (result.start, result.steps) == (2, 4) and "1 of at most 1" in capsys.readouterr().out
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(result.state)))
    counts = [int(leaf) for leaf in jax.tree.leaves(result.state.opt_state) if leaf.ndim == 0]
    assert set(counts) == {3}  # updates, not steps
    line = read_training_log(run)[-1]
    assert line["nonfinite"] == 1 and np.isfinite(line["loss"])
    # The one that was passed over counts on in the resumed run.
    checkpoints = Checkpoints(run, saves=False)
    _, pipeline = checkpoints.restore({"model": jax.eval_shape(lambda: result.state.params["model"])})
    checkpoints.close()
    assert pipeline["nonfinite"] == 1
