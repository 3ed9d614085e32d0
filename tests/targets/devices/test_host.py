"""This machine runs every runtime of a format that is installed, and says of the others why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeface.errors import DeviceError, MissingToolError
from targets import runners
from targets.build import build
from targets.devices import host, open_device
from targets.devices.check import check
from targets.devices.host import Host
from targets.devices.shipped import Faces, Shipped, choose_faces, open_bundle


def test_every_runtime_of_the_format_has_its_row(shipped: Shipped, faces: Faces) -> None:
    found = check(shipped, open_device("host"), faces=faces)

    rows = {row.runtime: row for row in found.rows}
    assert tuple(rows) == runners.FORMATS[".tflite"].runtimes
    own = rows["tflite-xnnpack"]
    assert (own.outcome, own.identical, own.bit_identical, own.reference) == ("PASS", True, True, "tflite-xnnpack")
    # Other kernels, here too, are held against those that the file was built with.
    other = rows["tflite-builtin"]
    assert (other.outcome, other.identical, other.reference) == ("PASS", False, "tflite-xnnpack")
    assert found.bit_identical is True
    assert found.machine["system"]


def test_runtime_that_is_not_installed_is_not_run_and_says_so(
    shipped: Shipped, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(path: Path, **options: object) -> None:
        if options["runtime"] in ("tensorflow", "tflite-2.14"):
            raise MissingToolError("it cannot be imported", do="pip install it")
        return opened(path, **options)

    kind = runners.FORMATS[".tflite"]
    opened = kind.open
    monkeypatch.setitem(runners.FORMATS, ".tflite", runners.Format(**{**vars(kind), "open": absent}))

    found = check(shipped, Host(), faces=faces)

    assert {row.runtime: row.outcome for row in found.rows} == {
        "tflite-xnnpack": "PASS",
        "tflite-builtin": "PASS",
        "tensorflow": "NOT_RUN",
        "tflite-2.14": "NOT_RUN",
    }
    assert found.outcome == "PASS"
    assert "not run: edge_s.w8a8.tflite on tensorflow: it cannot be imported" in found.reason


def test_agent_that_ends_with_an_error_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="FileNotFoundError"):
        Host().run(tmp_path, told=lambda line: None)


def test_agent_that_does_not_end_is_a_device_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LIMIT_S", 0.001)

    with pytest.raises(DeviceError, match="did not end"):
        Host().run(tmp_path, told=lambda line: None)


def test_onnx_bundle_is_held_against_the_answers_it_was_shipped_with(run_folder: Path, tmp_path: Path) -> None:
    shipped = open_bundle(build(run_folder, target="onnx", precisions=("w8a8",), out=tmp_path))
    faces = choose_faces(shipped, n=24, root=Path())

    (row,) = check(shipped, Host(), faces=faces).rows

    assert (row.outcome, row.runtime, row.here, row.bit_identical) == ("PASS", "onnxruntime", None, True)
    assert row.golden is not None
    assert row.golden.outputs["gender"].max_lsb == 0.0
    assert row.latency is not None


def test_onnx_bundle_of_other_answers_fails_twin(run_folder: Path, tmp_path: Path) -> None:
    shipped = open_bundle(build(run_folder, target="onnx", precisions=("w8a8",), out=tmp_path))
    golden = {
        **shipped.golden,
        "w8a8/gender": shipped.golden["w8a8/smile"],
        "w8a8/smile": shipped.golden["w8a8/gender"],
    }

    found = check(replace(shipped, golden=golden), Host(), faces=choose_faces(shipped, n=24, root=Path()))

    assert (found.outcome, found.bit_identical) == ("FAIL", False)
    assert "golden faces: output 'gender'" in found.reason
    assert "'gender' and 'smile' look exchanged" in found.reason
