"""Names of hardware, and what a user is told where its compiler is missing."""

import importlib.resources

import pytest
from jax.experimental import topologies

from sail_jax.aot.chips import find_devices
from sail_jax.errors import SailError
from sail_jax.sharding.chips import CHIPS


@pytest.mark.parametrize(
    ("topology", "remedy"),
    [
        ("v5e", "v5e:16x16"),
        ("v7z:2x2", "Known chips"),
        ("h100:some", "a number from 1 to 512"),
        ("h100:0", "a number from 1 to 512"),
        ("a100:9", "8 or 16 would do"),
        ("b200:1000", "a number from 1 to 512"),
    ],
)
def test_hardware_that_cannot_be(topology, remedy):
    with pytest.raises(SailError, match=remedy):
        find_devices(topology)


def test_without_the_compiler_of_gpus(monkeypatch):
    def missing(*_, **options):
        raise RuntimeError(f"Unknown backend {options['platform']}")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(SailError, match=r"needs no GPU, but .*pip install -e '\.\[cuda\]'"):
        find_devices("h100:8")


def test_every_gpu_has_the_data_that_its_compiler_reads():
    folder = importlib.resources.files("sail_jax.aot").joinpath("gpus")
    assert {file.name.removesuffix(".txtpb") for file in folder.iterdir()} == {n for n, c in CHIPS.items() if c.is_gpu}
