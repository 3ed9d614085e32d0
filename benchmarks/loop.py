"""Where the training loop spends its time: pictures a second, and the share that passes outside the networks.

    EDGEFACE_DATA=FOLDER python -m benchmarks.loop [RECIPE…] [--steps N] [--repeats N] [--threads N] [--ahead N]

Runs a few steps of each stage of a recipe (teacher, student from labels alone, student under the teacher, QAT) under
Python's own profiler, after two steps that are not counted. "Network" is the forward and backward pass of the network
that is trained and the forward pass of its teacher; everything else is outside: making the pictures, losses, optimizer,
averaging, the loop itself. Of pictures that threads make ahead, what counts is how long the loop waits for them.
Validations and checkpoints come between steps, at times of their own, and are not in it. A row is that repetition
whose share outside is the median. The rows are added to benchmarks/results/loop.json, where a row of the same recipe,
stage, threads and ahead is replaced. `--before FILE` puts the rows of such a file, measured at an earlier commit,
beside them and measures nothing.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from edgeface.config import load_recipe
from edgeface.files import read_json, write_json
from edgeface.provenance import commit, cpu, versions

if TYPE_CHECKING:
    from edgeface.specs import Recipe, TrainSpec

RESULT = Path(__file__).parent / "results" / "loop.json"
WARM = 2  # steps before the profiler starts: imports, allocations, choice of kernels
STAGES = ("teacher", "student from labels", "student", "qat")
NETWORK = ("forward", "backward", "teacher")
LIMIT = 0.10  # largest share outside the networks that we accept

# Part to the functions whose time it is: end of the file's name, function. A built-in has no file.
_PARTS = {
    "pictures": (("edgeface/data/ahead.py", "ahead"),),
    "forward": (("lightning_fabric/wrappers.py", "forward"),),
    "teacher": (("distill/objective.py", "_ask_teacher"),),
    "backward": (("~", "<method 'run_backward' of 'torch._C._EngineBase' objects>"),),
    "losses": (("distill/objective.py", "losses"),),  # less the teacher, which is asked inside
    "optimizer": (("lightning_fabric/wrappers.py", "step"), ("lightning_fabric/fabric.py", "clip_gradients")),
    "average": (("distill/train.py", "update"),),
}
_LOOP = ("distill/train.py", "train")
_BETWEEN = (("distill/train.py", "_save_partial"), ("distill/train.py", "_watch"))


def measure(recipe: Recipe, *, steps: int, ahead: int | None = None, repeats: int = 1) -> list[dict[str, Any]]:
    """A row for each stage.

    Args:
        recipe: A resolved recipe whose sources are there.
        steps: Profiled steps of each stage.
        ahead: Threads that make pictures ahead; 0 makes them when they are asked for. None takes what training would.
        repeats: How often all stages are run; see `middle`.
    """
    from distill import stages as trained

    threads = trained.spare_threads(recipe.threads) if ahead is None else ahead
    with mock.patch.object(trained, "spare_threads", return_value=threads):
        runs = [_measured(recipe, steps=steps) for _ in range(repeats)]
    return [{**middle(rows), "ahead": threads} for rows in zip(*runs, strict=True)]


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one stage's rows that whose share outside is the median (the upper one of an even number)."""
    return {**sorted(rows, key=lambda row: row["outside"])[len(rows) // 2], "repeats": len(rows)}


def _measured(recipe: Recipe, *, steps: int) -> list[dict[str, Any]]:
    from distill.stages import train_student, train_teacher, training_data
    from quantize.stage import train_qat

    data = replace(training_data(recipe), val=())
    faces = sum(len(part) for part in data.train)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder)

        def stages(name: str, brief: Recipe) -> dict[str, Callable[[], Any]]:
            alone = replace(brief, distill=replace(brief.distill, soft=0.0, losses={}, taps=()))
            made: dict[str, Any] = {}

            def teacher() -> None:
                made["teacher"] = train_teacher(brief, data, aside / name / "teacher")

            def from_labels() -> None:
                train_student(alone, data, aside / name / "alone", teacher=None)

            def student() -> None:
                made["student"] = train_student(brief, data, aside / name / "student", teacher=made["teacher"])

            def qat() -> None:
                train_qat(brief, data, aside / name / "qat", student=made["student"], teacher=made["teacher"])

            return dict(zip(STAGES, (teacher, from_labels, student, qat), strict=True))

        warm = stages("warm", _brief(recipe, faces=faces, steps=WARM))
        timed = stages("timed", _brief(recipe, faces=faces, steps=steps))
        for stage in STAGES:
            warm[stage]()
            spec = {"teacher": recipe.teacher.train, "qat": recipe.qat.train}.get(stage, recipe.student.train)
            rows.append(
                {
                    "recipe": recipe.name,
                    "stage": stage,
                    "threads": recipe.threads,
                    "steps": steps,
                    "batch": spec.batch,
                    **_profiled(timed[stage], pictures=steps * spec.batch),
                }
            )
    return rows


def _brief(recipe: Recipe, *, faces: int, steps: int) -> Recipe:
    """The same recipe for so many steps of each stage."""

    def short(train: TrainSpec) -> TrainSpec:
        return replace(train, epochs=steps / (faces // train.batch), warmup_epochs=0.0, checkpoint_s=1e9)

    return replace(
        recipe,
        teacher=replace(recipe.teacher, train=short(recipe.teacher.train)),
        student=replace(recipe.student, train=short(recipe.student.train)),
        qat=replace(recipe.qat, train=short(recipe.qat.train), calibration_batches=1),
    )


def _profiled(stage: Callable[[], Any], *, pictures: int) -> dict[str, Any]:
    profile = cProfile.Profile()
    before = time.process_time()
    profile.enable()
    stage()
    profile.disable()
    cpu_s = time.process_time() - before
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    seconds = {part: sum(_spent(found, *function) for function in functions) for part, functions in _PARTS.items()}
    seconds["losses"] -= seconds["teacher"]
    whole = _spent(found, *_LOOP) - sum(_spent(found, *function) for function in _BETWEEN)
    seconds["rest"] = whole - sum(seconds.values())
    network = sum(seconds[part] for part in NETWORK)
    return {
        "images_per_s": round(pictures / whole, 1),
        "images_per_cpu_s": round(pictures / cpu_s, 1),
        "outside": round(1.0 - network / whole, 4),
        "shares": {part: round(spent / whole, 4) for part, spent in seconds.items()},
    }


def _spent(found: dict[tuple[str, int, str], tuple[Any, ...]], file: str, name: str) -> float:
    """Seconds inside a function and what it calls; 0 when it was not called."""
    return sum(
        float(timing[3]) for (where, _, called), timing in found.items() if called == name and where.endswith(file)
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row; shares in percent, those outside the networks in bold where they are above the limit."""
    parts = ("forward", "backward", "teacher", "pictures", "losses", "optimizer", "average", "rest")
    heads = ("recipe", "stage", "threads", "ahead", "images/s", "images/CPU s", "outside, %", *parts)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"`{row['recipe']}`", row["stage"], str(row["threads"]), str(row["ahead"])]
        outside = f"{100 * row['outside']:.1f}"
        cells += [f"{row['images_per_s']:.0f}", f"{row['images_per_cpu_s']:.0f}"]
        cells.append(f"**{outside}**" if row["outside"] > LIMIT else outside)
        lines.append("| " + " | ".join([*cells, *(f"{100 * row['shares'][part]:.1f}" for part in parts)]) + " |")
    return "\n".join(lines)


def summary(measured: Mapping[str, Any]) -> str:
    """README's table: each stage as it runs when nothing is set, on one thread, and with pictures made ahead."""
    rows, before = measured["rows"], (measured["before"] or {"rows": []})["rows"]
    ways = {(2, 0): "two threads, the default", (1, 0): "one thread", (1, 1): "one thread, pictures made ahead"}
    found, earlier = ({_identity(row): row for row in each} for each in (rows, before))
    heads = ["recipe", "stage"]
    for way, said in ways.items():
        arrow = "before → now, " if any((row["threads"], row["ahead"]) == way for row in before) else ""
        heads.append(f"{said}: {arrow}images/s, outside")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for recipe, stage in dict.fromkeys((row["recipe"], row["stage"]) for row in rows):
        places = [(recipe, stage, *way) for way in ways]
        cells = [_cell(found.get(place), earlier.get(place)) for place in places]
        lines.append("| " + " | ".join([f"`{recipe}`", stage, *cells]) + " |")
    return "\n".join(lines)


def _cell(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> str:
    said = []
    for row in (before, now):
        if row is not None:
            outside = f"{100 * row['outside']:.1f} %"
            said.append(f"{row['images_per_s']:.0f}, " + (f"**{outside}**" if row["outside"] > LIMIT else outside))
    return " → ".join(said) if now is not None else "NOT_RUN"


def page(found: Mapping[str, Any]) -> str:
    before = found["before"]
    of_before = (
        f"""
Before the optimizations, at commit {before["conditions"]["commit"]}:

{markdown(before["rows"])}
"""
        if before
        else ""
    )
    return f"""# Where the training loop spends its time

`python -m benchmarks.loop RECIPE --threads N --ahead N`, conditions in the JSON. A few steps of each stage under
Python's profiler, several times, of which the row with the median share outside is shown; the columns after "outside"
are shares of the loop's time in percent. "Outside" is all but the networks: forward and backward of the one that is
trained, and its teacher's forward; at most {100 * LIMIT:.0f} % is wanted, what is above it is bold. "Threads" compute
the networks, "ahead" is how many more make pictures meanwhile: none while the networks use all cores, as they do by
default (`threads = 0`). Images a second are those of the clock and depend on what else the machine had to do (its load
stands in the JSON); a second of CPU time is that of one core.

{markdown(found["rows"])}
{of_before}"""


def main() -> None:
    from distill.stages import resolve, use_threads

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["all-tasks-cpu", "mtfl-cpu"], metavar="RECIPE")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--ahead", type=int, metavar="N", help="threads that make pictures; default: as in training")
    parser.add_argument("--before", type=Path, metavar="FILE", help="rows measured at an earlier commit")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"schema": 1, "limit": LIMIT, "rows": [], "before": None, "conditions": {}}
    if arguments.out.is_file():
        found |= read_json(arguments.out)
    if arguments.before is not None:
        earlier = read_json(arguments.before)
        _write(arguments.out, {**found, "before": {key: earlier[key] for key in ("rows", "conditions")}})
        return
    for name in arguments.recipes:
        recipe = resolve(load_recipe(name, overrides=[f"threads={arguments.threads}"]))
        use_threads(recipe)
        made = measure(recipe, steps=arguments.steps, ahead=arguments.ahead, repeats=arguments.repeats)
        replaced = [_identity(row) for row in made]
        found["rows"] = [*(row for row in found["rows"] if _identity(row) not in replaced), *made]
        found["conditions"] = {
            "machine": cpu(),
            "versions": versions(),
            "commit": commit(),
            "load_average": os.getloadavg(),
        }
        _write(arguments.out, found)
    print(markdown(found["rows"]))


def _write(path: Path, found: Mapping[str, Any]) -> None:
    write_json(path, found)
    path.with_suffix(".md").write_text(page(found), encoding="utf-8")


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("recipe", "stage", "threads", "ahead"))


if __name__ == "__main__":
    main()
