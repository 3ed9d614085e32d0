"""`edgeface distill`: teacher → student → QAT, from one recipe."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.cli.result import Result

if TYPE_CHECKING:
    from distill.stages import TrainingData
    from distill.train import Progress
    from edgeface.checkpoint import Checkpoint
    from edgeface.evaluate import Evaluation
    from edgeface.specs import Recipe

_UNTIL = ("teacher", "student")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", default="demo", metavar="RECIPE", help="name or path; default: demo")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=V", help="change a key of the recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder; default: runs/NAME")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--until", choices=_UNTIL, metavar="STAGE", help="stop after the teacher or the student")
    parser.add_argument("--strict", action="store_true", help="stop at the first sample that cannot be read")


def run(arguments: argparse.Namespace) -> Result:
    with _among_processes() as leads:
        result = _run(arguments)
    if not leads:
        raise SystemExit(result.exit_code)  # what there is to print, the leader prints
    return result


@contextmanager
def _among_processes() -> Iterator[bool]:
    """Be one of the processes of a launcher such as torchrun; yields whether this is the one that speaks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from distill import ranks
    from edgeface.cli.console import hush

    with ranks.session():
        leads = ranks.leads()
        if not leads:
            hush()
        yield leads


def _run(arguments: argparse.Namespace) -> Result:
    from edgeface.config import load_recipe

    recipe = load_recipe(arguments.recipe, overrides=arguments.set)
    if not recipe.students:
        folder = _chosen(recipe.name, out=arguments.out, resume=arguments.resume)
        with _told_how_to_go_on(arguments, out=folder):
            return distill(recipe, folder, until=arguments.until, strict=arguments.strict)
    out: Path | None = arguments.out
    chosen = [
        (
            own,
            _chosen(
                own.name,
                out=None if out is None else out.with_name(f"{out.name}-{own.student.network.backbone}"),
                resume=arguments.resume,
            ),
        )
        for own in expand(recipe)
    ]
    with _told_how_to_go_on(arguments, out=out):
        return _together([distill(own, run, until=arguments.until, strict=arguments.strict) for own, run in chosen])


def _chosen(name: str, *, out: Path | None, resume: bool) -> Path:
    from distill import ranks
    from edgeface.runs import choose_run

    return Path(ranks.decided(lambda: str(choose_run(name, out=out, resume=resume))))


@contextmanager
def _told_how_to_go_on(arguments: argparse.Namespace, *, out: Path | None) -> Iterator[None]:
    """Have Ctrl-C, whenever it comes, answered with the command that goes on."""
    from edgeface.errors import InterruptedRun

    try:
        yield
    except (InterruptedRun, KeyboardInterrupt) as error:
        words = [*_launcher(), "edgeface", "distill", arguments.recipe]
        words += [word for change in arguments.set for word in ("--set", change)]
        words += [] if out is None else ["--out", str(out)]
        words += [] if arguments.until is None else ["--until", arguments.until]
        words += ["--strict"] if arguments.strict else []
        raise InterruptedRun(
            error.found if isinstance(error, InterruptedRun) else "stopped by the user",
            where=error.where if isinstance(error, InterruptedRun) else str(out or ""),
            do=f"To go on, type: {shlex.join([*words, '--resume'])}",
        ) from error


def _launcher() -> list[str]:
    """What stands before the command where several processes run it."""
    from distill import ranks

    if ranks.count() == 1:
        return []
    machines = ranks.count() // ranks.local_count()
    several = ["--nnodes", str(machines)] if machines > 1 else []
    return ["torchrun", *several, "--nproc_per_node", str(ranks.local_count()), "-m"]


def expand(recipe: Recipe) -> list[Recipe]:
    """A recipe that lists students as one recipe each, `NAME-BACKBONE`; one that lists none as itself."""
    from dataclasses import replace

    if not recipe.students:
        return [recipe]
    return [
        replace(
            recipe,
            name=f"{recipe.name}-{backbone}",
            students=(),
            student=replace(recipe.student, network=recipe.student.network.on(backbone)),
        )
        for backbone in recipe.students
    ]


def _together(results: Sequence[Result]) -> Result:
    from rich.console import Group

    return Result(
        payload={"schema": 1, "runs": [result.payload for result in results]},
        text=Group(*(result.text for result in results)),
        exit_code=max(result.exit_code for result in results),
    )


def distill(recipe: Recipe, folder: Path, *, until: str | None = None, strict: bool = False) -> Result:
    """Run a recipe's stages in a run folder; finished ones are not repeated.

    Of several processes (distill.ranks), which must see the same folder, the first writes, and all train.

    Args:
        recipe: As loaded; automatic values are resolved here.
        folder: The run.
        until: Last stage to run, or None for all.
        strict: Whether a sample that cannot be read is an error.
    """
    from distill import ranks
    from distill.stages import resolve, train_student, training_data
    from edgeface.cli.supervision import supervision
    from edgeface.config import dump_recipe
    from edgeface.runs import begin, hold_run, mark_latest
    from quantize.stage import train_qat

    recipe = resolve(recipe)
    ranks.require_same("the recipe", dump_recipe(recipe), where="recipe, or threads = 0 on machines that differ")
    with hold_run(folder) if ranks.leads() else nullcontext(), stage_bars() as bars:
        packed = bars.packing()
        data = ranks.in_turn(lambda: training_data(recipe, strict=strict, progress=packed))
        ranks.require_same("the training data", data.content_hash, where="data.train")
        validation = ranks.in_turn(lambda: data.validation_faces(recipe.student.network.input_px))
        ranks.after_leader(lambda: begin(folder, dump_recipe(recipe), faces=data.faces, validation=validation))
        _tell_skipped(data)
        stages: dict[str, Checkpoint] = {}
        guide = supervision(recipe, data, folder, until=until, bars=bars)
        if guide.teacher is not None:
            stages["teacher"] = guide.teacher
        if until != "teacher":
            student = stages["student"] = train_student(
                recipe,
                data,
                folder / "student",
                teacher=guide.teacher,
                answers=guide.answers,
                report=bars.stage("student", recipe.student.network.backbone),
            )
            if until is None:
                stages["qat"] = train_qat(
                    recipe,
                    data,
                    folder / "qat",
                    student=student,
                    teacher=guide.teacher,
                    answers=guide.answers,
                    report=bars.stage("qat", recipe.student.network.backbone),
                )
                ranks.after_leader(lambda: mark_latest(folder), others=lambda: None)
    if not stages:  # a frozen teacher of which only answers are kept
        following = f"edgeface distill {folder}/recipe.toml --out {folder} --resume"
        return Result(payload={"schema": 1, "run": str(folder), "stages": {}}, text=f"next: {following}")
    grown = recipe.teacher.forest.tasks and "teacher" in stages
    return ranks.after_leader(
        lambda: stage_result(
            recipe,
            data,
            stages,
            run=str(folder),
            build=folder if "qat" in stages else None,
            forest=folder / "forest" if grown else None,
        ),
        others=lambda: Result(payload={"schema": 1, "run": str(folder)}, text=""),
    )


def _tell_skipped(data: TrainingData) -> None:
    from edgeface.cli.console import note

    for part in data.train:
        for reason, keys in part.skipped.items():
            note(f"{part.source}: {len(keys)} skipped, {reason}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}")


class Bars:
    """Progress of packing and training on stderr; plain lines at each validation where no terminal watches."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def packing(self) -> Any:
        tasks: dict[str, Any] = {}

        def told(source: str, done: int, total: int) -> None:
            if source not in tasks:
                tasks[source] = self._bar.add_task(f"pack {source}", total=total, note="")
            self._bar.update(tasks[source], completed=done)

        return told

    def stage(self, name: str, backbone: str) -> Any:
        from edgeface.cli.console import note, stderr_console, watched

        task: Any = None
        watching = watched(stderr_console())
        best: dict[str, float] = {}

        def told(progress: Progress) -> None:
            nonlocal task
            if task is None:
                task = self._bar.add_task(f"{name} ({backbone})", total=progress.steps, note="")
            best.update(progress.metrics)
            line = f"loss {progress.loss:.3f}  {progress.samples_per_s:.0f} faces/s  {_metrics_text(best)}"
            self._bar.update(task, completed=progress.step, note=line)
            if progress.metrics and not watching:
                note(f"{name} ({backbone}) step {progress.step}/{progress.steps}  {line}")

        return told


@contextmanager
def stage_bars() -> Iterator[Bars]:
    from edgeface.cli.console import progress

    with progress() as bar:
        yield Bars(bar)


def _metrics_text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name.split('.')[0]} {value:.3g}" for name, value in list(metrics.items())[:4])


def stage_result(
    recipe: Recipe,
    data: TrainingData,
    stages: Mapping[str, Checkpoint],
    *,
    run: str,
    build: Path | None,
    forest: Path | None = None,
) -> Result:
    """Score stages on the validation faces and say what to type next.

    Args:
        recipe: What was run.
        data: What it was run on.
        stages: Stage name to its checkpoint.
        run: The folder, as the user should read it.
        build: What `edgeface build` would take, or None while stages are missing.
        forest: The teacher's forests, where there are some; scored beside it.
    """
    from rich.console import Group

    from edgeface.cli.console import note, table
    from edgeface.metrics import main_metric
    from edgeface.tasks import TASKS

    note("scoring on the validation faces …")
    scores = {name: _score(checkpoint.folder, data) for name, checkpoint in stages.items()}
    titles = {name: f"{name} ({checkpoint.network.backbone})" for name, checkpoint in stages.items()}
    if forest is not None:
        scores["forest"] = _score(forest, data)
        titles = {"teacher": titles["teacher"], "forest": "forest on its features", **titles}
    tables = []
    for number, source in enumerate(data.val):
        found = {name: scores[name][number].tasks for name in titles}
        first = next(iter(found.values()))
        metrics = {task: main_metric(TASKS[task], first.get(task, {})) for task in recipe.tasks}
        columns = [f"{source}, {scores[next(iter(stages))][number].samples} faces"]
        columns += [f"{task}\n{metric}" for task, metric in metrics.items()]
        rows = [
            [
                title,
                *(f"{found[name][t][m]:.4g}" if m in found[name].get(t, {}) else "-" for t, m in metrics.items()),
            ]
            for name, title in titles.items()
        ]
        tables.append(table(columns, rows))
    payload = {
        "schema": 1,
        "run": run,
        "stages": {
            name: {
                "folder": str(checkpoint.folder),
                "sha256": checkpoint.sha256,
                "training": dict(checkpoint.manifest["training"]),
                "val": _plain(scores[name]),
            }
            for name, checkpoint in stages.items()
        },
        **({} if forest is None else {"forest": {"folder": str(forest), "val": _plain(scores["forest"])}}),
    }
    following = (
        f"edgeface build {build} --target android"
        if build is not None
        else f"edgeface distill {run}/recipe.toml --out {run} --resume"
    )
    return Result(payload=payload, text=Group(*tables, f"run:  {run}", f"next: {following}"))


def _plain(evaluations: Sequence[Evaluation]) -> dict[str, object]:
    return {each.source: {task: dict(values) for task, values in each.tasks.items()} for each in evaluations}


def _score(folder: Path, data: TrainingData) -> list[Evaluation]:
    from edgeface.evaluate import evaluate
    from targets.runners import open_model

    runner = open_model(folder)
    return [evaluate(runner, part, model=folder.name) for part in data.validation(runner.spec.input_px)]
