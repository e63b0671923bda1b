"""Addresses of logs that Spark's connectors read: s3://, s3a://, gs://, hdfs://, dbfs:/, file://."""

from pathlib import Path

from sail_jax.buckets import ADDRESS, fetch, place
from sail_jax.errors import SailError


class Address(str):
    """The address of a file or folder, such as s3a://bucket/logs; "/" names what is in it, as of a Path."""

    __slots__ = ()

    def __truediv__(self, name: str) -> "Address | Path":
        return located(name) if name.startswith("/") or is_address(name) else Address(f"{self.rstrip('/')}/{name}")


def is_address(text: str) -> bool:
    """Returns whether a text begins with a scheme and a slash, as s3a:/..."""
    return bool(ADDRESS.match(text))


def located(text: str) -> Address | Path:
    """Returns the address in a text, or the path of this machine."""
    return Address(text) if is_address(text) else Path(text)


def inside(source: Address | Path, path: str) -> Address | Path:
    """Returns where a path of the settings leads, which is relative to the source folder or an address."""
    return Address(path) if is_address(path) else source / path


def is_read_here(where: Address | Path) -> bool:
    """Returns whether `read_here` reads what is there."""
    return isinstance(where, Path) or _scheme(where) in ("file", "s3", "gs")


def read_here(where: Address | Path) -> Path:
    """Returns where this machine reads an address: the path of file://, the mirror of s3:// and gs://.

    Raises:
        SailError: it is an address that Spark alone reads.
    """
    if isinstance(where, Path):
        return where
    if not is_read_here(where):
        raise SailError(
            f"{where} is read by the machine that runs the command, which cannot reach {_scheme(where)}: copy it to a "
            "folder, or to s3:// or gs://, and name that in the setting."
        )
    if _scheme(where) == "file":
        return Path("/" + ADDRESS.match(where)["key"])
    path = place(where)
    fetch(path)
    return path


def _scheme(address: Address) -> str:
    return ADDRESS.match(address)["scheme"].lower()
