"""How much of the engine's speed is left over HTTP: python -m benchmarks.bench_service.

A mock engine sleeps 32 + 8 b ms for a batch of b images, 100 images/s at 16, behind this service
and behind peers. Efficiency is images/s over HTTP divided by images/s of the bare engine in the
same round. The clients share a separate process and send the same JPEG again and again: each after
its answer, and at random times at 0.5 to 2 times what the bare engine can do. The servers are
measured in turn, --rounds times; the table shows the median and the spread.

For this service and the mock engine, a second table has what a scheduler can be judged by: its
share of the best schedule for the number of clients (see `benchmarks.service_ratios`), p99 over
median, and what a lone request takes beyond decoding and the engine.

With --bundle, only this service is measured, with the bundle's own engine on the same cores as
decoding and clients; DETR_ENGINE and the other settings come from the environment.
"""

import argparse
import importlib.util
import io
import multiprocessing
import os
import random
import signal
import socket
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from benchmarks.contestant_process import apart
from benchmarks.http_clients import BOUNDARY, Sample, measure, measure_open
from benchmarks.machine import cpu_seconds, describe_machine, today
from benchmarks.mock_engine import MAX_BATCH_SIZE, PREPROCESS, MockEngine, as_json
from benchmarks.service_ratios import print_ratios
from bundle.detect import make_batch
from bundle.known_answers import write_known_answers
from bundle.layout import GRAPH_FILES, STANDARD_FORM
from bundle.manifest import Bundle, Manifest
from bundle.preprocess import decode_image
from engines.base import Engine
from service.settings import Settings
from service.startup import open_served

OURS = "detr-serve"
OPEN_SHARES = (0.5, 0.8, 1.0, 2.0)  # of what the bare engine can do
START_S = 300  # for a server to start: a large model on a GPU is run at every size


class Served(NamedTuple):
    """The bundle that is served, with its own engine or the mock engine."""

    directory: Path
    is_real: bool


# --- the servers, each in a separate process


def serve_ours(port: int, served: Served) -> None:
    """This service, as `make serve` runs it."""
    from service.__main__ import serve

    settings = Settings(bundle=served.directory, port=port, log_level="warning")
    serve(settings, open_served if served.is_real else lambda *_: MockEngine())


def serve_plain_fastapi(port: int, served: Served) -> None:
    """The obvious server: an upload, the model under a lock, no batching."""
    from fastapi import FastAPI, UploadFile

    app, engine, lock = FastAPI(), MockEngine(), threading.Lock()

    @app.post("/detect")
    def detect(images: UploadFile) -> list[dict[str, Any]]:
        batch = make_batch([decode_image(images.file.read())], PREPROCESS)
        with lock:
            output = engine.run(batch.images, batch.padding_mask)
        return as_json(output.rows()[0], batch.geometries[0])

    @app.get("/readyz")
    def readyz() -> None:
        pass

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def serve_litserve(port: int, served: Served) -> None:
    """LitServe; imported here, because it may not be installed."""
    from benchmarks.litserve_peer import serve

    serve(port)


def serve_mosec(port: int, served: Served) -> None:
    """Mosec; imported here, because it may not be installed."""
    from benchmarks.mosec_peer import serve

    serve(port)


# --- the run


def bare_engine(served: Served, *, seconds: float, jpeg: bytes) -> dict[int, float]:
    """Images/s of the engine alone, by batch size."""
    manifest, engine = open_bare(served)
    image = decode_image(jpeg)
    speeds = {}
    for batch_size in (1, 2, 4, 8, 16, 32):
        if batch_size > engine.max_batch_size:
            break
        batch = make_batch([image] * batch_size, manifest.preprocess)[:2]
        for _ in range(3):  # an engine on a GPU captures the second
            engine.run(*batch)
        started = time.perf_counter()
        num_runs = count_runs(engine, batch, seconds=seconds)
        speeds[batch_size] = num_runs * batch_size / (time.perf_counter() - started)
    return speeds


def count_runs(engine: Engine, batch: tuple[Any, Any], *, seconds: float) -> int:
    """The runs of as many threads as the engine takes, which is how the service runs it."""
    deadline = time.perf_counter() + seconds

    def run(_: int) -> int:
        num_runs = 0
        while num_runs == 0 or time.perf_counter() < deadline:
            engine.run(*batch)
            num_runs += 1
        return num_runs

    with ThreadPoolExecutor(engine.runs_at_once) as pool:
        return sum(pool.map(run, range(engine.runs_at_once)))


def open_bare(served: Served) -> tuple[Manifest, Engine]:
    """The engine on its own, without a server."""
    loaded = Bundle.load(served.directory)
    if not served.is_real:
        return loaded.manifest, MockEngine()
    return loaded.manifest, open_served(loaded, Settings(bundle=served.directory))


@contextmanager
def running(serve: Callable[[int, Served], None], served: Served) -> Iterator[tuple[int, int]]:
    """Run a server in a separate process; yields its port and its process group."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=lead_group, args=(serve, port), kwargs={"served": served}
    )
    process.start()
    try:
        assert process.pid is not None
        wait_until_answering(port, process)
        yield port, process.pid
    finally:
        assert process.pid is not None
        process.terminate()
        process.join(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind


def wait_until_answering(port: int, process: BaseProcess) -> None:
    """Wait until a server detects; not all of them say when they are ready.

    Raises:
        TimeoutError: it does not within START_S, or ends.
    """
    body, _ = make_body()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/detect", body, headers)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.is_alive():
        try:
            return urllib.request.urlopen(request, timeout=START_S).close()
        except OSError:  # refused, or an error status
            time.sleep(0.05)
    raise TimeoutError(f"nothing detects at port {port}")


def lead_group(serve: Callable[[int, Served], None], port: int, *, served: Served) -> None:
    """Serve as the leader of a process group, so that the whole group can be ended."""
    os.setpgrp()
    serve(port, served)


def make_body() -> tuple[bytes, bytes]:
    """A multipart body with a 640 x 480 JPEG of about 80 kB, and the JPEG."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=78)
    jpeg = buffer.getvalue()
    head = b'Content-Disposition: form-data; name="images"; filename="photo.jpg"\r\n'
    return b"--%s\r\n%sContent-Type: image/jpeg\r\n\r\n%s\r\n--%s--\r\n" % (
        BOUNDARY, head, jpeg, BOUNDARY,
    ), jpeg  # fmt: skip


def make_bundle(directory: Path) -> None:
    """A manifest with the published preprocessing; the mock engine needs no graph."""
    directory.mkdir()
    (directory / GRAPH_FILES[STANDARD_FORM]).write_bytes(b"none")
    images = [np.zeros((480, 640, 3), np.uint8)] * 3
    write_known_answers(directory, MockEngine().run, preprocess=PREPROCESS, images=images)
    Manifest(
        name="mock",
        variant="two_stage",
        graphs={STANDARD_FORM: GRAPH_FILES[STANDARD_FORM]},
        inputs=(),
        outputs=(),
        preprocess=PREPROCESS,
        classes=({"id": 1, "name": "thing"},),
        num_detections=100,
        max_batch_size=MAX_BATCH_SIZE,
        batches="any",
    ).save(directory)


def main() -> None:
    """Measure every server that is installed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="length of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, of 5 s per load")
    parser.add_argument("--bundle", type=Path, help="run its engine instead of the mock engine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        served = Served(args.bundle or Path(directory) / "mock", is_real=args.bundle is not None)
        servers: dict[str, Callable[[int, Served], None]] = {OURS: serve_ours}
        if not served.is_real:
            make_bundle(served.directory)
            servers["FastAPI, no batching"] = serve_plain_fastapi
            if importlib.util.find_spec("litserve"):
                servers["LitServe"] = serve_litserve
            if importlib.util.find_spec("mosec"):
                servers["Mosec"] = serve_mosec
        rounds, seconds = (1, 5.0) if args.quick else (args.rounds, args.seconds)
        print(f"{today()}: {describe_machine(['uvicorn'])}; rounds: {rounds}, of {seconds:g} s")
        run(servers, served, rounds=rounds, seconds=seconds)


class Load(NamedTuple):
    """What the clients do: so many in a closed loop, or an open loop at so much of capacity."""

    num_clients: int = 0
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.num_clients} clients" if self.num_clients else f"{self.share:g} x capacity"

    def measure(self, port: int, capacity: float, *, seconds: float, body: bytes) -> Sample:
        """Put this load on a server, from a separate process."""
        if self.num_clients:
            loop = partial(measure, port, self.num_clients, seconds=seconds, body=body)
        else:
            loop = partial(measure_open, port, self.share * capacity, seconds=seconds, body=body)
        return apart(loop, timeout_s=seconds + 120)


class Measured(NamedTuple):
    """A sample, beside the bare engine of the same round."""

    sample: Sample
    efficiency: float
    cpu_ms: float  # of the server, for each image that it answered


def measure_server(
    served: Served,
    serve: Callable[[int, Served], None],
    *,
    loads: Sequence[Load],
    capacity: float,
    seconds: float,
    body: bytes,
) -> dict[Load, Measured]:
    """Start a server and put every load on it.

    Raises:
        TimeoutError: it does not start, or its clients do not end.
    """
    found = {}
    with running(serve, served) as (port, group):
        for load in loads:
            before_s = cpu_seconds(group)
            sample = load.measure(port, capacity, seconds=seconds, body=body)
            cpu_ms = (cpu_seconds(group) - before_s) * 1e3 / max(1, sample.num_answered)
            found[load] = Measured(sample, sample.images_per_s / capacity, cpu_ms)
    return found


def run(
    servers: dict[str, Callable[[int, Served], None]],
    served: Served,
    *,
    rounds: int,
    seconds: float,
) -> None:
    """Measure the servers in turn, in a random order each round, and print the table."""
    body, jpeg = make_body()
    bare: list[dict[int, float]] = []
    measured: dict[tuple[Load, str], list[Measured]] = {}
    for _ in range(rounds):
        alone = partial(bare_engine, served, seconds=min(seconds, 5), jpeg=jpeg)
        bare.append(apart(alone, timeout_s=600))
        capacity, largest = max(bare[-1].values()), max(bare[-1])
        loads = [Load(count) for count in sorted({1, 8, largest, 2 * largest, 4 * largest})]
        loads += [Load(share=share) for share in OPEN_SHARES]
        put_loads = partial(
            measure_server, served, loads=loads, capacity=capacity, seconds=seconds, body=body
        )
        for name in random.sample(list(servers), len(servers)):
            try:
                found = put_loads(servers[name])
            except TimeoutError as error:  # a peer that lacks a package, for example
                if name == OURS:
                    raise
                print(f"{name} is left out: {error}", flush=True)
                del servers[name]
                continue
            for load, one in found.items():
                measured.setdefault((load, name), []).append(one)
    print(f"JPEG of {len(jpeg)} bytes; bare engine, images/s by batch size:")
    speeds = {size: [found[size] for found in bare] for size in bare[0]}
    print("  " + ", ".join(f"{size}: {spread(found)}" for size, found in speeds.items()))
    print(
        "\n| load | server | images/s | efficiency | median ms | p99 ms | CPU-ms/image | errors |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for load, name in sorted(measured):
        print(f"| {load} | {name} | {row(measured[load, name])} |")
    if served.is_real:
        print(f"\nserved/raw: {served_share(measured):.3f}, the most of the closed loops")
    else:
        engine_s = 1 / statistics.median(speeds[1])
        print_ratios(our_closed_loops(measured), jpeg=jpeg, engine_s=engine_s)


def our_closed_loops(measured: dict[tuple[Load, str], list[Measured]]) -> dict[int, list[Sample]]:
    """The samples of this service by number of clients."""
    return {
        load.num_clients: [one.sample for one in found]
        for (load, name), found in measured.items()
        if name == OURS and load.num_clients
    }


def served_share(measured: dict[tuple[Load, str], list[Measured]]) -> float:
    """The part of the bare engine's images/s that is left over HTTP, with enough clients."""
    return max(
        statistics.median(one.efficiency for one in found)
        for (load, _), found in measured.items()
        if load.num_clients
    )


def row(found: Sequence[Measured]) -> str:
    """The figures of one load on one server, over all rounds."""
    samples = [one.sample for one in found]
    return " | ".join(
        (
            spread([sample.images_per_s for sample in samples]),
            f"{statistics.median(one.efficiency for one in found):.3f}",
            f"{statistics.median(sample.median_ms for sample in samples):.1f}",
            f"{statistics.median(sample.p99_ms for sample in samples):.1f}",
            f"{statistics.median(one.cpu_ms for one in found):.1f}",
            f"{sum(sample.num_errors for sample in samples)}",
        )
    )


def spread(values: Sequence[float]) -> str:
    """The median, with the least and the most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


if __name__ == "__main__":
    main()
