"""Refuses what is no file where one is expected: reading a named pipe would wait for ever."""

import errno
import os
import stat
from pathlib import Path

_OTHERS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_file(path: Path) -> Path:
    """The path, if reading it comes to an end: of a file, or of another process' output.

    Raises:
        OSError: it is something else, such as a named pipe, or does not exist. Opening a folder
            raises by itself.
    """
    mode = path.stat().st_mode
    what = next((what for is_it, what in _OTHERS if is_it(mode)), None)
    is_output = stat.S_ISFIFO(mode) and not os.path.exists(os.path.realpath(path))  # as in <(cat x)
    if what is not None and not is_output:
        raise OSError(errno.EINVAL, f"it is {what}, not a file", str(path))
    return path
