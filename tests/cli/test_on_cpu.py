"""Settings of the process for CPUs."""

import os
import subprocess
import sys

import pytest

# Page faults while a thread takes 64 MB, writes on them and frees them, after it has done so once.
FAULTS = """
import resource, sys, threading
from sail_jax.cli import on_cpu

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(2):
        before = faults()
        bytearray(64 << 20)
    print(faults() - before)

on_cpu.importlib.util.find_spec = lambda name: None
on_cpu.tune()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")
@pytest.mark.parametrize("variables", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_is_kept_unless_the_user_tunes_it(variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, env=environment, check=True)
    pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < pages / 10 if not variables else int(done.stdout) > pages / 2
