"""Runs verbs in processes of their own, for experiments; says which machine they ran on."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax

from sail_jax.errors import SailError

REPO = Path(__file__).parents[1]


def call(*arguments: str, one_thread: bool = True) -> None:
    """Runs a verb in its own process; verbs share the compilation cache.

    Raises:
        SailError: it failed; the message ends with what it printed.
    """
    environment = dict(os.environ)
    if one_thread:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    command = [sys.executable, "-m", "sail_jax", *arguments]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SailError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def machine() -> dict[str, object]:
    """A description of the machine, for the results."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__}
