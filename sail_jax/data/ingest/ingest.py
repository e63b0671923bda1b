"""Ingests a user's raw export into an item store, pair tables and a tokenizer.

    OUTPUT/
      items/              the item store
      tables/NAME.parquet the pair tables
      tokenizer/          if one is trained
      ceilings.json       what a perfect model reaches on the tables, if the export is a world that says so
      bad_records.jsonl   the skipped records, with reasons
      ingest.json         written last: counts, settings and source

The work is divided into stages (shards, index, tables, tokenizer). The output of a finished stage is kept: an
interrupted ingestion continues after it, and ends with the same files as one that was not interrupted.
"""

import collections
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from sail_jax.buckets import fetch, place, remove, require_local
from sail_jax.config import Config
from sail_jax.config.schema import to_dict
from sail_jax.data import store as store_lib
from sail_jax.data import tables as tables_lib
from sail_jax.data.ceilings import CEILINGS, read_ceilings
from sail_jax.data.ingest.journal import BAD_RECORDS, JOURNAL, Journal, check_identity, said_of_bad
from sail_jax.data.ingest.records import RecordReader
from sail_jax.data.ingest.references import Holdout, check_table, self_pairs, table_columns, table_pairs
from sail_jax.data.ingest.sources import Row, RowSource, open_table, open_tfds
from sail_jax.data.ingest.vector_tables import VectorTable, build_vectors, open_vectors
from sail_jax.data.ingested import MARKER
from sail_jax.data.prompts import prompt_texts, train_tokenizer
from sail_jax.data.store import ItemStore, ItemStoreWriter
from sail_jax.data.tables import PairTable, write_pairs
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import commit_json
from sail_jax.items import Item
from sail_jax.progress import NameColumn, Progress
from sail_jax.terminal import Terminal

_TOKENIZER = "tokenizer"
# The vector tables that are joined to the items; removed when all items are written.
_VECTORS = "vectors.partial"
_THREADS = min(16, os.cpu_count() or 1)
# Rows loaded ahead of the writer.
_WINDOW = 4 * _THREADS


@dataclasses.dataclass(frozen=True)
class IngestReport:
    """Counts of what an ingestion wrote.

    Attributes:
        items: items in the store.
        modalities: modalities -> number of items with exactly these, for example {"VTA": 10, "T": 2}.
        tables: table -> split -> rows.
        bad_records: number of skipped records.
        passed_over: for each folder of tables that holds more than tables, a line on the rest.
        embeddings: ID embedding -> number of items that have it.
    """

    items: int
    modalities: dict[str, int]
    tables: dict[str, dict[str, int]]
    bad_records: int
    passed_over: list[str] = dataclasses.field(default_factory=list)
    embeddings: dict[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        by_modality = ", ".join(f"{name} {count:,}" for name, count in self.modalities.items())
        lines = [f"{self.items:,} items ({by_modality})"]
        lines += [f"ID embedding {name}: {count:,} items have it" for name, count in self.embeddings.items()]
        for name, splits in self.tables.items():
            lines.append(f"table {name}: " + ", ".join(f"{split} {rows:,}" for split, rows in splits.items()) + " rows")
        lines.append(f"{self.bad_records:,} bad records")
        return "\n".join([*lines, *self.passed_over])


def ingest(
    config: Config, source: str | pathlib.Path, output: str | pathlib.Path, *, resume: bool = True
) -> IngestReport:
    """Ingests the raw export in folder `source` as `config.ingest` describes.

    Args:
        config: the experiment; its `ingest` and `seed` are read.
        source: the folder to which tables and media files are relative; for a TFDS data set, the TFDS data folder.
        output: the folder to write.
        resume: continue an interrupted ingestion in `output`; if False, it is removed first.

    Raises:
        SailError: wrong settings, a missing file or column, too many bad records, or `output` holds an ingestion with
            other settings or another source.
    """
    require_local(source, "The source of an ingestion")
    source, output = pathlib.Path(source), place(output)
    console = Terminal(highlight=False)
    reader = RecordReader(config.ingest, source)
    items, tables = _open_sources(config, source, reader)
    vectors = {
        name: open_vectors(source, path, f"config.ingest.vectors.{name}")
        for name, path in config.ingest.vectors.items()
    }
    _check_names(config)
    opened = [items, *vectors.values(), *filter(None, tables.values())]
    fingerprints = {f"source {table.name}": table.fingerprint for table in opened}
    identity = _identity(config) | fingerprints
    if not resume:
        _clear(output)
    fetch(output, leave_out=_is_large)
    if (output / MARKER).is_file():
        finished = json.loads((output / MARKER).read_text())
        check_identity(output, finished["identity"], identity)
        report = IngestReport(**finished["report"])
        done = f"{output} is already done; to read the export again, remove it or name another."
        console.print("\n".join(filter(None, (done, str(report), said_of_bad(output)))), highlight=False)
        return report
    _check_foreign(output)
    for line in dict.fromkeys(table.assumed for table in opened if table.assumed):
        console.print(line)
    journal = Journal(output, identity, config.ingest.max_bad_records)
    with _progress(console) as progress:
        run = _Run(config, output, journal, progress)
        modalities, found = run.write_items(items, reader, vectors)
        store = ItemStore.open(output / store_lib.FOLDER)
        counts = {name: run.write_table(name, table, store) for name, table in tables.items()}
        run.write_tokenizer(store)
    _write_ceilings(config, source, output)
    others = [table.passed_over for table in opened if table.passed_over]
    embeddings = {name: found.get(name, 0) for name in (*config.ingest.source.id_embeddings, *config.ingest.vectors)}
    report = IngestReport(len(store), modalities, counts, journal.bad_records, others, embeddings)
    summary = {"report": dataclasses.asdict(report), "identity": identity}
    commit_json(output / MARKER, summary)
    journal.remove()
    console.print(
        "\n".join(filter(None, (str(report), said_of_bad(output), f"Written to {output.absolute()}"))), highlight=False
    )
    return report


def _open_sources(
    config: Config, source: pathlib.Path, reader: RecordReader
) -> tuple[RowSource, dict[str, RowSource | None]]:
    """Opens the items and the tables (None for one of self-pairs), and checks their columns."""
    settings = config.ingest.source
    if bool(settings.path) == bool(settings.tfds):
        raise SailError(
            "Set config.ingest.source.path to the table of items, or config.ingest.source.tfds to a TFDS data set."
        )
    if settings.tfds:
        items = open_tfds(source, settings.tfds)
    else:
        items = open_table(source, settings.path, "config.ingest.source.path", settings.header)
    items = items.require(reader.columns())
    tables: dict[str, RowSource | None] = {}
    for name, table in config.ingest.tables.items():
        check_table(name, table)
        tables[name] = open_table(source, table.path, f"config.ingest.tables.{name}.path") if table.path else None
        if table.path:
            tables[name] = tables[name].require(table_columns(name, table))
    return items, tables


def _check_names(config: Config) -> None:
    twice = config.ingest.vectors.keys() & config.ingest.source.id_embeddings.keys()
    if twice:
        raise SailError(
            f"config.ingest.vectors and config.ingest.source.id_embeddings both have {min(twice)!r}. "
            "Rename one of them."
        )


def _identity(config: Config) -> dict:
    """The settings that determine the output; not limits of bad records and of time, which a resume may raise."""
    settings = to_dict(config.ingest)
    del settings["max_bad_records"], settings["max_decode_seconds"]
    if not settings["outside_paths"]:  # as in ingestions of versions that did not have it
        del settings["outside_paths"]
    return {"config.seed": config.seed} | {f"config.ingest.{name}": value for name, value in settings.items()}


def _clear(output: pathlib.Path) -> None:
    for name in (store_lib.FOLDER, tables_lib.FOLDER, _TOKENIZER, _VECTORS):
        remove(output / name)
    for name in (MARKER, BAD_RECORDS, JOURNAL, CEILINGS):
        remove(output / name)


def _write_ceilings(config: Config, source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the ceilings of a generated world, under the names of the ingested tables."""
    known = read_ceilings(source)
    paths = {name: table.path for name, table in config.ingest.tables.items()}
    tables = {name: known["tables"][path] for name, path in paths.items() if path in known["tables"]}
    if tables:
        commit_json(output / CEILINGS, known | {"tables": tables})


def _check_foreign(output: pathlib.Path) -> None:
    if (output / store_lib.FOLDER).exists() and not (output / JOURNAL).exists():
        raise SailError(f"{output / store_lib.FOLDER} was not written by ingest. Ingest into another --workdir.")


class _Run:
    """The stages of one ingestion."""

    def __init__(self, config: Config, output: pathlib.Path, journal: Journal, progress: Progress):
        self._config, self._output, self._journal, self._progress = config.ingest, output, journal, progress
        self._holdout = Holdout(config.seed, config.ingest.holdout)
        self._prompts = prompt_texts(config)

    def write_items(
        self, source: RowSource, reader: RecordReader, vectors: Mapping[str, RowSource]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Writes the store; returns the number of items by modalities, and by ID embedding."""
        if self._journal.result("index") is None:
            reader.join(self._vectors(vectors))
        writer = ItemStoreWriter(self._output / store_lib.FOLDER)
        size = self._config.items_per_shard
        results = list(itertools.takewhile(bool, map(self._journal.result, map(_shard_stage, itertools.count()))))
        task = self._task("items", source.rows, min(len(results) * size, source.rows))
        rows = source.read(len(results) * size)
        with ThreadPoolExecutor(_THREADS) as pool:
            loaded = _ahead(pool, reader, rows)
            try:
                while (first := next(loaded, None)) is not None:
                    shard = _Shard(self._journal, dict(results[-1]["widths"]) if results else {})
                    stretch = itertools.chain([first], itertools.islice(loaded, size - 1))
                    writer.write_shard(len(results), shard.items(stretch, lambda: self._advance(task)))
                    results.append(self._journal.finish(_shard_stage(len(results)), shard.result()))
            finally:
                pool.shutdown(cancel_futures=True)
        self._close(task)
        if not any(result["modalities"] for result in results):
            raise SailError(
                f"{source.name} holds no usable item; bad records are listed in {self._output / BAD_RECORDS}."
            )
        hidden = self._write_index(writer, source, results)
        shutil.rmtree(self._output / _VECTORS, ignore_errors=True)

        # A journal of an older version has counts of modalities alone.
        modalities = _visible((of["modalities"] for of in results), hidden.get("modalities", hidden))
        return modalities, _visible((of.get("embeddings", {}) for of in results), hidden.get("embeddings", {}))

    def _vectors(self, sources: Mapping[str, RowSource]) -> dict[str, VectorTable]:
        """Builds the vector tables for look-up; a resumed run builds them again, and reports bad records only once."""
        tables = {}
        for number, (name, source) in enumerate(sources.items()):
            stage = f"vectors {name}"
            noted = self._journal.result(stage) is not None
            task = self._task(stage, source.rows, 0)
            tables[name] = build_vectors(
                source,
                self._output / _VECTORS / str(number),
                (lambda _: None) if noted else self._journal.bad,
                functools.partial(self._advance, task),
            )
            self._close(task)
            if not noted:
                self._journal.finish(stage, {})
        return tables

    def _write_index(
        self, writer: ItemStoreWriter, source: RowSource, results: list[dict]
    ) -> dict[str, dict[str, int]]:
        """Completes the store; returns the number of duplicate items, counted as by `_Counts`."""
        if (done := self._journal.result("index")) is not None:
            return done
        hidden = _Counts()

        def row_of(shard: int, record: int) -> int:
            good = np.delete(np.arange(results[shard]["rows"]), results[shard]["skipped"])
            return shard * self._config.items_per_shard + int(good[record]) + 1

        def on_duplicate(item_id: str, first: tuple[int, int], repeated: tuple[int, int]) -> None:
            hidden.add(writer.read(*repeated))
            problem = f"row {row_of(*first)} has the same id"
            error = BadRecordError(problem, remedy="Give each item an id of its own; the first one is used")
            record = f"{item_id} (row {row_of(*repeated)})"
            self._journal.bad(error.at(source=source.name, record=record, field=self._config.source.id))

        writer.finalize(len(results), on_duplicate)
        return self._journal.finish("index", hidden.result())

    def write_table(self, name: str, source: RowSource | None, store: ItemStore) -> dict[str, int]:
        """Writes a pair table; returns the number of rows by split."""
        stage = f"table {name}"
        if (done := self._journal.result(stage)) is not None:
            return done
        task = self._task(stage, source.rows if source else len(store), 0)
        if source is None:
            rows = self._counted(self_pairs(store, self._holdout), task)
        else:
            settings = self._config.tables[name]
            rows = table_pairs(
                source, settings, store, self._holdout, self._journal.bad, lambda count: self._advance(task, count)
            )
        path = self._output / tables_lib.FOLDER / f"{name}.parquet"
        counts = write_pairs(path, rows)
        self._close(task)
        if not counts:
            remove(path)
            raise SailError(f"config.ingest.tables.{name}: {source.name} holds no usable row.")
        return self._journal.finish(stage, counts)

    def write_tokenizer(self, store: ItemStore) -> None:
        """Trains the tokenizer, if configured, on the text of all items and queries.

        Each item adds one prompt to the corpus, so that prompts take few tokens.
        """
        if not self._config.tokenizer_vocab or self._journal.result(_TOKENIZER) is not None:
            return
        remove(self._output / _TOKENIZER)
        task = self._task(_TOKENIZER, len(store), 0)
        item_texts = (
            text
            for item, prompt in zip(self._counted(iter(store), task), itertools.cycle(self._prompts))
            for text in (prompt, *item.text.values())
        )
        queries = (
            pair.query_text
            for name, table in self._config.tables.items()
            if table.query_text
            for batch in PairTable.open(self._output / tables_lib.FOLDER / f"{name}.parquet", "").iter_batches()
            for pair in batch
            if pair.query_text is not None
        )
        train_tokenizer(itertools.chain(item_texts, queries), self._config.tokenizer_vocab, self._output / _TOKENIZER)
        self._journal.finish(_TOKENIZER, {})

    def _task(self, name: str, total: int, completed: int) -> int:
        bad = self._journal.bad_records
        return self._progress.add_task(name, total=total, completed=completed, resumed=completed, bad=bad)

    def _advance(self, task: int, rows: int = 1) -> None:
        self._progress.update(task, advance=rows, bad=self._journal.bad_records)

    def _close(self, task: int) -> None:
        """Replaces the estimated total of a task by the actual count."""
        self._progress.update(task, total=self._progress.tasks[task].completed)

    def _counted(self, rows: Iterator, task: int) -> Iterator:
        for row in rows:
            yield row
            self._advance(task)


def _visible(counted: Iterable[dict[str, int]], hidden: dict[str, int]) -> dict[str, int]:
    """Returns the sums of counts by name, less what is hidden."""
    total = sum(map(collections.Counter, counted), collections.Counter())
    return dict(sorted((total - collections.Counter(hidden)).items()))


class _Counts:
    """How many items have which modalities, and which ID embeddings."""

    def __init__(self) -> None:
        self._modalities, self._embeddings = collections.Counter(), collections.Counter()

    def add(self, item: Item) -> None:
        """Counts an item."""
        self._modalities[item.modalities] += 1
        self._embeddings.update(item.id_embeddings.keys())

    def result(self) -> dict[str, dict[str, int]]:
        """The counts for the journal."""
        return {"modalities": dict(self._modalities), "embeddings": dict(self._embeddings)}


class _Shard:
    """Reads the rows of one shard for the writer, and counts them."""

    def __init__(self, journal: Journal, widths: dict[str, int]):
        self._journal, self._widths = journal, widths
        self._rows, self._skipped, self._counts = 0, [], _Counts()

    def items(self, loaded: Iterator[tuple[Row, Future]], on_row: Callable[[], None]) -> Iterator[Item]:
        """Yields the usable items; records the others in the journal."""
        for row, future in loaded:
            try:
                item = future.result()
                self._check_widths(item, row)
            except BadRecordError as error:
                self._skipped.append(self._rows)
                self._journal.bad(error)
            else:
                self._counts.add(item)
                yield item
            self._rows += 1
            on_row()

    def result(self) -> dict:
        """The result of the shard for the journal."""
        return {
            "rows": self._rows,
            "skipped": self._skipped,
            "widths": self._widths,
            **self._counts.result(),
        }

    def _check_widths(self, item: Item, row: Row) -> None:
        """Checks that all vectors of a kind have the width of the first one."""
        vectors = {f"id_embeddings.{name}": vector for name, vector in item.id_embeddings.items()}
        if item.audio_embedding is not None:
            vectors["audio_embedding"] = item.audio_embedding
        for name, vector in vectors.items():
            if len(vector) != self._widths.setdefault(name, len(vector)):
                raise BadRecordError(
                    f"the vector has {len(vector)} numbers, but earlier ones have {self._widths[name]}",
                    remedy="Write vectors of one width",
                    source=row.file,
                    record=f"{item.item_id} (row {row.number})",
                    field=name,
                )


def _is_large(name: str) -> bool:
    """Returns whether a file is one that an ingestion that goes on reads only where it needs it."""
    return name.startswith(f"{tables_lib.FOLDER}/") or store_lib.is_shard(name)


def _shard_stage(shard: int) -> str:
    return f"shard {shard}"


def _ahead(pool: ThreadPoolExecutor, reader: RecordReader, rows: Iterator[Row]) -> Iterator[tuple[Row, Future]]:
    """Loads rows in threads (decoders release the interpreter lock), and yields them in order."""
    waiting: collections.deque[tuple[Row, Future]] = collections.deque()
    for row in rows:
        waiting.append((row, pool.submit(reader, row)))
        if len(waiting) > _WINDOW:
            yield waiting.popleft()
    yield from waiting


class _RateColumn(ProgressColumn):
    """A progress column: rows per second since the start of the task."""

    def render(self, task: Task) -> Text:
        """Renders the rate of a task."""
        rate = (task.completed - task.fields["resumed"]) / task.elapsed if task.elapsed else 0
        return Text(f"{rate:,.0f}/s")


def _progress(console: Terminal) -> Progress:
    return Progress(
        NameColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[bad]} bad"),
        console=console,
    )
