"""Writes files atomically: whatever happens, a file is its old version or its new one."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what an OSError says of it
_TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")  # .NAME.PROCESS.tmp


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to a temporary file beside `path`, then rename it to `path`.

    On any failure, even a full disk or Ctrl-C, `path` is untouched and no file is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_place_for(path: Path) -> None:
    """Make the folder of a file that long work will write at its end, so that it fails before.

    Raises:
        ValueError: `path` is a folder.
        OSError: its folder cannot be made or written to.
    """
    if path.is_dir():
        raise ValueError(f"expected a file to write, got the folder {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "no file can be written there", str(path.parent))


def remove_abandoned(directory: Path) -> None:
    """Delete the temporary files of processes that were killed while they wrote into `directory`.

    Only one process at a time may call this and write there through `write_atomically`; files of
    others that still run on this machine are left.
    """
    for path in directory.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and path.is_file() and not _is_other_process(int(match[1])):
            path.unlink(missing_ok=True)


def _is_other_process(number: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(number, 0)
        return number != os.getpid()
    return False
