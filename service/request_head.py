"""What is refused of a request's first line and headers, beyond what the parser refuses."""

from collections.abc import Sequence

import httptools

_VERSIONS = ("1.0", "1.1")  # the parser also takes 0.9 and 2.0
_SCHEMES = (None, b"http", b"https")
_MOST_SHOWN = 100


def head_fault(
    method: bytes, target: bytes, *, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> str | None:
    """What is wrong with the head of a request; None if it can be answered.

    Args:
        headers: their names in lower case.
    """
    if version not in _VERSIONS:
        return f"expected HTTP/1.1, got HTTP/{version}"
    if method == b"CONNECT" or not _has_path(target):
        return (
            "expected a path after the method, such as POST /detect, got "
            f"{_shown(method)} {_shown(target)}; this is no proxy"
        )
    num_hosts = sum(name == b"host" for name, _ in headers)
    if num_hosts > 1:
        return "expected one Host header, got several"
    if num_hosts == 0 and version != "1.0":
        return "expected one Host header, as in any request of HTTP/1.1, got none"
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if any(coding.lower() != b"chunked" for coding in codings):
        return f"expected Transfer-Encoding: chunked or none, got {_shown(b', '.join(codings))}"
    return None


def _has_path(target: bytes) -> bool:
    """Whether a target is a path, or the URL of one."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return False
    return url.schema in _SCHEMES and (url.path or b"").startswith(b"/")


def _shown(value: bytes) -> str:
    text = value[:_MOST_SHOWN].decode("ascii", "backslashreplace")
    return f"{text}..." if len(value) > _MOST_SHOWN else text
