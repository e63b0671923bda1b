"""Tables and notes of a build at an address, where the machines of Spark write the rows themselves."""

from collections.abc import Callable, Sequence
from pathlib import Path

import ibis.expr.types as ir
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as of_spark

from sail_jax.data.sequence_tables import SCHEMA as SEQUENCES
from sail_jax.logs.addresses import Address
from sail_jax.logs.outputs import SPLITS, Output
from sail_jax.logs.spark_files import SparkFiles

# Row groups are read at random in training: about as large as those that this package writes.
_ROW_GROUP_BYTES = 1 << 20


class SparkOutput(Output):
    """A folder at an address.

    A table is a folder of Parquet parts, SPLIT-NUMBER.parquet, in the order of its rows.

    Args:
        where: the address of the folder.
        files: files at addresses.
        rows_of: runs an expression in Spark.
        here: a folder of this machine for what is copied.
    """

    def __init__(self, where: Address, files: SparkFiles, rows_of: Callable[[ir.Table], DataFrame], here: Path) -> None:
        self._where, self._files, self._rows_of, self._here = where, files, rows_of, here

    def has_table(self, name: str) -> bool:
        """Returns whether the folder of a table is there."""
        return self._files.entries(self._table(name)) is not None

    def write_pairs(self, name: str, rows: ir.Table, order: Sequence[str], schema: pa.Schema) -> int:
        """Lets Spark sort a pair table and write it as parts."""
        return self._write(name, rows.order_by(*order), schema)

    def write_sequences(self, name: str, rows: ir.Table) -> None:
        """Lets Spark write a sequence table as parts."""
        self._write(name, rows, SEQUENCES)

    def local_part(self, name: str) -> Path | None:
        """Copies the first part of each split here."""
        parts = [entry.name for entry in self._files.entries(self._table(name)) or ()]
        firsts = [next((part for part in parts if part.startswith(f"{split}-")), "") for split in SPLITS]
        folder = self._here / f"{name}.parquet"
        for part in filter(None, firsts):
            folder.mkdir(exist_ok=True)
            self._files.copy_out(f"{self._table(name)}/{part}", folder / part)
        return folder if parts else None

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, which is copied here."""
        if self._files.entries(f"{self._where}/{name}") is None:
            return None
        self._files.copy_out(f"{self._where}/{name}", self._here / name)
        return (self._here / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file here, and copies it."""
        (self._here / name).write_bytes(content)
        self._files.copy_in(self._here / name, f"{self._where}/{name}.partial")
        self._files.rename(f"{self._where}/{name}.partial", f"{self._where}/{name}")

    def remove(self, name: str) -> None:
        """Removes a file."""
        self._files.remove(f"{self._where}/{name}")

    def _table(self, name: str) -> str:
        return f"{self._where}/{name}.parquet"

    def _write(self, name: str, rows: ir.Table, schema: pa.Schema) -> int:
        """Writes sorted rows as parts of one split each, and returns their number."""
        partial = f"{self._table(name)}.partial"
        found = self._rows_of(rows).persist()  # else the rule is run and sorted for each split
        columns = [_column(found, field) for field in schema]
        self._files.remove(partial)
        written = 0
        for split in SPLITS:
            of_split = found.where(of_spark.col("split") == split).select(columns)
            of_split.write.option("parquet.block.size", _ROW_GROUP_BYTES).parquet(f"{partial}/{split}")
            written += self._name_parts(partial, split)
        if not written:
            of_split.limit(0).coalesce(1).write.parquet(f"{partial}/{split}")
            self._name_parts(partial, split, empty=True)
        found.unpersist()
        self._files.rename(partial, self._table(name))
        return written

    def _name_parts(self, partial: str, split: str, *, empty: bool = False) -> int:
        """Moves the parts of a split that have rows out of their folder, in their order; returns the rows."""
        folder, rows, number = f"{partial}/{split}", 0, 0
        for entry in self._files.entries(folder):
            if not entry.name.endswith(".parquet"):
                continue
            of_part = self._files.row_count(f"{folder}/{entry.name}")
            if of_part or (empty and not number):
                self._files.rename(f"{folder}/{entry.name}", f"{partial}/{split}-{number:05}.parquet")
                rows, number = rows + of_part, number + 1
        self._files.remove(folder)
        return rows


def _column(rows: DataFrame, field: pa.Field) -> Column:
    """Returns a column in the type of the table; nulls where the rows have none."""
    kind = "array<string>" if pa.types.is_list(field.type) else "float" if field.type == pa.float32() else "string"
    column = of_spark.col(field.name) if field.name in rows.columns else of_spark.lit(None)
    return column.cast(kind).alias(field.name)
