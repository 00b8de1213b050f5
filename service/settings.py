"""How the service is configured: by environment variables, and only here."""

import os
import re
import string
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    HttpUrl,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from bundle.model_name import NAME_RULE, is_model_name
from bundle.preprocess import MAX_PIXELS
from engines.base import Mode
from engines.load import DEFAULT_GPU_OPTIONS, EngineName
from service.logs import LogFormat
from service.names import did_you_mean

MIB = 1024 * 1024
PREFIX = "DETR_"
SHORTEST_ADMIN_KEY = 8  # characters
LONGEST_STOP_S = 86_400  # a day; Python cannot sleep for 1e20 s
MAX_THREADS = 1024  # more is a slip, for which runtimes have no good message
# As browsers send it, in small letters and ASCII: compared as text, others would never match.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#A-Z\s]+")


class BundlePlace(NamedTuple):
    """A bundle's directory, and the name it is served under, by default the bundle's own."""

    name: str | None
    directory: Path


class Settings(BaseSettings):
    """Every setting, read from the environment: `bundle` from DETR_BUNDLE, and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, allow_inf_nan=False)

    bundle: Annotated[Path, Field(description="Directory of the bundle to serve.")] = Path(
        "bundles/demo"
    )
    bundles: Annotated[
        str,
        Field(
            description="Bundles to serve instead of DETR_BUNDLE, each with a name: "
            "small=bundles/a,large=bundles/b. The first answers requests that name none.",
        ),
    ] = ""
    host: Annotated[
        str, Field(description="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    ] = 8000
    max_batch_size: Annotated[
        int | None,
        Field(ge=1, description="Most images in a batch; the bundle's limit by default."),
    ] = None
    max_queue: Annotated[
        int,
        Field(ge=1, description="Most images being decoded or waiting; more are refused with 503."),
    ] = 64
    deadline_s: Annotated[
        float, Field(gt=0, description="Longest time in seconds that a request may be queued.")
    ] = 10.0
    max_images: Annotated[
        int, Field(ge=1, description="Most images in one request, tiles included.")
    ] = 16
    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest body of a request.")] = (
        32 * MIB
    )
    body_memory_bytes: Annotated[
        int | None,
        Field(
            ge=1 * MIB,
            description="Most memory for request bodies in flight, each counted twice; by default "
            "an eighth of what the process may use.",
        ),
    ] = None
    client_body_memory_bytes: Annotated[
        int,
        Field(
            ge=1 * MIB,
            description="Most of that memory for one client; at least twice DETR_MAX_BODY_BYTES.",
        ),
    ] = 64 * MIB
    client_memory_bytes: Annotated[
        int | None,
        Field(
            ge=16 * MIB,
            description="Most memory for one client: its bodies, and its images until the engine "
            "has run them; by default 224 MiB, or DETR_DECODE_MEMORY_BYTES and "
            "DETR_CLIENT_BODY_MEMORY_BYTES together if that is more.",
        ),
    ] = None
    max_pixels: Annotated[
        int, Field(ge=1, description="Most pixels of one image, as stated in its header.")
    ] = MAX_PIXELS
    decode_threads: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_THREADS,
            description="Threads that decode images; one per allowed core by default.",
        ),
    ] = None
    decode_memory_bytes: Annotated[
        int | None,
        Field(
            ge=16 * MIB,
            description="Most memory for decoding images; by default what the decode threads need, "
            "but at most an eighth of what the process may use, and 192 MiB for one client at a "
            "time. An image that needs more is refused.",
        ),
    ] = None
    decoder: Annotated[
        Literal["cpu", "gpu"],
        Field(description="What decodes and resizes JPEGs: cpu, or gpu, that of DETR_DEVICE."),
    ] = "cpu"
    engine: Annotated[
        EngineName,
        Field(
            description="What runs the graph; auto takes TensorRT if the bundle has a plan and "
            "the machine a GPU, else OpenVINO if it is installed."
        ),
    ] = "auto"
    engine_threads: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_THREADS,
            description="Threads of the engine; one per allowed core by default.",
        ),
    ] = None
    engine_mode: Annotated[
        Mode,
        Field(
            description="latency: all threads on one batch; throughput: one thread per part of "
            "it; auto: latency, but batches are split if the first start measures that as faster."
        ),
    ] = "auto"
    rebuild_engine: Annotated[
        bool,
        Field(
            description="Whether TensorRT may build a plan at start if the bundle has none for "
            "this machine."
        ),
    ] = DEFAULT_GPU_OPTIONS.may_build
    cuda_graphs: Annotated[
        int,
        Field(
            ge=0,
            description="Most CUDA graphs that TensorRT or torch-cuda keeps, one per batch shape; "
            "0 for none.",
        ),
    ] = DEFAULT_GPU_OPTIONS.max_graphs
    device: Annotated[
        int,
        Field(
            ge=0, description="Number of the GPU to use, of those that CUDA_VISIBLE_DEVICES allows."
        ),
    ] = DEFAULT_GPU_OPTIONS.device
    max_connections: Annotated[
        int,
        Field(
            ge=1,
            description="Most connections; at the limit, an idle one is closed for a new one.",
        ),
    ] = 1000
    max_header_bytes: Annotated[
        int, Field(ge=256, description="Most bytes of path and headers of a request.")
    ] = 16 * 1024
    header_timeout_s: Annotated[
        float, Field(gt=0, description="Longest time in seconds for the headers of a request.")
    ] = 10.0
    body_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Longest time in seconds for the body of a request, extended by "
            "DETR_MIN_BODY_BYTES_PER_S.",
        ),
    ] = 20.0
    min_body_bytes_per_s: Annotated[
        int,
        Field(ge=1, description="Bytes received that extend the time for a body by one second."),
    ] = 16 * 1024
    write_timeout_s: Annotated[
        float,
        Field(
            gt=0, description="Longest time in seconds that a client may leave its answer unread."
        ),
    ] = 20.0
    keep_alive_timeout_s: Annotated[
        float,
        Field(gt=0, description="Longest time in seconds that a connection may stay idle."),
    ] = 5.0
    start_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Longest time in seconds for opening an engine, testing it and warming it "
            "up; after that, the start or the reload fails.",
        ),
    ] = 600.0
    hang_floor_s: Annotated[
        float,
        Field(gt=0, description="Least time in seconds after which a batch may count as hung."),
    ] = 60.0
    hang_factor: Annotated[
        float,
        Field(
            ge=1,
            description="A batch counts as hung after this many times its expected duration, but "
            "not before the floor.",
        ),
    ] = 10.0
    max_failures: Annotated[
        int,
        Field(
            ge=1,
            description="Batches in a row that may fail entirely before the engine is tested on a "
            "known image; if it fails on that too, the process ends.",
        ),
    ] = 5
    api_keys_file: Annotated[
        Path | None,
        Field(
            description="File with API keys, one per line, read at start; without it, no key is "
            "required.",
        ),
    ] = None
    trusted_proxies: Annotated[
        str,
        Field(
            description="Comma-separated addresses or networks of proxies whose X-Forwarded-For "
            "and X-Forwarded-Proto are trusted.",
        ),
    ] = ""
    cors_origins: Annotated[
        str,
        Field(
            description="Comma-separated origins whose web pages may use the service; * for all.",
        ),
    ] = ""
    admin_key: Annotated[
        SecretStr | None,
        Field(description="Key for POST /admin/reload; without it, that path does not exist."),
    ] = None
    drain_delay_s: Annotated[
        float,
        Field(
            ge=0,
            le=LONGEST_STOP_S,
            description="Seconds after SIGTERM during which /readyz is red but requests are still "
            "accepted, so that a load balancer can react first.",
        ),
    ] = 0.0
    drain_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=LONGEST_STOP_S,
            description="Longest time in seconds to wait for requests in flight when stopping.",
        ),
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Lowest level that is logged."),
    ] = "info"
    log_format: Annotated[
        LogFormat, Field(description="text, for people, or json, one object per line.")
    ] = "text"
    otlp_endpoint: Annotated[
        HttpUrl | None,
        Field(
            description="Where traces are sent, as OTLP over HTTP, such as "
            "http://collector:4318/v1/traces; without it none are made."
        ),
    ] = None

    @field_validator("*", mode="before")
    @classmethod
    def _check_blank(cls, value: Any, info: ValidationInfo) -> Any:
        """Take an empty variable for one that is not set, unless that would open the service."""
        name = info.field_name or ""
        if not isinstance(value, str) or value.strip(f"{string.whitespace},"):
            return value
        if value or name == "api_keys_file":
            raise ValueError(f"expected a value, got {value!r}; unset it for the default")
        return cls.model_fields[name].default

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, text: str) -> str:
        for proxy in split_commas(text):
            ip_network(proxy)
        return text

    @field_validator("admin_key")
    @classmethod
    def _check_admin_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key) < SHORTEST_ADMIN_KEY:
            raise ValueError(
                f"expected at least {SHORTEST_ADMIN_KEY} characters, got {len(key)}; "
                "openssl rand -hex 32 makes a key"
            )
        text = key.get_secret_value() if key else ""
        if not text.isprintable() or text != text.strip():
            raise ValueError(
                "expected no control characters and no blanks at the ends, which no client could "
                "send in a header"
            )
        return key

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, text: str) -> str:
        for origin in split_commas(text):
            if not (origin.isascii() and _ORIGIN.fullmatch(origin)):
                raise ValueError(
                    "expected origins as browsers send them, such as https://example.com or "
                    f"https://xn--bcher-kva.example, without a slash at the end; got {origin!r}"
                )
        return text

    @field_validator("bundles")
    @classmethod
    def _check_bundles(cls, text: str) -> str:
        names = []
        for part in split_commas(text):
            name, directory = _name_and_directory(part)
            if not (is_model_name(name) and directory):
                raise ValueError(
                    f"expected NAME=DIRECTORY with commas between them, got {part!r}; {NAME_RULE}"
                )
            names.append(name)
        if len(set(names)) < len(names):
            raise ValueError(f"expected each name only once, got {', '.join(names)}")
        return text

    @model_validator(mode="after")
    def _check_queue(self) -> Self:
        if self.max_images > self.max_queue:
            raise ValueError(
                f"{PREFIX}MAX_IMAGES ({self.max_images}) must not be above {PREFIX}MAX_QUEUE "
                f"({self.max_queue}), or a request with that many images could never be admitted; "
                "set both"
            )
        return self

    @property
    def bundle_places(self) -> list[BundlePlace]:
        """The bundles to serve; the first answers requests that name none."""
        parts = map(_name_and_directory, split_commas(self.bundles))
        named = [BundlePlace(name, Path(directory)) for name, directory in parts]
        return named or [BundlePlace(None, self.bundle)]

    def limit_batch(self, limit: int) -> int:
        """The most images in a batch of an engine that takes this many."""
        return min(limit, self.max_batch_size or limit)


def unknown_settings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for every variable that looks like a setting and is none."""
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    given = sorted(name for name in environment if name.upper().startswith(PREFIX))
    return [
        f"{name} is not a setting and changes nothing: {did_you_mean(name, known)}all settings are "
        "in docs/operations.md"
        for name in given
        if name.upper() not in known
    ]


def _name_and_directory(part: str) -> tuple[str, str]:
    name, _, directory = part.partition("=")
    return name.strip(), directory.strip()


def split_commas(text: str) -> list[str]:
    """The parts of a comma-separated setting."""
    return [part.strip() for part in text.split(",") if part.strip()]
