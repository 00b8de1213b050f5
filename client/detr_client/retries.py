"""When a request is sent again, and after how long."""

import email.utils
import random
import time
from dataclasses import dataclass

import httpx

# Busy, loading, stopping, or gone: another try, or another replica, may answer.
_TRANSIENT = {408, 429, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how patiently a request is sent again; asking twice does no harm.

    Attributes:
        most: tries after the first.
        first_s: pause before the second try where the service names none; doubles with every try.
        longest_s: a longer pause is not made: the request fails with what was last answered.
    """

    most: int = 5
    first_s: float = 0.5
    longest_s: float = 60.0

    def pause_s(
        self, outcome: httpx.Response | httpx.TransportError, num_tries: int
    ) -> float | None:
        """Seconds until the next try, after so many; None if there is none.

        What Retry-After says is honoured. Other pauses are shortened by up to a half, at random,
        so that clients that were refused together do not come back together.
        """
        if num_tries > self.most:
            return None
        asked_s = None
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _TRANSIENT:
                return None
            asked_s = _retry_after_s(outcome.headers.get("Retry-After", ""))
        if asked_s is None:
            doubled_s = self.first_s * 2.0 ** (num_tries - 1)
            return float(min(doubled_s, self.longest_s) * random.uniform(0.5, 1))
        return asked_s if asked_s <= self.longest_s else None


def _retry_after_s(value: str) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date; None where it holds neither."""
    if value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
