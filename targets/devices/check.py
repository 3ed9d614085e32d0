"""`edgeface check`: a bundle's files on a device, held against the answers this machine expects of them.

What is expected of a file is what the same kernels answer here, for every face, and what it was shipped with, for the
golden faces. On this machine itself, other kernels are held against those that the file was built with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeface.errors import BudgetError, MissingToolError, UnsupportedError
from edgeface.evaluate import Outputs, decode
from edgeface.metrics import main_metric, score, worsening
from edgeface.provenance import versions
from edgeface.specs import ModelSpec
from edgeface.tasks import TASKS
from targets.bundle import grids_of, judge_golden
from targets.devices import agent
from targets.devices.answer import FAIL, NOT_RUN, PASS, Check, Row, TaskScores
from targets.devices.device import AGENT_RUNTIMES, Device
from targets.devices.host import Host
from targets.devices.job import Report, dequantize, run_job, subject
from targets.devices.macos import Macos
from targets.devices.shipped import Faces, Shipped
from targets.judge import Codes, answers_of, judge, must_be_identical
from targets.protocol import Grids, TimedRunner
from targets.runners import FORMATS, open_file

TIMED_RUNS = 200
WARM_UP = 10

# They compute what a package says; how long they take says nothing about Core ML.
_IMITATIONS = ("mil", "mil-fp16")


def check(
    shipped: Shipped,
    device: Device,
    *,
    faces: Faces,
    threads: int = 1,
    told: Callable[[str], None] = lambda _: None,
) -> Check:
    """Run a bundle on a device and judge what it answers.

    Args:
        shipped: The bundle.
        device: Where.
        faces: On what.
        threads: CPU threads there and here.
        told: Called with lines for whoever waits.
    """
    sent: list[tuple[Path, str]] = []
    answered: dict[tuple[Path, str], _Answered] = {}
    for file, runtime in _plan(shipped, device):
        if runtime in AGENT_RUNTIMES and not isinstance(device, Macos):
            sent.append((file, runtime))
        elif isinstance(device, Host) or (isinstance(device, Macos) and runtime == "coreml"):
            answered[file, runtime] = _run_here(shipped, file, runtime, faces=faces, threads=threads)
        else:
            taken = ".mlpackage" if isinstance(device, Macos) else ".tflite"
            reason = f"{file.suffix} files are not run on {device.name}, {taken} files are"
            answered[file, runtime] = _Answered(absent=reason)
    report, fault = None, ""
    if sent:
        try:
            report = _run_there(shipped, device, sent, faces=faces, threads=threads, answered=answered, told=told)
        except MissingToolError as error:
            answered |= dict.fromkeys(sent, _Answered(absent=str(error)))
        except BudgetError as error:
            fault = str(error)
            answered |= dict.fromkeys(sent, _Answered(fault=fault))
    references = _References(shipped, faces, threads=threads)
    rows = tuple(
        _judge(shipped, device, file, runtime, answered[file, runtime], faces=faces, references=references)
        for file, runtime in _plan(shipped, device)
    )
    machine = report.machine if report is not None else {}
    if report is None and isinstance(device, Host | Macos):
        machine = agent.machine()
    return Check(
        on=device.name,
        bundle=str(shipped.folder),
        rows=rows,
        faces=len(faces.images),
        source=faces.source,
        emulated=device.emulated,
        detail=device.detail,
        machine=machine,
        versions=report.versions if report is not None else versions() if machine else {},
        fault=fault,
        absent=next((answered[each].absent for each in sent), "") if report is None and not fault else "",
    )


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """What one file answered by one runtime, or why it did not."""

    codes: Codes | None = None
    grids: Grids | None = None
    latency: Mapping[str, float] | None = None
    fault: str = ""
    absent: str = ""


def _plan(shipped: Shipped, device: Device) -> list[tuple[Path, str]]:
    """Every file with every runtime that is meant for it on a device."""
    found = []
    for file in shipped.files:
        runtimes = FORMATS[file.suffix].runtimes
        if isinstance(device, Macos):
            runtimes = tuple(runtime for runtime in runtimes if runtime == "coreml") or runtimes[:1]
        elif not isinstance(device, Host):
            runtimes = AGENT_RUNTIMES if file.suffix == ".tflite" else runtimes[:1]
        found += [(file, runtime) for runtime in runtimes]
    return found


def _run_there(
    shipped: Shipped,
    device: Device,
    sent: Sequence[tuple[Path, str]],
    *,
    faces: Faces,
    threads: int,
    answered: dict[tuple[Path, str], _Answered],
    told: Callable[[str], None],
) -> Report:
    subjects = [subject(file, runtime=runtime) for file, runtime in sent]
    report = run_job(
        device,
        subjects,
        images=faces.images,
        spec=shipped.spec,
        threads=threads,
        timed_runs=TIMED_RUNS,
        told=told,
    )
    for place, answers, each in zip(sent, report.answers, subjects, strict=True):
        answered[place] = _Answered(
            codes=answers.outputs, grids=each.grids, latency=answers.latency, fault=answers.fault
        )
    return report


def _run_here(shipped: Shipped, file: Path, runtime: str, *, faces: Faces, threads: int) -> _Answered:
    begin = time.perf_counter()
    try:
        runner = _open(shipped, file, runtime, threads=threads)
        load_ms = 1e3 * (time.perf_counter() - begin)
        codes = answers_of(runner, faces.images)
    except (MissingToolError, UnsupportedError) as error:
        return _Answered(absent=str(error))
    latency = None if runtime in _IMITATIONS else {**_timed(runner), "load_ms": load_ms}
    return _Answered(codes=codes, grids=runner.grids, latency=latency)


def _open(shipped: Shipped, file: Path, runtime: str, *, threads: int) -> TimedRunner:
    return open_file(file, spec=shipped.spec, precision=shipped.precision(file), runtime=runtime, threads=threads)


def _timed(runner: TimedRunner) -> dict[str, float]:
    once = runner.prepare(0)
    for _ in range(WARM_UP):
        once()
    times = []
    for _ in range(TIMED_RUNS):
        begin = time.perf_counter()
        once()
        times.append(1e3 * (time.perf_counter() - begin))
    median, p90, p99 = (float(np.percentile(times, share)) for share in (50, 90, 99))
    return {"median_ms": median, "p90_ms": p90, "p99_ms": p99, "runs": TIMED_RUNS}


class _References:
    """What this machine expects: each file's answers by a runtime, computed once."""

    def __init__(self, shipped: Shipped, faces: Faces, *, threads: int) -> None:
        self._shipped, self._faces, self._threads = shipped, faces, threads
        self._known: dict[tuple[Path, str], tuple[Codes, Outputs]] = {}

    def of(self, file: Path, runtime: str) -> tuple[Codes, Outputs]:
        if (file, runtime) not in self._known:
            runner = _open(self._shipped, file, runtime, threads=self._threads)
            codes = answers_of(runner, self._faces.images)
            values = dequantize(codes, spec=self._shipped.spec, grids=runner.grids)
            self._known[file, runtime] = codes, values
        return self._known[file, runtime]


def _judge(
    shipped: Shipped,
    device: Device,
    file: Path,
    runtime: str,
    answered: _Answered,
    *,
    faces: Faces,
    references: _References,
) -> Row:
    entry, precision = shipped.entry(file), shipped.precision(file)
    local = isinstance(device, Host | Macos)
    reference = FORMATS[file.suffix].runtimes[0] if local else runtime
    identical = must_be_identical(precision, runtime, reference=reference, floats=bool(entry["float_layers"]))
    row = Row(
        file=file.name,
        precision=precision,
        runtime=runtime,
        outcome=NOT_RUN,
        own=runtime == entry["golden_runtime"],
        identical=identical,
        tasks={},
    )
    if answered.absent:
        return replace(row, reason=answered.absent, latency_reason="not run")
    if answered.fault or answered.codes is None or answered.grids is None:
        return replace(row, outcome=FAIL, reason=answered.fault, latency_reason="its answers are not believed")
    here, expected = None, None
    # Where this process is all that runs it, it would be compared with itself.
    if not (local and runtime == reference and runtime not in AGENT_RUNTIMES):
        codes, expected = references.of(file, reference)
        here = judge(codes, answered.codes, precision=precision, grids=grids_of(entry), identical=identical)
    first = {name: values[: faces.golden] for name, values in answered.codes.items()}
    golden = judge_golden(shipped.manifest, file.name, shipped.golden, first, runtime=runtime)
    faults = [*(here.faults if here is not None else ()), *(f"golden faces: {fault}" for fault in golden.faults)]
    if here is not None and here.faults:
        faults = list(here.faults)  # the golden faces are among them, and would say so again
    return replace(
        row,
        outcome=FAIL if faults else PASS,
        reason="; ".join(faults),
        reference=reference if here is not None else "",
        here=here,
        golden=golden,
        tasks=_tasks(shipped.spec, answered.codes, answered.grids, expected, faces=faces),
        latency=answered.latency,
        latency_reason=_why_untimed(device, runtime) if answered.latency is None else "",
    )


def _why_untimed(device: Device, runtime: str) -> str:
    if device.emulated:
        return f"emulated ({device.detail}): times there mean nothing"
    return f"{runtime} is edgeface's own executor: its times say nothing about Core ML"


def _tasks(
    spec: ModelSpec, codes: Codes, grids: Grids, expected: Outputs | None, *, faces: Faces
) -> dict[str, TaskScores]:
    """Metrics of the answers and of those expected; none of answers that are not whole."""
    rows = slice(faces.first, None)
    if any(output.name not in codes or not np.isfinite(codes[output.name]).all() for output in spec.outputs):
        return {}
    there = decode(spec, {name: each[rows] for name, each in dequantize(codes, spec=spec, grids=grids).items()})
    here = None if expected is None else decode(spec, {name: each[rows] for name, each in expected.items()})
    found = {}
    for name in there:
        if name not in faces.labels:
            continue
        task = TASKS[name]
        scores = score(task, there[name], faces.labels[name])
        if scores["n"] == 0:
            continue
        other = None if here is None else score(task, here[name], faces.labels[name])
        metric = main_metric(task, scores)
        both = other is not None and metric in scores and metric in other
        worse = worsening(metric, scores[metric], other[metric]) if both and other is not None else None
        found[name] = TaskScores(
            there=scores, here=other, worse_by=worse if worse is None or math.isfinite(worse) else None
        )
    return found
