"""Imports run one way, and each converter tool-kit is imported in exactly one file, inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("edgeface", "distill", "quantize", "targets")

# A module may import from its own rank and from lower ones. The longest prefix counts.
RANKS = {
    "edgeface": 0,
    "edgeface.errors": 0,
    "edgeface.limits": 0,
    "edgeface.tasks": 1,
    "edgeface.precision": 1,
    "edgeface.specs": 1,
    "edgeface.metrics": 1,
    "edgeface.verification": 1,
    "edgeface.calibration": 1,
    "edgeface.groups": 1,
    "edgeface.files": 1,
    "edgeface.arrays": 1,
    "edgeface.memory": 1,
    "edgeface.processes": 1,
    "edgeface.provenance": 1,
    "edgeface.data": 2,
    "edgeface.models": 2,
    "edgeface.config": 2,
    "edgeface.evaluate": 2,
    "edgeface.checkpoint": 2,
    "edgeface.runs": 2,
    "distill": 3,
    "quantize": 4,
    "targets": 5,
    "edgeface.report": 6,
    "edgeface.sweep": 7,
    "edgeface.cli": 7,
    "edgeface.__main__": 7,
}

# Tool-kit to the one file that may import it; "" while none does.
TOOLKITS = {
    "litert_torch": "targets/tflite.py",
    "ai_edge_quantizer": "",
    "ai_edge_litert.schema_py_generated": "targets/flatbuffer.py",
    "ai_edge_litert.interpreter": "targets/litert.py",
    "flatbuffers": "targets/flatbuffer.py",
    "coremltools": "targets/coreml.py",
    "openvino": "targets/openvino.py",
    "nncf": "quantize/baselines.py",
    "onnx": "targets/onnx.py",
    "onnxruntime": "targets/onnx.py",
    "onnxscript": "",
    "tensorflow": "targets/litert.py",
    "tflite_runtime": "targets/interpreter.py",
    "torchao": "",
    "cryptography": "targets/signing.py",
}

# Scripts that are copied to other machines and import nothing of ours: file to the tool-kit it runs there.
ELSEWHERE = {"targets/devices/agent.py": "ai_edge_litert.interpreter"}

# Too slow to load for whoever only imports a module of ours.
INSIDE_FUNCTIONS = {
    *(name.split(".")[0] for name in TOOLKITS),
    *(
        "cv2",
        "PIL",
        "rich",
        "matplotlib",
        "sklearn",
        "skops",
        "scipy",
        "torchvision",
        "lightning_fabric",
        "lightning",
        "optuna",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import: what, on which line, and whether it happens as the module loads."""

    name: str
    line: int
    at_load: bool


def imports_of(source: str, *, package: str) -> tuple[Import, ...]:
    """Every import of a module, `importlib.import_module("x")` with a literal name included."""
    return tuple(_visit(ast.parse(source), package=package, at_load=True))


def _visit(node: ast.AST, *, package: str, at_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = at_load and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(name=alias.name, line=child.lineno, at_load=at_load)
        elif isinstance(child, ast.ImportFrom):
            base = package.rsplit(".", child.level - 1)[0] if child.level else ""
            module = ".".join(part for part in (base, child.module or "") if part)
            for alias in child.names:
                yield Import(name=f"{module}.{alias.name}", line=child.lineno, at_load=at_load)
        elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
            called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
            if "import" in called and isinstance(child.args[0].value, str):
                yield Import(name=child.args[0].value, line=child.lineno, at_load=at_load)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _visit(ast.Module(body=[part], type_ignores=[]), package=package, at_load=False)
            for part in child.orelse:
                yield from _visit(ast.Module(body=[part], type_ignores=[]), package=package, at_load=inside)
        else:
            yield from _visit(child, package=package, at_load=inside)


def rank(module: str) -> int:
    """Rank of a module of ours by its longest listed prefix."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in RANKS and (prefix != "edgeface" or length == len(parts)):
            return RANKS[prefix]
    raise KeyError(f"{module} has no rank: add it to RANKS")


def upward(source: str, *, module: str, package: str) -> list[str]:
    """Imports of a module that point to a higher rank."""
    found = []
    for used in imports_of(source, package=package):
        if used.name.split(".")[0] not in PACKAGES:
            continue
        name = used.name if used.name.count(".") == 0 or used.name in MODULES else used.name.rsplit(".", 1)[0]
        if rank(name) > rank(module):
            found.append(f"{module}:{used.line} imports {used.name}")
    return found


def strays(source: str, *, file: str, package: str) -> list[str]:
    """Imports of a tool-kit outside its one file, and slow imports while a module loads."""
    found = []
    for used in imports_of(source, package=package):
        toolkit = next((name for name in TOOLKITS if f"{used.name}.".startswith(f"{name}.")), "")
        if toolkit and file not in (TOOLKITS[toolkit], *(path for path, own in ELSEWHERE.items() if own == toolkit)):
            found.append(f"{file}:{used.line} imports {used.name}, which belongs to {TOOLKITS[toolkit] or 'no file'}")
        if used.at_load and used.name.split(".")[0] in INSIDE_FUNCTIONS:
            found.append(f"{file}:{used.line} imports {used.name} outside a function")
    return found


def _modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _package(module: str) -> str:
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_lower_ranks(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    assert upward(source, module=module, package=_package(module)) == []


@pytest.mark.parametrize("module", MODULES)
def test_toolkits_stay_in_their_file_and_inside_functions(module: str) -> None:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    assert strays(source, file=str(path.relative_to(ROOT)), package=_package(module)) == []


def test_every_file_of_a_toolkit_exists_and_imports_it() -> None:
    for toolkit, file in TOOLKITS.items():
        if file:
            source = (ROOT / file).read_text(encoding="utf-8")
            names = [used.name for used in imports_of(source, package=file.split("/")[0])]
            assert any(f"{name}.".startswith(f"{toolkit}.") for name in names), f"{file} no longer imports {toolkit}"


def test_metrics_import_numpy_alone() -> None:
    source = MODULES["edgeface.metrics"].read_text(encoding="utf-8")
    used = {found.name.split(".")[0] for found in imports_of(source, package="edgeface")}
    foreign = used - {"__future__", "collections", "dataclasses", "enum", "functools", "math", "typing", "edgeface"}
    assert foreign == {"numpy"}


@pytest.mark.parametrize(
    "source",
    [
        "import targets.tflite",
        "from targets import tflite",
        "def late():\n    from edgeface.cli.main import main",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from quantize.graph import Graph",
        "import importlib\nimportlib.import_module('targets.tflite')",
    ],
)
def test_an_upward_import_is_caught_twin(source: str) -> None:
    assert upward(source, module="distill.losses", package="distill") != []


@pytest.mark.parametrize(
    "source",
    [
        "def late():\n    import litert_torch",
        "def late():\n    from ai_edge_litert.interpreter import Interpreter",
        "def late():\n    from ai_edge_litert import interpreter",
        "def late():\n    _import('ai_edge_quantizer.quantizer')",
        "import cv2",
        "class Reader:\n    from PIL import Image",
        "try:\n    import rich\nexcept ImportError:\n    pass",
    ],
)
def test_a_stray_toolkit_import_is_caught_twin(source: str) -> None:
    assert strays(source, file="edgeface/data/images.py", package="edgeface.data") != []


def test_a_module_without_a_rank_is_caught_twin() -> None:
    with pytest.raises(KeyError, match="has no rank"):
        rank("edgeface.helpers")
