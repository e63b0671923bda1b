"""Reads a sample of each table of a folder: where its media lie, and what its columns can be."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_jax.data.guess.inventory import Inventory
from sail_jax.data.guess.readings import Column, Reading, read_column, rivals
from sail_jax.data.guess.samples import Sample, sample_table
from sail_jax.data.media.folders import kind_of

# Called with a table, a column, its readings that are about as sure, and samples; returns the one that is taken.
Choose = Callable[[str, str, Sequence[Reading], Sequence[str]], Reading]
_TABLES = 24  # of a folder with more, the others are not read
_LOOKED_UP = 30  # cells whose files are looked up to find where they lie
_SHOWN, _SAMPLES = 40, 3  # characters of a sample, and samples of a column


@dataclasses.dataclass(frozen=True)
class ReadTable:
    """A table whose columns have been read.

    Attributes:
        path: its file or the folder of its parts, relative to the folder of data, or absolute beside the config.
        parts: its files.
        sample: a sample of its first file.
        readings: column -> what it can be taken for, the surest first.
        chosen: column -> what it is taken for.
        prefix: the folder to which its media are relative, relative to the folder of data.
    """

    path: str
    parts: tuple[Path, ...]
    sample: Sample
    readings: Mapping[str, Sequence[Reading]]
    chosen: Mapping[str, Reading]
    prefix: str

    def columns(self, *kinds: str) -> list[str]:
        """Returns the columns that are taken for one of some kinds, in the order of the table."""
        return [name for name, reading in self.chosen.items() if reading.kind in kinds]

    def best(self, *kinds: str) -> str:
        """Returns the surest column of some kinds; empty if there is none."""
        return max(self.columns(*kinds), key=lambda name: self.chosen[name].sure, default="")

    def shown(self, column: str) -> list[str]:
        """Returns samples of a column."""
        return shown_cells(self.sample.values(column))


def shown_cells(cells: Sequence[Any]) -> list[str]:
    """Returns the first different cells as short texts."""
    texts = dict.fromkeys(_short(cell) for cell in cells[: 10 * _SAMPLES])
    return list(texts)[:_SAMPLES]


def _short(cell: Any) -> str:
    if isinstance(cell, bytes):
        return f"{len(cell):,} bytes"
    if isinstance(cell, list | tuple) and len(cell) > _SAMPLES and all(isinstance(x, int | float) for x in cell):
        return f"[{', '.join(f'{number:.2g}' for number in cell[:_SAMPLES])}, …]"
    if isinstance(cell, Mapping):
        return _short(cell.get("bytes") or cell.get("path") or "")
    text = " ".join(str(cell).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def read_tables(found: Inventory, choose: Choose) -> list[ReadTable]:
    """Reads the tables of a folder.

    Raises:
        SailError: a table cannot be read; the message names it.
    """
    tables = []
    for path, names in _grouped(found)[:_TABLES]:
        tables.append(read_table(found, path, [found.folder / name for name in names], choose))
    return tables


def read_table(found: Inventory, path: str, parts: Sequence[Path], choose: Choose) -> ReadTable:
    """Reads one table."""
    sample = sample_table(parts[0])
    here = os.path.relpath(parts[0].parent, found.folder)
    prefix = _prefix(found, sample, "" if here == "." or here.startswith("..") else here)

    def kind_of_file(name: str) -> str:
        return kind_of(name.strip()) if _is_media(found.folder / prefix, name) else ""

    readings, chosen = {}, {}
    for name in sample.columns:
        column = Column(name, sample.values(name), sample.all_values(name), len(sample.rows))
        readings[name] = read_column(column, kind_of_file)
        close = rivals(readings[name])
        chosen[name] = choose(path, name, close, shown_cells(column.cells)) if len(close) > 1 else close[0]
    return ReadTable(path, tuple(parts), sample, readings, chosen, prefix)


def _grouped(found: Inventory) -> list[tuple[str, list[str]]]:
    """Returns the path of each table, and its files: a folder, where it holds nothing but parts of one table."""
    by_folder: dict[str, list[list[str]]] = {}
    for parts in found.tables:
        by_folder.setdefault(str(Path(parts[0]).parent), []).append(parts)
    grouped = []
    for folder, groups in by_folder.items():
        names = [name for parts in groups for name in parts]
        sharded = any("-of-" in name for name in names)
        one = len(names) > 1 and (len(groups) == 1 or sharded) and _alike(found.folder, names)
        grouped += [(folder, names)] if one else [(name, [name]) for name in names]
    return grouped


def _alike(folder: Path, names: Sequence[str]) -> bool:
    """Returns whether files have the same suffix and columns."""
    suffixes = {Path(name).suffix.lower() for name in names}
    return len(suffixes) == 1 and len({frozenset(sample_table(folder / n).columns) for n in (names[0], names[-1])}) == 1


def _prefix(found: Inventory, sample: Sample, here: str) -> str:
    """Returns the folder in which the media lie that the cells of a table name; empty for the folder of data."""
    named = [
        cell.split("|")[0].strip()
        for column in sample.columns
        for cell in sample.values(column)[:_LOOKED_UP]
        if isinstance(cell, str) and kind_of(cell.split("|")[0].strip()) and " " not in cell.strip()
    ]
    above = {str(parent) for place in found.places for parent in Path(place).parents}
    candidates = dict.fromkeys(["", here, *found.places, *sorted(above)])
    best, most = "", 0
    for place in ("" if place == "." else place for place in candidates):
        count = sum(_is_media(found.folder / place, name) for name in named)
        if count > most:
            best, most = place, count
        if count == len(named):
            break
    return best


def _is_media(folder: Path, name: str) -> bool:
    """Returns whether a cell names a media file in a folder."""
    try:
        return bool(kind_of(name.strip())) and (folder / name.strip()).is_file()
    except OSError:  # a text too long for a name
        return False
