"""Cases that the generated code of every language answers, and what edgeface answers to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeface.config import to_plain
from edgeface.data.geometry import crop_image
from edgeface.data.sources import open_source
from edgeface.evaluate import decode, probabilities
from edgeface.specs import ModelSpec, OutputSpec, output_spec
from edgeface.tasks import TASKS, Kind
from targets.bundle import crop_contract, input_contract, output_contract
from targets.codegen import generate

HARNESS = Path(__file__).parent / "harness"
GRID = 1 / 32, 3  # of the int8 outputs that harness/java answers with
LANGUAGES = {"python": "openvino", "cpp": "openvino", "kotlin": "android", "swift": "ios"}


def model(*, px: int = 24, tasks: Sequence[str] = tuple(TASKS), heads: Mapping[str, str] | None = None) -> ModelSpec:
    """A model of these tasks with mean shapes and thresholds that are all different."""
    generator = np.random.default_rng(3)
    outputs = []
    for task in tasks:
        points = generator.uniform(0.1, 0.9, (TASKS[task].points, 2)).round(6)
        output = output_spec(
            task, mean_shape=tuple((float(x), float(y)) for x, y in points), head=(heads or {}).get(task, "")
        )
        outputs.append(replace(output, threshold=round(float(generator.uniform(0.2, 0.8)), 2)))
    return ModelSpec(
        name="edge_s", input_px=px, outputs=tuple(outputs), mean=(127.5, 120.0, 110.25), std=(64.0, 60.5, 50.0)
    )


def manifest_of(spec: ModelSpec, target: str, *, float_input: bool = False) -> dict[str, Any]:
    """What bundle.write_bundle writes of a model, without files."""
    return {
        "schema": 1,
        "target": target,
        "name": spec.name,
        "model": to_plain(spec),
        "input": input_contract(spec, target=target, float_input=float_input),
        "crop": crop_contract(spec),
        "outputs": [output_contract(output) for output in spec.outputs],
        "files": {f"{spec.name}.w8a8.x": {"precision": "w8a8", "size_bytes": 1000}},
        "licences": ["mtfl: research only (MTFL, Chinese University of Hong Kong)"],
        "research_only": True,
        "versions": {"edgeface": "0.1.0"},
        "checkpoints": {"qat": "ab" * 32},
        "golden": {"file": "golden.npz", "sha256": "0", "faces": 24},
        "provenance": {"qat": {"command": "edgeface distill mtfl-cpu", "seed": 0}},
    }


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Pictures with crops, and raw outputs as if a model had seen them.

    Attributes:
        pictures: (H, W, 3) each.
        crops: (N, 3).
        outputs: Output name to (N, *shape), on the grid GRID.
    """

    pictures: list[NDArray[np.uint8]]
    crops: NDArray[np.float32]
    outputs: dict[str, NDArray[np.float32]]

    def write(self, path: Path) -> None:
        parts = [np.array([len(self.pictures)], "<i4").tobytes()]
        for row, (picture, crop) in enumerate(zip(self.pictures, self.crops, strict=True)):
            parts += [np.array([picture.shape[1], picture.shape[0]], "<i4").tobytes(), crop.astype("<f4").tobytes()]
            parts += [picture.tobytes(), *(values[row].astype("<f4").tobytes() for values in self.outputs.values())]
        path.write_bytes(b"".join(parts))


def make_cases(spec: ModelSpec) -> Cases:
    """Drawn faces as evaluation crops them; then noise, enlarged and shrunk, across every border, down to one pixel."""
    corpus = open_source("synthetic:6@test", root=Path())
    pictures = [np.ascontiguousarray(corpus.load(row)) for row in range(6)]
    crops = [corpus.crops[row] for row in range(6)]
    generator = np.random.default_rng(0)
    for side in (0.7, 5.3, 23.9, 24.0, 31.7, 90.2, 400.1):
        for _ in range(4):
            height, width = map(int, generator.integers(1, 80, 2))
            pictures.append(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
            center = generator.uniform(-0.45 * side, [width + 0.45 * side, height + 0.45 * side])
            crops.append(np.array([*center, side], np.float32))
    scale, zero = GRID
    outputs = {
        output.name: np.float32(scale)
        * (generator.integers(-128, 128, (len(crops), *output.shape)) - zero).astype(np.float32)
        for output in spec.outputs
    }
    return Cases(pictures=pictures, crops=np.stack(crops), outputs=outputs)


def faces_of(cases: Cases, *, px: int) -> NDArray[np.uint8]:
    """The crops that evaluation gives: (N, px, px, 3)."""
    return np.stack([crop_image(image, crop, px=px) for image, crop in zip(cases.pictures, cases.crops, strict=True)])


def flat_answers(spec: ModelSpec, cases: Cases) -> NDArray[np.float64]:
    """evaluate.decode in the order in which a harness writes: (N, M), landmarks in crop sides."""
    decoded = decode(spec, cases.outputs)
    parts: list[NDArray[Any]] = []
    for output in spec.outputs:
        answer, raw = decoded[output.task], cases.outputs[output.name]
        match TASKS[output.task].kind:
            case Kind.CLASSES:
                parts += [answer[:, None], probabilities(output, raw)]
            case Kind.ATTRIBUTES:
                parts.append(np.stack([answer, probabilities(output, raw)], axis=-1))
            case _:
                parts.append(answer)
    return np.concatenate([part.reshape(len(cases.crops), -1) for part in parts], axis=1).astype(np.float64)


def read_answers(spec: ModelSpec, cases: Cases, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """What a harness wrote: faces (N, px, px, 3) and answers (N, M), landmarks put back into crop sides."""
    content = np.frombuffer(path.read_bytes(), np.uint8).reshape(len(cases.crops), -1)
    pixels = spec.input_px**2 * 3
    faces = content[:, :pixels].reshape(-1, spec.input_px, spec.input_px, 3)
    values = np.ascontiguousarray(content[:, pixels:-24]).view("<f4").astype(np.float64)
    at, crops = 0, cases.crops.astype(np.float64)
    for output in spec.outputs:
        length = _length(output)
        if TASKS[output.task].kind is Kind.LANDMARKS:
            points = values[:, at : at + length].reshape(len(crops), -1, 2)
            points = (points - crops[:, None, :2]) / crops[:, None, 2:] + 0.5
            values[:, at : at + length] = points.reshape(len(crops), -1)
        at += length
    assert at == values.shape[1]
    return faces, values


def read_crops(path: Path, *, count: int) -> NDArray[np.float32]:
    """(2, 3) the crops a harness made around its fixed box and landmarks; it says them behind each of `count` cases."""
    found = np.frombuffer(path.read_bytes(), np.uint8).reshape(count, -1)[:, -24:].copy().view("<f4").reshape(-1, 2, 3)
    assert (found == found[0]).all()
    return np.asarray(found[0])


def _length(output: OutputSpec) -> int:
    size = 2 * len(output.mean_shape) if output.heatmap else int(np.prod(output.shape))
    return {Kind.CLASSES: size + 1, Kind.ATTRIBUTES: 2 * size, Kind.AGE: 1}.get(TASKS[output.task].kind, size)


def tool(name: str, variable: str) -> str:
    """A compiler, from an environment variable or the path.

    Skips the test, with the reason, when there is none.
    """
    found = os.environ.get(variable) or shutil.which(name)
    if found is None:
        pytest.skip(f"NOT_RUN: no {name} here (name one in ${variable}): the generated file is parsed, not compiled")
    return found


def run(*words: str | Path, cwd: Path | None = None) -> None:
    """Run a program; its output is the test's failure."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


Program = Callable[[Path, Path], None]  # reads cases, writes answers


def compile_program(
    language: str, manifest: Mapping[str, Any], folder: Path, *, fault: tuple[str, str] | None = None
) -> Program:
    """The generated code of a manifest with its harness, ready to run; with one text put in place of another."""
    outputs = manifest["outputs"]
    names = [output["name"] for output in outputs]
    sizes = [int(np.prod(output["shape"])) for output in outputs]
    camel = [first + "".join(map(str.capitalize, rest)) for first, *rest in (name.split("_") for name in names)]
    float_input = manifest["input"]["type"] == "float32"
    for name, text in generate(manifest).items():
        if fault is not None:
            assert fault[0] in text, name
            text = text.replace(*fault)
        (folder / name).write_text(text, encoding="utf-8")
    pairs = list(zip(names, sizes, strict=True))
    match language:
        case "python":
            return lambda cases, answers: run(
                sys.executable, "-I", "-W", "error", HARNESS / "harness.py", folder, cases, answers
            )
        case "cpp":
            cut = "edgeface::cut({pixels.data(), size[0], size[1], stride}, where)"
            filled = {
                "@SIZES@": ", ".join(f'{{"{name}", {size}}}' for name, size in pairs),
                "@TENSOR@": f"edgeface::standardize({cut})" if float_input else cut,
                "@PUTS@": " ".join(f"put(flat, answer.{name});" for name in names),
            }
            _fill(HARNESS / "harness.cpp", filled, folder / "harness.cpp")
            options = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror")
            run(tool("g++", "EDGEFACE_CXX"), *options, folder / "harness.cpp", "-o", folder / "harness")
            return lambda cases, answers: run(folder / "harness", cases, answers)
        case "kotlin":
            compiler = tool("kotlinc", "EDGEFACE_KOTLINC")
            java = sorted((HARNESS / "java").rglob("*.java"))
            run(tool("javac", "EDGEFACE_JAVAC"), "-d", folder / "classes", *java)
            filled = {
                "@SIZES@": ", ".join(f'"{name}" to {size}' for name, size in pairs),
                "@PUTS@": ", ".join(f"flat(answer.{name})" for name in camel),
            }
            _fill(HARNESS / "Harness.kt", filled, folder / "Harness.kt")
            sources = (folder / "EdgeFace.kt", folder / "Harness.kt")
            jar = folder / "harness.jar"
            run(compiler, "-Werror", "-cp", folder / "classes", *sources, "-include-runtime", "-d", jar)
            path = f"{jar}{os.pathsep}{folder / 'classes'}"
            kind = "float" if float_input else "int8"
            return lambda cases, answers: run("java", "-cp", path, "HarnessKt", cases, answers, kind)
        case _:
            compiler = tool("swiftc", "EDGEFACE_SWIFTC")
            cut = "try FaceContract.cut(picture, place)"
            filled = {
                "@SIZES@": ", ".join(f'("{name}", {size})' for name, size in pairs),
                "@TENSOR@": f"FaceContract.standardize({cut})" if float_input else cut,
                "@PUTS@": "\n    ".join(f"values += flat(answer.{name})" for name in camel),
            }
            _fill(HARNESS / "swift" / "main.swift", filled, folder / "main.swift")
            sources = (folder / "EdgeFace.swift", folder / "main.swift")
            run(compiler, "-O", "-warnings-as-errors", *sources, "-o", folder / "harness", cwd=folder)
            return lambda cases, answers: run(folder / "harness", cases, answers)


def _fill(source: Path, filled: Mapping[str, str], path: Path) -> None:
    text = source.read_text(encoding="utf-8")
    for mark, value in filled.items():
        text = text.replace(mark, value)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return model()


@pytest.fixture(scope="session")
def cases(spec: ModelSpec) -> Cases:
    return make_cases(spec)


def changed(manifest: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A copy of a manifest with one thing changed."""
    copy: dict[str, Any] = json.loads(json.dumps(manifest))
    change(copy)
    return copy
