"""How images/s grow with replicas behind the proxy: python -m benchmarks.bench_replicas.

The replicas have a mock engine that takes 500 ms for any batch of up to 4 images, so that two cores
are not the limit; HAProxy runs with the configuration in docker/. The clients, sixteen per replica,
share a separate process and send the same JPEG again and again. Each number of replicas is measured
in turn, --rounds times. Linear is the number of replicas times what one does in the same round.
"""

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.bench_service import make_body, make_bundle, spread
from benchmarks.contestant_process import apart
from benchmarks.http_clients import Sample, measure
from benchmarks.replicas import mock_replica, proxy, replica_host, wait_until_ready

ENGINE = ("500", "0", "4")  # milliseconds per batch, per image; images per batch
CLIENTS_PER_REPLICA = 16


def main() -> None:
    """Measure 1, 2 and 4 replicas, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="length of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    body, _ = make_body()
    samples: dict[int, list[Sample]] = {1: [], 2: [], 4: []}
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "mock"
        make_bundle(bundle)
        for _ in range(args.rounds):
            for count, found in samples.items():
                found.append(sample(count, bundle, seconds=args.seconds, body=body))
    print("| replicas | images/s | of linear | median ms | p99 ms | errors |")
    print("|---|---|---|---|---|---|")
    for count, found in samples.items():
        ratios = [
            many.images_per_s / count / one.images_per_s
            for many, one in zip(found, samples[1], strict=True)
        ]
        print(
            f"| {count} | {spread([one.images_per_s for one in found])} | "
            f"{statistics.median(ratios):.3f} | "
            f"{statistics.median(one.median_ms for one in found):.0f} | "
            f"{statistics.median(one.p99_ms for one in found):.0f} | "
            f"{sum(one.num_errors for one in found)} |"
        )


def sample(num_replicas: int, bundle: Path, *, seconds: float, body: bytes) -> Sample:
    """One closed loop through the proxy."""
    with ExitStack() as stack:
        front = stack.enter_context(proxy())
        hosts = [replica_host(index) for index in range(num_replicas)]
        for host in hosts:
            stack.enter_context(mock_replica(host, front.port, bundle=bundle, arguments=ENGINE))
        for host in hosts:
            wait_until_ready(f"http://{host}:{front.port}")
        front.hosts.extend(hosts)
        front.wait_for(num_replicas)
        num_clients = CLIENTS_PER_REPLICA * num_replicas
        loop = partial(measure, front.endpoint[1], num_clients, seconds=seconds, body=body)
        return apart(loop, timeout_s=seconds + 120)


if __name__ == "__main__":
    main()
