"""OpenTelemetry traces: a span for every request, with one for each of its stages."""

import logging
import time
from threading import Thread
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.boundary import AnsweredRequest
from service.metrics import Stopwatch

SEND_LIMIT_S = 2.0
CLOSE_LIMIT_S = 3.0  # for what is left at the end

logger = logging.getLogger(__name__)


class Traces:
    """Sends spans to a collector from a separate thread; spans that cannot be sent are dropped.

    OpenTelemetry's own variables, such as OTEL_TRACES_SAMPLER and OTEL_RESOURCE_ATTRIBUTES, decide
    how many traces are kept, and add attributes to the service.
    """

    def __init__(self, endpoint: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "detr-serve"}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_LIMIT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("service")
        self._parent = TraceContextTextMapPropagator()
        logger.info("traces are sent to %s", _without_password(endpoint))

    def record(self, request: AnsweredRequest) -> None:
        """Record the spans of a request, as part of the client's trace if it names one."""
        offset = time.time() - time.perf_counter()
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            context=self._parent.extract(request.headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": request.method,
                "http.route": request.route,
                "http.response.status_code": request.status,
                **{f"detr.{name}": value for name, value in request.fields.items()},
            },
            start_time=_nanoseconds(request.started + offset),
        )
        if request.status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        stopwatch = request.stopwatch or Stopwatch()
        for stage, seconds in stopwatch.seconds.items():
            start = stopwatch.starts[stage] + offset
            child = self._tracer.start_span(stage, inside, start_time=_nanoseconds(start))
            child.end(_nanoseconds(start + seconds))
        span.end(_nanoseconds(request.started + request.seconds + offset))

    def close(self) -> None:
        """Send the remaining spans, unless the collector takes too long."""
        sending = Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(CLOSE_LIMIT_S)
        if sending.is_alive():
            logger.warning("the last traces were not sent within %g s", CLOSE_LIMIT_S)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
