"""Opens a file of points with Embedding Atlas (Apple, MIT licence), in a process of its own.

It serves this machine alone, reads the file into its memory, and loads nothing from elsewhere.
"""

import contextlib
import http.client
import importlib.util
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sail_jax.atlas.table import AtlasReport
from sail_jax.errors import SailError

INSTALL = "pip install -e '.[atlas]'"
_HOST = "127.0.0.1"
_MOMENT = 0.2  # seconds between two looks whether it answers
_GRACE = 10.0  # seconds that it gets to end


def is_installed() -> bool:
    """Returns whether Embedding Atlas, which is an extra, is installed."""
    return importlib.util.find_spec("embedding_atlas") is not None


def free_port(port: int) -> int:
    """Returns a port of 127.0.0.1, that which is asked for, or any free one for 0.

    Raises:
        SailError: the port is taken or out of range.
    """
    try:
        with socket.create_server((_HOST, port)) as opened:
            return opened.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise SailError(f"Port {port} of {_HOST} cannot be opened ({error}); name another --port.") from error


def flags_of(path: Path, report: AtlasReport) -> list[str]:
    """Returns what the command `embedding-atlas` is told: the file, its columns, where it serves."""
    shown = {"text": report.texts, "image": report.pictures}
    columns = [word for name, count in shown.items() if count for word in (f"--{name}", name)]
    return [str(path), "--x", "x", "--y", "y", *columns, "--host", _HOST]


class Viewer:
    """A process of Embedding Atlas; a context manager, entered when the page answers.

    Args:
        flags: see `flags_of`.
        port: port of 127.0.0.1, where it listens.

    Raises:
        SailError: the process ends before its page answers; the message has the last line that it says.
    """

    def __init__(self, flags: Sequence[str], port: int) -> None:
        own = ("--port", str(port), "--no-auto-port")
        self._command = [sys.executable, "-m", "embedding_atlas.cli", *flags, *own]
        self._port = port

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{_HOST}:{self._port}/"

    def wait(self) -> None:
        """Waits for a signal.

        Raises:
            SailError: the process ends by itself; the message has the last line that it says.
        """
        self._process.wait()
        raise SailError(f"Embedding Atlas ended: {self._last_line()}")

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=self._said)
        try:
            while not self._answers():
                if self._process.poll() is not None:
                    raise SailError(f"Embedding Atlas could not be started: {self._last_line()}")
                time.sleep(_MOMENT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._process.terminate()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=_GRACE)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/data/metadata.json")
            return connection.getresponse().status == http.client.OK
        return False

    def _last_line(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {self._process.returncode}"
