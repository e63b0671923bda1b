"""Settings of the process for CPUs."""

import os

import pytest

from sail_jax.cli import on_cpu


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not imported JAX, which is installed for CPUs alone."""
    monkeypatch.delitem(on_cpu.sys.modules, "jax")
    monkeypatch.setattr(on_cpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    for name in ("OMP_WAIT_POLICY", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return monkeypatch


def test_the_compiler_works_less_and_says_less_devices_wait_and_waiting_threads_sleep(fresh):
    on_cpu.tune()
    late = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    assert os.environ["XLA_FLAGS"] == f"--xla_a=1 --xla_backend_optimization_level=1 {late}"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_variables_of_the_user_count(fresh):
    given = {
        "XLA_FLAGS": "--xla_backend_optimization_level=3 --xla_cpu_collective_call_terminate_timeout_seconds=9",
        "OMP_WAIT_POLICY": "ACTIVE",
        "TF_CPP_MIN_LOG_LEVEL": "0",
    }
    for name, value in given.items():
        fresh.setenv(name, value)
    on_cpu.tune()
    assert {name: os.environ[name] for name in given} == given


def test_nothing_changes_where_there_may_be_other_devices(fresh):
    fresh.setattr(on_cpu.importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
    on_cpu.tune()
    assert os.environ["XLA_FLAGS"] == "--xla_a=1"
    assert not {"OMP_WAIT_POLICY", "TF_CPP_MIN_LOG_LEVEL"} & set(os.environ)
