"""The cascade's table is that of its figures, and its rows differ in what they say they differ in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cascade import markdown, relations

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
    assert (held["network"], held["held"], held["difference"], held["reason"]) == ("a", True, -2.0, "")
    assert (other["network"], other["held"], other["difference"]) == ("b", False, 1.0)
    assert "11.00 %, is above" in other["reason"]


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
