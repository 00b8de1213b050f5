"""What the service makes of the mock engine, beside the best that a scheduler could do."""

import statistics
import time
from collections.abc import Mapping, Sequence

from benchmarks.bench_batcher import best_per_s
from benchmarks.http_clients import Sample
from benchmarks.mock_engine import MAX_BATCH_SIZE, PREPROCESS
from bundle.preprocess import decode_image, prepare
from engines.cores import allowed_cores

REST_S = 0.002  # that a request may take beyond decoding and the engine


def print_ratios(samples: Mapping[int, Sequence[Sample]], *, jpeg: bytes, engine_s: float) -> None:
    """Print them with the bars that they should reach.

    Args:
        samples: number of clients in a closed loop -> a sample of each round; one client included.
        jpeg: what they sent.
        engine_s: seconds that the bare engine takes for one image.
    """
    decode_s, lone_decode_s = decode_seconds(jpeg), decode_seconds(jpeg, rest_s=engine_s)
    print("\n| clients | best schedule, images/s | share of it (>= 0.95) | p99 / median |")
    print("|---|---|---|---|")
    for num_clients in sorted(set(samples) - {1}):
        best = best_schedule(num_clients, decode_s)
        share = statistics.median(one.images_per_s / best for one in samples[num_clients])
        ratio = statistics.median(one.p99_ms / one.median_ms for one in samples[num_clients])
        bar = " (<= 1.25)" if num_clients == 2 * MAX_BATCH_SIZE else ""
        print(f"| {num_clients} | {best:.1f} | {share:.3f} | {ratio:.2f}{bar} |")
    lone_ms = statistics.median(one.median_ms for one in samples[1])
    rest_ms = lone_ms - 1e3 * (lone_decode_s + engine_s)
    print(
        "\nThe best schedule waits for all clients and runs them together, or runs two groups in "
        f"turn, whichever is faster. The clients of a batch are back once {allowed_cores()} cores "
        f"have decoded their images and worked {1e3 * REST_S:g} ms more on each; a schedule that "
        "runs the first of them earlier may do better."
        f"\nA lone request: {lone_ms:.1f} ms = {1e3 * lone_decode_s:.1f} to decode and resize "
        f"after as long a rest as the engine's run + {1e3 * engine_s:.1f} of the bare engine + "
        f"{rest_ms:.1f} (<= {1e3 * REST_S:g})"
    )


def decode_seconds(jpeg: bytes, *, rest_s: float = 0.0) -> float:
    """The median time that decoding and resizing an image takes, after a rest before each.

    Caches are cold after a rest: 2.4 ms instead of 2.0 after 40 ms.
    """
    seconds = []
    for _ in range(30):
        time.sleep(rest_s)
        started = time.perf_counter()
        prepare(decode_image(jpeg), PREPROCESS)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def best_schedule(num_clients: int, decode_s: float) -> float:
    """Images/s of the best schedule for clients in a closed loop, which knows when each returns."""
    num_decoded = max(1.0, num_clients / allowed_cores())
    return best_per_s(num_clients, return_s=num_decoded * (decode_s + REST_S))
