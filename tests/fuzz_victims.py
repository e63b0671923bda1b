"""Cases for the test of the processes of the fuzzer, apart from what takes long to import."""

import os
import signal
import time


def victim(number: int) -> tuple[str, str]:
    """Kills its process, ends it, or hangs, by the number; otherwise returns the number."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        os._exit(7)
    if number == 5:
        time.sleep(600)
    return "read", str(number)
