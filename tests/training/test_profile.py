"""Which steps can be traced; `test_loop.py` has a run with a trace."""

import pytest

from sail_jax.errors import SailError
from sail_jax.training.profile import StepProfile


@pytest.mark.parametrize("steps", [(2, 4), (4, 3), (9, 11)])
def test_steps_that_are_not_trained_are_refused(steps):
    with pytest.raises(SailError, match=r"--profile .* name some of 3:10"):
        StepProfile(None, *steps, done=2, steps=10)


@pytest.mark.slow
def test_a_trace_that_a_failure_cuts_short_is_written(tmp_path):
    class Run:
        tensorboard = tmp_path

    profile = StepProfile(Run, 3, 9, done=2, steps=10)
    for step in (3, 4):
        with profile.step(step):
            pass
        profile.stop_after(step, None)
    assert not list(tmp_path.rglob("*.xplane.pb"))
    profile.close()
    profile.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
