"""An HTTP server of a few files, which misbehaves in the ways servers do."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import torch


class Server:
    """An HTTP server on a free port of this machine, serving one content under every path.

    files: other contents, by their paths.
    requests: "GET" paths and the Range each asked for. Faults are lists used up from the front:
    statuses to answer with, and bytes after which the connection breaks.
    """

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.files: dict[str, bytes] = {}
        self.has_ranges = True
        self.wrong_range = False
        self.statuses: list[int] = []
        self.breaks: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        content = self.files.get(request.path, self.content)
        size, start = len(content), 0
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200 and wanted and self.has_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            status = 206 if start < size else 416
        body = content[start:] if status in (200, 206) else b""
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        if status == 206:
            shift = 10 if self.wrong_range else 0
            request.send_header("Content-Range", f"bytes {start + shift}-{size - 1}/{size}")
        elif status == 416:
            request.send_header("Content-Range", f"bytes */{size}")
        request.end_headers()
        request.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)

    def put(self, content: Any) -> str:
        """Serve a file of torch.save; returns its address, which has its digest."""
        buffer = BytesIO()
        torch.save(content, buffer)
        self.content = buffer.getvalue()
        return f"{self.url}/models/x-{hashlib.sha256(self.content).hexdigest()[:8]}.pth"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
