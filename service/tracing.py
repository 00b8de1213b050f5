"""OpenTelemetry traces: a span for a request, and one in it for every stage."""

import logging
import time

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

logger = logging.getLogger(__name__)


class Traces:
    """Sends what it is told to a collector, in a thread of its own; what cannot be sent is dropped.

    How many traces are kept, and further attributes of the service, are told by OpenTelemetry's own
    variables: OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES and so on.
    """

    def __init__(self, endpoint: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "detr-serve"}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_LIMIT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("service")
        self._parent = TraceContextTextMapPropagator()
        logger.info("traces are sent to %s", endpoint)

    def record(self, request: AnsweredRequest) -> None:
        """Make the spans of a request, which belongs to the trace that its client names, if any."""
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
        """Send what is left."""
        self._provider.shutdown()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
