"""The report in a real browser: nothing is fetched, nothing complains, everything fits and can be read.

Chromium is driven by Playwright at desktop and phone widths, in light and dark. Each check has pages that must fail it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from edgeface.evaluate import evaluate, evaluation_pack
from edgeface.models.network import build_network, model_spec
from edgeface.models.runner import TorchRunner
from edgeface.report.compare import scorecard
from edgeface.report.entries import Entry
from edgeface.report.html import Examples, Origin, Report, Speed, example_faces, page, sweep_page
from edgeface.report.pareto import DONE, REFUSED, Candidate, with_fronts
from edgeface.report.scorecard import FILE, STUDENT, TEACHER
from edgeface.report.swept import Swept
from edgeface.specs import BudgetSpec, NetworkSpec, output_spec
from quantize.layers import LayerError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
WIDTHS = {"desktop": 1280, "phone": 390}
SHAPE = ((0.33, 0.33), (0.67, 0.33), (0.5, 0.52), (0.37, 0.69), (0.63, 0.69))
TASKS = ("landmarks5", "pose", "gender", "smile", "expression", "age", "eyes_open")
SOURCE = "synthetic:80@val"
CURVE = "step,epoch,lr,landmarks5.nme_percent,pose.accuracy\n10,0.5,0.001,12.5,0.41\n20,1,0.0005,9.25,0.62\n"

# Own text of every visible element, with its contrast against the first opaque background behind it (WCAG 2.1).
CONTRASTS = """() => {
  const channels = colour => {
    const found = colour.match(/[\\d.]+/g).map(Number);
    return found.length > 3 ? found : [...found, 1];
  };
  const luminance = colour => {
    const [r, g, b] = channels(colour).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] === 1) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const element of document.querySelectorAll('body, body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(element.matches('svg text') ? style.fill : style.color), luminance(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([contrast, element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""
# Elements that reach beyond the window and lie in no box that scrolls.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const over = [...document.querySelectorAll('body *')].filter(element => {
    for (let at = element; at !== document.body; at = at.parentElement) {
      if (['auto', 'scroll'].includes(getComputedStyle(at).overflowX)) return false;
    }
    return element.checkVisibility() && !element.closest('svg') && element.getBoundingClientRect().right > width + 1;
  }).map(element => element.tagName + ' ' + element.textContent.trim().slice(0, 30));
  return document.documentElement.scrollWidth > width ? ['the page itself', ...over] : over;
}"""
# Letters as they stand on the screen, charts included.
SMALLEST = """() => Math.min(...[...document.querySelectorAll('body *')]
  .filter(element => element.checkVisibility() && element.children.length === 0 && element.textContent.trim())
  .map(element => {
    const px = parseFloat(getComputedStyle(element).fontSize);
    const svg = element.closest('svg.plot');
    return svg ? px * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : px;
  }))"""
FLAT = """() => [...document.querySelectorAll('svg')].filter(svg => svg.checkVisibility()).map(svg => [
  svg.getAttribute('aria-label') || '', svg.getBoundingClientRect().width, svg.getBoundingClientRect().height])
  .filter(([, width, height]) => !(width > 8 && height > 8)).map(([label]) => label)"""


def swept() -> Swept:
    """Many files of long names, one that was refused, and figures of a machine that others used."""
    files = [
        Candidate(
            student=student,
            width=width,
            input_px=48,
            precision=precision,
            state=DONE,
            file=f"trials/{student}-w{width:g}-48px-0123abcd/out/android/{student}.{precision}.tflite",
            metrics={task: {"accuracy": 0.5 + 0.02 * place} for task in ("pose", "gender")},
            costs={"latency_ms": 0.1 * 2**place, "size_bytes": 1e5 * 2**place, "macs": None},
        )
        for place, (student, width, precision) in enumerate(
            product(("edge_s", "lightcnn9"), (0.5, 1.0, 1.5), ("w8a8", "fp32"))
        )
    ]
    reason = "UnsupportedError: an input of 16 px is too small for five strides of two"
    files.append(Candidate(student="vgg11", width=1.0, input_px=16, precision="", state=REFUSED, reason=reason))
    tasks = dict.fromkeys(("pose", "gender"), "accuracy")
    return Swept(
        name="a_sweep_with_a_name_that_is_longer_than_a_phone_is_wide",
        summary="Students of every size",
        candidates=with_fronts(files, tasks=tasks, cost="latency_ms"),
        tasks=tasks,
        cost="latency_ms",
        teacher={"pose": {"accuracy": 0.9}},
        source=dict.fromkeys(tasks, SOURCE),
        running=["edge_s-w2-48px"],
        left=3,
        conditions="Times are medians of a toy.",
        noisy=True,
        recipe='name = "toy"',
    )


SWEEP = swept()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A page with every section, of random weights on drawn faces."""
    network = NetworkSpec(backbone="edge_s", width=0.25, input_px=32)
    outputs = tuple(output_spec(task, mean_shape=SHAPE if "5" in task else ()) for task in TASKS)
    model = model_spec(network, outputs)
    runners = [TorchRunner(build_network(network, model, seed=seed), model) for seed in (1, 2, 3)]
    pack = evaluation_pack(SOURCE, model, root=tmp_path_factory.mktemp("root"))
    names = ((TEACHER, "teacher vgg16"), (STUDENT, "student edge_s"), (FILE, "edge_s_with_a_long_name.w8a8.tflite"))
    entries = [
        Entry(role=role, name=name, open=lambda: runners[0], size_bytes=10**place)
        for place, (role, name) in zip((7, 6, 5), names, strict=True)
    ]
    scored = [evaluate(runner, pack) for runner in runners]
    rows: list[Any] = [*zip(entries, scored, strict=True)]
    rows.append((Entry(role=FILE, name="edge_s.w8a8.xml", open=lambda: runners[0]), "OpenVINO is not installed"))
    card = scorecard(rows, budget={"pose": BudgetSpec(points=0.0)})
    layers = [{"layer": "backbone_conv1_conv", "cost": 1.5}]
    blamed: Any = {"model": names[2][1], "runtime": "torch", "task": "pose", "unit": "points", "layers": layers}
    return page(
        name="a_run_with_a_name_that_is_longer_than_a_phone_is_wide",
        summary="Everything a report can show",
        cards=[replace(card, blame=[{**blamed, "faces": 80}])],
        curves={"teacher": CURVE, "student": CURVE, "qat": CURVE},
        speed=Speed(median_ms={(name, "torch"): 0.1 * 3**p for p, (_, name) in enumerate(names)}, conditions="A toy."),
        layers=[LayerError(layer=f"backbone_conv{n}_conv", kind="conv2d", sqnr_db=30.0 + n, macs=9) for n in range(9)],
        examples=Examples(faces=example_faces(scored[2], pack, count=6), model=names[2][1], source=SOURCE),
        origins=[Origin(name="qat checkpoint", facts=[("Seed", "0")], files={"weights.safetensors": "0123abcd" * 8})],
        sweep=SWEEP,
        own=[SWEEP.candidates[0].file],
        recipe='name = "toy"\n' + "# a line that is longer than a phone is wide, and longer still " * 3,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


def faults(browser: Any, path: Path, *, width: int, scheme: str) -> set[str]:
    """What is wrong with a page: "request", "console", "overflow", "flat chart", "contrast", "small text"."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found: set[str] = set()

    def asked(route: Any) -> None:
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            found.add("request")
            route.abort()

    context.route("**/*", asked)
    opened = context.new_page()
    opened.on("console", lambda message: found.add("console") if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda _: found.add("console"))
    opened.goto(path.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    if opened.evaluate(OVERFLOW):
        found.add("overflow")
    if opened.evaluate(FLAT):
        found.add("flat chart")
    if min(contrast for contrast, _ in opened.evaluate(CONTRASTS)) < 4.5:  # WCAG 2.1, 1.4.3
        found.add("contrast")
    if opened.evaluate(SMALLEST) < 11.0:
        found.add("small text")
    context.close()
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
def test_report_fits_reads_well_and_asks_for_nothing(
    browser: Any, report: Report, tmp_path: Path, size: str, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.html, encoding="utf-8")
    assert faults(browser, path, width=WIDTHS[size], scheme=scheme) == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
def test_the_page_of_a_sweep_fits_reads_well_and_asks_for_nothing(
    browser: Any, tmp_path: Path, size: str, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(sweep_page(SWEEP).html, encoding="utf-8")
    assert faults(browser, path, width=WIDTHS[size], scheme=scheme) == set()


def test_every_section_is_in_the_page_that_is_tested(report: Report) -> None:
    for section in (
        *(
            "scorecard",
            "cost",
            "sweep",
            "errors",
            "confusion",
            "calibration",
            "groups",
            "layers",
            "examples",
            "training",
        ),
        *("meaning", "provenance"),
    ):
        assert f'id="{section}"' in report.html
        assert f'href="#{section}"' in report.html


@pytest.mark.parametrize(
    ("injected", "fault"),
    [
        ('<img src="https://example.com/a.png" alt="">', "request"),
        ('<link rel="stylesheet" href="style.css">', "request"),
        ("<script>console.error('x')</script>", "console"),
        ("<script>console.warn('x')</script>", "console"),
        ("<script>throw new Error('x')</script>", "console"),
        ('<div style="width: 600px">wide</div>', "overflow"),
        ('<svg viewBox="0 0 1 1" style="width: 0; height: 0"></svg>', "flat chart"),
        ('<p style="color: #999999; background: #ffffff">pale</p>', "contrast"),
        ('<svg viewBox="0 0 9 9"><text style="fill: var(--line)">pale</text></svg>', "contrast"),
        ('<p style="font-size: 9px">small</p>', "small text"),
    ],
)
def test_a_page_with_a_fault_is_caught_twin(
    browser: Any, report: Report, tmp_path: Path, injected: str, fault: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.html.replace("<main>", f"<main>{injected}"), encoding="utf-8")
    assert fault in faults(browser, path, width=WIDTHS["phone"], scheme="light")


def test_dark_and_light_differ(browser: Any, report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.html, encoding="utf-8")
    colours = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        opened = context.new_page()
        opened.goto(path.as_uri())
        script = (
            "document.querySelector('svg.plot text') && getComputedStyle(document.querySelector('svg.plot text')).fill"
        )
        colours.append(opened.evaluate(script))
        context.close()
    assert colours[0] != colours[1]
