"""Speed and size of every student as TFLite files, fp32 beside w8a8, timed interleaved. Weights are random: they change
neither.

    python benchmarks/student_speed.py [--threads 1] [--runs 400] [--width 1.0] > benchmarks/results/student_speed.json

Prints one JSON object: a table of `edgeface bench` per student, the first row of each its fp32 file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from edgeface.models.network import build_network, model_spec
from edgeface.specs import STUDENTS, NetworkSpec, QatSpec, output_spec
from quantize.calibrate import calibrate
from quantize.graph import trace
from quantize.qat import finish, prepare
from targets import tflite
from targets.bench import bench

INPUT_PX = {"lightcnn9": 128, "tcdcn_relu": 40}  # as published; the others take 64


def write_files(student: str, folder: Path, *, width: float) -> list[Path]:
    """fp32 and w8a8 of an untrained student with five landmarks, gender and smile."""
    network = NetworkSpec(backbone=student, width=width, input_px=INPUT_PX.get(student, 64))
    mean_shape = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.55), (0.35, 0.7), (0.65, 0.7))
    outputs = (output_spec("landmarks5", mean_shape=mean_shape), output_spec("gender"), output_spec("smile"))
    built = build_network(network, model_spec(network, outputs)).eval()
    fake_quant = prepare(built, QatSpec())
    noise = torch.randint(
        0, 256, (8, 3, network.input_px, network.input_px), generator=torch.Generator().manual_seed(0)
    )
    calibrate(fake_quant, [noise.float()], limit=1)
    finish(fake_quant)
    paths = [folder / f"{student}.{precision}.tflite" for precision in ("fp32", "w8a8")]
    tflite.write_fp32(tflite.lower(trace(built)), paths[0])
    tflite.write_w8a8(fake_quant.quantized(), paths[1])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--width", type=float, default=1.0)
    options = parser.parse_args()
    students = {}
    with tempfile.TemporaryDirectory() as folder:
        for student in STUDENTS:
            paths = write_files(student, Path(folder), width=options.width)
            found = bench([(str(path), None, None) for path in paths], threads=options.threads, runs=options.runs)
            rows = [{**row, "model": Path(str(row["model"])).name} for row in map(vars, found.rows)]
            students[student] = {"input_px": INPUT_PX.get(student, 64), "rows": rows}
    print(json.dumps({"schema": 1, "width": options.width, "students": students, "conditions": found.conditions}))


if __name__ == "__main__":
    main()
