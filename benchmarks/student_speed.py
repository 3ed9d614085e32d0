"""Speed and size of every student in LiteRT, OpenVINO and ONNX Runtime, fp32 beside w8a8, timed interleaved. Weights
are random: they change neither.

    python -m benchmarks.student_speed [--threads 1] [--runs 400] [--width 1.0] [--students edge_s,cnn5] > FILE.json

Prints one JSON object: per student and target a table of `edgeface bench` whose first row is the fp32 file.
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

from edgeface.models.network import build_network, model_spec
from edgeface.specs import STUDENTS, NetworkSpec, QatSpec, output_spec
from quantize.calibrate import calibrate
from quantize.graph import trace
from quantize.qat import finish, prepare
from targets.artifacts import SUFFIXES
from targets.bench import bench
from targets.build import write_target

INPUT_PX = {"lightcnn9": 128, "tcdcn_relu": 40}  # as published; the others take 64


TARGETS = ("android", "openvino", "onnx")


def write_files(student: str, folder: Path, *, width: float) -> dict[str, list[Path]]:
    """fp32 and w8a8 of an untrained student with five landmarks, gender and smile, for each target."""
    network = NetworkSpec(backbone=student, width=width, input_px=INPUT_PX.get(student, 64))
    mean_shape = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.55), (0.35, 0.7), (0.65, 0.7))
    outputs = (output_spec("landmarks5", mean_shape=mean_shape), output_spec("gender"), output_spec("smile"))
    model = model_spec(network, outputs)
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
            ratio = integer["ratio_to_first"]
            cells.append(f"{whole['median_ms']:.3f} → {integer['median_ms']:.3f} ({ratio:.1f}x)")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--students", default=",".join(STUDENTS))
    options = parser.parse_args()
    students: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for student in options.students.split(","):
            students[student] = {"input_px": INPUT_PX.get(student, 64)}
            for target, paths in write_files(student, Path(folder), width=options.width).items():
                found = bench([(str(path), None, None) for path in paths], threads=options.threads, runs=options.runs)
                rows = [{**asdict(row), "model": Path(row.model).name} for row in found.rows]
                students[student][target] = rows
                ratio = rows[1]["ratio_to_first"]
                print(f"{student} {target}: w8a8 {rows[1]['median_ms']:.4f} ms, {ratio:.2f}x fp32", file=sys.stderr)
    print(json.dumps({"schema": 1, "width": options.width, "students": students, "conditions": found.conditions}))


if __name__ == "__main__":
    main()
