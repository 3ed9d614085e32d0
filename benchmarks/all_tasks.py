"""One network for all tasks: what distillation and eight bits do to each task, and how evenly groups are served.

    EDGEFACE_DATA=FOLDER python -m benchmarks.all_tasks [--runs DIR] [--recipe NAME] [--seeds N…] [--commands]

Reads finished runs, trains nothing: `RUNS/NAME` holds the teacher and the first seed's student and QAT,
`RUNS/NAME-SEED` those of the other seeds under that teacher, `RUNS/NAME-alone` and `RUNS/NAME-alone-SEED` the students
from labels alone. A run that is not there is NOT_RUN, with the command that makes it; `--commands` prints those that
are left, in an order in which they can be typed, and each goes on where it was stopped. The w8a8 file is built from
each QAT checkpoint and run in LiteRT. Writes benchmarks/results/all_tasks.json and .md, which hold figures only: no
pictures and no answers to single faces.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import _keys, essence
from edgeface.config import load_recipe
from edgeface.errors import ConfigError, DataError, EdgefaceError
from edgeface.files import sha256_json, write_json
from edgeface.metrics import bootstrap, lower_is_better, percentiles, score, worsening
from edgeface.provenance import commit, cpu, versions
from edgeface.report.table import scaled, title
from edgeface.tasks import TASKS

if TYPE_CHECKING:
    from edgeface.data.pack import Pack
    from edgeface.evaluate import Evaluation, Runner
    from edgeface.specs import Recipe

RESULT = Path(__file__).parent / "results" / "all_tasks.json"
RECIPE = "all-tasks-cpu"
SEEDS = (0, 1, 2)
ROWS = ("teacher", "alone", "student", "w8a8")
HEADS = {"teacher": "teacher", "alone": "student, labels alone", "student": "student, distilled", "w8a8": "w8a8 file"}
POINTS, PERCENT = 0.5, 2.0  # how much worse a w8a8 file may be than its fp32 student: of shares, of errors
BETTER = 6  # tasks of the eight at which distillation is to be the better one
SHUFFLES = 200
_FREE = ("seed", "threads", "teacher.frozen", "data.root", "data.test")
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that is reported of every model.

    Attributes:
        task: Of edgeface.tasks.
        source: The faces it is measured on.
        metric: Key of metrics.score.
        main: Whether it stands for its task in the verdicts; one figure of each task does.
        group: Column and value of the only faces it is measured on; empty for all.
        answered_by: Task of the model whose answers are read, where it is another with fewer classes of the same order.
    """

    task: str
    source: str
    metric: str
    main: bool = False
    group: tuple[str, str] = ("", "")
    answered_by: str = ""


# What each corpus's protocol reports. London is held out whole: its raters and its faces were never trained on.
FIGURES = (
    Figure(task="landmarks5", source="mtfl@test", metric="nme_percent", main=True),
    Figure(task="landmarks5", source="mtfl@test", metric="failure_percent"),
    Figure(task="pose", source="mtfl@test", metric="accuracy", main=True),
    Figure(task="gender", source="fairface@val", metric="accuracy", main=True),
    Figure(task="gender", source="mtfl@test", metric="accuracy"),
    Figure(task="smile", source="mtfl@test", metric="accuracy", main=True),
    Figure(task="glasses", source="mtfl@test", metric="accuracy", main=True),
    Figure(task="expression", source="ferplus@val", metric="accuracy", main=True),
    Figure(task="expression", source="ferplus@val", metric="macro_f1"),
    Figure(task="expression8", source="ferplus@val", metric="accuracy", answered_by="expression"),
    Figure(task="age", source="fairface@val", metric="bin_accuracy", main=True),
    Figure(task="age", source="fairface@val", metric="bin_accuracy_1_off"),
    Figure(task="beauty_score", source="mebeauty@val", metric="pearson", main=True),
    Figure(task="beauty_score", source="mebeauty@val", metric="mae"),
    Figure(task="beauty_score", source="mebeauty@val", metric="rmse"),
    Figure(task="beauty_score", source="london@test", metric="pearson", group=("set", "neutral_front")),
    Figure(task="beauty_score", source="london@test", metric="pearson", group=("set", "3dsk")),
    Figure(task="landmarks5", source="london@test", metric="nme_percent"),
    Figure(task="age", source="london@test", metric="mae_years"),
)


@dataclass(frozen=True, kw_only=True)
class Division:
    """One way to divide the faces of a source.

    Attributes:
        source: The faces.
        task: What is scored in each group.
        metric: By what.
        by: As edgeface.groups names it.
    """

    source: str
    task: str
    metric: str
    by: str


DIVISIONS = (
    Division(source="fairface@val", task="gender", metric="accuracy", by="gender × race"),
    Division(source="fairface@val", task="age", metric="bin_accuracy", by="gender × race"),
    Division(source="fairface@val", task="gender", metric="accuracy", by="race"),
    Division(source="mebeauty@val", task="beauty_score", metric="mae", by="ethnicity"),
    Division(source="mebeauty@val", task="beauty_score", metric="pearson", by="ethnicity"),
    Division(source="mebeauty@val", task="gender", metric="accuracy", by="ethnicity"),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model should be.

    Attributes:
        row: One of ROWS.
        seed: Of its recipe.
        folder: The checkpoint; a w8a8 file is built from it.
        command: What makes it.
        recipe: The packaged recipe it is to be trained by.
    """

    row: str
    seed: int
    folder: Path
    command: str
    recipe: str = RECIPE


def places(recipe: str, runs: Path, *, seeds: Sequence[int] = SEEDS) -> list[Place]:
    """Every model of the table; the first seed's run trains the teacher of all."""
    first = runs / recipe
    words = _command(recipe, seeds[0], first)
    found = [Place(row="teacher", seed=seeds[0], folder=first / "teacher", command=words, recipe=recipe)]
    for seed in seeds:
        alone = runs / f"{recipe}-alone"
        alone = alone if seed == seeds[0] else alone.with_name(f"{alone.name}-{seed}")
        run = first if seed == seeds[0] else first.with_name(f"{recipe}-{seed}")
        taught = "" if seed == seeds[0] else f" --set teacher.frozen={first}/teacher"
        words = _command(recipe, seed, run, more=taught)
        found += [
            Place(
                row="alone",
                seed=seed,
                folder=alone / "student",
                command=_command(f"{recipe}-alone", seed, alone, more=" --until student"),
                recipe=f"{recipe}-alone",
            ),
            Place(row="student", seed=seed, folder=run / "student", command=words, recipe=recipe),
            Place(row="w8a8", seed=seed, folder=run / "qat", command=words, recipe=recipe),
        ]
    return sorted(found, key=lambda place: (ROWS.index(place.row), place.seed))


def _command(recipe: str, seed: int, run: Path, *, more: str = "") -> str:
    seeded = f" --set seed={seed}" if seed else ""
    return f"edgeface distill {recipe}{seeded}{more} --out {run} --resume"


def commands(found: Sequence[Place]) -> list[str]:
    """What is left to be typed, each command once; the one that trains the teacher of all is the first."""
    return list(dict.fromkeys(place.command for place in found if not _is_there(place)))


def _is_there(place: Place) -> bool:
    return (place.folder / "manifest.json").is_file()


def measure(
    found: Sequence[Place],
    *,
    root: Path,
    figures: Sequence[Figure] = FIGURES,
    divisions: Sequence[Division] = DIVISIONS,
) -> dict[str, Any]:
    """Scores of all models that are there, and the groups' of the teacher and the w8a8 files.

    Args:
        found: Where they should be.
        root: Folder that holds the corpora.
        figures: What is measured of each.
        divisions: By what the teacher and the w8a8 files are looked at group by group.

    Raises:
        ConfigError: The students were not trained alike, distillation aside.
    """
    there = [place for place in found if _is_there(place)]
    _refuse_other_trainings(there)
    faces = _Faces(root)
    rows: list[dict[str, Any]] = []
    answers: dict[tuple[str, int], dict[str, Evaluation]] = {}
    for place in found:
        row: dict[str, Any] = {"row": place.row, "seed": place.seed}
        rows.append(row)
        if place not in there:
            row |= {"outcome": "NOT_RUN", "reason": f"no {place.folder}: {place.command}"}
            continue
        with tempfile.TemporaryDirectory() as aside:
            runner, size_bytes = _opened(place, Path(aside))
            row |= {"outcome": "MEASURED", "reason": "", "size_bytes": size_bytes, **_training(place)}
            own = answers[place.row, place.seed] = {}
            row["figures"] = [_figure(figure, runner, own, faces, recipe=_recipe_of(place)) for figure in figures]
            for division in divisions:
                _answer(division.source, runner, own, faces)
    return {
        "figures": [asdict(figure) for figure in figures],
        "rows": rows,
        "verdicts": [
            {**told, **_intervals(figure, answers)}
            for told, figure in zip(verdicts(figures, rows), [each for each in figures if each.main], strict=True)
        ],
        "subgroups": [_divided(division, answers) for division in divisions],
    }


class _Faces:
    """Evaluation crops of sources, and the pictures that a recipe was trained on, each opened once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._packs: dict[tuple[str, int], Pack] = {}
        self._digests: dict[tuple[str, int], list[bytes]] = {}

    def pack(self, source: str, runner: Runner) -> Pack:
        """Raises DataError when the source is not here."""
        from edgeface.evaluate import evaluation_pack

        place = (source, runner.spec.input_px)
        if place not in self._packs:
            self._packs[place] = evaluation_pack(source, runner.spec, root=self.root)
        return self._packs[place]

    def fresh(self, source: str, runner: Runner, recipe: Recipe) -> NDArray[np.bool_]:
        """(N,) False where the picture also stands in a training source.

        Crops of one corpus have the same geometry in every split, so equal pictures give equal crops.
        """
        corpus = source.partition("@")[0]
        trained: set[bytes] = set()
        for other in recipe.data.train:
            if other.partition("@")[0] == corpus:
                trained.update(self._pictures(other, runner))
        return np.asarray([digest not in trained for digest in self._pictures(source, runner)])

    def _pictures(self, source: str, runner: Runner) -> list[bytes]:
        """Digest of each evaluation crop."""
        place = (source, runner.spec.input_px)
        if place not in self._digests:
            images = np.asarray(self.pack(source, runner).images)
            self._digests[place] = [hashlib.sha256(crop.tobytes()).digest() for crop in images]
        return self._digests[place]


def _answer(source: str, runner: Runner, own: dict[str, Evaluation], faces: _Faces) -> str:
    """Evaluates a model on a source once; why it could not be, or ""."""
    from edgeface.evaluate import evaluate

    if source not in own:
        try:
            own[source] = evaluate(runner, faces.pack(source, runner), batch=256)
        except DataError as error:
            return str(error)
    return ""


def _figure(
    figure: Figure, runner: Runner, own: dict[str, Evaluation], faces: _Faces, *, recipe: Recipe
) -> dict[str, Any]:
    """Outcome, value, number of faces, and the value without faces whose picture was trained on."""
    if why := _answer(figure.source, runner, own, faces):
        return {"outcome": "NOT_RUN", "reason": why}
    found = own[figure.source]
    column, name = figure.group
    chosen = np.ones(found.samples, bool) if not column else found.groups[column] == name
    fresh = chosen & faces.fresh(figure.source, runner, recipe)
    labels = faces.pack(figure.source, runner).labels[figure.task]
    value, n = _value(figure, found, labels, chosen)
    if value is None:
        return {"outcome": "NOT_RUN", "reason": f"{figure.source} gives no {figure.metric} of {figure.task}"}
    without, unseen = _value(figure, found, labels, fresh)
    return {
        "outcome": "MEASURED",
        "value": value,
        "n": n,
        "unseen": without if unseen < n else value,
        "n_unseen": unseen,
    }


def _value(
    figure: Figure, found: Evaluation, labels: NDArray[Any], rows: NDArray[np.bool_]
) -> tuple[float | None, int]:
    """A figure over some faces, None where it has none; and how many of them are labelled."""
    answers = found.predictions[figure.answered_by or figure.task]
    scores = score(TASKS[figure.task], answers[rows], labels[rows])
    value = scores.get(figure.metric)
    return None if value is None else float(value), int(scores["n"])


def _opened(place: Place, aside: Path) -> tuple[Runner, int]:
    """The model of a row, and its file's size; a w8a8 file is built."""
    from targets.build import build
    from targets.runners import open_model

    if place.row != "w8a8":
        return open_model(place.folder), (place.folder / "weights.safetensors").stat().st_size
    bundle = build(place.folder, target="android", precisions=["w8a8"], out=aside)
    (file,) = bundle.glob("*.w8a8.tflite")
    return open_model(bundle, precision="w8a8"), file.stat().st_size


def _recipe_of(place: Place) -> Recipe:
    return load_recipe(str(place.folder / "recipe.toml"))


def _training(place: Place) -> dict[str, Any]:
    from edgeface.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(place.folder)
    made = checkpoint.manifest["training"]
    return {
        "steps": made["steps"],
        "train_s": made["seconds"],
        "resumed_at": made.get("resumed_at"),  # None of checkpoints from before it was recorded
        "sha256": checkpoint.sha256,
        "licences": checkpoint.manifest["provenance"]["licences"],
        "departs": _departures(place),
    }


def _departures(place: Place) -> list[str]:
    """Keys by which a model was trained otherwise than its recipe says, but for those that change no comparison."""
    free = (*_FREE, *(() if place.row == "w8a8" else ("qat",)))  # int8 training comes after all other rows
    told, asked = (_keys(essence(recipe)) for recipe in (_recipe_of(place), load_recipe(place.recipe)))
    other = (key for key in told.keys() | asked.keys() if told.get(key) != asked.get(key))
    return sorted(
        key
        for key in other
        if not any(key == each or key.startswith(f"{each}.") for each in free) and not key.endswith(".checkpoint_s")
    )


def _refuse_other_trainings(there: Sequence[Place]) -> None:
    """Students that are compared saw the same faces, for as long, in the same network."""
    kept: dict[str, Place] = {}
    for place in there:
        if place.row not in ("alone", "student"):
            continue
        plain = essence(_recipe_of(place))
        alike = {key: plain.get(key) for key in ("data", "tasks", "augment", "loss", "heads", "student")}
        kept.setdefault(sha256_json(alike), place)
    if len(kept) > 1:
        one, other, *_ = kept.values()
        raise ConfigError(
            f"{one.folder} and {other.folder} differ in more than distillation and seed",
            expected="students of the same data, tasks, losses and network",
            where="benchmarks.all_tasks",
            do="Train both from this version of the recipes",
        )


def verdicts(figures: Sequence[Figure], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each task's main figure: what distillation gains, and what eight bits cost, seed by seed.

    Returns:
        `gains` are points (of errors in other units percent) by which the distilled student is the better one of the
        same seed; `distilled_better` holds when their mean is above 0. `costs` are the w8a8 file's against its fp32
        student, in points of shares and correlations and in percent of errors; `within` holds when their mean is at
        most POINTS or PERCENT. Both are None while no seed has both models.
    """
    found = []
    for place, figure in enumerate(figures):
        if not figure.main:
            continue
        gains = [worsening(figure.metric, alone, taught) for alone, taught in _pairs(rows, place, "alone", "student")]
        error = lower_is_better(figure.metric)
        pairs = _pairs(rows, place, "w8a8", "student")
        costs = [
            100.0 * (small - large) / large if error else worsening(figure.metric, small, large)
            for small, large in pairs
        ]
        allowed = PERCENT if error else POINTS
        found.append(
            {
                "task": figure.task,
                "metric": figure.metric,
                "source": figure.source,
                "gains": gains,
                "distilled_better": statistics.mean(gains) > 0.0 if gains else None,
                "costs": costs,
                "allowed": allowed,
                "within": statistics.mean(costs) <= allowed if costs else None,
            }
        )
    return found


def _intervals(figure: Figure, answers: Mapping[tuple[str, int], Mapping[str, Evaluation]]) -> dict[str, Any]:
    """95 % intervals of the mean gain and the mean cost: the same faces drawn anew for all models of all seeds.

    They say what the choice of faces could have changed, not what other seeds would.
    """
    found = {}
    for key, one, other in (("gain_interval", "alone", "student"), ("cost_interval", "w8a8", "student")):
        pairs = [
            (answers[one, seed][figure.source], answers[other, seed][figure.source])
            for row, seed in answers
            if row == one and figure.source in answers[one, seed] and figure.source in answers.get((other, seed), {})
        ]
        found[key] = _interval(figure, pairs, relative=key == "cost_interval" and lower_is_better(figure.metric))
    return found


def _interval(figure: Figure, pairs: Sequence[tuple[Evaluation, Evaluation]], *, relative: bool) -> list[float] | None:
    labelled = [made for pair in pairs for made in pair if figure.metric in made.tasks.get(figure.task, {})]
    if not pairs or len(labelled) < 2 * len(pairs):
        return None
    draws = bootstrap(
        TASKS[figure.task],
        [made.predictions[figure.task] for made in labelled],
        labels=labelled[0].labels[figure.task],
        metric=figure.metric,
        resamples=RESAMPLES,
    )  # (2 × seeds, R)
    costs = [
        [
            100.0 * (value - reference) / reference if relative else worsening(figure.metric, value, reference)
            for value, reference in zip(small.tolist(), large.tolist(), strict=True)
        ]
        for small, large in zip(draws[::2], draws[1::2], strict=True)
    ]
    low, high = percentiles(np.mean(costs, axis=0))
    return [low, high] if np.isfinite([low, high]).all() else None


def _pairs(rows: Sequence[Mapping[str, Any]], figure: int, one: str, other: str) -> list[tuple[float, float]]:
    """Values of a figure of two rows, of each seed that has both."""
    values = [_values(rows, figure, name) for name in (one, other)]
    return [(values[0][seed], values[1][seed]) for seed in sorted(values[0].keys() & values[1].keys())]


def _values(rows: Sequence[Mapping[str, Any]], figure: int, row: str, *, key: str = "value") -> dict[int, float]:
    """Seed to a row's value of a figure."""
    measured = [each for each in rows if each["row"] == row and each["outcome"] == "MEASURED"]
    return {
        each["seed"]: each["figures"][figure][key]
        for each in measured
        if each["figures"][figure]["outcome"] == "MEASURED"
    }


def _divided(division: Division, answers: Mapping[tuple[str, int], Mapping[str, Evaluation]]) -> dict[str, Any]:
    """Values and gaps, with intervals, of the teacher and each w8a8 file; and the gap that chance alone would give."""
    from edgeface.report.subgroups import subgroups

    told = asdict(division)
    models = {
        place: own[division.source]
        for place, own in answers.items()
        if place[0] in ("teacher", "w8a8") and division.source in own
    }
    if not models:
        return {**told, "outcome": "NOT_RUN", "reason": f"no teacher and no w8a8 file has answered {division.source}"}
    teacher = next((made for (row, _), made in models.items() if row == "teacher"), None)
    divided = subgroups(list(models.values()), metrics={division.task: division.metric}, teacher=teacher)
    wanted = [each for each in divided if each["by"] == division.by]
    if not wanted:
        return {**told, "outcome": "NOT_RUN", "reason": "fewer than two groups are large enough"}
    rows = [
        {"row": row, "seed": seed, **gap, "by_chance": _by_chance(division, made)}
        for ((row, seed), made), gap in zip(models.items(), wanted[0]["rows"], strict=True)
    ]
    return {
        **told,
        "outcome": "MEASURED",
        "groups": wanted[0]["groups"],
        "minimum": wanted[0]["minimum"],
        "few": wanted[0]["few"],
        "left_out": wanted[0]["left_out"],
        "rows": rows,
    }


def _by_chance(division: Division, found: Evaluation) -> list[float]:
    """2.5 and 97.5 % of the gaps when the same faces are dealt at random to groups of the same sizes."""
    from edgeface.report.subgroups import MINIMUM

    task = TASKS[division.task]
    names = found.groups[division.by]
    generator = np.random.default_rng(0)
    sizes = {name: int((names == name).sum()) for name in set(names.tolist()) - {""}}
    gaps = []
    for _ in range(SHUFFLES):
        order = generator.permutation(np.flatnonzero(names != ""))
        start, values = 0, []
        for size in sizes.values():
            rows = order[start : start + size]
            start += size
            if size >= MINIMUM:
                scores = score(task, found.predictions[task.name][rows], found.labels[task.name][rows])
                values.append(float(scores.get(division.metric, np.nan)))
        gaps.append(max(values) - min(values))
    low, high = np.nanpercentile(gaps, [2.5, 97.5])
    return [float(low), float(high)]


def markdown(found: Mapping[str, Any]) -> str:
    """Everything below the page's first words."""
    parts = [_all_tasks(found), _verdicts(found), _across(found), _unseen(found), *_groups(found), _trainings(found)]
    return "\n\n".join([*filter(None, parts), _left(found)]) + "\n"


def _all_tasks(found: Mapping[str, Any]) -> str:
    lines = ["| task | faces | " + " | ".join(HEADS[row] for row in ROWS) + " |", "|---|---|" + "---|" * len(ROWS)]
    for place, figure in enumerate(found["figures"]):
        faces = [each["figures"][place].get("n") for each in found["rows"] if each["outcome"] == "MEASURED"]
        counted = next((f"{n:,}" for n in faces if n is not None), "–")
        cells = [_cell(found["rows"], place, row, figure["metric"]) for row in ROWS]
        lines.append(f"| {_name(figure)} | {counted} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(figure: Mapping[str, Any]) -> str:
    where = figure["source"] + (f", {figure['group'][1]}" if figure["group"][0] else "")
    text = f"{figure['task']}: {title(figure['metric'])} ({where})"
    return f"**{text}**" if figure["main"] else text


def _cell(rows: Sequence[Mapping[str, Any]], figure: int, row: str, metric: str, *, key: str = "value") -> str:
    values = [scaled(metric, value) for value in _values(rows, figure, row, key=key).values()]
    if not values:
        return "NOT_RUN"
    digits = 3 if metric in ("pearson", "mae", "rmse") else 2
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f} ({len(values)})"


def _verdicts(found: Mapping[str, Any]) -> str:
    lines = [
        "| task | distillation gains, each seed | mean (95 %) | better "
        "| w8a8 costs, each seed | mean (95 %) | allowed | within |",
        "|---|---|---|---|---|---|---|---|",
    ]
    words = {True: "yes", False: "**no**", None: "NOT_RUN"}
    for each in found["verdicts"]:
        gains, costs = (", ".join(f"{value:+.2f}" for value in each[key]) or "–" for key in ("gains", "costs"))
        unit = "%" if lower_is_better(each["metric"]) else "points"
        lines.append(
            f"| {each['task']} | {gains} | {_mean(each['gains'], each.get('gain_interval'))} | "
            f"{words[each['distilled_better']]} | {costs} | {_mean(each['costs'], each.get('cost_interval'))} | "
            f"{each['allowed']:g} {unit} | {words[each['within']]} |"
        )
    better = [each["distilled_better"] for each in found["verdicts"]]
    within = [each["within"] for each in found["verdicts"]]
    clear = sum((each.get("gain_interval") or [0.0])[0] > 0.0 for each in found["verdicts"])
    seeds = max((len(each["gains"]) for each in found["verdicts"]), default=0)
    lines += [
        "",
        f"Distillation is the better one at {better.count(True)} of {len(better)} tasks, {better.count(None)} not run; "
        f"at {clear} the interval lies above 0. At least {BETTER} are asked for, over {len(SEEDS)} seeds; these are "
        f"{seeds}. The w8a8 file stays within its allowance at {within.count(True)} of {len(within)}, "
        f"{within.count(None)} not run.",
    ]
    return "\n".join(lines)


def _mean(values: Sequence[float], ends: Sequence[float] | None, *, unit: str = "") -> str:
    if not values:
        return "–"
    text = f"{statistics.mean(values):+.2f}{unit}"
    return text if ends is None else f"{text} ({ends[0]:+.2f} to {ends[1]:+.2f})"


def _across(found: Mapping[str, Any]) -> str:
    """Beauty on faces and by raters of which none was trained on, in words."""
    told = []
    for place, figure in enumerate(found["figures"]):
        if (figure["task"], figure["metric"]) == ("beauty_score", "pearson"):
            where = figure["source"] + (f", {figure['group'][1]}" if figure["group"][0] else "")
            cells = {row: _cell(found["rows"], place, row, "pearson") for row in ("teacher", "w8a8")}
            told.append(f"{cells['w8a8']} on {where} (teacher {cells['teacher']})")
    return f"Beauty across corpora, correlation of the w8a8 file with the raters: {'; '.join(told)}." if told else ""


def _trainings(found: Mapping[str, Any]) -> str:
    """How long each row was trained, and where it was stopped on the way."""
    lines = ["| training | seed | steps | hours | stopped, and went on at step |", "|---|---|---|---|---|"]
    measured = [row for row in found["rows"] if row["outcome"] == "MEASURED" and "steps" in row]
    for row in measured:
        stops = row["resumed_at"]
        words = "not recorded" if stops is None else ", ".join(f"{step:,}" for step in stops) or "never"
        name = "int8 training" if row["row"] == "w8a8" else HEADS[row["row"]]
        lines.append(f"| {name} | {row['seed']} | {row['steps']:,} | {row['train_s'] / 3600:.2f} | {words} |")
    if not measured:
        return ""
    stopped = sum(bool(row["resumed_at"]) for row in measured)
    notes = [f"Stopped on the way and resumed: {stopped} of these {len(measured)} trainings."]
    others = [row for row in measured if row.get("departs")]
    if others:
        rows = ", ".join(f"{row['row']} {row['seed']}" for row in others)
        keys = sorted({key for row in others for key in row["departs"]})
        notes.append(f"**Not trained as the recipe says: {rows}** ({', '.join(f'`{key}`' for key in keys)}).")
    return "\n".join(["## Trainings", "", *lines, "", *notes])


def _unseen(found: Mapping[str, Any]) -> str:
    """The same figures without faces that were trained on, where there are such."""
    lines = []
    for place, figure in enumerate(found["figures"]):
        cells = [
            each["figures"][place]
            for each in found["rows"]
            if each["outcome"] == "MEASURED" and each["figures"][place]["outcome"] == "MEASURED"
        ]
        if cells and cells[0]["n_unseen"] < cells[0]["n"]:
            values = [_cell(found["rows"], place, row, figure["metric"], key="unseen") for row in ROWS]
            lines.append(f"| {_name(figure)} | {cells[0]['n_unseen']:,} | " + " | ".join(values) + " |")
    if all(each["outcome"] != "MEASURED" for each in found["rows"]):
        return "Whether reported pictures also stand among the training faces: NOT_RUN."
    if not lines:
        return "No reported picture also stands among the training faces."
    heads = ["| task | faces | " + " | ".join(HEADS[row] for row in ROWS) + " |", "|---|---|" + "---|" * len(ROWS)]
    why = "Copies of some reported pictures stand in the training lists, as published. Without these faces:"
    return "\n".join([why, "", *heads, *lines])


def _groups(found: Mapping[str, Any]) -> Iterator[str]:
    for each in found["subgroups"]:
        head = f"## {each['task']} by {each['by']}: {title(each['metric'])} ({each['source']})"
        if each["outcome"] != "MEASURED":
            yield f"{head}\n\nNOT_RUN: {each['reason']}"
            continue
        metric = each["metric"]

        def ends(pair: Sequence[float] | None, metric: str = metric) -> str:
            return "–" if pair is None else " to ".join(f"{scaled(metric, value):.3g}" for value in pair)

        names = [f"{row['row']} {row['seed']}" for row in each["rows"]]
        lines = ["| group | faces | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
        for place, group in enumerate(each["groups"]):
            values = [row["values"][place] for row in each["rows"]]
            cells = ["–" if value is None else f"{scaled(metric, value):.3g}" for value in values]
            lines.append(f"| {group['name']} | {group['n']} | " + " | ".join(cells) + " |")
        for name, key, interval in (
            ("gap", "gap", "gap_interval"),
            ("change from the teacher's", "gap_change_teacher", "gap_change_interval"),
        ):
            known = [None if row[key] is None else f"{scaled(metric, row[key]):.3g}" for row in each["rows"]]
            cells = [
                "–" if value is None else f"{value} ({ends(row[interval])})"
                for value, row in zip(known, each["rows"], strict=True)
            ]
            lines.append(f"| **{name}** | | " + " | ".join(cells) + " |")
        lines.append("| gap by chance | | " + " | ".join(ends(row["by_chance"]) for row in each["rows"]) + " |")
        lines += [f"| {group['name']} | {group['n']} | too few |" + " |" * (len(names) - 1) for group in each["few"]]
        small = sum(group["n"] for group in each["few"])
        unknown = each["left_out"] - small
        notes = (
            [f"Groups of fewer than {each['minimum']} faces have no figure and no part in the gap."] if small else []
        )
        notes += [f"Of {unknown} faces the group is not known."] if unknown else []
        yield "\n".join([head, "", *lines, *(["", " ".join(notes)] if notes else [])])


def summary(found: Mapping[str, Any]) -> str:
    """README's table: the figures that stand for the tasks, beauty across corpora, gains and costs of the verdicts."""
    heads = ["task", *(HEADS[row] for row in ROWS), "distillation gains (95 %)", "w8a8 costs (95 %)"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    verdict = {each["task"]: each for each in found["verdicts"]}
    for place, figure in enumerate(found["figures"]):
        across = figure["task"] == "beauty_score" and figure["metric"] == "pearson"
        if not (figure["main"] or across):
            continue
        cells = [_cell(found["rows"], place, row, figure["metric"]) for row in ROWS]
        told = ["", ""]
        if figure["main"]:
            each = verdict[figure["task"]]
            unit = " %" if lower_is_better(figure["metric"]) else ""
            told = [
                _mean(each["gains"], each.get("gain_interval")),
                _mean(each["costs"], each.get("cost_interval"), unit=unit),
            ]
        lines.append("| " + " | ".join([_name(figure).strip("*"), *cells, *told]) + " |")
    return "\n".join(lines)


def gaps(found: Mapping[str, Any]) -> str:
    """README's table of gaps between groups: teacher, w8a8 files, what chance makes of such groups."""
    heads = ["task and groups", "groups", "teacher: gap (95 %)", "w8a8 files: gap", "by chance (teacher)"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for each in found["subgroups"]:
        what = f"{each['task']} by {each['by']}: {title(each['metric'])} ({each['source']})"
        if each["outcome"] != "MEASURED":
            lines.append(f"| {what} | NOT_RUN" + " |" * (len(heads) - 1))
            continue

        def told(value: float, metric: str = each["metric"]) -> str:
            return f"{scaled(metric, value):.3g}"

        teacher = next(row for row in each["rows"] if row["row"] == "teacher")
        files = [row for row in each["rows"] if row["row"] == "w8a8"]
        low, high = teacher["gap_interval"]
        own = f"{told(teacher['gap'])} ({told(low)} to {told(high)})"
        theirs = ", ".join(told(row["gap"]) for row in files) or "NOT_RUN"
        chance = " to ".join(map(told, teacher["by_chance"]))
        lines.append(f"| {what} | {len(each['groups'])} | {own} | {theirs} | {chance} |")
    return "\n".join(lines)


def _left(found: Mapping[str, Any]) -> str:
    missing = [f"* {row['row']}, seed {row['seed']}: `{row['reason']}`" for row in found["rows"] if row["reason"]]
    return "\n".join(["## NOT_RUN", "", *missing]) if missing else "Every row has run."


def page(found: Mapping[str, Any], *, recipe: str) -> str:
    return f"""# All tasks in one network

`python -m benchmarks.all_tasks` over the runs of `{recipe}`; conditions in the JSON. Mean ± standard deviation over
the seeds (their number in brackets), one teacher for all. Bold figures stand for their task below, and these alone are
judged there. The w8a8 file runs in LiteRT. Crops of mtfl@test use three averages over its labels, as the corpus's notes
give them; what a face detector's box changes stands in detector.md. `expression8` is FER+'s own protocol: eight
emotions, of which the network does not know contempt. Scores of beauty are on 0 to 1. London was never trained on; its
two rated sets had other raters than MEBeauty and than each other. The intervals of gains and costs come of drawing
faces anew, the same for all models: what other seeds would do is in the seeds' own spread.

Gaps are the best group minus the worst, with 95 % intervals (faces drawn anew inside each group). The best of several
groups is chosen by the same faces, so a gap is never below 0 and comes out too large, the more so with few faces:
"by chance" is where 95 % of the gaps lie when the same faces are dealt to the groups at random.

{markdown(found)}"""


def main() -> int:
    from edgeface.data.sources import data_root

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="N")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument(
        "--commands", action="store_true", help="print the trainings that are left, and measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.commands:
        print("\n".join(commands(places(arguments.recipe, arguments.runs, seeds=arguments.seeds))))
        return 0
    try:
        found = measure(places(arguments.recipe, arguments.runs, seeds=arguments.seeds), root=data_root())
    except EdgefaceError as error:
        print(error)
        return 2
    conditions = {"machine": cpu(), "versions": versions(), "commit": commit()}
    write_json(arguments.out, {"schema": 1, "recipe": arguments.recipe, **found, "conditions": conditions})
    text = page(found, recipe=arguments.recipe)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
