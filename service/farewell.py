"""Closes the port and the connections of a stopping server without losing a request.

Closing a connection loses a request that is on its way or that the kernel holds unread: a client
with an open connection may send at any time.
"""

import asyncio
import contextlib
import ctypes
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

IDLE_S = 2.0  # a connection silent for this long is closed
ACCEPT_S = 0.1  # for handshakes that have begun
MOST_ACCEPT_S = 5.0  # for connections that the kernel has accepted and we have not
STEP_S = 0.05

SO_ATTACH_FILTER = 26  # Linux has it, but Python's socket module does not name it
# A packet filter that drops SYNs. The TCP header starts at offset 0.
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))
_NUM_WAITING = struct.Struct("24xI")  # in struct tcp_info of a listener: connections to be accepted


async def close_port(
    servers: Collection[asyncio.AbstractServer],
    listeners: Collection[socket.socket],
    *,
    patience_s: float,
) -> None:
    """Accept the connections that have arrived, as long as there is patience, and close the port.

    It takes `ACCEPT_S` at least.
    """
    for listener in listeners:
        _let_nobody_in(listener)
    latest = time.monotonic() + min(MOST_ACCEPT_S, patience_s)
    await asyncio.sleep(ACCEPT_S)
    while any(map(_has_waiting, listeners)) and time.monotonic() < latest:
        await asyncio.sleep(STEP_S)
    for server in servers:
        server.close()
    for listener in listeners:
        listener.close()


async def wait_until_gone(
    connections: Collection[Any],
    tasks: Collection[Any],
    *,
    patience_s: float,
    is_hurried: Callable[[], bool],
) -> bool:
    """Wait until no client is left; returns False if time ran out first.

    Every answer asks its client to close the connection; connections that stay idle are closed.

    Args:
        connections: uvicorn's protocols, a set that changes.
        tasks: the requests being answered, a set that changes.
        is_hurried: says whether to stop waiting.
    """
    started = time.monotonic()
    heard_at: dict[Any, float] = {}
    while connections or tasks:
        now = time.monotonic()
        if now - started > patience_s or is_hurried():
            return False
        for connection in list(connections):
            if not _is_idle(connection):
                heard_at[connection] = now
            elif now - heard_at.get(connection, started) > IDLE_S:
                connection.transport.close()
        await asyncio.sleep(STEP_S)
    return True


def _is_idle(connection: Any) -> bool:
    """Whether a connection has no request to answer and no bytes that we have not read."""
    if connection.cycle is not None and not connection.cycle.response_complete:
        return False
    unread = select.poll()
    unread.register(connection.transport.get_extra_info("socket").fileno(), select.POLLIN)
    return not unread.poll(0)


def _let_nobody_in(listener: socket.socket) -> None:
    """Ignore new clients, as one that connects just before the port closes would be reset.

    Handshakes that have begun complete. The kernel of a new client tries again after a second and
    is refused then.
    """
    code = b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
    steps = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(_NO_SYN), ctypes.addressof(steps))
    with contextlib.suppress(OSError):  # not on Linux; the window is short
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _has_waiting(listener: socket.socket) -> bool:
    """Whether the kernel holds connections that we have not accepted."""
    if sys.platform != "linux" or listener.fileno() < 0:
        return False
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _NUM_WAITING.size)
    return bool(_NUM_WAITING.unpack(info)[0])
