"""What a build that was broken off has finished, for the same build to take over."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sail_jax.buckets import fetch
from sail_jax.config import Config
from sail_jax.config.schema import to_dict
from sail_jax.data.store import ItemStore
from sail_jax.logs.addresses import Address
from sail_jax.logs.outputs import Output
from sail_jax.logs.reader import log_paths


class Finished:
    """The finished parts of a build, in a note that is written after each of them.

    Parts of a build with another identity are forgotten.

    Args:
        output: where the build writes.
        name: the name of the note.
        identity: what decides the result of the parts, as JSON values.

    Attributes:
        parts: name -> what was noted about it, JSON values.
    """

    def __init__(self, output: Output, name: str, identity: Mapping[str, Any]) -> None:
        self._output, self._name = output, name
        self._of = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
        found = output.read_json(name)
        ours = isinstance(found, dict) and found.get("of") == self._of
        self.parts: dict[str, Any] = found.get("parts", {}) if ours else {}

    def add(self, name: str, noted: Any) -> None:
        """Notes that a part is finished, and its files are complete."""
        self.parts[name] = noted
        self._output.write_json(self._name, {"of": self._of, "parts": self.parts}, indent=None)

    def remove(self) -> None:
        """Removes the note, at the end of the build."""
        self._output.remove(self._name)


def build_identity(
    config: Config,
    source: Path | Address,
    store: ItemStore | None,
    group: str,
    versions: Mapping[str, list[int]],
    others: Sequence[Path] = (),
) -> dict[str, Any]:
    """Returns what decides the result of a build: settings, the files as they are, the items, the engine.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative.
        store: the items, if they are restricted.
        group: the group of settings that the build reads beside `config.logs`.
        versions: of the files at addresses.
        others: further files, or folders of files, that it reads.
    """
    named = [*log_paths(config, source), *others]
    for path in named:
        fetch(path)
    found = itertools.chain.from_iterable(sorted(path.glob("*")) if path.is_dir() else [path] for path in named)
    files = {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in found if file.is_file()}
    files |= versions
    settings = {"logs": to_dict(config.logs), group: to_dict(getattr(config, group))}
    del settings["logs"]["engine"]  # the tables are the same with each, and more memory may be why a build goes on
    items = None if store is None else [str(Path(store.path).absolute()), len(store)]
    return {"seed": config.seed, "files": files, "items": items, "polars": pl.__version__} | settings
