"""Labels that follow from other labels: against the drawn faces, whose truth is known, and what is left open."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeface.cli.main import main
from edgeface.data.augment import augment
from edgeface.data.derive import DERIVATIONS, OPENINGS, derived, eyes_open, merge_glasses, mouth_open, ratio
from edgeface.data.geometry import relabel_mirrored
from edgeface.data.pack import Pack
from edgeface.data.synthetic import label
from edgeface.errors import ConfigError
from edgeface.specs import DERIVED, AugmentSpec, DataSpec, ModelSpec, output_spec
from edgeface.tasks import MIRROR_POINTS, TASKS

LABELS = label(np.arange(1500), seed=0, px=144)
EYES = np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.55], [0.4, 0.7], [0.6, 0.7]], np.float32)


def of(labels: dict[str, np.ndarray]) -> Pack:
    count = len(next(iter(labels.values())))
    return Pack(
        images=np.zeros((count, 8, 8, 3), np.uint8),
        px=8,
        margin=1.0,
        keys=tuple(map(str, range(count))),
        people=("",) * count,
        labels=labels,
        groups={},
        name="test",
        source="test",
        split="train",
        licence="",
        research_only=False,
        skipped={},
        content_hash="",
        folder=Path(),
    )


def test_the_table_has_the_names_of_the_specs() -> None:
    assert tuple(DERIVATIONS) == DERIVED
    with pytest.raises(ConfigError, match=r"derive\[0\]: 'pose'"):
        DataSpec(train=("synthetic:8",), derive=("pose",))
    with pytest.raises(ConfigError, match=r"data\.derive"):
        derived(of({"landmarks5": EYES[None]}), ["pose"])


@pytest.mark.parametrize("points", OPENINGS)
@pytest.mark.parametrize(("rule", "task"), [(eyes_open, "eyes_open"), (mouth_open, "mouth_open")])
def test_openings_of_the_drawn_faces_are_found(points: int, rule: object, task: str) -> None:
    assert callable(rule)
    found, truth = rule(LABELS[f"landmarks{points}"]), LABELS[task]
    frontal = LABELS["pose"] == 2
    agree = (found == truth)[frontal]
    shares = [agree[truth[frontal] == value].mean() for value in (0, 1)]
    assert min(shares) > 0.97, shares  # each class on its own: shut eyes are rare
    swapped = rule(LABELS[f"landmarks{points}"][::-1])
    assert np.mean([(swapped == truth)[truth == value].mean() for value in (0, 1)]) < 0.6  # the twin: other faces


@pytest.mark.parametrize("points", OPENINGS)
def test_the_two_eyes_are_each_others_mirror_image(points: int) -> None:
    partner = MIRROR_POINTS[points]
    left, right, mouth = OPENINGS[points]
    assert {partner[end] for end in left.span} == set(right.span)
    assert {tuple(partner[p] for p in pair) for pair in left.pairs} == set(right.pairs)
    assert {partner[end] for end in mouth.span} == set(mouth.span)
    assert {tuple(partner[p] for p in pair) for pair in mouth.pairs} == set(mouth.pairs)


@given(
    angle=st.floats(-3.0, 3.0),
    scale=st.floats(0.01, 100.0),
    x=st.floats(-50.0, 50.0),
)
def test_a_ratio_does_not_depend_on_where_and_how_large_a_face_is(angle: float, scale: float, x: float) -> None:
    points = LABELS["landmarks68"][:20].astype(np.float64)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * scale
    for opening in OPENINGS[68]:
        np.testing.assert_allclose(ratio(points @ turn + x, opening), ratio(points, opening), rtol=1e-6, atol=1e-9)
    stretched = points * [1.0, 2.0]
    assert not np.allclose(ratio(stretched, OPENINGS[68][0]), ratio(points, OPENINGS[68][0]))


def test_a_face_without_landmarks_stays_without_a_label() -> None:
    points = LABELS["landmarks68"][:3].copy()
    points[1] = np.nan
    assert eyes_open(points)[1] == mouth_open(points)[1] == -1
    assert (eyes_open(points)[[0, 2]] >= 0).all()
    points[2] = 5.0  # all points in one place: no span to compare with
    assert eyes_open(points)[2] == -1


def test_two_questions_about_glasses_become_three_classes() -> None:
    eyeglasses = np.array([0, 1, 0, 1, -1, -1, 1, 0, -1])
    dark = np.array([0, 0, 1, 1, 1, 0, -1, -1, -1])
    assert merge_glasses(eyeglasses, dark).tolist() == [0, 1, 2, 2, 2, -1, -1, -1, -1]
    assert merge_glasses(dark, eyeglasses).tolist() != merge_glasses(eyeglasses, dark).tolist()
    three = LABELS["glasses3"]
    merged = merge_glasses((three == 1).astype(np.int64), (three == 2).astype(np.int64))
    np.testing.assert_array_equal(merged, three)


def test_own_labels_are_kept_and_holes_are_filled() -> None:
    labels = {"landmarks68": LABELS["landmarks68"][:4].copy(), "eyes_open": np.array([0, 1, -1, -1])}
    labels["landmarks68"][3] = np.nan
    rule = eyes_open(labels["landmarks68"])
    found = derived(of(labels), ["eyes_open", "mouth_open", "glasses"]).labels
    assert found["eyes_open"].tolist() == [0, 1, rule[2], -1]
    assert found["mouth_open"].tolist() == mouth_open(labels["landmarks68"]).tolist()
    assert "glasses" not in found  # nothing to derive it from
    assert labels["eyes_open"].tolist() == [0, 1, -1, -1]  # the corpus's own are not changed
    glasses = derived(of({"glasses3": np.array([0, 1, 2, -1])}), ["glasses"]).labels["glasses"]
    assert glasses.tolist() == [0, 1, 1, -1]


def test_eyes_are_clear_where_landmarks_are_and_nothing_says_otherwise() -> None:
    points = np.repeat(EYES[None], 4, axis=0)
    points[3] = np.nan
    found = derived(of({"landmarks5": points, "occlusion": np.array([0, 1, -1, 0])}), ["eyes_occluded"]).labels
    assert found["eyes_occluded"].tolist() == [[0, 0], [-1, -1], [0, 0], [-1, -1]]
    assert found["eyes_occluded"].dtype == np.int8


def covered(*, mirror_share: float = 0.0, labels: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """White pictures under patches: the eyes labelled occluded, those whose pixel changed, and where they are."""
    count = 400
    spec = AugmentSpec(
        rotation_deg=10.0,
        mirror_share=mirror_share,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        blur_share=0.0,
        jpeg_share=0.0,
        occlusion_share=1.0,
    )
    asked = {"landmarks5": torch.from_numpy(np.repeat(EYES[None], count, axis=0))}
    value = 0 if labels else -1
    asked["eyes_occluded"] = torch.full((count, 2), value, dtype=torch.int8)
    images, moved = augment(
        torch.full((count, 64, 64, 3), 255, dtype=torch.uint8),
        asked,
        spec=spec,
        margin=1.0,
        out_px=64,
        seed=0,
        epoch=0,
        ids=torch.arange(count),
    )
    eyes = moved["landmarks5"][:, :2].numpy()
    places = np.clip((eyes * 64).astype(int), 0, 63)
    rows = np.arange(count)[:, None]
    changed = images.numpy()[rows, :, places[..., 1], places[..., 0]].min(axis=2) < 255
    return moved["eyes_occluded"].numpy(), changed, eyes


@pytest.mark.parametrize("mirror_share", [0.0, 1.0])
def test_the_eye_under_a_patch_is_the_one_labelled_occluded(mirror_share: float) -> None:
    found, changed, eyes = covered(mirror_share=mirror_share)
    assert (eyes[:, 0, 0] < eyes[:, 1, 0]).all()  # left is the image's left, mirrored or not
    inside = (np.abs(eyes - 0.5) < 0.49).all(axis=2)
    # A patch ends between pixel centres, so an eye within half a pixel of its edge may go either way.
    assert ((found == 1) == changed)[inside].mean() > 0.97
    assert 0.05 < (found == 1).mean() < 0.6
    assert ((found[:, ::-1] == 1) == changed)[inside].mean() < 0.9  # the twin: left and right exchanged


def test_faces_without_the_label_get_none_from_a_patch() -> None:
    assert (covered(labels=False)[0] == -1).all()


def test_mirroring_exchanges_the_two_eyes_and_no_other_attribute() -> None:
    labels = {
        "eyes_occluded": torch.tensor([[1, 0], [1, 0], [-1, 1]], dtype=torch.int8),
        "attributes": torch.tensor([[1, 0, 0, -1]] * 3, dtype=torch.int8),
    }
    moved = relabel_mirrored(labels, torch.tensor([True, False, True]))
    assert moved["eyes_occluded"].tolist() == [[0, 1], [1, 0], [1, -1]]
    assert moved["attributes"].tolist() == labels["attributes"].tolist()
    assert TASKS["eyes_occluded"].mirror == (1, 0)


class Guess:
    """Answers "open" to whether the eyes are, of every face."""

    runtime, precision = "torch", "fp32"
    spec = ModelSpec(name="toy", input_px=16, outputs=(output_spec("eyes_open"), output_spec("glasses")))

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.tile(np.array([[0.0, 1.0]], np.float32), (len(batch), 1)) for name in ("eyes_open", "glasses")}


def test_a_model_is_scored_on_labels_that_follow_from_others_and_eval_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("targets.runners.open_to_score", lambda path, **_: Guess())
    truth = LABELS["eyes_open"]
    shown = np.concatenate([np.flatnonzero(truth == 0)[:6], np.flatnonzero(truth == 1)[:6]])
    faces = tmp_path / "faces"
    faces.mkdir()
    Image.new("RGB", (144, 144)).save(faces / "a.png")
    names = [f"{axis}{point}" for point in range(1, 69) for axis in "xy"]

    def written(*, glasses: str) -> dict[str, object]:
        lines = [",".join(["file_name", *glasses.split(), *names])]
        for row in shown:
            cells = ["1"] * len(glasses.split())
            lines.append(",".join(["a.png", *cells, *map(str, (LABELS["landmarks68"][row]).ravel().tolist())]))
        (faces / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
        assert main(["eval", "toy", "--data", f"folder:{faces}", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    found = written(glasses="eyeglasses dark_glasses")
    labels = eyes_open(LABELS["landmarks68"][shown])
    assert {0, 1} == set(labels.tolist())
    assert found["tasks"]["eyes_open"] == {"accuracy": float((labels == 1).mean()), "balanced_accuracy": 0.5, "n": 12}
    assert found["tasks"]["glasses"] == {"accuracy": 1.0, "n": 12}
    assert found["derived"] == ["eyes_open", "glasses"]
    own = written(glasses="glasses")  # the twin: what the faces' own labels say is not derived
    assert own["derived"] == ["eyes_open"]


def test_a_training_asks_for_derived_labels_and_its_digest_says_so(tmp_path: Path) -> None:
    from distill.stages import training_data
    from edgeface.specs import Recipe

    recipe = Recipe(
        name="x",
        data=DataSpec(train=("synthetic:24@train",), val=("synthetic:12@val",), derive=("eyes_occluded",), pack_px=32),
        tasks={"eyes_occluded": 1.0, "landmarks5": 1.0},
    )
    data = training_data(recipe)
    assert set(np.unique(data.train[0].labels["eyes_occluded"])) <= {-1, 0}
    assert "eyes_occluded" in data.validation(32)[0].labels
    plain = dataclasses.replace(recipe, tasks={"landmarks5": 1.0}, data=dataclasses.replace(recipe.data, derive=()))
    other = training_data(plain)
    assert other.content_hash != data.content_hash
    with pytest.raises(ConfigError, match="no training source labels 'eyes_occluded'"):
        training_data(dataclasses.replace(plain, tasks={"eyes_occluded": 1.0}))
