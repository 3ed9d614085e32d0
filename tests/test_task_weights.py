"""The page of learned weights: read from a training's curve, from the recipe's weights on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.task_weights import ends, markdown, paths_of, picture
from edgeface.config import load_recipe

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "task_weights.json"
CURVE = """step,epoch,landmarks5.nme_percent,landmarks5.weight,smile.weight
10,1,9.0,1,0.05
20,2,8.0,1,0.001
"""


def test_weights_begin_at_the_recipe_and_go_on_as_the_curve_says() -> None:
    recipe = load_recipe("balancer-learned")
    found = paths_of(CURVE, recipe)
    assert found == {"landmarks5": [(0, 1.0), (10, 1.0), (20, 1.0)], "smile": [(0, 0.15), (10, 0.05), (20, 0.001)]}
    assert paths_of(CURVE.replace("0.05", "0.06"), recipe) != found  # the twin


def test_a_training_without_a_balancer_is_refused() -> None:
    with pytest.raises(ValueError, match="no balancer"):
        paths_of("step,epoch,landmarks5.nme_percent\n10,1,9.0\n", load_recipe("balancer-fixed"))


def test_the_committed_page_is_that_of_its_figures() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert markdown(result) == RESULT.with_suffix(".md").read_text(encoding="utf-8")
    result["trainings"][0]["weights"]["landmarks5"][1][1] += 0.1
    assert markdown(result) != RESULT.with_suffix(".md").read_text(encoding="utf-8")  # the twin
    assert RESULT.with_name(result["picture"]).is_file()


def test_learned_weights_never_rise_and_end_at_their_floor() -> None:
    """As the page says: their gradient is a loss, which is never negative."""
    trainings = json.loads(RESULT.read_text(encoding="utf-8"))["trainings"]
    learned = [one for one in trainings if one["balancer"] == "learned"]
    assert learned
    for training in learned:
        main, *others = (training["weights"][task] for task in training["tasks"])
        assert {weight for _, weight in main} == {1.0}
        for path in others:
            weights = [weight for _, weight in path]
            assert weights == sorted(weights, reverse=True)
            assert weights[-1] == pytest.approx(training["floor"])


def of(name: str, seed: int, *smile: float) -> dict[str, Any]:
    """A training of landmarks and smile, whose weight goes through these values at steps 0, 10, …"""
    steps = range(0, 10 * len(smile), 10)
    weights = {
        "landmarks5": [[step, 1.0] for step in steps],
        "smile": [list(pair) for pair in zip(steps, smile, strict=True)],
    }
    return {"name": name, "seed": seed, "floor": 0.1, "tasks": ["landmarks5", "smile"], "weights": weights}


def test_the_sentence_says_from_which_step_on_a_weight_is_at_the_floor() -> None:
    told = ends({"trainings": [of("λ", 0, 0.9, 0.1, 0.3, 0.1, 0.1), of("λ", 1, 0.9, 0.4)]})
    assert told == (
        "λ, seed 0: 1 of 1 auxiliary weights end at the floor of 0.1 and are there from step 30 on. "
        "λ, seed 1: 0 of 1 auxiliary weights end at the floor of 0.1."
    )


def test_seeds_of_one_name_share_a_panel(tmp_path: Path) -> None:
    from PIL import Image

    one, two = of("λ", 0, 0.9, 0.1), of("λ", 1, 0.9, 0.4)
    for file, trainings in (("one", [one]), ("seeds", [one, two]), ("names", [one, {**two, "name": "μ"}])):
        picture(trainings, tmp_path / f"{file}.png")
    widths = {}
    for file in ("one", "seeds", "names"):
        with Image.open(tmp_path / f"{file}.png") as drawn:
            widths[file] = drawn.width
    assert widths["one"] == widths["seeds"] < widths["names"]
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "seeds.png").read_bytes()
