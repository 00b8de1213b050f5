"""How much of the engine's speed is left over HTTP: python -m benchmarks.bench_service.

A mock engine sleeps 32 + 8 b ms for a batch of b images, 100 images/s at 16, behind this service
and behind peers. Efficiency is images/s over HTTP divided by images/s of the bare engine, measured
in the same run. Clients are one process of their own, and send one JPEG again and again. The
servers are measured in turn, --rounds times; the table shows the median and the spread.
"""

import argparse
import asyncio
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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from bundle.manifest import Manifest
from bundle.postprocess import to_detections
from bundle.preprocess import Preprocess, decode_image, pad_batch, prepare
from service.engines.base import EngineInfo, RawOutput

MAX_BATCH_SIZE = 16
FIXED_MS, IMAGE_MS = 32.0, 8.0
PREPROCESS = Preprocess()
BOUNDARY = b"bench"


class MockEngine:
    """Sleeps as long as a GPU would work, and finds 100 objects."""

    name = "mock"
    info = EngineInfo("mock", "fp32", "standard", threads=1, streams=1)
    gpu_memory_bytes = 0
    max_batch_size = MAX_BATCH_SIZE

    def run(self, images: np.ndarray, padding_mask: np.ndarray) -> RawOutput:
        batch_size = len(images)
        time.sleep((FIXED_MS + IMAGE_MS * batch_size) / 1e3)
        return RawOutput(
            scores=np.tile(np.linspace(0.9, 0.1, 100, dtype=np.float32), (batch_size, 1)),
            labels=np.zeros((batch_size, 100), np.int64),
            boxes=np.tile(np.float32([0.1, 0.2, 0.6, 0.7]), (batch_size, 100, 1)),
        )

    def close(self) -> None:
        pass


# --- the servers, each in a process of its own


def serve_ours(port: int, bundle: Path) -> None:
    from service.__main__ import Server
    from service.app import create_app
    from service.settings import Settings

    settings = Settings(bundle=bundle, port=port, log_level="warning")
    Server(create_app(settings, MockEngine()), settings).run(
        sockets=[socket.create_server(("127.0.0.1", port), backlog=2048)]
    )


def serve_plain_fastapi(port: int, bundle: Path) -> None:
    """What one writes first: an upload, the model under a lock, no batching."""
    from fastapi import FastAPI, UploadFile

    app, engine, lock = FastAPI(), MockEngine(), threading.Lock()

    @app.post("/detect")
    def detect(images: UploadFile) -> list[dict[str, Any]]:
        image, geometry = prepare(decode_image(images.file.read()), PREPROCESS)
        with lock:
            output = engine.run(*pad_batch([image]))
        return as_json(RawOutput(*(part[0] for part in output)), geometry)

    @app.get("/readyz")
    def readyz() -> None:
        pass

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def serve_litserve(port: int, bundle: Path) -> None:
    from benchmarks.litserve_peer import serve

    serve(port)


def as_json(output: RawOutput, geometry: Any) -> list[dict[str, Any]]:
    found = to_detections(*output, geometry, threshold=0.3)
    return [
        {"bbox": box, "score": score}
        for box, score in zip(found.boxes_xywh_px.tolist(), found.scores.tolist(), strict=True)
    ]


# --- the clients


class Sample(NamedTuple):
    """One measurement of a closed loop."""

    images_per_s: float
    median_ms: float
    p99_ms: float
    num_errors: int


def measure_in_process(port: int, num_clients: int, seconds: float, body: bytes, out: Any) -> None:
    out.put(asyncio.run(closed_loop(port, num_clients, seconds, body)))


async def closed_loop(port: int, num_clients: int, seconds: float, body: bytes) -> Sample:
    """Clients that each send a request as soon as the last was answered; the first second warms."""
    request = (
        b"POST /detect HTTP/1.1\r\nHost: bench\r\nContent-Type: multipart/form-data; boundary=%s"
        b"\r\nContent-Length: %d\r\n\r\n%s" % (BOUNDARY, len(body), body)
    )
    started = time.perf_counter() + 1.0
    ended = started + seconds
    latencies_ms: list[float] = []
    num_errors = 0

    async def client() -> None:
        nonlocal num_errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (sent := time.perf_counter()) < ended:
            writer.write(request)
            status = await read_answer(reader)
            done = time.perf_counter()
            num_errors += status != 200
            if status == 200 and started < done < ended:
                latencies_ms.append((done - sent) * 1e3)
        writer.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    centiles = statistics.quantiles(latencies_ms, n=100)
    return Sample(len(latencies_ms) / seconds, centiles[49], centiles[98], num_errors)


async def read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ")[1])


# --- the run


def bare_engine(seconds: float) -> dict[int, float]:
    """Images/s of the engine alone, by batch size."""
    engine, speeds = MockEngine(), {}
    for batch_size in (1, 2, 4, 8, 16):
        images = np.zeros((batch_size, 8, 8, 3), np.uint8)
        num_runs, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            engine.run(images, images[..., 0] > 0)
            num_runs += 1
        speeds[batch_size] = num_runs * batch_size / (time.perf_counter() - started)
    return speeds


@contextmanager
def running(serve: Callable[[int, Path], None], bundle: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=lead_group, args=(serve, port, bundle)
    )
    process.start()
    try:
        wait_until_ready(port)
        yield port
    finally:
        process.terminate()
        process.join(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind


def lead_group(serve: Callable[[int, Path], None], port: int, bundle: Path) -> None:
    os.setpgrp()
    serve(port, bundle)


def wait_until_ready(port: int) -> None:
    import httpx

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"nothing is ready on port {port}")


def measure(port: int, num_clients: int, seconds: float, body: bytes) -> Sample:
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    arguments = (port, num_clients, seconds, body, out)
    process = context.Process(target=measure_in_process, args=arguments)
    process.start()
    sample: Sample = out.get(timeout=seconds + 120)
    process.join()
    return sample


def make_body() -> tuple[bytes, int]:
    """A multipart body with a 640 x 480 JPEG of about 93 kB, and the size of the JPEG."""
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
    ), len(jpeg)  # fmt: skip


def make_bundle(directory: Path) -> None:
    """A manifest with the published preprocessing; the mock engine needs no graph."""
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"none")
    Manifest(
        name="mock",
        variant="two_stage",
        graphs={"standard": "model.onnx"},
        inputs=(),
        outputs=(),
        preprocess=PREPROCESS,
        classes=({"id": 1, "name": "thing"},),
        num_detections=100,
        max_batch_size=MAX_BATCH_SIZE,
    ).save(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    servers: dict[str, Callable[[int, Path], None]] = {"detr-serve": serve_ours}
    if importlib.util.find_spec("litserve"):
        servers["LitServe"] = serve_litserve
    servers["FastAPI, no batching"] = serve_plain_fastapi
    body, jpeg_bytes = make_body()
    samples: dict[tuple[str, int], deque[Sample]] = {}
    loads = [1, MAX_BATCH_SIZE, 2 * MAX_BATCH_SIZE, 4 * MAX_BATCH_SIZE]
    bare = bare_engine(seconds=2)
    best = max(bare.values())
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "mock"
        make_bundle(bundle)
        for _ in range(args.rounds):
            for name in random.sample(list(servers), len(servers)):
                with running(servers[name], bundle) as port:
                    for num_clients in loads:
                        sample = measure(port, num_clients, args.seconds, body)
                        samples.setdefault((name, num_clients), deque()).append(sample)
    print(f"JPEG of {jpeg_bytes} bytes; bare engine, images/s by batch size:")
    print("  " + ", ".join(f"{size}: {speed:.1f}" for size, speed in bare.items()))
    print("\n| server | clients | images/s | efficiency | median ms | p99 ms | errors |")
    print("|---|---|---|---|---|---|---|")
    for (name, num_clients), found in sorted(samples.items(), key=lambda pair: pair[0][::-1]):
        speeds = [sample.images_per_s for sample in found]
        print(
            f"| {name} | {num_clients} | {statistics.median(speeds):.1f} "
            f"({min(speeds):.1f} - {max(speeds):.1f}) | {statistics.median(speeds) / best:.3f} | "
            f"{statistics.median(s.median_ms for s in found):.1f} | "
            f"{statistics.median(s.p99_ms for s in found):.1f} | "
            f"{sum(s.num_errors for s in found)} |"
        )


if __name__ == "__main__":
    main()
