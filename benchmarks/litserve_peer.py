"""LitServe with its own batching, to be measured beside this service; it is not a dependency."""

from typing import Any

import litserve
from fastapi import Request

from benchmarks.mock_engine import MAX_BATCH_SIZE, PREPROCESS, MockEngine, as_json
from bundle.preprocess import decode_image, pad_batch, prepare


class Api(litserve.LitAPI):
    """Decode, pad, run and postprocess in the hooks that LitServe has for them."""

    def setup(self, device: str) -> None:
        self.engine = MockEngine()

    def decode_request(self, request: Request) -> Any:
        return prepare(decode_image(request["images"].file.read()), PREPROCESS)

    def batch(self, inputs: list[Any]) -> Any:
        return [geometry for _, geometry in inputs], pad_batch([image for image, _ in inputs])

    def predict(self, batch: Any) -> Any:
        geometries, padded = batch
        return geometries, self.engine.run(*padded)

    def unbatch(self, output: Any) -> list[Any]:
        geometries, raw = output
        return list(zip(raw.rows(), geometries, strict=True))

    def encode_response(self, output: Any) -> Any:
        return as_json(*output)


def serve(port: int) -> None:
    """A delay of 10 ms to fill a batch, as its documentation shows."""
    api = Api(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.01, api_path="/detect")
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
