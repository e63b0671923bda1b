"""Writes the points of an atlas as a Parquet file, which Embedding Atlas opens.

    x, y         float32, the place; the axes have no meaning and no unit
    id           the item
    text         its texts in one line
    label        its first label
    labels       all of them, separated by commas
    modalities   what it has, of "VTA"
    image        a small JPEG of its first frame

Without an item store there are only the first three.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.atlas.points import NOTHING, Block, Points
from sail_jax.atlas.projector import Projector
from sail_jax.files import partial_file

_PLACED = [("x", pa.float32()), ("y", pa.float32()), ("id", pa.string())]
_SHOWN = [("text", pa.string()), ("label", pa.string()), ("labels", pa.string()), ("modalities", pa.string())]
_IMAGE = [("image", pa.binary())]


class AtlasReport(NamedTuple):
    """What was written.

    Attributes:
        points: number of points.
        zeros: rows of zeros, which are left out.
        unknown: points whose items the store lacks; 0 without a store.
        texts: points with a text.
        pictures: points with a picture.
    """

    points: int
    zeros: int
    unknown: int
    texts: int
    pictures: int

    def __str__(self) -> str:
        said = f"{self.points:,} points, {self.texts:,} of them with a text and {self.pictures:,} with a picture"
        if self.zeros:
            said += f"; {self.zeros:,} rows of zeros, which are items that could not be embedded, are left out"
        if self.unknown:
            said += f"; {self.unknown:,} are of items that the item store lacks, and have an id alone"
        return said


def write_table(points: Points, rows: int, path: Path, projector: Projector | None = None) -> AtlasReport:
    """Writes the file block by block; it has its name when it is complete.

    Args:
        points: the points.
        rows: rows of the embedding folder.
        path: the file; an existing one is replaced.
        projector: gets the blocks too.

    Raises:
        SailError: a part of the embedding folder is damaged.
    """
    schema = pa.schema(_PLACED + (_SHOWN + _IMAGE if points.described else []))
    count = unknown = texts = pictures = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for block in points.blocks():
            columns = _columns(block)
            writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
            if projector is not None:
                projector.add(block)
            count += len(block.ids)
            if points.described:
                unknown += block.shown.count(None)
                texts += sum(map(bool, columns["text"]))
                pictures += sum(map(bool, columns["image"]))
    return AtlasReport(count, rows - count, unknown, texts, pictures)


def _columns(block: Block) -> dict[str, Any]:
    known = [shown or NOTHING for shown in block.shown]
    return {
        "x": block.places[:, 0],
        "y": block.places[:, 1],
        "id": block.ids,
        "text": [shown.text or None for shown in known],
        "label": [shown.label or None for shown in known],
        "labels": [", ".join(shown.labels) or None for shown in known],
        "modalities": [shown.modalities or None for shown in known],
        "image": [shown.image for shown in known],
    }
