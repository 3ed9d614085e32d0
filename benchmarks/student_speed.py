"""Speed and size of every student in LiteRT, OpenVINO and ONNX Runtime, fp32 beside w8a8, timed interleaved. Weights
are random: they change neither.

    python -m benchmarks.student_speed [--threads 1] [--runs 400] [--width 1.0] [--students edge_s,cnn5] > FILE.json

Every student has the heads of the eight tasks of the architecture page, landmarks of the edge students as heatmaps.
Prints one JSON object: per student and target the fp32 and the w8a8 row of `edgeface bench`, which had all students'
files of the target in turn; `ratio_to_first` is to the first student's fp32 file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.architecture import all_tasks
from edgeface.models.network import build_network
from edgeface.specs import STUDENTS, NetworkSpec, QatSpec, landmark_heads
from quantize.calibrate import calibrate
from quantize.graph import trace
from quantize.qat import finish, prepare
from targets.artifacts import SUFFIXES
from targets.bench import bench
from targets.build import write_target

INPUT_PX = {"lightcnn9": 128, "tcdcn_relu": 40}  # as published; the others take 64
TARGETS = ("android", "openvino", "onnx")
PURPOSES = {
    "edge_s": "the default: every task in one pass",
    "edge_m": "half as much arithmetic again",
    "edge_l": "the most in half a millisecond",
    "cnn5": "a published shape; pools over the whole map",
    "vgg11": "a published shape",
    "lightcnn9": "a published shape, on grey pictures",
    "tcdcn_relu": "a published shape, on grey pictures",
}


def network_of(student: str, *, width: float) -> NetworkSpec:
    """A student as recipes take it."""
    heads = landmark_heads(student)
    head = "heatmap" if "heatmap" in heads else "linear"
    return NetworkSpec(backbone=student, width=width, input_px=INPUT_PX.get(student, 64), landmark_head=head)


def write_files(student: str, folder: Path, *, width: float) -> dict[str, list[Path]]:
    """fp32 and w8a8 of an untrained student, for each target."""
    network = network_of(student, width=width)
    model = all_tasks(network)
    built = build_network(network, model).eval()
    fake_quant = prepare(built, QatSpec())
    noise = torch.randint(
        0, 256, (8, 3, network.input_px, network.input_px), generator=torch.Generator().manual_seed(0)
    )
    calibrate(fake_quant, [noise.float()], limit=1)
    finish(fake_quant)
    found = {}
    for target in TARGETS:
        files = {precision: folder / f"{student}.{precision}{SUFFIXES[target]}" for precision in ("fp32", "w8a8")}
        write_target(target, files, trace(built), fake_quant.quantized(), model)
        found[target] = list(files.values())
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """One row per student: fp32 and w8a8 milliseconds in each runtime, and their ratio."""
    names = {"android": "LiteRT", "openvino": "OpenVINO", "onnx": "ONNX Runtime"}
    heads = ["student", "input", "MMAC", *(f"{names[target]}: fp32 → w8a8, ms" for target in TARGETS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for student, entry in found["students"].items():
        macs = entry["android"][0]["macs"]
        cells = [f"`{student}`", f"{entry['input_px']} px", f"{macs / 1e6:.0f}"]
        for target in TARGETS:
            whole, integer = entry[target]
            ratio = integer["ratio_to_first"] / whole["ratio_to_first"]
            cells.append(f"{whole['median_ms']:.3f} → {integer['median_ms']:.3f} ({ratio:.1f}x)")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def overview(found: Mapping[str, Any]) -> str:
    """One row per student: what it costs in LiteRT and OpenVINO, and what it is for."""
    heads = ["student", "input", "parameters", "MMAC", "w8a8 file", "LiteRT, ms", "OpenVINO, ms", "what for"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for student, entry in found["students"].items():
        file, other = entry["android"][1], entry["openvino"][1]
        cells = [f"`{student}`", f"{entry['input_px']} px", f"{entry['parameters'] / 1e6:.2f} M"]
        cells += [f"{file['macs'] / 1e6:.1f}", f"{file['size_bytes'] / 1e3:,.0f} KB"]
        cells += [f"{each['median_ms']:.3f}" for each in (file, other)]
        lines.append("| " + " | ".join([*cells, PURPOSES.get(student, "")]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--students", default=",".join(STUDENTS))
    options = parser.parse_args()
    names = options.students.split(",")
    students: dict[str, dict[str, object]] = {}
    loads: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for student in names:
            network = network_of(student, width=options.width)
            trunk = build_network(network, all_tasks(network)).backbone
            parameters = sum(values.numel() for values in trunk.parameters())
            students[student] = {"input_px": network.input_px, "parameters": parameters}
            files[student] = write_files(student, Path(folder), width=options.width)
        for target in TARGETS:
            # All in turn, so that whatever else the machine does falls on each.
            paths = [path for student in names for path in files[student][target]]
            found = bench([(str(path), None, None) for path in paths], threads=options.threads, runs=options.runs)
            loads[target] = found.conditions["load_average"]
            rows = [{**asdict(row), "model": Path(row.model).name} for row in found.rows]
            for place, student in enumerate(names):
                students[student][target] = whole, integer = rows[2 * place : 2 * place + 2]
                ratio = integer["ratio_to_first"] / whole["ratio_to_first"]
                print(f"{student} {target}: w8a8 {integer['median_ms']:.4f} ms, {ratio:.2f}x fp32", file=sys.stderr)
    conditions = {**found.conditions, "load_average": loads}
    print(json.dumps({"schema": 1, "width": options.width, "students": students, "conditions": conditions}))


if __name__ == "__main__":
    main()
