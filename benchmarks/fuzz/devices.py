"""Inputs for the readers of what devices send back, and of what describes a model to them."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.bundles import golden_reader, npz
from benchmarks.fuzz.mutate import mutate_bytes, mutate_tree, mutated_json, room, toml_of
from benchmarks.fuzz.reader import Files, Reader, only


def result_reader() -> Reader:
    from targets.devices.job import Slot, Subject, read_report

    slots = {
        "gender": Slot(dtype="int8", shape=(2,), scale=0.5, zero_point=3),
        "landmarks5": Slot(dtype="float32", shape=(10,), scale=0.0, zero_point=0),
    }
    subject = Subject(path=Path("edge_s.w8a8.tflite"), runtime="tflite-xnnpack", slots=slots, sha256="ab" * 32)
    answers = {"gender": np.zeros((2, 2), np.int8), "landmarks5": np.zeros((2, 10), np.float32)}
    plain = npz(answers)
    result = {
        "schema": 1,
        "nonce": "n",
        "machine": {"system": "Linux", "machine": "aarch64", "model": "x", "cores": 4, "features": ["dotprod"]},
        "versions": {"python": "3.11", "numpy": "2", "ai-edge-litert": "2"},
        "files": [
            {
                "file": "edge_s.w8a8.tflite",
                "sha256": "ab" * 32,
                "runtime": "tflite-xnnpack",
                "outputs": {
                    name: {"dtype": slot.dtype, "scale": slot.scale, "zero_point": slot.zero_point}
                    for name, slot in slots.items()
                },
                "answers": "0.npz",
                "answers_sha256": "",
                "latency": {"median_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0, "runs": 5, "load_ms": 1.0},
                "error": "",
            }
        ],
    }
    make_golden = golden_reader().make

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        content = plain
        if kind == 0:
            content = mutate_bytes(dice, plain)
        elif kind == 1:
            content = make_golden(dice)["golden.npz"]
        tree = copy.deepcopy(result)
        tree["files"][0]["answers_sha256"] = hashlib.sha256(content).hexdigest()  # type: ignore[index]
        return {"result.json": json.dumps(tree).encode() if kind < 2 else mutated_json(dice, tree), "0.npz": content}

    def read(folder: Path) -> object:
        report = read_report(folder, [subject], nonce="n", count=2, on="fuzz")
        return json.dumps([dict(report.machine), dict(report.versions), report.answers[0].fault])

    return Reader(make=make, read=read, grown=only("result.json", {"0.npz": plain}))


def description_reader() -> Reader:
    from targets.description import DescribedRunner, read_description, template
    from targets.protocol import Port

    inputs = (Port(name="image", dtype="float32", shape=(1, 16, 16, 3), grid=None),)
    outputs = (
        Port(name="points", dtype="float32", shape=(1, 10), grid=None),
        Port(name="sex", dtype="float32", shape=(1, 2), grid=None),
        Port(name="age", dtype="float32", shape=(1, 1), grid=None),
    )

    class Base:
        runtime, precision, threads, size_bytes, macs, operations = "x", "fp32", 1, 5, 5, None

        def __init__(self) -> None:
            self.inputs, self.outputs, self.spec, self.path = inputs, outputs, None, Path("peer.onnx")

        def answer(self, batch: Any) -> dict[str, Any]:
            return {port.name: np.ones((len(batch), *port.shape[1:]), np.float32) for port in outputs}

    tree = {
        "input": {"colour": "RGB", "mean": [0], "std": [255], "size": 16, "layout": "NHWC", "dtype": "float32"},
        "outputs": [
            {"name": "points", "task": "landmarks5", "coordinates": "pixels", "dimensions": 2, "order": "xy"},
            {"name": "sex", "task": "gender", "values": "logits", "classes": ["female", "male"]},
            {"name": "age", "task": "age", "values": "years", "scale": 100.0, "offset": 0.5},
        ],
    }
    form = template(Path("peer.onnx"), inputs, outputs).encode()
    batch = np.zeros((2, 16, 16, 3), np.uint8)

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        if kind == 0:
            return {"a.toml": mutate_bytes(dice, form)}
        if kind == 1:
            with room():
                return {"a.toml": toml_of(mutate_tree(dice, tree)).encode("utf-8", "replace")}
        return {"a.json": mutated_json(dice, tree)}

    def read(folder: Path) -> object:
        path = next(folder / name for name in ("a.toml", "a.json") if (folder / name).exists())
        runner: Any = DescribedRunner(Base(), read_description(path), where=str(path))  # type: ignore[arg-type]
        with np.errstate(all="ignore"):  # a scale of 1e308 is the description's own affair
            return runner.run(batch)

    return Reader(make=make, read=read, grown=only("a.toml"))
