"""Writes down what will be tested before it is run, and refuses to change it after."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reproduce.claim import Claim
from sail_jax.config import Config
from sail_jax.config.schema import to_dict
from sail_jax.errors import SailError
from sail_jax.files import commit_json

FILE = "declared.json"
# The test that gives the verdict, as the record has it.
TEST = "two-sided t test at 5 % of the differences paired by seed"


def declaration(claim: Claim, base: Config, changes: Sequence[str], figure: str, seeds: int, folder: Path) -> dict:
    """Returns all that decides the verdict of a claim; paths in the folder of the output are written without it."""
    values = {
        **claim.words(),
        "figure": figure,
        "seeds": seeds,
        "test": TEST,
        "control_changes": list(changes),
        "config": to_dict(base),
    }
    return json.loads(json.dumps(values).replace(str(folder), "OUTPUT"))


def digest(values: Mapping[str, Any]) -> str:
    """Returns a digest of a declaration."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def require_unchanged(folder: Path, declarations: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that claims that were declared in a folder are declared alike.

    Raises:
        SailError: the record cannot be read, or has another declaration of one of the claims.
    """
    there = declared(folder)
    for name, values in declarations.items():
        before = there.get(name, {}).get("declaration")
        if before is not None and digest(before) != digest(values):
            raise SailError(
                f"{folder / FILE} was written before {name} was run, and says otherwise now: "
                f"{_changed(before, values)}. What is tested is not changed after it: put it back, or name another "
                "--workdir."
            )


def declare(folder: Path, declarations: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds declarations to the record of a folder.

    Raises:
        SailError: as `require_unchanged`.
    """
    require_unchanged(folder, declarations)
    fresh = {name: {"digest": digest(values), "declaration": dict(values)} for name, values in declarations.items()}
    folder.mkdir(parents=True, exist_ok=True)
    commit_json(folder / FILE, declared(folder) | fresh)


def declared(folder: Path) -> dict[str, Any]:
    """Returns {claim: its digest and declaration} of a folder; empty before the first.

    Raises:
        SailError: the record cannot be read.
    """
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SailError(f"{folder / FILE} cannot be read ({error}): put it back, or name another --workdir.") from error


def _changed(before: Any, now: Any, key: str = "") -> str:
    """Returns the first thing that differs between two declarations."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in [*before, *now] if before.get(name) != now.get(name))
        return _changed(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    return f"{key} was {before!r}, is {now!r}"
