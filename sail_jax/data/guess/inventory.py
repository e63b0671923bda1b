"""Says what files a folder holds: tables, media by kind, archives; looks at a bounded number of them."""

import collections
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from sail_jax.data.ingest.sources import TABLE_SUFFIXES
from sail_jax.data.media.folders import kind_of, walk
from sail_jax.errors import SailError

_FILES = 20_000
_SHEETS = (".xlsx", ".xls", ".xlsm", ".ods")  # tables that are not read
_PART = re.compile(r"[-_.]?\d+(-of-\d+)?$")


class Inventory(NamedTuple):
    """What a folder holds; paths are relative to it.

    Attributes:
        folder: the folder.
        tables: tables, each the paths of its parts.
        media: kind -> number of such files ("text" is a .txt or .md).
        places: directory -> (kind, suffix, number) of the most frequent sort of media in it.
        tars: tar archives.
        arrows: Arrow files as Hugging Face `datasets` saves them.
        others: suffix -> number of the files of no use here.
        complete: whether all files were looked at.
    """

    folder: Path
    tables: list[list[str]]
    media: dict[str, int]
    places: dict[str, tuple[str, str, int]]
    tars: list[str]
    arrows: list[str]
    others: dict[str, int]
    complete: bool

    def __str__(self) -> str:
        counts = [_counted(number, f"{kind} file") for kind, number in self.media.items()]
        counts += [_counted(len(found), what) for what, found in self._more() if found]
        counts += [f"{number:,} {suffix or 'without a suffix'}" for suffix, number in self.others.items()]
        among = "" if self.complete else f", among the first {_FILES:,}"
        return (", ".join(counts) or "no files") + among + self.unread

    @property
    def unread(self) -> str:
        """Returns what to do about tables that are not read, after the list of files; empty if there are none."""
        sheets = [suffix for suffix in _SHEETS if suffix in self.others]
        return f"; spreadsheets ({', '.join(sheets)}) are not read: save them as CSV" if sheets else ""

    def _more(self) -> tuple[tuple[str, list], ...]:
        return ("table", self.tables), ("tar archive", self.tars), ("Arrow file", self.arrows)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def take_inventory(folder: Path) -> Inventory:
    """Looks at the files of a folder.

    Raises:
        SailError: it is no folder.
    """
    if not folder.is_dir():
        raise SailError(f"{folder} is no folder; name the folder that holds your tables and media files.")
    names = (name for name in walk(folder) if not Path(name).name.startswith("."))
    tables, tars, arrows = [], [], []
    media, others = collections.Counter(), collections.Counter()
    places: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name in itertools.islice(names, _FILES):
        suffix = Path(name).suffix.lower()
        if suffix in TABLE_SUFFIXES:
            tables.append(name)
        elif suffix == ".tar":
            tars.append(name)
        elif suffix == ".arrow":
            arrows.append(name)
        elif kind := kind_of(name):
            media[kind] += 1
            places[str(Path(name).parent)][kind, suffix] += 1
        elif name not in ("state.json", "dataset_info.json", "dataset_dict.json"):
            others[suffix] += 1
    usual = {place: (*found.most_common(1)[0][0], found.total()) for place, found in places.items()}
    complete = next(names, None) is None
    return Inventory(folder, _parts(tables), dict(media), usual, tars, arrows, dict(others.most_common(8)), complete)


def _parts(tables: list[str]) -> list[list[str]]:
    """Groups the parts of one table: files of a directory whose names differ in a number."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in tables:
        path = Path(name)
        groups.setdefault((str(path.parent), _PART.sub("", path.stem), path.suffix), []).append(name)
    return list(groups.values())
