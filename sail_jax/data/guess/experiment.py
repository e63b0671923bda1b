"""Writes what a folder is taken for as an experiment of at most 20 lines over a preset."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sail_jax.data.guess.plan import Plan, Reference

LINES, _WIDTH = 20, 120
_FRAME = 7  # lines around the statements
_BATCH = 64  # of which a smaller data set gets less
_SAME = "same"
_LOGS = ("events", "searches", "live", "hashtags", "catalogue")


class _Code(str):
    """A piece of code, which `repr` leaves as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _Line(NamedTuple):
    """A statement, with a comment; `entries` are set as `target.NAME = value` instead of `code`."""

    code: str
    comment: str = ""
    entries: Mapping[str, Any] = {}

    @property
    def remark(self) -> str:
        """Returns the comment in one line, whatever the names in it hold."""
        return " ".join("".join(c if c.isprintable() else " " for c in self.comment).split())

    def __str__(self) -> str:
        if len(self.entries) == 1:
            ((name, value),) = self.entries.items()
            return f"{self.code}.{name} = {_quoted(value)}"
        return _call(self.code, self.entries) if self.entries else self.code


def experiment_text(plan: Plan, preset: str, folder: Path, batch: int = _BATCH) -> str:
    """Returns the Python file of an experiment.

    Args:
        plan: what the folder is taken for.
        preset: the preset that it starts from.
        folder: the folder, for the first line.
        batch: pairs per batch of the preset.
    """
    beside = Path(plan.items).is_absolute()
    lines = [*_ingest(plan, beside), *_training(plan), *_tests(plan), *_small(plan, batch)]
    most = LINES - _FRAME - beside
    for width in (_WIDTH, _WIDTH * 20):
        lines = lines if len(lines) <= most else _joined(lines, most, width)
    room = most - len(lines)
    body = []
    for line in lines:
        code = f"    {line}"
        trailing = f"{code}  # {line.remark}"
        if line.remark and len(trailing) > _WIDTH and room > 0:
            body.append(_cut(f"    # {line.remark}"))
            room -= 1
            trailing = code
        body.append(_cut(trailing) if line.remark and len(code) + 20 < _WIDTH else code)
    name = re.sub(r"[^\w .-]", "_", folder.absolute().name)
    head = [f'"""What `sail-jax init` took {name} for; change it as you like."""']
    head += ["from pathlib import Path"] * beside
    head += ["from sail_jax.config import preset", "", "", "def get_config():", f'    config = preset("{preset}")']
    return "\n".join([*head, *body, "    return config"]) + "\n"


def _joined(lines: list[_Line], most: int, width: int) -> list[_Line]:
    """Returns lines of which neighbours that set entries of the same group are one, until there are few enough."""
    joined: list[_Line] = []
    for number, line in enumerate(lines):
        before = joined[-1] if joined else line
        together = before._replace(entries={**before.entries, **line.entries})
        same = line.entries and before.entries and before.code == line.code
        few = len(joined) + len(lines) - number <= most
        if joined and same and not few and len(str(together)) + 4 <= width:
            joined[-1] = together
        else:
            joined.append(line)
    return joined


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _call(target: str, values: Mapping[str, Any]) -> str:
    return f"{target}.update({', '.join(f'{name}={_quoted(value)}' for name, value in values.items())})"


def _quoted(value: Any) -> str:
    """Returns the code of a value, with double quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(name)}: {_quoted(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_quoted, value))}{',' * (len(value) == 1)})"
    if isinstance(value, str) and not isinstance(value, _Code) and value.isprintable() and not {*'"\\'} & {*value}:
        return f'"{value}"'
    return repr(value)


def _ingest(plan: Plan, beside: bool) -> Iterator[_Line]:
    path = _Code(f"str(Path(__file__).with_name({_quoted(Path(plan.items).name)}))") if beside else plan.items
    own = {finding.column: finding for finding in plan.findings if finding.table == Path(plan.items).name}
    told = [f"{column}: {own[column].why}" for column in _columns(plan) if column in own]
    others = [f"or {f.column} is {f.other}" for f in plan.findings if f.other]
    yield _Line(_call("config.ingest.source", {"path": path, **plan.source}), "; ".join([*others, *told]))
    left = [name for name, finding in own.items() if finding.taken == "left out"]
    yield _Line(f"config.ingest.source.text = {_quoted(plan.text)}", f"left out: {', '.join(left)}" if left else "")
    more: dict[str, Any] = {"vectors": plan.vectors} if plan.vectors else {}
    if _pairs_items(plan):
        more |= {"holdout": plan.holdout, "tables": {_SAME: {}}}
    elif any(reference.test == "holdout" for reference in plan.references):
        more["holdout"] = plan.holdout
    if more:
        why = f"{plan.holdout:.0%} of the items are kept for tests" * ("holdout" in more)
        yield _Line(_call("config.ingest", more), why + f"; {_SAME} pairs an item with itself" * ("tables" in more))
    for reference in plan.references:
        yield _Line("config.ingest.tables", entries={reference.name: reference.settings})
    yield from _logs(plan)


def _pairs_items(plan: Plan) -> bool:
    """Returns whether an item teaches by itself: with two modalities, or with two texts."""
    return len(plan.modalities) > 1 or _pairs_texts(plan)


def _pairs_texts(plan: Plan) -> bool:
    """Returns whether the texts of an item teach, as nothing else does."""
    return plan.modalities == "T" and len(plan.text) > 1 and not (plan.references or plan.logs)


def _columns(plan: Plan) -> list[str]:
    """Returns the columns of the items that the source names."""
    return [value for value in plan.source.values() if isinstance(value, str)]


def _logs(plan: Plan) -> Iterator[_Line]:
    if not plan.logs:
        return
    named = {name: log for name, log in plan.logs.items() if isinstance(log, dict)}
    unread = {name: {"path": ""} for name in _LOGS if name not in named}
    for name, log in named.items():
        yield _Line(_call(f"config.logs.{name}", log))
    rest = {"time_unit": plan.logs["time_unit"], "dense_features": "", **unread}
    yield _Line(_call("config.logs", rest), "no such logs")
    if "events" in named:
        wide = {"window_seconds": 7 * 86_400, "min_npmi": 0.0, "held_out": 0.1}
        yield _Line(_call("config.builders.copair", wide), "two items that users liked within a week")


def _training(plan: Plan) -> Iterator[_Line]:
    datasets: dict[str, dict[str, Any]] = {}
    for reference in plan.references:
        if reference.train is not None:
            split = {"split": reference.train} if reference.train != "train" else {}
            patterns = {"patterns": ("T->O",)} if reference.queries else {}
            datasets[reference.name] = _table(reference.name) | split | patterns
    datasets |= {name: _table(table) | shown for name, table, shown, _ in _of_logs(plan)}
    if len(plan.modalities) > 1:
        patterns = [f"{a}->{b}" for a, b in ("VT", "AT", "VA") if {a, b} <= {*plan.modalities}]
        weight = {"weight": 0.5} if datasets else {}
        datasets[_SAME] = _table(_SAME) | weight | {"patterns": tuple(patterns[:2])}
    elif _pairs_texts(plan):
        datasets[_SAME] = _table(_SAME) | {"patterns": ("T->T",)} | _fields(plan)
    for name, settings in datasets.items():
        why = "V vision, T text, A sound, O all of them" * (name == _SAME)
        yield _Line("config.data.datasets", why, {name: settings})


def _of_logs(plan: Plan) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Returns name, table, training settings and test settings of what is built from logs."""
    found: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = []
    if "events" in plan.logs:
        found.append(("copair", "copair", {"correct_popularity": 1.0}, {"both_ways": True}))
    if "searches" in plan.logs:
        found.append(("searches", "q2i_search", {"patterns": ("T->O",)}, {"query": "T"}))
    return found


def _table(name: str) -> dict[str, Any]:
    return {"table": f"tables/{name}.parquet"}


def _fields(plan: Plan) -> dict[str, Any]:
    """Returns the first text field as the query and the others as the target."""
    first, *others = plan.text
    return {"query_fields": (first,), "target_fields": tuple(others)}


def _tests(plan: Plan) -> Iterator[_Line]:
    tasks: dict[str, dict[str, Any]] = {}
    for reference in plan.references:
        if reference.test is not None:
            tasks[reference.name] = _table(reference.name) | _shown(reference)
    tasks |= {name: _table(table) | shown for name, table, _, shown in _of_logs(plan)}
    own = {**_table(_SAME), "corpus": "targets"}
    if "V" in plan.modalities and "T" in plan.modalities:
        tasks["text_to_image"] = own | {"query": "T", "target": "V"}
    if "A" in plan.modalities and "T" in plan.modalities:
        tasks["sound_to_text"] = own | {"query": "A", "target": "T"}
    if plan.modalities == "VA":
        tasks["image_to_sound"] = own | {"query": "V", "target": "A"}
    if _pairs_texts(plan):
        tasks["text_to_text"] = own | _fields(plan)
    for name, settings in tasks.items():
        yield _Line("config.eval.tasks", entries={name: settings})


def _shown(reference: Reference) -> dict[str, Any]:
    split = {"split": reference.test} if reference.test != "test" else {}
    return split | ({"query": "T"} if reference.queries else {})


def _small(plan: Plan, batch: int) -> Iterator[_Line]:
    """Yields the size of a batch where a training set is smaller than the preset's."""
    rows = [plan.rows] if _pairs_items(plan) else []
    rows += [reference.rows for reference in plan.references if reference.train is not None]
    # Of those, the held-out items and what touches them are left out.
    room = min((int(count * (1 - plan.holdout) ** 2 * 0.8) for count in rows if count is not None), default=batch)
    if room < batch:
        yield _Line(f"config.data.batch_size = {2 ** int(math.log2(max(2, room)))}", "there are few rows")
