"""The sockets that clients connect to."""

import contextlib
import errno
import select
import socket
import sys
from collections.abc import Iterator, Sequence

import pytest

from service import listeners
from service.listeners import ACCEPTED_AT_ONCE, QUEUES, open_listeners

Address = tuple[str, int]


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", port: int = 0) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as opened:
        sockets = open_listeners(host, port)
        for one in sockets:
            one.setblocking(False)
            opened.enter_context(one)
        yield sockets


def queue_of(client: str, sockets: Sequence[socket.socket]) -> set[int]:
    """The sockets, by their places, where connections from this address arrive."""
    places = set()
    for _ in range(10):
        with socket.create_connection(sockets[0].getsockname()[:2], source_address=(client, 0)):
            ready, _, _ = select.select(sockets, [], [], 10)
            places |= {sockets.index(one) for one in ready}
            ready[0].accept()[0].close()
    return places


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such filter")
def test_each_client_has_one_queue_and_not_all_the_same() -> None:
    with listening() as sockets:
        places = [queue_of(f"127.0.0.{number}", sockets) for number in range(1, 17)]

    queues = [{place % QUEUES for place in ones} for ones in places]
    assert {len(ones) for ones in places} == {ACCEPTED_AT_ONCE}
    assert {len(ones) for ones in queues} == {1}
    assert len(set.union(*queues)) > 3


@pytest.mark.parametrize("option", [listeners.SO_ATTACH_REUSEPORT_CBPF, 99999])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_arrive_whatever_the_system_can_do(
    monkeypatch: pytest.MonkeyPatch, host: str, option: int
) -> None:
    monkeypatch.setattr(listeners, "SO_ATTACH_REUSEPORT_CBPF", option)

    with listening(host) as sockets:
        places = queue_of(host, sockets)

    assert len(places) == ACCEPTED_AT_ONCE


def test_a_port_that_another_service_has_is_refused() -> None:
    with listening() as sockets, pytest.raises(OSError, match="in use") as caught:
        open_listeners(*sockets[0].getsockname())

    assert caught.value.errno == errno.EADDRINUSE
