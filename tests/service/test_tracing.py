"""Traces, as a collector gets them."""

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.app import create_app
from service.boundary import AnsweredRequest
from service.settings import Settings
from service.tracing import Traces
from tests.fakes import POISON, FakeEngine
from tests.service.asking import running

pytestmark = pytest.mark.anyio


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def requests(self) -> list[Span]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]

    def inside(self, parent: Span) -> list[Span]:
        return [span for span in self.spans if span.parent_span_id == parent.span_id]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def ask(settings: Settings, collector: Collector, *requests: httpx.Request) -> None:
    """Send them to an app that is traced, and end it."""
    traced = settings.model_copy(update={"otlp_endpoint": collector.endpoint})
    async with running(create_app(traced, lambda *_: FakeEngine())) as client:
        for request in requests:
            await client.send(request)


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value")))
            for one in span.attributes}  # fmt: skip


def detect(image: bytes, **headers: str) -> httpx.Request:
    return httpx.Request("POST", "http://test/detect", content=image, headers=headers)


async def test_a_request_is_a_span_with_its_stages_in_it(
    settings: Settings, collector: Collector, png_bytes: bytes
) -> None:
    await ask(settings, collector, detect(png_bytes, **{"X-Request-Id": "abc"}))

    (request,) = collector.requests()
    stages = collector.inside(request)
    assert request.name == "POST /detect"
    assert attributes(request)["detr.request_id"] == "abc"
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["detr.images"] == 1
    assert [stage.name for stage in stages] == [
        "read", "decode", "queue", "infer", "post", "encode",
    ]  # fmt: skip
    assert [stage.start_time_unix_nano for stage in stages] == sorted(
        stage.start_time_unix_nano for stage in stages
    )
    for stage in stages:
        assert request.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= request.end_time_unix_nano


async def test_a_request_joins_the_trace_of_its_client(
    settings: Settings, collector: Collector, png_bytes: bytes
) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    await ask(settings, collector, detect(png_bytes, traceparent=f"00-{trace_id}-{span_id}-01"))

    (request,) = collector.requests()
    assert request.trace_id.hex() == trace_id
    assert request.parent_span_id.hex() == span_id
    assert {span.trace_id for span in collector.spans} == {request.trace_id}


async def test_what_is_refused_or_fails_is_traced_as_far_as_it_came(
    settings: Settings, collector: Collector, encode, scene
) -> None:
    scene = scene.copy()
    scene[:] = POISON

    await ask(settings, collector, detect(b"no image"), detect(encode(scene, "PNG")))

    refused, failed = collector.requests()
    assert attributes(refused)["detr.code"] == "unsupported_media_type"
    assert {stage.name for stage in collector.inside(refused)} == {"read", "decode"}
    assert refused.status.code == 0
    assert attributes(failed)["detr.code"] == "engine_failure"
    assert failed.status.code == 2


async def test_health_and_metrics_are_not_traced(settings: Settings, collector: Collector) -> None:
    quiet = [httpx.Request("GET", f"http://test/{path}") for path in ("healthz", "metrics")]

    await ask(settings, collector, *quiet)

    assert collector.spans == []


async def test_the_log_does_not_show_the_password_of_the_collector(
    settings: Settings, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = collector.endpoint.replace("//", "//user:secret@")
    caplog.set_level("INFO", "service.tracing")

    async with running(
        create_app(settings.model_copy(update={"otlp_endpoint": endpoint}), lambda *_: FakeEngine())
    ):
        pass

    assert f"traces are sent to {collector.endpoint}" in caplog.text
    assert "secret" not in caplog.text


async def test_a_collector_that_is_not_there_costs_no_answer(
    settings: Settings, fake_bundle: Path, png_bytes: bytes
) -> None:
    traced = settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:9/v1/traces"})

    async with running(create_app(traced, lambda *_: FakeEngine())) as client:
        answer = await client.post("/detect", content=png_bytes)

    assert answer.status_code == 200


def test_a_collector_that_does_not_answer_does_not_hold_a_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        traces = Traces(endpoint)
        request = AnsweredRequest("GET", "/", 200, 0.0, 0.0, {}, {}, None)
        for _ in range(1600):  # four times what is sent at once
            traces.record(request)

        traces.close()

    assert "the last traces were not sent within 3 s" in caplog.text
