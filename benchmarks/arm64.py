"""Each .tflite file on four ARM64 processors, emulated, against the same kernels on this machine.

    python -m benchmarks.arm64 BUNDLE... [--data SOURCE] [--n 256] [--precision fp32,w8a8] [--out FILE]

What `edgeface check BUNDLE --on arm64 --cpu …` measures, one row for each file, runtime and processor; rows of other
networks, faces or files that OUT already holds are kept. Speed is not measured: nothing is learnt of it by emulation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeface.data.sources import data_root
from edgeface.files import write_json
from edgeface.provenance import commit, cpu, versions
from targets.devices.answer import Check
from targets.devices.arm64 import CPUS, Arm64
from targets.devices.check import check
from targets.devices.shipped import Shipped, choose_faces, open_bundle

RESULTS = Path("benchmarks/results/arm64.json")
DRAWN = "drawn"


def rows_of(shipped: Shipped, found: Check, *, processor: str, data: str) -> list[dict[str, Any]]:
    """The part of a check that the tables need."""
    rows = []
    for row in found.as_json()["files"]:  # type: ignore[attr-defined]
        lost = [scores["worse_by"] for scores in row["tasks"].values() if scores["worse_by"] is not None]
        rows.append(
            {
                "network": shipped.manifest["name"],
                "checkpoint": shipped.manifest["checkpoints"]["qat"][:12],
                "size_bytes": (shipped.folder / row["file"]).stat().st_size,
                "cpu": processor,
                "device": found.detail,
                "faces": found.faces,
                "data": data,
                **{key: row[key] for key in ("file", "precision", "runtime", "outcome", "reason", "bit_identical")},
                **{key: row[key] for key in ("equal", "max_lsb")},
                # JSON has no infinity: equal answers have no noise.
                "sqnr_db": None if row["bit_identical"] else row["sqnr_db"],
                "max_abs": max((output["max_abs"] for output in row["outputs"].values()), default=None),
                "worst_task_points": max(lost, default=None),
            }
        )
    return rows


def key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a later measurement of the same replaces."""
    return tuple(str(row[part]) for part in ("network", "checkpoint", "file", "runtime", "cpu", "data"))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row for each file, runtime and set of faces; the processors side by side."""
    names = list(CPUS)
    lines = ["| file | bytes | runtime | faces | " + " | ".join(CPUS[name].qemu for name in names) + " |"]
    lines.append("|" + "---|" * (4 + len(names)))
    groups: dict[tuple[str, int, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        faces = f"{row['faces']} ({row['data']})"
        groups.setdefault((row["file"], row["size_bytes"], row["runtime"], faces), {})[row["cpu"]] = row
    for (file, size, runtime, faces), found in sorted(groups.items()):
        cells = [_cell(found[name]) if name in found else "" for name in names]
        lines.append(f"| `{file}` | {size:,} | {runtime} | {faces} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["outcome"] == "NOT_RUN" or row["equal"] is None:
        return f"{row['outcome']}: {row['reason']}"
    if row["bit_identical"]:
        return "same bits"
    if row["max_lsb"] is not None:
        return f"{100 * row['equal']:.1f} % equal, ≤ {row['max_lsb']:.0f} LSB, tasks {_points(row)}"
    return f"≤ {row['max_abs']:.1e}, tasks {_points(row)}"


def _points(row: Mapping[str, Any]) -> str:
    # Below this a float task metric differs in its last digits.
    worst = row["worst_task_points"]
    return "alike" if worst is None or worst < 0.005 else f"−{worst:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--data", default="", metavar="SOURCE", help="without it: drawn faces")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--cpu", default=",".join(CPUS), metavar="CPU[,CPU…]")
    parser.add_argument("--precision", default="fp32,w8a8", metavar="P[,P…]")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for bundle in arguments.bundles:
        shipped = open_bundle(bundle, precisions=arguments.precision.split(","))
        faces = choose_faces(shipped, source=arguments.data, n=arguments.n, root=data_root())
        for processor in arguments.cpu.split(","):
            found = check(shipped, Arm64(processor), faces=faces)
            new = rows_of(shipped, found, processor=processor, data=arguments.data or DRAWN)
            replaced = {key(row) for row in new}
            before = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.is_file() else []
            rows = sorted([*(row for row in before if key(row) not in replaced), *new], key=key)
            there = {"versions_there": found.versions, "emulator": found.detail.partition(" under ")[2]}
            conditions = {"machine": cpu(), "versions": versions(), **there, "commit": commit()}
            write_json(arguments.out, {"schema": 1, "rows": rows, "conditions": conditions})
            write_table(arguments.out, rows)
            for row in new:
                print(f"{bundle} {processor}: {row['file']} {row['runtime']} {_cell(row)}", file=sys.stderr)


def write_table(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows in words and as a table, beside their JSON."""
    out.with_suffix(".md").write_text(f"{WORDS}\n{markdown(rows)}\n", encoding="utf-8")


WORDS = """# ARM64 against x86-64

`python -m benchmarks.arm64 BUNDLE... [--data SOURCE]`, conditions in the JSON. Each file on four processors, imitated
by qemu 7.2's user mode, against the same kernels on the machine of the JSON: "same bits" is every value of every
output. Faces are the bundle's 24 golden ones and more, drawn or of a corpus. "tasks": what the worst task metric lost,
in points.

w8a8 by XNNPACK has the same bits on every processor: Armv8.0 (a53, a72) and Armv8.2 with dot products (a76, n1) run
other kernels than each other and than x86, and all follow the one rule `xnnpack` of quantize/grid.py.

TFLite's built-in kernels do not. From the first convolution on, those of ARM64 round once where those of x86 round
twice, so some values are a step off, and later layers add to it. They follow `tflite-builtin-arm64` of quantize/grid.py
in every value (tests/targets/devices/test_arm64.py). fp32 sums are added up in another order.
"""


if __name__ == "__main__":
    main()
