"""From a checkpoint to a bundle. Nothing is kept unless every file agrees with the student it was built from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.stages import load_network
from edgeface.checkpoint import Checkpoint, load_checkpoint
from edgeface.config import to_plain
from edgeface.errors import BudgetError, MissingToolError, ModelError, OutputError, UnsupportedError
from edgeface.files import write_folder
from edgeface.precision import PRECISIONS, check
from edgeface.runs import is_run
from quantize.graph import trace
from quantize.qat import load_qat
from targets import bundle, tflite
from targets.litert import TfliteRunner
from targets.parity import compare
from targets.program import check_outputs
from targets.runners import open_model

BUILDABLE = ("android",)

_WRITERS = {"fp32": tflite.write_fp32, "fp16": tflite.write_fp16, "w8a32": tflite.write_w8a32}


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
    report: Callable[[str, float], None] | None = None,
) -> Path:
    """Write a bundle.

    Args:
        checkpoint: A run, or a checkpoint of it.
        target: One of precision.TARGETS.
        precisions: Of the files; None takes every one of the target.
        out: The bundle becomes `out/TARGET`; an earlier bundle there is replaced when this one is whole.
        report: Told of each step and its seconds.

    Returns:
        The bundle's folder.

    Raises:
        UnsupportedError: The target does not take a precision, or the checkpoint cannot give it.
        MissingToolError: edgeface does not build for this target yet, or its tool-kit is not installed.
        BudgetError: A file does not agree with the student it was built from.
        OutputError: `out/TARGET` holds something else, or cannot be written.
    """
    wanted = tuple(dict.fromkeys(precisions)) if precisions is not None else PRECISIONS.get(target, ())
    for precision in wanted or ("",):
        check(target, precision, where="build")
    if target not in BUILDABLE:
        raise MissingToolError(
            f"edgeface does not build for {target!r} yet",
            expected=f"one of {', '.join(map(repr, BUILDABLE))}",
            where="build --target",
            do="Build for android",
        )
    sources = find_sources(checkpoint, wanted)
    folder = out / target
    _refuse_other_content(folder)
    spec = sources.named.model
    clock = _Clock(report)
    images = bundle.golden_faces(spec)
    clock.lap("golden faces")
    with write_folder(folder) as aside:
        files = {precision: aside / f"{spec.name}.{precision}.tflite" for precision in wanted}
        floats = [precision for precision in wanted if precision != "w8a8"]
        if floats:
            assert sources.student is not None
            graph = trace(load_network(sources.student).eval())
            check_outputs(graph, spec)
            lowered = tflite.lower(graph)
            clock.lap("convert")
            for precision in floats:
                _WRITERS[precision](lowered, files[precision])
                clock.lap(f"write {precision}")
        if "w8a8" in wanted:
            assert sources.qat is not None
            quantized = load_qat(sources.qat).quantized()
            check_outputs(quantized.graph, spec)
            tflite.write_w8a8(quantized, files["w8a8"])
            clock.lap("write w8a8")
        for precision, path in files.items():
            tflite.annotate(path, {"schema": 1, "model": to_plain(spec), "precision": precision})
            _check_file(path, precision, sources, images)
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
        )
        clock.lap("bundle")
    return folder


def find_sources(path: Path, precisions: Sequence[str]) -> Sources:
    """The checkpoints that the wanted precisions need.

    Args:
        path: A run, or a checkpoint of it.
        precisions: Wanted.

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
        return Sources(student=student, qat=checkpoint if "w8a8" in precisions else None)
    if "w8a8" in precisions:
        others = [precision for precision in PRECISIONS["android"] if precision != "w8a8"]
        raise UnsupportedError(
            f"w8a8 from a float {checkpoint.kind}",
            expected="a checkpoint that has been through quantization-aware training",
            where=str(checkpoint.folder),
            do=f"Type: edgeface quantize {checkpoint.folder}; or build it with --precision {' or '.join(others)}",
        )
    return Sources(student=checkpoint, qat=None)


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


def _check_file(path: Path, precision: str, sources: Sources, images: NDArray[np.uint8]) -> None:
    source = sources.qat if precision == "w8a8" else sources.student
    assert source is not None
    reference = open_model(source.folder)
    model = TfliteRunner(path, spec=source.model, runtime="tflite-xnnpack", precision=precision, threads=1)
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
