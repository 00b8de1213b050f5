"""The message when a file cannot be written, most often because the disk is full."""

import threading

from bundle.atomic import FULL_DISK


def describe_os_error(error: OSError) -> str:
    """One line: what failed, and what to do."""
    said = error.strerror or str(error)
    if error.filename is not None:
        said = f"{error.filename}: {said}"
    if error.errno not in FULL_DISK:
        return (
            f"{said}. When that is repaired, the same command continues from the last save in "
            "OUT (--out), if there is one"
        )
    return (
        f"the disk is full: {said}. Free some space, and the same command continues from the last "
        "save in OUT (--out); or move that directory to another disk"
    )


def quiet_writer_threads() -> None:
    """Print no trace of threads that could not write: the main thread gets their error, too."""
    print_trace = threading.excepthook

    def handle(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            print_trace(args)

    threading.excepthook = handle
