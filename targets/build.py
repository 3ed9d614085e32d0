"""From a checkpoint to a bundle. Nothing is kept unless every file agrees with the student it was built from."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.stages import load_network
from edgeface.checkpoint import WEIGHTS, Checkpoint, load_checkpoint
from edgeface.errors import (
    BudgetError,
    MissingToolError,
    ModelError,
    OutputError,
    ResourceError,
    UnsupportedError,
)
from edgeface.files import require_room, write_folder
from edgeface.memory import memory_error
from edgeface.precision import IOS, PRECISIONS, check, of_target
from edgeface.processes import ending_children, live_with_parent
from edgeface.runs import is_run
from edgeface.specs import ModelSpec
from quantize.graph import Graph, trace
from quantize.grid import Quantized, snap
from quantize.qat import load_qat
from targets import artifacts, bundle
from targets.parity import compare
from targets.program import check_outputs
from targets.runners import SimulatedRunner, open_file, open_model

Report = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The checkpoints a bundle is built from.

    Attributes:
        student: The float student, for every precision but w8a8.
        qat: The QAT checkpoint, for w8a8.
    """

    student: Checkpoint | None
    qat: Checkpoint | None

    @property
    def named(self) -> Checkpoint:
        """The one whose spec the bundle carries."""
        checkpoint = self.qat or self.student
        assert checkpoint is not None
        return checkpoint


def build(
    checkpoint: Path,
    *,
    target: str = "android",
    precisions: Sequence[str] | None = None,
    out: Path = Path("out"),
    ios: int = IOS,
    float_input: bool = False,
    floats: frozenset[str] = frozenset(),
    report: Report | None = None,
) -> Path:
    """Write a bundle.

    Args:
        checkpoint: A run, or a checkpoint of it.
        target: One of precision.TARGETS.
        precisions: Of the files; None takes every one of the target.
        out: The bundle becomes `out/TARGET`; an earlier bundle there is replaced when this one is whole.
        ios: Least iOS version the Core ML files run on, one of precision.IOS_VERSIONS.
        float_input: Whether the files take standardized float values in place of the uint8 picture.
        floats: Layers that the w8a8 file computes in float.
        report: Told of each step and its seconds.

    Returns:
        The bundle's folder.

    Raises:
        UnsupportedError: The target does not take a precision, or the checkpoint cannot give it.
        MissingToolError: The target's tool-kit is not installed.
        BudgetError: A file does not agree with the student it was built from.
        OutputError: `out/TARGET` holds something else, or cannot be written.
    """
    wanted = tuple(dict.fromkeys(precisions)) if precisions is not None else of_target(target, ios=ios)
    for precision in wanted or ("",):
        check(target, precision, where="build", ios=ios)
    sources = find_sources(checkpoint, wanted, target=target)
    folder = out / target
    _refuse_other_content(folder)
    spec = sources.named.model
    clock = _Clock(report)
    images = bundle.golden_faces(spec)
    graph = quantized = None
    if sources.student is not None:
        graph = trace(load_network(sources.student).eval())
        check_outputs(graph, spec)
    if sources.qat is not None:
        fake_quant = load_qat(sources.qat)
        quantized = fake_quant.quantized()
        if floats:
            quantized = snap(quantized.graph, activations=quantized.activations, floats=floats)
        check_outputs(quantized.graph, spec)
    clock.lap("read checkpoints")
    with write_folder(folder) as aside:
        # LLVM, OpenVINO and coremltools each end in their own way, one of them without a word, when a disk is full.
        room = _ROOM * (sources.named.folder / WEIGHTS).stat().st_size + _ROOM_BYTES
        require_room(aside, room, where=folder)
        require_room(Path(tempfile.gettempdir()), room, where=Path(tempfile.gettempdir()))
        files = {precision: aside / f"{spec.name}.{precision}{artifacts.SUFFIXES[target]}" for precision in wanted}
        write_target(target, files, graph, quantized, spec, ios=ios, float_input=float_input, lap=clock.lap)
        for precision, path in files.items():
            _check_file(path, precision, sources, images, quantized=quantized)
        clock.lap("check against the student")
        bundle.write_bundle(
            aside,
            target=target,
            spec=spec,
            files=files,
            checkpoints={
                stage: source
                for stage, source in (("student", sources.student), ("qat", sources.qat))
                if source is not None
            },
            images=images,
            quantized=quantized,
            float_input=float_input,
            ios=ios if target == "ios" else None,
        )
        clock.lap("bundle")
    return folder


def build_many(
    checkpoint: Path,
    wanted: Mapping[str, Sequence[str] | None],
    *,
    out: Path,
    report: Callable[[str, str, float], None] | None = None,
    **options: Any,
) -> dict[str, Path | MissingToolError]:
    """Build for several targets side by side, each in a process of its own: tool-kits take seconds to load.

    Args:
        checkpoint: As for `build`.
        wanted: Target to precisions, as for `build`.
        out: As for `build`.
        report: Told of each target's steps and their seconds, when that target is done.
        options: The rest of `build`.

    Returns:
        Target to its bundle, or to the reason why its tool-kit cannot build here.

    Raises:
        EdgefaceError: As `build`; other targets are finished first.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, Path | MissingToolError] = {}
    context = multiprocessing.get_context("spawn")
    workers = min(cores, len(wanted))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=live_with_parent) as pool, ending_children():
        # The slowest first, so that none of them starts last and alone.
        order = sorted(wanted, key=lambda target: _SLOWEST_FIRST.index(target))
        try:
            running = {
                target: pool.submit(_build_apart, checkpoint, target, wanted[target], out, options) for target in order
            }
        except (BrokenProcessPool, OSError) as error:  # the first ended while the next one was being started
            raise _ended(out) from error
        for target, job in running.items():
            try:
                found[target], laps = job.result()
            except MissingToolError as error:
                short = memory_error(error)
                if short is not None:
                    raise short from error
                found[target] = error
                continue
            except BrokenProcessPool as error:
                raise _ended(out) from error
            for step, seconds in laps if report is not None else ():
                assert report is not None
                report(target, step, seconds)
    return {target: found[target] for target in wanted}


def _ended(out: Path) -> ResourceError:
    return ResourceError(
        "a process that builds ended before its target was built",
        expected="memory enough for it: native code, and the system, end a process when there is none left",
        where=str(out),
        do="Raise the limit (ulimit -v), end other programs, or build one target at a time",
    )


_ROOM, _ROOM_BYTES = 4, 1 << 20  # a target's files beside what its tool-kit keeps meanwhile: weights, and what is small
_SLOWEST_FIRST = ("ios", "android", "openvino", "onnx")


def _build_apart(
    checkpoint: Path, target: str, precisions: Sequence[str] | None, out: Path, options: Mapping[str, Any]
) -> tuple[Path, list[tuple[str, float]]]:
    import torch

    torch.set_num_threads(1)
    laps: list[tuple[str, float]] = []
    folder = build(
        checkpoint,
        target=target,
        precisions=precisions,
        out=out,
        report=lambda step, seconds: laps.append((step, seconds)),
        **options,
    )
    return folder, laps


def write_target(
    target: str,
    files: Mapping[str, Path],
    graph: Graph | None,
    quantized: Quantized | None,
    model: ModelSpec,
    *,
    ios: int = IOS,
    float_input: bool = False,
    lap: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a target's files, each checked for its structure, without comparing what they compute.

    Args:
        target: One of precision.TARGETS.
        files: Precision to the file to write.
        graph: The float student, for every precision but w8a8.
        quantized: For w8a8.
        model: Input and outputs.
        ios: As for `build`.
        float_input: As for `build`.
        lap: Told of each step when it is done.
    """
    match target:
        case "android":
            from targets import tflite

            tflite.write(files, graph=graph, quantized=quantized, model=model, float_input=float_input, lap=lap)
        case "openvino":
            from targets import openvino

            openvino.write(files, graph=graph, quantized=quantized, model=model, float_input=float_input, lap=lap)
        case "onnx":
            from targets import onnx

            onnx.write(files, graph=graph, quantized=quantized, model=model, float_input=float_input, lap=lap)
        case "ios":
            from targets import coreml

            coreml.write(
                files, graph=graph, quantized=quantized, model=model, float_input=float_input, ios=ios, lap=lap
            )


def find_sources(path: Path, precisions: Sequence[str], *, target: str = "android") -> Sources:
    """The checkpoints that the wanted precisions need.

    Args:
        path: A run, or a checkpoint of it.
        precisions: Wanted.
        target: What a refusal names the other precisions of.

    Raises:
        ModelError: No checkpoint there, or the float student that a QAT checkpoint was made from is gone.
        UnsupportedError: w8a8 from a checkpoint that has not been through quantization-aware training.
    """
    if is_run(path) and not (path / "qat" / "manifest.json").is_file():
        path = path / "student"
    checkpoint = load_checkpoint(path / "qat" if is_run(path) else path)
    needs_float = any(precision != "w8a8" for precision in precisions)
    if checkpoint.kind == "qat":
        student = float_student(checkpoint) if needs_float else None
        if student is not None and student.model != checkpoint.model:
            raise ModelError(
                f"a student for {_tasks(student)}, {student.model.input_px} px",
                expected=f"one for {_tasks(checkpoint)}, {checkpoint.model.input_px} px, as {checkpoint.folder} is",
                where=str(student.folder),
                do="Take both checkpoints from the same run",
            )
        return Sources(student=student, qat=checkpoint if "w8a8" in precisions else None)
    if "w8a8" in precisions:
        others = [precision for precision in PRECISIONS[target] if precision != "w8a8"]
        raise UnsupportedError(
            f"w8a8 from a float {checkpoint.kind}",
            expected="a checkpoint that has been through quantization-aware training",
            where=str(checkpoint.folder),
            do=f"Type: edgeface quantize {checkpoint.folder}; or build it with --precision {' or '.join(others)}",
        )
    return Sources(student=checkpoint, qat=None)


def _tasks(checkpoint: Checkpoint) -> str:
    return ", ".join(output.name for output in checkpoint.model.outputs)


def float_student(qat: Checkpoint) -> Checkpoint:
    """The float student that a QAT checkpoint was made from: `student/` beside it, known by its digest.

    Raises:
        ModelError: It is not there, or is another one.
    """
    digest = qat.manifest.get("made_from", {}).get("student")
    named = qat.manifest.get("student")
    places = [qat.folder / named] if isinstance(named, str) else []
    places.append(qat.folder.resolve().parent / "student")
    for place in places:
        if (place / "manifest.json").is_file():
            student = load_checkpoint(place)
            if student.sha256 == digest:
                return student
    raise ModelError(
        "the float student it was made from is not beside it",
        expected=f"a checkpoint with weights sha256 {str(digest)[:12]}…",
        where=str(places[-1]),
        do="Put it there, or build w8a8 alone with --precision w8a8",
    )


def _check_file(
    path: Path, precision: str, sources: Sources, images: NDArray[np.uint8], *, quantized: Quantized | None
) -> None:
    source = sources.qat if precision == "w8a8" else sources.student
    assert source is not None
    mixed = precision == "w8a8" and quantized is not None and quantized.floats
    reference = SimulatedRunner(quantized, source.model) if mixed and quantized else open_model(source.folder)
    model = open_file(path, spec=source.model, precision=precision)
    found = compare(reference, model, images=images)
    if not found.passed:
        worst = min(found.outputs, key=lambda name: found.outputs[name].sqnr_db)
        raise BudgetError(
            f"output {worst!r} is off by {found.outputs[worst].max_abs:.3g} ({found.outputs[worst].sqnr_db:.1f} dB)",
            expected=f"{found.rule} against {source.folder}",
            where=path.name,
            do="No bundle was written; compare the layers with edgeface parity",
        )


def _refuse_other_content(folder: Path) -> None:
    """An earlier bundle may be replaced, anything else is somebody's."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        bundle.read_bundle(folder)
    except ModelError as error:
        raise OutputError(
            "holds other files",
            expected="an absent or empty folder, or an earlier bundle",
            where=str(folder),
            do="Name another folder with --out",
        ) from error


class _Clock:
    def __init__(self, report: Callable[[str, float], None] | None) -> None:
        self._report = report
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        if self._report is not None:
            self._report(step, now - self._since)
        self._since = now
