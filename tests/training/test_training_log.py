"""The lines of the training log."""

import pytest

from sail_jax.data.pipeline import LoadedBatch
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training import training_log as log_lib
from sail_jax.training.training_log import TrainingLog


def test_a_line_has_the_share_of_time_spent_waiting_for_data(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(log_lib.time, "monotonic", lambda: clock[0])
    run = RunDirectory(tmp_path)
    log = TrainingLog(run, ["pairs"])
    log.begin(0)
    notes = []
    for step, (seconds, waited) in enumerate([(3.0, 0.5), (1.0, 0.5), (2.0, 2.0)], 1):
        clock[0] += seconds
        log.add(step, LoadedBatch((), step, (0,), None, (), 0, 0), {"loss": 1.0}, waited)
        if step >= 2:
            notes.append(log.flush(step))
    log.close()
    lines = read_training_log(run)
    assert [line["data_wait_share"] for line in lines] == pytest.approx([0.25, 1.0])
    assert [line["data_wait_seconds"] for line in lines] == pytest.approx([0.5, 2.0])
    assert notes == [
        "loss 1.000, 0.50 steps/s, 25% of the time waiting for data",
        "loss 1.000, 0.50 steps/s, 100% of the time waiting for data",
    ]
