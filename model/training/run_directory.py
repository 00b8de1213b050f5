"""OUT, the directory of a run: names in it, and a lock for one run at a time."""

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bundle.atomic import remove_abandoned
from model.distributed import in_main, together

BEST, LAST = "best.safetensors", "last.safetensors"
STATE_FILE = "last.training.pt"
LOCK_FILE = "run.lock"
log = logging.getLogger(__name__)


@contextmanager
def held(out_dir: Path) -> Iterator[None]:
    """Make the directory, keep other runs out of it, and delete what killed ones left half written.

    The lock belongs to this process, and is freed by the system however that ends. It is a record
    lock: processes that load images would inherit the other kind (flock), and outlive this one by
    some seconds.

    Of several processes that train together, the main one does it.

    Raises:
        ValueError: another run holds it, or it is a file.
        OSError: it cannot be made or written to.
        PeerFailed: one of these, in the other processes.
    """
    with ExitStack() as stack:
        together(partial(in_main(stack.enter_context), _locked(out_dir)))
        yield


@contextmanager
def _locked(out_dir: Path) -> Iterator[None]:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"OUT= (--out): {out_dir} cannot be a directory, as there is a file of that name or "
            "above it; choose another"
        ) from error
    with (out_dir / LOCK_FILE).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"another run writes to {out_dir}: wait for its end or stop it, and the same "
                    "command continues it; or choose another OUT= (--out)"
                ) from error
            log.warning(
                "%s cannot be locked (%s): start no other run with this OUT= (--out)",
                *(out_dir, error.strerror),
            )
        remove_abandoned(out_dir)
        yield
