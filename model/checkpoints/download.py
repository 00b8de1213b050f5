"""Downloads that resume where they stopped, checked against a SHA-256."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from tqdm import tqdm

from model.checkpoints.file_kind import sha256
from model.checkpoints.published_urls import digest_prefix

_ATTEMPTS = 5  # in a row without receiving a byte
_TIMEOUT_S = 30.0
Sleep = Callable[[float], None]


class _Interrupted(Exception):
    """The server or the connection failed; worth another try."""


def download(
    url: str, path: Path, *, sha256_digits: str | None = None, sleep: Sleep = time.sleep
) -> None:
    """Download a file of known content.

    Received bytes are kept in `path`.part, from which this call or the next resumes. Retries,
    with growing waits, as long as bytes arrive.

    Args:
        sha256_digits: the hex digits that the file's SHA-256 begins with; by default its name ends
            in them.

    Raises:
        ValueError: no such file, server not reachable, or wrong content (.part is then removed).
        OSError: the disk is full; .part stays.
    """
    digits = sha256_digits or digest_prefix(path.name)
    if path.is_file() and sha256(path).startswith(digits):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    furthest, failures = _size(part), 0
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
        while True:
            try:
                _continue(client, url, part)
                break
            except (httpx.TransportError, _Interrupted) as error:
                failures = 1 if _size(part) > furthest else failures + 1
                furthest = max(furthest, _size(part))
                if failures == _ATTEMPTS:
                    raise ValueError(
                        f"cannot download {url} ({error}): check the network or the proxy "
                        f"(HTTPS_PROXY) and run this again, it resumes at byte {_size(part)}; or "
                        f"download the file elsewhere and put it at {path}"
                    ) from error
                sleep(2.0 ** (failures - 1))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ValueError(f"cannot download {url}: {error}") from error
    if not sha256(part).startswith(digits):
        part.unlink()
        raise ValueError(
            f"{url} is not the published file: its SHA-256 does not begin with "
            f"{digits}; the download was removed, run this again or use another mirror"
        )
    part.replace(path)


def _continue(client: httpx.Client, url: str, part: Path) -> None:
    """Request the bytes that are missing in `part`, or all of them if it does not exist."""
    have = _size(part)
    # The digest guards against a file that changed on the server between two requests.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        span = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if span is None or int(span[2]) != have:
                part.unlink()
                raise _Interrupted("the part on disk is longer than the file")
            return
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            raise _Interrupted(f"the server answers {status}")
        if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise ValueError(f"cannot download {url}: the server answers {status}; name a "
                             "mirror with --base-url (make: ARGS='--base-url URL'), or put the "
                             f"file at {part.with_suffix('')}")  # fmt: skip
        if status == httpx.codes.OK:
            have = 0  # the server ignored the range and sends the whole file
        elif span is None or span[1] != str(have):
            part.unlink()
            raise _Interrupted("the server sends a part that was not asked for")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _append(response, part, have=have, total=total)


def _append(response: httpx.Response, part: Path, *, have: int, total: int | None) -> None:
    label = part.name.removesuffix(".part")
    try:
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=label, initial=have, total=total, unit="B", unit_scale=True) as bar,
        ):
            for chunk in response.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {part} ({error.strerror}): free "
            f"{(total or 2e8) / 1e6:.0f} MB or choose another directory by OUT= (--out); "
            "run this again to resume the download",
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
