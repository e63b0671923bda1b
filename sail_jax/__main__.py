"""The commands `sail-jax VERB ...` and `python -m sail_jax VERB ...`."""

import sys
from typing import NoReturn

from sail_jax.cli import main
from sail_jax.cli.distributed import end, joined
from sail_jax.cli.signals import ignore_signals
from sail_jax.errors import DiskError, Stopped


def run(program: str = "sail-jax") -> NoReturn:
    """Runs the verb of the command line and ends the process with its status.

    Args:
        program: how the command was called, for help and examples.
    """
    sys.stdout.reconfigure(line_buffering=True)  # in a file too, lines appear when they are printed
    try:
        status = main(program=program)
    except Exception:
        if joined():
            end(1)
        raise
    # Threads that still compile, or could not write, would crash or complain while the interpreter shuts down.
    if status in (*Stopped.STATUSES, DiskError.status) or (status and joined()):
        end(status)
    if not joined():  # else it may wait for others
        ignore_signals()
    sys.exit(status)


if __name__ == "__main__":
    run("python -m sail_jax")
