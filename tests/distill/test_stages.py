"""Stages on a handful of drawn faces: identity, feature losses, transfer; stopped and unstopped runs alike."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distill.stages
from distill.stages import (
    TrainingData,
    batches_for,
    begin_network,
    chosen,
    objective_with,
    people_in,
    stage_key,
    teacher_key,
    train_student,
    train_teacher,
    training_data,
)
from edgeface.checkpoint import COMPANIONS, Checkpoint
from edgeface.config import from_plain
from edgeface.errors import ConfigError, InterruptedRun, ModelError
from edgeface.models.network import model_spec
from edgeface.specs import DistillSpec, LossSpec, NetworkSpec, Recipe, StoppingSpec, TransferSpec
from quantize.stage import train_qat

pytestmark = pytest.mark.slow


def recipe(**changes: object) -> Recipe:
    train = {"epochs": 3.0, "batch": 16, "warmup_epochs": 0.0, "checkpoint_s": 1e-6}
    return from_plain(
        Recipe,
        {
            "name": "tiny",
            "threads": 1,
            "data": {"train": ["synthetic:64@train"], "pack_px": 40},
            "tasks": {"identity": 1.0, "gender": 0.5},
            "teacher": {"network": {"backbone": "vgg16", "width": 0.125, "input_px": 32}, "train": train},
            "student": {"network": {"backbone": "edge_s", "width": 0.25, "input_px": 32}, "train": train},
            "qat": {"train": train, "calibration_batches": 2},
            **changes,
        },
        where="test",
    )


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return training_data(recipe())


@pytest.fixture(scope="module")
def teacher(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train_teacher(recipe(), data, tmp_path_factory.mktemp("run") / "teacher")


def companions(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint.companions().items()}


def test_a_teacher_learns_identity_from_labels(data: TrainingData, teacher: Checkpoint) -> None:
    assert people_in(batches_for(recipe(), data, spec=recipe().teacher.train, input_px=32, seed=0)) == 16
    assert companions(teacher) == {"people.weight": (16, 128), "people.bias": (16,), "people.centres": (16, 128)}
    assert teacher.companions()["people.centres"].abs().max() > 0.0
    assert not any(name.startswith("people") for name in teacher.weights())


LOSSES = {"gender": "dkd", "identity": "cosine", "features": "hint"}


@pytest.mark.parametrize("stop_at", [5, 9])
def test_a_stopped_student_ends_with_the_same_bits_companions_included(
    data: TrainingData, teacher: Checkpoint, tmp_path: Path, stop_at: int
) -> None:
    told = recipe(distill={"losses": LOSSES}, loss={"forms": {"identity": "center"}})
    whole = train_student(told, data, tmp_path / "whole", teacher=teacher)

    def raise_at(network: torch.nn.Module, step: int, steps: int) -> None:
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        plain = distill.stages.train
        patch.setattr(distill.stages, "train", lambda *a, **k: plain(*a, **k, before_step=raise_at))
        with pytest.raises(InterruptedRun):
            train_student(told, data, tmp_path / "stopped", teacher=teacher)
    resumed = train_student(told, data, tmp_path / "stopped", teacher=teacher)
    assert whole.manifest["files"] == resumed.manifest["files"]
    assert {name.split(".")[0] for name in whole.companions()} == {"people", "adapters"}
    other = train_student(replace(told, seed=1), data, tmp_path / "other", teacher=teacher)
    assert other.manifest["files"][COMPANIONS] != whole.manifest["files"][COMPANIONS]  # the twin


def test_qat_goes_on_with_the_students_classifier_and_the_network_holds_none(
    data: TrainingData, teacher: Checkpoint, tmp_path: Path
) -> None:
    told = recipe(distill={"losses": LOSSES})
    student = train_student(told, data, tmp_path / "student", teacher=teacher)
    objective = objective_with(told, student.model, teacher=teacher, people=16, start=student)
    assert objective.people is not None
    assert torch.equal(objective.people.weight, student.companions()["people.weight"])
    anew = objective_with(told, student.model, teacher=teacher, people=16)
    assert anew.people is not None
    assert not torch.equal(anew.people.weight, student.companions()["people.weight"])  # the twin
    with pytest.raises(ConfigError, match=r"16 people in .*, 17 in the training data"):
        objective_with(told, student.model, teacher=teacher, people=17, start=student)
    qat = train_qat(told, data, tmp_path / "qat", student=student, teacher=teacher)
    assert set(companions(qat)) == {"people.weight", "people.bias", "people.centres"}
    assert not any("people" in name or "adapters" in name for name in qat.weights())
    assert "heads_identity.weight" in qat.weights()


def test_a_checkpoint_without_companions_has_no_such_file(data: TrainingData, tmp_path: Path) -> None:
    told = recipe(tasks={"gender": 1.0})
    checkpoint = train_teacher(told, training_data(told), tmp_path / "teacher")
    assert COMPANIONS not in checkpoint.manifest["files"]
    assert checkpoint.companions() == {}


def test_a_frozen_prefix_stays_as_it_started_and_the_rest_moves(
    data: TrainingData, teacher: Checkpoint, tmp_path: Path
) -> None:
    start = {"start": str(teacher.folder), "frozen_prefix": 3}
    plain = recipe().teacher
    told = replace(recipe(), teacher=replace(plain, transfer=TransferSpec(**start)), seed=5)  # type: ignore[arg-type]
    finetuned = train_teacher(told, data, tmp_path / "teacher")
    before, after = teacher.weights(), finetuned.weights()
    names = {f"backbone.conv{block}.norm.running_mean" for block in ("1_1", "1_2", "2_1")}
    prefix = [name for name in before if name.startswith(("backbone.conv1_", "backbone.conv2_1."))]
    assert names <= set(prefix)
    assert all(torch.equal(before[name], after[name]) for name in prefix)
    assert not torch.equal(before["backbone.conv2_2.conv.weight"], after["backbone.conv2_2.conv.weight"])
    assert not torch.equal(before["backbone.conv2_2.norm.running_mean"], after["backbone.conv2_2.norm.running_mean"])


def test_a_start_is_part_of_what_a_result_is_recognised_by(
    data: TrainingData, teacher: Checkpoint, tmp_path: Path
) -> None:
    scratch = train_teacher(recipe(), data, tmp_path / "scratch")
    spec = replace(recipe().teacher, transfer=TransferSpec(start=str(teacher.folder)))
    started = train_teacher(replace(recipe(), teacher=spec), data, tmp_path / "started")
    assert scratch.manifest["key"] == teacher.manifest["key"] != started.manifest["key"]
    # What `edgeface distill` looks for among earlier runs, to link their teacher.
    assert teacher_key(recipe(), data) == scratch.manifest["key"]
    assert teacher_key(replace(recipe(), teacher=spec), data) == started.manifest["key"]


def test_validation_faces_are_part_of_a_digest_where_they_decide_which_tasks_stop(data: TrainingData) -> None:
    def key(mode: str, val: str) -> str:
        spec = replace(recipe().teacher, stopping=StoppingSpec(mode=mode))
        return teacher_key(replace(recipe(), teacher=spec), replace(data, val=(val,)))

    one, other = "synthetic:16@val", "synthetic:24@val"
    for mode in ("each", "all"):
        assert key(mode, one) == key(mode, one) != key(mode, other)
    # Elsewhere they decide nothing, and runs keep the digest they always had.
    assert key("none", one) == key("none", other) == teacher_key(recipe(), data)


def test_a_start_that_is_missing_or_does_not_fit_is_refused(teacher: Checkpoint, tmp_path: Path) -> None:
    spec = recipe().teacher
    model = model_spec(spec.network, teacher.model.outputs)
    with pytest.raises(ModelError, match="no such folder"):
        begin_network(replace(spec, transfer=TransferSpec(start=str(tmp_path / "none"))), model, seed=0)
    wider = replace(spec, network=replace(spec.network, width=0.25))
    with pytest.raises(ConfigError, match="block 1 has other shapes"):
        begin_network(replace(wider, transfer=TransferSpec(start=str(teacher.folder))), model, seed=0)
    with pytest.raises(ConfigError, match="frozen_prefix"):
        TransferSpec(frozen_prefix=2)


def test_specs_that_choose_nothing_new_keep_the_digest_of_earlier_runs(data: TrainingData) -> None:
    assert set(chosen(LossSpec())) == {"landmarks", "wing_width", "wing_curvature", "label_smoothing"}
    assert set(chosen(DistillSpec())) == {"soft", "temperature"}
    network = NetworkSpec(backbone="edge_s")
    later = {"activation", "landmark_head"}
    assert set(chosen(network)) == {field.name for field in dataclasses.fields(network)} - later
    told = recipe()
    prelu = replace(told.student.network, activation="prelu")
    keys = [
        stage_key("student", told, data, network=spec, spec=told.student.train)
        for spec in (told.student.network, prelu)
    ]
    assert keys[0] != keys[1]
