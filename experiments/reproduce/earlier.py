"""Takes claims that were run in another folder from the JSON of its page, so that one page has them all."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reproduce.claims import CLAIMS
from experiments.reproduce.verdicts import Row, from_plain
from sail_jax.errors import SailError


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A claim that was run in another folder.

    Attributes:
        row: what was found; judged again from the figures of its seeds.
        origin: digest of its declaration, and the machine.
    """

    row: Row
    origin: Mapping[str, Any]


def read_earlier(files: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, Earlier]:
    """Returns {claim: what was found of it} of the claims that have a verdict.

    Args:
        files: "reproduction.json" of each folder.
        settings: base and scale of the page, which must be theirs too.

    Raises:
        SailError: a file cannot be read, has another base or scale or a claim with other arms, or two files have the
            same claim.
    """
    found: dict[str, Earlier] = {}
    for file in files:
        whole = _read(file)
        for name, value in settings.items():
            if whole.get(name) != value:
                raise SailError(f"{file} has claims of {name} {whole.get(name)!r}, and this page is of {value!r}.")
        for name, entry in whole["claims"].items():
            if "arms" not in entry:
                continue
            if name in found:
                raise SailError(f"{file} has the claim {name}, as a file before it: name one of them.")
            found[name] = _earlier(file, name, entry)
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SailError(f"--earlier {file} cannot be read ({error}).") from error
    if not isinstance(whole, dict) or not isinstance(whole.get("claims"), dict):
        raise SailError(f'--earlier {file} has no "claims": name the reproduction.json of a folder of results.')
    return whole


def _earlier(file: Path, name: str, entry: Mapping[str, Any]) -> Earlier:
    if name not in CLAIMS:
        raise SailError(f"{file} has the claim {name!r}; they are {', '.join(CLAIMS)}.")
    try:
        return Earlier(from_plain(CLAIMS[name], entry), {key: entry[key] for key in ("declared", "machine")})
    except KeyError as error:
        raise SailError(f"{file}: the claim {name} has no {error}: it is of another version.") from error
    except SailError as error:
        raise SailError(f"{file}: {error}.") from error
