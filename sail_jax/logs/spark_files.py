"""Files at the addresses that Spark's connectors reach, listed, copied and removed by the driver."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.sql import SparkSession

from sail_jax.errors import SailError

_THREADS = 16


class Entry(NamedTuple):
    """A file, or a folder, within a folder.

    Attributes:
        name: in the folder; empty for the file itself that was asked for.
        size: bytes.
        modified: milliseconds since 1970.
        is_folder: whether it is a folder.
    """

    name: str
    size: int
    modified: int
    is_folder: bool


class SparkFiles:
    """Files at addresses, by the file systems of Hadoop that a session has.

    All methods raise SailError where an address cannot be reached, with the reason.
    """

    def __init__(self, session: SparkSession):
        self._jvm = session._jvm
        self._settings = session.sparkContext._jsc.hadoopConfiguration()

    def entries(self, address: str) -> list[Entry] | None:
        """Returns the entries of a folder by name, the one entry of a file, or None where there is neither."""
        with _reached(address):
            files, path = self._at(address)
            if not files.exists(path):
                return None
            whole = files.getFileStatus(path).isFile()
            return sorted(
                Entry("" if whole else of.getPath().getName(), of.getLen(), of.getModificationTime(), of.isDirectory())
                for of in files.listStatus(path)
            )

    def schemas(self, files: list[str]) -> list[str]:
        """Returns the columns and types of Parquet files as a text each, of their footers, several at a time."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._schema, files))

    def row_count(self, file: str) -> int:
        """Returns the rows of a Parquet file, by its footer."""
        with self._footer(file) as reader:
            return reader.getRecordCount()

    def heads(self, files: list[str], size: int) -> list[bytes]:
        """Returns the first bytes of files, several at a time."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(lambda file: self._head(file, size), files))

    def _head(self, file: str, size: int) -> bytes:
        with _readable(file):
            files, path = self._at(file)
            stream = files.open(path)
            try:
                return bytes(stream.readNBytes(size))
            finally:
                stream.close()

    def _schema(self, file: str) -> str:
        with self._footer(file) as reader:
            return reader.getFileMetaData().getSchema().toString()

    @contextlib.contextmanager
    def _footer(self, file: str) -> Iterator[Any]:
        parquet = self._jvm.org.apache.parquet.hadoop
        with _readable(file):
            reader = parquet.ParquetFileReader.open(
                parquet.util.HadoopInputFile.fromPath(self._jvm.org.apache.hadoop.fs.Path(file), self._settings)
            )
            try:
                yield reader
            finally:
                reader.close()

    def copy_in(self, path: Path, address: str) -> None:
        """Copies a file or folder of this machine."""
        with _reached(address):
            files, target = self._at(address)
            files.copyFromLocalFile(False, True, self._local(path), target)

    def copy_out(self, address: str, path: Path) -> None:
        """Copies a file to this machine."""
        with _reached(address):
            files, source = self._at(address)
            files.copyToLocalFile(False, source, self._local(path), True)

    def rename(self, address: str, name: str) -> None:
        """Gives a file or folder another address, in place of what is there."""
        with _reached(address):
            files, path = self._at(address)
            _, target = self._at(name)
            files.delete(target, True)
            if not files.rename(path, target):
                raise SailError(f"{address} cannot be renamed to {name}: check the rights of the folder.")

    def remove(self, address: str) -> None:
        """Removes a file or folder, if there is one."""
        with _reached(address):
            files, path = self._at(address)
            files.delete(path, True)

    def _at(self, address: str) -> tuple[Any, Any]:
        path = self._jvm.org.apache.hadoop.fs.Path(address)
        return path.getFileSystem(self._settings), path

    def _local(self, path: Path) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(f"file://{path.absolute()}")


def reason_of(error: Exception) -> str:
    """Returns in one line why something of Java, or of Python on the machines of Spark, failed."""
    text = error.java_exception.toString() if isinstance(error, Py4JJavaError) else str(error)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()] or [type(error).__name__]
    if any(line.startswith("Traceback") for line in lines):  # of a Python worker: its last line says what is wrong
        start = next(number for number, line in enumerate(lines) if line.startswith("Traceback"))
        raised = [
            line for line in lines[start:] if ": " in line and line.split(": ")[0].replace(".", "").isidentifier()
        ]
        return raised[-1].rstrip(".") if raised else lines[-1]
    return lines[0].rstrip(".")


@contextlib.contextmanager
def _reached(address: str) -> Iterator[None]:
    try:
        yield
    except Py4JError as error:
        scheme = address.partition(":")[0]
        raise SailError(
            f"Spark does not reach {address} ({reason_of(error):.300}). It needs the connector of {scheme}: and "
            "credentials, see config.logs.engine.spark_options; and the address has to be right."
        ) from error


@contextlib.contextmanager
def _readable(file: str) -> Iterator[None]:
    try:
        yield
    except Py4JError as error:
        raise SailError(
            f"{file} cannot be read ({reason_of(error):.300}). It is damaged or in another format: write it again."
        ) from error
