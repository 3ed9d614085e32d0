"""One trial of a sweep: a student distilled, quantized, built, scored and timed.

What it gave stands in its result.json, written last and whole; a trial without one is begun, or goes on from its step
checkpoints.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.errors import BudgetError, ConfigError, DataError, ModelError, UnsupportedError
from edgeface.files import is_plain_name, read_json, sha256_json, write_json
from edgeface.report.pareto import DONE, FAILED, REFUSED, Candidate
from edgeface.report.swept import TRIALS
from edgeface.specs import Recipe, StudentSpec, SweepSpec

if TYPE_CHECKING:
    from distill.stages import TrainingData
    from edgeface.cli.supervision import Supervision
    from edgeface.evaluate import Runner

RESULT = "result.json"
TIMED_RUNS = 200  # timed runs of each file: seconds in all, and enough for a median
COSTS = ("latency_ms", "size_bytes", "macs")  # of a file, in its result
_FORMAT = 1  # raise it when result.json holds something else


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One point of the table that is swept: what takes the place of `student.network`."""

    student: str
    width: float
    input_px: int

    @property
    def label(self) -> str:
        """Fit for a folder's name."""
        return f"{self.student}-w{self.width:g}-{self.input_px}px"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trials of a sweep share.

    Attributes:
        recipe: Resolved, its sweep table included.
        folder: Of the sweep.
        data: What every trial is trained and validated on.
        guide: The one teacher.
        tasks: Objectives.
        val_hash: Digest of the validation faces.
    """

    recipe: Recipe
    folder: Path
    data: TrainingData
    guide: Supervision
    tasks: tuple[str, ...]
    val_hash: str


def combinations(recipe: Recipe) -> list[Combination]:
    """Every combination of a recipe's table once, the last list changing fastest.

    Raises:
        ConfigError: There is nothing to sweep over.
    """
    table, own = recipe.sweep, recipe.student.network
    if not (table.students or table.widths or table.inputs or len(table.precisions) > 1):
        raise ConfigError(
            "nothing to sweep over",
            expected="a list in [sweep]: students, widths, inputs or precisions",
            where="sweep",
            do="Write the table, or try one: --set 'sweep.widths=[0.5, 1.0]'",
        )
    widths, inputs = table.widths or (own.width,), table.inputs or (own.input_px,)
    sizes = [
        (student, float(width))
        for student, alone in table.sizes or ((own.backbone, None),)
        for width in (widths if alone is None else (alone,))
    ]
    every = (Combination(student=s, width=w, input_px=px) for (s, w), px in product(sizes, inputs))
    return list(dict.fromkeys(every))


def trial_recipe(recipe: Recipe, combination: Combination) -> Recipe:
    """The recipe of a trial, an ordinary one that `edgeface distill` could run too.

    Raises:
        ConfigError: No student can be like this.
    """
    own = recipe.student
    network = own.network.on(combination.student, width=combination.width, input_px=combination.input_px)
    train = replace(own.train, epochs=recipe.sweep.epochs) if recipe.sweep.epochs else own.train
    return replace(
        recipe,
        name=f"{recipe.name}-{combination.label}",
        student=replace(own, network=network, train=train),
        students=(),
        budget={},
        sweep=SweepSpec(),
    )


def trial_folder(setting: Setting, combination: Combination) -> Path:
    """Where a trial lies: its label, and a digest of all that its weights depend on."""
    return setting.folder / TRIALS / f"{combination.label}-{_training_key(setting, combination)[:8]}"


def trial_key(setting: Setting, combination: Combination) -> str:
    """Digest of everything that a trial's result depends on, but for the machine."""
    table = setting.recipe.sweep
    return sha256_json(
        {
            "format": _FORMAT,
            "training": _training_key(setting, combination),
            "val": setting.val_hash,
            "target": table.target,
            "precisions": list(table.precisions),
        }
    )


def _training_key(setting: Setting, combination: Combination) -> str:
    """Digest of a trial's weights, out of what the digests of its stages are made of."""
    from distill.stages import chosen, stage_key
    from edgeface.config import to_plain

    try:
        recipe = trial_recipe(setting.recipe, combination)
    except ConfigError as error:
        return sha256_json([combination.label, str(error)])
    student, qat = recipe.student, recipe.qat
    keys = [
        stage_key(stage, recipe, setting.data, network=student.network, spec=train)
        for stage, train in (("student", student.train), ("qat", qat.train))
    ]
    usual = StudentSpec()
    # What was left as it was is not in it, so that a key that recipes get later changes no digest.
    choices = {
        name: to_plain(getattr(student, name))
        for name in ("transfer", "balancer", "stopping")
        if getattr(student, name) != getattr(usual, name)
    }
    if student.stopping.mode != "none":  # then validation errors decide which tasks train on
        choices["val"] = setting.val_hash
    teacher, answers = setting.guide.teacher, setting.guide.answers
    return sha256_json(
        {
            "stages": keys,
            "distill": chosen(recipe.distill),
            "qat": {name: value for name, value in to_plain(qat).items() if name != "train"},
            "map": dict(recipe.teacher.map),
            **choices,
            "taught": ["" if teacher is None else teacher.sha256, "" if answers is None else answers.sha256],
        }
    )


def read_result(setting: Setting, combination: Combination) -> dict[str, Any] | None:
    """What a finished trial gave; None while it is not finished, or was for other precisions or faces.

    Raises:
        ModelError: As `load_result`.
    """
    return load_result(trial_folder(setting, combination) / RESULT, key=trial_key(setting, combination))


def load_result(path: Path, *, key: str) -> dict[str, Any] | None:
    """What stands in a result.json; None where there is none, or one of another key.

    Raises:
        ModelError: It cannot be read, or does not say what a result says.
    """
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} where an object is expected")
        if found.get("key") != key:
            return None
        if wrong := _wrong(found):
            raise ValueError(f"no usable {wrong!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot be read ({error})",
            expected="the result of a trial",
            where=str(path),
            do="Delete it: it is made again",
        ) from error
    return found


def _wrong(result: Mapping[str, Any]) -> str:
    """The first thing that a result does not say as a result does; "" where all is said."""
    state = result.get("state")
    if state not in (DONE, REFUSED, FAILED):
        return "state"
    if not isinstance(result.get("reason"), str):
        return "reason"
    if state != DONE:
        return ""
    files = result.get("files")
    if not is_number(result.get("seconds")):
        return "seconds"
    if not isinstance(files, list) or not files or not all(isinstance(file, dict) for file in files):
        return "files"
    for file in files:
        place, tasks = file.get("file"), file.get("tasks")
        if not isinstance(file.get("precision"), str):
            return "files.precision"
        if not isinstance(place, str) or not place or not all(map(is_plain_name, Path(place).parts)):
            return "files.file"
        if not are_scores(tasks):
            return "files.tasks"
        for name in COSTS:
            if name not in file or not (file[name] is None or is_number(file[name])):
                return f"files.{name}"
    return ""


def are_scores(value: object) -> bool:
    """Whether a value is as `score_on_val` gives it: task to metric to number."""
    return isinstance(value, dict) and all(
        isinstance(scores, dict) and all(map(is_number, scores.values())) for scores in value.values()
    )


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def run_trial(setting: Setting, combination: Combination) -> dict[str, Any]:
    """Carry a trial out, from wherever it was left, and write its result.

    Returns:
        The result: state DONE with its files; REFUSED where no network, int8 form or file can be made of this
        combination; FAILED where training or a file did not hold what it must.

    Raises:
        InterruptedRun: Ctrl-C.
        EdgefaceError: What is no fault of this combination: a full disk, a missing tool-kit.
    """
    folder = trial_folder(setting, combination)
    state, reason, done = DONE, "", {}
    try:
        recipe = trial_recipe(setting.recipe, combination)
        _check(recipe, setting)
        done = _carry_out(recipe, combination, setting, folder)
    except (ConfigError, UnsupportedError) as error:
        state, reason = REFUSED, str(error)
    except (BudgetError, DataError) as error:
        state, reason = FAILED, str(error)
    result = {
        "schema": 1,
        "key": trial_key(setting, combination),
        "student": combination.student,
        "width": combination.width,
        "input_px": combination.input_px,
        "state": state,
        "reason": reason,
        "machine": _machine(),
        **done,
    }
    write_json(folder / RESULT, result)
    return result


def _check(recipe: Recipe, setting: Setting) -> None:
    """Refuse before training what training or building would refuse after it."""
    from edgeface.models.network import build_network, model_spec
    from quantize.graph import trace
    from quantize.qat import prepare

    model = model_spec(recipe.student.network, tuple(setting.data.outputs.values()))
    network = build_network(recipe.student.network, model).eval()
    if "w8a8" in setting.recipe.sweep.precisions:
        prepare(network, recipe.qat)
    else:
        trace(network)


def _carry_out(recipe: Recipe, combination: Combination, setting: Setting, folder: Path) -> dict[str, Any]:
    from distill.stages import train_student
    from edgeface.cli.distill import stage_bars
    from edgeface.cli.supervision import supervision
    from edgeface.config import dump_recipe
    from edgeface.runs import begin
    from quantize.stage import train_qat
    from targets.build import build

    table = setting.recipe.sweep
    begin(folder, dump_recipe(recipe))
    _link_guide(setting, folder)
    with stage_bars() as bars:
        guide = supervision(recipe, setting.data, folder, until=None, bars=bars)
        checkpoint = student = train_student(
            recipe,
            setting.data,
            folder / "student",
            teacher=guide.teacher,
            answers=guide.answers,
            report=bars.stage("student", combination.label),
        )
        seconds = float(student.manifest["training"]["seconds"])
        if "w8a8" in table.precisions:
            checkpoint = train_qat(
                recipe,
                setting.data,
                folder / "qat",
                student=student,
                teacher=guide.teacher,
                answers=guide.answers,
                report=bars.stage("qat", combination.label),
            )
            seconds += float(checkpoint.manifest["training"]["seconds"])
    bundle = build(folder, target=table.target, precisions=table.precisions, out=folder / "out")
    return {"seconds": seconds, "checkpoint": checkpoint.sha256, "files": _files(setting, folder, bundle)}


def _link_guide(setting: Setting, folder: Path) -> None:
    """Put the sweep's teacher, and what else teaches, into a trial."""
    for stage in ("teacher", "forest", "answers"):
        own, link = setting.folder / stage, folder / stage
        if own.is_dir() and not link.exists() and not link.is_symlink():
            link.symlink_to(Path("..", "..", stage))


def _files(setting: Setting, folder: Path, bundle: Path) -> list[dict[str, Any]]:
    from targets.bench import bench
    from targets.runners import open_model

    precisions = setting.recipe.sweep.precisions
    manifest = read_json(bundle / "manifest.json")["files"]
    named = {entry["precision"]: name for name, entry in manifest.items()}
    timed = bench([(str(bundle), None, precision) for precision in precisions], threads=1, runs=TIMED_RUNS)
    rows = []
    for precision, row in zip(precisions, timed.rows, strict=True):
        scored = score_on_val(open_model(bundle, precision=precision), setting)
        rows.append(
            {
                "precision": precision,
                "file": str((bundle / named[precision]).relative_to(folder)),
                "sha256": manifest[named[precision]].get("sha256", ""),
                "runtime": row.runtime,
                "latency_ms": row.median_ms,
                "size_bytes": row.size_bytes,
                "macs": row.macs,
                "tasks": scored,
            }
        )
    return rows


def score_on_val(runner: Runner, setting: Setting) -> dict[str, dict[str, float]]:
    """A model's metrics on the recipe's validation faces: of each task, on the first source that labels it."""
    from edgeface.evaluate import evaluate
    from edgeface.metrics import main_metric
    from edgeface.tasks import TASKS

    found: dict[str, dict[str, float]] = {}
    for pack in setting.data.validation(runner.spec.input_px):
        for task, scores in evaluate(runner, pack).tasks.items():
            if main_metric(TASKS[task], scores) in scores:
                found.setdefault(task, {name: float(value) for name, value in scores.items()})
    return found


def candidates(setting: Setting, combination: Combination, result: Mapping[str, Any]) -> list[Candidate]:
    """The files of a finished trial, or the one row that says why there are none."""
    return rows_of(result, combination, folder=trial_folder(setting, combination).relative_to(setting.folder))


def rows_of(result: Mapping[str, Any], combination: Combination, *, folder: Path) -> list[Candidate]:
    """As `candidates`, of a trial that lies in `folder`, named from the sweep's."""
    shared: dict[str, Any] = {
        "student": combination.student,
        "width": combination.width,
        "input_px": combination.input_px,
        "state": result["state"],
        "reason": result["reason"],
    }
    if result["state"] != DONE:
        return [Candidate(**shared, precision="")]
    return [
        Candidate(
            **shared,
            precision=file["precision"],
            file=str(folder / file["file"]),
            metrics=file["tasks"],
            costs={name: file[name] for name in COSTS},
            seconds=result["seconds"],
        )
        for file in result["files"]
    ]


def _machine() -> dict[str, object]:
    from edgeface.provenance import cpu

    return {"host": platform.node(), **cpu()}
