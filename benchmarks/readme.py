"""Tables in README.md and docs/ that are made from the committed results, between comments that name them.

    python -m benchmarks.readme

A table stands between `<!-- table NAME -->` and `<!-- end of NAME -->`; what stands there is written anew, nothing else
is touched. Nothing is measured: each table shows figures of a file under benchmarks/results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import all_tasks, crops, loop, pareto, student_speed
from edgeface.errors import DataError
from edgeface.files import read_json, write_bytes
from edgeface.report.table import scaled, title

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
SHORT = ("tflite-xnnpack", "mil", "onnxruntime", "openvino")  # runtimes whose w8a8 file stands in README's table

_BLOCK = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n\n).*?(\n\n<!-- end of (?P<end>[\w-]+) -->)", flags=re.DOTALL)
_ROLES = {"teacher": "teacher", "student": "student", "fake-quant": "student"}


def scorecard(
    card: Mapping[str, Any], detector: Sequence[Mapping[str, Any]] = (), *, runtimes: Sequence[str] = SHORT
) -> str:
    """Teacher, students and the w8a8 files of a scorecard, one column a task; accuracies in percent.

    Args:
        card: A scorecard as JSON.
        detector: Rows of benchmarks/detector.py, of which the w8a8 file's own crop by a detector gets a last row.
        runtimes: Those whose w8a8 file has a row.
    """
    tasks = list(dict.fromkeys(task for row in card["rows"] for task in row["tasks"]))
    heads = ["model", "runtime", "bytes"]
    for task in tasks:
        metric = next(row["tasks"][task]["metric"] for row in card["rows"] if task in row["tasks"])
        heads.append(f"{task}: {title(metric)}")
        if metric == "nme_percent":
            heads.append("failures, %")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in card["rows"]:
        if row["role"] == "file" and not (".w8a8." in row["model"] and row["runtime"] in runtimes):
            continue
        cells = [_model(row), row["runtime"], f"{row['size_bytes']:,}"]
        for task in tasks:
            cell = row["tasks"].get(task)
            if cell is None:
                cells.append("NOT_RUN")
                continue
            cells.append(f"{scaled(cell['metric'], cell['value']):.2f}")
            if cell["metric"] == "nme_percent":
                cells.append(f"{cell['failure_percent']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    for found in detector:
        if (found["model"], found["source"], found["crop"]) == ("w8a8", card["source"], "box or fixed"):
            file = next(row for row in card["rows"] if row["role"] == "file" and ".w8a8.tflite" in row["model"])
            cells = [f"`{file['model']}`, a detector's box", found["runtime"], f"{file['size_bytes']:,}"]
            cells += [f"{found[key]:.2f}" for key in ("nme_percent", "failure_percent")]
            lines.append("| " + " | ".join([*cells, *["–"] * (len(tasks) - 1)]) + " |")
    return "\n".join(lines)


def _model(row: Mapping[str, Any]) -> str:
    if row["role"] == "file":
        return f"`{row['model']}`"
    return f"{_ROLES[row['role']]} ({row['model'].split()[-1]}, {row['precision']})"


def _result(name: str) -> Any:
    return read_json(RESULTS / f"{name}.json")


TABLES: dict[str, Callable[[], str]] = {
    "mtfl-cpu": lambda: scorecard(_result("mtfl-cpu")["scorecards"][0], _result("detector")["rows"]),
    "mtfl-cpu-val": lambda: scorecard(_result("mtfl-cpu-val")["scorecards"][0], runtimes=("tflite-xnnpack",)),
    "all-tasks": lambda: all_tasks.summary(_result("all_tasks")),
    "gaps": lambda: all_tasks.gaps(_result("all_tasks")),
    "pareto": lambda: pareto.overview(pareto.found_in(_result("pareto-mtfl-sweep"))),
    "loop": lambda: loop.summary(_result("loop")),
    "student-speed": lambda: student_speed.markdown(_result("student_speed")),
    "students": lambda: student_speed.overview(_result("student_speed")),
    "crops": lambda: crops.markdown(_result("crops")["rows"]),
}


def filled(text: str, *, where: str = "") -> str:
    """A document with every table made anew.

    Args:
        text: The document.
        where: Its name, for the message.

    Raises:
        DataError: A comment opens a table that nobody knows, or that has no end.
    """
    opened = re.findall(r"<!-- table (.*?) -->", text)
    closed = [(found["name"], found["end"]) for found in _BLOCK.finditer(text)]
    if [(name, name) for name in opened] != closed or not set(opened) <= set(TABLES):
        raise DataError(
            f"tables opened: {opened}, opened and closed: {closed}",
            expected=f"<!-- table NAME -->, a blank line on each side, <!-- end of NAME -->; NAME of {sorted(TABLES)}",
            where=where,
            do="Correct the comments",
        )
    return _BLOCK.sub(lambda found: found[1] + TABLES[found["name"]]() + found[3], text)


def documents() -> list[Path]:
    """The documents that hold such tables."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in found if "<!-- table " in path.read_text(encoding="utf-8")]


def main() -> None:
    for path in documents():
        text = path.read_text(encoding="utf-8")
        new = filled(text, where=path.name)
        if new != text:
            write_bytes(path, new.encode())
        print(f"{path.relative_to(ROOT)}: {'written' if new != text else 'as it was'}")


if __name__ == "__main__":
    main()
