"""Finds the table of items in a folder, or writes one from what ingestion cannot read directly."""

from collections.abc import Sequence
from pathlib import Path

from sail_jax.data.guess.copies import ID, Source, copy_arrow, copy_files, copy_table, copy_tars
from sail_jax.data.guess.inventory import Inventory
from sail_jax.data.guess.readings import Reading, words_of
from sail_jax.data.guess.tables import Choose, ReadTable, read_table, read_tables
from sail_jax.data.ingest.sources import assumed_separators
from sail_jax.errors import SailError

MEDIA = {"image": "frames", "video": "video", "audio": "audio"}
ITEM_WORDS = {"item", "items", "product", "products", "movies", "videos", "metadata", "catalog", "catalogue", "posts"}
EXAMPLE = (
    "A table could be items.csv, with the lines `item_id,image,title` and `1,images/1.jpg,a red car`, beside a folder "
    "images/; pairs of items could be pairs.csv, with the lines `query_id,target_id` and `1,2`."
)


def choose_items(found: Inventory, beside: Path, choose: Choose, notes: list[str]) -> tuple[ReadTable, list[ReadTable]]:
    """Returns the table of items and the other tables; writes one where ingestion can read none.

    Args:
        found: the folder.
        beside: path of a table that is written, without its suffix.
        choose: decides between readings of a column that are about as sure.
        notes: takes a line on what is written.

    Raises:
        SailError: there is nothing of which a table of items could be made.
    """
    choose = _asked_once(choose)
    tables = read_tables(found, choose) if found.tables and not found.arrows else []
    notes += filter(None, (assumed_separators(table.path, table.parts) for table in tables))
    if not any(map(_worth, tables)):
        tables = [_copied(found, beside, choose, notes), *tables]
    items = max(tables, key=_worth)
    others = [table for table in tables if table is not items]
    return _readable(found, items, others, beside, choose, notes)


def _asked_once(choose: Choose) -> Choose:
    """Returns the same choice, which is made once for the column of a table and of its copy."""
    made: dict[tuple[str, tuple[str, ...]], Reading] = {}

    def choose_once(table: str, column: str, readings: Sequence[Reading], samples: Sequence[str]) -> Reading:
        key = column, tuple(samples)
        if key not in made:
            made[key] = choose(table, column, readings, samples)
        return next((reading for reading in readings if reading.kind == made[key].kind), made[key])

    return choose_once


def _worth(table: ReadTable) -> float:
    """Returns how much a table looks like one of items; 0 if it cannot be."""
    media, texts = table.columns("image", "video", "audio"), table.columns("text", "tags")
    facts = len(table.columns("label", "vector"))
    if table.columns("user") and table.columns("time") or not (media or texts):
        return 0.0
    named = bool(set(words_of(Path(table.path).stem)) & ITEM_WORDS)
    return 0.1 + 4 * len(media) + len(texts) + 2 * bool(table.columns("id")) + 0.5 * facts + 2 * named


def _copied(found: Inventory, beside: Path, choose: Choose, notes: list[str]) -> ReadTable:
    """Writes the table of what ingestion cannot read directly, and reads it."""
    if found.arrows:
        path, what = copy_arrow(found, beside), "the Arrow files, as `datasets` saved them"
    elif found.tars:
        path, what = copy_tars(found, beside), "the samples of the tar archives"
    elif found.media:
        path, what = copy_files(found, beside), "the media files, those of one stem as one item"
    else:
        raise SailError(f"No sense can be made of {found.folder}: it holds {found}. {EXAMPLE}")
    notes.append(f"{path} was written: {what}.")
    return read_table(found, str(path.absolute()), [path], choose)


def _readable(
    found: Inventory, items: ReadTable, others: list[ReadTable], beside: Path, choose: Choose, notes: list[str]
) -> tuple[ReadTable, list[ReadTable]]:
    """Writes the table of items again where it has no ids, or its media are not relative to the folder of data."""
    same = [table for table in others if set(table.sample.columns) == set(items.sample.columns)]
    media = [name for name in items.columns(*MEDIA) if _holds_paths(items, name)]
    number = ""
    if not id_column(items) or _ids_repeat([items, *same]):
        number = next(name for name in (ID, "row_id", "sail_row_id") if name not in items.sample.columns)
    if not (number or same or (items.prefix and media)):
        return items, others
    tables = [items, *same]
    sources = [Source(file, table.prefix) for table in tables for file in table.parts]
    path = copy_table(sources, media, number, beside)
    names = " and ".join(table.path for table in tables)
    why = [f"of {names}"]
    why += [f"with the rows numbered as {number}, as no column has an id of each row"] if number else []
    why += [f"with paths of media from {found.folder} on"] if any(table.prefix for table in tables) else []
    notes.append(
        f"{path} was written: a copy {', '.join(why)}. It does not follow later changes of {names}: "
        "after one, remove copy and config, and begin again with another --workdir."
    )
    return read_table(found, str(path.absolute()), [path], choose), [t for t in others if t not in same]


def _holds_paths(table: ReadTable, column: str) -> bool:
    first = table.sample.values(column)[0]
    return isinstance(first, str) or (isinstance(first, list) and isinstance(first[0], str))


def id_column(table: ReadTable) -> str:
    """Returns the column of ids: one that says so, else a column of media whose files all differ."""
    if found := table.best("id"):
        added = [name for name in (ID, "row_id", "sail_row_id") if name in table.columns("id")]
        return (*added, found)[0]
    for name in [*table.columns(*MEDIA), *table.columns("lost")]:
        cells = table.sample.values(name)
        if len(set(map(str, cells))) == len(table.sample.rows) and isinstance(cells[0], str):
            return name
    return ""


def _ids_repeat(tables: Sequence[ReadTable]) -> bool:
    """Returns whether an id of the samples of some tables stands in more than one of them."""
    ids = [set(map(str, table.sample.values(id_column(table)))) for table in tables if id_column(table)]
    return len(set().union(*ids)) < sum(map(len, ids))
