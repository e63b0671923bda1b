"""The processes that run a verb together (`--distributed`): how they meet, and how one ends all."""

import argparse
import os
import signal
import sys
import traceback
from typing import NoReturn

from sail_jax.errors import SailError

# Processes that are done wait for the others, such as the one that draws the report. The default of five minutes is too
# short for it, and one that runs out ends all of them; those that die are noticed by their heartbeats.
_LONGEST_WAIT = 24 * 3600


def join_processes(options: argparse.Namespace, *, stop_together: bool = False) -> bool:
    """Connects the processes that were started with --distributed; must come before any use of devices.

    Args:
        options: the parsed flags.
        stop_together: whether SIGTERM is a notice that the processes agree on (`training.stop_signals`); else it ends
            the one that gets it.

    Returns:
        Whether this process is the first, which writes and prints the results.

    Raises:
        SailError: the environment does not name the other processes.
    """
    import jax

    if options.distributed and not joined():
        heeds = signal.getsignal(signal.SIGTERM)
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_LONGEST_WAIT)
        except ValueError as error:
            raise SailError(
                f"--distributed finds no other processes ({error}). Start it by Slurm, Open MPI or Kubernetes or on a "
                "TPU pod, or leave the flag out."
            ) from error
        if not stop_together:  # JAX takes SIGTERM as a notice that the host will be wanted elsewhere, and goes on
            signal.signal(signal.SIGTERM, heeds)
    return jax.process_index() == 0


def joined() -> bool:
    """Returns whether this process is connected to others."""
    jax = sys.modules.get("jax")  # importing it takes long, and no verb without devices does
    return jax is not None and jax.distributed.is_initialized()


def leave() -> None:
    """Waits until all processes come here, and disconnects them."""
    import jax

    jax.distributed.shutdown()


def named() -> str:
    """Returns which of several processes this one is, for a message; empty if it runs alone."""
    if not joined():
        return ""
    import jax

    try:
        index, count = jax.process_index(), jax.process_count()
    except (RuntimeError, AssertionError):  # it found no devices
        return ""
    return f" in process {index} of {count}" if count > 1 else ""


def end(status: int) -> NoReturn:
    """Ends this process at once; prints the traceback of an exception that is being handled.

    An interpreter that shuts down would wait for the other processes, and these wait for this one. Without a farewell,
    JAX notices that it is gone and ends them: at once if it was the first, else when its heartbeats have been missing
    for 100 seconds.
    """
    if sys.exc_info()[0]:
        traceback.print_exc()
        if which := named():
            print(f"error{which}; if another one failed before, its message tells why.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
