"""Mosec with its own batching, to be measured beside this service; it is not a dependency."""

import sys
from typing import Any

from mosec import Runtime, Server, Worker

from benchmarks.mock_engine import MAX_BATCH_SIZE, PREPROCESS, MockEngine, as_json
from bundle.preprocess import decode_image, pad_batch, prepare


class Detector(Worker):
    """Decode, pad, run and postprocess in the one stage that its documentation starts with."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = MockEngine()

    def deserialize(self, data: bytes) -> Any:
        """The image of a multipart body with one part."""
        jpeg = data.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        return prepare(decode_image(jpeg), PREPROCESS)

    def forward(self, data: list[Any]) -> list[Any]:
        images, geometries = zip(*data, strict=True)
        raw = self.engine.run(*pad_batch(list(images)))
        return [as_json(*pair) for pair in zip(raw.rows(), geometries, strict=True)]


def serve(port: int) -> None:
    """A delay of 10 ms to fill a batch, as its documentation shows."""
    sys.argv = ["mosec", "--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"]
    server = Server()
    runtime = Runtime(Detector, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=10)
    server.register_runtime({"/detect": [runtime]})
    server.run()
