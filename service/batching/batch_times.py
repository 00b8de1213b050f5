"""How long batches take, learnt from the ones that have run."""

SMOOTHING = 0.2  # weight of the newest batch
FADING = 0.9  # weight that earlier batches keep with each new one, for a line through them
MIN_SPREAD = 0.5  # of their sizes, to tell a slope from noise


class Durations:
    """The smoothed seconds of one stage, for each batch size seen."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def record(self, size: int, seconds: float) -> None:
        """Learn from one batch."""
        known_s = self._seconds.get(size, seconds)
        self._seconds[size] = known_s + SMOOTHING * (seconds - known_s)

    def expect(self, size: int) -> float:
        """Expected seconds for a batch of this size, or of the nearest smaller size seen.

        The estimate errs low: answering late is better than refusing by mistake. It is 0 before
        the first batch.
        """
        if not self._seconds:
            return 0.0
        smaller = [seen for seen in self._seconds if seen <= size]
        return self._seconds[max(smaller) if smaller else min(self._seconds)]

    @property
    def fixed_s(self) -> float:
        """Seconds that a batch takes whatever its size, which is what an additional batch costs.

        The intercept of a straight line through the times seen; 0 before two sizes were seen.
        """
        count = len(self._seconds)
        if count < 2:
            return 0.0
        mean_size, mean_s = sum(self._seconds) / count, sum(self._seconds.values()) / count
        spread = sum((size - mean_size) ** 2 for size in self._seconds)
        rise = sum((size - mean_size) * seconds for size, seconds in self._seconds.items())
        return mean_s - rise / spread * mean_size


class Line:
    """A straight line through recent points; earlier ones fade."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._x = self._y = 0.0  # means
        self._xx = self._xy = 0.0  # weighted sums of products of the distances from them
        self.deviation = 0.0  # of y from the line, absolute, on average

    def add(self, x: float, y: float) -> None:
        """Take in the newest point."""
        if self._weight:
            self.deviation += SMOOTHING * (abs(y - self.at(x)) - self.deviation)
        before = FADING * self._weight
        self._weight = before + 1
        part = before / self._weight
        self._xx = FADING * self._xx + part * (x - self._x) ** 2
        self._xy = FADING * self._xy + part * (x - self._x) * (y - self._y)
        self._x += (x - self._x) / self._weight
        self._y += (y - self._y) / self._weight

    def at(self, x: float) -> float:
        """The line's y; level where all points have one x, and never below 0."""
        slope = max(0.0, self._xy / self._xx) if self._xx > MIN_SPREAD else 0.0
        return max(0.0, self._y + slope * (x - self._x))
