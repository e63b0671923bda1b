"""Measures time and memory of opening and reading an item store of millions of items.

    python experiments/item_store_scale.py --items 5000000 --workdir runs/item_store_scale

Writes {workdir}/items, unless it exists, and the figures to --output. The memory is that of the process (anonymous and
file-backed), minus its memory before the store was opened.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import psutil

from sail_jax.data.store import ItemStore, ItemStoreWriter
from sail_jax.items import Item

ITEMS_PER_SHARD = 4096
LOOKUPS = 100_000
PACKAGES = ("array-record", "msgpack", "numpy")


def write_store(path: pathlib.Path, items: int) -> float:
    """Writes a store of short texts and returns the seconds it took."""
    began = time.perf_counter()
    writer = ItemStoreWriter(path)
    shards = -(-items // ITEMS_PER_SHARD)
    for shard in range(shards):
        if not writer.finished(shard):
            numbers = range(shard * ITEMS_PER_SHARD, min((shard + 1) * ITEMS_PER_SHARD, items))
            writer.write_shard(shard, (Item(f"item-{i}", {"title": f"The title of item {i}"}) for i in numbers))
    writer.finalize(shards)
    return time.perf_counter() - began


def memory() -> tuple[int, int]:
    """(anonymous, file-backed) resident bytes of this process."""
    info = psutil.Process().memory_info()
    return info.rss - info.shared, info.shared


def measure(path: pathlib.Path) -> dict:
    """Measures opening the store and looking items up."""
    items = json.loads((path / "store.json").read_text())["items"]
    # The draws are from all items, so that they touch all pages of the index, as a long training does.
    ids = [f"item-{i}" for i in np.random.default_rng(0).integers(0, items, LOOKUPS)]
    before = memory()
    began = time.perf_counter()
    store = ItemStore.open(path)
    opened = time.perf_counter() - began
    figures = {"items": len(store), "seconds_to_open": opened, "memory_after_opening": growth(before, len(store))}
    began = time.perf_counter()
    store.positions(ids)
    figures["positions_per_second_in_a_batch"] = LOOKUPS / (time.perf_counter() - began)
    figures["memory_after_positions"] = growth(before, len(store))
    began = time.perf_counter()
    for item_id in ids:
        store.get(item_id)
    figures["items_per_second_one_by_one"] = LOOKUPS / (time.perf_counter() - began)
    figures["memory_after_lookups"] = growth(before, len(store))
    return figures


def growth(before: tuple[int, int], items: int) -> dict:
    """Bytes per item by which the memory grew."""
    anonymous, file_backed = (now - then for now, then in zip(memory(), before, strict=True))
    return {
        "anonymous_bytes_per_item": anonymous / items,
        "file_backed_bytes_per_item": file_backed / items,
        "rss_bytes_per_item": (anonymous + file_backed) / items,
    }


def main() -> None:
    """Parses the command line, writes, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5_000_000)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("experiments/results/item_store_scale.json")
    )
    options = parser.parse_args()
    path = options.workdir / "items"
    seconds = None if (path / "store.json").exists() else write_store(path, options.items)
    # In a separate process, whose memory the writing has not affected.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(measure, path).result()
    size = sum(file.stat().st_size for file in (path / "index").iterdir())
    figures |= {
        "items_per_shard": ITEMS_PER_SHARD,
        "lookups": LOOKUPS,
        "index_bytes_per_item_on_disk": size / figures["items"],
        "seconds_to_write": seconds,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
