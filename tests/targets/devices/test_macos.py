"""Core ML packages are checked on a Mac; nothing else is, and no other machine is one."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from edgeface.cli.main import main
from edgeface.errors import MissingToolError, UnsupportedError
from targets import runners
from targets.build import build
from targets.devices import open_device
from targets.devices.check import check
from targets.devices.macos import Macos
from targets.devices.shipped import Faces, Shipped, choose_faces, open_bundle


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Macos:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    return Macos()


@pytest.mark.skipif(platform.system() == "Darwin", reason="this is a Mac")
def test_elsewhere_it_is_not_run(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingToolError, match="Expected macOS"):
        open_device("macos")

    assert main(["check", str(bundle), "--on", "macos", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert (answer["outcome"], answer["bit_identical"], answer["files"]) == ("NOT_RUN", None, [])
    assert f"this is {platform.system()}" in answer["reason"]


def test_files_of_other_targets_are_not_run_on_a_mac(mac: Macos, shipped: Shipped, faces: Faces) -> None:
    found = check(shipped, mac, faces=faces)

    assert found.outcome == "NOT_RUN"
    assert ".tflite files are not run on macos, .mlpackage files are" in found.reason


def test_a_mac_takes_no_jobs(mac: Macos, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--on host"):
        mac.run(tmp_path, told=lambda line: None)


@pytest.fixture(scope="module")
def packages(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return open_bundle(build(run_folder, target="ios", precisions=("w8a8",), out=tmp_path_factory.mktemp("ios")))


def _opens(monkeypatch: pytest.MonkeyPatch, *, runtime: str) -> None:
    """Core ML is stood in for by edgeface's executor with another arithmetic: like it, near and not the same."""
    kind = runners.FORMATS[".mlpackage"]

    def opened(path: Path, **options: Any) -> Any:
        chosen = runtime if options["runtime"] == "coreml" else options["runtime"]
        return kind.open(path, **{**options, "runtime": chosen})

    monkeypatch.setitem(runners.FORMATS, ".mlpackage", runners.Format(**{**vars(kind), "open": opened}))


@pytest.mark.slow
def test_core_ml_is_held_against_the_executor(mac: Macos, packages: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    _opens(monkeypatch, runtime="mil-fp16")

    found = check(packages, mac, faces=choose_faces(packages, n=24, root=Path()))

    (row,) = found.rows
    assert (row.runtime, row.reference, row.identical, row.outcome) == ("coreml", "mil", False, "PASS"), row.reason
    assert row.here is not None
    assert row.here.sqnr_db < 100.0
    assert row.latency is not None
    assert found.bit_identical is None


@pytest.mark.slow
def test_core_ml_that_answers_otherwise_fails_twin(
    mac: Macos, packages: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = runners.FORMATS[".mlpackage"]

    class Wrong:
        def __init__(self, path: Path, **options: Any) -> None:
            self._runner = kind.open(path, **{**options, "runtime": "mil"})

        def __getattr__(self, name: str) -> Any:
            return getattr(self._runner, name)

        def run(self, batch: Any) -> Any:
            found = self._runner.run(batch)
            return {**found, "gender": found["smile"], "smile": found["gender"]}

    def opened(path: Path, **options: Any) -> Any:
        return Wrong(path, **options) if options["runtime"] == "coreml" else kind.open(path, **options)

    monkeypatch.setitem(runners.FORMATS, ".mlpackage", runners.Format(**{**vars(kind), "open": opened}))

    found = check(packages, mac, faces=choose_faces(packages, n=24, root=Path()))

    assert found.outcome == "FAIL"
    assert "'gender' and 'smile' look exchanged" in found.reason
