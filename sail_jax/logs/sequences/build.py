"""Builds tables of sequences from a recommender's logs, with counts of what was dropped."""

import collections
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config import Config
from sail_jax.config.log_sequences import SequencesConfig
from sail_jax.config.schema import to_dict
from sail_jax.data.sequence_tables import write_sequences
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.files import commit_json
from sail_jax.logs.finished import Finished, build_identity
from sail_jax.logs.log_files import readable_rows
from sail_jax.logs.reader import (
    check_rows,
    check_times,
    count_rows,
    cut_time,
    has_log,
    passed_over_beside,
    scan_events,
    scan_items,
)
from sail_jax.logs.scratch import scratch_folder
from sail_jax.logs.sequences.constructions import CONSTRUCTIONS, Candidates, Construction
from sail_jax.logs.sequences.histories import Histories, histories_of, known_items, partition, read_part
from sail_jax.logs.sequences.item_facts import (
    Consumers,
    Embeddings,
    Labels,
    write_consumers,
    write_embeddings,
    write_labels,
)
from sail_jax.logs.sequences.item_lists import ranges
from sail_jax.logs.sequences.windows import Windows, first_of_each, test_windows, train_windows
from sail_jax.progress import track

SUMMARY = "sequences.json"
_SCRATCH, _ROWS_FOLDER, _FINISHED = ".sequences.spool", ".sequences.rows", ".sequences.finished.json"
_ALL = 1 << 40  # more than any history has
_MAX_PARTS = 1024  # each is an open file while the events are scattered


@dataclasses.dataclass
class Tally:
    """Counts of kept and dropped targets for one split of one construction.

    Attributes:
        users: users with a positive item in this split.
        targets: items considered as targets.
        short_history: targets dropped because fewer than `min_items` items precede them.
        unknown_target: targets dropped because they have no label, or no vector.
        few_kept: targets dropped because the construction kept fewer than `min_items` items.
        sequences: targets that remain.
        candidates: items that precede the targets.
        kept: candidates that the construction kept.
        lengths: length -> sequences.
    """

    users: int = 0
    targets: int = 0
    short_history: int = 0
    unknown_target: int = 0
    few_kept: int = 0
    sequences: int = 0
    candidates: int = 0
    kept: int = 0
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: dict[str, Any]) -> None:
        """Adds the counts of `as_dict` of another tally."""
        for name, value in other.items():
            if name == "lengths":
                self.lengths.update({int(size): count for size, count in value.items()})
            else:
                setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        """The counts as a dict for JSON."""
        return dataclasses.asdict(self) | {"lengths": {str(size): self.lengths[size] for size in sorted(self.lengths)}}


def build_sequences(
    config: Config, source: Path, output: Path, *, embeddings: Path | None = None, store: ItemStore | None = None
) -> dict[str, Any]:
    """Writes a sequence table per construction in the settings, and `sequences.json` with counts.

    What the same build finished before it was broken off, part by part of the users, is kept.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative.
        output: the folder of the tables.
        embeddings: content embeddings: a folder written by `embed`, or Parquet of `id` and `vector`; None for none.
        store: restricts the items; None for all items.

    Returns:
        The content of sequences.json. "skipped" maps each construction that was not built to its missing input.

    Raises:
        SailError: a log, a column, a vector or a setting is wrong, or no construction has its input.
    """
    chosen, skipped = _choose(config, embeddings)
    output.mkdir(parents=True, exist_ok=True)
    identity = build_identity(config, source, store, "sequences", [embeddings] if embeddings else [])
    finished = Finished(output / _FINISHED, identity | {"chosen": list(chosen)})
    with scratch_folder(output / _SCRATCH) as folder, readable_rows(source):
        build = _Build(config, source, folder, output / _ROWS_FOLDER, chosen, embeddings, store)
        tallies = build.run(finished)
        for name in chosen:
            write_sequences(output / f"{name}.parquet", build.rows_of(name))
    summary = {
        "source": str(source),
        "polars": pl.__version__,
        "seed": config.seed,
        "cut": {"test_share": config.logs.test_share, "last_second_of_train": build.cut},
        "settings": to_dict(config.sequences),
        "events": build.events,
        "skipped": skipped,
        "passed_over": passed_over_beside(config, source),
        "tables": {
            name: {split: tally.as_dict() for split, tally in splits.items()} for name, splits in tallies.items()
        },
    }
    commit_json(output / SUMMARY, summary)
    finished.remove()
    shutil.rmtree(output / _ROWS_FOLDER, ignore_errors=True)
    if build.events["rows"] and not any(tally.kept for splits in tallies.values() for tally in splits.values()):
        events = ", ".join(f"{name} {count:,}" for name, count in build.events.items())
        raise SailError(f"The tables have no sequence: of the events, {events}. All counts are in {output / SUMMARY}.")
    return summary


def _choose(config: Config, embeddings: Path | None) -> tuple[dict[str, Construction], dict[str, str]]:
    """The constructions that can be built; and for each other one, its missing input."""
    lacks = {}
    if embeddings is None:
        lacks["embeddings"] = "content embeddings: give --embeddings"
    if not has_log(config, "catalogue") or not config.logs.catalogue.labels:
        lacks["labels"] = "labels of items: set config.logs.catalogue.path and config.logs.catalogue.labels"
    settings = config.sequences
    chosen = {name: CONSTRUCTIONS[name] for name in CONSTRUCTIONS if name in settings.constructions}
    skipped = {name: lacks[need] for name, made in chosen.items() for need in made.needs if need in lacks}
    chosen = {name: made for name, made in chosen.items() if name not in skipped}
    if not chosen:
        reasons = "; ".join(f"{name} needs {reason}" for name, reason in skipped.items())
        raise SailError(f"There is no sequence table to make: {reasons or 'config.sequences.constructions is empty'}.")
    if settings.min_items > settings.length:
        raise SailError(
            f"config.sequences.min_items is {settings.min_items}, more than config.sequences.length, {settings.length}."
        )
    flags = max(1, len(config.logs.events.flags))
    for name, made in chosen.items():
        if made.positives(settings) > flags:
            raise SailError(
                f"{name} takes items with {made.positives(settings)} positive behaviours, but config.logs.events.flags "
                f"names {len(config.logs.events.flags)}: lower config.sequences.{made.peak}_positives, or leave {name} "
                "out of config.sequences.constructions."
            )
    return chosen, skipped


class _Build:
    """The state of one build, with a folder for intermediate files and one for the rows of finished parts."""

    def __init__(
        self,
        config: Config,
        source: Path,
        folder: Path,
        rows: Path,
        chosen: dict[str, Construction],
        embeddings: Path | None,
        store: ItemStore | None,
    ):
        self._settings: SequencesConfig = config.sequences
        self._seed, self._rows, self._chosen, self._store = config.seed, rows, chosen, store
        check_rows(config, source, ("events", "catalogue") if self._needs("labels") else ("events",))
        check_times(config, source, ("events",))
        self.cut = cut_time(config, source)
        least = min(made.positives(self._settings) for made in chosen.values())
        # Consumers of an item always use the multi-peak threshold, whichever constructions are built.
        if self._needs("consumers"):
            least = min(least, self._settings.multi_positives)
        events = scan_events(config, source).filter(pl.col("positives") >= least)
        positive = int(events.select(pl.len()).collect(engine="streaming").item())
        self.events = {
            "rows": count_rows(config, source, "events"),
            "positive": positive,
            "not_in_store": 0,
            "users": 0,
        }
        parts = min(_MAX_PARTS, max(1, -(-positive // self._settings.rows_per_part)))
        columns = events.select("user", "item", "time", "positives")
        self._parts = partition(columns, folder / "events", "user", parts) if positive else []
        self._labels = write_labels(folder / "labels", scan_items(config, source)) if self._needs("labels") else None
        self._embeddings = write_embeddings(folder / "vectors", embeddings) if self._needs("embeddings") else None
        self._consumers = None
        if self._needs("consumers"):
            before = events.filter(pl.col("time") <= self.cut, pl.col("positives") >= self._settings.multi_positives)
            users = self._settings.behaviour_users
            self._consumers = write_consumers(folder / "consumers", before.select("item", "user"), users, parts)

    def run(self, finished: Finished) -> dict[str, dict[str, Tally]]:
        """Writes the rows of all constructions (see `rows_of`); returns construction -> split -> counts.

        Args:
            finished: the parts whose rows an earlier build has written.
        """
        if not finished.parts:
            shutil.rmtree(self._rows, ignore_errors=True)
        tallies = self._tallies()
        for number, part in enumerate(track(self._parts, "sequences", transient=True)):
            if str(number) not in finished.parts:
                finished.add(str(number), self._run_part(number, read_part(part)))
            noted = finished.parts[str(number)]
            for name, count in noted["events"].items():
                self.events[name] += count
            for name, splits in tallies.items():
                for split, tally in splits.items():
                    tally.add(noted["tallies"][name][split])
        return tallies

    def _tallies(self) -> dict[str, dict[str, Tally]]:
        return {name: {split: Tally() for split in made.splits} for name, made in self._chosen.items()}

    def rows_of(self, name: str) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a construction, sorted by the hash of the user."""
        for number in range(len(self._parts)):
            with pq.ParquetFile(self._rows_path(name, number)) as file:
                yield from file.iter_batches()

    def _run_part(self, number: int, events: pl.DataFrame) -> dict[str, Any]:
        """Writes the rows of a part; returns its counts of events, and of targets by construction and split."""
        rows, tallies = len(events), self._tallies()
        if self._store is not None:
            events = known_items(events, self._store)
        counts = {"not_in_store": rows - len(events), "users": events["user"].n_unique()}
        for positives in sorted({made.positives(self._settings) for made in self._chosen.values()}):
            histories = histories_of(events, positives)
            facts = self._facts(histories, positives)
            for name, made in self._chosen.items():
                if made.positives(self._settings) == positives:
                    self._make(name, made, histories, facts, self._rows_path(name, number), tallies[name])
        return {
            "events": counts,
            "tallies": {
                name: {split: tally.as_dict() for split, tally in splits.items()} for name, splits in tallies.items()
            },
        }

    def _facts(self, histories: Histories, positives: int) -> dict[str, Any]:
        """The facts about items that constructions with this threshold need."""
        needs = {
            need for made in self._chosen.values() if made.positives(self._settings) == positives for need in made.needs
        }
        facts: dict[str, Any] = {}
        if "labels" in needs:
            facts["labels"] = Labels(self._labels, histories.item_keys, self._settings.cluster_level)
        if "embeddings" in needs:
            facts["embeddings"] = Embeddings(*self._embeddings, histories.item_keys)
        if "consumers" in needs:
            facts["consumers"] = Consumers(self._consumers, self._settings.behaviour_users, histories.item_keys)
        return facts

    def _make(
        self,
        name: str,
        made: Construction,
        histories: Histories,
        facts: dict[str, Any],
        path: Path,
        tallies: dict[str, Tally],
    ) -> None:
        settings = self._settings
        if made.whole:
            settings = dataclasses.replace(settings, history=_ALL, length=_ALL, windows=1, min_items=1, seen=0)
        history = settings.vanilla_history if name == "eval_vanilla" else settings.history
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, _ROWS) as writer:
            for split, tally in tallies.items():
                if split == "test":
                    windows = test_windows(histories, self.cut, history=history)
                else:
                    windows = train_windows(
                        histories, self.cut, history=history, windows=settings.windows, stride=settings.stride
                    )
                tally.users += len(np.unique(histories.user[windows.target]))
                for some in windows.chunks():
                    candidates = Candidates(settings, self._seed, histories, some, **facts)
                    writer.write_table(_sequences(made, candidates, split, tally))

    def _rows_path(self, name: str, number: int) -> Path:
        return self._rows / name / f"{number}.parquet"

    def _needs(self, need: str) -> bool:
        return any(need in made.needs for made in self._chosen.values())


_ROWS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("target_id", pa.string()),
        ("seen_ids", pa.list_(pa.string())),
        ("split", pa.string()),
    ]
)


def _sequences(made: Construction, candidates: Candidates, split: str, tally: Tally) -> pa.Table:
    """Builds the sequences of some windows, and adds to the counts."""
    settings, histories, windows = candidates.settings, candidates.histories, candidates.windows
    window, entry = candidates.places
    choice = made.choose(candidates)
    short = windows.target - windows.begin < settings.min_items
    usable = ~short & choice.known
    picked = first_of_each(window, choice.kept & usable[window], settings.length, *choice.priority)
    sizes = np.bincount(window[picked], minlength=len(windows))
    good = usable & (sizes >= settings.min_items)
    picked = picked[good[window[picked]]]
    tally.targets += len(windows)
    tally.short_history += int(short.sum())
    tally.unknown_target += int((~short & ~choice.known).sum())
    tally.few_kept += int((usable & ~good).sum())
    tally.sequences += int(good.sum())
    tally.candidates += len(window)
    tally.kept += int(choice.kept.sum())
    tally.lengths.update(sizes[good].tolist())
    windows = Windows(windows.target[good], windows.begin[good])
    return _table(histories, windows, sizes[good], entry[picked], split, settings.seen)


def _table(
    histories: Histories, windows: Windows, sizes: np.ndarray, entry: np.ndarray, split: str, seen: int
) -> pa.Table:
    def lists(sizes: np.ndarray, entry: np.ndarray) -> pa.ListArray:
        ids = pa.array(histories.items[histories.item[entry]], pa.string())
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32()), ids)

    first = np.maximum(windows.begin, windows.target - seen)
    columns = [
        pa.array(histories.users[histories.user[windows.target]], pa.string()),
        lists(sizes, entry),
        pa.array(histories.items[histories.item[windows.target]], pa.string()),
        lists(windows.target - first, ranges(first, windows.target)),
        pa.array([split] * len(windows), pa.string()),
    ]
    return pa.table(columns, schema=_ROWS)
