"""The table of faults in docs/reliability.md names tests that exist, and the recorded kills hold what it says."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from benchmarks.kills import STAGES, is_held

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
KILLS = ROOT / "benchmarks" / "results" / "kill.json"


def rows(page: str) -> list[list[str]]:
    """The cells of the table's rows."""
    table = page.split("## Faults")[1].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def missing(named: str) -> list[str]:
    """Tests and modules in a cell that do not exist; the cell itself when it names none."""
    found = re.findall(r"`([^`]+)`", named)
    absent = [] if found else [named]
    for each in found:
        path, _, test = each.partition("::")
        if path.startswith("benchmarks."):
            absent += [] if (ROOT / f"{path.replace('.', '/')}.py").is_file() else [each]
            continue
        file = ROOT / "tests" / path
        if not file.is_file():
            absent.append(each)
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        absent += [] if test in defined else [each]
    return absent


def test_each_row_names_a_test_that_exists() -> None:
    table = rows(PAGE.read_text(encoding="utf-8"))
    assert len(table) >= 30
    assert all(len(row) == 4 and all(row) for row in table)
    assert [fault for row in table for fault in missing(row[3])] == []


@pytest.mark.parametrize(
    "cell",
    ["", "yes", "`reliability/test_kill.py::test_nothing`", "`reliability/test_none.py::test_x`", "`benchmarks.none`"],
)
def test_a_row_without_one_is_noticed_twin(cell: str) -> None:
    assert missing(cell)


def test_every_fault_that_may_be_met_has_a_row() -> None:
    named = " ".join(row[0].lower() for row in rows(PAGE.read_text(encoding="utf-8")))
    for fault in (
        *("sigkill", "ctrl-c", "two commands", "disk full", "read-only", "memory limit", "clock goes back"),
        *("corpus changes", "process dies", "nan", "gpu out of memory"),
    ):
        assert fault in named


def test_twenty_recorded_kills_were_survived_in_every_stage() -> None:
    recorded = json.loads(KILLS.read_text(encoding="utf-8"))
    assert len(recorded["rows"]) >= 20
    assert all(map(is_held, recorded["rows"]))
    assert {row["hit"] for row in recorded["rows"]} == set(STAGES)
    assert recorded["summary"]["held"] == recorded["summary"]["moments"] == len(recorded["rows"])
    assert recorded["summary"]["most_steps_lost"] == max(row["steps_lost"] for row in recorded["rows"]) <= 1
    assert not is_held(recorded["rows"][0] | {"equal": False})  # the twin
