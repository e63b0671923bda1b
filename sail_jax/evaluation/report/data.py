"""Reads and writes what the report shows of a run.

evaluation.json     the figures of every model on every task, under every view and at every width
metrics.jsonl       the training log: one line per logged step
report_data.json    what needs the model and the items to make: facts, thumbnails of the gallery, places on the map
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.config.schema import to_dict
from sail_jax.errors import SailError
from sail_jax.evaluation.report.gallery import Card, GalleryRow
from sail_jax.files import commit_json
from sail_jax.patterns import Pattern, parse_pattern
from sail_jax.runs.directory import RunDirectory, read_training_log

_FORMAT = {"format": "sail_jax report data", "version": 1}


@dataclasses.dataclass(frozen=True)
class StoredResult:
    """Figures of one model on one task under one view, as evaluation.json holds them.

    Attributes:
        model: "trained", "untrained", "embeddings" (vectors read from a folder), "tfidf", "chance" or
            "ceiling".
        task: name of the task.
        view: the modalities of queries and of the corpus; the file has them as "QUERY->TARGET".
        main: whether it is the task's own view.
        width: the Matryoshka size; 0 for TF-IDF.
        metrics: name -> value; a value that could not be computed is missing or NaN.
        queries: number of queries scored.
        skipped: number of queries left out.
        corpus: number of items searched.
        histograms: {"edges": [B + 1], "positive": [B], "negative": [B]} of cosines, or None.
    """

    model: str
    task: str
    view: Pattern
    main: bool
    width: int
    metrics: Mapping[str, float]
    queries: int = 0
    skipped: int = 0
    corpus: int = 0
    histograms: Mapping[str, Sequence[float]] | None = None


@dataclasses.dataclass(frozen=True)
class SpaceMap:
    """A 2-D map of some items of a task's corpus.

    Attributes:
        task: name of the task.
        points: [N, 2].
        labels: [N] first label of each item; empty for an item without labels.
        ids: [N] ids; empty in files of earlier versions, as all that follows.
        captions: [N] short texts.
        modalities: [N] what each item has, of "VTA".
        all_labels: [N] all labels of each item.
        sheets: pictures of `SHEET` items each, in their order, as data URIs; an item without a picture leaves its
            place empty.
        neighbours: [N, K] the nearest of these items, by their vectors.
        sounds: row -> the beginning of the item's sound as a data URI; of the first items that have one.
    """

    task: str
    points: Sequence[Sequence[float]]
    labels: Sequence[str]
    ids: Sequence[str] = ()
    captions: Sequence[str] = ()
    modalities: Sequence[str] = ()
    all_labels: Sequence[Sequence[str]] = ()
    sheets: Sequence[str] = ()
    neighbours: Sequence[Sequence[int]] = ()
    sounds: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class WorstQuery:
    """A query that finds nothing right, with what it should have found.

    Attributes:
        row: the query and what it finds.
        wanted: one of its right answers.
        why: what may explain it.
    """

    row: GalleryRow
    wanted: Card
    why: Sequence[str]


@dataclasses.dataclass(frozen=True)
class TaskFailures:
    """What failed on a task.

    Attributes:
        task: name of the task.
        queries: number of queries that have a right answer.
        missed: how many of them find none among the first `found`.
        found: number of items looked at for each query.
        worst: queries that find nothing right, those first that are surest of it.
        doubtful: share of the wrong items found that carry a label of a right answer, of a sample; None without labels.
        common: the same share of all wrong items of the corpus, of a sample: what a random order would find.
        twins: share of the wrong items that come first that have the very text of a right answer, of a sample.
        taught: number of queries that find a wrong item first which training had as a right answer of the same query.
    """

    task: str
    queries: int
    missed: int
    found: int
    worst: Sequence[WorstQuery] = ()
    doubtful: float | None = None
    common: float = 0.0
    twins: float = 0.0
    taught: int = 0


@dataclasses.dataclass(frozen=True)
class RunReport:
    """Everything that the report draws of a run; the page leaves out empty parts.

    Attributes:
        name: name of the run on the page.
        figures: results of all models, tasks, views and widths.
        log: lines of metrics.jsonl.
        step: number of steps for which the evaluated model was trained; None for embeddings read from a folder.
        facts: label -> value: steps, parameters, duration, versions.
        gallery: queries with their nearest items.
        maps: one map per task.
        failures: what failed, one per task.
        settings: the config as nested dicts, as it was evaluated.
        config: the config as nested dicts, as it was trained; empty where that is not known.
    """

    name: str
    figures: Sequence[StoredResult] = ()
    log: Sequence[Mapping[str, Any]] = ()
    step: int | None = None
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gallery: Sequence[GalleryRow] = ()
    maps: Sequence[SpaceMap] = ()
    failures: Sequence[TaskFailures] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_report_data(path: Path, run: RunReport) -> None:
    """Writes report_data.json: the parts of `run` that cannot be made again without its model and items."""
    parts = {
        "facts": dict(run.facts),
        "gallery": [dataclasses.asdict(row) for row in run.gallery],
        "maps": [dataclasses.asdict(space) for space in run.maps],
        "failures": [dataclasses.asdict(failures) for failures in run.failures],
        "settings": run.settings,
    }
    _write(path, _FORMAT | parts)


def _write(path: Path, tree: Mapping[str, Any]) -> None:
    commit_json(path, tree, indent=None, default=_plain)


def _plain(value: Any) -> Any:
    """Returns the JSON value of a NumPy value, or the text of another object."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def read_runs(folders: Sequence[Path]) -> list[RunReport]:
    """Reads the reports of evaluated runs; `run_names` gives their names.

    Raises:
        SailError: a folder is named twice, was not evaluated, or holds a damaged file.
    """
    runs = [RunDirectory(folder) for folder in folders]
    names = run_names([run.path.resolve() for run in runs])
    return [_read_run(run, name) for run, name in zip(runs, names, strict=True)]


def run_names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest suffix of each path that no other path shares, such as "a/run" and "b/run".

    Raises:
        SailError: a path is named twice.
    """
    for path in paths:
        if paths.count(path) > 1:
            raise SailError(f"{path} is named twice: remove one --workdir.")
    names = []
    for path in paths:
        depth = 1
        while sum(other.parts[-depth:] == path.parts[-depth:] for other in paths) > 1:
            depth += 1
        names.append("/".join(path.parts[-depth:]).replace("//", "/"))
    return names


def _read_run(run: RunDirectory, name: str) -> RunReport:
    again = f"run `python -m sail_jax evaluate --workdir {run.path}`"
    if not run.evaluation.is_file():
        raise SailError(f"{run.path} holds no evaluation.json: {again} first, or name another --workdir.")
    tree = _read(run.evaluation, again)
    try:
        figures = [_figures(line) for line in tree["results"]]
    except (SailError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SailError(f"{run.evaluation} is not a file that `evaluate` wrote ({error!r}): {again} again.") from error
    parts = _read_parts(run.report_data, again) if run.report_data.is_file() else {}
    log, config = read_training_log(run), _config(run)
    return RunReport(name=name, figures=figures, log=log, step=tree.get("step"), config=config, **parts)


def _config(run: RunDirectory) -> dict[str, Any]:
    try:
        return to_dict(run.saved_config())
    except SailError:  # of vectors without a run, or of another version; the report needs none
        return {}


def _read(path: Path, again: str) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise SailError(f"{path} is damaged ({error}): {again} again.") from error
    if not isinstance(tree, dict):
        raise SailError(f"{path} is not a file that `evaluate` wrote: {again} again.")
    return tree


def _figures(line: Mapping[str, Any]) -> StoredResult:
    known = {field.name for field in dataclasses.fields(StoredResult)}
    metrics = {key: np.nan if v is None else float(v) for key, v in line["metrics"].items()}
    view = parse_pattern(line["view"], setting="view")
    return StoredResult(**{key: v for key, v in line.items() if key in known} | {"metrics": metrics, "view": view})


def _read_parts(path: Path, again: str) -> dict[str, Any]:
    tree = _read(path, again)
    if {key: tree.get(key) for key in _FORMAT} != _FORMAT:
        raise SailError(f"{path} was written by another version of sail_jax: {again} again.")
    try:
        return {
            "facts": tree["facts"],
            "gallery": [_gallery_row(row) for row in tree["gallery"]],
            "maps": [SpaceMap(**space) for space in tree["maps"]],
            "failures": [_task_failures(of_task) for of_task in tree.get("failures", ())],
            "settings": tree["settings"],
        }
    except (KeyError, TypeError) as error:
        raise SailError(f"{path} is not a file that `evaluate` wrote ({error!r}): {again} again.") from error


def _gallery_row(row: Mapping[str, Any]) -> GalleryRow:
    return GalleryRow(row["task"], Card(**row["query"]), [Card(**card) for card in row["results"]])


def _task_failures(tree: Mapping[str, Any]) -> TaskFailures:
    worst = [WorstQuery(_gallery_row(of["row"]), Card(**of["wanted"]), of["why"]) for of in tree["worst"]]
    return TaskFailures(**{**tree, "worst": worst})
