"""What a signal does between stages and between steps; `test_loop.py` has a run that one stops."""

import os
import signal

import pytest

from sail_jax.errors import Stopped
from sail_jax.training.stop_signals import StopSignals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_signals_between_stages_and_between_steps(number, status):
    before = signal.getsignal(number)
    with StopSignals() as stop, pytest.raises(Stopped) as raised:
        os.kill(os.getpid(), number)
    assert (raised.value.number, raised.value.status) == (number, status)
    assert signal.getsignal(number) == before
    with StopSignals() as stop:
        with stop.between_steps():
            assert not stop.reached(1)
            os.kill(os.getpid(), number)
            assert stop.reached(2)
        with pytest.raises(Stopped):
            stop.check()  # a stage that ended meanwhile
    assert stop.stopped("").number == number
