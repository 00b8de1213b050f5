"""Milliseconds of work on a GPU or, to try a benchmark out, on a CPU."""

import time
from collections.abc import Callable

import torch

QUEUE_CYCLES = 20_000_000  # about 10 ms, in which a GPU waits until the queue is full


def memory_of_caches(device: str) -> int:
    """The bytes of a GPU's largest cache; a few, on a CPU."""
    if device == "cpu":
        return 2**16
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def time_launches(launch: Callable[[int], object], launches: int, *, device: str) -> float:
    """Milliseconds of one of the launches, which are numbered.

    All are put into the stream before the first begins, so that Python's own time does not count
    if it is less than the GPU's.
    """
    if device == "cpu":
        start = time.perf_counter()
        for number in range(launches):
            launch(number)
        return 1e3 * (time.perf_counter() - start) / launches
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    launch(0)
    torch.cuda._sleep(QUEUE_CYCLES)
    before.record()
    for number in range(launches):
        launch(number)
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / launches


def time_runs(run: Callable[[], object], *, at_least_s: float) -> float:
    """Milliseconds of a run that ends when its results are on the host."""
    run()
    num_runs, start = 0, time.perf_counter()
    while num_runs == 0 or time.perf_counter() - start < at_least_s:
        run()
        num_runs += 1
    return 1e3 * (time.perf_counter() - start) / num_runs


def forget_memory(device: str) -> None:
    """Give back what PyTorch keeps of a GPU's memory, which others need for their turns."""
    if device != "cpu":
        torch.cuda.empty_cache()
