"""Run every model over the same faces and compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeface.errors import BudgetError, MissingToolError
from edgeface.evaluate import Evaluation, Runner, answer, judge
from edgeface.report import answers
from edgeface.report.blame import blame
from edgeface.report.compare import Measured, scorecard
from edgeface.report.entries import Entry
from edgeface.report.scorecard import Scorecard
from edgeface.specs import BudgetSpec

if TYPE_CHECKING:
    from edgeface.data.pack import Pack

Crops = Callable[[Runner], "Pack"]
Progress = Callable[[str, int, int], None]


def measure(
    entries: Sequence[Entry],
    crops: Crops,
    *,
    budget: Mapping[str, BudgetSpec] | None = None,
    progress: Progress | None = None,
) -> Scorecard:
    """Run every model over the same faces; what an entry with a digest has answered before is not computed again.

    Args:
        entries: In the order of a model's life.
        crops: Evaluation crops at a runner's input size, the same faces each time.
        budget: Task name to the allowed worsening of files.
        progress: Called with a row's name, samples done and samples in all.

    Raises:
        DataError: The rows were not measured on the same faces.
    """
    rows: list[tuple[Entry, Measured]] = []
    for entry in entries:
        try:
            runner = entry.open()
            rows.append((entry, _evaluation(entry, runner, crops(runner), progress)))
        except MissingToolError as error:
            if not entry.optional:
                rows.append((entry, str(error)))
        except BudgetError as error:  # a device whose answers cannot be believed
            rows.append((entry, error))
    card = scorecard(rows, budget=budget)
    return replace(card, blame=blame(card, entries, crops)) if card.broken else card


def answer_ahead(entries: Sequence[Entry], crops: Crops) -> None:
    """Have models answer the faces and keep it, so that `measure` finds the answers there.

    Args:
        entries: Those without a digest, whose answers are not kept, are passed over.
        crops: As for `measure`.
    """
    for entry in entries:
        if entry.digest:
            runner = entry.open()
            pack = crops(runner)
            name = answers.key(entry.digest, runner, pack)
            if answers.read(name, runner, pack) is None:
                answers.keep(name, answer(runner, pack, model=entry.name, batch=entry.batch))


def _evaluation(entry: Entry, runner: Runner, pack: Pack, progress: Progress | None) -> Evaluation:
    name = answers.key(entry.digest, runner, pack) if entry.digest else ""
    outputs = answers.read(name, runner, pack) if name else None
    if outputs is None:
        total = len(pack.keys)
        told = None if progress is None else (lambda done: progress(entry.name, done, total))
        outputs = answer(runner, pack, model=entry.name, batch=entry.batch, progress=told)
        if name:
            answers.keep(name, outputs)
    return judge(runner, outputs, pack, model=entry.name)
