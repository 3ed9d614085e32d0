"""The bill of materials names what built a bundle, in CycloneDX's own form."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from edgeface.files import sha256_file
from targets.sbom import SBOM, closure, sbom, write_sbom


def test_the_closure_holds_what_edgeface_needs_and_no_test_tools() -> None:
    found = closure("edgeface")
    assert {"torch", "numpy", "safetensors", "pillow"} <= found.keys()
    assert not {"pytest", "ruff", "mypy", "tensorflow"} & found.keys()
    assert all(importlib.metadata.version(name) == version for name, version in found.items())


def test_an_extra_adds_its_tool_kit_twin() -> None:
    plain, android = closure("edgeface"), closure("edgeface", extra="android")
    pytest.importorskip("litert_torch", reason="the android tool-kits are not installed")
    assert "litert-torch" in android.keys() - plain.keys()
    assert plain.items() <= android.items()


def test_the_bill_has_the_fields_that_cyclonedx_asks_for() -> None:
    bill = sbom(name="edge_s", target="android", files={"edge_s.w8a8.tflite": "ab" * 32})
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"])
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    refs = [part["bom-ref"] for part in bill["components"]]
    assert len(set(refs)) == len(refs)
    for part in bill["components"]:
        assert part["type"] == "library"
        assert part["purl"] == f"pkg:pypi/{part['name']}@{part['version']}"
        for licence in part.get("licenses", []):
            assert len(licence) == 1
            assert licence.get("expression") or licence["license"]["name"]


def test_the_same_files_give_the_same_bill_and_others_another() -> None:
    first, again, other = (sbom(name="x", target="onnx", files={"x.onnx": digest}) for digest in ("a", "a", "b"))
    assert first == again
    assert first["serialNumber"] != other["serialNumber"]


def test_the_manifest_entry_is_of_the_file_written(tmp_path: Path) -> None:
    entry = write_sbom(tmp_path, name="x", target="ios", files={"x.mlpackage": "a"})
    assert entry["file"] == SBOM
    assert entry["sha256"] == sha256_file(tmp_path / SBOM)
    assert json.loads((tmp_path / SBOM).read_text())["metadata"]["component"]["name"] == "x"
