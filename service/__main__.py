"""python -m service: serve the bundle that the environment names; see service/settings.py.

Exit status: 0 after SIGTERM or Ctrl-C, 1 if it could not start or could not go on serving.
"""

if __name__ == "__main__":  # before the imports that take long
    from service import early_signals, freed_memory

    early_signals.heed()
    freed_memory.share_one_heap()

import asyncio
import contextlib
import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from bundle.terminal import printable
from service import early_signals, farewell
from service.app import create_app, stop_taking_requests
from service.errors import NotReady
from service.http_protocol import bounded_protocol
from service.listeners import BACKLOG, open_listeners
from service.logs import end_logging, set_up_logging
from service.settings import Settings, unknown_settings
from service.settings_faults import describe_settings_faults
from service.startup import OpenEngine, open_served

logger = logging.getLogger("service")

LAST_WORDS_S = 1.0  # for sending the last answers, after the drain timeout or a failure
CLOSE_S = 5.0  # for closing the engine after the last request, and for sending the last traces
SLACK_S = 1.0  # of a busy machine, and for closing the port where there is no patience
GRACE_S = LAST_WORDS_S + CLOSE_S + SLACK_S  # what a stop may take beyond its settings
_LIMITS = "raise the limits on open files and threads (ulimit -n, ulimit -u)"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Server(uvicorn.Server):
    """uvicorn with our own signal handlers; stopping loses no request that reached the port.

    uvicorn by itself closes idle connections at once, even one on which a request is arriving.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # service.boundary writes that line
                server_header=False,
                http=bounded_protocol(settings, app.state.metrics, labels=app.state.labels),
                ws="none",
                proxy_headers=False,  # see service.clients
                backlog=BACKLOG,
            )
        )
        self.is_stopping = threading.Event()
        self._serving = app.state.serving
        self._app = app
        self._settings = settings
        self._terminals = select.poll()
        for descriptor in filter(os.isatty, (1, 2)):
            self._terminals.register(descriptor, 0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop it, a second Ctrl-C at once; SIGHUP reloads the bundles.

        SIGHUP also comes when a terminal is closed, and then it stops what writes there. What only
        reads from there may have been left to itself (`disown`), and is reloaded.
        """
        loop = asyncio.get_running_loop()
        handlers = (self._stop, self._stop_or_hurry, self._reload_or_stop)
        is_main = threading.current_thread() is threading.main_thread()
        for number, handler in zip(SIGNALS, handlers if is_main else (), strict=is_main):
            loop.add_signal_handler(number, handler)
        early_signals.let_through()
        yield

    def _stop(self) -> None:
        self.should_exit = True

    def _reload_or_stop(self) -> None:
        if any(events & select.POLLHUP for _, events in self._terminals.poll(0)):
            self._stop()
        else:
            self._serving.reload_all()

    def _stop_or_hurry(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Turn /readyz red for a while, close the port, answer what has arrived, then stop."""
        self.is_stopping.set()
        has_failed = self._serving.failure is not None
        stop_taking_requests(self._app)
        if not has_failed:
            logger.info("stopping: answering the requests in flight")
            await asyncio.sleep(self._settings.drain_delay_s)
        patience_s = LAST_WORDS_S if has_failed else self._settings.drain_timeout_s
        until = time.monotonic() + patience_s
        await farewell.close_port(self.servers, sockets or [], patience_s=patience_s)
        if not await self._wait_for_clients(until - time.monotonic()):
            self._abort()
            await self._wait_for_clients(LAST_WORDS_S)
            logger.warning(
                "closing the connections that did not finish within %g s: %d",
                patience_s,
                len(self.server_state.connections),
            )
        # Clients may have left, and the engine go on with what they sent.
        left_s = max(LAST_WORDS_S, until - time.monotonic())
        impatience = asyncio.get_running_loop().call_later(left_s, self._abort)
        await self.lifespan.shutdown()
        impatience.cancel()

    def _abort(self) -> None:
        self._serving.abort(NotReady("the service is stopping; retry soon", retry_after_s=1))

    async def _wait_for_clients(self, patience_s: float) -> bool:
        state = self.server_state
        return await farewell.wait_until_gone(
            state.connections,
            state.tasks,
            patience_s=patience_s,
            is_hurried=lambda: self.force_exit,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, and return the exit status."""
    _open_closed_streams()
    if given := sys.argv[1:] if arguments is None else arguments:
        return _fail(
            f"python -m service takes no arguments, got {' '.join(given)}: its settings are "
            "environment variables, such as DETR_BUNDLE=DIR and DETR_PORT=8001; all are in "
            "docs/operations.md, or run `make serve BUNDLE=DIR PORT=8001`"
        )
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail(describe_settings_faults(error))
    return serve(settings)


def serve(settings: Settings, open_engine: OpenEngine = open_served) -> int:
    """Serve with these settings, and return the exit status."""
    set_up_logging(settings.log_level, log_format=settings.log_format)
    for fault in unknown_settings():
        logger.warning("%s", fault)
    early_signals.heed()  # until the server runs
    try:
        app = create_app(
            settings,
            open_engine,
            on_failure=lambda: setattr(server, "should_exit", True),
            on_ready=spare_what_lives_long,
        )
    except ValueError as error:
        return _fail(str(error))
    try:
        listeners = open_listeners(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        return _fail(f"cannot listen on {settings.host}:{settings.port}: {_tell_listening(error)}")
    address = f"http://{for_url(settings.host)}:{listeners[0].getsockname()[1]}"
    server = Server(app, settings)
    longest_s = settings.drain_delay_s + settings.drain_timeout_s + GRACE_S
    try:
        threading.Thread(target=_end_in_time, args=(server, longest_s), daemon=True).start()
        # It is not closed: closing waits for threads, and they may hang. See `leave`.
        loop = (server.config.get_loop_factory() or asyncio.new_event_loop)()
    except (OSError, RuntimeError) as error:
        return _fail(f"cannot start: {error}; {_LIMITS}")
    logger.info("the page is at %s/ and the API docs are at %s/docs", address, address)
    loop.run_until_complete(server.serve(listeners))
    return 1 if app.state.serving.failure else 0


def spare_what_lives_long() -> None:
    """Let the garbage collector pass over everything that there is now.

    To go through it takes 50 ms, in which nothing is answered, and was due every 450 images.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def leave(status: int) -> NoReturn:
    """End the process without waiting for its threads: one may hang in an engine."""
    end_logging()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _open_closed_streams() -> None:
    """Give standard input, output and error that were closed at the start to nobody.

    Otherwise a connection may get the number 2, and a library's message goes to a client.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _end_in_time(server: Server, longest_s: float) -> None:
    """End the process if stopping hangs, for example in an engine that does not close."""
    server.is_stopping.wait()
    time.sleep(longest_s)
    logger.error("still not stopped after %g s; ending the process", longest_s)
    leave(1)


def _tell_listening(error: OSError | UnicodeError) -> str:
    """Why the port cannot be opened, and which setting to change."""
    reason = getattr(error, "strerror", None) or error
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return f"{reason}; {_LIMITS}"
    if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
        return f"{reason}; choose another port with DETR_PORT (make serve PORT=8001)"
    return (
        f"{reason}; DETR_HOST (make serve HOST=) has to be an address of this machine: 127.0.0.1, "
        "or 0.0.0.0 for all of them"
    )


def for_url(host: str) -> str:
    """The host in an address that works on this machine; `::` is every interface, of IPv6 alone."""
    host = {"0.0.0.0": "localhost", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _fail(message: str) -> int:
    sys.stderr.write(printable(f"error: {message}\n"))
    return 1


if __name__ == "__main__":
    leave(main())
