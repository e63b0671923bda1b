"""Draws samples of training sets and benchmarks from their tables, and embeds them, for balancing.

Axis letters: n samples, D width.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.evaluation import EvalTaskConfig
from sail_jax.data.features import View
from sail_jax.data.sequence_tables import LatestItems, open_pairs
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable, pair_positions
from sail_jax.data.views import dataset_views, task_views
from sail_jax.embedding.embed_pass import embed_pass
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.items import item_key
from sail_jax.patterns import MODALITIES

# The kinds of embedding by which sets are compared: of all modalities of an item, or of a single one.
FUSED = "fused"
KINDS = (FUSED, *MODALITIES)

_STREAM = 0xBA1A  # makes these draws independent of others with the same seed


@dataclasses.dataclass(frozen=True)
class SampledSet:
    """A training set or a benchmark: a pair table, and how items are shown on each side.

    Attributes:
        name: its name in the config.
        where: dotted key of its settings, for messages.
        table: the rows of its split.
        views: the views of the query side and of the target side.
    """

    name: str
    where: str
    table: PairTable | LatestItems
    views: tuple[View, View]


def training_set(config: Config, name: str) -> SampledSet:
    """Opens a training set of a config.

    A side shows all modalities that a pattern of the set shows on it. A history is represented by its latest item.

    Raises:
        SailError: a setting is wrong, or the table has no row in the split.
    """
    settings = config.data.datasets[name]
    return _sampled_set(config, name, f"config.data.datasets.{name}", settings, dataset_views(config, name))


def benchmark(config: Config, name: str) -> SampledSet:
    """Opens the table of an evaluation task as a benchmark.

    Raises:
        SailError: as `training_set`.
    """
    return _sampled_set(config, name, f"config.eval.tasks.{name}", config.eval.tasks[name], task_views(config, name))


def _sampled_set(
    config: Config, name: str, where: str, settings: DatasetConfig | EvalTaskConfig, views: tuple[View, View]
) -> SampledSet:
    table = open_pairs(place(config.data.dir) / place(settings.table), settings.split, settings.kind)
    if not len(table):
        raise SailError(f"{where}: {settings.table} has no row in the split {settings.split!r}.")
    return SampledSet(name, where, table, views)


def sample_items(chosen: SampledSet, store: ItemStore, count: int, seed: int) -> dict[View, list[int | str]]:
    """Draws items of a set, equally from both sides; only the seed and the set's name decide the draw.

    Args:
        chosen: the set.
        store: the item store.
        count: maximum number of items of both sides together; an item shown in the same way on both counts once.
        seed: the experiment's seed.

    Returns:
        View -> items shown under it, as positions in the store (int) or free texts (str). If both sides have the same
        view, there is only one.

    Raises:
        SailError: the table refers to an item that is not in the store.
    """
    rng = np.random.default_rng([seed, _STREAM, item_key(chosen.name)])
    rows = rng.choice(len(chosen.table), size=min(count, len(chosen.table)), replace=False)
    items: dict[View, dict[int | str, None]] = {view: {} for view in chosen.views}
    # If no item repeats, the first half of the rows is enough.
    for part in np.array_split(rows, 2):
        if len(part) and sum(map(len, items.values())) < count:
            _add_items(items, chosen, _references(chosen, part, store), count)
    return {view: list(found) for view, found in items.items()}


def _add_items(
    items: dict[View, dict[int | str, None]],
    chosen: SampledSet,
    references: Iterable[tuple[int | str, int]],
    count: int,
) -> None:
    """Adds both sides of each reference to the items of their views, until there are `count` items."""
    for pair in references:
        for view, item in zip(chosen.views, pair, strict=True):
            if sum(map(len, items.values())) < count:
                items[view].setdefault(item)


def _references(chosen: SampledSet, rows: np.ndarray, store: ItemStore) -> Iterator[tuple[int | str, int]]:
    """Yields (query, target) of rows of a table, in the order of `rows`.

    They are positions in the store; a free-text query is its text.
    """
    # Read rows in ascending order, so that no part of the file is read twice.
    pairs = {row: chosen.table[row] for row in np.sort(rows).tolist()}
    ordered = [pairs[row] for row in rows.tolist()]
    return zip(*pair_positions(ordered, store, f"{chosen.where}: the table {chosen.table.path}"), strict=True)


def embed_samples(
    embedder: Embedder, chosen: SampledSet, items: dict[View, list[int | str]], store: ItemStore, scratch: Path
) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Embeds the items drawn by `sample_items`, fused and by each single modality.

    Args:
        embedder: the model.
        chosen: the set.
        items: view -> items shown under it.
        store: the item store.
        scratch: folder for the embeddings; the caller removes it.

    Returns:
        For each view: kind of embedding -> vectors [n, D] float32, memory-mapped, and which of them are valid, [n]
        bool. A fused vector is valid if the item has at least two modalities.

    Raises:
        SailError: too many items could not be loaded.
    """
    return [
        _embed_side(
            embedder,
            view,
            found,
            store,
            scratch / f"{chosen.where}.{number}.npy",
            f"{chosen.name}: {_side_names(chosen, view)}",
        )
        for number, (view, found) in enumerate(items.items())
        if found
    ]


def _side_names(chosen: SampledSet, view: View) -> str:
    names = zip(("queries", "targets"), chosen.views, strict=True)
    return " and ".join(name for name, other in names if other == view)


def _embed_side(
    embedder: Embedder, view: View, found: list[int | str], store: ItemStore, path: Path, what: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    singles = tuple(view.modalities)
    views = singles if len(singles) == 1 else (view.modalities, *singles)
    loaders = (functools.partial(store.entry, item) for item in found)
    z = embed_pass(embedder, loaders, len(found), view, views, path, what=what)
    sides = {letter: (z[letter], z[letter].any(axis=1)) for letter in singles}
    if len(singles) > 1:
        shown = sum(mask.astype(int) for _, mask in sides.values())
        sides[FUSED] = (z[view.modalities], shown >= 2)
    return sides
