"""Core ML packages: the only module that imports coremltools."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

from edgeface.errors import MissingToolError, ModelError


def read_model(path: Path) -> Any:
    """The parsed `Model` of an .mlpackage (coremltools.proto.Model_pb2), found through its Manifest.json.

    Raises:
        ModelError: A part is missing or malformed.
        MissingToolError: coremltools is not installed.
    """
    file = _model_file(path)
    model = _proto("Model_pb2").Model()
    try:
        model.ParseFromString(file.read_bytes())
    except OSError as error:
        raise _broken(path, f"{file.name} cannot be read ({error.strerror})") from error
    except Exception as error:  # protobuf's own, which has no public name in every version
        raise _broken(path, f"{file.name} cannot be parsed ({error})") from error
    if not model.IsInitialized() or model.specificationVersion < 1:
        raise _broken(path, f"{file.name} holds no model")
    return model


def weights_file(path: Path) -> Path:
    """Where the large constants of an .mlpackage lie, `@model_path/weights/weight.bin` inside it; may be absent.

    Raises:
        ModelError: Its Manifest.json is missing or malformed.
    """
    return _model_file(path).parent / "weights" / "weight.bin"


def _model_file(path: Path) -> Path:
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        inside = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        file = path / "Data" / inside
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"Manifest.json names no model ({type(error).__name__}: {error})") from error
    if not file.resolve().is_relative_to(path.resolve()):
        raise _broken(path, f"Manifest.json points outside the package, to {inside!r}")
    return file


def _broken(path: Path, found: str) -> ModelError:
    return ModelError(found, expected="a whole .mlpackage folder", where=str(path), do="Copy or build it again")


def _proto(name: str) -> Any:
    """One of coremltools' protobuf modules, without the seconds that importing coremltools itself takes."""
    if "coremltools" in sys.modules:
        return _import(f"coremltools.proto.{name}")
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        raise _missing("it is not installed")
    if _PROTO not in sys.modules:
        package = types.ModuleType(_PROTO)
        package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "proto")]
        sys.modules[_PROTO] = package
    return _import(f"{_PROTO}.{name}")


# Its modules import one another relatively, so they live under any name.
_PROTO = "_edgeface_coreml_proto"


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(str(error)) from error


def _missing(reason: str) -> MissingToolError:
    return MissingToolError(
        f"coremltools cannot be imported ({reason})",
        expected="the Core ML tool-kit",
        where="target ios",
        do="pip install 'edgeface[ios]'",
    )
