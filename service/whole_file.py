"""Answers with files, read in a thread: a file system that hangs holds up no other request."""

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Receive, Scope, Send

from bundle.regular_file import require_file
from service.errors import NotFound, NotReady

LIMIT_S = 5.0
PIECE_BYTES = 1 << 16  # in memory for a client that reads slowly

Made = TypeVar("Made")


class FileThread:
    """Runs calls that may wait for a file system, one at a time.

    Args:
        limit_s: the longest time in seconds for a call and those before it.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._turn = asyncio.Lock()  # what gave up would stay in the thread's own queue

    async def run(self, call: Callable[[], Made]) -> Made:
        """What the call returns. Raises NotReady: it takes too long."""
        try:
            async with asyncio.timeout(self._limit_s):
                await self._turn.acquire()
                made = asyncio.wrap_future(self._thread.submit(call))
                made.add_done_callback(lambda _: self._turn.release())
                return await asyncio.shield(made)
        except TimeoutError as error:
            raise NotReady(f"a file could not be read within {self._limit_s:g} s") from error

    def later(self, call: Callable[[], object]) -> None:
        """Run a call once the thread is free, without waiting for it."""
        self._thread.submit(call)


class WholeFile(FileResponse):
    """A file, or 304 if the client has it.

    Without ranges, which nobody needs of files this small: Starlette's own answers to impossible
    ranges are plain text.
    """

    def __init__(
        self, path: Path, thread: FileThread, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(path, headers=headers)
        self._thread = thread
        self._file = _File(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file.

        Raises:
            NotReady: the file system does not answer in time.
            NotFound: the file has gone.
        """
        file = self._file
        try:
            self.set_stat_headers(await self._thread.run(file.open))
            if StaticFiles().is_not_modified(self.headers, Headers(scope=scope)):
                await NotModifiedResponse(self.headers)(scope, receive, send)
                return
            self.headers["Accept-Ranges"] = "none"
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            piece = None
            while piece != b"":
                piece = await self._thread.run(file.read)
                await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})
        finally:
            if file.is_begun:
                self._thread.later(file.close)


class _File:
    """A file that is opened, read and closed in a thread."""

    def __init__(self, path: Path) -> None:
        self.is_begun = False
        self._path = path
        self._file: BinaryIO | None = None

    def open(self) -> os.stat_result:
        self.is_begun = True
        try:
            self._file = require_file(self._path).open("rb")
        except OSError as error:
            raise NotFound(f"{self._path.name[:100]!r} is no longer there") from error
        return os.fstat(self._file.fileno())

    def read(self) -> bytes:
        assert self._file is not None
        return self._file.read(PIECE_BYTES)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
