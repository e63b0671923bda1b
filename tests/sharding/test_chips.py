"""Data sheets of the devices that JAX names."""

from types import SimpleNamespace

import jax
import pytest

from sail_jax.sharding.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H100 80GB HBM3", "h100")],
)
def test_the_sheet_of_a_device(kind, name):
    assert chip_of(SimpleNamespace(device_kind=kind)) is CHIPS[name]


def test_a_device_without_a_sheet():
    assert chip_of(jax.devices("cpu")[0]) is None
    assert chip_of(SimpleNamespace(device_kind="NVIDIA H100 PCIe")) is None  # slower than the card of the sheet
