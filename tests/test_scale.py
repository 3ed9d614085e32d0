"""The plan for many GPUs follows from its figures, and the page shows what was computed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale import BEGIN, END, PAGE, RESULTS, Assumed, Measured, plan, table
from edgeface.files import read_json

FOUND = Measured(
    bytes_per_sample={"png": 20_000.0, "jpg": 10_000.0},
    pack_per_s=100.0,
    batches_per_s={"png": 300.0, "jpg": 400.0},
    in_order_per_s={"png": 500.0, "jpg": 1000.0},
    places_per_s={"tables": 10_000.0, "headers": 5_000.0},
    gradient_bytes={"VGG16": 50e6, "edge_s": 2e6},
    collectives={"VGG16": 20.0, "edge_s": 10.0},
    gflop=(5.0, 20.0),
)


def test_the_plan_is_the_arithmetic_of_its_figures() -> None:
    it = plan(FOUND, Assumed(), faces=36_000_000, gpus=10)
    assert it["jpg_tb"] == pytest.approx(0.36)
    assert it["pack_core_h"] == pytest.approx(100.0)
    assert (it["places_epoch_h"], it["headers_epoch_h"]) == pytest.approx((1.0, 2.0))
    assert it["as_built_epoch_h"] == pytest.approx(2.5)
    assert it["teacher_compute_images_per_s"] == pytest.approx(100_000.0)
    assert it["total_as_built_h"] == pytest.approx(21 * 3.5)
    assert it["total_headers_h"] == pytest.approx(21 * 4.5)


def test_more_gpus_hasten_decoding_and_not_the_search_for_samples() -> None:
    few, many = (plan(FOUND, Assumed(), faces=36_000_000, gpus=gpus) for gpus in (10, 20))
    assert many["as_built_epoch_h"] == pytest.approx(few["as_built_epoch_h"] / 2)
    assert many["places_epoch_h"] == few["places_epoch_h"]
    slower = replace(FOUND, places_per_s={"tables": 5_000.0, "headers": 5_000.0})
    assert plan(slower, Assumed(), faces=36_000_000, gpus=20)["places_epoch_h"] == 2 * few["places_epoch_h"]  # twin


def test_the_plan_stands_on_the_committed_rates_and_on_processor_time_alone() -> None:
    """Rates of the clock on a busy machine beside processor time would compare unlike things."""
    kept = read_json(RESULTS / "scale.json")["measured"]
    rates = read_json(RESULTS / "streaming.json")["rates"]
    rows = {row["what"]: row for row in (*rates["packing"], *rates["reading"])}
    streamed = rows["jpg: streamed batches, shuffled and augmented"]
    assert kept["batches_per_s"]["jpg"] == pytest.approx(1e6 / streamed["cpu_us"])
    assert kept["pack_per_s"] == pytest.approx(1e6 / rows["shards, png, 1 processes"]["cpu_us"])
    assert kept["batches_per_s"]["jpg"] != pytest.approx(streamed["samples_per_s"])  # twin


def test_the_page_shows_the_committed_plan() -> None:
    kept = read_json(RESULTS / "scale.json")
    assumed = Assumed(**{**kept["assumed"], "epochs": tuple(kept["assumed"]["epochs"])})
    found = Measured(**{**kept["measured"], "gflop": tuple(kept["measured"]["gflop"])})
    figures = plan(found, assumed, faces=kept["faces"], gpus=kept["gpus"])
    assert figures == pytest.approx(kept["plan"])
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == table(figures, assumed, faces=kept["faces"], gpus=kept["gpus"]).strip()
    assert shown != table(figures, assumed, faces=kept["faces"], gpus=128).strip()  # twin
