"""Writes a sweep into its folder, or extends the sweep that is there."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from sail_jax import config as config_lib
from sail_jax.config.schema import to_dict
from sail_jax.errors import SailError
from sail_jax.sweeps.check import Checked
from sail_jax.sweeps.declare import Sweep
from sail_jax.sweeps.folder import Record, SweepFolder, SweepRecord
from sail_jax.sweeps.shared_stages import FILE, find_forks, write_forks

# Settings that a message shows.
_SHOWN = 3


def require_folder_of(folder: SweepFolder, sweep: Sweep) -> None:
    """Checks that a folder is new, or has the sweep of that name and base.

    Raises:
        SailError: it has another sweep, or other files.
    """
    if folder.file.is_file():
        there = folder.read()
        if (there.name, there.base) != (sweep.name, sweep.base):
            raise SailError(
                f"{folder.path} has the sweep {there.name!r} of {there.base}, not {sweep.name!r} of {sweep.base}: name "
                "another --workdir."
            )
    elif folder.path.is_dir():
        # A process that was killed before it had written the sweep leaves these.
        ours = {"owners", "configs", FILE, folder.file.name}
        if any(path.name.removesuffix(".partial") not in ours for path in folder.path.iterdir()):
            raise SailError(f"{folder.path} has other files and no sweep: name a new folder as --workdir.")


def write_sweep(folder: SweepFolder, sweep: Sweep, checked: Sequence[Checked]) -> list[str]:
    """Writes sweep.json and the configs of the members; returns the names of the new members.

    A sweep may be extended by members and seeds, a search by trials. The metric and the baseline, which no run depends
    on, may change, but not the metric of a search.

    Raises:
        SailError: the folder has another sweep, or this one would lose or change a member.
    """
    require_folder_of(folder, sweep)
    search = json.loads(json.dumps(dataclasses.asdict(sweep.search))) if sweep.search else {}
    _require_same_kind(folder, sweep, search)
    before = {record.member.name: record for record in folder.read().members} if folder.file.is_file() else {}
    now = {member.record.member.name: member for member in checked}
    if lost := [name for name in before if name not in now]:
        raise SailError(
            f"{folder.path} has {len(lost)} members that the sweep has no more, such as {lost[0]}: put them back, or "
            "name another --workdir."
        )
    for name, record in before.items():
        _require_same(folder, record, now[name])
    fresh = [name for name in now if name not in before]
    configs = {name: member.config for name, member in now.items()}
    write_forks(folder, {} if sweep.program else find_forks(configs))
    for name in fresh:
        config_lib.save(now[name].config, folder.config(name))
    columns = tuple(sweep.search.settings if sweep.search else (c for axis in sweep.axes for c in axis.columns))
    records = tuple(member.record for member in checked)
    folder.write(
        SweepRecord(sweep.name, sweep.base, sweep.baseline, sweep.metric, columns, records, search, sweep.program)
    )
    return fresh


def add_member(folder: SweepFolder, member: Checked) -> None:
    """Adds a member to the sweep of a folder: the next trial of a search."""
    name, record = member.record.member.name, folder.read()
    config_lib.save(member.config, folder.config(name))
    configs = {entry.member.name: config_lib.load(folder.config(entry.member.name)) for entry in record.members}
    write_forks(folder, find_forks({**configs, name: member.config}))
    folder.write(dataclasses.replace(record, members=(*record.members, member.record)))


def _require_same_kind(folder: SweepFolder, sweep: Sweep, search: dict[str, Any]) -> None:
    if not folder.file.is_file():
        return
    there = folder.read()
    if there.program != sweep.program:
        raise SailError(
            f"{folder.path} has a sweep whose members run {there.program or 'no program'}, not "
            f"{sweep.program or 'none'}: name another --workdir."
        )
    old = {**there.search, "metric": there.metric if there.search else ""}
    new = {**search, "metric": sweep.metric if search else ""}
    differing = [key for key in {**old, **new} if key != "trials" and old.get(key) != new.get(key)]
    if differing:
        raise SailError(
            f"{folder.path} has another search; different: {', '.join(differing)}. Only its number of trials may "
            "change: put the rest back, or name another --workdir."
        )


def _require_same(folder: SweepFolder, before: Record, now: Checked) -> None:
    name = before.member.name
    try:
        saved = json.loads(folder.config(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SailError(f"{folder.config(name)} cannot be read ({error}); put it back.") from error
    old, new = _flat(saved), _flat(json.loads(json.dumps(to_dict(now.config))))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        shown = ", ".join(f"{key} (was {old.get(key)!r}, is {new.get(key)!r})" for key in differing[:_SHOWN])
        raise SailError(
            f"{folder.path} has the member {name} with another config; different: {shown}"
            f"{', ...' if len(differing) > _SHOWN else ''}. Put it back, or name another --workdir."
        )
    if before.data != now.record.data:
        raise SailError(
            f"The data in {now.config.data.dir} are not those that the sweep in {folder.path} began with: restore "
            "them, or name another --workdir."
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value} of nested mappings; an empty mapping counts as a value."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
