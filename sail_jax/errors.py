"""Errors written for the user: each message says what is wrong, where, and what to do about it."""

import errno
import signal

# What the operating system says of a disk, a file server or the process, whatever the file holds.
_OF_THE_MACHINE = frozenset(
    (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)
    + (errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)


class SailError(Exception):
    """Base of errors written for the user; the command line prints them without a traceback.

    Attributes:
        status: the exit status of a command that ends with it; docs/troubleshooting.md has the table.
    """

    status = 2


class OwnedError(SailError):
    """An error of a second process that would write where another one, which lives, is writing."""

    status = 73  # EX_CANTCREAT of sysexits.h


class DiskError(SailError):
    """An error of a disk that is full, read-only or gone."""

    status = 74  # EX_IOERR


class Stopped(KeyboardInterrupt):
    """Raised when a signal ends the work: what is done is kept, and the same command goes on.

    It is no `Exception`, so that nothing that catches errors of single records holds it up.

    Args:
        number: the signal.
        kept: what is kept, and how to go on; by default what the verb says of itself.

    Attributes:
        SIGNALS: the signals that are heeded.
        status: the exit status of the command.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    # What a person stopped with Ctrl-C, no scheduler shall start again; the rest is "try again" (EX_TEMPFAIL).
    STATUSES = 130, 75

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = signal.Signals(number), kept
        self.status = self.STATUSES[self.number != signal.SIGINT]


class BadRecordError(SailError):
    """An error in one record of the input, which cannot be used.

    Ingestion and the input pipeline count, report and skip such records up to the limit that the user sets.

    Args:
        problem: what is wrong, for example "image is 16000 x 16000 pixels, over the limit of 50,000,000".
        remedy: what the user can do about it.
        source: the file that holds the record.
        record: the item id or the row number.
        field: the column or field.
    """

    def __init__(self, problem: str, *, remedy: str, source: str = "", record: str = "", field: str = ""):
        self.problem, self.remedy = problem, remedy
        self.source, self.record, self.field = source, record, field
        super().__init__(problem)

    def at(self, *, source: str = "", record: str = "", field: str = "") -> "BadRecordError":
        """Returns the same error, with the missing source, record or field filled in."""
        return BadRecordError(
            self.problem,
            remedy=self.remedy,
            source=self.source or source,
            record=self.record or record,
            field=self.field or field,
        )

    def __str__(self) -> str:
        place = [f"{name} {value!r}" for name, value in (("record", self.record), ("field", self.field)) if value]
        where = ", ".join([self.source] * bool(self.source) + place)
        return f"{where + ': ' if where else ''}{self.problem}. {self.remedy}"

    def __reduce__(self):
        # Exceptions with keyword-only arguments do not survive pickling between worker processes by default.
        return _rebuild, (self.problem, self.remedy, self.source, self.record, self.field)


def _rebuild(problem: str, remedy: str, source: str, record: str, field: str) -> BadRecordError:
    return BadRecordError(problem, remedy=remedy, source=source, record=record, field=field)


def is_of_the_machine(error: Exception) -> bool:
    """Returns whether an error tells of the machine, and not of the record that was being read.

    It is one of memory, of a disk, of a file server, of too many open files, or of a package that cannot be imported:
    the next record would have it too, so that skipping records would drop good ones.
    """
    return isinstance(error, MemoryError | ImportError) or getattr(error, "errno", None) in _OF_THE_MACHINE
