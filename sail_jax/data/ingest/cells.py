"""Reads single cells of a source row: texts, ids and lists."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sail_jax.errors import BadRecordError


def text_cell(value: Any) -> str | None:
    """The text of a cell; None if it is empty.

    Raises:
        BadRecordError: the text is not valid Unicode.
    """
    if is_empty(value):
        return None
    if isinstance(value, Mapping | list | tuple | np.ndarray):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        raise BadRecordError(f"the cell holds {kind}, not a text", remedy="Write a text, or name another column")
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except UnicodeError as error:
        raise BadRecordError(f"the text is not valid Unicode ({error})", remedy="Save the table as UTF-8") from error
    return text if text.strip() else None


def id_cell(value: Any) -> str | None:
    """The id in a cell, without white space around it; None if it is empty. The number 7.0 is the id "7".

    Raises:
        BadRecordError: the cell is not valid Unicode, or a list.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = text_cell(value)
    return text.strip() if text else None


def list_cell(value: Any, separator: str) -> list[Any]:
    """The non-empty entries of a cell.

    The cell holds a single value, a list, or text with separators.
    """
    if is_empty(value):
        return []
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    elif not isinstance(value, (list, tuple)):
        value = [value]
    return [entry.strip() if isinstance(entry, str) else entry for entry in value if not is_empty(entry)]


def is_empty(value: Any) -> bool:
    """Whether a cell is empty: null, blank text, an empty list or array, or NaN."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (hasattr(value, "__len__") and len(value) == 0)
