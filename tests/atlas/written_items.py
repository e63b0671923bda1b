"""The items of `tests/written_by_0_1`, as what the points of an atlas are made of."""

import tiny

from sail_jax.data.store import ItemStore

IDS = [f"item{number:06d}" for number in range(48)]


def open_items():
    return ItemStore.open(tiny.REPO / "tests" / "written_by_0_1" / "data" / "items")
