"""Activation ranges that leave out rare values: chosen from a histogram, which one pass over the batches fills."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill import ranks
from quantize.grid import activation_grid

# The least that a range fills is a quarter of the bins: one-sided, just past a power of two. Eight bins an int8 step.
BINS = 8192
PERCENTILE = 99.99
# Candidates for one end of a range in each of the passes over the two ends.
CANDIDATES = 64
PASSES = 3


class Histogram:
    """Counts of values in BINS equal bins over −reach…reach, where reach is a power of two that grows as values ask.

    Growing merges bins two by two, so nothing is lost but resolution, and the order of batches does not matter.

    Attributes:
        counts: (BINS,) float64.
        reach: Its values lie in −reach…reach.
        low: Least value seen, at most 0.
        high: Greatest value seen, at least 0.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.reach = 2.0**-16
        self.low = 0.0
        self.high = 0.0

    def add(self, values: Tensor) -> None:
        """Count a batch.

        Args:
            values: Any shape; a value that is not finite makes `low` or `high` so, and the batch is not counted.
        """
        low, high = (float(end) for end in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(abs(low), abs(high))
        if not math.isfinite(largest):
            self.low, self.high = -math.inf, math.inf
            return
        self._grow(largest)
        counted = torch.histc(values.detach().float(), bins=BINS, min=-self.reach, max=self.reach)
        self.counts += counted.double().cpu()

    def _grow(self, reach: float) -> None:
        while self.reach < reach:
            outer = torch.zeros(BINS // 4, dtype=torch.float64)
            self.counts = torch.cat([outer, self.counts.view(-1, 2).sum(1), outer])
            self.reach *= 2.0

    def add_ranks(self) -> None:
        """Count what the other processes of a training have seen, too."""
        own = torch.tensor([self.low, self.high, self.reach], dtype=torch.float64)
        least, most = ranks.extremes(own, own)
        self.low, self.high = float(least[0]), float(most[1])
        self._grow(float(most[2]))
        self.counts = ranks.total(self.counts)

    def edges(self) -> Tensor:
        """(BINS + 1,) float64 borders of the bins."""
        return torch.linspace(-self.reach, self.reach, BINS + 1, dtype=torch.float64)

    def percentiles(self, percent: float = PERCENTILE) -> tuple[float, float]:
        """The range without 100 − `percent` percent of the values at either end; it holds 0."""
        if not math.isfinite(self.high):
            return self.low, self.high
        tail = (1.0 - percent / 100.0) * float(self.counts.sum())
        low, high = self._crossing(self.counts, tail), -self._crossing(self.counts.flip(0), tail)
        return max(min(low, 0.0), self.low), min(max(high, 0.0), self.high)

    def _crossing(self, counts: Tensor, tail: float) -> float:
        """Where the cumulative count passes `tail`, values spread evenly within a bin."""
        total = counts.cumsum(0)
        at = min(int(torch.searchsorted(total, tail, right=True)), BINS - 1)
        inside = float(counts[at])
        share = (tail - (float(total[at]) - inside)) / inside if inside > 0.0 else 0.0
        return (at + share) * (2.0 * self.reach / BINS) - self.reach

    def least_squares(self) -> tuple[float, float]:
        """The range whose grid leaves the least squared error; it holds 0.

        Each end is searched in turn, on a scale that narrows from all of the range to a few steps.

        Source:
            The idea: Banner et al., Post training 4-bit quantization, NeurIPS 2019, arXiv:1810.05723, section 3; here
            by search on the histogram instead of a fitted distribution.
        """
        if not math.isfinite(self.high):
            return self.low, self.high
        held = self.counts > 0
        edges = self.edges()
        centres, counts = ((edges[:-1] + edges[1:]) / 2)[held], self.counts[held]
        # Values that are exactly 0 (under a ReLU, most) lie at a bin's border, and cost nothing on any grid.
        ends = {"low": self.low, "high": self.high}
        best = dict(ends)
        for sweep in range(PASSES):
            for end, widest in ends.items():
                if widest == 0.0:
                    continue
                around = best[end] / widest
                margin = 1.0 if sweep == 0 else 4.0 / CANDIDATES**sweep
                least, most = max(1.0 / CANDIDATES, around - margin), min(1.0, around + margin)
                tried = torch.linspace(most, least, CANDIDATES, dtype=torch.float64) * widest
                other = torch.full_like(tried, best["high" if end == "low" else "low"])
                lows, highs = (tried, other) if end == "low" else (other, tried)
                errors = squared_errors(centres, counts, lows=lows, highs=highs)
                best[end] = float(tried[int(errors.argmin())])
        return best["low"], best["high"]


def squared_errors(values: Tensor, counts: Tensor, *, lows: Tensor, highs: Tensor) -> Tensor:
    """Squared error of rounding values to the grid of each range, weighted.

    Args:
        values: (V,) float64.
        counts: (V,) weights.
        lows: (R,) least values, at most 0.
        highs: (R,) greatest values, at least 0.

    Returns:
        (R,) sums.
    """
    scale, zero_point = activation_grid(lows.float(), highs.float())
    step, zero = scale.double()[:, None], zero_point.double()[:, None]
    codes = (torch.round(values / step) + zero).clamp_(-128, 127)  # (R, V)
    return ((codes - zero) * step - values).square_() @ counts
