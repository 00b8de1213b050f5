"""Whether a request is retried, and after how long."""

import email.utils
import random
import time
from dataclasses import dataclass

import httpx

# Busy, loading, stopping or gone: another try, or another replica, may answer.
_TRANSIENT = {408, 429, 502, 503, 504}
# A wrong address or header of the caller.
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how patiently a request is sent again; sending it twice does no harm.

    Attributes:
        most: how many tries may follow the first.
        first_s: pause before the second try, if the service names none; doubles with every try.
        longest_s: if the service asks for a longer pause, the request fails with its last answer.
    """

    most: int = 5
    first_s: float = 0.5
    longest_s: float = 60.0

    def pause_s(self, outcome: httpx.Response | httpx.RequestError, num_tries: int) -> float | None:
        """Seconds until the next try, after `num_tries`; None if there should be no other.

        Retry-After is honoured; one that has passed means no pause, but only once. Other pauses are
        shortened at random by up to a half, so clients that were refused together do not come back
        together.
        """
        if num_tries > self.most or isinstance(outcome, _HOPELESS):
            return None
        asked_s = None
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _TRANSIENT:
                return None
            asked_s = _retry_after_s(outcome.headers.get("Retry-After", ""))
        if asked_s is None or (asked_s == 0 and num_tries > 1):
            doubled_s = self.first_s * 2.0 ** (num_tries - 1)
            return float(min(doubled_s, self.longest_s) * random.uniform(0.5, 1))
        return asked_s if asked_s <= self.longest_s else None


def _retry_after_s(value: str) -> float | None:
    """Seconds in a Retry-After header, which holds a number or a date; None if neither."""
    if value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment.timestamp() - time.time())
