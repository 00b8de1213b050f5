"""The memory that each client makes the service hold, as one budget for everything.

A client's bodies, its images while they are decoded, and its images that wait for the engine share
it. A request gets memory for its images before the first is decoded, or is refused: requests that
each held a part and waited for more could wait for one another. All state belongs to the event
loop.
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from service.errors import Overloaded
from service.settings import MIB


class ClientMemory:
    """What each client holds.

    Args:
        most_bytes: limit for one client.
        decoding_bytes: the part of it that images may take while they are decoded.
    """

    def __init__(self, most_bytes: int, *, decoding_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.decoding_bytes = min(decoding_bytes, most_bytes)
        self._held: Counter[Hashable] = Counter()  # bodies, and images as the engine takes them
        self._running: Counter[Hashable] = Counter()  # images being decoded
        self._promised: dict[Hashable, list[int]] = {}  # to each request that is decoded

    def hold(self, client: Hashable, num_bytes: int) -> None:
        """Add to the bytes of a client, or subtract if negative."""
        _add(self._held, client, num_bytes)

    def decode(self, client: Hashable, num_bytes: int) -> None:
        """Add an image that is being decoded, or subtract it afterwards (negative)."""
        _add(self._running, client, num_bytes)

    def is_exceeded(self, client: Hashable) -> bool:
        """Whether the client holds more than it may, or would when its images are decoded."""
        return self._claimed(client) > self.most_bytes

    def room_to_decode(self, client: Hashable) -> int:
        """Bytes that further images of the client may take while they are decoded."""
        room = min(self.decoding_bytes, self.most_bytes - self._held[client])
        return room - self._running[client]

    @contextmanager
    def kept(self, client: Hashable, num_bytes: int) -> Iterator[None]:
        """Count all images of a request as the engine takes them, until it has run them."""
        self.hold(client, num_bytes)
        try:
            yield
        finally:
            self.hold(client, -num_bytes)

    @contextmanager
    def promised(self, client: Hashable, num_bytes: int) -> Iterator[None]:
        """Room to decode the largest image of a request; its others are decoded in turn.

        Raises:
            Overloaded: with what the client holds already, it would be too much.
        """
        self._promised.setdefault(client, []).append(num_bytes)
        try:
            if self.is_exceeded(client):
                raise Overloaded(
                    f"a client may use {self.most_bytes // MIB} MiB at a time, for its bodies and "
                    "its images, and other requests of this one hold too much of it; send fewer "
                    "at a time, or raise the service's DETR_CLIENT_MEMORY_BYTES",
                    retry_after_s=1,
                )
            yield
        finally:
            self._promised[client].remove(num_bytes)
            if not self._promised[client]:
                del self._promised[client]

    def _claimed(self, client: Hashable) -> int:
        promised = max(self._promised.get(client, [0]))
        return self._held[client] + max(self._running[client], promised)


def _add(counter: Counter[Hashable], client: Hashable, num_bytes: int) -> None:
    counter[client] += num_bytes
    if not counter[client]:
        del counter[client]
