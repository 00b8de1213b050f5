"""python -m service.ray_app: the service on a Ray cluster, on as many nodes as needed.

Every replica is the app of `python -m service`, with its own engine and batcher. Ray places it
where cores or a GPU are free, sends each request to one replica, restarts replicas whose engine has
failed, and adds replicas while images wait too long for the engine. The environment says what to
serve, as for `python -m service`; every node must have the files.
"""

if __name__ == "__main__":  # before the imports that take long
    from bundle.command import begin_command

    begin_command()

import argparse
import math
import signal
import statistics
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import ray
from fastapi import FastAPI
from prometheus_client import Histogram
from pydantic import ValidationError
from ray import serve
from ray.serve.config import AutoscalingContext

from bundle.terminal import printable
from service.app import create_app
from service.logs import set_up_logging
from service.settings import Settings
from service.settings_faults import describe_settings_faults
from service.startup import OpenEngine, open_served

WAIT = "queue_wait_s"  # the metric that replicas report
IDLE_SHARE = 0.1  # of the allowed wait; below it, one replica is removed


class Scale(NamedTuple):
    """How many replicas there are, what each gets, and when to add more."""

    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0  # per replica
    gpus: float = 0.0
    wait_s: float = 0.25  # mean wait for the engine above which replicas are added
    max_per_node: int = 100  # Ray's own limit
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0


class QueueWait:
    """The mean wait for the engine, over the images started since the last call."""

    def __init__(self, waits: Histogram) -> None:
        self._waits = waits
        self._seen = (0.0, 0.0)

    def mean_s(self) -> float:
        """In seconds; 0 if no image was started."""
        samples = [sample for metric in self._waits.collect() for sample in metric.samples]
        total_s = sum(sample.value for sample in samples if sample.name.endswith("_sum"))
        count = sum(sample.value for sample in samples if sample.name.endswith("_count"))
        (seen_s, seen_count), self._seen = self._seen, (total_s, count)
        return (total_s - seen_s) / (count - seen_count) if count > seen_count else 0.0


class FollowWait:
    """A scaling policy for Ray: adds replicas in proportion to the wait, removes one by one."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, within the limits; there is no state to keep."""
        waits_s = list((context.aggregated_metrics or {}).get(WAIT, {}).values())
        wanted = num_wanted(
            context.target_num_replicas, statistics.fmean(waits_s or [0.0]) / self._wait_s
        )
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(max(wanted, least), most), {}


def num_wanted(num_replicas: int, ratio: float) -> int:
    """How many replicas there should be if the wait is `ratio` times the allowed one."""
    if ratio > 1:
        return min(math.ceil(num_replicas * ratio), 2 * num_replicas)
    return num_replicas - 1 if ratio < IDLE_SHARE else num_replicas


class Replica:
    """What Ray needs from a replica besides answers."""

    app: FastAPI  # set by Ray
    _wait: QueueWait | None = None

    def check_health(self) -> None:
        """Raises RuntimeError once the engine has failed, so that Ray replaces the replica."""
        failure = self.app.state.serving.failure
        if failure is not None:
            raise RuntimeError(failure)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The metrics that the policy receives."""
        if self._wait is None:
            self._wait = QueueWait(self.app.state.metrics.batch_wait_seconds)
        return {WAIT: self._wait.mean_s()}


def application(
    settings: Settings, scale: Scale, *, open_engine: OpenEngine = open_served
) -> serve.Application:
    """What `serve.run` deploys."""

    def build() -> FastAPI:
        set_up_logging(settings.log_level, log_format=settings.log_format)
        return started_app(settings, open_engine)

    deployment = serve.deployment(
        name="detr-serve",
        ray_actor_options={
            "num_cpus": scale.cpus,
            "num_gpus": scale.gpus,
            "runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}},  # see `share_one_heap`
        },
        max_ongoing_requests=2 * settings.max_queue,  # so that the batcher refuses, with 503
        logging_config={"enable_access_log": False},  # ours says more
        max_replicas_per_node=scale.max_per_node,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        health_check_period_s=2,
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "metrics_interval_s": 2,
            "look_back_period_s": 10,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
            "policy": {
                "policy_function": "service.ray_app:FollowWait",
                "policy_kwargs": {"wait_s": scale.wait_s},
            },
        },
    )
    bound: serve.Application = deployment(serve.ingress(build)(Replica)).bind()
    return bound


def started_app(settings: Settings, open_engine: OpenEngine) -> FastAPI:
    """The app; its lifespan begins once the engine is ready, so Ray sends no requests earlier."""
    app = create_app(settings, open_engine)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def started(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            await app.state.startup
            if app.state.serving.failure is not None:
                raise RuntimeError(app.state.serving.failure)
            yield

    app.router.lifespan_context = started
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy, serve until Ctrl-C or SIGTERM, and return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    scale = _scale(parser, args)
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail(describe_settings_faults(error))
    try:
        ray.init(args.address)
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(application(settings, scale), name="detr-serve")
        _wait_for_signal()
    except (RuntimeError, ConnectionError) as error:
        return _fail(str(error))
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
    return 0


def _scale(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Scale:
    least = args.min_replicas
    most = max(least, 1) if args.max_replicas is None else args.max_replicas
    if not 1 <= least <= most:
        parser.error(f"expected 1 <= --min-replicas <= --max-replicas, got {least} and {most}")
    if not 0 < args.wait < math.inf:
        parser.error(f"--wait: expected a time above 0, got {args.wait:g}")
    if not (0 <= args.cpus < math.inf and 0 <= args.gpus < math.inf):
        parser.error(f"--cpus, --gpus: expected 0 or more, got {args.cpus:g} and {args.gpus:g}")
    return Scale(least, most, args.cpus, args.gpus, args.wait)


def _wait_for_signal() -> None:
    is_over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_over.set())
    is_over.wait()


def _fail(message: str) -> int:
    sys.stderr.write(printable(f"error: {message}\n"))
    return 1


def _parser() -> argparse.ArgumentParser:
    defaults = Scale()
    parser = argparse.ArgumentParser(
        prog="python -m service.ray_app", description="Serve a bundle on a Ray cluster."
    )
    add: Callable[..., Any] = parser.add_argument
    add("--address", help="of the cluster; by default a new one on this machine")
    add("--min-replicas", type=int, default=defaults.min_replicas, help="default: %(default)s")
    add("--max-replicas", type=int, help="default: as --min-replicas")
    add("--cpus", type=float, default=defaults.cpus, help="cores per replica (%(default)s)")
    add("--gpus", type=float, default=defaults.gpus, help="GPUs per replica (%(default)s)")
    add(
        "--wait",
        type=float,
        default=defaults.wait_s,
        metavar="SECONDS",
        help="mean wait for the engine above which replicas are added (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
