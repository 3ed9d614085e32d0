"""Timing answers for every model under recorded conditions. Nothing here asserts a time or a ratio of two models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeface.errors import UsageError
from targets.bench import ROUNDS, bench


def test_every_model_has_a_row_under_recorded_conditions(run_folder: Path, bundle_folder: Path) -> None:
    models = [
        (str(bundle_folder), None, "fp32"),
        (str(bundle_folder), "tflite-builtin", "w8a8"),
        (str(run_folder), None, None),
    ]

    found = bench(models, runs=ROUNDS)

    answered = [(row.model, row.runtime, row.precision) for row in found.rows]
    assert answered == [
        (str(bundle_folder), "tflite-xnnpack", "fp32"),
        (str(bundle_folder), "tflite-builtin", "w8a8"),
        (str(run_folder), "torch", "fake-quant"),
    ]
    assert found.rows[0].ratio_to_first == 1.0
    assert len({row.macs for row in found.rows}) == 1
    assert all(0 < row.median_ms <= row.p90_ms <= row.p99_ms for row in found.rows)
    assert all(row.size_bytes > 0 for row in found.rows)
    assert {"cpu", "versions", "threads", "runs", "load_average"} <= found.conditions.keys()


def test_processor_affinity_is_given_back(bundle_folder: Path) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not pin processes to cores")
    before = os.sched_getaffinity(0)

    bench([(str(bundle_folder), None, "w8a8")], runs=ROUNDS)

    assert os.sched_getaffinity(0) == before


def test_fewer_runs_than_rounds_are_refused(bundle_folder: Path) -> None:
    with pytest.raises(UsageError, match="--runs"):
        bench([(str(bundle_folder), None, None)], runs=ROUNDS - 1)
