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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.config import from_plain
from edgeface.errors import BudgetError, ConfigError, MissingToolError, ModelError, UnsupportedError, UsageError
from edgeface.evaluate import Outputs, decode, evaluation_pack
from edgeface.metrics import Scores, main_metric, score, worsening
from edgeface.provenance import versions
from edgeface.specs import ModelSpec
from edgeface.tasks import TASKS
from targets import artifacts
from targets.bundle import grids_of, judge_golden, read_bundle, read_golden
from targets.devices import agent
from targets.devices.device import AGENT_RUNTIMES, Device
from targets.devices.host import Host
from targets.devices.job import Report, dequantize, run_job, subject
from targets.devices.macos import Macos
from targets.judge import Codes, Judgement, answers_of, judge, must_be_identical
from targets.protocol import Grids, TimedRunner
from targets.runners import FORMATS, open_file

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT_RUN"
FACES = 64
TIMED_RUNS = 200
WARM_UP = 10

# They compute what a package says; how long they take says nothing about Core ML.
_IMITATIONS = ("mil", "mil-fp16")


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A bundle, read and known to be what was built.

    Attributes:
        folder: Where it lies.
        manifest: Its manifest.
        golden: Golden faces and the answers it was shipped with.
        spec: Its input and outputs.
        files: The files to check.
    """

    folder: Path
    manifest: Mapping[str, Any]
    golden: Codes
    spec: ModelSpec
    files: tuple[Path, ...]

    def entry(self, file: Path) -> Mapping[str, Any]:
        entry: Mapping[str, Any] = self.manifest["files"][file.name]
        return entry

    def precision(self, file: Path) -> str:
        return str(self.entry(file)["precision"])


@dataclass(frozen=True, kw_only=True)
class Faces:
    """What is run.

    Attributes:
        images: (N, H, W, 3) RGB, the golden faces first.
        golden: How many golden faces.
        first: The first face that has labels; those before have none.
        labels: Task name to labels of the faces from `first` on.
        source: Where they come from.
    """

    images: NDArray[np.uint8]
    golden: int
    first: int
    labels: Mapping[str, NDArray[Any]]
    source: str


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """One task on the device and here.

    Attributes:
        there: Metrics of the device's answers.
        here: Metrics of the expected answers; None when nothing else was computed here.
        worse_by: How much worse the main metric is there: points, or relative percent for errors in units of their own;
            negative is better, None when it cannot be said.
    """

    there: Scores
    here: Scores | None
    worse_by: float | None

    def as_json(self) -> dict[str, object]:
        return {**self.there, "here": self.here, "worse_by": self.worse_by}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file by one runtime.

    Attributes:
        file: Its name.
        precision: Its precision.
        runtime: What ran it, or would have.
        outcome: PASS, FAIL or NOT_RUN.
        reason: Why not PASS; "" for a pass.
        own: Whether it is the runtime that the file was built with.
        identical: Whether its answers may not differ by a bit.
        reference: What `here` is: the runtime that computed what is expected, on this machine.
        here: Against the reference, all faces; None when nothing else runs it here.
        golden: Against the answers it was shipped with, golden faces.
        tasks: Task name to its scores.
        latency: median_ms, p90_ms, p99_ms, runs and load_ms of one picture; None when it was not measured.
        latency_reason: Why not; "" when it was.
    """

    file: str
    precision: str
    runtime: str
    outcome: str
    reason: str = ""
    own: bool = False
    identical: bool = False
    reference: str = ""
    here: Judgement | None = None
    golden: Judgement | None = None
    tasks: Mapping[str, TaskScores]
    latency: Mapping[str, float] | None = None
    latency_reason: str = ""

    @property
    def judgement(self) -> Judgement | None:
        """Over the most faces there are."""
        return self.here or self.golden

    @property
    def bit_identical(self) -> bool | None:
        """None when it did not answer."""
        judged = [each for each in (self.here, self.golden) if each is not None and each.outputs]
        if self.here is not None and not self.own:  # what it was shipped with comes from other kernels
            judged = [self.here]
        return all(each.bit_identical for each in judged) if judged else None

    def as_json(self) -> dict[str, object]:
        found = self.judgement
        measured = found is not None and bool(found.outputs)
        return {
            "file": self.file,
            "precision": self.precision,
            "runtime": self.runtime,
            "outcome": self.outcome,
            "reason": self.reason,
            "reference": self.reference,
            "must_be_identical": self.identical,
            "bit_identical": self.bit_identical,
            "equal": found.equal if measured and found else None,
            "max_lsb": found.max_lsb if measured and found else None,
            "sqnr_db": found.sqnr_db if measured and found else None,
            "outputs": {} if found is None else {name: vars(output) for name, output in found.outputs.items()},
            "golden": None
            if self.golden is None
            else {name: vars(output) for name, output in self.golden.outputs.items()},
            "tasks": {name: scores.as_json() for name, scores in self.tasks.items()},
            "latency": self.latency,
            "latency_reason": self.latency_reason,
        }


@dataclass(frozen=True, kw_only=True)
class Check:
    """The answer of `edgeface check`.

    Attributes:
        on: As typed after `--on`.
        bundle: The bundle as named.
        rows: One for each file and runtime.
        faces: How many were run.
        source: Where they come from.
        emulated: Whether the device imitates its processor.
        detail: What the device is.
        machine: What it says of itself; {} when it never answered.
        versions: Of what computed there.
        fault: Why the whole of what it sent is not believed; "".
        absent: Why nothing was run at all; "".
    """

    on: str
    bundle: str
    rows: tuple[Row, ...] = ()
    faces: int = 0
    source: str = ""
    emulated: bool = False
    detail: str = ""
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    fault: str = ""
    absent: str = ""

    @property
    def outcome(self) -> str:
        if self.fault or any(row.outcome == FAIL for row in self.rows):
            return FAIL
        return PASS if any(row.outcome == PASS for row in self.rows) else NOT_RUN

    @property
    def reason(self) -> str:
        """What failed; or else what was not run, a pass of others notwithstanding."""
        if self.fault or self.absent:
            return self.fault or self.absent
        failed = [row for row in self.rows if row.outcome == FAIL]
        left = failed or [row for row in self.rows if row.outcome == NOT_RUN]
        words = "" if failed else "not run: "
        return words + "; ".join(f"{row.file} on {row.runtime}: {row.reason}" for row in left) if left else ""

    @property
    def bit_identical(self) -> bool | None:
        """Of the w8a8 files by the runtime they were built with; None when none of those ran."""
        own = [row for row in self.rows if row.own and row.precision == "w8a8"]
        found = [row.bit_identical for row in own if row.outcome != NOT_RUN]
        return all(each is True for each in found) if found else None

    @property
    def main(self) -> Row | None:
        """The row that stands for the bundle: w8a8 by its own runtime where there is one."""
        ran = [row for row in self.rows if row.outcome != NOT_RUN]
        return next((row for row in ran if row.precision == "w8a8"), ran[0] if ran else None)

    def as_json(self) -> dict[str, object]:
        """The `check` object of the command line's JSON contract."""
        main = self.main
        return {
            "schema": 1,
            "on": self.on,
            "bundle": self.bundle,
            "outcome": self.outcome,
            "reason": self.reason,
            "bit_identical": self.bit_identical,
            "tasks": {} if main is None else {name: scores.as_json() for name, scores in main.tasks.items()},
            "latency": None if main is None else main.latency,
            "latency_reason": "nothing was run" if main is None else main.latency_reason,
            "faces": self.faces,
            "data": self.source,
            "device": {"detail": self.detail, **self.machine},
            "versions": dict(self.versions),
            "emulated": self.emulated,
            "files": [row.as_json() for row in self.rows],
        }


def open_bundle(folder: Path, *, precisions: Sequence[str] = ()) -> Shipped:
    """A bundle to check, its files compared with their digests.

    Args:
        folder: The bundle.
        precisions: Which files; () takes all.

    Raises:
        ModelError: It is no bundle, or damaged.
        UsageError: It has no file of such a precision.
    """
    manifest, golden = read_bundle(folder), read_golden(folder)
    entries: Mapping[str, Mapping[str, Any]] = manifest["files"]
    held = {str(entry["precision"]) for entry in entries.values()}
    for precision in precisions:
        if precision not in held:
            raise UsageError(
                f"{precision!r}",
                expected=f"some of {', '.join(sorted(map(repr, held)))}, which {folder} holds",
                where="--precision",
                do="Name one of them, or leave it out for all",
            )
    files = []
    for name, entry in entries.items():
        if not precisions or entry["precision"] in precisions:
            artifacts.check(folder / name, entry)
            files.append(folder / name)
    try:
        spec = from_plain(ModelSpec, manifest["model"], where=str(folder))
    except (ConfigError, KeyError) as error:
        raise ModelError(f"a model spec that is not valid ({error})", where=str(folder)) from error
    return Shipped(folder=folder, manifest=manifest, golden=golden, spec=spec, files=tuple(files))


def choose_faces(
    shipped: Shipped,
    *,
    source: str = "",
    n: int = FACES,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Faces:
    """The golden faces, and more.

    Args:
        shipped: The bundle.
        source: A corpus to take `n` faces of, evenly spread over it; "" draws faces until there are `n`.
        n: How many.
        root: Folder that holds the corpora.
        progress: Called with the number of faces cut and their total, when they are not in the cache.

    Raises:
        UsageError: `n` is below 1.
        DataError: The source cannot be read.
    """
    if n < 1:
        raise UsageError(f"{n} faces", expected="1 or more", where="--n")
    golden = shipped.golden["images"]
    if source:
        pack = evaluation_pack(source, shipped.spec, root=root, progress=progress)
        rows = np.unique(np.linspace(0, len(pack) - 1, min(n, len(pack))).round().astype(np.int64))
        first, images = len(golden), pack.images[rows]
        words = f"{len(golden)} golden faces and {len(rows)} of the {len(pack)} of {source}"
    else:
        pack = evaluation_pack(f"synthetic:{max(n, len(golden))}@test", shipped.spec, root=root, progress=progress)
        first = 0 if _same_drawing(pack.images[: len(golden)], golden) else len(golden)
        rows, images = np.arange(first, len(pack)), pack.images[len(golden) :]
        words = f"{len(golden)} golden faces and {len(images)} more drawn ones"
    return Faces(
        images=np.concatenate([golden, images]),
        golden=len(golden),
        first=first,
        labels={name: labels[rows] for name, labels in pack.labels.items()},
        source=words,
    )


def _same_drawing(now: NDArray[np.uint8], then: NDArray[np.uint8]) -> bool:
    """False for a bundle built when faces were drawn otherwise: what their labels were is not known."""
    # The last digit of a sum depends on how many threads share it, and so does a pixel now and then.
    return now.shape == then.shape and int(np.abs(now.astype(np.int16) - then).max()) <= 1


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


def not_run(bundle: Path, *, on: str, reason: str) -> Check:
    """The answer when there is no such device."""
    return Check(on=on, bundle=str(bundle), machine={}, versions={}, absent=reason)


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
