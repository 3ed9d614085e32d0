"""A model card says, for every target, what is predicted, under which terms, how well, and what it is not for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeface.config import to_plain
from edgeface.precision import TARGETS
from edgeface.specs import ModelSpec, output_spec
from edgeface.tasks import TASKS
from targets.artifacts import SUFFIXES
from targets.bundle import crop_contract, input_contract, output_contract, write_model_card
from targets.codegen import GENERATORS
from targets.meaning import MEANING
from targets.model_card import model_card

JUDGED = ("gender", "age", "beauty", "beauty_score", "expression", "identity", "attributes")
LICENCE = "mtfl: research only (MTFL, Chinese University of Hong Kong)"


def manifest_of(
    target: str, *, tasks: tuple[str, ...] = tuple(TASKS), research_only: bool = True, float_input: bool = False
) -> dict[str, Any]:
    """A manifest as bundle.write_bundle writes it."""
    outputs = tuple(output_spec(task, mean_shape=((0.5, 0.5),) * TASKS[task].points) for task in tasks)
    spec = ModelSpec(name="edge_s", input_px=64, outputs=outputs)
    files = {
        f"edge_s.{precision}{SUFFIXES[target]}": {"precision": precision, "size_bytes": 1234, "float_layers": []}
        for precision in ("fp16", "w8a8")
    }
    return {
        "target": target,
        "name": "edge_s",
        "model": to_plain(spec),
        "input": input_contract(spec, target=target, float_input=float_input),
        "crop": crop_contract(spec),
        "outputs": [output_contract(output) for output in spec.outputs],
        "files": files,
        "licences": [LICENCE],
        "research_only": research_only,
        "versions": {"edgeface": "0.1.0"},
        "checkpoints": {"qat": "ab" * 32},
        "provenance": {"qat": {"command": "edgeface distill mtfl-cpu", "seed": 7}},
        **({"ios": 18} if target == "ios" else {}),
    }


def scorecard_of(*, nme: float, outcome: str = "PASS") -> dict[str, Any]:
    """The parts of a scorecard that a model card shows."""
    cell = {"metric": "nme_percent", "value": nme}
    row = {"runtime": "r", "precision": "w8a8", "outcome": outcome, "reason": "no such phone"}
    return {
        "source": "mtfl@val",
        "samples": 978,
        "skipped": {"no picture": 2},
        "conditions": {"date": "2026-11-21", "machine": {"model": "AMD EPYC"}},
        "rows": [
            {**row, "model": "edge_s.w8a8", "tasks": {"landmarks5": cell}},
            {**row, "model": "edge_s.fp16", "tasks": {}},
        ],
    }


@pytest.mark.parametrize("target", TARGETS)
def test_card_of_every_target_is_whole(target: str) -> None:
    text = model_card(manifest_of(target))

    sections = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert sections == [
        "What it predicts",
        "Files",
        "Input",
        "How to run it",
        "What the answers mean, and what they do not",
        "Training data and licences",
        "Measured",
        "Limits",
        "Made with",
    ]
    assert all(f"| {task} | 1 × " in text for task in TASKS)
    assert LICENCE in text
    assert "edgeface distill mtfl-cpu`, seed 7" in text
    assert f"edge_s.w8a8{SUFFIXES[target]}" in text.split("## How to run it")[1].split("## What the")[0]
    assert all(name in text for name, _ in GENERATORS[target])
    assert "(sum + 2^21) >> 22" in text
    assert "Colour order RGB" in text


def test_every_target_has_a_way_to_run() -> None:
    ways = {model_card(manifest_of(target)).split("## How to run it")[1] for target in TARGETS}
    assert len(ways) == len(TARGETS)
    assert "iOS 18 or newer" in model_card(manifest_of("ios"))
    assert "iOS 18" not in model_card(manifest_of("android"))


@pytest.mark.parametrize(
    ("target", "float_input", "expected"),
    [
        ("android", False, "uint8 [1, 64, 64, 3] (NHWC), 0 to 255"),
        ("ios", False, "an RGB image"),
        ("openvino", True, "done by the caller"),
    ],
)
def test_card_says_what_the_input_is(target: str, float_input: bool, expected: str) -> None:
    assert expected in model_card(manifest_of(target, float_input=float_input))
    assert expected not in model_card(manifest_of(target, float_input=target != "openvino"))  # the twin


def test_card_says_what_answers_about_people_do_not_mean() -> None:
    meanings = model_card(manifest_of("android")).split("## What the answers mean")[1].split("## Training")[0]

    assert all(f"- **{task}**: {MEANING[task]}" in meanings for task in JUDGED)
    assert "Not for decisions about a person" in meanings
    about_pictures = model_card(manifest_of("android", tasks=("landmarks5",)))
    assert "Nothing here judges a person" in about_pictures
    assert "**gender**" not in about_pictures


def test_every_task_that_judges_a_person_has_its_meaning() -> None:
    of_the_picture = ("pose", "smile", "glasses", "glasses3", "eyes_open", "mouth_open", "occlusion", "eyes_occluded")
    assert set(TASKS) - set(MEANING) == {*of_the_picture, *(task for task in TASKS if task.startswith("landmarks"))}


def test_research_only_stands_at_the_top_and_only_where_it_is_true() -> None:
    assert "**Research only.**" in model_card(manifest_of("ios")).split("## What it predicts")[0]
    assert "Research only." not in model_card(manifest_of("ios", research_only=False))


def test_card_takes_its_figures_from_the_scorecard() -> None:
    text = model_card(manifest_of("onnx"), scorecard_of(nme=6.543))

    assert "landmarks5: nme_percent" in text
    assert "| edge_s.w8a8 | r w8a8 | 6.543 |" in text
    assert "On mtfl@val: 978 faces, 2 skipped. 2026-11-21, AMD EPYC." in text
    assert "| edge_s.fp16 | NOT_RUN: no such phone |" in text
    assert "6.543" not in model_card(manifest_of("onnx"), scorecard_of(nme=6.6))
    assert "Not measured yet" in model_card(manifest_of("onnx"))


def test_card_tells_groups_and_the_change_from_the_teacher() -> None:
    scorecard = scorecard_of(nme=6.543)
    row = scorecard["rows"][-1] if scorecard["rows"][-1]["tasks"] else scorecard["rows"][0]
    row["tasks"]["landmarks5"] |= {"delta_teacher": 0.25, "interval_teacher": [0.1, 0.4]}
    groups = [{"name": "dark", "n": 40}, {"name": "light", "n": 50}]
    gap = {
        "model": row["model"],
        "runtime": row["runtime"],
        "values": [7.0, 6.0],
        "gap": 1.0,
        "gap_change_teacher": 0.5,
    }
    scorecard["subgroups"] = [
        {"task": "landmarks5", "by": "skin", "metric": "nme_percent", "groups": groups, "rows": [gap]}
    ]
    text = model_card(manifest_of("onnx"), scorecard)
    assert "6.543 (+0.25 ±0.15)" in text
    assert "- landmarks5 (nme_percent) by skin: dark 7 (40), light 6 (50); gap 1, +0.5 on the teacher's" in text
    assert "too few" not in text
    scorecard["subgroups"][0]["few"] = [{"name": "deep", "n": 12}]
    assert "on the teacher's; too few faces to tell: deep (12)" in model_card(manifest_of("onnx"), scorecard)
    assert "by group" not in model_card(manifest_of("onnx"), scorecard_of(nme=6.543))


def test_scorecard_written_later_changes_the_card_of_a_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "android"))
    before = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    (folder / "scorecard.json").write_text(json.dumps(scorecard_of(nme=6.543)), encoding="utf-8")

    write_model_card(folder)

    assert "Not measured yet" in before
    assert "6.543" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
