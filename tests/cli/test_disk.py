"""What a command says of a disk that is full or read-only, whichever library finds out."""

import pytest

from sail_jax.cli import describe, main
from sail_jax.cli.disk import disk_problem

# What the libraries say, met on a file system of 6 MB.
SAID = {
    OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device"): "OUT: No space left",
    RuntimeError("Error in void faiss::write_index: write error in /a/z: 4 != 9 (No space left on device)"): "/a/z: No",
    RuntimeError("open() failed: Read-only file system; opening /a/r; Failed to create the header"): "/a/r: Read-only",
    OSError("Read-only file system (os error 30): /a/p.parquet"): "/a/p.parquet: Read-only",
    ValueError('RESOURCE_EXHAUSTED: "x/0" at local file "/a/14/": Failed: No space left on device [28]'): "/a/14/: No",
    OSError(30, "Read-only file system", "/a/b c"): "/a/b c: Read-only",
}


@pytest.mark.parametrize("error", SAID)
def test_the_problem_and_its_place(error):
    assert disk_problem(error, "OUT").startswith(SAID[error])
    later = RuntimeError("the writer failed")
    later.__cause__ = error
    assert disk_problem(later, "OUT").startswith(SAID[error])


def test_a_full_disk_ends_a_verb_with_a_line_and_a_status(monkeypatch, capsys):
    def run(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(describe, "run", run)
    assert main(["describe"]) == 74
    assert "No space left on device. Make room" in capsys.readouterr().err


def test_other_errors_are_left_alone(monkeypatch):
    def run(*_):
        raise ValueError("wrong")

    assert disk_problem(ValueError("wrong"), "OUT") == ""
    monkeypatch.setattr(describe, "run", run)
    with pytest.raises(ValueError, match="wrong"):
        main(["describe"])
