"""How exactly an int8 TFLite file computes what its student and the integer simulator compute, on labelled faces.

    python benchmarks/agreement.py RUN FILE.tflite SOURCE

Prints one JSON object. Shares are over all output values: "exact" are equal, "within_1_lsb" differ by at most one step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.checkpoint import load_checkpoint
from edgeface.data.sources import data_root
from edgeface.evaluate import Outputs, evaluation_pack
from edgeface.models.runner import TorchRunner
from edgeface.provenance import commit, cpu, versions
from quantize.grid import dequantize, simulate
from quantize.qat import load_qat
from targets.runners import open_model


def shares(found: Outputs, expected: Outputs, steps: dict[str, float]) -> dict[str, float | int]:
    """Shares of equal values and of values at most one step apart, and the largest distance in steps."""
    distance = np.concatenate([np.abs(found[n] - expected[n]).ravel() / step for n, step in steps.items()])
    # Codes times a scale of 16 bits are exact in float32, so equal codes give equal values.
    return {
        "values": int(distance.size),
        "exact": float((distance == 0.0).mean()),
        "within_1_lsb": float((distance <= 1.0 + 1e-3).mean()),
        "max_lsb": float(distance.max()),
    }


def in_batches(run: Any, pictures: NDArray[np.uint8]) -> Outputs:
    parts = [run(np.ascontiguousarray(pictures[start : start + 64])) for start in range(0, len(pictures), 64)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def main(run: Path, file: Path, source: str) -> dict[str, object]:
    checkpoint = load_checkpoint(run / "qat")
    student = load_qat(checkpoint)
    quantized = student.quantized()
    pictures = evaluation_pack(source, checkpoint.model, root=data_root()).images
    steps = {output.name: quantized.output_grid(output.name)[0] for output in checkpoint.model.outputs}

    files = {
        name: in_batches(open_model(file, runtime=name).run, pictures) for name in ("tflite-xnnpack", "tflite-builtin")
    }
    rules = {
        kernels: in_batches(
            lambda batch, kernels=kernels: dequantize(quantized, simulate(quantized, batch, kernels=kernels)), pictures
        )
        for kernels in ("xnnpack", "tflite-builtin")
    }
    integer = in_batches(TorchRunner(student, checkpoint.model).run, pictures)
    student.freeze()  # back to the straight-through float form that training used
    rounded = in_batches(TorchRunner(student.eval(), checkpoint.model).run, pictures)

    shaped = {name: values.shape for name, values in integer.items()}
    rules = {kernels: {n: v.reshape(shaped[n]) for n, v in outputs.items()} for kernels, outputs in rules.items()}
    xnnpack, builtin = files["tflite-xnnpack"], files["tflite-builtin"]
    return {
        "schema": 1,
        "file": file.name,
        "data": source,
        "faces": len(pictures),
        "agreement": {
            "fake-quant student / tflite-xnnpack": shares(xnnpack, integer, steps),
            "fake-quant student in training's float form / tflite-xnnpack": shares(xnnpack, rounded, steps),
            "simulator xnnpack / tflite-xnnpack": shares(xnnpack, rules["xnnpack"], steps),
            "simulator tflite-builtin / tflite-builtin": shares(builtin, rules["tflite-builtin"], steps),
            "tflite-builtin / tflite-xnnpack": shares(xnnpack, builtin, steps),
        },
        "conditions": {"machine": cpu(), "versions": versions(), "commit": commit()},
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]), indent=2))
