"""What to tell a user whose `JAX_PLATFORMS` asks for devices that JAX cannot use."""

import importlib.metadata
import os
import re
import sys

# What JAX and its plugins install: jaxlib, jax-cuda12-plugin, libtpu.
_PACKAGES = re.compile(r"(jax|jaxlib|jax-.*|libtpu)")
_REMEDIES = {
    "cuda": "Install `pip install -e '.[cuda]'`, or the same JAX with the plugin of your CUDA; `nvidia-smi` must list "
    "a GPU, and CUDA_VISIBLE_DEVICES must not hide it",
    "tpu": "Install `pip install -e '.[tpu]'` on a machine with a TPU that no other process uses",
}


def missing_devices() -> str:
    """Returns a line that says which devices JAX lacks and what to install; empty if it can use some.

    Call it only after an error: it starts JAX's backends.
    """
    if "jax" not in sys.modules:
        return ""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a platform was found
        asked = os.environ.get("JAX_PLATFORMS", "")
        found = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        remedy = next((text for name, text in _REMEDIES.items() if name in asked), "Name cpu, cuda or tpu")
        return (
            f"JAX_PLATFORMS is {asked!r}, but: {found or 'JAX finds no such device'}. "
            f"Installed: {', '.join(_installed())}. {remedy}; or unset JAX_PLATFORMS to take what is there."
        )
    return ""


def _installed() -> list[str]:
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    found = [f"{name} {version}" for name, version in sorted(packages.items()) if _PACKAGES.fullmatch(name)]
    plugin = any("cuda" in name or "libtpu" in name for name in found)
    return found if plugin else [*found, "no plugin for GPUs or TPUs"]
