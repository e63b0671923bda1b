"""Settings of the process that make JAX faster where it has no other device than the CPU."""

import importlib.util
import os
import sys


def tune() -> None:
    """Lowers the effort of XLA's compiler, and lets idle threads sleep; call it before JAX is imported.

    Variables of the user count instead. A train step compiles in a quarter less time and runs as fast, as its work is
    in libraries of kernels.
    """
    if "jax" in sys.modules or any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_optimization_level" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=1".strip()
    # By default, waiting threads of OpenMP (faiss, scikit-learn, PyTorch) keep a core busy that other threads need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
