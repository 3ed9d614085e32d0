"""How far older and other TFLite runtimes are from LiteRT on the same files.

    python benchmarks/old_runtimes.py RUN... [--count N]

Builds every android file of each run and runs it on drawn faces. Prints one JSON object: student × precision × runtime
to the largest distance over all outputs, in LSB for int8 outputs, else in the outputs' own units with the range of the
widest beside it, and the share of equal values. Kernels are compared with their like: default kernels with LiteRT's
default, builtin with builtin. "w8a8 simulator" rows say which rounding rule, if any, a runtime's w8a8 outputs equal.
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

from distill.stages import load_network
from edgeface.checkpoint import load_checkpoint
from edgeface.precision import PRECISIONS
from edgeface.provenance import commit, cpu, versions
from quantize.graph import trace
from quantize.grid import simulate
from quantize.qat import load_qat
from targets import bundle, tflite, tflite214
from targets.litert import Engine, open_engine
from targets.tflite214 import Worker

FAMILIES = ("xnnpack", "tflite-builtin", "tflite-builtin-ref")


def engines(path: Path) -> dict[str, tuple[Engine, str]]:
    """Runtime to the loaded file and the runtime of LiteRT that it is compared with."""
    return {
        "tflite-xnnpack": (open_engine(path, runtime="tflite-xnnpack", threads=1), "tflite-xnnpack"),
        "tflite-builtin": (open_engine(path, runtime="tflite-builtin", threads=1), "tflite-builtin"),
        "tensorflow": (open_engine(path, runtime="tensorflow", threads=1), "tflite-xnnpack"),
        "tflite-2.14": (Worker(path, threads=1), "tflite-xnnpack"),
        "tflite-2.14 builtin": (Worker(path, threads=1, resolver=tflite214.BUILTIN), "tflite-builtin"),
    }


def distance(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    gaps = {name: np.abs(found[name].astype(np.float64) - expected[name]) for name in expected}
    return {
        "max": float(max(gap.max() for gap in gaps.values())),
        "max_of_range": float(max(gaps[name].max() / np.ptp(expected[name].astype(np.float64)) for name in gaps)),
        "equal": float(np.mean(np.concatenate([(gap == 0.0).ravel() for gap in gaps.values()]))),
    }


def measure(run: Path, *, count: int) -> dict[str, Any]:
    qat = load_checkpoint(run / "qat")
    quantized = load_qat(qat).quantized()
    graph = trace(load_network(load_checkpoint(run / "student")).eval())
    pictures = bundle.golden_faces(qat.model, count=count)
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {precision: Path(folder) / f"{precision}.tflite" for precision in PRECISIONS["android"]}
        tflite.write(files, graph=graph, quantized=quantized, model=qat.model)
        for precision, path in files.items():
            opened = engines(path)
            answers = {name: engine.run(pictures) for name, (engine, _) in opened.items()}
            table[precision] = {
                name: distance(answers[name], answers[like]) | {"against": like}
                for name, (_, like) in opened.items()
                if name != like
            }
            if precision == "w8a8":
                simulated = {family: simulate(quantized, pictures, kernels=family) for family in FAMILIES}  # type: ignore[arg-type]
                table["w8a8 simulator"] = {
                    name: {family: distance(answers[name], simulated[family]) for family in FAMILIES} for name in opened
                }
    return {"student": qat.model.name, "run": run.name, "pictures": len(pictures), "distance": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=50)
    arguments = parser.parse_args()
    tflite214.install()
    rows = [measure(run, count=arguments.count) for run in arguments.runs]
    conditions = {"machine": cpu(), "versions": versions(), "tflite-2.14": tflite214.PACKAGES, "commit": commit()}
    print(json.dumps({"schema": 1, "rows": rows, "conditions": conditions}, indent=2))


if __name__ == "__main__":
    main()
