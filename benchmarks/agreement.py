"""The agreement matrix: every w8a8 file of a student, in every runtime, against its fake-quant student and simulator.

    python -m benchmarks.agreement RUN... --data SOURCE [--out benchmarks/results/agreement.json]

Each RUN is a folder with student/ and qat/. Rows of other runs already in OUT are kept. Shares are over
all output values: "exact" are on the same step, "within_1_lsb" at most one step apart. "simulator" is the share equal
to quantize/grid.py with the rounding of that runtime's kernels. `largest_gap` is the largest distance of a task metric
from the fake-quant student's, in points and in samples. Where files differ, `first_difference` names the first layer
at which the simulator of that runtime leaves the one of the fake-quant student.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.pack import Pack
from edgeface.data.sources import data_root
from edgeface.errors import MissingToolError
from edgeface.evaluate import Evaluation, Outputs, evaluate, evaluation_pack
from edgeface.files import write_json
from edgeface.provenance import commit, cpu, versions
from quantize.grid import Quantized, dequantize, simulate, simulate_nodes
from quantize.rounding import Kernels
from targets.build import build_many
from targets.parity import RULES, SIMULATED
from targets.runners import CheckpointRunner, open_model

# Target to the runtimes that run its files, each with the rounding rule that says what it computes, where one does.
RUNTIMES: dict[str, dict[str, Kernels | None]] = {
    "android": {"tflite-xnnpack": "xnnpack", "tflite-builtin": "tflite-builtin"},
    "openvino": {"openvino": "openvino"},
    "ios": {"mil": "coreml", "mil-fp16": None},
    "onnx": {"onnxruntime": "xnnpack"},  # for networks without an add
}


def shares(
    found: Outputs, expected: Outputs, steps: Mapping[str, float], *, halves: bool = False
) -> dict[str, float | int]:
    """Shares of equal values and of values at most one step apart, and the largest distance in steps.

    Args:
        found: Output name to values.
        expected: As `found`, on their grid.
        steps: Output name to the step of that grid.
        halves: Whether values left as half floats, which hold a step to 11 bits: they are put on the nearest one.
    """
    distance = np.concatenate([(found[n].astype(np.float64) - expected[n]).ravel() / steps[n] for n in steps])
    distance = np.abs(np.rint(distance) if halves else distance)
    return {
        "values": int(distance.size),
        "exact": float((distance <= 1e-3).mean()),
        "within_1_lsb": float((distance <= 1.0 + 1e-3).mean()),
        "max_lsb": round(float(distance.max()), 3),
    }


def simulated(quantized: Quantized, pictures: NDArray[np.uint8], kernels: Kernels) -> Outputs:
    parts = [
        dequantize(quantized, simulate(quantized, pictures[start : start + 64], kernels=kernels))
        for start in range(0, len(pictures), 64)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def first_difference(
    quantized: Quantized, pictures: NDArray[np.uint8], kernels: Kernels
) -> dict[str, float | int | str] | None:
    """The first layer, in execution order, at which two rounding rules part, on up to 256 pictures."""
    some = pictures[:256]
    ours, theirs = simulate_nodes(quantized, some), simulate_nodes(quantized, some, kernels=kernels)
    for node in quantized.graph.nodes:
        distance = np.abs(ours[node.name].astype(np.int64) - theirs[node.name])
        if distance.any():
            return {"layer": node.name, "share": float((distance > 0).mean()), "max_lsb": int(distance.max())}
    return None


def largest_gap(found: Evaluation, expected: Evaluation) -> dict[str, float | str | None]:
    """The task metric that differs most, in points, and in samples for metrics that count samples."""
    worst: dict[str, float | str | None] = {"task": "", "points": 0.0, "samples": 0.0}
    for task, scores in expected.tasks.items():
        for key, value in scores.items():
            if key == "n" or not isinstance(value, int | float):
                continue
            share = key.endswith("accuracy") or key == "failure_percent"
            points = abs(float(found.tasks[task][key]) - float(value)) * (100 if key.endswith("accuracy") else 1)
            if points > float(worst["points"]):
                samples = points / 100 * float(scores["n"]) if share else None
                worst = {"task": f"{task}.{key}", "points": round(points, 4), "samples": samples and round(samples, 2)}
    return worst


def rows_of(run: Path, pack: Pack, source: str) -> list[dict[str, Any]]:
    """One row per runtime."""
    reference = open_model(run / "qat", threads=2)
    assert isinstance(reference, CheckpointRunner)
    assert reference.quantized is not None
    quantized = reference.quantized
    steps = {output.name: quantized.output_grid(output.name)[0] for output in reference.spec.outputs}
    expected = evaluate(reference, pack, model=run.name)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bundles = build_many(run / "qat", {target: ["w8a8"] for target in RUNTIMES}, out=Path(folder))
        for target, runtimes in RUNTIMES.items():
            for runtime, kernels in runtimes.items():
                row: dict[str, Any] = {
                    "student": run.name,
                    "backbone": reference.spec.name,
                    "runtime": runtime,
                    "data": source,
                }
                made = bundles[target]
                if isinstance(made, MissingToolError):
                    rows.append({**row, "outcome": "NOT_RUN", "reason": str(made)})
                    continue
                found = evaluate(open_model(made, runtime=runtime, precision="w8a8"), pack, model=run.name)
                row |= {"outcome": "MEASURED", "faces": found.samples}
                row |= shares(found.outputs, expected.outputs, steps, halves=runtime == "mil-fp16")
                row["simulator"] = row["simulator_kernels"] = row["first_difference"] = None
                if kernels is not None:
                    rule = simulated(quantized, np.asarray(pack.images), kernels)
                    row["simulator"] = shares(found.outputs, rule, steps)["exact"]
                    row["simulator_kernels"] = kernels
                    row["first_difference"] = first_difference(quantized, np.asarray(pack.images), kernels)
                row["largest_gap"] = largest_gap(found, expected)
                row["tasks"] = {task: dict(scores) for task, scores in found.tasks.items()}
                rows.append(row)
                print(json.dumps({key: row[key] for key in row if key != "tasks"}), flush=True)
    return rows


def tried(row: Mapping[str, Any]) -> str:
    """What was tried where a file leaves the student's integers; "–" where it does not."""
    return "–" if row["exact"] == 1.0 or row["simulator"] is None else "other constants: builtin_rounding.md"


def held_to(runtime: str) -> str:
    """What `edgeface build` and `edgeface parity` demand of a w8a8 file in a runtime."""
    rule = RULES.get(("fake-quant", "w8a8", runtime))
    if rule is None:
        return "task metrics"
    demands = []
    if rule.exact is not None:
        demands.append(f"≥ {100 * rule.exact:g} % exact")
    if rule.within_1_lsb is not None:
        demands.append(f"≥ {100 * rule.within_1_lsb:g} % within 1 LSB")
    if rule.sqnr_db is not None:
        demands.append(f"≥ {rule.sqnr_db:g} dB")
    if runtime in SIMULATED:
        demands.append(f"≥ {100 * SIMULATED[runtime][1]:g} % equal to its simulator")
    return ", ".join(demands)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The matrix as a table."""
    head = [
        "student",
        "runtime",
        "faces of",
        "faces",
        "exact, %",
        "within 1 LSB, %",
        "max LSB",
        "equal to simulator, %",
    ]
    head += ["largest task gap, points", "first layer that differs", "tried", "held to"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        if row["outcome"] == "NOT_RUN":
            reason = f"NOT_RUN: {row['reason']}"
            lines.append(f"| {row['student']} | {row['runtime']} | {row['data']} | {reason} |" + " |" * (len(head) - 4))
            continue
        rule = "–" if row["simulator"] is None else f"{100 * row['simulator']:.3f} ({row['simulator_kernels']})"
        parts = row["first_difference"]
        where = "–" if parts is None else f"{parts['layer']}: {100 * parts['share']:.4f} % by {parts['max_lsb']}"
        cells = [row["student"], row["runtime"], row["data"], str(row["faces"]), f"{100 * row['exact']:.3f}"]
        cells += [f"{100 * row['within_1_lsb']:.3f}", f"{row['max_lsb']:g}", rule]
        cells += [f"{row['largest_gap']['points']:.3f} {row['largest_gap']['task']}", where]
        cells += [tried(row), held_to(row["runtime"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", required=True, metavar="SOURCE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/agreement.json"))
    arguments = parser.parse_args()
    before = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.is_file() else []
    mine = {(run.name, arguments.data) for run in arguments.runs}
    rows = [row for row in before if (row["student"], row.get("data")) not in mine]
    for run in arguments.runs:
        pack = evaluation_pack(arguments.data, open_model(run / "qat").spec, root=data_root())
        rows += rows_of(run, pack, arguments.data)
        conditions = {"machine": cpu(), "versions": versions(), "commit": commit(), "threads": 1}
        write_json(arguments.out, {"schema": 1, "rows": rows, "conditions": conditions})
    write_table(arguments.out, rows)


def write_table(out: Path, rows: list[dict[str, Any]]) -> None:
    """The matrix in words and as a table, beside its JSON."""
    out.with_suffix(".md").write_text(f"{WORDS}\n{markdown(rows)}\n", encoding="utf-8")


WORDS = """# How exactly each w8a8 file computes its fake-quant student

`python -m benchmarks.agreement RUN... --data SOURCE`, conditions in the JSON. NAME-0 are narrow students and NAME-full
those of full width, trained briefly by `python -m benchmarks.students`; `mtfl-cpu` is the run of that recipe.

XNNPACK, OpenVINO, ONNX Runtime and the Core ML package (executed in float32 by `mil`) compute the student's integers.
TFLite's own kernels (`tflite-builtin`) multiply by a fixed-point number and round twice, from the first layer on, where
the others round once. In every row one of their task metrics is more than 0.1 point and more than one face from the
student's, and they are held to the simulator of their own rounding instead. What was tried to bring the two nearer
stands in builtin_rounding.md: constants for which both rules agree in every layer exist, but cost up to 5 points.
`mil-fp16` rounds every operand and result to half floats: an estimate of what a phone may do, judged by the task
metrics. "Largest task gap" is the metric that differs most from the student's.
"""


if __name__ == "__main__":
    main()
