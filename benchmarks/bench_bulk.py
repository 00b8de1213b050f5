"""Images/s of bulk detection, relative to the bare engine: python -m benchmarks.bench_bulk.

One worker on Ray goes through chunks of photographs, with a mock engine or that of a bundle. The
time runs from the file of its first chunk to that of its last, so that the start of Ray and of the
engine are left out. The bare engine runs full batches before and after, in this process.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.bench_service import make_body, make_bundle
from benchmarks.machine import describe_machine, today
from benchmarks.mock_engine import MockEngine
from bundle.manifest import Bundle
from bundle.preprocess import decode_image, pad_batch, prepare
from engines.base import Engine
from engines.load import open_engine
from service.bulk import detect_all, make_job, with_ray
from service.bulk_images import find_chunks
from service.bulk_worker import PARTS, Job, Worker
from service.schemas import DetectQuery

CHUNK_SIZE = 256  # the default of the command


class MockWorker(Worker):
    """A worker whose engine only takes time."""

    def __init__(self, job: Job, out: str, *, num_threads: int) -> None:
        super().__init__(job, out, num_threads=num_threads, open_it=lambda *_, **__: MockEngine())


def bare_images_per_s(engine: Engine, images: list[np.ndarray], *, seconds: float) -> float:
    """What the engine does alone, in full batches (B, H, W, 3)."""
    batch = pad_batch((images * engine.max_batch_size)[: engine.max_batch_size])
    engine.run(*batch)
    started, num_images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        num_images += len(engine.run(*batch).rows())
    return num_images / (time.perf_counter() - started)


def main() -> None:
    """Measure in rounds, and print a row of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="instead of the mock engine")
    parser.add_argument("--chunks", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2, help="cores of the worker")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        if args.bundle is None:
            make_bundle(folder / "mock")
        bundle = Bundle.load(args.bundle or folder / "mock")
        photo = make_body()[1]
        (folder / "photos").mkdir()
        for number in range(args.chunks * CHUNK_SIZE):
            (folder / "photos" / f"{number:06d}.jpg").hardlink_to(_first(folder, photo))
        image, _ = prepare(decode_image(photo), bundle.manifest.preprocess)
        engine = open_engine(bundle, threads=args.cpus) if args.bundle else MockEngine()
        chunks = find_chunks([str(folder / "photos")], chunk_size=CHUNK_SIZE)
        job = make_job(bundle, chunks, query=DetectQuery())
        worker = Worker if args.bundle else MockWorker
        shares = []
        for number in range(args.rounds):
            before = bare_images_per_s(engine, [image], seconds=5.0)
            run = with_ray(1, num_cpus=args.cpus, worker=worker)
            detect_all(job, chunks, out=str(folder / f"out{number}"), run=run)
            after = bare_images_per_s(engine, [image], seconds=5.0)
            # Not in the order of their names: Ray may begin with any chunk.
            times = [part.stat().st_mtime for part in (folder / f"out{number}" / PARTS).iterdir()]
            seconds = max(times) - min(times)
            done_per_s = (args.chunks - 1) * CHUNK_SIZE / seconds
            shares.append(2 * done_per_s / (before + after))
            print(f"bare {before:.1f} and {after:.1f}, bulk {done_per_s:.1f} images/s", flush=True)
    print(f"{today()}: {describe_machine(['ray'])}; {bundle.manifest.name}, rounds: {args.rounds}")
    spread = f"{min(shares):.3f} - {max(shares):.3f}"
    print(f"share of the bare engine: {statistics.median(shares):.3f} ({spread})")


def _first(folder: Path, photo: bytes) -> Path:
    path = folder / "photo.jpg"
    if not path.exists():
        path.write_bytes(photo)
    return path


if __name__ == "__main__":
    main()
