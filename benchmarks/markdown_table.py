"""A scorecard as a Markdown table: the rows of README come from here.

python benchmarks/markdown_table.py benchmarks/results/FILE.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROLES = {"teacher": "teacher", "student": "student", "fake-quant": "student"}
UNITS = {"nme_percent": "mean error, %", "accuracy": "accuracy, %", "mae_years": "mean error, years"}


def table(card: Mapping[str, Any]) -> str:
    """One row per model, one column per task; accuracies in percent."""
    tasks = list(dict.fromkeys(task for row in card["rows"] for task in row["tasks"]))
    heads = ["model", "runtime", "bytes"]
    for task in tasks:
        metric = next(row["tasks"][task]["metric"] for row in card["rows"] if task in row["tasks"])
        heads.append(f"{task}: {UNITS.get(metric, metric)}")
        if metric == "nme_percent":
            heads.append("failures, %")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in card["rows"]:
        cells = [_name(row), row["runtime"], f"{row['size_bytes']:,}"]
        for task in tasks:
            cell = row["tasks"].get(task)
            if cell is None:
                cells.append("NOT_RUN")
                continue
            percent = cell["metric"] in ("accuracy", "balanced_accuracy", "bin_accuracy")
            cells.append(f"{100 * cell['value']:.2f}" if percent else f"{cell['value']:.2f}")
            if cell["metric"] == "nme_percent":
                cells.append(f"{cell['failure_percent']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(row: Mapping[str, Any]) -> str:
    if row["role"] == "file":
        return f"`{row['model']}`"
    return f"{ROLES[row['role']]} ({row['model'].split()[-1]}, {row['precision']})"


def cards(path: Path) -> list[Mapping[str, Any]]:
    """The scorecards of a file: one written by `edgeface build`, or several by `edgeface report --json`."""
    found = json.loads(path.read_text(encoding="utf-8"))
    several: list[Mapping[str, Any]] = found.get("scorecards", [found])
    return several


if __name__ == "__main__":
    for path in sys.argv[1:]:
        for card in cards(Path(path)):
            print(f"{card['source']}, {card['samples']} faces\n\n{table(card)}\n")
