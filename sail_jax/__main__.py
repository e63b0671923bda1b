"""`python -m sail_jax VERB ...`."""

import os
import sys

from sail_jax.cli import INTERRUPTED, main

if __name__ == "__main__":
    status = main()
    if status == INTERRUPTED:
        # XLA may still be compiling in a thread of its own, and crashes when the interpreter is torn down under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
