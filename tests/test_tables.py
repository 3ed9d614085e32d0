"""The names a recipe may use are exactly the keys of the stages' own tables."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import pytest

from edgeface import specs
from edgeface.cli.doctor import TARGET_PACKAGES
from edgeface.cli.main import VERBS
from edgeface.tasks import EYES, MIRROR_POINTS, TASKS, Kind

TABLES: dict[str, tuple[Sequence[str], str, str]] = {
    "backbones": (specs.BACKBONES, "edgeface.models.backbones", "BUILDERS"),
    "corpora": (specs.CORPORA, "edgeface.data.sources", "READERS"),
    "landmark losses": (specs.LANDMARK_LOSSES, "distill.losses", "LANDMARK_LOSSES"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_stage_table_has_the_names_of_the_specs(name: str) -> None:
    names, module, attribute = TABLES[name]
    table = getattr(importlib.import_module(module), attribute)
    assert isinstance(table, Mapping)
    assert sorted(table) == sorted(names)


def test_teachers_research_networks_and_students_are_the_backbones() -> None:
    assert len(set(specs.BACKBONES)) == len(specs.BACKBONES)
    assert (*specs.TEACHERS, *specs.RESEARCH, *specs.STUDENTS) == specs.BACKBONES


def test_the_runtimes_that_run_tflite_are_runtimes() -> None:
    from targets.runners import TFLITE_RUNTIMES

    assert set(TFLITE_RUNTIMES) < set(specs.RUNTIMES)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_with_the_two_functions(verb: str) -> None:
    module = importlib.import_module(VERBS[verb][0])
    assert callable(module.add_arguments)
    assert callable(module.run)


def test_every_target_that_the_doctor_knows_is_a_target() -> None:
    assert set(TARGET_PACKAGES) <= set(specs.TARGETS)


def test_mirror_tables_are_their_own_inverse() -> None:
    for points, partner in MIRROR_POINTS.items():
        assert sorted(partner) == list(range(points))
        assert [partner[other] for other in partner] == list(range(points))
    for task in TASKS.values():
        if task.mirror:
            assert [task.mirror[other] for other in task.mirror] == list(range(len(task.classes)))


def test_every_landmark_task_has_its_eyes() -> None:
    points = {task.points for task in TASKS.values() if task.kind is Kind.LANDMARKS}
    assert points == set(EYES)
