"""Which layer's rounding hurts which task: each task's main metric with one layer of a student rounded.

    python -m benchmarks.sensitivity RUN SOURCE [--out benchmarks/results/FILE.json]

SOURCE holds validation faces, never those that results are reported on. Figures are worsenings in the unit of budgets:
points, or relative percent for errors in other units; negative is better. "alone" rounds one layer of the float
student, "rest" gives one layer of the int8 student back to float. Writes JSON and, beside it, a table in Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from distill.stages import load_network
from edgeface.checkpoint import load_checkpoint
from edgeface.data.sources import data_root
from edgeface.evaluate import evaluation_pack
from edgeface.files import write_json
from edgeface.provenance import commit, cpu, versions
from quantize.graph import trace
from quantize.qat import load_qat
from quantize.sensitivity import Faces, Sensitivity, sensitivity


def markdown(found: Sensitivity) -> str:
    """One row per layer, one column per task."""
    tasks = list(found.rows[0].harm)
    lines = ["| layer | MACs | " + " | ".join(tasks) + " |", "|" + "---|" * (len(tasks) + 2)]
    for row in found.rows:
        cells = [row.layer, f"{row.macs:,}", *(f"{row.harm[task]:+.3f}" for task in tasks)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sensitivity.json"))
    arguments = parser.parse_args()
    qat = load_checkpoint(arguments.run / "qat")
    quantized = load_qat(qat).quantized()
    graph = trace(load_network(load_checkpoint(arguments.run / "student")).eval())
    faces = Faces(evaluation_pack(arguments.source, qat.model, root=data_root()), qat.model)
    tables = {
        "alone": sensitivity(graph, quantized.activations, faces, mode="alone"),
        "rest": sensitivity(quantized.graph, quantized.activations, faces, mode="rest"),
    }
    conditions = {"machine": cpu(), "versions": versions(), "commit": commit()}
    plain = {mode: asdict(found) for mode, found in tables.items()}
    write_json(arguments.out, {"schema": 1, "data": arguments.source, "tables": plain, "conditions": conditions})
    parts = [
        f"# Which layer's rounding hurts which task\n\n{arguments.run.name} on {arguments.source}, {faces.count} faces"
    ]
    parts += [f"## {mode}\n\n{markdown(found)}" for mode, found in tables.items()]
    arguments.out.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(arguments.out.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
