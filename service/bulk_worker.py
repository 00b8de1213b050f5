"""The worker of a bulk run: runs chunks of images through its engine, into files."""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from pydantic import BaseModel

from bundle.detect import Found
from bundle.manifest import Bundle
from bundle.postprocess import RawOutput, to_detections
from bundle.preprocess import Geometry, Uint8Array, decode_image, pad_batch, prepare
from engines.base import Engine, EngineFailure
from engines.guard import guard
from engines.load import open_engine
from engines.self_check import require_known_answers
from service.bulk_images import Chunk, Source, open_place, sources
from service.detector import bucket_of
from service.schemas import ImageResult, ModelRef, image_result

PARTS = "parts"
UNFINISHED = "unfinished"  # files that are being written
LARGEST_MOVED_BYTES = 5 * 1024**3  # S3 copies no larger object by one request
_PIECE_BYTES = 64 * 1024**2

_DETECTION = pa.struct(
    [
        ("bbox", pa.list_(pa.float64(), 4)),  # left, top, width, height, in pixels
        ("category_id", pa.int64()),
        ("category_name", pa.string()),
        ("score", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("detections", pa.list_(_DETECTION)),
        ("error", pa.string()),  # why there are none
    ]
)


class Job(BaseModel):
    """What a bulk run is about; each has its own folder."""

    bundle: Path
    model: ModelRef
    images: str  # a digest that identifies them
    num_images: int
    threshold: float | None
    num_detections: int | None
    nms_iou: float | None


class Prepared(NamedTuple):
    """An image as the engine takes it, or why it could not be read."""

    source: Source
    image: Uint8Array | None
    geometry: Geometry | None
    error: str | None = None


class _Running(NamedTuple):
    """A batch in the engine."""

    together: list[Prepared]
    output: Future[RawOutput]


def part_name(chunk_index: int) -> str:
    """The file of a chunk's results, in the folder `PARTS`."""
    return f"{chunk_index:06d}.parquet"


class Worker:
    """Turns chunks into files of results; a chunk that is done twice still gives one file."""

    def __init__(
        self,
        job: Job,
        out: str,
        *,
        num_threads: int,
        open_it: Callable[..., Engine] = open_engine,
    ) -> None:
        """Open the engine.

        Raises:
            ValueError: the bundle is not the job's, or cannot be run here.
        """
        bundle = Bundle.load(job.bundle)
        if ModelRef.from_manifest(bundle.manifest) != job.model:
            raise ValueError(f"{job.bundle} is not the bundle that the run was started with")
        self._job = job
        self._out = out
        self._manifest = bundle.manifest
        self._engine = guard(open_it(bundle, threads=num_threads), bundle.manifest)
        require_known_answers(self._engine, bundle)
        self._decoders = ThreadPoolExecutor(num_threads)
        self._engine_thread = ThreadPoolExecutor(1)
        self._num_ahead = 2 * self._engine.max_batch_size + num_threads

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Go through chunks, in Ray Data's form; returns how many images they have."""
        chunks = [Chunk.model_validate_json(str(text)) for text in batch["chunk"]]
        for chunk in chunks:
            self.work_on(chunk)
        return {"images": [chunk.num_images for chunk in chunks]}

    def work_on(self, chunk: Chunk) -> None:
        """Write the file of a chunk."""
        rows = sorted(self._rows(chunk), key=lambda row: int(row["image_id"]))
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        write_whole(
            self._out,
            f"{PARTS}/{part_name(chunk.index)}",
            write=lambda file: pq.write_table(table, file),
        )

    def _rows(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The results of a chunk, in any order.

        While the engine runs one batch, the next is assembled and the one before written down.
        """
        running: _Running | None = None
        for together in self._batches(chunk):
            if together[0].image is None:
                yield _row(together[0])
                continue
            following = self._begin(together)
            if running is not None:
                yield from self._end(running)
            running = following
        if running is not None:
            yield from self._end(running)

    def _batches(self, chunk: Chunk) -> Iterator[list[Prepared]]:
        """Images that run together; those that could not be read are alone."""
        waiting: dict[Hashable, list[Prepared]] = defaultdict(list)
        for one in self._ahead(chunk):
            if one.image is None:
                yield [one]
                continue
            bucket = bucket_of(one.image, self._manifest)
            waiting[bucket].append(one)
            if len(waiting[bucket]) == self._engine.max_batch_size:
                yield waiting.pop(bucket)
        yield from waiting.values()

    def _ahead(self, chunk: Chunk) -> Iterator[Prepared]:
        """The images of a chunk; the next ones are decoded while one is run."""
        pending: deque[Future[Prepared]] = deque()
        for source in sources(chunk):
            pending.append(self._decoders.submit(self._prepare, source))
            if len(pending) > self._num_ahead:
                yield pending.popleft().result()
        for future in pending:
            yield future.result()

    def _prepare(self, source: Source) -> Prepared:
        try:
            image = decode_image(source.read())
        except (ValueError, OSError) as error:
            return Prepared(source, None, None, str(error))
        return Prepared(source, *prepare(image, self._manifest.preprocess))

    def _begin(self, together: list[Prepared]) -> _Running:
        images = [one.image for one in together if one.image is not None]
        batch = pad_batch(images, self._manifest.preprocess.min_side)
        return _Running(together, self._engine_thread.submit(self._engine.run, *batch))

    def _end(self, running: _Running) -> Iterator[dict[str, Any]]:
        """The results of one batch; if the engine failed on it, its images are run one by one."""
        together, output = running
        try:
            outputs = output.result().rows()
        except EngineFailure as error:
            if len(together) == 1:
                yield _row(together[0]._replace(error=str(error)))
                return
            for one in together:
                yield from self._end(self._begin([one]))
            return
        for one, found in zip(together, outputs, strict=True):
            assert one.geometry is not None
            yield _row(one, self._result(one.source, Found(found, one.geometry)))

    def _result(self, source: Source, found: Found) -> ImageResult:
        detections = to_detections(
            *found,
            threshold=self._manifest.lowest_scores(self._job.threshold),
            top_k=self._job.num_detections,
            nms_iou=self._job.nms_iou,
        )
        return image_result(
            detections,
            image_id=source.image_id,
            file_name=source.name,
            size=found.geometry.original,
            classes=self._manifest.classes,
        )


def _row(one: Prepared, result: ImageResult | None = None) -> dict[str, Any]:
    if result is not None:
        return {**result, "error": None}
    return {
        "image_id": one.source.image_id,
        "file_name": one.source.name,
        "detections": [],
        "error": one.error,
    }


def write_whole(folder: str, name: str, *, write: Callable[[Any], None]) -> None:
    """Write a file atomically, on object storage as well."""
    system, path = open_place(folder)
    system.create_dir(f"{path}/{UNFINISHED}")
    unfinished = f"{path}/{UNFINISHED}/{uuid4().hex}"
    with system.open_output_stream(unfinished) as file:
        write(file)
    try:
        system.move(unfinished, f"{path}/{name}")
    except OSError:
        if system.get_file_info(unfinished).size <= LARGEST_MOVED_BYTES:
            raise
        _move_by_streaming(system, unfinished, f"{path}/{name}")


def _move_by_streaming(system: pyarrow.fs.FileSystem, source: str, target: str) -> None:
    """Write an object again under another name; it appears there once it is whole."""
    try:
        with (
            system.open_input_stream(source) as original,
            system.open_output_stream(target) as moved,
        ):
            while piece := original.read(_PIECE_BYTES):
                moved.write(piece)
    except BaseException:  # closing the stream has published what was written
        with suppress(OSError):
            system.delete_file(target)
        raise
    system.delete_file(source)
