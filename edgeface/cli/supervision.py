"""What teaches a run's student: a teacher trained here, its forests, or one that was trained elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from distill.foreign import Answers
    from distill.stages import TrainingData
    from edgeface.checkpoint import Checkpoint
    from edgeface.cli.distill import Bars
    from edgeface.specs import Recipe


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What teaches a run's student; both None where it learns from labels alone."""

    teacher: Checkpoint | None = None
    answers: Answers | None = None


def supervision(recipe: Recipe, data: TrainingData, folder: Path, *, until: str | None, bars: Bars) -> Supervision:
    """Train, link, open or ask whatever the recipe's student learns from.

    Args:
        recipe: A resolved recipe.
        data: From distill.stages.training_data.
        folder: The run.
        until: Last stage to run, or None for all.
        bars: Told of progress.

    Raises:
        ConfigError: What teacher.frozen names cannot teach this recipe.
    """
    from distill import ranks
    from distill.forest import forest_key, grow_forests
    from distill.stages import teacher_key, train_teacher
    from edgeface.cli.console import note
    from edgeface.runs import share_stage

    if recipe.distill.soft == 0.0 and until != "teacher":
        return Supervision()

    def shared(stage: str, key: str) -> None:
        if ranks.after_leader(lambda: share_stage(folder, stage, key), others=lambda: False):
            note(f"{stage}: the same one is already there; linked from {(folder / stage).readlink()}")

    if recipe.teacher.frozen:
        guide = ranks.after_leader(lambda: _frozen(recipe, data, folder))
        note(f"teacher: {recipe.teacher.frozen} is frozen; nothing to train")
    else:
        shared("teacher", teacher_key(recipe, data))
        report = bars.stage("teacher", recipe.teacher.network.backbone)
        guide = Supervision(teacher=train_teacher(recipe, data, folder / "teacher", report=report))
    if not recipe.teacher.forest.tasks:
        return guide
    if guide.teacher is None:
        raise ConfigError(
            f"forests on {recipe.teacher.frozen}, of which only answers are known",
            expected="a teacher that the recipe trains, or a frozen checkpoint",
            where="teacher.forest",
            do="Take it out",
        )
    shared("forest", forest_key(recipe, data, guide.teacher))
    teacher = guide.teacher
    answers = ranks.after_leader(
        lambda: grow_forests(recipe, data, folder / "forest", teacher=teacher, progress=bars.packing())
    )
    return replace(guide, answers=answers if recipe.distill.classifier == "forest" else None)


def _frozen(recipe: Recipe, data: TrainingData, folder: Path) -> Supervision:
    """A teacher that was trained elsewhere: a checkpoint, stored answers, or a model file that is asked once."""
    from distill.foreign import holds_answers, load_answers
    from edgeface.checkpoint import load_checkpoint
    from edgeface.runs import is_run
    from targets.runners import FORMATS, is_bundle

    path = Path(recipe.teacher.frozen)
    if not path.exists():
        raise ConfigError(
            f"{recipe.teacher.frozen!r} is not there",
            expected="a checkpoint, a model file, or a folder of stored answers",
            where="teacher.frozen",
            do="Train it first, or correct the path; it counts from the folder the command is typed in",
        )
    if holds_answers(path):
        return Supervision(answers=load_answers(path))
    if path.suffix in FORMATS or is_bundle(path):
        return Supervision(answers=_ask_once(recipe, data, path, folder / "answers"))
    checkpoint = None if is_run(path) else load_checkpoint(path)
    if checkpoint is None or checkpoint.kind == "qat":
        raise ConfigError(
            f"{recipe.teacher.frozen!r} is {'a run' if checkpoint is None else 'a fake-quantized student'}",
            expected="a float checkpoint, such as RUN/teacher",
            where="teacher.frozen",
            do="Name that folder, or one of the built files",
        )
    link = folder / "teacher"
    if not link.exists() and not link.is_symlink():
        link.symlink_to(os.path.relpath(path.resolve(), folder.resolve()))
    return Supervision(teacher=load_checkpoint(link))


def _ask_once(recipe: Recipe, data: TrainingData, path: Path, folder: Path) -> Answers:
    """What a model file answers for the plain crop of each training face, kept in the run."""
    import numpy as np

    from distill.foreign import holds_answers, load_answers, sample_keys, save_answers
    from edgeface.cli.console import note
    from edgeface.evaluate import answer, evaluation_pack
    from edgeface.files import sha256_file, sha256_json
    from targets.runners import open_to_score

    described = recipe.teacher.described
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    key = sha256_json([*map(sha256_file, files), sha256_file(Path(described)) if described else "", data.content_hash])
    if holds_answers(folder):
        kept = load_answers(folder)
        if kept.key == key:
            return kept
    try:
        runner = open_to_score(path, described=described or None, threads=recipe.threads)
    except UnsupportedError as error:
        # A recipe has no --spec.
        do = error.do.replace("give it with --spec FILE.toml", "name it in teacher.described")
        raise UnsupportedError(error.found, expected=error.expected, where=error.where, do=do) from error
    keys: list[str] = []
    parts = []
    for source in recipe.data.train:
        note(f"teacher: asking {path} about {source} …")
        part = evaluation_pack(source, runner.spec, root=data.root)
        keys += sample_keys(part)
        parts.append(answer(runner, part, model=str(path)))
    licences, research_only = terms_of(path, licence=recipe.teacher.licence)
    return save_answers(
        folder,
        model=runner.spec,
        keys=keys,
        outputs={name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        licences=licences,
        research_only=research_only,
        extra={"key": key, "made_from": {"file": sha256_json([*map(sha256_file, files)])}},
    )


def terms_of(path: Path, *, licence: str = "") -> tuple[list[str], bool]:
    """Terms of what a model was made from, and whether what learns from it is for research only.

    Args:
        path: A checkpoint, a forest, a bundle or a model file.
        licence: Terms of a file of others; while they are not known, it counts as for research only.
    """
    from edgeface.files import read_json
    from edgeface.runs import is_run

    folder = path / "qat" if is_run(path) else path
    for place in (folder, folder.parent):
        if (place / "manifest.json").is_file():
            manifest = read_json(place / "manifest.json")
            if place == folder or folder.name in manifest.get("files", {}):
                made = manifest if "target" in manifest else manifest.get("provenance", {})
                return list(made.get("licences", ())), bool(made.get("research_only", True))
    return [f"{path.name}: {licence or 'terms not known'}"], not licence
