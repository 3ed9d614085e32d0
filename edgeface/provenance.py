"""Where a result comes from: versions, machine, command and licences, written into every manifest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeface import __version__

_PACKAGES = (
    "torch",
    "numpy",
    "opencv-python-headless",
    "safetensors",
    "lightning-fabric",
    "litert-torch",
    "ai-edge-litert",
    "coremltools",
    "openvino",
    "nncf",
    "onnx",
    "onnxslim",
    "onnxruntime",
    "tensorflow",
)


def versions() -> dict[str, str]:
    """Installed versions of edgeface and of the packages a result depends on."""
    found = {"edgeface": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu() -> dict[str, object]:
    """Model name, flags that matter to integer kernels, and the number of usable cores."""
    model, flags = platform.processor() or platform.machine(), []
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimddp", "i8mm")
                flags = [flag for flag in wanted if flag in value.split()]
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": model, "flags": flags, "cores": cores, "machine": platform.machine()}


def commit() -> str:
    """Commit of the checkout edgeface runs from; "" when it is installed without one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def provenance(*, seed: int, licences: Sequence[str], research_only: bool) -> dict[str, object]:
    """What a checkpoint or bundle says of its making.

    Args:
        seed: The recipe's seed.
        licences: Terms of every corpus that taught the weights.
        research_only: True when any of them forbids use in products.
    """
    return {
        "versions": versions(),
        "cpu": cpu(),
        "commit": commit(),
        "command": " ".join(["edgeface", *sys.argv[1:]]),
        "seed": seed,
        "licences": sorted(set(licences)),
        "research_only": research_only,
    }
