"""Settles where members stand whose processes ended without a word, and stops those that run."""

import dataclasses
import os
import signal

from sail_jax.sweeps.attempt import ended_unseen, lives_here
from sail_jax.sweeps.folder import Status, SweepFolder, read
from sail_jax.sweeps.slurm import cancel, queued_jobs


def settle(folder: SweepFolder) -> set[str]:
    """Writes the end of members whose processes died without a word; returns SLURM's jobs that go on."""
    members = read(folder.path).members
    queued = queued_jobs() if any(member.status.job for member in members) else set()
    for member in members:
        status = member.status
        if status.job and status.state in ("running", "waiting"):
            gone = queued is not None and status.job not in queued
        else:
            gone = status.state == "running" and lives_here(status) is False
        if gone:
            ended_unseen(folder, member.name, None)
    return queued or set()


def is_queued(status: Status) -> bool:
    """Returns whether a member waits in the queue of a cluster."""
    return bool(status.job) and status.state in ("waiting", "preempted")


def stop(folder: SweepFolder) -> dict[str, str]:
    """Tells the members that run to save their state and end, and lets none start any more.

    Returns:
        Member -> host, of those that run on another machine, where they have to be told.
    """
    folder.stop.touch()
    settle(folder)
    members, elsewhere = read(folder.path).members, {}
    cancel([m.status.job for m in members if m.status.job and m.status.state in ("running", "waiting", "preempted")])
    for member in members:
        status = member.status
        if status.state == "waiting" or is_queued(status):
            folder.write_status(member.name, dataclasses.replace(status, state="stopped"))
        elif status.state == "running" and not status.job and lives_here(status):
            os.kill(status.pid, signal.SIGTERM)
        elif status.state == "running" and not status.job:
            elsewhere[member.name] = status.host
    return elsewhere
