"""The folder of intermediate files of a build, and what all builders are given."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from sail_jax.config import Config
from sail_jax.logs.pairs.catalogue import Catalogue


@dataclasses.dataclass(frozen=True)
class Build:
    """What every builder is given.

    Attributes:
        config: the experiment.
        source: the folder of the logs.
        spool: a folder for intermediate files.
        catalogue: the items.
        cut: the last second of the train split.
        say: shows what is being done.
    """

    config: Config
    source: Path
    spool: Path
    catalogue: Catalogue
    cut: int
    say: Callable[[str], None]

    def parts(self, rows: int) -> int:
        """Into how many parts so many rows are split."""
        return max(1, -(-rows // self.config.builders.partition_rows))

    def folder(self, name: str) -> Path:
        """A new, empty folder for intermediate files."""
        path = self.spool / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def sink(frame: pl.LazyFrame, path: Path) -> Path:
    """Streams a query into a Parquet file; the order of its rows is not kept."""
    frame.sink_parquet(path, compression="lz4", maintain_order=False, engine="streaming")
    return path


def count(frame: pl.LazyFrame) -> int:
    """Rows of a query."""
    return int(frame.select(pl.len()).collect(engine="streaming").item())


def ranges(size: int, parts: int) -> Iterator[tuple[int, int]]:
    """[0, size) as consecutive ranges of nearly equal length, empty ones left out."""
    edges = [size * part // parts for part in range(parts + 1)]
    return ((low, high) for low, high in zip(edges, edges[1:], strict=False) if low < high)
