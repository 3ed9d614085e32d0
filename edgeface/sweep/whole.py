"""A whole sweep: the teacher once, then trial after trial until none is left, then what all of them gave together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.errors import ConfigError
from edgeface.files import read_json, sha256_json, write_bytes, write_json
from edgeface.report.pareto import (
    DONE,
    Candidate,
    csv_text,
    objective,
    with_fronts,
)
from edgeface.report.swept import SWEPT, Swept
from edgeface.runs import RECIPE
from edgeface.specs import Recipe, SweepSpec
from edgeface.sweep.study import Finished, Queue, locked, open_storage, open_study
from edgeface.sweep.trials import (
    Combination,
    Setting,
    are_scores,
    candidates,
    combinations,
    is_number,
    read_result,
    run_trial,
    score_on_val,
    trial_folder,
    trial_key,
)

if TYPE_CHECKING:
    from distill.stages import TrainingData

CSV, PLOT, PAGE = "trials.csv", "pareto.png", "report.html"
_EACH = "Each file was timed when it was built, beside whatever else its machine did."
_TEACHER, _TIMES = "teacher.json", "times.json"
TIMED_RUNS = 400  # timed runs of each file when all are timed together

Told = Callable[[str], None]


def sweep(recipe: Recipe, folder: Path, *, storage: str = "", strict: bool = False, told: Told) -> Swept:
    """Run what is left of a sweep, beside any other process that does the same in this folder.

    Args:
        recipe: As loaded.
        folder: Of the sweep; made where there is none.
        storage: Of the study, see study.open_storage.
        strict: Whether a sample that cannot be read is an error.
        told: Called with a line about each trial.

    Raises:
        ConfigError: There is nothing to sweep over, or an objective cannot be measured on the validation faces.
        UsageError: The folder holds a sweep under another recipe, or the storage is none.
        InterruptedRun: Ctrl-C; the same command goes on.
    """
    every = combinations(recipe)
    tasks = _objectives(recipe)
    kept_in = open_storage(storage, folder=folder)
    setting = _prepare(recipe, folder, tasks=tasks, strict=strict, told=told)
    names = {each: trial_folder(setting, each).name for each in every}
    queue = Queue(
        study=open_study(kept_in, name=_study_name(setting, every), objectives=len(tasks) + 1),
        folder=folder,
        every=every,
        name=names.__getitem__,
        finished=lambda each: _finished(setting, each),
        sampler=setting.recipe.sweep.sampler,
        seed=setting.recipe.seed,
        limit=setting.recipe.sweep.trials,
    )
    while (claim := queue.claim()) is not None:
        done = sum(read_result(setting, each) is not None for each in every)
        told(f"trial {done + 1} of {min(len(every), queue.limit or len(every))}: {claim.combination.label}")
        try:
            run_trial(setting, claim.combination)
        except BaseException:
            queue.give_back(claim)
            raise
        end = _finished(setting, claim.combination)
        assert end is not None
        told(f"{claim.combination.label}: {end.outcome or 'done'}")
        queue.finish(claim, end)
        _write_figures(setting, _figures(setting, every, queue, _gather(setting, every), conditions=_EACH, noisy=False))
    return _together(setting, every, queue)


def _objectives(recipe: Recipe) -> tuple[str, ...]:
    """Tasks whose main metric is an objective: those that the recipe names, else all that faces alone can score."""
    from edgeface.tasks import TASKS, Kind

    scored = tuple(task for task in recipe.tasks if TASKS[task].kind is not Kind.IDENTITY)
    wanted = recipe.sweep.tasks or scored
    other = [task for task in wanted if task not in scored]
    if other or not wanted:
        raise ConfigError(
            f"{', '.join(map(repr, other)) or 'identity alone'}, which is scored on pairs",
            expected="tasks that are scored face by face",
            where="sweep.tasks",
            do="Name others",
        )
    return wanted


def _prepare(recipe: Recipe, folder: Path, *, tasks: tuple[str, ...], strict: bool, told: Told) -> Setting:
    """Read the faces and have the teacher trained, by one process alone."""
    from distill.stages import resolve, training_data
    from edgeface.cli.distill import stage_bars
    from edgeface.cli.supervision import supervision
    from edgeface.config import dump_recipe, load_recipe
    from edgeface.runs import begin

    if not recipe.data.val:
        raise ConfigError("no validation faces", expected="a source", where="data.val", do="A sweep compares on them")
    if recipe.threads == 0 and (folder / RECIPE).is_file():
        # Whoever began has settled how many threads; results depend on that.
        recipe = replace(recipe, threads=load_recipe(str(folder / RECIPE)).threads)
    recipe = resolve(recipe)
    base = replace(recipe, sweep=SweepSpec(), students=())
    waiting = lambda: told("another process is at the teacher; waiting for it")  # noqa: E731
    with stage_bars() as bars, locked(folder, "teacher", waiting=waiting):
        data = training_data(base, strict=strict, progress=bars.packing())
        val_hash = _check_val(recipe, data, tasks)
        begin(folder, dump_recipe(base), faces=data.faces)
        guide = supervision(base, data, folder, until=None, bars=bars)
    return Setting(recipe=recipe, folder=folder, data=data, guide=guide, tasks=tasks, val_hash=val_hash)


def _check_val(recipe: Recipe, data: TrainingData, tasks: Sequence[str]) -> str:
    """Digest of the validation faces, which label every objective."""
    from edgeface.metrics import known
    from edgeface.tasks import TASKS

    packs = data.validation(recipe.student.network.input_px)
    missing = [
        task
        for task in tasks
        if not any(task in pack.labels and known(TASKS[task], pack.labels[task]).any() for pack in packs)
    ]
    if missing:
        raise ConfigError(
            f"{', '.join(map(repr, missing))} labelled by none of {list(data.val)!r}",
            expected="validation faces that label every objective",
            where="sweep.tasks",
            do="Name the tasks that they label in sweep.tasks, or add a source to data.val",
        )
    return sha256_json([pack.content_hash for pack in packs])


def _study_name(setting: Setting, every: Sequence[Combination]) -> str:
    """One study per recipe, faces and table: a study's objectives and choices cannot change."""
    keys = [trial_key(setting, each) for each in every]
    digest = sha256_json([keys, setting.tasks, setting.recipe.sweep.cost])
    return f"{setting.recipe.name}-{digest[:12]}"


def _finished(setting: Setting, combination: Combination) -> Finished | None:
    result = read_result(setting, combination)
    if result is None:
        return None
    if result["state"] != DONE:
        return Finished(outcome=f"{result['state']}: {result['reason']}")
    first = candidates(setting, combination, result)[0]
    metrics = _metrics([first], setting.tasks)
    values = [objective(first, task, metrics.get(task, "")) for task in setting.tasks]
    cost = first.costs[setting.recipe.sweep.cost]
    if cost is None or any(value != value for value in values):
        lacking = [task for task, value in zip(setting.tasks, values, strict=True) if value != value]
        return Finished(outcome=f"no figure for {', '.join(lacking) or setting.recipe.sweep.cost}")
    return Finished(values=(*values, float(cost)))


def _metrics(found: Sequence[Candidate], tasks: Sequence[str]) -> dict[str, str]:
    """Task to its main metric, as the first file that has it tells."""
    from edgeface.metrics import main_metric
    from edgeface.tasks import TASKS

    metrics = {}
    for task in tasks:
        scores = next((each.metrics[task] for each in found if task in each.metrics), None)
        if scores is not None:
            metrics[task] = main_metric(TASKS[task], dict(scores))
    return metrics


def _gather(setting: Setting, every: Sequence[Combination]) -> list[Candidate]:
    results = [(each, read_result(setting, each)) for each in every]
    return [row for each, result in results if result is not None for row in candidates(setting, each, result)]


def _figures(
    setting: Setting,
    every: Sequence[Combination],
    queue: Queue,
    found: Sequence[Candidate],
    *,
    conditions: str,
    noisy: bool,
) -> Swept:
    """What the trials so far gave, with the fronts marked."""
    from edgeface.config import dump_recipe

    metrics, running = _metrics(found, setting.tasks), queue.running()
    tried = {(each.student, each.width, each.input_px) for each in found}
    return Swept(
        name=setting.recipe.name,
        summary=setting.recipe.summary,
        candidates=with_fronts(found, tasks=metrics, cost=setting.recipe.sweep.cost),
        tasks=metrics,
        cost=setting.recipe.sweep.cost,
        teacher=_teacher_scores(setting),
        source=_sources(setting),
        running=[each.label for each in running],
        left=len(every) - len(tried) - len(running),
        conditions=conditions,
        noisy=noisy,
        recipe=dump_recipe(setting.recipe),
    )


def _write_figures(setting: Setting, swept: Swept) -> None:
    write_bytes(setting.folder / CSV, csv_text(swept.candidates, tasks=swept.tasks).encode())
    write_json(setting.folder / SWEPT, swept.as_json())


def _together(setting: Setting, every: Sequence[Combination], queue: Queue) -> Swept:
    """Time all files side by side where nobody is at work any more, mark the front, write table, chart and page."""
    from edgeface.report.html import sweep_page

    folder = setting.folder
    with locked(folder, "together"):
        found, conditions, noisy = _gather(setting, every), _EACH, False
        if not queue.running() and any(each.state == DONE for each in found):
            found, conditions, noisy = _timed_together(setting, found)
        swept = _figures(setting, every, queue, found, conditions=conditions, noisy=noisy)
        _write_figures(setting, swept)
        report = sweep_page(swept)
        if report.plots:
            write_bytes(folder / PLOT, report.plots[0].png())
        else:
            (folder / PLOT).unlink(missing_ok=True)  # of an earlier table
        write_bytes(folder / PAGE, report.html.encode())
    return swept


def _timed_together(setting: Setting, found: Sequence[Candidate]) -> tuple[list[Candidate], str, bool]:
    """All files timed in turn on this machine, so that their times compare; kept while files and machine stay."""
    from edgeface.files import sha256_file
    from edgeface.provenance import cpu
    from targets.bench import bench

    done = [each for each in found if each.state == DONE]
    paths = [setting.folder / each.file for each in done]
    key = sha256_json([TIMED_RUNS, cpu(), [sha256_file(path) if path.is_file() else str(path) for path in paths]])
    place = setting.folder / _TIMES
    kept = _kept(place, key)
    if kept is None or not _are_times(kept, len(done)):
        timed = bench(
            [(str(path.parent), None, each.precision) for path, each in zip(paths, done, strict=True)], runs=TIMED_RUNS
        )
        machine: Any = timed.conditions["cpu"]
        kept = {
            "schema": 1,
            "key": key,
            "median_ms": [row.median_ms for row in timed.rows],
            "noisy": timed.noisy,
            "conditions": f"Times are medians of {timed.conditions['runs']} runs on one thread of {machine['model']}, "
            f"all files in turn, {timed.rows[0].runtime} {timed.rows[0].runtime_version}, {timed.conditions['date']}.",
        }
        write_json(place, kept)
    times = dict(zip([each.file for each in done], kept["median_ms"], strict=True))
    marked = [
        replace(each, costs={**each.costs, "latency_ms": times[each.file]}) if each.file in times else each
        for each in found
    ]
    return marked, kept["conditions"], kept["noisy"]


def _are_times(kept: Mapping[str, Any], count: int) -> bool:
    """Whether what was kept are the times of so many files."""
    times = kept.get("median_ms")
    whole = isinstance(times, list) and len(times) == count and all(map(is_number, times))
    return whole and isinstance(kept.get("conditions"), str) and isinstance(kept.get("noisy"), bool)


def _teacher_scores(setting: Setting) -> dict[str, dict[str, float]] | None:
    """The teacher on the same faces, scored once."""
    from targets.runners import open_model

    teacher = setting.guide.teacher
    if teacher is None:
        return None
    place, key = setting.folder / _TEACHER, sha256_json([teacher.sha256, setting.val_hash])
    kept = _kept(place, key)
    if kept is None or not are_scores(kept.get("tasks")):
        kept = {"schema": 1, "key": key, "tasks": score_on_val(open_model(teacher.folder), setting)}
        write_json(place, kept)
    return {task: dict(scores) for task, scores in kept["tasks"].items()}


def _sources(setting: Setting) -> dict[str, str]:
    """Objective to the validation source that it is scored on."""
    from edgeface.metrics import known
    from edgeface.tasks import TASKS

    found: dict[str, str] = {}
    packs = setting.data.validation(setting.recipe.student.network.input_px)
    for source, pack in zip(setting.data.val, packs, strict=True):
        for task in setting.tasks:
            if task in pack.labels and known(TASKS[task], pack.labels[task]).any():
                found.setdefault(task, source)
    return found


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    """What was kept under a key; None where it is absent, damaged or of another."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None
