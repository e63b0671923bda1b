"""Names the files of a sweep's folder, and reads and writes them.

SWEEP/
  sweep.json              what was asked for: the base, the axes, every member
  configs/NAME.json       the config of a member, as it was when the sweep was first run
  members/NAME/           a member's run directory
  status/NAME.json        where the member stands
  status/NAME.log         what it printed
  forks.json              which members take over stages of others
  jobs/                   what a launcher writes for itself
  stop                    there while the members shall stop
  optuna.journal          the trials of a search, as Optuna keeps them
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_jax.buckets import require_local
from sail_jax.errors import SailError
from sail_jax.files import commit_json
from sail_jax.runs.directory import RunDirectory
from sail_jax.sweeps.expand import Member

VERSION = 1
# Waiting, and after an end that was not its own fault, a member is run by `sweep run`; a failed one by `sweep retry`.
# A search ends what it has `pruned`, for good.
STATES = ("waiting", "running", "done", "failed", "stopped", "preempted", "pruned")


@dataclasses.dataclass(frozen=True)
class Status:
    """Where a member stands.

    Attributes:
        state: one of `STATES`.
        attempts: how often it was started.
        started: when the last attempt started, in Unix seconds; 0 before the first.
        ended: when it ended; 0 while it runs.
        exit_code: its exit status; None while it runs, or where nobody saw it.
        host: the host that runs it.
        pid: its process there.
        born: when that process started, as in `ownership.started`; empty where an earlier version wrote the status.
        job: its job in the queue of a cluster; empty on this machine.
        devices: the devices it computes on.
        device_seconds: seconds of all attempts, times their devices.
        error: the last line of what went wrong; empty if nothing did.
    """

    state: str = "waiting"
    attempts: int = 0
    started: float = 0.0
    ended: float = 0.0
    exit_code: int | None = None
    host: str = ""
    pid: int = 0
    born: str = ""
    job: str = ""
    devices: int = 0
    device_seconds: float = 0.0
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """A member as sweep.json has it.

    Attributes:
        member: its name, values, seed and changes of the config.
        data: digest of the data that it trains on and is evaluated on; members with another one are not comparable.
        program: digest of the settings that decide the compiled train step; members with the same share it.
    """

    member: Member
    data: str
    program: str

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of sweep.json."""
        return dataclasses.asdict(self.member) | {"data": self.data, "program": self.program}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Record":
        """Returns the record of an entry."""
        member = Member(entry["name"], dict(entry["axes"]), entry["seed"], tuple(entry["overrides"]))
        return cls(member, entry["data"], entry["program"])


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """What sweep.json says.

    Attributes:
        name: the name of the sweep.
        base: the experiment that the members change.
        baseline: the combination that others are compared with; empty for none.
        metric: the figure that ranks members; empty for none.
        axes: the columns that vary.
        members: the members, in the order in which they run.
        search: the search as nested dicts; empty for a sweep of axes.
        program: the file that members run in place of training; empty for none.
    """

    name: str
    base: str
    baseline: str
    metric: str
    axes: tuple[str, ...]
    members: tuple[Record, ...]
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    program: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the content of sweep.json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"version": VERSION} | values | {"members": [record.to_json() for record in self.members]}


@dataclasses.dataclass(frozen=True)
class MemberState:
    """A member, its run directory and where it stands.

    Attributes:
        record: the member as sweep.json has it.
        run: its run directory, which need not exist yet.
        status: where it stands.
    """

    record: Record
    run: RunDirectory
    status: Status

    @property
    def name(self) -> str:
        """Returns the name of the member."""
        return self.record.member.name


@dataclasses.dataclass(frozen=True)
class SweepState:
    """All of a sweep: what was asked for, and where each member stands.

    Attributes:
        folder: its folder.
        record: what sweep.json says.
        members: the members, in the order of sweep.json.
    """

    folder: "SweepFolder"
    record: SweepRecord
    members: tuple[MemberState, ...]


class SweepFolder:
    """Gives the paths of the files of a sweep, and reads and writes them.

    Args:
        path: the folder.

    Raises:
        SailError: it is the address of a bucket.
    """

    def __init__(self, path: str | Path) -> None:
        require_local(path, "The folder of a sweep")
        self.path = Path(path).absolute()
        self.file = self.path / "sweep.json"
        self.jobs = self.path / "jobs"
        self.stop = self.path / "stop"
        self.trials = self.path / "optuna.journal"

    def config(self, name: str) -> Path:
        """Returns the file of a member's config."""
        return self.path / "configs" / f"{name}.json"

    def run(self, name: str) -> RunDirectory:
        """Returns the run directory of a member."""
        return RunDirectory(self.path / "members" / name)

    def log(self, name: str) -> Path:
        """Returns the file of what a member printed."""
        return self.path / "status" / f"{name}.log"

    def status(self, name: str) -> Status:
        """Returns where a member stands; that of one never started is `waiting`.

        Raises:
            SailError: its file is damaged.
        """
        file = self._status_file(name)
        try:
            return Status(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Status()
        except (ValueError, TypeError) as error:
            raise SailError(f"{file} cannot be read ({error}); remove it, and the member counts as not run.") from error

    def write_status(self, name: str, status: Status) -> None:
        """Writes where a member stands."""
        self._status_file(name).parent.mkdir(parents=True, exist_ok=True)
        commit_json(self._status_file(name), dataclasses.asdict(status), shared=True)

    def _status_file(self, name: str) -> Path:
        return self.path / "status" / f"{name}.json"

    def read(self) -> SweepRecord:
        """Returns what sweep.json says.

        Raises:
            SailError: there is none, or it cannot be read.
        """
        if not self.file.is_file():
            raise SailError(f"{self.path} has no sweep (no {self.file.name}): run one there first, or name another.")
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
            version = values.pop("version")
            members = tuple(Record.from_json(entry) for entry in values.pop("members"))
            record = SweepRecord(**values | {"axes": tuple(values["axes"]), "members": members})
        except (ValueError, KeyError, TypeError) as error:
            raise SailError(f"{self.file} cannot be read ({error}); put a good copy of it back.") from error
        if version != VERSION:
            raise SailError(f"{self.file} is of version {version}, and this program reads version {VERSION}.")
        return record

    def write(self, record: SweepRecord) -> None:
        """Writes sweep.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        commit_json(self.file, record.to_json())


def read(folder: str | Path) -> SweepState:
    """Reads all of a sweep: its members, and where each stands.

    Raises:
        SailError: the folder has no sweep, or a file of it is damaged.
    """
    files = SweepFolder(folder)
    record = files.read()
    names = [entry.member.name for entry in record.members]
    states = [
        MemberState(entry, files.run(name), files.status(name))
        for name, entry in zip(names, record.members, strict=True)
    ]
    return SweepState(files, record, tuple(states))
