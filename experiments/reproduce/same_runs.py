"""Takes runs over from claims that have trained the same config already, so that no arm is trained twice."""

import json
import shutil
from collections.abc import Iterable

from sail_jax.files import partial_folder
from sail_jax.sweeps import SweepFolder, read


def take_over(folder: SweepFolder, others: Iterable[SweepFolder]) -> list[str]:
    """Copies runs of other sweeps that are done and have the config of a member that was never started.

    Args:
        folder: the sweep, which this process owns.
        others: sweeps of other claims; those not written yet are passed over.

    Returns:
        The members that are done by it.
    """
    done = {}
    for other in others:
        for member in read(other.path).members if other.file.is_file() else ():
            if member.status.state == "done":
                done[_settings(other, member.name)] = member
    taken = []
    for member in read(folder.path).members:
        source = done.get(_settings(folder, member.name))
        if source is None or member.status.state != "waiting" or member.run.path.exists():
            continue
        with partial_folder(member.run.path) as partial:
            shutil.copytree(source.run.path, partial, ignore=shutil.ignore_patterns("owners"), dirs_exist_ok=True)
        folder.write_status(member.name, source.status)
        taken.append(member.name)
    return taken


def _settings(folder: SweepFolder, name: str) -> str:
    """Returns the settings of a member but what trackers call it."""
    config = json.loads(folder.config(name).read_text(encoding="utf-8"))
    config["train"] = {key: value for key, value in config["train"].items() if not key.startswith("tracker")}
    return json.dumps(config, sort_keys=True)
