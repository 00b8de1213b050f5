"""Requests lost by a service that is stopped: python -m benchmarks.bench_stops --runs 50.

In every run, the service with a mock engine is stopped by SIGTERM while clients send requests in a
closed loop, half of them on kept connections, and other processes take the cores. A request counts
as lost if its connection was taken and it got no answer, or one other than 200.

The result is a table in Markdown, with date and machine; progress is on stderr.

Exit status: 1 if a request was lost, the service did not end with 0, or no run was finished.
"""

import argparse
import http.client
import multiprocessing
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.bench_service import make_body, make_bundle
from benchmarks.machine import describe_machine, today
from benchmarks.replicas import free_port, mock_replica, wait_until_ready

HOST = "127.0.0.1"
ENGINE = ("5", "1", "16")  # ms of a batch, ms of each image, images in a batch
LIMIT_S = 60


class Load:
    """Clients in a closed loop until the port is closed, and what they got."""

    def __init__(self, port: int, image: bytes, *, num_clients: int, num_before: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.is_flowing = threading.Event()  # so many answers have come
        self._port = port
        self._image = image
        self._num_before = num_before
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(index % 2 == 0,), daemon=True)
            for index in range(num_clients)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return once every client was refused."""
        for thread in self._threads:
            thread.join(LIMIT_S)
            if thread.is_alive():
                self._count("a client that still waits")

    def _ask(self, is_kept: bool) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=LIMIT_S)
        while True:
            try:
                connection.request("POST", "/detect", self._image)
                with connection.getresponse() as response:
                    response.read()
                    self._count(str(response.status))
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException) as error:
                return self._count(type(error).__name__)
            if not is_kept:
                connection.close()

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1
            if self.outcomes.total() >= self._num_before:
                self.is_flowing.set()


@contextmanager
def starved(num_processes: int) -> Iterator[None]:
    """Keep this many processes busy."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_burn, daemon=True) for _ in range(num_processes)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _burn() -> None:
    while True:
        pass


def stop_once(bundle: Path, image: bytes, *, num_clients: int) -> tuple[Counter[str], int]:
    """Start, load and stop the service: what the clients got, and its exit status."""
    port = free_port()
    with mock_replica(HOST, port, bundle=bundle, arguments=ENGINE) as process:
        wait_until_ready(f"http://{HOST}:{port}")
        load = Load(port, image, num_clients=num_clients, num_before=5 * num_clients)
        load.is_flowing.wait(LIMIT_S)
        process.send_signal(signal.SIGTERM)
        load.wait()
        return load.outcomes, process.wait(LIMIT_S)


def main() -> int:
    """Run it and print the totals, even if it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--burners", type=int, default=4, help="processes that use the cores")
    args = parser.parse_args()
    found: list[tuple[Counter[str], int]] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        starved(args.burners),
        suppress(KeyboardInterrupt),
    ):
        bundle = Path(directory) / "mock"
        make_bundle(bundle)
        _, image = make_body()
        for run in range(1, args.runs + 1):
            found.append(stop_once(bundle, image, num_clients=args.clients))
            outcomes, status = found[-1]
            print(f"run {run}: {dict(outcomes)}, exit status {status}", file=sys.stderr)
    total = sum((outcomes for outcomes, _ in found), Counter())
    num_bad = sum(set(outcomes) != {"200"} or status != 0 for outcomes, status in found)
    print(f"{today()}: {describe_machine(['uvicorn'])}\n")
    print("| runs | clients | busy processes | answered | lost | runs that lost or failed |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {len(found)} | {args.clients} | {args.burners} | {total['200']} | "
        f"{total.total() - total['200']} | {num_bad} |"
    )
    if not found:
        print("no run was finished", file=sys.stderr)
    return 1 if num_bad or not found else 0


if __name__ == "__main__":
    sys.exit(main())
