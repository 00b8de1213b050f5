"""Async tests run on asyncio, by anyio's own plugin; a service can be started as a process."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
