"""Line charts as inline SVG: no network, no fonts of their own, sharp at any zoom, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito, "Color Universal Design", 2008: told apart under every common colour blindness. Grey leads for the
# teacher, the reference; the dashes tell lines apart without any colour.
COLOURS = ("#6b7280", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
DASHES = ("none", "none", "7 3", "3 3", "10 3 2 3", "1 3", "14 4")

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: In the legend.
        x: Positions, ascending.
        y: Values; NaN breaks nothing, it is left out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_title: str,
    y_title: str,
    y_range: tuple[float, float] | None = None,
    mark_x: float | None = None,
) -> str:
    """An SVG element with a legend below the plot.

    Args:
        series: The lines; more than the palette holds repeat its colours.
        title: Read out to those who cannot see it.
        x_title: What x is, with its unit.
        y_title: What y is, with its unit.
        y_range: Fixed ends of the y axis; None fits the data.
        mark_x: Where a thin vertical line stands, such as the failure threshold.
    """
    drawn = [(line, [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]) for line in series]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return f"<p>{escape(title)}: nothing to draw</p>"
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    x_low, x_high = _span(min(xs), max(xs))
    x_low = 0.0 if 0.0 < x_low < 0.2 * x_high else x_low
    x_ticks = [tick for tick in ticks(x_low, x_high) if x_low <= tick <= x_high]
    y_ticks = ticks(*(y_range or _span(min(ys), max(ys))))
    y_low, y_high = y_range or (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    legend_rows = -(-len(drawn) // 3)
    height = _HEIGHT + 20 * legend_rows
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks:
        x, base = place(tick, y_low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 17:.1f}" text-anchor="middle">{_number(tick)}</text>')
    if mark_x is not None and x_low <= mark_x <= x_high:
        x, base = place(mark_x, y_low)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base:.1f}"/>')
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    for index, (line, points) in enumerate(drawn):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        style = f'stroke="{colour}" stroke-dasharray="{dash}"'
        parts.append(f'<polyline class="line" {style} points="{path}"/>')
        if len(points) <= 30:
            dots = (place(*point) for point in points)
            parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in dots)
        left = _LEFT + (index % 3) * (_WIDTH - _LEFT) / 3
        low = _HEIGHT + 14 + 20 * (index // 3)
        parts.append(f'<line class="line" {style} x1="{left:.0f}" x2="{left + 24:.0f}" y1="{low - 4}" y2="{low - 4}"/>')
        parts.append(f'<text class="legend" x="{left + 30:.0f}" y="{low}">{escape(line.name)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers that span [low, high]: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _span(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty, for one point or a flat line."""
    if high > low:
        return low, high
    pad = abs(low) * 0.05 or 0.5
    return low - pad, high + pad


def _number(value: float) -> str:
    return f"{value:.6g}"
