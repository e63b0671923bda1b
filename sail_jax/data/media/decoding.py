"""What all decoders share: how their errors are told, and how much of a file has to be there."""

import contextlib
from collections.abc import Iterator

from PIL import UnidentifiedImageError

from sail_jax.errors import BadRecordError, SailError

# The share of the announced length that has to be there: many headers are slightly wrong.
PRESENT = 0.9
REPAIR = "Export the file again, or leave the cell empty"


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turns any error of a decoder into a `BadRecordError`."""
    try:
        yield
    except (SailError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message has the address of a buffer
        raise BadRecordError(f"{what} cannot be decoded: it is in no known format", remedy=REPAIR) from error
    except Exception as error:
        raise BadRecordError(f"{what} cannot be decoded ({type(error).__name__}: {error})", remedy=REPAIR) from error
