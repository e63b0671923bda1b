"""Writes tables beside a config of what ingestion cannot read: folders of files, tars, Arrow files.

A plain folder becomes a table of paths; archives become Parquet that holds the media. Rows are streamed: one sample,
one Arrow batch or one directory is in memory at a time.
"""

import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from sail_jax.data.guess.inventory import Inventory
from sail_jax.data.ingest.sources import head_of
from sail_jax.data.media.folders import SUFFIXES, kind_of, walk
from sail_jax.errors import SailError
from sail_jax.files import partial_file

ID = "item_id"
_FIRST = 100  # samples of an archive that say which columns there are
_GROUP = 32 << 20  # bytes of media after which a row group is written
_CHARACTERS = 1 << 20  # of a caption
# Words of names that a camera or a program gives, and of directories that say nothing.
_CAMERA = {
    *("img", "dsc", "dscn", "dscf", "pict", "photo", "photos", "image", "images", "frame", "frames", "screenshot"),
    *("untitled", "file", "files", "scan", "mvimg", "pxl", "video", "videos", "vid", "audio", "sound", "track", "rec"),
    *("clip", "sample", "item", "data", "train", "test", "val", "valid", "pic", "picture", "pictures", "tmp", "copy"),
}
_ORDER = ("image", "video", "audio", "text")  # which file of a stem names the item


class Source(NamedTuple):
    """A table that is copied.

    Attributes:
        file: its path.
        prefix: the folder to which its media files are relative, relative to the folder of data; empty for that.
    """

    file: Path
    prefix: str = ""


# ---------------------------------------------------------------------------------------------------- a folder of files


def copy_files(found: Inventory, target: Path) -> Path:
    """Writes a JSONL table of the media files of a folder; returns its path.

    Files of one stem in one directory are one item: a picture or video, a sound, and a .txt that is its caption.
    Without one, the words of the file's name are the caption; the directory, where it says something, is the label.
    """
    path = target.with_name(f"{target.name}.jsonl")
    with partial_file(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for name in filter(kind_of, walk(found.folder)):
            if row := _file_row(found, name):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def _file_row(found: Inventory, name: str) -> dict[str, str] | None:
    """Returns the row of an item that a file names; None if another file of its stem does."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return None
    kind, path = kind_of(name), found.folder / name
    stem = name.removesuffix(path.suffix)
    others = {
        other: f"{stem}{suffix}"
        for other in found.media
        for suffix in SUFFIXES[other]
        if other != kind and (found.folder / f"{stem}{suffix}").is_file()
    }
    if any(_ORDER.index(other) < _ORDER.index(kind) for other in others):
        return None
    row = {ID: name} | {key: value for key, value in {kind: name, **others}.items() if key != "text"}
    caption = text_of(found.folder / others["text"]) if "text" in others else ""
    if kind == "text":
        row |= {"title": path.stem.replace("_", " "), "text": text_of(path)}
    elif caption := caption or caption_of(path.stem):
        row["caption"] = caption
    place = Path(name).parent.name
    if place and place.lower() not in _CAMERA and len(found.places) > 1:
        row["label"] = place
    return {key: value for key, value in row.items() if value}


def text_of(path: Path) -> str:
    """Returns the text of a file, without what is no UTF-8; of a long one its beginning."""
    with path.open(encoding="utf-8-sig", errors="ignore") as stream:
        return stream.read(_CHARACTERS).strip()


def caption_of(stem: str) -> str:
    """Returns the words of a file's name, such as "red car" of "red_car-012"; empty if it says nothing."""
    words = [word for word in re.split(r"[\W_]+", stem) if word and not any(c.isdigit() for c in word)]
    telling = [word for word in words if len(word) > 2 and word.lower() not in _CAMERA]
    return " ".join(words) if telling else ""


# ------------------------------------------------------------------------------------------------------------- archives


def copy_tars(found: Inventory, target: Path) -> Path:
    """Writes a Parquet table of the samples of webdataset tars; returns its path.

    A sample is the files that share a name up to its first point. Its columns are `image`, `audio` and `video` (bytes),
    `caption` (.txt), `label` (.cls) and the plain values of its .json.

    Raises:
        SailError: a tar cannot be read, or holds no sample.
    """
    samples = itertools.chain.from_iterable(_samples(found.folder / name) for name in found.tars)
    first = list(itertools.islice(samples, _FIRST))
    columns = dict.fromkeys(itertools.chain.from_iterable(first))
    if not columns.keys() - {ID}:
        archive = found.folder / found.tars[0]
        raise SailError(f"{archive} holds no pictures, sounds or texts; write samples KEY.jpg, KEY.txt.")
    media = ("image", "audio", "video")
    schema = pa.schema([(name, pa.binary() if name in media else pa.string()) for name in columns])
    path = target.with_name(f"{target.name}.parquet")
    with partial_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for group in _groups(itertools.chain(first, samples)):
            writer.write_table(pa.Table.from_pylist(group, schema))
    return path


def _samples(tar: Path) -> Iterator[dict[str, Any]]:
    """Yields the samples of a tar, each a row."""
    try:
        with tarfile.open(tar, "r|*") as archive:
            row: dict[str, Any] = {}
            for member in archive:
                directory, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{directory}/{stem}" if directory else stem
                if not member.isfile() or not stem:
                    continue
                if row.get(ID) != key:
                    if len(row) > 1:
                        yield row
                    row = {ID: key}
                row |= _part(extension.lower(), archive.extractfile(member).read())
            if len(row) > 1:
                yield row
    except tarfile.TarError as error:
        raise SailError(f"{tar} cannot be read ({error}); write the archive again.") from error


def _part(extension: str, data: bytes) -> dict[str, Any]:
    """Returns the columns that a file of a sample gives."""
    kind = kind_of(f"x.{extension.rpartition('.')[2]}")
    if kind in ("image", "audio", "video"):
        return {kind: data}
    if extension == "json":
        try:
            values = json.loads(data)
        except ValueError:
            return {}
        plain = values.items() if isinstance(values, dict) else ()
        return {key: str(value) for key, value in plain if isinstance(value, str | int | float) and key != ID}
    name = {"txt": "caption", "text": "caption", "caption": "caption", "cls": "label", "class": "label"}.get(extension)
    return {name: data.decode("utf-8", errors="ignore").strip()} if name else {}


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields rows in lists of bounded size."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += sum(len(cell) for cell in row.values() if cell is not None)
        if size > _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def copy_arrow(found: Inventory, target: Path) -> Path:
    """Writes a Parquet table of a data set that Hugging Face `datasets` saved to disk; returns its path.

    Class labels become names; the rows are numbered where no column is called `item_id`.

    Raises:
        SailError: a file cannot be read.
    """
    path = target.with_name(f"{target.name}.parquet")
    batches = _numbered(itertools.chain.from_iterable(_batches(found.folder / name) for name in found.arrows), ID)
    _write_batches(batches, path)
    return path


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    labels = _class_labels(file.parent)
    try:
        with pa.memory_map(str(file)) as stream:
            for batch in pa.ipc.open_stream(stream):
                yield _named_labels(batch, labels)
    except pa.ArrowException as error:
        raise SailError(f"{file} cannot be read ({error}); save the data set again with save_to_disk.") from error


def _class_labels(folder: Path) -> dict[str, list[str]]:
    """Returns the names of the class labels that `dataset_info.json` has, by column."""
    try:
        features = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8")).get("features") or {}
    except (OSError, ValueError):
        return {}
    return {name: kind["names"] for name, kind in features.items() if isinstance(kind, dict) and kind.get("names")}


def _named_labels(batch: pa.RecordBatch, labels: Mapping[str, Sequence[str]]) -> pa.RecordBatch:
    for name, names in labels.items():
        number = batch.schema.get_field_index(name)
        if number >= 0 and pa.types.is_integer(batch.schema.field(number).type):
            named = dict(enumerate(names))
            told = pa.array([named.get(cell) for cell in batch[name].to_pylist()], pa.string())
            batch = batch.set_column(number, name, told)
    return batch


def _numbered(batches: Iterable[pa.RecordBatch], column: str) -> Iterator[pa.RecordBatch]:
    """Yields batches with a column of running numbers, unless they have such a column."""
    start = 0
    for batch in batches:
        if column not in batch.schema.names:
            numbers = pa.array(map(str, range(start, start + len(batch))), pa.string())
            batch = batch.append_column(column, numbers)
        start += len(batch)
        yield batch.replace_schema_metadata(None)


def _write_batches(batches: Iterator[pa.RecordBatch], path: Path) -> None:
    first = next(batches, None)
    if first is None:
        raise SailError("The saved data set has no rows; save it again.")
    with partial_file(path) as partial, pq.ParquetWriter(partial, first.schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch.cast(first.schema) if batch.schema != first.schema else batch)


# --------------------------------------------------------------------------------------------------------------- tables


def copy_table(sources: Sequence[Source], media: Sequence[str], number: str, target: Path) -> Path:
    """Writes tables again, with their rows numbered, or paths of media from the folder of data on.

    Args:
        sources: the tables, which have the same columns.
        media: the columns that name media files.
        number: name of a column of running numbers that is added; empty for none.
        target: the path that is written, without its suffix.

    Returns:
        The path: Parquet where the tables are, else JSONL.
    """
    if sources[0].file.suffix.lower() == ".parquet":
        path = target.with_name(f"{target.name}.parquet")
        batches = itertools.chain.from_iterable(_parquet(source, media) for source in sources)
        _write_batches(_numbered(batches, number) if number else batches, path)
        return path
    path = target.with_name(f"{target.name}.jsonl")
    with partial_file(path) as partial, partial.open("w", encoding="utf-8") as stream:
        rows = ((source, cells) for source in sources for cells in head_of(source.file)[1])
        for position, (source, cells) in enumerate(rows):
            placed = {name: _placed(cells[name], source.prefix) for name in media if cells.get(name)}
            row = ({number: str(position)} if number else {}) | dict(cells) | placed
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return path


def _placed(cell: Any, prefix: str) -> Any:
    if isinstance(cell, list):
        return [_placed(entry, prefix) for entry in cell]
    return f"{prefix}/{cell.strip()}" if isinstance(cell, str) and prefix else cell


def _parquet(source: Source, media: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(source.file) as table:
        for batch in table.iter_batches(256):
            for name in media if source.prefix else ():
                placed = [_placed(cell, source.prefix) for cell in batch[name].to_pylist()]
                batch = batch.set_column(batch.schema.get_field_index(name), name, pa.array(placed))
            yield batch.replace_schema_metadata(None)
