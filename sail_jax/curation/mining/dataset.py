"""Mines the hard negatives of a data set, and writes them as a table; `mining.arrays` has the method.

    NAME.parquet, NAME.keys.npy   the table (`data.hard_negative_table`)
    NAME.json                     figures and curves
    NAME.png                      the same as a plot
    NAME.embeddings/              during the run: embeddings, which a killed run reuses, and the results so far

Several processes mine together, in a folder that they share: each embeds a part of the items and scores a part of the
queries. The first one writes the files.

The table appears when everything else is written. Queries and targets have the order of their keys, as in the table.
Rows of items with equal content, and if a side shows only text those of equal text, are merged into the first of them,
since training treats them as the same content (`objectives.negative_masks`).

Source: arXiv 2510.12709, sec. 3.1.2.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from sail_jax.buckets import place, remove
from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.schema import nearest
from sail_jax.curation.mining.arrays import Miner, pair_codes
from sail_jax.curation.mining.embeddings import Side, embed_side, embed_sides, read_side
from sail_jax.curation.mining.known_pairs import QueriesAndTargets, known_tables, merge_equal, read_queries_and_targets
from sail_jax.curation.mining.report import draw, threshold_figures, write_figures
from sail_jax.curation.mining.threshold import Threshold
from sail_jax.data.hard_negative_table import write_negatives
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable
from sail_jax.data.views import dataset_views
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.sharding.process_group import Processes

_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class MiningSummary:
    """The figures of mining a data set.

    Attributes:
        dataset: name of the data set.
        output: the table of hard negatives.
        queries: number of its queries.
        queries_without_embedding: number of queries that could not be embedded.
        queries_of_same_text: number of queries merged into an earlier one of the same text or content.
        targets: number of its targets.
        targets_without_embedding: number of targets that could not be embedded.
        targets_of_same_text: likewise for targets.
        positives: number of positives with embeddings on both sides; those of the same contents count once.
        excluded: number of further pairs that are known to be positive, or pair a query with itself.
        short_queries: number of embedded queries with fewer than `per_query` negatives.
        threshold: lambda*, its figures (with the number of likely false negatives left out) and the curves.
    """

    dataset: str
    output: Path
    queries: int
    queries_without_embedding: int
    queries_of_same_text: int
    targets: int
    targets_without_embedding: int
    targets_of_same_text: int
    positives: int
    excluded: int
    short_queries: int
    threshold: Threshold

    def figures(self) -> dict:
        """Returns the figures by name, without the curves."""
        figures = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del figures["output"]
        return figures | threshold_figures(figures.pop("threshold"))

    def __str__(self) -> str:
        found = self.threshold
        return (
            f"{self.dataset}: {self.queries:,} queries, {self.targets:,} targets, {self.positives:,} positives; "
            f"lambda* {found.value:.4f} with F1 {found.f1:.4f} (precision {found.precision:.4f}, "
            f"recall {found.recall:.4f}); {found.false_negatives:,} likely false negatives left out; "
            f"{self.short_queries:,} queries with too few hard negatives"
        )


def mine_dataset(
    embedder: Embedder,
    config: Config,
    store: ItemStore,
    name: str,
    output: Path,
    *,
    query_embeddings: str | Path | None = None,
    target_embeddings: str | Path | None = None,
    model: str | None = None,
) -> MiningSummary:
    """Mines the hard negatives of a data set and writes them.

    Pairs listed in any pair table of the data folder or of the config are never mined; pairs of items in neither
    direction. The files written are listed at the head of this module. Embeddings are kept in a folder until the table
    is complete, so that a killed run can reuse them.

    Args:
        embedder: the model.
        config: the experiment; `data`, `prompt` and `mining` are read.
        store: the item store.
        name: name of the data set.
        output: the table to write, NAME.parquet.
        query_embeddings: file or folder of embeddings to use instead of the model (see `read_side`).
        target_embeddings: likewise.
        model: name of the model, which is written into the table; embeddings of another name are not reused.

    Raises:
        SailError: `output` does not end in .parquet, the data set or its table does not exist, it has fewer than two
            targets (counting those of the same text once) or no positive that could be embedded, or embeddings are
            missing.
    """
    settings, output = _settings(config, name), Path(output)
    if output.suffix != ".parquet":
        raise SailError(
            f"The table of hard negatives cannot be {output}: give it a name that ends in .parquet. Its figures are "
            "written beside it, under the same name with .json and .png."
        )
    where = f"config.data.datasets.{name}"
    table = PairTable.open(place(config.data.dir) / place(settings.table), settings.split)
    distinct = read_queries_and_targets(table)
    processes = embedder.processes
    problem = _mining_problem(distinct, table, config, name, store, processes)
    targets = len(problem.sides[1].keys)
    if targets < 2:
        once = ", counting those of the same text once" if targets < len(distinct.target_keys) else ""
        raise SailError(f"{where}: {table.path} has {targets} target in the split{once}; mining needs at least two.")
    folder = output.parent / f"{output.stem}.embeddings"
    if query_embeddings or target_embeddings:
        embeddings = [
            read_side(side, path, folder, processes)
            if path
            else embed_side(side, embedder, store, folder, model=model, what=name)
            for side, path in zip(problem.sides, (query_embeddings, target_embeddings), strict=True)
        ]
    else:
        embeddings = embed_sides(*problem.sides, embedder, store, folder, model=model, what=name)
    if embeddings[0].shape[1] != embeddings[1].shape[1]:
        widths = " and ".join(str(z.shape[1]) for z in embeddings)
        raise SailError(f"The embeddings of queries and targets have {widths} dimensions; take both from one model.")
    try:
        miner = Miner(*embeddings, problem.positives, problem.excluded, config.mining, name, processes)
    except SailError as error:
        raise SailError(f"{where}: {error}") from error
    mined = _mine(miner, folder, config.mining.per_query, processes)
    summary = _summarise(name, output, problem, miner, mined[0])

    def write() -> None:
        # A table on disk means that the run is complete and that the figures are its own: remove it first, write it
        # last.
        remove(output)
        write_figures(output.with_suffix(".json"), summary.figures(), miner.threshold)
        draw(output.with_suffix(".png"), f"Hard negatives of {name}", miner.threshold)
        metadata = {"dataset": name, "model": model, **threshold_figures(miner.threshold)}
        write_negatives(output, _table_rows(distinct, problem, *mined), metadata)
        remove(folder)

    processes.wait()  # nobody reads in the folder any more
    processes.on_first(write)
    return summary


def _settings(config: Config, name: str) -> DatasetConfig:
    if name not in config.data.datasets:
        raise SailError(
            f"There is no data set {name!r} in config.data.datasets. "
            f"Did you mean {nearest(name, config.data.datasets)}?"
        )
    settings = config.data.datasets[name]
    if settings.kind != "pairs":
        raise SailError(
            f"config.data.datasets.{name} is of kind {settings.kind!r}; hard negatives are mined only for pairs."
        )
    return settings


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The queries and targets to embed and score.

    Merging rows of equal content leaves q of the Q queries and n of the N targets.

    Attributes:
        sides: the q queries and the n targets.
        rows: [Q] and [N] int64, the row in `sides` of each query and target of the data set.
        positives: [P] int64 `pair_codes` of rows in `sides`.
        excluded: [E] int64, likewise.
    """

    sides: tuple[Side, Side]
    rows: tuple[np.ndarray, np.ndarray]
    positives: np.ndarray
    excluded: np.ndarray


def _mining_problem(
    distinct: QueriesAndTargets,
    table: PairTable,
    config: Config,
    name: str,
    store: ItemStore,
    processes: Processes,
) -> _Problem:
    """Reads the positive and the excluded pairs of a data set, and merges rows of equal content."""
    positives = distinct.pairs(table, min_score=config.data.datasets[name].min_score, both_ways=False)
    excluded = _excluded(distinct, positives, config)
    sides = _sides(distinct, config, name)
    contents = [side.content_keys(store, processes, what=name) for side in sides]
    (first_query, query_rows), (first_target, target_rows) = (merge_equal(keys) for keys in contents)
    targets = int(first_target.sum())

    def merged(codes: np.ndarray) -> np.ndarray:
        rows, columns = codes // len(target_rows), codes % len(target_rows)
        return pair_codes(query_rows[rows], target_rows[columns], targets)

    excluded = merged(excluded)
    if sides[0].only_text == sides[1].only_text:  # the keys of both are of texts, or of items
        shown = contents[0][first_query], contents[1][first_target]
        _, *same = np.intersect1d(*shown, assume_unique=True, return_indices=True)
        excluded = np.union1d(excluded, pair_codes(*same, targets))
    merged_sides = sides[0].select(first_query), sides[1].select(first_target)
    return _Problem(merged_sides, (query_rows, target_rows), merged(positives), excluded)


def _sides(distinct: QueriesAndTargets, config: Config, name: str) -> tuple[Side, Side]:
    """Returns queries and targets, shown as in training: with all modalities of the patterns' sides."""
    query, target = dataset_views(config, name)
    return (
        Side("queries", distinct.query_keys, distinct.queries, query),
        Side("targets", distinct.target_keys, distinct.targets, target),
    )


def _excluded(distinct: QueriesAndTargets, positives: np.ndarray, config: Config) -> np.ndarray:
    """Returns the `pair_codes` of pairs that are never mined: a query with itself, and listed pairs."""
    codes = np.union1d(distinct.same_items(), distinct.reverse(positives))
    for table, min_score in known_tables(config):
        codes = np.union1d(codes, distinct.pairs(table, min_score=min_score, both_ways=True))
    return codes


def _mine(miner: Miner, folder: Path, k: int, processes: Processes) -> tuple[np.ndarray, np.ndarray]:
    """Mines the hard negatives of all queries into memory-mapped files.

    Files allow random access: queries of equal content share a row, and need not be neighbours in the table. Each
    process writes the rows of its queries to files of its own, which the first one then joins.

    Returns:
        rows: [q, K] int64 rows of targets, the highest score first; -1 if a query has fewer.
        scores: [q, K] float32; -inf where `rows` is -1.
    """
    total = len(miner.present[0])
    own = processes.rows(total)
    rows, scores = parts = [
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(own.stop - own.start, k))
        for path, dtype in zip(_mined(folder, str(processes.index)), (np.int64, np.float32), strict=True)
    ]
    for start, found, cosines in miner.negatives():
        at = start - own.start
        rows[at : at + len(found)], scores[at : at + len(found)] = found, cosines
    for part in parts:
        part.flush()
    if processes.count == 1:
        return rows, scores
    processes.wait()
    processes.on_first(lambda: _join_mined(folder, total, k, processes.count))
    rows, scores = (np.load(path, mmap_mode="r") for path in _mined(folder, "all"))
    return rows, scores


def _mined(folder: Path, part: str) -> tuple[Path, Path]:
    """Returns the files of mined rows and of their scores, of one process or of all."""
    return folder / f"mined.rows.{part}.npy", folder / f"mined.scores.{part}.npy"


def _join_mined(folder: Path, total: int, k: int, processes: int) -> None:
    """Joins the files of all processes."""
    parts = [_mined(folder, str(process)) for process in range(processes)]
    for number, path in enumerate(_mined(folder, "all")):
        found = [np.load(part[number], mmap_mode="r") for part in parts]
        joined = np.lib.format.open_memmap(path, mode="w+", dtype=found[0].dtype, shape=(total, k))
        np.concatenate(found, out=joined)
        joined.flush()


def _summarise(name: str, output: Path, problem: _Problem, miner: Miner, mined: np.ndarray) -> MiningSummary:
    """Returns the summary; `mined` are the [q, K] rows of the hard negatives."""
    (query_rows, target_rows), (queries, targets) = problem.rows, problem.sides
    embedded = [present[rows] for present, rows in zip(miner.present, problem.rows, strict=True)]
    return MiningSummary(
        dataset=name,
        output=output,
        queries=len(query_rows),
        queries_without_embedding=int(np.sum(~embedded[0])),
        queries_of_same_text=len(query_rows) - len(queries.keys),
        targets=len(target_rows),
        targets_without_embedding=int(np.sum(~embedded[1])),
        targets_of_same_text=len(target_rows) - len(targets.keys),
        positives=miner.positives,
        excluded=miner.excluded,
        short_queries=int(np.sum(embedded[0] & (mined[:, -1] < 0)[query_rows])),
        threshold=miner.threshold,
    )


def _table_rows(
    distinct: QueriesAndTargets, problem: _Problem, mined: np.ndarray, scores: np.ndarray
) -> Iterator[tuple[str | None, str | None, list[str], list[float]]]:
    """Yields the rows of the table of hard negatives; skips queries without any.

    Args:
        distinct: the queries and targets of the data set.
        problem: the queries and targets that were scored.
        mined: [q, K] rows of targets.
        scores: [q, K] their scores.
    """
    target_ids = problem.sides[1].items.column("query_id")
    for start in range(0, len(distinct.queries), _BATCH):
        own = problem.rows[0][start : start + _BATCH]
        rows, cosines = mined[own], scores[own]
        found = rows >= 0
        ids, cosines = target_ids.take(pa.array(rows[found])).to_pylist(), cosines[found].tolist()
        stops = np.cumsum(found.sum(axis=1)).tolist()
        queries = distinct.queries.slice(start, _BATCH).to_pylist()
        for query, begin, end in zip(queries, [0, *stops], stops, strict=False):
            if begin < end:
                yield query["query_id"], query["query_text"], ids[begin:end], cosines[begin:end]
