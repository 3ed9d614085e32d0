"""A bundle says everything needed to use it, checks itself, and notices when it is no longer what was built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeface.errors import ModelError
from edgeface.files import sha256_file
from edgeface.specs import ModelSpec
from edgeface.tasks import Kind
from targets.bundle import golden_faces, read_bundle, read_golden, verify
from targets.codegen import generate

from .conftest import OUTPUTS


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "android"))


def test_manifest_vouches_for_every_file(bundle_folder: Path, run_folder: Path) -> None:
    manifest = read_bundle(bundle_folder)

    assert {entry["precision"] for entry in manifest["files"].values()} == {"fp32", "fp16", "w8a32", "w8a8"}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256_file(bundle_folder / name)
        assert entry["size_bytes"] == (bundle_folder / name).stat().st_size
    for stage, digest in manifest["checkpoints"].items():
        recorded = json.loads((run_folder / stage / "manifest.json").read_text(encoding="utf-8"))["files"]
        assert digest == recorded["weights.safetensors"]
    assert {path.name for path in bundle_folder.iterdir()} == {
        *manifest["files"],
        "manifest.json",
        "golden.npz",
        "EdgeFace.kt",
        "MODEL_CARD.md",
        "sbom.cdx.json",
    }
    assert manifest["sbom"]["sha256"] == sha256_file(bundle_folder / "sbom.cdx.json")
    assert manifest["beside"] == {
        name: sha256_file(bundle_folder / name) for name in ("EdgeFace.kt", "MODEL_CARD.md", "sbom.cdx.json")
    }


def test_manifest_holds_the_whole_contract(bundle_folder: Path) -> None:
    manifest = read_bundle(bundle_folder)

    assert manifest["input"]["shape"] == [1, 32, 32, 3]
    assert (manifest["input"]["scale"], manifest["input"]["zero_point"]) == (1 / 64, 128)
    assert manifest["input"]["colour_order"] == "RGB"
    assert manifest["crop"]["size_px"] == 32
    assert [output["name"] for output in manifest["outputs"]] == ["landmarks5", "gender", "smile"]
    assert manifest["outputs"][1]["classes"] == ["male", "female"]
    assert np.shape(manifest["outputs"][0]["mean_shape"]) == (5, 2)
    grids = manifest["files"]["edge_s.w8a8.tflite"]["grids"]
    assert grids.keys() == {"landmarks5", "gender", "smile"}
    assert (manifest["licences"], manifest["research_only"]) == (["Apache-2.0"], False)


def test_bundle_answers_its_own_golden_faces(bundle_folder: Path) -> None:
    found = verify(bundle_folder)

    assert len(found) == 4
    assert all(file.passed and file.bit_identical for file in found)


def test_builtin_kernels_answer_the_golden_faces_within_their_rounding(bundle_folder: Path) -> None:
    found = {file.precision: file for file in verify(bundle_folder, runtime="tflite-builtin")}

    assert all(file.passed for file in found.values())


def test_file_of_other_weights_does_not_pass_twin(copy: Path) -> None:
    """One int8 weight changed, and the manifest made to vouch for it: only the golden faces can tell."""
    from targets.flatbuffer import Flatbuffer

    path = copy / "edge_s.w8a8.tflite"
    file = Flatbuffer(path.read_bytes())
    index = next(i for i in range(len(file.tensors)) if file.name(i) == "heads_landmarks5/weight")
    weight = np.array(file.constant(index))
    weight.flat[:8] = 100
    file.set_constant(index, weight)
    path.write_bytes(file.pack())
    manifest = read_bundle(copy)
    manifest["files"][path.name]["sha256"] = sha256_file(path)
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    found = {file.precision: file for file in verify(copy)}

    assert not found["w8a8"].passed
    assert found["fp32"].passed


def test_altered_golden_faces_are_refused(copy: Path) -> None:
    content = bytearray((copy / "golden.npz").read_bytes())
    content[-1] ^= 1
    (copy / "golden.npz").write_bytes(content)

    with pytest.raises(ModelError, match=r"golden\.npz"):
        verify(copy)


def test_golden_faces_are_synthetic_faces_and_vary(bundle_folder: Path) -> None:
    golden = read_golden(bundle_folder)

    assert golden["images"].shape == (24, 32, 32, 3)
    assert golden["images"].dtype == np.uint8
    spec = ModelSpec(name="edge_s", input_px=32, outputs=OUTPUTS)
    assert np.array_equal(golden["images"][:3], golden_faces(spec, count=3))
    # Faces, not noise: neighbouring pixels of a picture differ far less than pixels of different pictures.
    images = golden["images"].astype(np.float64)
    assert np.abs(np.diff(images, axis=1)).mean() < np.abs(np.diff(images, axis=0)).mean() / 2
    assert golden["w8a8/landmarks5"].dtype == np.int8
    assert golden["fp32/landmarks5"].shape == (24, 5, 2)


@pytest.mark.parametrize("missing", ["manifest.json", "golden.npz", "edge_s.fp16.tflite"])
def test_incomplete_bundle_is_refused(missing: str, copy: Path) -> None:
    (copy / missing).unlink()

    with pytest.raises(ModelError):
        verify(copy)


def test_code_of_a_bundle_is_that_of_its_manifest(bundle_folder: Path) -> None:
    manifest = read_bundle(bundle_folder)

    assert generate(manifest) == {"EdgeFace.kt": (bundle_folder / "EdgeFace.kt").read_text(encoding="utf-8")}
    manifest["outputs"][0]["mean_shape"][0][0] += 0.01  # the twin
    assert generate(manifest) != {"EdgeFace.kt": (bundle_folder / "EdgeFace.kt").read_text(encoding="utf-8")}


def test_every_kind_of_output_is_decoded() -> None:
    from targets.bundle import _DECODE

    assert set(_DECODE) == set(Kind)
