"""A signal ends a command at once, with one line and a status, also where the main thread runs native code."""

import hashlib
import os
import signal
import sys
import threading

import pytest

from sail_jax.cli import common, describe, main, signals
from sail_jax.cli.signals import Signals
from sail_jax.errors import Stopped


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_verb_with_a_line_and_a_status(number, status, monkeypatch, capsys):
    def run(*_):
        try:
            os.kill(os.getpid(), number)
        except Exception:  # a record that cannot be read, perhaps
            pytest.fail("taken for an error")

    before = signal.getsignal(number)
    monkeypatch.setattr(describe, "run", run)
    assert main(["describe"]) == status
    assert capsys.readouterr().err == f"stopped by {number.name}: {common.NOTHING_KEPT}\n"
    assert signal.getsignal(number) == before


def test_native_code_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(signals, "_PATIENCE", 0.05)
    ended = threading.Event()
    with pytest.raises(Stopped), Signals(lambda stopped: ended.set()):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while not ended.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # no handler runs meanwhile
    assert ended.is_set()


def test_a_signal_that_comes_while_nothing_can_be_raised_is_not_lost(capfd):
    class Held:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    held, hook = [Held()], sys.unraisablehook
    with pytest.raises(Stopped), Signals(lambda _: pytest.fail("taken for a second one")):
        held.clear()
        threading.Event().wait(60)
    assert "ignored" not in capfd.readouterr().err and sys.unraisablehook is hook


def test_a_second_signal_ends_what_the_first_one_ends_slowly():
    ended = []
    with pytest.raises(Stopped), Signals(ended.append):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
            assert [stopped.number for stopped in ended] == [signal.SIGTERM]
