"""The message where JAX lacks the devices that `JAX_PLATFORMS` asks for."""

import os
import subprocess
import sys

import jax
import pytest

from sail_jax.cli import main
from sail_jax.cli.no_device import missing_devices


@pytest.mark.slow
def test_a_verb_without_the_gpu_that_is_asked_for():
    command = [sys.executable, "-m", "sail_jax", "describe", "--config", "quickstart"]
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for part in ("JAX_PLATFORMS is 'cuda'", "JAX finds no such device", f"jax {jax.__version__}", "'.[cuda]'"):
        assert part in line


@pytest.mark.parametrize(("platform", "remedy"), [("tpu", "'.[tpu]'"), ("gpuu", "Name cpu, cuda or tpu")])
def test_other_platforms(platform, remedy, monkeypatch, capsys):
    def refuse():
        raise RuntimeError(f"Unable to initialize backend '{platform}': no.\n (set JAX_PLATFORMS='' to choose)")

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(jax, "devices", refuse)
    assert main(["describe", "--config", "quickstart"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"JAX_PLATFORMS is '{platform}', but: Unable to initialize backend '{platform}': no. Installed: " in line
    assert remedy in line


def test_an_error_with_devices_is_not_explained_away():
    assert missing_devices() == ""
