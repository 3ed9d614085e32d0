"""`edgeface doctor`: what is installed, which targets build and run here, what to install.

Nothing is believed from metadata: each package is imported in a process of its own, so that a broken install, or one
that crashes, is seen for what it is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgeface import __version__
from edgeface.cli.result import Result

IMPORT_SECONDS = 180  # litert-torch needs 4 s from a warm disk; a cold one on a busy machine can take a minute


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package edgeface can use.

    Attributes:
        name: Its name at the package index.
        module: What is imported.
        extra: The extra of edgeface that installs it; "" for the base.
        use: What for.
    """

    name: str
    module: str
    extra: str
    use: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What became of importing a package.

    Attributes:
        version: "" when it is not installed.
        fault: "" when it was imported, else the reason.
    """

    version: str
    fault: str


PACKAGES = (
    Package(name="torch", module="torch", extra="", use="training"),
    Package(name="numpy", module="numpy", extra="", use="metrics"),
    Package(name="opencv-python-headless", module="cv2", extra="", use="finding and cropping faces"),
    Package(name="pillow", module="PIL", extra="", use="reading pictures"),
    Package(name="safetensors", module="safetensors.torch", extra="", use="checkpoints"),
    Package(name="lightning-fabric", module="lightning_fabric", extra="", use="the training loop"),
    Package(name="litert-torch", module="litert_torch", extra="android", use="writing .tflite"),
    Package(name="ai-edge-litert", module="ai_edge_litert.interpreter", extra="android", use="running .tflite"),
    Package(name="coremltools", module="coremltools", extra="ios", use="writing .mlpackage, checking it off-Mac"),
    Package(name="openvino", module="openvino", extra="openvino", use="writing and running OpenVINO IR"),
    Package(name="nncf", module="nncf", extra="openvino", use="post-training baselines"),
    Package(name="onnx", module="onnx", extra="onnx", use="writing .onnx"),
    Package(name="onnxslim", module="onnxslim", extra="onnx", use="slimming .onnx"),
    Package(name="onnxruntime", module="onnxruntime", extra="onnx", use="running .onnx"),
    Package(name="tensorflow", module="tensorflow", extra="tf", use="running .tflite in TensorFlow's interpreter"),
)

# Target to the packages that building it and running what was built need, beside the base.
TARGET_PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "android": (("litert-torch", "ai-edge-litert"), ("ai-edge-litert",)),
    "ios": (("coremltools",), ("coremltools",)),
    "openvino": (("openvino",), ("openvino",)),
    "onnx": (("onnx", "onnxslim", "onnxruntime"), ("onnxruntime",)),
}

# Runtimes that cannot be packages of this environment, each in a folder of its own, and what for.
RUNTIMES_APART = {
    "tflite-2.14": "running .tflite as phones that were not updated do: eval --runtime tflite-2.14",
    "arm64": "the ARM64 kernels, emulated, on a board or on a phone: check --on arm64, ssh:…, adb",
    "amd64": "checking on another x86-64 Linux: check --on ssh:…",
}
_NEXT = {
    "tflite-2.14": "edgeface eval MODEL --runtime tflite-2.14 --data …",
    "arm64": "edgeface check BUNDLE --on arm64",
    "amd64": "edgeface check BUNDLE --on ssh:USER@HOST",
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program of the system that edgeface starts.

    Attributes:
        name: What it is called here.
        commands: Names it goes by; the first one found is taken.
        debian: The Debian package that has it.
        use: What for.
    """

    name: str
    commands: tuple[str, ...]
    debian: str
    use: str


PROGRAMS = (
    Program(name="ssh", commands=("ssh",), debian="openssh-client", use="checking on a board: check --on ssh:…"),
    Program(name="adb", commands=("adb",), debian="adb", use="checking on a phone: check --on adb"),
    # Not one of the system's: processors are described to the one release that was measured.
    Program(name="qemu", commands=(), debian="qemu-user-static", use="imitating ARM64 processors: check --on arm64"),
    Program(
        name="chromium",
        commands=("chromium", "chromium-browser", "google-chrome"),
        debian="chromium",
        use="the tests that look at reports",
    ),
)

# What a reader would otherwise take for more than it is; off a Mac only.
NOTES = {"ios": "edgeface executes the saved package itself; Core ML's own predict needs macOS and is NOT_RUN here"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Import every package edgeface can use, each in a process of its own, and say what works."
    parser.add_argument(
        "--install",
        choices=RUNTIMES_APART,
        metavar="R",
        help=f"make a runtime that cannot share this environment: {', '.join(RUNTIMES_APART)}",
    )


def run(arguments: argparse.Namespace) -> Result:
    if arguments.install:
        return install(arguments.install)
    from edgeface.cli.console import progress

    probes: dict[str, Probe] = {}
    with progress() as bar:
        task = bar.add_task("importing", total=len(PACKAGES), note="")
        # Two at a time: each is a process that mostly reads its files.
        with ThreadPoolExecutor(max_workers=2) as pool:
            for package, found in zip(PACKAGES, pool.map(probe, PACKAGES), strict=True):
                probes[package.name] = found
                bar.update(task, advance=1, note=package.name)
    return report(probes)


def install(name: str) -> Result:
    """Make a runtime apart, or say that it is there."""
    from edgeface.cli.console import note
    from targets import tflite214
    from targets.devices import arm64, runtime

    if _find(name) is None:
        note(f"fetching the parts of {name}")
    match name:
        case "arm64":
            folder = arm64.install()
        case "amd64":
            folder = runtime.install("amd64")
        case _:
            folder = tflite214.install()
    size_bytes = _size_bytes(folder)
    payload = {"schema": 1, "runtime": name, "folder": str(folder), "size_bytes": size_bytes}
    text = f"{name}: {folder} ({size_bytes / 1e6:.0f} MB)\nnext: {_NEXT[name]}"
    return Result(payload=payload, text=text)


def _find(name: str) -> Path | None:
    """A runtime's folder, or None while it is not whole."""
    from targets import tflite214
    from targets.devices import arm64, runtime

    match name:
        case "arm64":
            return runtime.find("arm64") if arm64.find_emulator() else None
        case "amd64":
            return runtime.find("amd64")
        case _:
            return tflite214.find()


def find_program(program: Program) -> str:
    """Where a program lies; "" when it is not there."""
    if program.commands:
        return next(filter(None, map(shutil.which, program.commands)), "")
    from targets.devices.arm64 import find_emulator

    return str(find_emulator() or "")


def _to_install(program: Program) -> str:
    if program.commands:
        return f"sudo apt-get install {program.debian}"
    return f"edgeface doctor --install arm64 (fetches {program.debian}, without root)"


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def probe(package: Package) -> Probe:
    """Import a package in a process of its own."""
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return Probe(version="", fault="not installed")
    try:
        # -P: a file of the user's that is called torch.py must not stand in for torch
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", f"import {package.module}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(version=version, fault=f"not imported within {IMPORT_SECONDS} s")
    if done.returncode == 0:
        return Probe(version=version, fault="")
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Probe(version=version, fault=last[:200])


def report(probes: dict[str, Probe]) -> Result:
    """The doctor's answer from what became of the imports.

    Args:
        probes: By package name, one for each of PACKAGES.
    """
    base = [package.name for package in PACKAGES if not package.extra]
    broken_base = [name for name in base if probes[name].fault]
    packages = [
        {
            "name": package.name,
            "version": probes[package.name].version,
            "works": not probes[package.name].fault,
            "fault": probes[package.name].fault,
            "extra": package.extra,
            "use": package.use,
        }
        for package in PACKAGES
    ]
    targets = []
    for target, (to_build, to_run) in TARGET_PACKAGES.items():
        missing = [name for name in (*base, *dict.fromkeys((*to_build, *to_run))) if probes[name].fault]
        targets.append(
            {
                "target": target,
                "builds": not broken_base and not any(probes[name].fault for name in to_build),
                "runs": not broken_base and not any(probes[name].fault for name in to_run),
                "missing": missing,
                "note": NOTES.get(target, "") if platform.system() != "Darwin" else "",
                "install": f"pip install 'edgeface[{target}]'" if missing else "",
            }
        )
    from edgeface.provenance import cpu

    apart = []
    for name, use in RUNTIMES_APART.items():
        folder = _find(name)
        apart.append(
            {
                "runtime": name,
                "folder": "" if folder is None else str(folder),
                "size_bytes": 0 if folder is None else _size_bytes(folder),
                "use": use,
                "install": "" if folder is not None else f"edgeface doctor --install {name}",
            }
        )
    places = {program.name: find_program(program) for program in PROGRAMS}
    programs = [
        {
            "program": program.name,
            "path": places[program.name],
            "use": program.use,
            "debian": program.debian,
            "install": "" if places[program.name] else _to_install(program),
        }
        for program in PROGRAMS
    ]
    payload: dict[str, object] = {
        "schema": 1,
        "edgeface": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "packages": packages,
        "targets": targets,
        "runtimes_apart": apart,
        "programs": programs,
        "data": {"EDGEFACE_DATA": os.environ.get("EDGEFACE_DATA", "")},
    }
    nothing = not any(target["builds"] and target["runs"] for target in targets)
    return Result(payload=payload, text=_text(payload), exit_code=3 if nothing else 0)


def _text(payload: dict[str, object]) -> str:
    machine = payload["cpu"]
    packages, targets = payload["packages"], payload["targets"]
    assert isinstance(machine, dict)
    assert isinstance(packages, list)
    assert isinstance(targets, list)
    lines = [
        f"edgeface {payload['edgeface']}, Python {payload['python']}, {payload['platform']}",
        f"{machine['model']}, {machine['cores']} cores, {' '.join(machine['flags']) or 'no known flags'}",
        "",
    ]
    width = max(len(package["name"]) for package in packages)
    for package in packages:
        state = package["version"] if package["works"] else f"{package['version']} {package['fault']}".strip()
        lines.append(f"  {package['name']:<{width}}  {state:<14}  {package['use']}")
    lines.append("")
    for target in targets:
        can = {True: "yes", False: "no"}
        line = f"  {target['target']:<{width}}  builds: {can[target['builds']]}  runs: {can[target['runs']]}"
        line = f"{line}  install: {target['install']}" if target["install"] else line
        lines.append(f"{line}  ({target['note']})" if target["note"] else line)
    apart = payload["runtimes_apart"]
    assert isinstance(apart, list)
    lines.append("")
    for runtime in apart:
        state = f"in {runtime['folder']}, {runtime['size_bytes'] / 1e6:.0f} MB"
        if not runtime["folder"]:
            state = f"not installed; optional: {runtime['install']}"
        lines.append(f"  {runtime['runtime']:<{width}}  {state}  ({runtime['use']})")
    programs = payload["programs"]
    assert isinstance(programs, list)
    lines.append("")
    for program in programs:
        state = program["path"] or f"not there; optional: {program['install']}"
        lines.append(f"  {program['program']:<{width}}  {state}  ({program['use']})")
    return "\n".join(lines)
