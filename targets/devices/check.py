"""`edgeface check`: models on a device, held against the answers this machine expects of them.

What is expected of a file is what the same kernels answer here, for every face, and what it was shipped with, for the
golden faces. On this machine itself, other kernels are held against those that the file was built with; what has
neither other kernels nor golden answers is held against a second process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeface.errors import BudgetError, MissingToolError, ModelError, UnsupportedError, UsageError
from edgeface.evaluate import Outputs, decode
from edgeface.metrics import main_metric, score, worsening
from edgeface.provenance import versions
from edgeface.specs import RUNTIMES
from edgeface.tasks import TASKS
from targets.bundle import judge_golden
from targets.devices import agent, apart
from targets.devices.answer import FAIL, NOT_RUN, PASS, Check, Row, TaskScores
from targets.devices.device import AGENT_RUNTIMES, Device
from targets.devices.host import Host
from targets.devices.job import Report, run_job, subject
from targets.devices.macos import Macos
from targets.devices.shipped import CHECKPOINT, Faces, Part, Shipped
from targets.judge import Codes, judge, must_be_identical
from targets.protocol import Grids, TimedRunner
from targets.runners import FORMATS, open_file, open_model

TIMED_RUNS = 200

# They compute what a package says; how long they take says nothing about Core ML.
_IMITATIONS = ("mil", "mil-fp16")


def check(
    shipped: Shipped,
    device: Device,
    *,
    faces: Faces,
    threads: int = 1,
    runtime: str | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Check:
    """Run models on a device and judge what they answer.

    Args:
        shipped: The models.
        device: Where.
        faces: On what.
        threads: CPU threads there and here.
        runtime: What is to run them; None takes every runtime that is meant for them there.
        told: Called with lines for whoever waits.

    Raises:
        UsageError: No such runtime.
        UnsupportedError: The runtime runs none of these models anywhere.
    """
    plan = _plan(shipped, device, runtime=runtime)
    sent: list[tuple[Path, str]] = []
    answered: dict[tuple[Path, str], _Answered] = {}
    references = _References(shipped, faces, threads=threads)
    for file, kernels in plan:
        if kernels in AGENT_RUNTIMES and not isinstance(device, Macos):
            sent.append((file, kernels))
        elif isinstance(device, Host) or (isinstance(device, Macos) and kernels == "coreml"):
            answered[file, kernels] = _run_here(shipped, file, kernels, faces=faces, references=references)
        else:
            answered[file, kernels] = _Answered(absent=_why_not_there(shipped, file, kernels, device))
    report, fault = None, ""
    if sent:
        try:
            report = _run_there(shipped, device, sent, faces=faces, threads=threads, answered=answered, told=told)
        except MissingToolError as error:
            answered |= dict.fromkeys(sent, _Answered(absent=str(error)))
        except BudgetError as error:
            fault = str(error)
            answered |= dict.fromkeys(sent, _Answered(fault=fault))
    rows = tuple(
        _judge(shipped, device, file, kernels, answered[file, kernels], faces=faces, references=references)
        for file, kernels in plan
    )
    machine = report.machine if report is not None else {}
    if report is None and isinstance(device, Host | Macos):
        machine = agent.machine()
    return Check(
        on=device.name,
        bundle=str(shipped.path),
        kind=shipped.kind,
        rows=rows,
        faces=len(faces.images),
        source=faces.source,
        left_out=shipped.left_out,
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


def _plan(shipped: Shipped, device: Device, *, runtime: str | None) -> list[tuple[Path, str]]:
    """Every file with every runtime that is meant for it on a device, or with the one that was asked for."""
    if runtime is not None and runtime not in RUNTIMES:
        raise UsageError(f"{runtime!r}", expected=f"one of {', '.join(RUNTIMES)}", where="--runtime")
    found = []
    for file in shipped.files:
        every = runtimes = shipped.parts[file].runtimes
        if runtime is not None:
            found += [(file, runtime)] if runtime in every else []
            continue
        if isinstance(device, Macos):
            runtimes = tuple(kernels for kernels in every if kernels == "coreml") or every[:1]
        elif not isinstance(device, Host):
            runtimes = tuple(kernels for kernels in every if kernels in AGENT_RUNTIMES) or every[:1]
        found += [(file, kernels) for kernels in runtimes]
    if not found:
        known = dict.fromkeys(name for part in shipped.parts.values() for name in part.runtimes)
        raise UnsupportedError(
            f"runtime {runtime!r}",
            expected=f"one of {', '.join(map(repr, known))}" if len(known) > 1 else repr(next(iter(known))),
            where=str(shipped.path),
            do="Choose one that runs it, or leave --runtime out",
        )
    return found


def _why_not_there(shipped: Shipped, file: Path, runtime: str, device: Device) -> str:
    if shipped.kind == CHECKPOINT:
        return f"a checkpoint runs in torch, and not on {device.name}: build it (edgeface build), or check it --on host"
    taken = ".mlpackage" if isinstance(device, Macos) else ".tflite"
    if file.suffix != taken:
        return f"{file.suffix} files are not run on {device.name}, {taken} files are"
    runs = "coreml" if isinstance(device, Macos) else " and ".join(AGENT_RUNTIMES)
    return f"{runtime} is not run on {device.name}, {runs} are"


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
        images=shipped.feed(faces.images),
        spec=None if shipped.foreign is not None else shipped.spec,
        threads=threads,
        timed_runs=TIMED_RUNS,
        told=told,
    )
    for place, answers, each in zip(sent, report.answers, subjects, strict=True):
        answered[place] = _Answered(
            codes=answers.outputs, grids=each.grids, latency=answers.latency, fault=answers.fault
        )
    return report


def _run_here(shipped: Shipped, file: Path, runtime: str, *, faces: Faces, references: _References) -> _Answered:
    part, inputs, own_form = shipped.parts[file], shipped.feed(faces.images), shipped.foreign is not None
    try:
        if runtime == part.runtimes[0] and not part.golden:
            references.of(file, runtime)  # says in its own words what is missing
            asked = apart.ask_apart(
                part.path,
                inputs,
                runtime=runtime,
                precision=None,
                threads=references.threads,
                own_form=own_form,
                timed_runs=TIMED_RUNS,
            )
            codes, latency = asked.codes, asked.latency
        else:
            begin = time.perf_counter()
            runner = open_part(shipped, part, runtime, threads=references.threads)
            load_ms = 1e3 * (time.perf_counter() - begin)
            codes = apart.ask(runner, inputs, own_form=own_form)
            once = apart.prepare(runner, inputs, own_form=own_form)
            runs = 1 if runtime in _IMITATIONS else TIMED_RUNS
            latency = {**apart.time_once(once, runs=runs), "load_ms": load_ms}
    except (MissingToolError, UnsupportedError) as error:
        return _Answered(absent=str(error))
    except ModelError as error:
        if part.golden:  # a bundle's file is known to be whole
            raise
        return _Answered(fault=str(error))
    timed = None if runtime in _IMITATIONS else latency
    return _Answered(codes=codes, grids=part.grids, latency=timed)


def open_part(shipped: Shipped, part: Part, runtime: str, *, threads: int) -> TimedRunner:
    """A model that was read before, in one of its runtimes."""
    if shipped.kind == CHECKPOINT:
        return open_model(part.path, threads=threads)
    if shipped.foreign is None:
        return open_file(part.path, spec=shipped.spec, precision=part.precision, runtime=runtime, threads=threads)
    kind = FORMATS[part.path.suffix]
    return kind.open(part.path, spec=None, runtime=runtime, precision=part.precision, threads=threads)


class _References:
    """What this machine expects: each file's answers by a runtime, computed once, in this process."""

    def __init__(self, shipped: Shipped, faces: Faces, *, threads: int) -> None:
        self.threads = threads
        self._shipped, self._inputs = shipped, shipped.feed(faces.images)
        self._known: dict[tuple[Path, str], Codes] = {}

    def of(self, file: Path, runtime: str) -> Codes:
        if (file, runtime) not in self._known:
            runner = open_part(self._shipped, self._shipped.parts[file], runtime, threads=self.threads)
            own_form = self._shipped.foreign is not None
            self._known[file, runtime] = apart.ask(runner, self._inputs, own_form=own_form)
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
    part = shipped.parts[file]
    local = isinstance(device, Host | Macos)
    reference = part.runtimes[0] if local else runtime
    identical = must_be_identical(part.precision, runtime, reference=reference, floats=not part.exact)
    row = Row(
        file=part.name,
        precision=part.precision,
        runtime=runtime,
        outcome=NOT_RUN,
        own=runtime == part.own,
        identical=identical,
        tasks={},
    )
    if answered.absent:
        return replace(row, reason=answered.absent, latency_reason="not run")
    if answered.fault or answered.codes is None or answered.grids is None:
        return replace(row, outcome=FAIL, reason=answered.fault, latency_reason="its answers are not believed")
    here, expected = None, None
    # Where this process is all that ran it, it would be compared with itself.
    if not (local and runtime == reference and runtime not in AGENT_RUNTIMES and part.golden):
        try:
            codes = references.of(file, reference)
        except (MissingToolError, UnsupportedError) as error:
            return replace(row, reason=str(error), latency_reason="not run")
        expected = shipped.read(codes, grids=part.grids)
        here = judge(codes, answered.codes, precision=part.floor, grids=part.grids, identical=identical)
    golden = None
    if part.golden:
        first = {name: values[: faces.golden] for name, values in answered.codes.items()}
        golden = judge_golden(shipped.manifest, file.name, shipped.golden, first, runtime=runtime)
    golden_faults = golden.faults if golden is not None else ()
    faults = [*(here.faults if here is not None else ()), *(f"golden faces: {fault}" for fault in golden_faults)]
    if here is not None and here.faults:
        faults = list(here.faults)  # the golden faces are among them, and would say so again
    return replace(
        row,
        outcome=FAIL if faults else PASS,
        reason="; ".join(faults),
        reference=reference if here is not None else "",
        here=here,
        golden=golden,
        tasks=_tasks(shipped, answered.codes, answered.grids, expected, faces=faces),
        latency=answered.latency,
        latency_reason=_why_untimed(device, runtime) if answered.latency is None else "",
    )


def _why_untimed(device: Device, runtime: str) -> str:
    if device.emulated:
        return f"emulated ({device.detail}): times there mean nothing"
    return f"{runtime} is edgeface's own executor: its times say nothing about Core ML"


def _tasks(
    shipped: Shipped, codes: Codes, grids: Grids, expected: Outputs | None, *, faces: Faces
) -> dict[str, TaskScores]:
    """Metrics of the answers and of those expected; none of answers that are not whole."""
    spec, rows = shipped.spec, slice(faces.first, None)
    needed = codes if shipped.described is not None else [output.name for output in spec.outputs]
    if not faces.labels or any(name not in codes or not np.isfinite(codes[name]).all() for name in needed):
        return {}
    there = decode(spec, {name: each[rows] for name, each in shipped.read(codes, grids=grids).items()})
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
