"""Ranges from histograms, against quantiles, brute force and published optima."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from edgeface.errors import ModelError
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import Graph
from quantize.histogram import BINS, Histogram, squared_errors

Pictures = Callable[[int, int], NDArray[np.uint8]]
Images = Callable[[NDArray[np.uint8]], Tensor]

NORMAL = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)


def filled(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def of_normal() -> Histogram:
    """The histogram of a million values of a normal distribution, without chance; six deviations either way."""
    histogram = Histogram()
    histogram.reach, histogram.low, histogram.high = 8.0, -6.0, 6.0
    shares = NORMAL.cdf(histogram.edges()).diff()
    inside = histogram.edges()[:-1].abs() < 6.0
    histogram.counts = shares * inside * 1e6
    return histogram


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-3.0, 3.0), scale=st.floats(1e-3, 1e3))
def test_percentiles_are_those_of_the_values(seed: int, shift: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [(torch.randn(4000, generator=generator) + shift) * scale for _ in range(3)]
    histogram = filled(*batches)
    low, high = histogram.percentiles(99.0)
    values = torch.cat(batches).double()
    # Within a bin values are taken as spread evenly, and NumPy interpolates between two values.
    slack = 2 * 2 * histogram.reach / BINS
    ordered = values.sort().values
    for found, at, outwards in ((low, 0.01, min), (high, 0.99, max)):
        place = at * (len(ordered) - 1)
        around = ordered[int(place) - 1], ordered[min(int(place) + 2, len(ordered) - 1)]
        assert outwards(float(around[0]), 0.0) - slack <= found <= outwards(float(around[1]), 0.0) + slack
    assert abs(high - 1.02 * max(float(ordered[11880]), 0.0)) > slack or high <= 0.5 * scale  # the twin


def test_percentiles_of_evenly_spread_values_are_known() -> None:
    values = torch.linspace(-1.0, 3.0, 400_001)
    low, high = filled(values).percentiles(99.0)
    assert (low, high) == pytest.approx((-0.96, 2.96), abs=2e-3)  # two bins of 8/8192
    assert filled(values).percentiles(90.0) == pytest.approx((-0.6, 2.6), abs=2e-3)


def test_a_relus_percentile_starts_at_zero() -> None:
    low, high = filled(torch.cat([torch.zeros(1000), torch.linspace(0.0, 1.0, 1000)])).percentiles()
    assert low == 0.0
    assert high == pytest.approx(1.0, abs=1e-3)


def test_growing_loses_no_value() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(1000, generator=generator) * factor for factor in (0.01, 3.0, 1e-4, 40.0)]
    grown, at_once = filled(*batches), filled(torch.cat(batches))
    # histc places a value in float32, so one nearer to a border than 2^-24·64 may fall on its other side: of the 1000
    # around 0.0001 some 15.
    assert float((grown.counts - at_once.counts).abs().sum()) < 100
    assert grown.counts.sum() == 4000.0
    assert (grown.reach, grown.low, grown.high) == (at_once.reach, at_once.low, at_once.high)
    assert float((filled(*batches[1:]).counts - at_once.counts).abs().sum()) > 100  # the twin


def test_least_squares_finds_the_published_clipping_of_a_normal_distribution() -> None:
    low, high = of_normal().least_squares()
    # Banner et al., arXiv:1810.05723, table of optimal clipping: 3.92 deviations at 8 bits; theirs takes the noise of
    # rounding as uniform and the mass beyond the range as linear, so 2 % is left to that.
    assert high == pytest.approx(3.92, rel=0.02)
    assert -low == pytest.approx(3.92, rel=0.02)


@pytest.mark.parametrize("spread", ["even", "relu", "tailed", "skewed"])
def test_least_squares_is_as_good_as_brute_force(spread: str) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3000, generator=generator)
    values = {
        "even": torch.linspace(-1.0, 3.0, 3000),
        "relu": noise.relu(),
        "tailed": noise * noise.abs() ** 2,
        "skewed": torch.where(noise > 0, noise * 3, noise),
    }[spread]
    low, high = filled(values).least_squares()
    shares = torch.linspace(0.02, 1.0, 50, dtype=torch.float64)
    grid = torch.cartesian_prod(shares * values.min().clamp_max(0), shares * values.max())
    ones = torch.ones(len(values), dtype=torch.float64)
    best = float(torch.cat([
        squared_errors(values.double(), ones, lows=some, highs=others)
        for some, others in (part.unbind(1) for part in grid.split(250))
    ]).min())  # fmt: skip

    def error(factor: float) -> float:
        least, greatest = torch.tensor([[low], [high]], dtype=torch.float64) * factor
        return float(squared_errors(values.double(), ones, lows=least, highs=greatest))

    # The brute force has steps of 2 % of the range; the search, bins of an eighth of a step.
    assert error(1.0) <= 1.01 * best
    assert error(0.8) > 1.01 * best  # the twin


@pytest.mark.parametrize("calibration", ["percentile", "mse"])
def test_calibration_takes_the_ranges_of_all_batches(
    calibration: str, patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    batch = images(pictures(16, 16))
    network = FakeQuantNetwork(patchwork_graph, calibration=calibration)
    calibrate(network, batch.split(4), limit=4)
    with torch.no_grad():
        plain = FakeQuantNetwork(patchwork_graph).eval().node_values(batch)
    for slot, name in enumerate(network.points):
        # Batches of 4 and of 16 may add up in other orders, 1e-6 of a value: one value of many changes its bin.
        whole = filled(plain[name])
        expected = whole.percentiles() if calibration == "percentile" else whole.least_squares()
        found = (float(network.low[slot]), float(network.high[slot]))
        width = whole.high - whole.low
        assert found == pytest.approx(expected, abs=0.01 * width)
        assert found != pytest.approx((1.05 * expected[0], 1.05 * expected[1]), abs=0.01 * width)
    before = network.high.clone()
    network.train()(255 - batch)
    assert torch.equal(network.high, before)  # training keeps them
    network.eval().snap_()
    network.quantized()


def test_calibration_again_forgets_the_histograms(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    batch = images(pictures(8, 16))
    network, fresh = (FakeQuantNetwork(patchwork_graph, calibration="mse") for _ in range(2))
    calibrate(network, [255 - batch], limit=1)
    other = network.activations()
    calibrate(network, [batch], limit=1)
    calibrate(fresh, [batch], limit=1)
    assert network.activations() == fresh.activations()
    assert other != fresh.activations()


def test_values_that_are_not_finite_are_refused_by_name(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    network = FakeQuantNetwork(patchwork_graph, calibration="percentile")
    with torch.no_grad():
        network.biases["points"][0] = float("inf")
    with pytest.raises(ModelError, match="points"):
        calibrate(network, [images(pictures(2, 16))], limit=1)
