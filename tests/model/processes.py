"""Processes that train together, forked from the test, which has imported everything."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # the first optimiser imports it, in every fork if not here
from torch import multiprocessing

from model.distributed import joined


def run_together(num_processes: int, work: Callable[..., object], *arguments: Any) -> None:
    """Call `work` in processes that have joined; fails with the trace of one that fails."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    multiprocessing.start_processes(
        _join_and_work,
        (num_processes, port, work, arguments),
        nprocs=num_processes,
        start_method="fork",
    )


def _join_and_work(
    index: int,
    num_processes: int,
    port: int,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)  # a fork has no other thread
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "MASTER_ADDR": "127.0.0.1",
                   "WORLD_SIZE": str(num_processes), "MASTER_PORT": str(port),
                   "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip
    with joined():
        work(*arguments)
