"""Several processes that train one model together; with one process, no function does anything.

`torchrun` starts them, and restarts them when one ends. They keep equal weights: each computes its
share of a step, and they exchange sums over the whole step. Process 0 is the main one, which alone
writes files and logs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# How long a process waits for the others, which may be pre-training or evaluating. If one has
# ended, that is noticed at once.
TIMEOUT = timedelta(hours=2)
Result = TypeVar("Result")
_is_alone = False  # see `alone`


class PeerFailed(Exception):
    """Another process of the run has ended, or all met an error, which the main one reports."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, if this is one of them; choose this one's GPU."""
    if not dist.is_torchelastic_launched():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
        backend = "cpu:gloo,cuda:nccl"
    store, process, count = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    # torchrun's store outlives a restart, with the addresses of the processes before it.
    session = f"{count} processes, restart {os.environ['TORCHELASTIC_RESTART_COUNT']}"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(session, store),
        rank=process,
        world_size=count,
        timeout=TIMEOUT,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this process acts as if it were the only one."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def num_processes() -> int:
    """How many processes train together."""
    return 1 if _is_alone or not dist.is_initialized() else dist.get_world_size()


def process_index() -> int:
    """0 for the main process."""
    return 0 if _is_alone or not dist.is_initialized() else dist.get_rank()


def is_main() -> bool:
    """Whether this process writes the files and logs."""
    return process_index() == 0


def in_main(action: Callable[..., None]) -> Callable[..., None]:
    """`action` in the main process; in the others, a function that does nothing."""
    return action if is_main() else lambda *args, **options: None


def sum_in_place(tensor: Tensor) -> None:
    """Replace a contiguous tensor by its sum over all processes, bit for bit the same in each."""
    if num_processes() > 1:
        with _peers():
            dist.all_reduce(tensor)


def largest(number: int) -> int:
    """The largest of the numbers of all processes."""
    if num_processes() == 1:
        return number
    tensor = torch.tensor(number)
    with _peers():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather(value: Result) -> list[Result]:
    """The values of all processes, by their index; values are pickled."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    with _peers():
        dist.all_gather_object(values, value)
    return values


def from_main(value: Result) -> Result:
    """The main process's value, in every process; it is pickled."""
    values = [value]
    if num_processes() > 1:
        with _peers():
            dist.broadcast_object_list(values, src=0)
    return values[0]


def copy_from_main(module: torch.nn.Module) -> None:
    """Overwrite weights and buffers with those of the main process."""
    if num_processes() > 1:
        with _peers():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


def together(action: Callable[[], Result]) -> Result:
    """The result of `action`, which every process calls.

    If it raises a ValueError or OSError in any of them, the main process raises that error, and
    the others raise PeerFailed.
    """
    if num_processes() == 1:
        return action()
    outcome: Result | Exception
    try:
        outcome = action()
    except (ValueError, OSError) as error:
        outcome = error
    for failure in gather(outcome if isinstance(outcome, Exception) else None):
        if failure is not None:
            raise agreed(failure)
    return outcome  # type: ignore[return-value]


def agreed(error: Exception) -> Exception:
    """The error to raise if all processes met the same one: only the main one raises it itself."""
    return error if is_main() else PeerFailed(str(error))


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the errors of a process group, which are plain RuntimeErrors, into PeerFailed."""
    try:
        yield
    except RuntimeError as error:
        raise PeerFailed("another process of this run has ended") from error
