"""The comparison tables of benchmarks/results/tables, and the queue of trainings behind them.

    EDGEFACE_DATA=FOLDER python -m benchmarks.tables [TABLE…] [--jobs N] [--dry] [--render]

A table is a file of benchmarks/tables: recipes that differ only in the keys it names, trained with several seeds. Stop
the queue at any time and type the same command again: a training that has its row is skipped, by a digest of its recipe
and its data, and one that was interrupted goes on at its last step checkpoint. `--dry` says what is left, `--render`
writes the tables from the rows that are there. A row whose recipe or data have changed since does not count, though its
figures are kept; where the faces are not here, rows count as they did where they were last here.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import multiprocessing
import re
import shutil
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeface.config import dump_recipe, from_plain, load_recipe, to_plain
from edgeface.errors import (
    ConfigError,
    DataError,
    EdgefaceError,
    InterruptedRun,
    MissingToolError,
    ModelError,
    UsageError,
)
from edgeface.files import sha256_json, write_bytes, write_json
from edgeface.metrics import confusion
from edgeface.processes import live_with_parent
from edgeface.provenance import commit, cpu, versions
from edgeface.specs import IMBALANCE_LOSSES, STAGES, Recipe
from edgeface.tasks import TASKS, Kind

if TYPE_CHECKING:
    from edgeface.data.pack import Pack
    from edgeface.evaluate import Evaluation, Outputs

DEFINITIONS = Path(__file__).with_suffix("")
RESULTS = Path(__file__).parent / "results" / "tables"
FORMAT = 1  # raise it when the same recipe and data begin to give other figures
OWN = "edgeface's"  # a relation whose source begins so is published nowhere
EXPLAINED = ("did not hold", "undecided", "REFUSED")  # verdicts beside which a relation's reason is printed
Record = dict[str, Any]

_START = re.compile(r"runs/([^/]+)/(teacher|student|qat)")
_NAMES = {
    "nme_percent": "mean error, %",
    "failure_percent": "failures, %",
    "mae_years": "mean error, years",
    "pearson": "PC×100",
    "mae": "MAE",
    "rmse": "RMSE",
}
_LOWER = ("nme_percent", "failure_percent", "mae_years", "mae", "rmse")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        recipe: Name of a packaged recipe.
        stage: What is scored, and the last stage that is trained; "" takes the table's.
        converged: As the table's, of a row whose loss has other best constant answers than its neighbours'; 0 takes it.
    """

    ALONE: ClassVar[str] = "recipe"

    recipe: str
    stage: str = ""
    converged: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Relation:
    """What a publication says of two rows.

    Attributes:
        says: In a few words.
        source: Who says so.
        better: Row that should be the better one.
        than: Row that it should be better than.
        column: One of the table's columns, or "all" for the mean relative growth of their errors.
        better_stage: Where `better` stands in the table at several stages, which of them.
        than_stage: The same of `than`.
        reason: Why it probably did not hold, or why a row of it was refused.
        within: By how much `better` may be the worse one, in the printed unit, where it is said to be as good.
    """

    says: str
    source: str
    better: str
    than: str
    column: str
    better_stage: str = ""
    than_stage: str = ""
    reason: str = ""
    within: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Table:
    """One comparison.

    Attributes:
        title: Its heading.
        about: What is compared, and what a reader must know to read it.
        columns: "TASK.METRIC", the first of the main task.
        rows: Its rows, in order.
        varies: Keys of a recipe in which rows may differ, name and summary aside: "teacher.balancer" allows all below.
        stage: What is scored.
        seeds: Of each row.
        converged: Largest share of the loss of raw answers of 0 on the main task that a row's may end at.
        apart: Whether no task is the main one: each is held to `converged`, and a row is refused at the columns of the
            tasks that do not reach it alone.
        against: Row that the others' errors are held against, task by task; "" leaves that column out.
        same_steps: Whether rows trained for other numbers of steps than the first are refused.
        curves: Whether validation curves are kept and drawn.
        relations: Published relations between its rows.
    """

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    varies: tuple[str, ...] = ()
    stage: str = "teacher"
    seeds: tuple[int, ...] = (0, 1, 2)
    converged: float = 0.5
    apart: bool = False
    against: str = ""
    same_steps: bool = True
    curves: bool = False
    relations: tuple[Relation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of the queue.

    Attributes:
        recipe: Name of a packaged recipe.
        stage: Last stage to train, and the one that is scored.
        seed: Of the recipe.
    """

    recipe: str
    stage: str
    seed: int


def load_tables(folder: Path = DEFINITIONS) -> dict[str, Table]:
    """Every table by the name of its file.

    Raises:
        ConfigError: A file has a fault, or its rows differ in a key that it does not name.
    """
    tables = {}
    for path in sorted(folder.glob("*.toml")):
        table = from_plain(Table, tomllib.loads(path.read_text(encoding="utf-8")), where=str(path))
        _refuse_faults(table, where=path)
        tables[path.stem] = table
    return tables


def _refuse_faults(table: Table, *, where: Path) -> None:
    rows = [row.recipe for row in table.rows]
    named = {name for relation in table.relations for name in (relation.better, relation.than)} | {table.against} - {""}
    faults = [f"{name!r} is no row" for name in sorted(named - set(rows))]
    faults += [f"{r.column!r} is no column" for r in table.relations if r.column not in (*table.columns, "all")]
    faults += [f"{r.says!r} has no source" for r in table.relations if not r.source.strip()]
    faults += [f"{row.stage!r} is no stage" for row in table.rows if row.stage not in ("", "forest", *STAGES)]
    first, *others = [{**_keys(essence(load_recipe(name)))} for name in dict.fromkeys(rows)]
    allowed = ("name", "summary", *table.varies)
    for name, other in zip(list(dict.fromkeys(rows))[1:], others, strict=True):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key) and not any(key == a or key.startswith(f"{a}.") for a in allowed):
                faults.append(f"{name!r} differs from {rows[0]!r} in {key}")
    if faults:
        raise ConfigError(
            "; ".join(faults), expected="rows that differ in what `varies` names alone", where=str(where), do="Mend it"
        )


def essence(value: Any) -> Any:
    """A spec as plain values without those that are its defaults, so that keys of later versions change nothing."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return to_plain(value)
    found = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if own != default:
            found[field.name] = essence(own)
    return found


def _keys(plain: Mapping[str, Any], *, lead: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        flat |= _keys(value, lead=f"{lead}{name}.") if isinstance(value, Mapping) else {f"{lead}{name}": value}
    return flat


def starts(recipe: Recipe) -> dict[str, Training]:
    """Keys of a recipe that name another recipe's run, such as `teacher.transfer.start`, with that run's training.

    The run that others start from is trained once, with seed 0.
    """
    found = {}
    for key, value in _keys(essence(recipe)).items():
        match = _START.fullmatch(value) if isinstance(value, str) else None
        if match:
            found[key] = Training(recipe=match[1], stage=match[2], seed=0)
    return found


def trainings(tables: Mapping[str, Table]) -> list[Training]:
    """All trainings of these tables: what others start from first, then seed by seed, table by table."""
    begun: dict[Training, None] = {}
    wanted: list[tuple[int, Training]] = []
    for table in tables.values():
        for place, seed in enumerate(table.seeds):
            wanted += [
                (place, Training(recipe=row.recipe, stage=row.stage or table.stage, seed=seed)) for row in table.rows
            ]
    for _, training in sorted(wanted, key=lambda each: each[0]):
        for start in starts(load_recipe(training.recipe)).values():
            begun[start] = None
    return list(dict.fromkeys([*begun, *(training for _, training in sorted(wanted, key=lambda each: each[0]))]))


class Identities:
    """Digests of what a training's figures depend on; sources are opened once."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, int, float], str] = {}

    def key(self, training: Training) -> str:
        """Digest of a training: recipe, seed, data, what it starts from.

        Raises:
            DataError: A source is not here.
        """
        recipe = load_recipe(training.recipe, overrides=[f"seed={training.seed}"])
        plain = essence(recipe)
        plain.pop("summary", None)
        begun = {key: self.key(start) for key, start in starts(recipe).items()}
        px = (recipe.teacher if training.stage in ("teacher", "forest") else recipe.student).network.input_px
        data = {source: self._hash(source, recipe.data.pack_px, recipe.data.margin) for source in recipe.data.train}
        data |= {source: self._hash(source, px, 1.0) for source in (*recipe.data.val, *recipe.data.test)}
        return sha256_json({"format": FORMAT, "stage": training.stage, "recipe": plain, "starts": begun, "data": data})

    def _hash(self, source: str, px: int, margin: float) -> str:
        from edgeface.data.pack import pack
        from edgeface.data.sources import data_root, open_source

        if (source, px, margin) not in self._sources:
            corpus = open_source(source, root=data_root())
            self._sources[source, px, margin] = pack(corpus, px=px, margin=margin).content_hash
        return self._sources[source, px, margin]


def train(training: Training, *, key: str, runs: Path) -> Record:
    """Train one row, or go on with it, and score it on val and, once, on test.

    Args:
        training: Which.
        key: Its digest.
        runs: Folder of all runs; the ones it starts from are trained there too where they are missing.

    Raises:
        InterruptedRun: Ctrl-C; the step checkpoint is written.
        DataError: A source is missing.
    """
    import torch

    from distill.stages import resolve
    from edgeface.cli.distill import distill

    recipe = load_recipe(training.recipe, overrides=[f"seed={training.seed}"])
    changes = [f"seed={training.seed}"]
    for where, start in starts(recipe).items():
        folder = _folder(start, runs)
        _begun(start, folder)
        changes.append(f'{where}="{folder / start.stage}"')
    recipe = resolve(load_recipe(training.recipe, overrides=changes))
    folder = _folder(training, runs)
    _clear_if_other(folder, recipe)
    whole = not folder.exists()
    began = time.process_time()
    until = {"qat": None, "forest": "teacher"}.get(training.stage, training.stage)  # forests grow with their teacher
    outcome: Record = {"outcome": "MEASURED", "reason": ""}
    torch.set_num_threads(recipe.threads)
    try:
        distill(recipe, folder, until=until)
    except (DataError, ModelError) as error:
        if not error.found.startswith("the loss is") and "not finite" not in error.found:
            raise  # a source that is not here; what is caught is a training that ended in NaN
        outcome = {"outcome": "FAILED", "reason": error.found}
    cpu_s = round(time.process_time() - began, 1) if whole else None
    record: Record = {
        "recipe": training.recipe,
        "seed": training.seed,
        "stage": training.stage,
        "key": key,
        **outcome,
        "cpu_s": cpu_s,
        "commit": commit(),
        "machine": cpu()["model"],
        "versions": {name: version for name, version in versions().items() if name in ("edgeface", "python", "torch")},
    }
    return record if outcome["outcome"] == "FAILED" else record | _scored(recipe, folder / training.stage)


def _begun(training: Training, folder: Path) -> None:
    """Train what others start from, once, however many of them run at a time."""
    from distill.stages import resolve
    from edgeface.cli.distill import distill

    recipe = resolve(load_recipe(training.recipe, overrides=[f"seed={training.seed}"]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _clear_if_other(folder, recipe)
        if not (folder / training.stage / "manifest.json").is_file():
            distill(recipe, folder, until=None if training.stage == "qat" else training.stage)


def _folder(training: Training, runs: Path) -> Path:
    return runs / f"{training.recipe}-{training.seed}"


def _clear_if_other(folder: Path, recipe: Recipe) -> None:
    """A folder that began with another form of the recipe is of no use to this one."""
    text = folder / "recipe.toml"
    if text.is_file() and text.read_text(encoding="utf-8") != dump_recipe(recipe):
        shutil.rmtree(folder)


def _scored(recipe: Recipe, folder: Path) -> Record:
    """What a finished stage answers on val and test, and how far its losses on the training faces fell."""
    import numpy as np
    import torch

    from distill.stages import objective_with
    from edgeface.checkpoint import load_checkpoint
    from edgeface.data.sources import data_root
    from edgeface.evaluate import answer, evaluate, evaluation_pack
    from edgeface.models.network import build_network, count_parameters
    from targets.runners import open_model

    checkpoint = load_checkpoint(folder.parent / "teacher" if folder.name == "forest" else folder)
    model, root = checkpoint.model, data_root()
    # Rows under weighted or focal losses, or label distributions, are held to the plain one, as their neighbours are.
    forms = {task: form for task, form in recipe.loss.forms.items() if form not in (*IMBALANCE_LOSSES, "distribution")}
    plain = dataclasses.replace(recipe, loss=dataclasses.replace(recipe.loss, forms=forms))
    objective = objective_with(plain, model, teacher=None)

    def scores(sources: Sequence[str]) -> dict[str, Evaluation]:
        return {source: evaluate(runner, evaluation_pack(source, model, root=root), batch=256) for source in sources}

    def losses(answers: Callable[[Pack], Outputs]) -> dict[str, float]:
        found: dict[str, float] = {}
        for source in recipe.data.train:
            pack = evaluation_pack(source, model, root=root)
            raw = answers(pack)
            for output in model.outputs:
                if output.task in pack.labels and TASKS[output.task].kind is not Kind.IDENTITY:
                    labels = torch.from_numpy(np.asarray(pack.labels[output.task]))
                    loss = objective.label_loss(output.name, torch.from_numpy(raw[output.name]), labels)
                    found.setdefault(output.task, loss)
        return found

    def nothing(pack: Pack) -> Outputs:
        return {each.name: np.zeros((len(pack.keys), *each.shape), dtype=np.float32) for each in model.outputs}

    runner = open_model(folder)
    curve = checkpoint.folder / "curve.csv"
    return {
        "steps": checkpoint.manifest["training"]["steps"],
        "samples": checkpoint.manifest["training"]["samples"],
        "parameters": count_parameters(build_network(checkpoint.network, model)),
        "loss_before": losses(nothing),
        "loss_after": losses(lambda pack: answer(runner, pack, batch=256)),
        **{
            split: {
                source: {"samples": found.samples, **{task: _figures(found, task) for task in found.tasks}}
                for source, found in scores(getattr(recipe.data, split)).items()
            }
            for split in ("val", "test")
        },
        "curve": _columns(curve.read_text(encoding="utf-8")),
    }


def _figures(evaluation: Evaluation, task: str) -> dict[str, float]:
    """A task's scores, and of every task with classes the balanced accuracy too."""
    found = {name: float(value) for name, value in evaluation.tasks[task].items()}
    if TASKS[task].kind is Kind.CLASSES:
        counts = confusion(TASKS[task], evaluation.predictions[task], evaluation.labels[task])
        there = counts.sum(axis=1) > 0
        found["balanced_accuracy"] = float((counts.diagonal()[there] / counts.sum(axis=1)[there]).mean())
    return found


def _columns(curve: str) -> dict[str, list[float | None]]:
    """A curve's CSV as columns; an empty cell is NaN in the file and None here."""
    names, *lines = (line.split(",") for line in curve.splitlines())
    return {name: [float(line[place]) if line[place] else None for line in lines] for place, name in enumerate(names)}


def value_of(record: Record, column: str, split: str = "test") -> float | None:
    """A column's figure of a record, over the first source of a split that has it."""
    task, _, metric = column.partition(".")
    for found in record.get(split, {}).values():
        if metric in found.get(task, {}):
            return float(found[task][metric])
    return None


def verdict_of(record: Record, table: Table, *, steps: int | None = None) -> str:
    """MEASURED, or why a record must not stand in the table."""
    if record["outcome"] != "MEASURED":
        return f"{record['outcome']}: {record['reason']}"
    main = table.columns[0].partition(".")[0]
    task = main if main in record["loss_after"] else next(iter(record["loss_after"]), "")
    if task and not table.apart and (why := _unconverged(record, table, task)):
        return why
    if table.same_steps and steps is not None and record["steps"] != steps:
        return f"OTHER_LENGTH: {record['steps']} steps, not {steps}"
    return "MEASURED"


def _unconverged(record: Record, table: Table, task: str) -> str:
    """Why a record's figures of a task do not count, or ""."""
    places = {(row.recipe, row.stage or table.stage): row for row in table.rows}
    row = places.get((record["recipe"], record["stage"]))
    share = record["loss_after"][task] / record["loss_before"][task]
    bound = (row.converged if row else 0.0) or table.converged
    return "" if share <= bound else f"UNCONVERGED: {task}'s loss ended at {share:.2f} of what answers of 0 lose"


def _of_what_converged(record: Record, table: Table) -> tuple[Record, list[str]]:
    """A record of a table whose tasks are judged apart, without the figures of tasks that did not converge; why not."""
    faults = {task: why for task in record["loss_after"] if (why := _unconverged(record, table, task))}
    kept = {
        split: {
            source: {task: figures for task, figures in found.items() if task not in faults}
            for source, found in record[split].items()
        }
        for split in ("val", "test")
    }
    return record | kept, list(faults.values())


Key = tuple[str, str]  # recipe and stage


@dataclass(frozen=True, kw_only=True)
class Found:
    """The records of a table.

    Attributes:
        good: Recipe and stage to seed to the record.
        refused: (recipe, stage, seed) to why it, or a task's figures of it, does not stand in the table.
        missing: Trainings that have not run, or not as recipe and data are now.
        outdated: Those of `missing` that have a record of a former recipe or of former data.
    """

    good: dict[Key, dict[int, Record]]
    refused: dict[tuple[str, str, int], str]
    missing: tuple[Training, ...]
    outdated: tuple[Training, ...] = ()


def gather(table: Table, records: Sequence[Record], *, former: Collection[str] = ()) -> Found:
    """Which of some records make the table.

    Args:
        table: Whose rows.
        records: Of any tables.
        former: Digests that no training has any more; records of these do not count.
    """
    named = {(row.recipe, row.stage or table.stage) for row in table.rows}
    own = [record for record in records if (record["recipe"], record["stage"]) in named]
    past = {(record["recipe"], record["stage"], record["seed"]) for record in own if record["key"] in former}
    own = [record for record in own if record["key"] not in former]
    by_training = {(record["recipe"], record["stage"], record["seed"]): record for record in own}
    lengths = [record["steps"] for record in own if "steps" in record]
    steps = statistics.mode(lengths) if lengths else None
    good: dict[Key, dict[int, Record]] = {}
    refused: dict[tuple[str, str, int], str] = {}
    missing = []
    for row in table.rows:
        stage = row.stage or table.stage
        good[row.recipe, stage] = {}
        for seed in table.seeds:
            record = by_training.get((row.recipe, stage, seed))
            if record is None:
                missing.append(Training(recipe=row.recipe, stage=stage, seed=seed))
                continue
            verdict = verdict_of(record, table, steps=steps)
            if verdict != "MEASURED":
                refused[row.recipe, stage, seed] = verdict
                continue
            kept, faults = _of_what_converged(record, table) if table.apart else (record, [])
            good[row.recipe, stage][seed] = kept
            if faults:
                refused[row.recipe, stage, seed] = "; ".join(faults)
    outdated = tuple(one for one in missing if (one.recipe, one.stage, one.seed) in past)
    return Found(good=good, refused=refused, missing=tuple(missing), outdated=outdated)


def _figures_beside(record: Record, table: Table) -> str:
    """What a refused record would have put into the table, to be read beside the reason."""
    values = {column: value_of(record, column) for column in table.columns}
    told = [f"{heading(column)} {shown(column, value):.2f}" for column, value in values.items() if value is not None]
    return f" (it had {', '.join(told)})" if told else ""


def shown(column: str, value: float) -> float:
    """A figure in the unit the tables print: shares and correlations times 100."""
    metric = column.partition(".")[2]
    return value if metric in _LOWER else 100.0 * value


def _error(column: str, value: float) -> float:
    metric = column.partition(".")[2]
    return value if metric in _LOWER else 1.0 - value


def spread(values: Sequence[float], *, places: int = 2) -> str:
    """Mean ± standard deviation; the mean alone of one value, "–" of none."""
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{places}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{places}f}"


def worsening(records: Mapping[int, Record], reference: Mapping[int, Record], columns: Sequence[str]) -> list[float]:
    """Per seed that both have: mean over the columns both have of the relative growth of the error, in percent."""
    found = []
    for seed in sorted(records.keys() & reference.keys()):
        pairs = [(column, value_of(records[seed], column), value_of(reference[seed], column)) for column in columns]
        growth = [_error(c, mine) / _error(c, its) - 1.0 for c, mine, its in pairs if mine is not None and its]
        if growth:
            found.append(100.0 * statistics.mean(growth))
    return found


def judged(table: Table, found: Found) -> list[dict[str, Any]]:
    """Each published relation with what was measured.

    Differences are those of the same seed, in the printed unit, above 0 where the published row is the better one. A
    relation held when it did with every seed, did not when the opposite came out with every seed, and is undecided
    otherwise; with fewer than two seeds it is REFUSED where the trainings are there, and NOT_RUN where they are not.
    """
    lines = []
    for relation in table.relations:
        rows = [
            (name, stage or _stage_of(table, name))
            for name, stage in ((relation.better, relation.better_stage), (relation.than, relation.than_stage))
        ]
        better, than = (found.good.get(row, {}) for row in rows)
        gains = _gains(table, relation.column, better, than)
        missing = {(one.recipe, one.stage) for one in found.missing}
        verdict = verdict_over(gains, within=relation.within)
        if verdict == "NOT_RUN" and not missing & set(rows):
            verdict = "REFUSED"
        lines.append({**to_plain(relation), "gains": gains, "seeds": len(table.seeds), "verdict": verdict})
    return lines


def verdict_over(gains: Sequence[float], *, within: float = 0.0) -> str:
    """Whether a relation held, from by how much it did with each seed; it may fall short by `within`."""
    if len(gains) < 2:
        return "NOT_RUN"
    if all(gain > -within for gain in gains):
        return "held"
    return "did not hold" if all(gain < -within for gain in gains) else "undecided"


# Pages beside the tables, in benchmarks/results: their modules say in `published` what was published of them.
BESIDE = ("cascade", "point_errors", "correlation")
ALSO = ("paired",)  # pages without anything published


def beside(results: Path) -> list[str]:
    """A section of the page of all tables for each single measurement that is there, from its figures."""
    sections = []
    for name in BESIDE:
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        lines = import_module(f"benchmarks.{name}").published(json.loads(path.read_text(encoding="utf-8")))
        lines = [line | {"verdict": verdict_over(line["gains"]), "seeds": len(Table.seeds)} for line in lines]
        sections.append(f"{_linked(path.with_suffix('.md'))}\n\n{published_table(lines)}")
    sections += [_linked(page) for name in ALSO if (page := results / f"{name}.md").is_file()]
    weights = results / "task_weights.json"
    if weights.is_file():
        from benchmarks.task_weights import ends

        told = ends(json.loads(weights.read_text(encoding="utf-8")))
        sections.append(f"## [How learned weights of tasks move](../task_weights.md)\n\n{told}")
    return sections


def _linked(page: Path) -> str:
    """A heading that links a page beside the tables by its own."""
    title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return f"## [{title}](../{page.name})"


def unexplained(tables: Mapping[str, Table], records: Sequence[Record], *, former: Collection[str] = ()) -> list[str]:
    """Relations that did not hold, or were refused, in a table all of whose trainings have run, without a `reason`."""
    found = []
    for name, table in tables.items():
        gathered = gather(table, records, former=former)
        if not gathered.missing:
            asked = [line for line in judged(table, gathered) if line["verdict"] in ("did not hold", "REFUSED")]
            found += [f"{name}: {line['says']}" for line in asked if not line["reason"]]
    return found


def _gains(table: Table, column: str, better: Mapping[int, Record], than: Mapping[int, Record]) -> list[float]:
    """Per seed that both have: how much better the first is, in the printed unit, or of "all" in percent of errors."""
    if column == "all":
        return [-value for value in worsening(better, than, table.columns)]
    sign = -1.0 if column.partition(".")[2] in _LOWER else 1.0
    pairs = [(value_of(better[s], column), value_of(than[s], column)) for s in sorted(better.keys() & than.keys())]
    return [sign * (shown(column, m) - shown(column, i)) for m, i in pairs if m is not None and i is not None]


def _stage_of(table: Table, recipe: str) -> str:
    return next(row.stage or table.stage for row in table.rows if row.recipe == recipe)


def heading(column: str) -> str:
    task, _, metric = column.partition(".")
    return f"{task}: {_NAMES.get(metric, metric.replace('_', ' ') + ', %')}"


def markdown(name: str, table: Table, records: Sequence[Record], *, former: Collection[str] = ()) -> str:
    """The table as it is committed."""
    found = gather(table, records, former=former)
    good = [record for own in found.good.values() for record in own.values()]
    heads = ["recipe", *(["stage"] if any(row.stage for row in table.rows) else []), "seeds"]
    heads += [f"val {heading(table.columns[0])}", *map(heading, table.columns)]
    heads += ["errors over all columns, %"] if table.against else []
    heads += ["parameters", "CPU s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    reference = found.good[table.against, _stage_of(table, table.against)] if table.against else {}
    for row in table.rows:
        stage = row.stage or table.stage
        own = found.good[row.recipe, stage]
        cells = [f"`{row.recipe}`", *([stage] if any(r.stage for r in table.rows) else []), str(len(own))]
        cells += [_cell(own, table.columns[0], "val"), *(_cell(own, column, "test") for column in table.columns)]
        if table.against:
            cells.append(spread(worsening(own, reference, table.columns)))
        times = [record["cpu_s"] for record in own.values() if record["cpu_s"] is not None]
        cells.append(f"{next(iter(own.values()))['parameters']:,}" if own else "–")
        cells.append(f"{statistics.mean(times):.0f}" if times else "–")
        lines.append("| " + " | ".join(cells) + " |")
    total = sum(len(table.seeds) for _ in table.rows)
    state = f"{len(good)} of {total} trainings stand in the table"
    if found.missing:
        names = ", ".join(dict.fromkeys(f"`{one.recipe}`" for one in found.missing))
        state += f"; {len(found.missing)} are NOT_RUN ({names})"
    if found.outdated:
        state += f", {len(found.outdated)} of them since recipe or data changed: their former figures do not count"
    own = {(each["recipe"], each["stage"], each["seed"]): each for each in records if each["key"] not in former}
    refused = [
        f"* `{recipe}`, {stage}, seed {seed}: {why}{_figures_beside(own[recipe, stage, seed], table)}"
        for (recipe, stage, seed), why in found.refused.items()
    ]
    heads_of_refused = "Refused, at the columns of these tasks alone:" if table.apart else "Refused:"
    published = published_table(judged(table, found))
    parts = [
        f"# {table.title}",
        table.about.strip(),
        _conditions(name, table, good),
        "\n".join(lines),
        f"{state}.",
        *([f"{heads_of_refused}\n\n" + "\n".join(refused)] if refused else []),
        *([f"![Validation curves]({name}.png)"] if table.curves and good else []),
        *(
            [
                "Difference: of the same seed on the reported faces, above 0 where the published row is the better "
                "one. It held when it did with every seed.",
                published,
            ]
            if table.relations
            else []
        ),
    ]
    return "\n\n".join(parts) + "\n"


def published_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Relations as `judged` gives them, one a row."""
    heads = ["published", "by", "difference", "verdict"]
    reasons = any(line["reason"] and line["verdict"] in EXPLAINED for line in lines)
    heads += ["likely reason"] if reasons else []
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in lines:
        verdict = line["verdict"]
        if verdict == "NOT_RUN":
            verdict += f": {len(line['gains'])} of {line['seeds']} seeds"
        if verdict == "REFUSED":
            verdict += ": a row's trainings are, see its table"
        cells = [line["says"], line["source"], spread(line["gains"]), verdict]
        if reasons:
            cells.append(line["reason"] if line["verdict"] in EXPLAINED else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def index(
    tables: Mapping[str, Table],
    records: Sequence[Record],
    *,
    former: Collection[str] = (),
    others: Sequence[str] = (),
) -> str:
    """All tables on one page: how much of each is there, and which published relations held.

    Args:
        tables: By name.
        records: Of all of them.
        former: As of `gather`.
        others: Sections of what was measured beside the tables, as `beside` gives them.
    """
    outcomes = ("held", "did not hold", "undecided", "REFUSED", "NOT_RUN")
    lines = [f"| table | trainings | {' | '.join(outcomes)} | own |", "|" + "---|" * (3 + len(outcomes))]
    sections = []
    for name, table in tables.items():
        found = gather(table, records, former=former)
        verdicts = judged(table, found)
        good = sum(len(own) for own in found.good.values())
        published = [line for line in verdicts if not line["source"].startswith(OWN)]
        counts = [sum(line["verdict"] == outcome for line in published) for outcome in outcomes]
        counts.append(len(verdicts) - len(published))
        cells = [f"[{name}]({name}.md)", f"{good} of {len(table.rows) * len(table.seeds)}", *map(str, counts)]
        lines.append("| " + " | ".join(cells) + " |")
        if verdicts:
            sections.append(f"## {table.title}\n\n{published_table(verdicts)}")
    parts = [
        "# Which published relations held",
        "How the tables are made and repeated: [docs/tables.md](../../../docs/tables.md). A relation held when it did "
        "with every seed, did not hold when the opposite came out with every seed, and is undecided in between; it is "
        "NOT_RUN before two seeds of both rows are there, and REFUSED where they are there and did not converge. "
        "Differences are of the same seed, in the unit of the table's "
        "column (of all columns at once: percent of the errors), above 0 where the published row is the better one. "
        "What was measured beside the tables stands below them, under the same rule. What edgeface asks and nobody has "
        "published (`own`) is judged by it too, and is not counted among the published.",
        "\n".join(lines),
        *sections,
        *others,
    ]
    return "\n\n".join(parts) + "\n"


def _cell(own: Mapping[int, Record], column: str, split: str) -> str:
    values = [value_of(record, column, split) for record in own.values()]
    places = 4 if column.partition(".")[2] in ("mae", "rmse") else 2  # of scores in [0, 1]
    return spread([shown(column, value) for value in values if value is not None], places=places)


def _conditions(name: str, table: Table, good: Sequence[Record]) -> str:
    stages = list(dict.fromkeys(row.stage or table.stage for row in table.rows))
    stage = "STAGE" if len(stages) > 1 else stages[0]
    until = "" if stages == ["qat"] else f" --until {stage}"
    text = (
        f"`python -m benchmarks.tables {name}`; one row by hand: `edgeface distill RECIPE --set seed=SEED"
        f"{until} --out runs/RECIPE-SEED`, then `edgeface eval runs/RECIPE-SEED/{stage} --data SOURCE`"
        + (
            "; a forest grows with its teacher, and qat is where a run ends without `--until`. "
            if len(stages) > 1
            else ". "
        )
    )
    if not good:
        return text + "Nothing has run yet."
    faces = {source: found["samples"] for record in good for source, found in record["test"].items()}
    steps = sorted({record["steps"] for record in good})
    text += "Reported on " + ", ".join(f"{source} ({n:,} faces)" for source, n in faces.items())
    text += ", looked at once a training; mean ± standard deviation over the seeds there are"
    text += f"; {' or '.join(f'{n:,}' for n in steps)} steps each. "
    machines = sorted({f"{record['machine']}, torch {record['versions']['torch']}" for record in good})
    text += f"One thread of {'; '.join(machines)}. "
    others = [f"`{row.recipe}` at {row.converged:g}" for row in table.rows if row.converged]
    text += (
        f"{'A task of a row' if table.apart else 'A row'} is refused when the {'' if table.apart else 'main '}task's "
        f"loss on the training faces does not end at or below {table.converged:g} of what raw answers of 0 lose, where "
        f"single-task training starts{''.join(f', {each}' for each in others)}."
    )
    return text


def draw_curves(name: str, table: Table, records: Sequence[Record], *, out: Path, former: Collection[str] = ()) -> None:
    """The main column's validation curve of every row, mean over its seeds, as OUT/NAME.png.

    A dot is where a task was stopped, in each training; the first one's dots say which task.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = gather(table, records, former=former)
    column = table.columns[0]
    figure, axes = plt.subplots(figsize=(7.0, 4.2), constrained_layout=True)
    for (recipe, _), own in found.good.items():
        curves = [record["curve"] for record in own.values() if column in record["curve"]]
        if not curves:
            continue
        steps = curves[0]["step"]
        means = [statistics.mean(curve[column][place] for curve in curves) for place in range(len(steps))]
        (line,) = axes.plot(steps, [shown(column, mean) for mean in means], label=recipe)
        for curve in curves:
            axes.plot(steps, [shown(column, v) for v in curve[column]], color=line.get_color(), alpha=0.25, lw=0.8)
            for task in (key.removesuffix(".active") for key in curve if key.endswith(".active")):
                stops = [place for place, active in enumerate(curve[f"{task}.active"]) if active == 0.0]
                if stops:
                    at = stops[0]
                    y = shown(column, curve[column][at])
                    axes.plot(steps[at], y, "o", ms=3, color=line.get_color())
                    if curve is curves[0]:
                        axes.annotate(
                            task,
                            (steps[at], y),
                            xytext=(4, 9),
                            textcoords="offset points",
                            fontsize=8,
                            color=line.get_color(),
                        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"val {heading(column)}")
    axes.legend(frameon=False)
    figure.savefig(out / f"{name}.png", dpi=110, metadata={"Software": ""})
    plt.close(figure)


def read_records(out: Path) -> list[Record]:
    """Every record that any table has, one of a digest."""
    found: dict[str, Record] = {}
    for path in sorted(out.glob("*.json")):
        for record in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            found[record["key"]] = record
    return list(found.values())


def read_former(out: Path) -> set[str]:
    """Digests of the records of which a table says that recipe or data have changed since."""
    return {
        key for path in out.glob("*.json") for key in json.loads(path.read_text(encoding="utf-8")).get("former", [])
    }


def outdated(records: Sequence[Record], keys: Mapping[Training, str]) -> set[str]:
    """Digests of the records whose training has another one now.

    Args:
        records: Of any tables.
        keys: Training to its digest; trainings that are not in it are not judged.
    """
    of = [(record["key"], _training_of(record)) for record in records]
    return {key for key, training in of if training in keys and keys[training] != key}


def _training_of(record: Record) -> Training:
    return Training(recipe=record["recipe"], stage=record["stage"], seed=record["seed"])


def write_tables(
    tables: Mapping[str, Table],
    records: Sequence[Record],
    *,
    keys: Mapping[Training, str],
    every: Mapping[str, Table],
    out: Path,
) -> None:
    """OUT/NAME.json and OUT/NAME.md of some tables, and OUT/README.md.

    Args:
        tables: By name.
        records: Of these tables and others.
        keys: Training to its digest, as `outdated`; of a training that is not in it, because its faces are not here,
            what the files said of its record stays.
        every: All tables, which the last page lists.
        out: Folder.
    """
    judged_now = {record["key"] for record in records if _training_of(record) in keys}
    former = (read_former(out) - judged_now) | outdated(records, keys)
    for name, table in tables.items():
        wanted = set(trainings({name: table}))
        own = [record for record in records if _training_of(record) in wanted]
        own.sort(key=lambda record: (record["recipe"], record["stage"], record["seed"]))
        kept = own if table.curves else [{k: v for k, v in record.items() if k != "curve"} for record in own]
        found = gather(table, own, former=former)
        write_json(
            out / f"{name}.json",
            {
                "schema": 1,
                "table": name,
                "rows": kept,
                "former": sorted(former & {record["key"] for record in own}),
                "relations": judged(table, found),
                "not_run": [f"{one.recipe}, {one.stage}, seed {one.seed}" for one in found.missing],
                "refused": [f"{', '.join(map(str, one))}: {why}" for one, why in found.refused.items()],
            },
        )
        write_bytes(out / f"{name}.md", markdown(name, table, own, former=former).encode())
        if table.curves and any(found.good.values()):
            draw_curves(name, table, own, out=out, former=former)
    page = index(every, read_records(out), former=read_former(out), others=beside(out.parent))
    write_bytes(out / "README.md", page.encode())


def digests(wanted: Sequence[Training], identities: Identities) -> tuple[dict[Training, str], dict[Training, str]]:
    """Each training's digest, and of those whose faces are not here why it cannot be had."""
    keys, absent = {}, {}
    for training in wanted:
        try:
            keys[training] = identities.key(training)
        except (DataError, UsageError, MissingToolError) as error:
            absent[training] = str(error)
    return keys, absent


def left_over(keys: Mapping[Training, str], records: Sequence[Record]) -> Iterator[tuple[Training, str]]:
    """Trainings without a record of the same digest, with that digest."""
    there = {record["key"] for record in records}
    return ((training, key) for training, key in keys.items() if key not in there)


@contextmanager
def only_queue(runs: Path) -> Iterator[None]:
    """Two queues would train the same rows into the same folders.

    Raises:
        UsageError: Another one is at work in this folder.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / "queue.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "another queue", expected="one queue at a time", where=str(runs), do="Wait for it, or stop it"
            ) from None
        yield


def work(
    todo: Sequence[tuple[Training, str]],
    tables: Mapping[str, Table],
    records: list[Record],
    arguments: Any,
    *,
    keys: Mapping[Training, str],
    every: Mapping[str, Table],
) -> None:
    """Train what is left and write the tables after each training."""

    def keep(record: Record) -> None:
        same = ("recipe", "stage", "seed")
        records[:] = [one for one in records if any(one[name] != record[name] for name in same)] + [record]
        write_tables(tables, records, keys=keys, every=every, out=arguments.out)
        main = {k: record.get(k) for k in ("recipe", "stage", "seed", "outcome", "reason", "cpu_s")}
        print(json.dumps(main), flush=True)

    needed = {start for training, _ in todo for start in starts(load_recipe(training.recipe)).values()}
    for group in (
        [one for one in todo if one[0] in needed],  # so that two processes never train the same start
        [one for one in todo if one[0] not in needed],
    ):
        if arguments.jobs == 1:
            for training, key in group:
                keep(train(training, key=key, runs=arguments.runs))
            continue
        context = multiprocessing.get_context("spawn")
        of_run: dict[Path, list[tuple[Training, str]]] = {}  # stages of one run cannot be trained side by side
        for training, key in group:
            of_run.setdefault(_folder(training, arguments.runs), []).append((training, key))
        with ProcessPoolExecutor(arguments.jobs, mp_context=context, initializer=live_with_parent) as pool:
            futures = [pool.submit(_train_in_turn, own, runs=arguments.runs) for own in of_run.values()]
            try:
                for future in as_completed(futures):
                    for record in future.result():
                        keep(record)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # or all the others would be trained first, and none kept
                raise


def _train_in_turn(todo: Sequence[tuple[Training, str]], *, runs: Path) -> list[Record]:
    return [train(training, key=key, runs=runs) for training, key in todo]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names of benchmarks/tables; default: all")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time, one thread each")
    parser.add_argument("--dry", action="store_true", help="say what is left and stop")
    parser.add_argument("--render", action="store_true", help="write the tables from the rows that are there and stop")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), metavar="DIR", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder of the tables")
    arguments = parser.parse_args()
    try:
        tables = load_tables()
        unknown = [name for name in arguments.tables if name not in tables]
        if unknown:
            raise UsageError(f"no table {unknown}", expected=f"among {', '.join(tables)}", where="TABLE")
        chosen = {name: tables[name] for name in arguments.tables or tables}
        records = read_records(arguments.out)
        keys, absent = digests(trainings(chosen), Identities())
        if arguments.render:
            write_tables(chosen, records, keys=keys, every=tables, out=arguments.out)
            for relation in unexplained(chosen, records, former=read_former(arguments.out)):
                print(f"did not hold or was refused, and has no reason yet: {relation}")
            return 0
        todo = list(left_over(keys, records))
        for training in trainings(chosen):
            name = f"{training.recipe}, {training.stage}, seed {training.seed}"
            if training in absent:
                print(f"{name}: NOT_RUN, {absent[training]}")
            elif arguments.dry and training in dict(todo):
                print(name)
        times = [record["cpu_s"] for record in records if record.get("cpu_s")]
        guess = f", about {len(todo) * statistics.mean(times) / 3600:.1f} core-hours" if times else ""
        print(f"{len(todo)} trainings are left{guess}", flush=True)
        if not arguments.dry:
            with only_queue(arguments.runs):
                work(todo, chosen, records, arguments, keys=keys, every=tables)
    except InterruptedRun as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except EdgefaceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
