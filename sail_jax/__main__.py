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
        # XLA may still be compiling in a thread of its own, and crashes when the interpreter is torn down under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run("python -m sail_jax")
