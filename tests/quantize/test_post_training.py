"""The arithmetic of benchmarks/post_training.py: what a figure in its table means."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeface.metrics import score
from edgeface.tasks import TASKS


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "post_training.py"))


def test_worsening_is_the_mean_relative_growth_of_errors(bench: dict[str, Any]) -> None:
    reference = {"landmarks5": 0.04, "gender": 0.10}
    # A tenth more and a fifth less: −5 %.
    assert bench["worsening"]({"landmarks5": 0.044, "gender": 0.08}, reference) == pytest.approx(-5.0)
    assert bench["worsening"]({"landmarks5": 0.08, "gender": 0.044}, reference) != pytest.approx(-5.0)  # swapped


def test_an_error_is_a_share_and_never_an_accuracy(bench: dict[str, Any]) -> None:
    assert bench["error"]("nme_percent", {"nme_percent": 4.0}) == pytest.approx(0.04)
    assert bench["error"]("accuracy", {"accuracy": 0.9}) == pytest.approx(0.1)


def test_scores_face_by_face_average_to_the_metrics(bench: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(0.3, 0.7, (50, 5, 2)).astype(np.float32)
    points[:, 0, 0], points[:, 1, 0] = 0.2, 0.8
    answers = {"landmarks5": points + generator.normal(0, 0.02, points.shape), "pose": generator.integers(0, 5, 50)}
    labels = {"landmarks5": points, "pose": generator.integers(0, 5, 50)}
    scores = {task: score(TASKS[task], answers[task], labels[task]) for task in answers}
    expected = 1 - (float(scores["landmarks5"]["nme_percent"]) / 100 + 1 - float(scores["pose"]["accuracy"])) / 2
    assert bench["face_by_face"](answers, labels).mean() == pytest.approx(expected)
    right = {**answers, "pose": labels["pose"]}
    assert bench["face_by_face"](right, labels).mean() != pytest.approx(expected)


def row(method: str, seed: int, val: float, test: float) -> dict[str, Any]:
    return {
        "student": "edge_s", "method": method, "seed": seed, "worsening_percent": {"mtfl@val": val, "mtfl@test": test},
    }  # fmt: skip


def test_the_rival_is_chosen_on_validation_faces_and_a_loss_is_said(bench: dict[str, Any]) -> None:
    rows = [row("qat", 0, -1.0, 2.0), row("qat", 1, -3.0, 4.0)]
    rows += [row("mse", seed, 1.0, 0.0) for seed in (0, 1)] + [row("minmax", seed, 2.0, -9.0) for seed in (0, 1)]
    text = bench["markdown"](bench["summary"](rows))
    assert "| edge_s | qat | 2 | -2.00 ± 1.41 | +3.00 ± 1.41 |" in text
    assert "better by +3.00 points on mtfl@val, NOT better by -3.00 points on mtfl@test than mse" in text
