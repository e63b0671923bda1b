"""Tells how far the members of a sweep are: state, step, rate, time to go, last figure."""

import json
import os
import time
from collections import Counter
from typing import Any, NamedTuple

from sail_jax import config as config_lib
from sail_jax.runs.directory import RunDirectory
from sail_jax.sweeps.folder import STATES, MemberState, SweepState

# Bytes at the end of a training log in which its last lines are looked for.
_TAIL = 1 << 16


class Row(NamedTuple):
    """How far a member is.

    Attributes:
        name: the member.
        state: its state.
        step: steps done.
        steps: steps of the whole run; 0 where it runs a program.
        rate: steps per second, over the last logging interval; 0 before the first.
        eta: seconds of training to go at that rate; None where that is unknown.
        figure: its last figure, such as "i2i/recall@10 0.512", or "loss 2.31".
        device_seconds: what it cost so far.
        error: the last line of what went wrong.
    """

    name: str
    state: str
    step: int
    steps: int
    rate: float
    eta: float | None
    figure: str
    device_seconds: float
    error: str


def rows(sweep: SweepState) -> list[Row]:
    """Returns how far each member is, in the order of sweep.json."""
    return [_row(sweep, member) for member in sweep.members]


def counts(sweep: SweepState) -> str:
    """Returns the number of members in each state, such as "3 running, 5 waiting"."""
    of_state = Counter(member.status.state for member in sweep.members)
    return ", ".join(f"{of_state[state]} {state}" for state in STATES if of_state[state])


def _row(sweep: SweepState, member: MemberState) -> Row:
    lines, status = last_log_lines(member.run), member.status
    trained = next((line for line in reversed(lines) if "steps_per_second" in line), {})
    step = max((line["step"] for line in lines), default=0)
    steps, rate = _steps(sweep, member.name), trained.get("steps_per_second", 0.0)
    going = status.state == "running" and rate > 0
    spent = status.device_seconds + (time.time() - status.started) * status.devices * (status.state == "running")
    return Row(
        name=member.name,
        state=status.state,
        step=step,
        steps=steps,
        rate=rate,
        eta=max(0, steps - step) / rate if going else None,
        figure=_figure(sweep.record.metric, member.run, lines, trained),
        device_seconds=spent,
        error=status.error,
    )


def last_log_lines(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the last lines of a training log; one that is cut off is left out."""
    try:
        with run.training_log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            texts = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _steps(sweep: SweepState, name: str) -> int:
    return 0 if sweep.record.program else config_lib.total_steps(config_lib.load(sweep.folder.config(name)))


def _figure(metric: str, run: RunDirectory, lines: list[dict[str, Any]], trained: dict[str, Any]) -> str:
    """Returns the metric after the evaluation, else at the last interval, else the loss."""
    try:
        evaluated = json.loads(run.metrics.read_text(encoding="utf-8"))["trained"]
        return f"{metric} {evaluated[metric]:.4f}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    key = f"eval/{metric}"
    found = next((line[key] for line in reversed(lines) if key in line), None)
    if found is not None:
        return f"{metric} {found:.4f}"
    return f"loss {trained['loss']:.3f}" if "loss" in trained else ""
