"""The commands `sail-jax VERB ...` and `python -m sail_jax VERB ...`."""

import os
import sys
from typing import NoReturn

from sail_jax.cli import INTERRUPTED, main


def run(program: str = "sail-jax") -> NoReturn:
    """Runs the verb of the command line and ends the process with its status.

    Args:
        program: how the command was called, for help and examples.
    """
    status = main(program=program)
    if status == INTERRUPTED:
        # A thread of XLA may still be compiling, and would crash while the interpreter shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run("python -m sail_jax")
