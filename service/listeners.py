"""The sockets that clients connect to. Those of one client do not wait behind those of another.

The kernel hands out the connections of a listening socket in the order in which they came, so a
client that opens 2,000 of them would keep every new one waiting until they are accepted. Several
sockets that share a port have a queue each, and a packet filter chooses it by the client's address.
"""

import contextlib
import ctypes
import socket
import struct

QUEUES = 8
BACKLOG = 2048  # connections that the kernel keeps in a queue until they are accepted
ACCEPTED_AT_ONCE = 4  # of a queue; with 8, clients of one address wait as long
LOOP_DESCRIPTORS = 10  # of the event loop, and some to spare

SO_ATTACH_REUSEPORT_CBPF = 51  # Linux has it, but Python's socket module does not name it
_NETWORK_HEADER = 0xFFF00000  # where an IP packet begins
_SPREAD = 0x9E3779B1  # odd, and half of its bits are set
# The filter's steps: https://www.kernel.org/doc/Documentation/networking/filter.txt
_LOAD, _KEEP, _ADD_KEPT = 0x20, 0x07, 0x0C
_MULTIPLY, _SHIFT_RIGHT, _MODULO, _RETURN = 0x24, 0x74, 0x94, 0x16


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, several times each: uvloop accepts one connection of each at a time.

    It starts one request at a time, too, so a new client would wait for as many requests as there
    are connections ahead of its own.

    Raises:
        OSError: the address is in use, or none of this machine.
    """
    family, *_, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    address = _free((str(found[0]), port), family)
    with contextlib.ExitStack() as opened:  # closes them if one of them cannot be opened
        queues = [opened.enter_context(_open_queue(address, family))]
        if _choose_by_client(queues[0], family):  # else the kernel would choose at random
            for _ in range(QUEUES - 1):
                queues.append(opened.enter_context(_open_queue(address, family)))
        listeners = [*queues]
        for queue in queues * (ACCEPTED_AT_ONCE - 1):
            listeners.append(opened.enter_context(queue.dup()))
        with contextlib.ExitStack() as spare:  # without them, uvloop aborts the process
            for _ in range(LOOP_DESCRIPTORS):
                spare.enter_context(queues[0].dup())
        opened.pop_all()
    return listeners


def _free(address: tuple[str, int], family: int) -> tuple[str, int]:
    """The address, with a free port for 0, if nobody else has it.

    Sockets that share a port would also share it with another service of the same user.
    """
    with socket.socket(family) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            alone.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        alone.bind(address)
        host, port = alone.getsockname()[:2]
    return host, port


def _open_queue(address: tuple[str, int], family: int) -> socket.socket:
    return socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=True)


def _choose_by_client(queue: socket.socket, family: int) -> bool:
    """Let clients' addresses choose among the queues of a port; False if this system cannot.

    In IPv6, all addresses of a network of 64 bits count as one client (`service.clients`).
    """
    if family == socket.AF_INET6:
        first, last = ((_LOAD, _NETWORK_HEADER + place) for place in (8, 12))
        steps = [first, (_MULTIPLY, _SPREAD), (_KEEP, 0), last, (_ADD_KEPT, 0)]
    else:
        steps = [(_LOAD, _NETWORK_HEADER + 12)]
    steps += [(_MULTIPLY, _SPREAD), (_SHIFT_RIGHT, 16), (_MODULO, QUEUES), (_RETURN, 0)]
    code = b"".join(struct.pack("HBBI", step, 0, 0, value) for step, value in steps)
    filled = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(steps), ctypes.addressof(filled))
    try:
        queue.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError:
        return False
    return True
