"""`python -m sail_jax VERB ...`."""

import sys

from sail_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
