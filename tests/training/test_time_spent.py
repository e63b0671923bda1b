"""Where the time of a run goes: what JAX compiles is counted once, wherever it compiles."""

import contextlib
import threading

import jax
import pytest

from sail_jax.training import time_spent as time_lib
from sail_jax.training.time_spent import TimeSpent


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_lib.time, "monotonic", lambda: now[0])
    return now


def compiled(seconds, event="/jax/core/compile/backend_compile_duration"):
    jax.monitoring.record_event_duration_secs(event, seconds)


def test_nested_events_and_activities_are_counted_once(clock):
    with contextlib.closing(TimeSpent()) as spent:
        clock[0] = 3.0
        compiled(2.0)  # from 1 to 3
        clock[0] = 5.0
        compiled(4.5)  # from 0.5 to 5, around the other one
        compiled(7.0, event="/jax/checkpoint/write/duration")
        with spent.on("evaluate"):
            clock[0] = 9.0
            compiled(1.0)
        clock[0] = 10.0
        assert spent.totals() == pytest.approx(
            {"train": 1.5, "start": 0, "data": 0, "compile": 5.5, "save": 0, "evaluate": 3.0, "mine": 0}
        )
        elsewhere = threading.Thread(target=compiled, args=(1.0,))
        elsewhere.start()
        elsewhere.join()
        assert spent.totals()["compile"] == 5.5
    compiled(1.0)
    assert spent.totals()["compile"] == 5.5


def test_jax_reports_what_it_compiles():
    with contextlib.closing(TimeSpent()) as spent:
        jax.jit(lambda x: x * 3)(2.0)
        totals = spent.totals()
    assert 0 < totals["compile"] < sum(totals.values())
