"""Charts: what is drawn where, in which colours, and that the same data give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeface.report import plots
from edgeface.report.plots import COLOURS, DASHES, SERIES, TEXT, WIDTH, Group, Line, Plot, Point

TASK_LINES = (
    Line(name="a<b", x=[0, 1, 2], y=[1.0, 3.0, 2.0], colour="blue"),
    Line(name="c", x=[0, 1], y=[2.0, 2.5], colour="teacher", dash="--"),
)


def line() -> Plot | None:
    return plots.line_chart(TASK_LINES, name="line", title="Line & title", x_title="epoch")


def curves() -> Plot | None:
    shares = [("teacher", "teacher", [0.0, 0.5, 0.9]), ("student", "student", [0.0, 0.4, 0.8])]
    return plots.error_curves(shares, [0.0, 10.0, 25.0], task="landmarks5", failure=10.0)


def confused() -> Plot | None:
    return plots.confusion([[30, 10], [5, 15]], task="smile", classes=("no", "yes"), model="m", name="confusion-smile")


def reliable() -> Plot | None:
    bins = [(0.55, 0.5, 40), (0.95, 0.9, 200), (0.75, 0.1, 1)]
    return plots.reliability([("file", "m", bins, 0.05)], task="smile", name="calibration-smile")


def cost() -> Plot | None:
    points = [
        Point(model="teacher", runtime="torch", precision="fp32", cost=9.0, values={"nme": 3.0, "smile": 90.0}),
        Point(model="m.w8a8.tflite", runtime="tflite-xnnpack", precision="w8a8", cost=0.2, values={"nme": 4.0}),
    ]
    tasks = [("nme", "mean error, %", True), ("smile", "accuracy, %", False)]
    return plots.cost_chart(points, tasks, name="latency", title="Cost", x_title="ms")


def grouped() -> Plot | None:
    models = [
        Group(role="teacher", model="teacher", values=[90.0, None], spans=[(85.0, 94.0), None]),
        Group(role="file", model="m", values=[88.0, 70.0], spans=[None, None]),
    ]
    return plots.group_chart([("dark", 40), ("light", 50)], models, title="smile by skin", metric="acc", name="groups")


def barred() -> Plot | None:
    return plots.bar_chart([("conv1", 30.0), ("conv2", 12.5)], title="Layers", x_title="dB", name="l", marked=["conv2"])


ALL: tuple[Callable[[], Plot | None], ...] = (line, curves, confused, reliable, cost, grouped, barred)


def made(draw: Callable[[], Plot | None]) -> Plot:
    plot = draw()
    assert plot is not None
    return plot


def tree(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(plot.svg())


def texts(plot: Plot) -> list[str]:
    return ["".join(element.itertext()).strip() for element in tree(plot).iter("text")]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("draw", ALL)
def test_svg_belongs_to_the_page_and_loads_nothing(draw: Callable[[], Plot | None]) -> None:
    plot = made(draw)
    root = tree(plot)  # well-formed, or this raises
    assert root.get("role") == "img"
    assert plot.title in (root.get("aria-label") or "")
    svg = plot.svg()
    for stray in ("http", "<style", "<script", "<metadata", "font-family", "xmlns"):
        assert stray not in svg
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert all(str(each).startswith(f"{plot.name}-") for each in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) == ids


@pytest.mark.parametrize("draw", ALL)
def test_every_colour_is_the_pages(draw: Callable[[], Plot | None]) -> None:
    svg = made(draw).svg()
    assert "var(--ink)" in svg
    assert re.findall(r"#[0-9a-fA-F]{6}\b", re.sub(r'(href="|url\()#[^")]+', "", svg)) == []


@pytest.mark.parametrize("draw", ALL)
def test_text_keeps_its_size_on_a_phone(draw: Callable[[], Plot | None]) -> None:
    svg = made(draw).svg()
    assert tree(made(draw)).get("viewBox", "").split()[2] == str(WIDTH)
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) >= TEXT


@pytest.mark.parametrize("draw", ALL)
def test_the_same_data_give_the_same_bytes(draw: Callable[[], Plot | None]) -> None:
    assert made(draw).svg() == made(draw).svg()
    assert made(draw).png() == made(draw).png()


def test_other_data_give_other_bytes_twin() -> None:
    moved = plots.line_chart((TASK_LINES[1], TASK_LINES[0]), name="line", title="Line & title", x_title="epoch")
    assert moved is not None
    assert moved.svg() != made(line).svg()
    assert moved.png() != made(line).png()


def test_png_is_written_under_its_name(tmp_path: Path) -> None:
    paths = plots.write_pngs([made(line), made(cost)], tmp_path / "new")
    assert [path.name for path in paths] == ["line.png", "latency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_stand_out_from_the_background(scheme: int) -> None:
    back = COLOURS["back"][scheme]
    for name in ("teacher", *SERIES):
        assert contrast(COLOURS[name][scheme], back) >= 3.0, name  # WCAG 2.1, 1.4.11
    for name in ("ink", "soft"):
        assert contrast(COLOURS[name][scheme], back) >= 4.5, name  # WCAG 2.1, 1.4.3
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)
    assert len(set(zip(SERIES, DASHES, strict=True))) == len(SERIES)


def test_a_pale_colour_is_caught_twin() -> None:
    assert contrast("#e69f00", COLOURS["back"][0]) < 3.0


def test_line_chart_leaves_out_what_is_not_finite_and_bears_a_single_point() -> None:
    nan = float("nan")
    odd = [
        Line(name="one", x=[0, 1], y=[nan, 2.0], colour="blue"),
        Line(name="gone", x=[1], y=[nan], colour="green"),
    ]
    plot = plots.line_chart(odd, name="odd", title="Odd", x_title="x")
    assert plot is not None
    (drawn,) = plot.figure.axes[0].lines
    assert [list(drawn.get_xdata()), list(drawn.get_ydata())] == [[1.0], [2.0]]
    assert "gone" not in texts(plot)
    assert "nan" not in plot.svg()
    assert plots.line_chart([], name="odd", title="Odd", x_title="x") is None


def test_curves_that_cannot_be_told_apart_share_a_line() -> None:
    near, far = [0.0, 0.502, 0.9], [0.0, 0.55, 0.9]
    same = [("teacher", "t", [0.0, 0.5, 0.9]), ("student", "s", near), ("file", "a", [0.0, 0.5, 0.9])]
    names = [names for names, _ in plots.merged(same, most=7)]
    assert names == [[("teacher", "t")], [("student", "s"), ("file", "a")]]  # the teacher keeps a line of its own
    apart = [*same[:2], ("file", "a", far)]
    assert [len(names) for names, _ in plots.merged(apart, most=7)] == [1, 1, 1]
    assert [len(names) for names, _ in plots.merged(apart, most=2)] == [1, 2]


def test_cumulative_curves_are_shares_in_percent() -> None:
    drawn = made(curves).figure.axes[0].lines
    assert list(drawn[0].get_ydata()) == pytest.approx([0, 50, 90])
    assert list(drawn[1].get_ydata()) == pytest.approx([0, 40, 80])
    assert "up to 10 %: teacher 50.0 %, student 40.0 %" in made(curves).words


def test_confusion_is_in_percent_of_the_true_class() -> None:
    found = texts(made(confused))
    for said in ("75.0 %", "25.0 %", "30", "10", "5", "15"):
        assert said in found
    turned = plots.confusion([[30, 5], [10, 15]], task="smile", classes=("no", "yes"), model="m", name="c")
    assert turned is not None
    assert "75.0 %" not in texts(turned)
    assert plots.confusion([[0, 0], [0, 0]], task="smile", classes=("no", "yes"), model="m", name="c") is None


def test_reliability_leaves_out_bins_of_a_few_faces() -> None:
    diagonal, model = made(reliable).figure.axes[0].lines
    assert list(model.get_xdata()) == pytest.approx([55.0, 95.0])
    assert list(model.get_ydata()) == pytest.approx([50.0, 90.0])
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert "m (5.0)" in texts(made(reliable))
    assert plots.reliability([("file", "m", [], None)], task="smile", name="c") is None


def test_up_is_better_in_every_panel_and_left_is_cheaper() -> None:
    errors, shares = made(cost).figure.axes
    low, high = errors.get_ylim()
    assert low > high
    low, high = shares.get_ylim()
    assert low < high
    assert errors.get_xscale() == "log"
    at = {float(line.get_xdata()[0]): float(line.get_ydata()[0]) for line in errors.lines}
    assert at == {9.0: 3.0, 0.2: 4.0}
    assert len(shares.lines) == 1  # the file has no such task
    assert "<title>m.w8a8.tflite, tflite-xnnpack: 4.00 at 0.2</title>" in made(cost).svg()


def test_groups_with_too_few_faces_have_no_dot() -> None:
    lines = made(grouped).figure.axes[0].lines
    dots = [float(line.get_xdata()[0]) for line in lines if line.get_marker() in "Do" and len(line.get_xdata()) == 1]
    assert sorted(dots) == [70.0, 88.0, 90.0]
    spans = [list(line.get_xdata()) for line in lines if len(line.get_xdata()) == 2]
    assert spans == [[85.0, 94.0]]


def test_marked_bars_stand_out() -> None:
    bars = made(barred).figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [30.0, 12.5]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    assert {"conv1", "conv2", "30.0", "12.5"} <= set(texts(made(barred)))
    assert plots.bar_chart([], title="Layers", x_title="dB", name="l") is None
