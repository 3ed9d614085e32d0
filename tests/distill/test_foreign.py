"""Stored answers: what comes back is what was said, by face, in the student's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.foreign import (
    Answers,
    holds_answers,
    in_our_words,
    load_answers,
    rows_for,
    sample_keys,
    save_answers,
    taught_tasks,
)
from distill.losses import hard_loss, soft_loss
from distill.objective import Objective
from edgeface import limits
from edgeface.checkpoint import load_checkpoint
from edgeface.data.loader import answered
from edgeface.data.pack import Pack, pack
from edgeface.data.sources import open_source
from edgeface.errors import ConfigError, DataError, ModelError, UnsupportedError
from edgeface.files import sha256_file
from edgeface.models.heads import heatmap_points
from edgeface.models.network import model_spec
from edgeface.specs import DistillSpec, LossSpec, ModelSpec, NetworkSpec, OutputSpec, output_spec

MEAN = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
STUDENT = model_spec(
    NetworkSpec(backbone="edge_s"), (output_spec("landmarks5", mean_shape=MEAN), output_spec("gender"))
)


@pytest.fixture(scope="module")
def faces() -> Pack:
    return pack(open_source("synthetic:12@train", root=Path()), px=24, margin=1.5)


def made(folder: Path, faces: Pack, *, model: ModelSpec = STUDENT, rows: int = 12) -> Answers:
    rng = np.random.default_rng(0)
    outputs: Mapping[str, NDArray[np.float32]] = {
        output.name: rng.normal(size=(rows, *output.shape)).astype(np.float32) for output in model.outputs
    }
    return save_answers(
        folder,
        model=model,
        keys=sample_keys(faces)[:rows],
        outputs=outputs,
        licences=["theirs"],
        research_only=False,
        extra={"key": "k"},
    )


def test_answers_come_back_as_they_were_stored(tmp_path: Path, faces: Pack) -> None:
    stored = made(tmp_path / "answers", faces)
    again = load_answers(tmp_path / "answers")
    assert again.model == STUDENT
    assert again.keys == tuple(f"synthetic@train/{place:08d}" for place in range(12))
    assert again.outputs["gender"].shape == (12, 2)
    assert np.array_equal(again.outputs["gender"], stored.outputs["gender"])
    assert (again.licences, again.research_only, again.key) == (("theirs",), False, "k")
    assert holds_answers(tmp_path / "answers")


def test_an_altered_folder_is_refused(tmp_path: Path, faces: Pack) -> None:
    folder = made(tmp_path / "answers", faces).folder
    names = json.loads((folder / "keys.json").read_text())
    (folder / "keys.json").write_text(json.dumps(names[::-1]))
    with pytest.raises(ModelError, match="does not match the manifest's sha256"):
        load_answers(folder)
    (folder / "keys.json").unlink()
    with pytest.raises(ModelError, match="is not there"):
        load_answers(folder)


def test_an_archive_of_others_with_fewer_keys_is_read_and_a_short_one_refused(tmp_path: Path, faces: Pack) -> None:
    model = {"name": "theirs", "input_px": 24, "outputs": [{"name": "sex", "task": "gender", "shape": [2]}]}
    (tmp_path / "keys.json").write_text(json.dumps(sample_keys(faces)))

    def written(count: int) -> None:
        np.savez(tmp_path / "answers.npz", sex=np.zeros((count, 2), np.float32))
        files = {name: sha256_file(tmp_path / name) for name in ("keys.json", "answers.npz")}
        manifest = {"schema": 1, "kind": "answers", "model": model, "files": files}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    written(12)
    assert load_answers(tmp_path).outputs["sex"].shape == (12, 2)
    assert load_answers(tmp_path).research_only  # nobody said it is not
    written(11)
    with pytest.raises(ModelError, match=r"\(11, 2\).* 12 faces"):
        load_answers(tmp_path)


def test_an_archive_that_unpacks_beyond_the_limit_is_refused_unread(
    tmp_path: Path, faces: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_an_archive_of_others_with_fewer_keys_is_read_and_a_short_one_refused(tmp_path, faces)
    monkeypatch.setattr(limits, "WEIGHTS_BYTES", 100)
    with pytest.raises(ModelError, match="at most 100 are read"):
        load_answers(tmp_path)


def test_folders_of_several_corpora_count_as_one(tmp_path: Path, faces: Pack) -> None:
    made(tmp_path / "drawn", faces)
    other = replace(faces, name="elsewhere")
    made(tmp_path / "more", other, rows=5)
    both = load_answers(tmp_path)
    assert holds_answers(tmp_path)
    assert len(both.keys) == 17
    assert both.keys[-1] == "elsewhere/00000004"
    assert len(both.outputs["gender"]) == 17
    made(tmp_path / "again", faces)
    with pytest.raises(DataError, match="two of its folders"):
        load_answers(tmp_path)


def test_rows_stand_in_the_order_of_the_training_faces_and_missing_ones_are_empty(tmp_path: Path, faces: Pack) -> None:
    stored = made(tmp_path / "answers", faces, rows=7)
    backwards = replace(
        stored,
        keys=stored.keys[::-1],
        outputs={name: values[::-1] for name, values in stored.outputs.items()},
    )
    for answers in (stored, backwards):
        rows = rows_for(answers, [faces], STUDENT, names={})
        assert np.array_equal(rows["gender"][:7], stored.outputs["gender"])
        assert rows["gender"][7:].isnan().all()
        assert rows["landmarks5"][7:].isnan().all()
    swapped = replace(stored, keys=(stored.keys[1], stored.keys[0], *stored.keys[2:]))
    assert not np.array_equal(rows_for(swapped, [faces], STUDENT, names={})["gender"][:7], stored.outputs["gender"])


def test_stored_landmarks_become_points_of_the_packed_crop(tmp_path: Path, faces: Pack) -> None:
    stored = made(tmp_path / "answers", faces)
    exact = np.stack([(faces.labels["landmarks5"] - 0.5) * 1.5 + 0.5 - np.asarray(MEAN, np.float32)])[0]
    said = replace(stored, outputs={**stored.outputs, "landmarks5": exact})
    rows = rows_for(said, [faces], STUDENT, names={})
    # float32 of values about 1, through one product and three sums.
    np.testing.assert_allclose(rows["landmarks5"], faces.labels["landmarks5"], atol=1e-6)
    wrong = rows_for(replace(said, model=_moved(said.model)), [faces], STUDENT, names={})  # the twin
    assert np.abs(wrong["landmarks5"].numpy() - faces.labels["landmarks5"]).max() > 0.05


def test_stored_heatmaps_become_points_and_teach_a_student_of_heatmaps(tmp_path: Path, faces: Pack) -> None:
    mapped = replace(STUDENT.output("landmarks5"), shape=(6, 7, 5), heatmap=True)
    model = replace(STUDENT, outputs=(mapped, STUDENT.output("gender")))
    stored = made(tmp_path / "answers", faces, model=model)
    told = rows_for(stored, [faces], model, names={})["landmarks5"]
    points = heatmap_points(stored.outputs["landmarks5"])
    np.testing.assert_allclose(told, (points - 0.5) / 1.5 + 0.5, atol=1e-6)

    outputs, labels = batch()
    maps = torch.from_numpy(stored.outputs["landmarks5"][:6])
    plain = torch.from_numpy(points[:6]) - torch.tensor(MEAN)
    losses = [
        replace(objective(), model=spec).losses({**outputs, "landmarks5": value}, torch.zeros(6, 3, 8, 8), labels)
        for spec, value in ((model, maps), (STUDENT, plain), (STUDENT, plain * 1.5))
    ]
    found, same, other = (float(one.parts["landmarks5"].detach()) for one in losses)
    assert found == pytest.approx(same, rel=1e-4)
    assert found != pytest.approx(other, rel=1e-2)  # twin


def _moved(model: ModelSpec) -> ModelSpec:
    shape = tuple((x + 0.1, y) for x, y in MEAN)
    return replace(model, outputs=(replace(model.output("landmarks5"), mean_shape=shape), model.output("gender")))


def test_faces_that_nobody_answered_for_are_an_error(tmp_path: Path, faces: Pack) -> None:
    stored = replace(made(tmp_path / "answers", faces), keys=tuple(f"other/{place}" for place in range(12)))
    with pytest.raises(DataError, match="none of the 12 training faces"):
        rows_for(stored, [faces], STUDENT, names={})
    with pytest.raises(DataError, match="two training faces are called 'synthetic@train/00000000'"):
        rows_for(made(tmp_path / "again", faces), [faces, faces], STUDENT, names={})


def test_outputs_of_others_teach_under_our_names() -> None:
    theirs = ModelSpec(
        name="theirs",
        input_px=24,
        outputs=(
            OutputSpec(name="sex", task="gender", shape=(2,)),
            OutputSpec(name="gender", task="gender", shape=(2,)),
            OutputSpec(name="unknown", task="gender", shape=(9,)),
        ),
    )
    ours = in_our_words(theirs, {"sex": "gender"}, where="theirs")
    assert [output.name for output in ours.outputs] == ["gender"]
    assert taught_tasks(ours, STUDENT, where="theirs") == ["gender"]
    with pytest.raises(ConfigError, match=r"no output 'sxe'.*Did you mean 'sex'"):
        in_our_words(theirs, {"sxe": "gender"}, where="theirs")
    with pytest.raises(ConfigError, match="one of the recipe's tasks: 'landmarks5', 'gender'"):
        taught_tasks(in_our_words(theirs, {"sex": "smile", "gender": "pose"}, where="t"), STUDENT, where="theirs")
    with pytest.raises(ConfigError, match="a mean shape of 0 points"):
        taught_tasks(
            replace(STUDENT, outputs=(replace(STUDENT.output("landmarks5"), mean_shape=()),)), STUDENT, where="theirs"
        )
    reversed_classes = replace(output_spec("gender"), classes=("female", "male"))
    with pytest.raises(ConfigError, match="'female', 'male'"):
        taught_tasks(replace(STUDENT, outputs=(reversed_classes,)), STUDENT, where="theirs")


def objective(**changes: object) -> Objective:
    told = {"stored": frozenset({"gender", "landmarks5"}), "distill": DistillSpec(soft=0.25), **changes}
    return Objective(model=STUDENT, weights={"landmarks5": 1.0, "gender": 0.5}, loss=LossSpec(), **told)  # type: ignore[arg-type]


def batch() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Six samples: 0, 1 with answer and label, 2 with an answer alone, 3, 4 with a label alone, 5 with neither."""
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "gender": torch.randn(6, 2, generator=generator, requires_grad=True),
        "landmarks5": (0.1 * torch.randn(6, 5, 2, generator=generator)).requires_grad_(),
    }
    gender = torch.tensor([0, 1, -1, 1, 0, -1])
    points = torch.rand(6, 5, 2, generator=generator)
    points[[2, 5]] = torch.nan
    said, told = torch.randn(6, 2, generator=generator), torch.rand(6, 5, 2, generator=generator)
    said[3:], told[3:] = torch.nan, torch.nan
    labels = {"gender": gender, "landmarks5": points, answered("gender"): said, answered("landmarks5"): told}
    return outputs, labels


def test_stored_answers_teach_as_the_sum_over_samples_says() -> None:
    outputs, labels = batch()
    found = objective()
    losses = found.losses(outputs, torch.zeros(6, 3, 8, 8), labels)
    for name in ("gender", "landmarks5"):
        output, total = STUDENT.output(name), 0.0
        mean = torch.tensor(MEAN) if name == "landmarks5" else torch.zeros(())
        for row, soft_share, hard_share in (
            (0, 0.25, 0.75),
            (1, 0.25, 0.75),
            (2, 1.0, 0.0),
            (3, 0.0, 1.0),
            (4, 0.0, 1.0),
        ):
            one = slice(row, row + 1)
            hard = hard_loss(output, outputs[name][one], labels[name][one], spec=LossSpec())
            if soft_share:
                soft = soft_loss(
                    output,
                    outputs[name][one],
                    labels[answered(name)][one] - mean,
                    teacher_output=output,
                    labels=labels[name][one],
                    distill=found.distill,
                    spec=LossSpec(),
                )
                total += soft_share * float(soft.detach())
            total += hard_share * float(hard.detach())
        # Five samples taught it; float32 sums of five values of about 1.
        assert float(losses.parts[name].detach()) == pytest.approx(total / 5, rel=1e-5)
        changed = {**labels, answered(name): labels[answered(name)] * 1.5}  # the twin
        assert float(found.losses(outputs, torch.zeros(6, 3, 8, 8), changed).parts[name].detach()) != pytest.approx(
            total / 5, rel=1e-3
        )


def test_a_sample_with_neither_answer_nor_label_gets_no_gradient() -> None:
    outputs, labels = batch()
    total, _ = objective()(outputs, torch.zeros(6, 3, 8, 8), labels)
    total.backward()  # type: ignore[no-untyped-call]
    for value in outputs.values():
        assert value.grad is not None
        assert value.grad.isfinite().all()
        assert value.grad[5].abs().max() == 0.0
        assert value.grad[:5].flatten(1).abs().amax(dim=1).min() > 0.0


def test_without_an_answer_or_a_label_in_the_batch_nothing_is_taught() -> None:
    outputs, labels = batch()
    silent = {name: value.clone() for name, value in labels.items()}
    silent["gender"][:] = -1
    silent[answered("gender")][:] = torch.nan
    losses = objective().losses(outputs, torch.zeros(6, 3, 8, 8), silent)
    assert float(losses.parts["gender"].detach()) == 0.0
    assert float(losses.present["gender"]) == 0.0
    assert float(losses.present["landmarks5"]) == 1.0


def test_losses_that_compare_samples_see_only_the_answered_ones() -> None:
    outputs, labels = batch()
    told = objective(distill=DistillSpec(soft=1.0, losses={"gender": "dist"}))
    value = told.losses(outputs, torch.zeros(6, 3, 8, 8), labels).parts["gender"].detach()
    assert value.isfinite()
    other = {**outputs, "gender": outputs["gender"].detach().clone()}
    other["gender"][5] += 3.0  # the sample with neither
    assert float(told.losses(other, torch.zeros(6, 3, 8, 8), labels).parts["gender"].detach()) == float(value)
    other["gender"][0] += torch.tensor([1.0, 0.0])
    assert float(told.losses(other, torch.zeros(6, 3, 8, 8), labels).parts["gender"].detach()) != float(value)


def test_answers_are_no_checkpoint_and_say_why(tmp_path: Path, faces: Pack) -> None:
    with pytest.raises(UnsupportedError, match=r"a teacher's stored answers.*no form in any target's files"):
        load_checkpoint(made(tmp_path / "answers", faces).folder)
