"""Images from bytes to pixels of the model's size, in the pool of service.decoding."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bundle.device_image import Decode, Decoded
from bundle.memory import allowed_memory_bytes
from bundle.preprocess import (
    Geometry,
    ImageHeader,
    Preprocess,
    UndecodableImage,
    UnsupportedImage,
    decode_image,
    prepare,
    read_header,
    read_jpeg_header,
    resized_size,
)
from bundle.tiles import cut, num_windows
from engines import base
from engines.cores import allowed_cores
from service.body_limits import client_body_bytes
from service.client_memory import ClientMemory
from service.decoding import DecodePool, Job
from service.errors import (
    EngineFailure,
    ImageTooLarge,
    InvalidImage,
    Overloaded,
    ServiceError,
    UnsupportedMediaType,
)
from service.form import too_many_tiles
from service.metrics import Metrics
from service.settings import MIB, Settings
from service.uploads import Upload

Outcome = TypeVar("Outcome")
Pixels = npt.NDArray[np.uint8]
Prepared = tuple[Pixels, Geometry]
Parts = list[Prepared]  # of one image: the whole, and its tiles if it has any

BYTES_A_THREAD = 96 * MIB  # each thread decodes a photograph of 12 megapixels
# Of one client, unless DETR_DECODE_MEMORY_BYTES is set: an RGB image of 26 megapixels.
DECODING_BYTES = 192 * MIB
# Of one client, with its bodies and the images that wait for the engine: a PNG of 24 megapixels
# and 32 MiB. Bodies and large pictures at once added up to 208 MiB to the process, and images that
# wait for a model of 800x1333 up to 259, with its batches.
CLIENT_BYTES = 224 * MIB
MEMORY_SHARE = 8  # decoding may use an eighth of the process's memory


class ImageDecoder:
    """Decodes the images of all requests in a `DecodePool`: in turns, within a budget.

    Args:
        decode: makes pixels of a file that goes to the engine.
        on_hang: called with a message when an image takes so long that it never ends; it may call
            `abort`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics,
        memory: ClientMemory,
        decode: Decode = decode_image,
        on_hang: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._settings = settings
        self._decode_file = decode
        self._metrics = metrics
        # Same priority as the engine: at nice 10 the demo's batches shrank from 7.9 images to 5.1
        # and an image took 8.2 CPU-ms instead of 6.9, with one thread or two (32 clients, 2 cores
        # that had other work as well).
        num_threads = settings.decode_threads or allowed_cores()
        budget_bytes = settings.decode_memory_bytes or default_budget_bytes(num_threads)
        self._memory = memory
        patience_s = max(settings.hang_floor_s, settings.hang_factor * settings.deadline_s)
        self._pool = DecodePool(
            num_threads, budget_bytes, memory=memory, patience_s=patience_s, on_hang=on_hang
        )
        self.budget_bytes = budget_bytes

    def refuse_if_late(self, client: Hashable, num_bytes: int = 0) -> None:
        """Refuse a request that would be decoded only after its deadline.

        Raises:
            Overloaded: decoding the images ahead of it takes longer than the deadline.
        """
        wait_s = self._pool.expected_wait_s(client, num_bytes)
        if wait_s > self._settings.deadline_s:
            raise Overloaded(
                f"the images ahead of these take about {wait_s:.1f} s to decode, longer than the "
                f"deadline of {self._settings.deadline_s:g} s",
                retry_after_s=wait_s - self._settings.deadline_s,
            )

    @asynccontextmanager
    async def prepared(
        self,
        uploads: Sequence[Upload],
        preprocess: Preprocess,
        *,
        client: Hashable,
        deadline: float | None,
        tile_px: int | None = None,
    ) -> AsyncIterator[list[Parts]]:
        """The images of one request and their tiles (see `cut`), resized, in their order.

        They count as memory of the client until the context ends.

        Raises:
            InvalidImage, UnsupportedMediaType, ImageTooLarge: for the first bad image.
            Overloaded: see `refuse_if_late` and `ClientMemory.promised`.
            DeadlineExceeded: see `DecodePool.run`.
        """
        headers = await self._read_headers(uploads)
        self.refuse_if_late(client, sum(header.decoding_bytes for header in headers))
        jobs = [
            Job(partial(self._prepare, upload, preprocess, tile_px), header.decoding_bytes)
            for upload, header in zip(uploads, headers, strict=True)
        ]
        kept_bytes = sum(_prepared_bytes(header, preprocess, tile_px) for header in headers)
        largest_bytes = max(header.decoding_bytes for header in headers)
        self._refuse_if_too_large(uploads, kept_bytes + largest_bytes)
        with self._memory.kept(client, kept_bytes):
            yield await self._run(jobs, uploads, client=client, deadline=deadline)

    async def _run(
        self,
        jobs: Sequence[Job[Parts]],
        uploads: Sequence[Upload],
        *,
        client: Hashable,
        deadline: float | None,
    ) -> list[Parts]:
        prepared: list[Parts] = []
        with self._memory.promised(client, max(job.num_bytes for job in jobs)):
            outcomes = await self._pool.run(jobs, client=client, deadline=deadline)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, BaseException):
                raise _translate(outcome, index, uploads) from outcome
            prepared.append(outcome)
        for (_, geometry), *_ in prepared:
            self._metrics.image_pixels.observe(math.prod(geometry.original))
        return prepared

    async def count_parts(self, uploads: Sequence[Upload], tile_px: int | None) -> int:
        """How many parts `prepared` will make of the images, judging by their headers.

        Raises:
            InvalidImage, UnsupportedMediaType, ImageTooLarge: names the first bad image.
            TooManyImages: with their tiles they are too many.
        """
        if tile_px is None:
            return len(uploads)
        headers = await self._read_headers(uploads)
        num_parts = sum(num_windows(header.size, tile_px) for header in headers)
        if num_parts > max(len(uploads), self._settings.max_images):
            raise too_many_tiles(len(uploads), num_parts, settings=self._settings)
        return num_parts

    async def work_on(
        self, upload: Upload, work: Callable[[Pixels], Outcome], *, client: Hashable
    ) -> Outcome:
        """Decode an image again, in full size, and run `work` on its pixels.

        `work` may take as much memory as decoding does.

        Raises:
            Overloaded, DeadlineExceeded: as for `prepared`; the deadline starts again.
        """
        (header,) = await self._read_headers([upload])

        def decode_and_work() -> Outcome:
            return work(self._decode(upload))

        deadline = self._pool.now() + self._settings.deadline_s
        jobs = [Job(decode_and_work, header.decoding_bytes)]
        with self._memory.promised(client, header.decoding_bytes):
            (outcome,) = await self._pool.run(jobs, client=client, deadline=deadline)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def abort(self, error: ServiceError) -> None:
        """Answer every request whose images are decoded with an error, and decode no more."""
        self._pool.abort(error)

    def shutdown(self) -> None:
        """Start no more decoding."""
        self._pool.shutdown()

    async def _read_headers(self, uploads: Sequence[Upload]) -> list[ImageHeader]:
        """In a thread, unless all are of ordinary JPEGs: then the way there would take longer."""
        quick = [self._quick_header(upload) for upload in uploads]
        headers = [header for header in quick if header is not None]
        if len(headers) < len(uploads):
            headers = await asyncio.to_thread(self._read_any_headers, uploads)
        for index, header in enumerate(headers):
            if header.decoding_bytes > self._pool.largest_job_bytes:
                height, width = header.size
                raise ImageTooLarge(
                    f"{_subject(index, uploads)}: expected an image that takes at most "
                    f"{self._pool.largest_job_bytes // MIB} MiB to decode, got {width} x {height} "
                    f"pixels that take {header.decoding_bytes // MIB} MiB; send a smaller image, "
                    "or raise the service's DETR_DECODE_MEMORY_BYTES"
                )
        return headers

    def _read_any_headers(self, uploads: Sequence[Upload]) -> list[ImageHeader]:
        headers = []
        for index, upload in enumerate(uploads):
            try:
                header = self._header(upload)
            except ValueError as error:
                raise _translate(error, index, uploads) from error
            headers.append(header)
        return headers

    def _refuse_if_too_large(self, uploads: Sequence[Upload], num_bytes: int) -> None:
        """Refuse a request that by itself takes more memory than a client may use."""
        num_bytes += sum(upload.num_bytes for upload in uploads)
        if num_bytes > self._memory.most_bytes:
            raise ImageTooLarge(
                f"expected a request that takes at most {self._memory.most_bytes // MIB} MiB while "
                f"its images are decoded and run, got {num_bytes // MIB} MiB (images: "
                f"{len(uploads)}); send fewer or smaller ones at a time, or raise the "
                "service's DETR_CLIENT_MEMORY_BYTES"
            )

    def _quick_header(self, upload: Upload) -> ImageHeader | None:
        if isinstance(upload.data, bytes):
            return read_jpeg_header(upload.data, max_pixels=self._settings.max_pixels)
        return self._header(upload)

    def _header(self, upload: Upload) -> ImageHeader:
        if isinstance(upload.data, bytes):
            return read_header(upload.data, max_pixels=self._settings.max_pixels)
        height, width = upload.data.shape[:2]
        return ImageHeader((height, width), orientation=1)  # already decoded, so this suffices

    def _prepare(self, upload: Upload, preprocess: Preprocess, tile_px: int | None) -> Parts:
        image: Decoded
        if isinstance(upload.data, bytes):
            image = self._decode_file(upload.data, max_pixels=self._settings.max_pixels)
            is_on_cpu = isinstance(image, np.ndarray)
            self._metrics.decoded.labels("cpu" if is_on_cpu else "gpu").inc()
        else:
            image = upload.data
        windows = cut((image.shape[0], image.shape[1]), tile_px)
        return [prepare(window.of(image), preprocess) for window in windows]

    def _decode(self, upload: Upload) -> Pixels:
        if isinstance(upload.data, bytes):
            return decode_image(upload.data, max_pixels=self._settings.max_pixels)
        return upload.data


def default_budget_bytes(num_threads: int) -> int:
    """The default memory for decoding: what the threads need, within the process's share."""
    wanted = max(DECODING_BYTES, num_threads * BYTES_A_THREAD)
    return min(wanted, allowed_memory_bytes() // MEMORY_SHARE)


def client_memory(settings: Settings) -> ClientMemory:
    """The memory that the settings allow a client."""
    wanted_bytes = (settings.decode_memory_bytes or 0) + client_body_bytes(settings)
    return ClientMemory(
        settings.client_memory_bytes or max(CLIENT_BYTES, wanted_bytes),
        decoding_bytes=settings.decode_memory_bytes or DECODING_BYTES,
    )


def _prepared_bytes(header: ImageHeader, preprocess: Preprocess, tile_px: int | None) -> int:
    """The memory of an image and its tiles once they are resized."""
    return sum(
        3
        * math.prod(
            resized_size(
                window.bottom - window.top,
                window.right - window.left,
                short_side=preprocess.short_side,
                long_side=preprocess.long_side,
            )
        )
        for window in cut(header.size, tile_px)
    )


def _translate(error: BaseException, index: int, uploads: Sequence[Upload]) -> BaseException:
    """Turn a decoder's error into the service's, naming the file."""
    message = f"{_subject(index, uploads)}: {error}"
    if isinstance(error, UnsupportedImage):
        return UnsupportedMediaType(message)
    if isinstance(error, UndecodableImage):
        return InvalidImage(message)
    if isinstance(error, base.EngineFailure):  # of a GPU that resizes
        return EngineFailure(message)
    return error


def _subject(index: int, uploads: Sequence[Upload]) -> str:
    name = uploads[index].file_name
    subject = f"image {index}" if len(uploads) > 1 or name else "the image"
    return f"{subject} ({name!r})" if name else subject
