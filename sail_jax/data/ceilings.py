"""Reads ceilings.json: the recall that a perfect model reaches on the tables of a generated world.

`tables` has for each table the number of `queries` of its split "test", the number of items of their `corpus`, which is
all that are a target, and view -> "recall@k" -> value. A view is written as results are: "VTA", "T", or "T->V".
"""

import json
from pathlib import Path
from typing import Any

from sail_jax.buckets import fetch

CEILINGS = "ceilings.json"
FORMAT = "sail_jax ceilings"


def read_ceilings(folder: Path) -> dict[str, Any]:
    """Returns the content of the file, with empty `tables` if the folder has none."""
    path = folder / CEILINGS
    fetch(path)
    known = json.loads(path.read_text()) if path.is_file() else {}
    return known if known.get("format") == FORMAT else {"tables": {}}
