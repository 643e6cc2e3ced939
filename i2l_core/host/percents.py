"""Between sigmas and percents of a sampling."""

from __future__ import annotations

import bisect
from typing import Any


class SigmaToPercent:
    """How much of the sampling is over at a sigma, 0..1: the inverse of ComfyUI's percent_to_sigma."""

    _STEPS = 1024

    def __init__(self, sampling: Any) -> None:
        self._rising = [-float(sampling.percent_to_sigma(i / self._STEPS)) for i in range(self._STEPS + 1)]

    def at(self, sigma: float) -> float:
        """0..1, linear between the percents that are known."""
        after = bisect.bisect_left(self._rising, -sigma)
        if after == 0 or after > self._STEPS:
            return min(after, self._STEPS) / self._STEPS
        low, high = self._rising[after - 1 : after + 1]
        return (after - 1 + (-sigma - low) / (high - low)) / self._STEPS
