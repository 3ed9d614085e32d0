"""The one-network recipe and its tables: every face teaches every task, and a table says only what was measured."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.all_tasks import (
    DIVISIONS,
    FIGURES,
    RESULT,
    Division,
    Figure,
    commands,
    gaps,
    markdown,
    measure,
    page,
    places,
    summary,
    verdicts,
)
from benchmarks.tables import essence
from distill.stages import batches_for, objective_with, rendered_px
from edgeface.cli.distill import distill
from edgeface.config import load_recipe
from edgeface.data.corpus import unlabelled
from edgeface.data.pack import Pack, pack
from edgeface.data.sources import open_source
from edgeface.errors import ConfigError
from edgeface.models.network import build_network, model_spec
from edgeface.specs import Recipe, output_spec
from edgeface.tasks import TASKS

# What each database of the recipe labels.
LABELS = {
    "mtfl": ("landmarks5", "pose", "gender", "smile", "glasses"),
    "fairface": ("gender", "age"),
    "ferplus": ("expression",),
    "mebeauty": ("gender", "beauty_score"),
}
CPU = "all-tasks-cpu"


def test_the_recipe_without_distillation_is_the_same_but_for_it() -> None:
    own, alone = (essence(load_recipe(name)) for name in (CPU, f"{CPU}-alone"))
    for plain in (own, alone):
        for key in ("name", "summary", "budget"):
            plain.pop(key, None)
    distillation = own.pop("distill", {}), alone.pop("distill", {})
    assert own == alone
    assert distillation == ({"soft": 0.5, "temperature": 2.0}, {"soft": 0.0}) or distillation == ({}, {"soft": 0.0})


@pytest.mark.parametrize("name", [CPU, f"{CPU}-alone", "all-tasks-gpu"])
def test_no_face_that_is_reported_on_is_trained_or_chosen_by(name: str) -> None:
    recipe = load_recipe(name)
    assert {source.partition("@")[0] for source in recipe.data.train} == set(LABELS)
    assert not set(recipe.data.test) & {*recipe.data.train, *recipe.data.val}
    assert "london@test" in recipe.data.test
    assert "fairface@val" in recipe.data.test, "its published list is reported on, not watched"
    assert recipe.data.balance == "database"
    assert set(recipe.tasks) == {task for tasks in LABELS.values() for task in tasks}


def test_every_task_has_one_main_figure_of_faces_that_are_held_out() -> None:
    recipe = load_recipe(CPU)
    assert sorted(figure.task for figure in FIGURES if figure.main) == sorted(recipe.tasks)
    assert {each.source for each in (*FIGURES, *DIVISIONS)} <= set(recipe.data.test)


def databases() -> list[Pack]:
    """Drawn faces in the place of each database, with that database's labels and no others."""
    packs = []
    for place, (name, tasks) in enumerate(LABELS.items()):
        drawn = pack(open_source(f"synthetic:{8 + place}@train", root=Path()), px=64, margin=1.3)
        labels = {task: drawn.labels[task] for task in tasks}
        packs.append(replace(drawn, source=f"{name}@train", labels=labels))
    return packs


@pytest.mark.parametrize("database", LABELS)
def test_every_face_teaches_every_task(database: str) -> None:
    """The student's outputs for the faces of one database get a gradient from every task, labelled there or not."""
    recipe = replace(load_recipe(CPU), threads=1)
    batch, objectives, model = one_batch(recipe, database)
    gradients = {name: by_task(objective, model, batch) for name, objective in objectives.items()}
    assert all(norm > 0.0 for norm in gradients["distilled"].values()), gradients["distilled"]
    taught = {task for task, norm in gradients["labels alone"].items() if norm > 0.0}
    assert taught == set(LABELS[database]), "the twin: without a teacher a hole teaches nothing"


def one_batch(recipe: Recipe, database: str) -> tuple[Any, dict[str, Any], Any]:
    """A batch of one database's faces in a pool of all four; the objectives with and without a teacher; a student."""
    parts = databases()
    mean = tuple((0.3 + 0.1 * place, 0.4) for place in range(5))
    outputs = tuple(output_spec(name, mean_shape=mean if TASKS[name].points else ()) for name in recipe.tasks)
    own = model_spec(recipe.student.network, outputs)
    guide = replace(recipe.teacher.network, width=0.125)
    recipe = replace(recipe, teacher=replace(recipe.teacher, network=guide))
    their = model_spec(guide, outputs)
    torch.manual_seed(0)
    told = objective_with(recipe, own, teacher=None)
    teacher = build_network(guide, their, seed=1).eval()
    distilled = replace(told, teacher=teacher, teacher_model=their)
    start = sum(len(part) for part in parts[: list(LABELS).index(database)])
    batches = batches_for(
        recipe,
        _data(parts),  # type: ignore[arg-type]
        spec=replace(recipe.student.train, batch=8),
        input_px=rendered_px(own, None),
        seed=0,
    )
    batch = batches.at(np.arange(start, start + 8), epoch=0)
    return batch, {"distilled": distilled, "labels alone": told}, own


class _data:  # noqa: N801  what batches_for reads of TrainingData
    def __init__(self, train: list[Pack]) -> None:
        self.train = train


def by_task(objective: Any, model: Any, batch: Any) -> dict[str, float]:
    """Norm of each task's gradient in its own output."""
    outputs = {
        output.name: torch.randn(8, *output.shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
        for output in model.outputs
    }
    parts = objective.losses(outputs, batch.images, batch.labels).parts
    sum(parts.values()).backward()
    return {name: float(value.grad.norm()) if value.grad is not None else 0.0 for name, value in outputs.items()}


def test_an_answer_is_read_by_a_task_with_more_classes_of_the_same_order() -> None:
    for figure in FIGURES:
        if figure.answered_by:
            fewer = TASKS[figure.answered_by].classes
            assert TASKS[figure.task].classes[: len(fewer)] == fewer


def test_the_drawn_databases_have_holes() -> None:
    for part, tasks in zip(databases(), LABELS.values(), strict=True):
        assert set(part.labels) == set(tasks)
    assert (unlabelled(TASKS["gender"], 2) == -1).all()


# --- The tables

ROWS = [
    {"row": "teacher", "seed": 0, "value": (5.0, 0.9)},
    {"row": "alone", "seed": 0, "value": (6.0, 0.80)},
    {"row": "alone", "seed": 1, "value": (6.2, 0.82)},
    {"row": "student", "seed": 0, "value": (5.5, 0.81)},
    {"row": "student", "seed": 1, "value": (5.6, 0.80)},
    {"row": "w8a8", "seed": 0, "value": (5.555, 0.803)},
    {"row": "w8a8", "seed": 1, "value": (5.656, 0.794)},
]
TWO = (
    Figure(task="landmarks5", source="a@test", metric="nme_percent", main=True),
    Figure(task="gender", source="a@test", metric="accuracy", main=True),
)


def rows() -> list[dict[str, Any]]:
    return [
        {
            "row": row["row"],
            "seed": row["seed"],
            "outcome": "MEASURED",
            "reason": "",
            "figures": [
                {"outcome": "MEASURED", "value": value, "n": 100, "unseen": value, "n_unseen": 100}
                for value in row["value"]  # type: ignore[attr-defined]
            ],
        }
        for row in ROWS
    ]


def test_verdicts_compare_models_of_the_same_seed() -> None:
    landmarks, gender = verdicts(TWO, rows())
    assert landmarks["gains"] == pytest.approx([0.5, 0.6])
    assert landmarks["costs"] == pytest.approx([1.0, 1.0])  # percent of an error: 5.555 against 5.5
    assert (landmarks["distilled_better"], landmarks["within"]) == (True, True)
    assert gender["gains"] == pytest.approx([1.0, -2.0])
    assert gender["distilled_better"] is False
    assert gender["costs"] == pytest.approx([0.7, 0.6])  # points of a share
    assert gender["within"] is False


def test_another_figure_gives_another_verdict_twin() -> None:
    changed = rows()
    changed[4]["figures"][1]["value"] = 0.83
    changed[5]["figures"][1]["value"] = 0.81
    assert [each["distilled_better"] for each in verdicts(TWO, changed)] == [True, True]
    changed[3]["figures"][0]["value"] = changed[4]["figures"][0]["value"] = 9.0
    assert verdicts(TWO, changed)[0]["distilled_better"] is False


def test_a_missing_row_is_not_run_and_no_verdict() -> None:
    some = [row for row in rows() if row["row"] != "alone"]
    landmarks, _ = verdicts(TWO, some)
    assert landmarks["distilled_better"] is None
    assert landmarks["within"] is True
    some.append({"row": "alone", "seed": 0, "outcome": "NOT_RUN", "reason": "no runs/x: edgeface distill x"})
    text = markdown({"figures": _plain(TWO), "rows": some, "verdicts": verdicts(TWO, some), "subgroups": []})
    assert "| 5.00 | NOT_RUN | 5.55 ± 0.07 (2) |" in text
    assert "`no runs/x: edgeface distill x`" in text
    assert "0 of 2 tasks, 2 not run" in text
    assert "At least 6 are asked for, over 3 seeds; these are 0." in text


def test_the_short_tables_say_gains_costs_and_gaps() -> None:
    told = {"figures": _plain(TWO), "rows": rows(), "verdicts": verdicts(TWO, rows())}
    landmarks, gender = summary(told).splitlines()[2:]
    assert "| 5.00 | 6.10 ± 0.14 (2) | 5.55 ± 0.07 (2) | 5.61 ± 0.07 (2) | +0.55 | +1.00 % |" in landmarks
    assert gender.endswith("| -0.50 | +0.65 |")
    some = [row for row in rows() if row["row"] != "alone"]
    assert "| NOT_RUN |" in summary({**told, "rows": some, "verdicts": verdicts(TWO, some)})
    row = {"row": "teacher", "seed": 0, "gap": 0.1, "gap_interval": [0.05, 0.2], "by_chance": [0.01, 0.1]}
    divided = {"task": "gender", "by": "race", "metric": "accuracy", "source": "a@test", "groups": [{}, {}]}
    seen = divided | {"outcome": "MEASURED", "rows": [row, row | {"row": "w8a8", "gap": 0.12}]}
    unseen = divided | {"outcome": "NOT_RUN", "reason": "no teacher"}
    one, other = gaps({"subgroups": [seen, unseen]}).splitlines()[2:]
    assert one.endswith("| 2 | 10 (5 to 20) | 12 | 1 to 10 |")
    assert "| NOT_RUN |" in other
    assert gaps({"subgroups": [seen | {"rows": [row]}]}).endswith("| 2 | 10 (5 to 20) | NOT_RUN | 1 to 10 |")


def _plain(figures: tuple[Figure, ...]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(figure) for figure in figures]


def test_trainings_tell_where_they_were_stopped() -> None:
    some = rows()
    for row, stops in zip(some, ([], [70, 900], None, [], [], [], []), strict=True):
        row.update(steps=1000, train_s=7200.0, resumed_at=stops)
    told = {"figures": _plain(TWO), "rows": some, "verdicts": verdicts(TWO, some), "subgroups": []}
    text = markdown(told)
    assert "| teacher | 0 | 1,000 | 2.00 | never |" in text
    assert "| student, labels alone | 0 | 1,000 | 2.00 | 70, 900 |" in text
    assert "| student, labels alone | 1 | 1,000 | 2.00 | not recorded |" in text
    assert "Stopped on the way and resumed: 1 of these 7 trainings." in text
    assert "Not trained as the recipe says" not in text
    some[2]["departs"] = ["student.train.epochs"]
    assert "**Not trained as the recipe says: alone 1** (`student.train.epochs`)." in markdown(told)


def test_small_groups_are_named_and_have_no_figure() -> None:
    row = {"row": "teacher", "seed": 0, "values": [0.9, 0.8], "gap": 0.1, "gap_interval": [0.05, 0.2]}
    row |= {"gap_change_teacher": None, "gap_change_interval": None, "by_chance": [0.01, 0.1]}
    groups = [{"name": "one", "n": 70}, {"name": "two", "n": 40}]
    divided = {"task": "gender", "by": "ethnicity", "metric": "accuracy", "source": "a@test", "outcome": "MEASURED"}
    divided |= {"groups": groups, "minimum": 30, "few": [{"name": "three", "n": 21}], "left_out": 26, "rows": [row]}
    some = rows()
    told = {"figures": _plain(TWO), "rows": some, "verdicts": verdicts(TWO, some), "subgroups": [divided]}
    text = markdown(told)
    assert "| three | 21 | too few |" in text
    assert "Groups of fewer than 30 faces have no figure and no part in the gap. Of 5 faces the group is not" in text
    assert "too few" not in markdown({**told, "subgroups": [divided | {"few": [], "left_out": 0}]})


def test_faces_that_were_trained_on_are_told_apart() -> None:
    some = rows()
    told = {"figures": _plain(TWO), "rows": some, "verdicts": verdicts(TWO, some), "subgroups": []}
    assert "No reported picture also stands among the training faces." in markdown(told)
    changed = copy.deepcopy(some)
    for row in changed:
        row["figures"][1] |= {"n_unseen": 90, "unseen": 0.5}
    text = markdown({**told, "rows": changed})
    assert "Without these faces" in text
    assert "| 90 | 50.00 | 50.00 ± 0.00 (2) |" in text


def test_nothing_there_is_a_page_of_not_run(tmp_path: Path) -> None:
    found = measure(places(CPU, tmp_path), root=tmp_path)
    assert {row["outcome"] for row in found["rows"]} == {"NOT_RUN"}
    assert len(found["rows"]) == 1 + 3 * 3
    left = commands(places(CPU, tmp_path))
    assert left[0] == f"edgeface distill {CPU} --out {tmp_path}/{CPU} --resume"
    assert (len(left), len(set(left))) == (6, 6), "a run makes student and w8a8 file in one"
    text = page(found, recipe=CPU)
    assert f"edgeface distill {CPU} --set seed=1 --set teacher.frozen={tmp_path}/{CPU}/teacher" in text
    assert f"edgeface distill {CPU}-alone --set seed=2 --until student --out {tmp_path}/{CPU}-alone-2 --resume" in text
    assert "MEASURED" not in text
    assert "No reported picture" not in text, "nothing was looked at"


TINY = [
    "threads=1",
    'data.train=["synthetic:64@train"]',
    'data.val=["synthetic:8@val"]',
    'data.test=["synthetic:90@test"]',
    "data.pack_px=40",
    'teacher.network={backbone="vgg16", width=0.125, input_px=32}',
    "student.network.width=0.25",
    "student.network.input_px=32",
    *(f"{stage}.train.{key}" for stage in ("teacher", "student", "qat") for key in ("epochs=1", "batch=32")),
    *(f"{stage}.train.warmup_epochs=0" for stage in ("teacher", "student", "qat")),
    "qat.calibration_batches=1",
]


@pytest.mark.slow
def test_tiny_runs_fill_the_tables(tmp_path: Path) -> None:
    """Two seeds of which one lacks its student from labels; drawn faces in the place of the corpora."""
    named = {place.row + str(place.seed): place for place in places(CPU, tmp_path, seeds=(0, 1))}
    distill(load_recipe(CPU, overrides=TINY), named["student0"].folder.parent)
    frozen = f"teacher.frozen={named['teacher0'].folder}"
    distill(load_recipe(CPU, overrides=[*TINY, "seed=1", frozen]), named["student1"].folder.parent)
    alone = load_recipe(f"{CPU}-alone", overrides=TINY)
    distill(alone, named["alone0"].folder.parent, until="student")
    source = "synthetic:90@test"
    figures = (
        Figure(task="gender", source=source, metric="accuracy", main=True),
        Figure(task="beauty_score", source=source, metric="rmse", main=True),
        Figure(task="gender", source="london@test", metric="accuracy"),
        Figure(task="expression8", source=source, metric="accuracy", answered_by="expression"),
    )
    divisions = (Division(source=source, task="smile", metric="accuracy", by="gender"),)

    found = measure(places(CPU, tmp_path, seeds=(0, 1)), root=tmp_path, figures=figures, divisions=divisions)

    outcomes = {f"{row['row']}{row['seed']}": row["outcome"] for row in found["rows"]}
    assert {name for name, outcome in outcomes.items() if outcome == "NOT_RUN"} == {"alone1"}
    gender, beauty = found["verdicts"]
    assert (len(gender["gains"]), len(gender["costs"])) == (1, 2)
    assert beauty["allowed"] == 2.0
    teacher = next(row for row in found["rows"] if row["row"] == "teacher")
    assert teacher["figures"][2]["outcome"] == "NOT_RUN", "London is not here"
    assert 0.0 <= teacher["figures"][3]["value"] <= 1.0
    (smile,) = found["subgroups"]
    assert smile["outcome"] == "MEASURED"
    assert [row["row"] for row in smile["rows"]] == ["teacher", "w8a8", "w8a8"]
    assert smile["rows"][0]["gap"] == pytest.approx(abs(np.subtract(*smile["rows"][0]["values"])))
    assert smile["rows"][1]["by_chance"][0] <= smile["rows"][1]["by_chance"][1]
    small = [row["size_bytes"] for row in found["rows"] if row["row"] == "w8a8"]
    large = [row["size_bytes"] for row in found["rows"] if row["row"] == "student"]
    assert max(small) < min(large), "the w8a8 row is the built file"
    low, high = gender["cost_interval"]
    assert low <= sum(gender["costs"]) / 2 <= high
    assert gender["gain_interval"][0] <= gender["gains"][0] <= gender["gain_interval"][1]
    assert smile["few"] == []
    text = page(found, recipe=CPU)
    assert "± " in text
    assert "Stopped on the way and resumed: 0 of these 6 trainings." in text
    assert "**Not trained as the recipe says: teacher 0, alone 0, student 0, student 1" in text
    assert "`student.train.epochs`" in text
    assert "`seed`" not in text
    measured = [row for row in found["rows"] if row["outcome"] == "MEASURED"]
    later = {row["row"]: any(key.startswith("qat.") for key in row["departs"]) for row in measured}
    assert later == {"teacher": False, "alone": False, "student": False, "w8a8": True}, "int8 training comes last"

    # A student of other weights is no comparison.
    shutil.copytree(named["alone0"].folder, named["alone1"].folder)
    text = named["alone1"].folder / "recipe.toml"
    text.write_text(text.read_text(encoding="utf-8").replace("smile = 0.3", "smile = 0.9"), encoding="utf-8")
    with pytest.raises(ConfigError, match="differ in more than distillation"):
        measure(places(CPU, tmp_path, seeds=(0, 1)), root=tmp_path, figures=figures, divisions=divisions)


def test_the_committed_page_is_that_of_its_figures() -> None:
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    text = RESULT.with_suffix(".md").read_text(encoding="utf-8")
    assert page(found, recipe=found["recipe"]) == text
    found["verdicts"][0]["costs"][0] += 0.1
    assert page(found, recipe=found["recipe"]) != text  # the twin
