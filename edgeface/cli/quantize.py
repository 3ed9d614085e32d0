"""`edgeface quantize`: quantization-aware training alone, on a float student that is already trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.cli.result import Result

if TYPE_CHECKING:
    from distill.foreign import Answers
    from distill.stages import TrainingData
    from edgeface.checkpoint import Checkpoint
    from edgeface.specs import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        metavar="CHECKPOINT",
        help="a float student or its run; default: the newest run",
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=V", help="change a key of its recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the int8 student goes; default: qat/ beside it")


def run(arguments: argparse.Namespace) -> Result:
    from dataclasses import replace

    from distill.stages import partial_folder, resolve, training_data
    from edgeface.checkpoint import load_checkpoint
    from edgeface.cli.distill import stage_bars, stage_result
    from edgeface.config import load_recipe
    from edgeface.errors import ModelError, OutputError
    from edgeface.runs import RECIPE, hold_folder, hold_run, is_run, mark_latest, newest_run
    from quantize.stage import train_qat

    named: Path = arguments.checkpoint or newest_run()
    folder = named / "student" if is_run(named) else named
    student = load_checkpoint(folder)
    if student.kind != "student":
        raise ModelError(
            f"a checkpoint of kind {student.kind!r}",
            expected="a float student",
            where=str(folder),
            do="Name the student/ folder of a run",
        )
    out: Path = arguments.out or folder.parent / "qat"
    if out.exists() and not partial_folder(out).exists():
        raise OutputError(
            "already there", expected="an absent folder", where=str(out), do="Name another folder with --out"
        )
    recipe = resolve(load_recipe(str(folder / RECIPE), overrides=arguments.set))
    # The student's own network decides, whatever --set says of it.
    recipe = replace(recipe, student=replace(recipe.student, network=student.network))
    own = is_run(folder.parent) and out == folder.parent / "qat"
    with hold_run(folder.parent) if own else hold_folder(out), stage_bars() as bars:
        data = training_data(recipe, progress=bars.packing())
        _require_same_faces(folder, recipe, data)
        qat = train_qat(
            recipe,
            data,
            out,
            student=student,
            teacher=_teacher(student),
            answers=_answers(student),
            report=bars.stage("qat", student.network.backbone),
        )
    if own:
        mark_latest(folder.parent)
    return stage_result(recipe, data, {"student": student, "qat": qat}, run=str(out), build=out)


def _require_same_faces(folder: Path, recipe: Recipe, data: TrainingData) -> None:
    """Make sure that the faces of a student's run are those it began with, as far as --set names no others.

    Args:
        folder: Of the student.
        recipe: Its own, with what --set changed.
        data: What it says.

    Raises:
        DataError: They have changed.
    """
    from edgeface.config import load_recipe
    from edgeface.runs import RECIPE, require_same_faces

    began = load_recipe(str(folder / RECIPE)).data
    alike = (recipe.data.pack_px, recipe.data.margin) == (began.pack_px, began.margin)  # else they are cut otherwise
    judged = data.validation_faces(recipe.student.network.input_px)
    require_same_faces(
        folder.parent,
        faces={source: digest for source, digest in data.faces.items() if alike and source in began.train},
        validation={source: digest for source, digest in judged.items() if source in began.val},
    )


def _teacher(student: Checkpoint) -> Checkpoint | None:
    """The teacher that the student was distilled from; None for one that learned from labels alone.

    Raises:
        ModelError: It had a teacher, and that one is not beside it any more.
    """
    from edgeface.checkpoint import load_checkpoint
    from edgeface.errors import ModelError

    digest = student.manifest["made_from"].get("teacher")
    if digest is None:
        return None
    place = student.folder.resolve().parent / "teacher"
    teacher = load_checkpoint(place)
    if teacher.sha256 != digest:
        raise ModelError(
            "another teacher than the student was distilled from",
            expected=f"weights with sha256 {digest[:12]}…",
            where=str(place),
            do="Put the student's own teacher there",
        )
    return teacher


def _answers(student: Checkpoint) -> Answers | None:
    """The stored answers that the student learned from; None for one that did not.

    Raises:
        ModelError: It learned from some, and they are not beside it any more.
    """
    from distill.foreign import find_answers
    from edgeface.errors import ModelError

    digest = student.manifest["made_from"].get("answers")
    if digest is None:
        return None
    run = student.folder.resolve().parent
    found = find_answers(run)
    if found is None or found.sha256 != digest:
        raise ModelError(
            "no stored answers" if found is None else "other stored answers than the student learned from",
            expected=f"those with sha256 {digest[:12]}…",
            where=str(run),
            do="Put the student's own forest/ or answers/ there",
        )
    return found
