"""A recipe once for every fold of its corpus, and the mean over the folds.

    EDGEFACE_DATA=FOLDER python -m benchmarks.folds scut-fbp5500-folds [--folds N] [--until teacher|student]
    EDGEFACE_DATA=FOLDER python -m benchmarks.folds dynamic-ckplus --until teacher

The recipe names the first fold (`scut_fbp5500@fold1-fit`); the others take its place, in runs RECIPE-fold1,
RECIPE-fold2 and so on, and each is scored once on its own test part. Folds that are finished are not trained again, and
one that was stopped goes on. The figures go to RUNS/RECIPE-folds.json. The deviation is over folds, whose training
faces overlap: it is no standard error.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeface.config import load_recipe
from edgeface.errors import EdgefaceError, UsageError
from edgeface.files import write_json
from edgeface.provenance import commit, cpu, versions
from edgeface.specs import Recipe

_FIRST = re.compile(r"(?P<corpus>[a-z0-9_]+)(?P<path>:.*)?@fold1-(?P<part>[a-z]+)")
_TEST = re.compile(r"fold\d+-test")


def count_folds(recipe: Recipe) -> int:
    """How many folds the corpora of a recipe have.

    Raises:
        UsageError: It does not name the first fold in each of its sources, or its corpora differ in how many there are.
    """
    sources = (*recipe.data.train, *recipe.data.val, *recipe.data.test)
    matches = [_FIRST.fullmatch(source) for source in sources]
    if not recipe.data.test or None in matches:
        raise UsageError(
            f"sources {sources}",
            expected="CORPUS@fold1-fit, CORPUS@fold1-dev and CORPUS@fold1-test alone",
            where=f"data of {recipe.name!r}",
            do="Name the first fold in each of train, val and test",
        )
    corpora = {match["corpus"] for match in matches if match is not None}
    splits = {corpus: import_module(f"edgeface.data.{corpus}").SPLITS for corpus in corpora}
    counts = {corpus: sum(bool(_TEST.fullmatch(split)) for split in own) for corpus, own in splits.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(f"folds {counts}", expected="as many in each corpus", where=f"data of {recipe.name!r}")
    return next(iter(counts.values()))


def of_fold(recipe: Recipe, fold: int) -> Recipe:
    """The recipe with this fold in the place of the first."""

    def named(sources: Sequence[str]) -> tuple[str, ...]:
        return tuple(source.replace("@fold1-", f"@fold{fold}-") for source in sources)

    data = recipe.data
    data = replace(data, train=named(data.train), val=named(data.val), test=named(data.test))
    return replace(recipe, name=f"{recipe.name}-fold{fold}", data=data)


def run_fold(recipe: Recipe, folder: Path, *, until: str) -> dict[str, Any]:
    """Train one fold, or take what is there, and score its last stage on the recipe's test part.

    Returns:
        Task to its scores, and `samples` under "".
    """
    from distill.stages import resolve
    from edgeface.checkpoint import load_checkpoint
    from edgeface.cli.distill import distill
    from edgeface.data.sources import data_root
    from edgeface.evaluate import evaluate, evaluation_pack
    from targets.runners import open_model

    distill(resolve(recipe), folder, until=None if until == "qat" else until)
    stage = folder / until
    model, scores, samples = load_checkpoint(stage).model, {}, 0
    for source in recipe.data.test:
        found = evaluate(open_model(stage), evaluation_pack(source, model, root=data_root()), batch=256)
        scores |= {task: {name: float(value) for name, value in own.items()} for task, own in found.tasks.items()}
        samples += found.samples
    return {"samples": samples, "tasks": scores}


def over_folds(folds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Task and metric to mean and deviation over the folds that have it, and their number."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task in dict.fromkeys(task for fold in folds for task in fold["tasks"]):
        of_task = [fold["tasks"][task] for fold in folds if task in fold["tasks"]]
        for metric in dict.fromkeys(metric for scores in of_task for metric in scores if metric != "n"):
            values = [scores[metric] for scores in of_task if metric in scores]
            found.setdefault(task, {})[metric] = {
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
                "folds": len(values),
            }
    return found


def text(result: Mapping[str, Any]) -> str:
    """The means, a line each."""
    return "\n".join(
        f"{task}: {metric} {own['mean']:.4f} ± {own['deviation']:.4f} over {own['folds']} folds"
        for task, metrics in result["over_folds"].items()
        for metric, own in metrics.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE", help="a packaged recipe, or the path of one")
    parser.add_argument("--folds", type=int, default=0, metavar="N", help="the first N alone; default: all")
    parser.add_argument("--until", choices=("teacher", "student"), default="qat", help="last stage; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of edgeface distill")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs")
    asked = parser.parse_args(arguments)
    try:
        recipe = load_recipe(asked.recipe, overrides=asked.set)
        there = count_folds(recipe)
        if not 0 <= asked.folds <= there:
            raise UsageError(f"{asked.folds} folds", expected=f"1 to {there}, or none for all", where="--folds")
        folds = []
        for fold in range(1, (asked.folds or there) + 1):
            own = of_fold(recipe, fold)
            folds.append({"fold": fold, **run_fold(own, asked.runs / own.name, until=asked.until)})
        result = {
            "schema": 1,
            "recipe": recipe.name,
            "stage": asked.until,
            "folds_of_corpus": there,
            "folds": folds,
            "over_folds": over_folds(folds),
            "conditions": {"commit": commit(), "machine": cpu(), "versions": versions()},
        }
        write_json(asked.runs / f"{recipe.name}-folds.json", result)
        print(text(result))
    except EdgefaceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
