"""Images/s of decoding and resizing, on the CPU and with nvImageCodec: a part of bench_gpu."""

import io
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from benchmarks.gpu_tables import table, time_cells
from bundle.device_image import Decode
from bundle.preprocess import Preprocess, prepare
from engines.cores import allowed_cores
from export.judge.verify import photographs

SIZES = {"640x480": (640, 480), "12 megapixels": (4000, 3000)}  # width and height of the files
FULL_SIZE = Preprocess()
IMAGES_A_THREAD = 20


class Contestant(NamedTuple):
    """A decoder, and how many threads call it."""

    name: str
    decode: Decode
    num_threads: int


class Turn(NamedTuple):
    """Wall time and CPU time of one image, in ms."""

    wall_ms: float
    cpu_ms: float


def contestants(decoders: Mapping[str, Decode | ValueError], cores: int) -> list[Contestant]:
    """The CPU with a thread per core; others also with more, which share batches."""
    return [
        Contestant(f"{name}, {cores * factor} threads", decode, cores * factor)
        for name, decode in decoders.items()
        if not isinstance(decode, ValueError)
        for factor in ((1,) if name == "cpu" else (1, 2, 4))
    ]


def decoding_tables(
    decoders: Mapping[str, Decode | ValueError], *, rounds: int, cores: int | None = None
) -> str:
    """A table for each size of photographs; a decoder that was not opened is left out by name.

    Args:
        decoders: by name; the first is what the others are compared with.
        cores: how many threads the CPU gets; by default, as many as the process may use.
    """
    several = contestants(decoders, cores or allowed_cores())
    failed = {name: error for name, error in decoders.items() if isinstance(error, ValueError)}
    return "\n".join(_table_of(size, several, failed, rounds=rounds) for size in SIZES)


def photograph_file(size: str) -> bytes:
    """A photograph as a JPEG, with half the chroma in each direction as cameras write it."""
    photograph = Image.fromarray(photographs()[0]).resize(SIZES[size], Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    return buffer.getvalue()


def _table_of(
    size: str,
    several: Sequence[Contestant],
    failed: Mapping[str, ValueError],
    *,
    rounds: int,
) -> str:
    data = photograph_file(size)
    measured: dict[str, list[Turn]] = {one.name: [] for one in several}
    for one in several:  # nobody starts cold
        _measure(one, data)
    for _ in range(rounds):
        for one in several:
            measured[one.name].append(_measure(one, data))
    left_out = [
        [name, f"left out: {str(error).replace('|', '/')}", "", "", ""]
        for name, error in failed.items()
    ]
    head = ["", "ms an image", "x", "images/s", "CPU-ms an image"]
    title = f"decoding and resizing to 800x1067, a JPEG of {size} and {len(data) // 1000} kB"
    return table(title, head, rows=_rows(measured) + left_out)


def _rows(measured: Mapping[str, Sequence[Turn]]) -> list[list[str]]:
    walls = {name: [turn.wall_ms for turn in turns] for name, turns in measured.items()}
    yardstick = statistics.median(next(iter(walls.values())))
    return [
        [
            name,
            *time_cells(walls[name], yardstick, digits=3),
            f"{1e3 / statistics.median(walls[name]):.0f}",
            f"{statistics.median(turn.cpu_ms for turn in turns):.2f}",
        ]
        for name, turns in measured.items()
    ]


def _measure(one: Contestant, data: bytes) -> Turn:
    count = one.num_threads * IMAGES_A_THREAD

    def prepare_one(_: int) -> None:
        prepare(one.decode(data), FULL_SIZE)

    with ThreadPoolExecutor(one.num_threads) as pool:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        list(pool.map(prepare_one, range(count)))
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Turn(1e3 * wall_s / count, 1e3 * cpu_s / count)
