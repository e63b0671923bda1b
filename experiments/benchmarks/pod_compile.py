"""Time and memory of compiling the full-size step for slices of 256 chips, on this machine.

    python -m experiments.benchmarks.pod_compile

It compiles the same as `python -m sail_jax describe --config configs/sail_1b5.py --topology v5e:16x16`, all patterns
and losses, for each slice in its own process without a compilation cache. Nothing is run; only libtpu (the `tpu` extra)
is needed.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import resource
from typing import Any

import jax

from experiments.benchmarks import common
from sail_jax import config as config_lib
from sail_jax.aot.compile import compile_ahead

GIB = 2**30
TOPOLOGIES = ("v5e:16x16", "v6e:16x16")
PAIRS = 512


def compile_for(topology: str) -> dict[str, Any]:
    """Compiles in this process; returns its time and memory, and the memory of a chip of the slice."""
    jax.config.update("jax_enable_compilation_cache", False)
    report = compile_ahead(config_lib.load("configs/sail_1b5.py", [f"data.batch_size={PAIRS}"]), topology)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": report.seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "chip_bytes": report.memory.total,
        "chip_room": report.room,
        "sent_bytes": dict(report.sent),
        "executed": report.executed,
        "model": report.model,
        "fits": report.fits,
    }


def rows(found: dict[str, dict]) -> list[dict]:
    """The lines of the table in docs/benchmarks.md."""
    return [
        {
            "what": f"compile the full-size step for {topology}, {PAIRS} pairs (time; memory of the compiler; "
            "memory of a chip)",
            "ours": f"{told['seconds'] / 60:.0f} min; {told['peak_bytes'] / GIB:.1f} GiB; "
            f"{told['chip_bytes'] / GIB:.1f} of {told['chip_room'] / GIB:.0f} GiB"
            f"{'' if told['fits'] else ', does not fit'}",
            "peer": "",
            "ratio": None,
        }
        for topology, told in found.items()
    ]


def main() -> None:
    """Parses the command line, compiles, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "topologies", nargs="*", default=list(TOPOLOGIES), help="those to compile for, one after the other"
    )
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only one process at a time may hold libtpu, and it is the child
    found = {}
    for topology in options.topologies:
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found[topology] = pool.submit(compile_for, topology).result()
        figures = {"machine": common.machine(), "versions": common.versions("jaxlib", "libtpu", "flax")}
        # After each, as the next may fail.
        common.write("pod_compile", figures | {"slices": found, "rows": rows(found)})


if __name__ == "__main__":
    main()
