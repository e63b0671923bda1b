"""The context that all pair builders share, and helpers for polars queries."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from sail_jax.config import Config
from sail_jax.logs.pairs.catalogue import Catalogue


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """Settings, inputs and the scratch folder of a build, passed to every builder.

    Attributes:
        config: the experiment.
        source: the folder of the logs.
        scratch: a folder for intermediate files.
        catalogue: the items.
        cut: the last second of the train split.
        show: shows a line of progress.
    """

    config: Config
    source: Path
    scratch: Path
    catalogue: Catalogue
    cut: int
    show: Callable[[str], None]

    def parts(self, rows: int) -> int:
        """The number of parts in which so many rows are processed."""
        return max(1, -(-rows // self.config.builders.partition_rows))

    def folder(self, name: str) -> Path:
        """Creates an empty folder for intermediate files; removes what an earlier call left there."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def sink(frame: pl.LazyFrame, path: Path) -> Path:
    """Streams a query into a Parquet file, without keeping the order of rows."""
    frame.sink_parquet(path, compression="lz4", maintain_order=False, engine="streaming")
    return path


def count(frame: pl.LazyFrame) -> int:
    """Counts the rows of a query."""
    return int(frame.select(pl.len()).collect(engine="streaming").item())


def ranges(size: int, parts: int) -> Iterator[tuple[int, int]]:
    """Splits [0, size) into consecutive ranges of nearly equal length; empty ranges are left out."""
    edges = [size * part // parts for part in range(parts + 1)]
    return ((low, high) for low, high in zip(edges, edges[1:], strict=False) if low < high)
