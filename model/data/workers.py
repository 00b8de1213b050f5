"""Work done ahead in worker processes; any failure in one of them is reported in one line."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Item = TypeVar("Item")
Result = TypeVar("Result")


class LoadingFailed(Exception):
    """Images could not be loaded: one is damaged, or a worker process died."""


class _Work(Dataset[Any]):
    """Results by position; an exception becomes `LoadingFailed` with one line."""

    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.work = work
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Any:
        try:
            return _shared(self.work(self.items[position]))
        except (Exception, SystemExit) as error:  # sys.exit must not end the run as if it were done
            raise LoadingFailed(_one_line(error)) from error


def _shared(result: Any) -> Any:
    """In a worker, move a tensor, or those in a tuple, to the memory that processes share.

    Otherwise torch would do so in a thread, whose failure leaves the other process waiting forever.
    """
    if get_worker_info() is None:
        return result
    try:
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, Tensor):
                part.share_memory_()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise MemoryError(
            f"shared memory: {reason}; `docker run --shm-size` gives a container more"
        ) from error
    return result


def work_ahead(
    work: Callable[[Item], Result], items: Sequence[Item], *, num_workers: int
) -> Iterator[Result]:
    """Yield `work` of every item in order, done by `num_workers` processes, or by this one if 0.

    Torch's random state is not touched. The processes end when the iterator does, for whatever
    reason. Ctrl-C and signals to the process group do not reach them: this process decides when to
    stop, and needs their results until then.

    Raises:
        LoadingFailed: `work` raised an exception, or a process was killed; one line.
    """
    loader = DataLoader(
        _Work(work, items),
        batch_size=None,  # every item is a batch already
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_process_group,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw a seed from the run's random state
    )
    failure: str | None = None
    results = None
    while True:
        try:
            if results is None:
                results = _start(loader)
            result = next(results)
        except StopIteration:
            return
        except LoadingFailed as error:
            failure = _last_line(error)
            traceback.clear_frames(error.__traceback__)
        except (RuntimeError, OSError) as error:  # torch's own; those of `work` are handled above
            failure = (
                f"a process that loads images has ended ({_one_line(error)}), most often because "
                "memory ran out: lower num_workers or batch_size, or give the container more "
                "shared memory (docker run --shm-size)"
            )
        if failure is not None:
            # Dropping the last reference, even one in a trace, ends the iterator and its processes.
            del results
            raise LoadingFailed(failure)
        yield result


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the processes with stop signals blocked from their first instruction on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        results = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if loader.num_workers:
        # Torch's handler would raise in the middle of a step when a worker dies. Without it, torch
        # still notices while it waits for the next result.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return results


def _leave_process_group(worker_id: int) -> None:
    os.setsid()
    while received := signal.sigtimedwait(STOP_SIGNALS, 0):
        # Drop signals that the group received while this process was starting, but not one that
        # the parent sent to end it: the parent would wait forever.
        if received.si_pid == os.getppid():
            os._exit(128 + received.si_signo)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _as_it_is(result: Any) -> Any:
    return result


def _last_line(error: LoadingFailed) -> str:
    """The message, which torch appends to the trace if it comes from another process."""
    line = str(error).splitlines()[-1]
    return line.removeprefix(f"{LoadingFailed.__module__}.{LoadingFailed.__name__}: ")


def _one_line(error: BaseException) -> str:
    """What happened, and where in the code unless the data is at fault."""
    # Unlike str(error), this cannot fail, whatever the exception was raised with.
    lines = "".join(traceback.format_exception_only(error)).splitlines()
    told = "; ".join(line.strip() for line in lines if line.strip())
    _, _, message = told.partition(": ")
    if isinstance(error, MemoryError):
        reason = f" ({message})" if message else ""
        return f"no memory left to load images{reason}: lower num_workers or batch_size"
    if isinstance(error, ValueError | OSError) and message:
        return message
    *_, place = traceback.extract_tb(error.__traceback__)
    return f"{told} ({place.filename}, line {place.lineno})"
