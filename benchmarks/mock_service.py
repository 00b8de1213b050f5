"""The service with a mock engine: python -m benchmarks.mock_service FIXED_MS IMAGE_MS BATCH.

The environment says what to serve and where, as for python -m service.
"""

import sys

from benchmarks.mock_engine import MockEngine
from service.__main__ import leave, serve
from service.settings import Settings


def main(arguments: list[str]) -> int:
    """Serve until told to stop, and return the exit status."""
    *times_ms, batch_size = map(int, arguments)
    return serve(Settings(), lambda *_: MockEngine(*times_ms, max_batch_size=batch_size))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
