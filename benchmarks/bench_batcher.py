"""Throughput of the batcher with a mock engine, without HTTP: python -m benchmarks.bench_batcher.

The engine sleeps as long as `benchmarks.mock_engine`. Clients in a closed loop ask again 3 to 8 ms
after each answer, as if an image had to be sent and decoded; or requests arrive at random. The best
schedule for a number of clients is computed: it waits for all and runs them in one batch, or runs
two groups in turn.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.mock_engine import FIXED_MS, IMAGE_MS, MAX_BATCH_SIZE
from service.batching.batcher import DynamicBatcher

RETURN_S = (0.003, 0.008)
WARM_UP_S = 2.0
Batcher = DynamicBatcher[int, list[int], int]


class Sample(NamedTuple):
    """One measurement; latencies in milliseconds."""

    items_per_s: float
    median_ms: float
    p99_ms: float
    mean_batch: float


def best_per_s(num_clients: int, *, return_s: float = RETURN_S[1]) -> float:
    """Items per second of the best schedule for clients in a closed loop.

    Args:
        return_s: from the answers to a batch until the next items of all its clients are there.
    """
    two_groups = [
        num_clients / (_run_s(first) + _run_s(num_clients - first))
        for first in range(1, num_clients)
        if max(first, num_clients - first) <= MAX_BATCH_SIZE
    ]
    if num_clients <= MAX_BATCH_SIZE:
        together = num_clients / (_run_s(num_clients) + return_s)
        return max(together, *two_groups, 0.0)
    return max([*two_groups, MAX_BATCH_SIZE / _run_s(MAX_BATCH_SIZE)])


def _run_s(size: int) -> float:
    return (FIXED_MS + IMAGE_MS * size) / 1e3


async def closed_loop(num_clients: int, *, seconds: float) -> Sample:
    """Clients in a closed loop: each asks again after its answer."""
    batcher, sizes = _open()
    latencies_s: list[float] = []
    started = time.perf_counter() + WARM_UP_S
    ended = started + seconds

    async def client(number: int) -> None:
        while (sent := time.perf_counter()) < ended:
            await _ask(batcher, number)
            if started < (done := time.perf_counter()) < ended:
                latencies_s.append(done - sent)

    await asyncio.gather(*map(client, range(num_clients)))
    await batcher.close()
    return _sample(latencies_s, seconds, sizes)


async def open_loop(rate: float, *, seconds: float) -> Sample:
    """Requests that arrive independently of each other, on average `rate` per second."""
    batcher, sizes = _open()
    latencies_s: list[float] = []

    async def client(number: int) -> None:
        sent = time.perf_counter()
        await _ask(batcher, number)
        latencies_s.append(time.perf_counter() - sent)

    clients: list[asyncio.Task[None]] = []
    ended = time.perf_counter() + seconds
    while time.perf_counter() < ended:
        clients.append(asyncio.ensure_future(client(len(clients))))
        await asyncio.sleep(random.expovariate(rate))
    await asyncio.gather(*clients)
    await batcher.close()
    return _sample(latencies_s, seconds, sizes)


def _open() -> tuple[Batcher, list[int]]:
    """A batcher, and the sizes of its batches so far."""
    sizes: list[int] = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        time.sleep(_run_s(len(batch)))
        return batch

    return DynamicBatcher(list, run, max_batch_size=MAX_BATCH_SIZE, max_queue=10_000), sizes


async def _ask(batcher: Batcher, client: int) -> None:
    with batcher.admit(1, client=client) as ticket:
        await asyncio.sleep(random.uniform(*RETURN_S))
        await ticket.run([client], ["one size"])


def _sample(latencies_s: Sequence[float], seconds: float, sizes: Sequence[int]) -> Sample:
    centiles = statistics.quantiles(latencies_s, n=100)
    later = sizes[len(sizes) // 2 :]
    per_s = len(latencies_s) / seconds
    return Sample(per_s, 1e3 * centiles[49], 1e3 * centiles[98], statistics.mean(later))


def main() -> None:
    """The command line: prints two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_batcher")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a measurement")
    seconds = parser.parse_args().seconds
    random.seed(1)
    print("| clients | items/s | of the best schedule | median ms | p99 ms | mean batch |")
    print("|---|---|---|---|---|---|")
    for num_clients in (1, 4, 8, 16, 32, 64):
        found = asyncio.run(closed_loop(num_clients, seconds=seconds))
        share = found.items_per_s / best_per_s(num_clients)
        print(
            f"| {num_clients} | {found.items_per_s:.1f} | {share:.2f} | {found.median_ms:.0f} "
            f"| {found.p99_ms:.0f} | {found.mean_batch:.1f} |",
            flush=True,
        )
    print("\n| arrivals/s | items/s | median ms | p99 ms | mean batch |\n|---|---|---|---|---|")
    for rate in (25, 50, 80):
        found = asyncio.run(open_loop(rate, seconds=seconds))
        print(
            f"| {rate} | {found.items_per_s:.1f} | {found.median_ms:.0f} | {found.p99_ms:.0f} "
            f"| {found.mean_batch:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
