"""Settings of the process that make JAX faster and quieter, where it has no device but the CPU."""

import importlib.util
import os
import sys

_XLA_FLAGS = {
    # A train step compiles in a quarter less time and runs as fast, as its work is in libraries of kernels.
    "xla_backend_optimization_level": 1,
    # XLA aborts the process if one of several devices of a CPU comes so many seconds late to a collective. By default
    # these are 40, which a busy machine reaches.
    "xla_cpu_collective_call_terminate_timeout_seconds": 600,
}


def tune() -> None:
    """Lowers the effort of XLA's compiler, hides its log, waits for late devices, lets idle threads sleep.

    Call it before JAX is imported. Flags and variables of the user count instead.
    """
    if "jax" in sys.modules or any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
        return
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"--{name}={value}" for name, value in _XLA_FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
    # On CPUs this log has nothing that a user can act on: a compilation of more than two minutes is told as an error,
    # to be reported to XLA. What fails is raised, and what ends the process is still told. JAX's default is 1.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # By default, waiting threads of OpenMP (faiss, scikit-learn, PyTorch) keep a core busy that other threads need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
