"""`edgeface doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeface.cli import doctor
from edgeface.cli.doctor import PACKAGES, PROGRAMS, TARGET_PACKAGES, Package, Probe, find_program, probe, report

WELL = {package.name: Probe(version="1.0", fault="") for package in PACKAGES}


def test_all_is_well_when_everything_imports() -> None:
    result = report(WELL)
    assert result.exit_code == 0
    payload = json.loads(json.dumps(result.payload))
    assert payload["schema"] == 1
    assert [(target["target"], target["builds"], target["runs"]) for target in payload["targets"]] == [
        (target, True, True) for target in TARGET_PACKAGES
    ]


@pytest.mark.parametrize(
    ("broken", "builds", "runs", "code"),
    [("litert-torch", False, True, 0), ("ai-edge-litert", False, False, 0), ("torch", False, False, 3)],
)
def test_a_broken_package_stops_what_needs_it_twin(broken: str, builds: bool, runs: bool, code: int) -> None:
    probes = {**WELL, broken: Probe(version="1.0", fault="ImportError: no such symbol")}
    result = report(probes)
    payload = json.loads(json.dumps(result.payload))
    (android,) = [target for target in payload["targets"] if target["target"] == "android"]
    assert (android["builds"], android["runs"]) == (builds, runs)
    assert broken in android["missing"]
    assert android["install"] == "pip install 'edgeface[android]'"
    assert result.exit_code == code  # other targets still build and run unless the base is broken
    assert "no such symbol" in str(result.text)


def test_a_package_is_probed_by_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(Package(name="numpy", module="numpy", extra="", use="")).fault == ""
    absent = probe(Package(name="edgeface-absent", module="edgeface_absent", extra="", use=""))
    assert absent == Probe(version="", fault="not installed")
    listed_but_broken = probe(Package(name="numpy", module="numpy.absent", extra="", use=""))
    assert listed_but_broken.version
    assert "ModuleNotFoundError" in listed_but_broken.fault


def test_every_package_of_a_target_is_known() -> None:
    names = {package.name for package in PACKAGES}
    for to_build, to_run in TARGET_PACKAGES.values():
        assert {*to_build, *to_run} <= names


def test_the_report_does_not_import_what_it_asks_about(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(package: Package) -> Probe:
        asked.append(package.name)
        return Probe(version="1.0", fault="")

    monkeypatch.setattr(doctor, "probe", recorded)
    from edgeface.cli.main import main

    assert main(["doctor", "--json"]) == 0
    assert asked == [package.name for package in PACKAGES]


@pytest.mark.parametrize("runtime", doctor.RUNTIMES_APART)
def test_a_runtime_apart_is_made_or_asked_for(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from targets import tflite214
    from targets.devices import arm64
    from targets.devices import runtime as devices

    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    listed = json.loads(json.dumps(report(WELL).payload))["runtimes_apart"]
    assert [entry["runtime"] for entry in listed] == list(doctor.RUNTIMES_APART)
    (asked,) = [entry for entry in listed if entry["runtime"] == runtime]
    assert (asked["folder"], asked["size_bytes"]) == ("", 0)
    assert asked["install"] == f"edgeface doctor --install {runtime}"
    assert asked["install"] in str(report(WELL).text)

    made = tmp_path / "made"
    made.mkdir()
    (made / "part").write_bytes(bytes(2_000_000))
    monkeypatch.setattr(tflite214, "install", lambda: made)
    monkeypatch.setattr(arm64, "install", lambda: made)
    monkeypatch.setattr(devices, "install", lambda architecture: made)
    from edgeface.cli.main import main

    assert main(["doctor", "--install", runtime, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runtime"], found["folder"], found["size_bytes"]) == (runtime, str(made), 2_000_000)
    monkeypatch.setattr(doctor, "_find", lambda name: made if name == runtime else None)
    listed = json.loads(json.dumps(report(WELL).payload))["runtimes_apart"]
    assert [entry["runtime"] for entry in listed if not entry["install"]] == [runtime]
    assert f"in {made}, 2 MB" in str(report(WELL).text)


def test_a_runtime_that_is_unknown_is_a_usage_error_twin() -> None:
    from edgeface.cli.main import main

    assert main(["doctor", "--install", "tflite-1.0"]) == 2


def test_the_report_needs_no_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert report(WELL).exit_code == 0


def _programs(text: str, payload: object) -> dict[str, dict[str, str]]:
    found = {entry["program"]: entry for entry in json.loads(json.dumps(payload))["programs"]}
    assert found.keys() == {"ssh", "adb", "qemu", "chromium"}
    assert all(entry["use"] in text for entry in found.values())
    return found


def test_programs_that_are_not_there_name_their_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    result = report(WELL)

    found = _programs(str(result.text), result.payload)
    assert {name: entry["path"] for name, entry in found.items()} == dict.fromkeys(found, "")
    assert found["ssh"]["install"] == "sudo apt-get install openssh-client"
    assert "edgeface doctor --install arm64" in found["qemu"]["install"]
    assert all(entry["install"] in str(result.text) for entry in found.values())
    assert result.exit_code == 0, "none of them is needed to build"


def test_programs_that_are_there_say_where_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from targets.devices import arm64

    for name in ("ssh", "adb", "google-chrome"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(arm64, "find_emulator", lambda: tmp_path / "qemu-aarch64")

    result = report(WELL)

    found = _programs(str(result.text), result.payload)
    assert found["chromium"]["path"] == str(tmp_path / "google-chrome")
    assert found["qemu"]["path"] == str(tmp_path / "qemu-aarch64")
    assert {entry["install"] for entry in found.values()} == {""}
    assert "not there" not in str(result.text)
    assert all(find_program(program) == found[program.name]["path"] for program in PROGRAMS)
