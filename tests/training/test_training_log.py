"""The lines of the training log: rates, shares of the time, and sums that a resumed run continues."""

import contextlib
import re

import pytest

from sail_jax.data.pipeline import LoadedBatch
from sail_jax.runs.cuts import say_cuts
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training import time_spent as time_lib
from sail_jax.training import training_log as log_lib
from sail_jax.training.time_spent import TimeSpent
from sail_jax.training.training_log import TrainingLog, cuts_of
from sail_jax.training.work import Work

LOADED = LoadedBatch((), 1, (0,), None, (), 0, 0)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time_lib.time, "monotonic", lambda: now[0])
    return now


def test_rates_and_shares_of_the_time(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(log_lib, "peak_memory", lambda: 5)
    run, work, notes = RunDirectory(tmp_path), Work(items=30, tokens=600, ideal_seconds=0.5), []
    with contextlib.closing(TimeSpent()) as spent:
        with spent.on("start"):
            clock[0] += 1.0
        log = TrainingLog(run, ["pairs"], 0, spent)
        for step, (seconds, waited, saved) in enumerate([(3.0, 0.5, 0.0), (1.0, 0.5, 1.0), (2.0, 2.0, 0.0)], 1):
            clock[0] += seconds
            spent.add("data", waited)
            with spent.on("save"):
                clock[0] += saved
            log.add(LOADED, {"loss": 1.0, "nonfinite": 0.0}, work)
            if step >= 2:
                notes.append(log.flush(step))
        with spent.on("evaluate"):
            clock[0] += 4.0
        log.evaluated(3, {"eval/i2i/recall@10": 0.5}, 4.0)
        log.close()
    first, second, evaluated = read_training_log(run)
    # Six seconds for two steps: one to start, one of waiting, one of saving.
    assert first["steps_per_second"] == pytest.approx(2 / 5) and first["items_per_second"] == pytest.approx(60 / 5)
    assert first["tokens_per_second"] == pytest.approx(1200 / 5) and first["mfu"] == pytest.approx(1 / 5)
    assert first["peak_memory_bytes"] == 5
    shares = {name: value for name, value in first.items() if name.startswith("share/") and value}
    assert shares == pytest.approx({"share/start": 1 / 6, "share/data": 1 / 6, "share/save": 1 / 6})
    assert first["goodput"] == pytest.approx(3 / 6)
    assert second["share/data"] == 1.0 and second["mfu"] == pytest.approx(0.25)
    assert second["elapsed_seconds"] == pytest.approx(7.0) and second["goodput"] == pytest.approx(3 / 8)
    assert evaluated["seconds/evaluate"] == 4.0 and evaluated["elapsed_seconds"] == pytest.approx(7.0)
    assert notes == [
        "loss 1.000, 0.40 steps/s, 12 items/s, 0.0 GiB, MFU 20%, 17% waiting for data",
        "loss 1.000, 0.50 steps/s, 15 items/s, 0.0 GiB, MFU 25%, 100% waiting for data",
    ]


def test_what_was_cut_is_said_with_the_setting_to_raise():
    assert say_cuts(cuts_of(LOADED)) == ""
    cuts = cuts_of(LOADED._replace(media_cut=1, prompt_cut=12_345, items_cut=2))
    assert say_cuts(cuts) == (
        "Cut to fit: 1 frames and clips (raise data.frame_budget or data.clip_budget), 12,345 text tokens (raise "
        "prompt.max_tokens), 2 items of histories (raise distinct_items of the data set)."
    )


def test_a_resumed_run_continues_the_sums(tmp_path, clock):
    run = RunDirectory(tmp_path)

    def two_steps(start, seconds):
        with contextlib.closing(TimeSpent()) as spent:
            log = TrainingLog(run, ["pairs"], start, spent)
            for step in (start + 1, start + 2):
                clock[0] += seconds
                spent.add("data", 1.0)
                log.add(LOADED, {"loss": 1.0, "nonfinite": 0.0}, Work(1, 1, None))
                note = log.flush(step)
            log.close()
        return note

    two_steps(0, 3.0)
    clock[0] += 1000.0  # the machine was off
    assert not re.search("MFU", two_steps(1, 5.0))
    lines = read_training_log(run)
    assert [line["step"] for line in lines] == [1, 2, 3]  # the second line of the first start is trained again
    assert [line["elapsed_seconds"] for line in lines] == pytest.approx([3.0, 8.0, 13.0])
    assert [line["seconds/data"] for line in lines] == [1.0, 2.0, 3.0]
    assert [line["share/data"] for line in lines] == pytest.approx([1 / 3, 1 / 5, 1 / 5])
    assert "mfu" not in lines[0] and "peak_memory_bytes" not in lines[0]  # CPUs have neither
