"""python -m service: serve the bundle that the environment names; see service/settings.py.

Exit status: 0 when stopped by SIGTERM or Ctrl-C, 1 when it could not serve.
"""

import asyncio
import contextlib
import ctypes
import logging
import signal
import socket
import struct
import sys
import time

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app, stop_taking_requests
from service.http_protocol import bounded_protocol
from service.settings import Settings

logger = logging.getLogger("service")

BACKLOG = 2048  # connections that the kernel keeps until they are accepted
ACCEPT_S = 0.1  # for connections that the kernel has taken and we have not
LAST_WORDS_S = 0.3  # for requests that were on their way when the port closed
SO_ATTACH_FILTER = 26  # of Linux; Python's socket module does not name it


class Server(uvicorn.Server):
    """uvicorn, stopping so that no request is lost that reached the port.

    Left alone it closes idle connections at once, one of which may just be carrying a request.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # service.boundary writes that line
                server_header=False,
                http=bounded_protocol(settings, app.state.metrics),
                ws="none",
                backlog=BACKLOG,
                timeout_graceful_shutdown=round(settings.drain_timeout_s) or 1,
            )
        )
        self._app = app
        self._settings = settings

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Be red for a while, close the port, answer what has arrived, then stop."""
        logger.info("stopping: answering the requests in flight")
        stop_taking_requests(self._app)
        await asyncio.sleep(self._settings.drain_delay_s)
        for listener in sockets or []:
            _let_nobody_in(listener)
        await asyncio.sleep(ACCEPT_S)
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_WORDS_S)
        await super().shutdown(sockets)


def main() -> int:
    """Serve until told to stop, and return the exit status."""
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail("; ".join(_describe(fault) for fault in error.errors()))
    _set_up_logging(settings.log_level)
    # uvicorn raises the signal that stopped it once more when it is done: then, and before it
    # runs, this is what stops the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        app = create_app(settings, on_failure=lambda: setattr(server, "should_exit", True))
    except ValueError as error:
        return _fail(str(error))
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        return _fail(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose "
            "another port with DETR_PORT (make serve PORT=8001)"
        )
    address = f"http://{_for_url(settings.host)}:{listener.getsockname()[1]}"
    server = Server(app, settings)
    logger.info("the page is at %s/ and the API docs are at %s/docs", address, address)
    server.run(sockets=[listener])
    return 1 if app.state.failure else 0


def _listen(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


def _let_nobody_in(listener: socket.socket) -> None:
    """Ignore new handshakes: who connects in the moment before the port closes would be reset.

    A socket filter that drops every packet; established connections have sockets of their own.
    The kernel of the client tries again in a second and is then refused.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    with contextlib.suppress(OSError):  # not Linux: the moment is short
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _for_url(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _describe(fault: object) -> str:
    assert isinstance(fault, dict)
    name = "_".join(str(part) for part in fault["loc"])
    return f"DETR_{name.upper()}: {fault['msg']}" if name else str(fault["msg"])


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1


def _set_up_logging(level: str) -> None:
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # ours say the same


if __name__ == "__main__":
    sys.exit(main())
