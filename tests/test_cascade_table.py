"""The cascade's table is that of its figures, and its rows differ in what they say they differ in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cascade import gap, markdown, published, relations, scored

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "cascade.json"


@pytest.fixture
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def test_the_table_is_that_of_the_figures(result: dict[str, Any]) -> None:
    written = RESULT.with_suffix(".md").read_text(encoding="utf-8")
    assert markdown(result) == written
    result["tables"][0]["rows"][1]["nme_percent"] += 0.1
    assert markdown(result) != written


def test_a_relation_holds_where_the_network_start_ends_lower_and_says_why_where_it_does_not() -> None:
    rows = {"mean shape": 20.0, "cascade from it": 7.0, "a": 6.0, "cascade for a": 5.0, "b": 11.0, "cascade for b": 8.0}
    part = {"networks": {"a": "", "b": ""}, "rows": [{"row": n, "nme_percent": e} for n, e in rows.items()]}
    held, other = relations(part)
    assert (held["network"], held["verdict"], held["difference"], held["reason"]) == ("a", "held", -2.0, "")
    assert (other["network"], other["verdict"], other["difference"]) == ("b", "did not hold", 1.0)
    assert "11.00 %, is above" in other["reason"]
    (line, _) = published({"tables": [{"task": "landmarks5", **part}]})
    assert line["gains"] == [2.0], "above 0 where the published side is the better one"


@pytest.mark.parametrize(
    ("seeds", "verdict"), [([5.0, 6.0], "held"), ([5.0, 8.0], "undecided"), ([8.0, 9.0], "did not hold")]
)
def test_with_several_seeds_each_must_be_lower(seeds: list[float], verdict: str) -> None:
    rows = {"mean shape": [20.0], "cascade from it": [7.0], "a": [6.0, 6.5], "cascade for a": seeds}
    part = {"networks": {"a": ["", ""]}}
    part["rows"] = [{"row": name, "nme_percent": sum(each) / len(each), "each": each} for name, each in rows.items()]
    (one,) = relations(part)
    assert one["verdict"] == verdict
    assert one["differences"] == [error - 7.0 for error in seeds]


def test_a_gap_is_of_errors_averaged_over_the_seeds_written_as_loops() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((12, 5, 2)).astype(np.float32)
    first = [truth + generator.normal(0.0, 0.02, truth.shape).astype(np.float32) for _ in range(3)]
    second = [truth + generator.normal(0.0, 0.01, truth.shape).astype(np.float32)]

    def error(answers: Any) -> float:
        found = []
        for mine, its in zip(answers.tolist(), truth.tolist(), strict=True):
            eyes = math.dist(its[0], its[1])
            found.append(sum(math.dist(a, b) for a, b in zip(mine, its, strict=True)) / 5 / eyes * 100)
        return sum(found) / len(found)

    found = gap(first, second, truth, of="x")
    expected = sum(map(error, first)) / 3 - error(second[0])
    assert found["difference"] == pytest.approx(expected, rel=1e-3)  # points are float32
    assert found["low"] < found["difference"] < found["high"]
    assert found["difference"] != pytest.approx(error(first[0]) - error(second[0]), rel=1e-3)  # the twin: one seed
    row = scored("landmarks5", first, truth)
    assert row["each"] == pytest.approx([error(answers) for answers in first], rel=1e-3)
    assert row["nme_percent"] == pytest.approx(sum(row["each"]) / 3, rel=1e-3)


def test_every_network_is_compared_from_its_own_start(result: dict[str, Any]) -> None:
    for table in result["tables"]:
        names = [row["row"] for row in table["rows"]]
        assert names[:2] == ["mean shape", "cascade from it"]
        for network in table["networks"]:
            assert {network, f"that cascade from {network}", f"cascade for {network}"} <= set(names)
        rows = {row["row"]: row for row in table["rows"]}
        for row in rows.values():
            if "gap" in row:
                other = rows[row["gap"]["against"]]
                difference = row["nme_percent"] - other["nme_percent"]
                assert row["gap"]["difference"] == pytest.approx(difference, abs=2e-4)  # both rounded to four places
                assert row["gap"]["low"] <= row["gap"]["difference"] <= row["gap"]["high"]
