"""What to tell a user whose disk is full, read-only or gone, whichever library wrote there."""

import errno
import os
import re

# Every library has an exception of its own; all of them quote the operating system.
_PROBLEMS = tuple(
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)
)
_PATH = re.compile(r"""(?<![\w.])/[^\s"':;,()\[\]]+""")


def disk_problem(error: BaseException | None, folder: object) -> str:
    """Returns what is wrong with a disk and where, by an error or its causes; empty if nothing is.

    Args:
        error: the error.
        folder: what the command writes, for an error that names no path.
    """
    while error is not None:
        said = str(error)
        for problem in _PROBLEMS:
            if problem in said:
                path = getattr(error, "filename", None) or next(iter(_PATH.findall(said)), folder)
                return f"{path}: {problem}"
        error = error.__cause__ or error.__context__
    return ""
