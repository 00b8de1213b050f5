"""Load on a running service, to see what it loses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx


class Load:
    """Clients in a closed loop, with and without keep-alive, until the port is closed."""

    def __init__(self, address: str, image: bytes, num_clients: int) -> None:
        self.answers: list[int] = []
        self.lost: list[Exception] = []
        self.is_flowing = threading.Event()
        self._url = f"{address}/detect"
        self._image = image
        self._pool = ThreadPoolExecutor(num_clients)
        self._clients = [
            self._pool.submit(self._ask_until_closed, is_kept=index % 2 == 0)
            for index in range(num_clients)
        ]

    def wait(self) -> None:
        for client in self._clients:
            client.result(timeout=60)
        self._pool.shutdown()

    def _ask_until_closed(self, is_kept: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if is_kept else 0)
        with httpx.Client(limits=limits, timeout=30) as client:
            while True:
                try:
                    answer = client.post(self._url, content=self._image)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    self.lost.append(error)
                    return
                self.answers.append(answer.status_code)
                if len(self.answers) > 50:
                    self.is_flowing.set()
