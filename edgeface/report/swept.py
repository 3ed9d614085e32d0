"""What a sweep gave, as it is kept in its folder for reports: sweep.json."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeface.errors import ModelError
from edgeface.files import is_plain_name, read_json
from edgeface.report.pareto import COST_TITLES, DONE, FAILED, REFUSED, Candidate, with_fronts
from edgeface.tasks import TASKS

SWEPT = "sweep.json"
TRIALS = "trials"  # folder in the sweep's, of one run a trial
SCHEMA = 1
_NAME = re.compile(r"[\w.+-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Swept:
    """Every file of a sweep so far, and which of them are worth having.

    Attributes:
        name: Of the recipe.
        summary: Of the recipe.
        candidates: Every file, and every combination that gave none, in the order of the grid; from `with_fronts`.
        tasks: Objective tasks to their main metrics.
        cost: One of COST_TITLES, the other objective.
        teacher: Task to the teacher's metrics; None where nothing but its answers is known, or nobody taught.
        source: Objective to the validation faces it was scored on.
        running: Labels of the combinations that processes are at.
        left: Combinations that nobody has begun.
        conditions: Where and how times were taken.
        noisy: Whether others used the machine so much that milliseconds should not be quoted.
        recipe: As TOML.
    """

    name: str
    summary: str
    candidates: Sequence[Candidate]
    tasks: Mapping[str, str]
    cost: str
    teacher: Mapping[str, Mapping[str, float]] | None
    source: Mapping[str, str]
    running: Sequence[str]
    left: int
    conditions: str
    noisy: bool
    recipe: str

    @property
    def done(self) -> list[Candidate]:
        """The files."""
        return [each for each in self.candidates if each.state == DONE]

    def as_json(self, folder: Path | None = None) -> dict[str, Any]:
        """The object that `edgeface sweep --json` prints.

        Args:
            folder: Of the sweep, put before the place of each file.
        """
        return {
            "schema": SCHEMA,
            "tasks": dict(self.tasks),
            "objectives": list(self.tasks),  # an object's keys have no order
            "cost": self.cost,
            "teacher": None if self.teacher is None else {task: dict(found) for task, found in self.teacher.items()},
            "trials": [
                {
                    "student": each.student,
                    "width": each.width,
                    "input_px": each.input_px,
                    "precision": each.precision,
                    "state": each.state,
                    "reason": each.reason,
                    "file": str(folder / each.file) if folder is not None and each.file else each.file,
                    "front": each.on_front,
                    "task_fronts": dict(each.front),
                    "costs": dict(each.costs),
                    "tasks": {task: dict(values) for task, values in each.metrics.items()},
                    "seconds": each.seconds,
                }
                for each in self.candidates
            ],
            "running": list(self.running),
            "left": self.left,
            "noisy": self.noisy,
            "conditions": self.conditions,
            "name": self.name,
            "summary": self.summary,
            "source": dict(self.source),
            "recipe": self.recipe,
        }


def read_swept(folder: Path) -> Swept:
    """What is kept in a sweep's folder; who stands on a front is reckoned anew.

    Raises:
        ModelError: There is nothing, or something else than edgeface wrote.
    """
    path = folder / SWEPT
    try:
        return from_json(read_json(path))
    except FileNotFoundError:
        raise ModelError(
            "no figures of a sweep",
            expected=f"{SWEPT}, which edgeface sweep writes after each trial",
            where=str(folder),
            do="Type the edgeface sweep command of this folder; finished trials are not repeated",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"it cannot be used ({type(error).__name__}: {error})",
            expected=f"a {SWEPT} as edgeface sweep wrote it",
            where=str(path),
            do="Type the edgeface sweep command of this folder again, which writes it anew",
        ) from error


def from_json(plain: Mapping[str, Any]) -> Swept:
    """What `as_json` gave; who stands on a front is reckoned anew.

    Raises:
        ValueError: A value that edgeface would not have written; KeyError, TypeError and AttributeError likewise.
    """
    if plain["schema"] != SCHEMA:
        raise ValueError(f"schema {plain['schema']!r}")
    if sorted(plain["objectives"]) != sorted(plain["tasks"]):
        raise ValueError(f"objectives {plain['objectives']!r} of tasks {list(plain['tasks'])!r}")
    tasks = {_known(task, TASKS): _named(plain["tasks"][task]) for task in plain["objectives"]}
    cost = _known(plain["cost"], COST_TITLES)
    return Swept(
        name=_text(plain["name"]),
        summary=_text(plain["summary"]),
        candidates=with_fronts([_candidate(each) for each in plain["trials"]], tasks=tasks, cost=cost),
        tasks=tasks,
        cost=cost,
        teacher=None if plain["teacher"] is None else _scores(plain["teacher"]),
        source={_known(task, TASKS): _text(words) for task, words in plain["source"].items()},
        running=[_text(words) for words in plain["running"]],
        left=int(_number(plain["left"])),
        conditions=_text(plain["conditions"]),
        noisy=bool(plain["noisy"]),
        recipe=_text(plain["recipe"]),
    )


def _candidate(plain: Mapping[str, Any]) -> Candidate:
    state, file = _known(plain["state"], (DONE, REFUSED, FAILED)), _text(plain["file"])
    if bool(file) is not (state == DONE) or not all(map(is_plain_name, Path(file).parts)):
        raise ValueError(f"a file {file!r} of a trial that is {state}")
    return Candidate(
        student=_named(plain["student"]),
        width=_number(plain["width"]),
        input_px=int(_number(plain["input_px"])),
        precision=_named(plain["precision"]) if state == DONE else "",
        state=state,
        reason=_text(plain["reason"]),
        file=file,
        metrics=_scores(plain["tasks"]),
        costs={
            _known(name, COST_TITLES): None if value is None else _number(value)
            for name, value in plain["costs"].items()
        },
        seconds=_number(plain["seconds"]),
    )


def _scores(plain: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        _known(task, TASKS): {_named(metric): _number(value) for metric, value in found.items()}
        for task, found in plain.items()
    }


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} in the place of a text")
    return value


def _named(value: Any) -> str:
    if not _NAME.fullmatch(_text(value)):
        raise ValueError(f"{value!r} in the place of a name")
    return str(value)


def _known(value: Any, names: Any) -> str:
    if value not in names:
        raise ValueError(f"{value!r}, expected one of {', '.join(map(repr, names))}")
    return str(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{value!r} in the place of a number")
    return float(value)
