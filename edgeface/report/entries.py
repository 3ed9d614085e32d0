"""What a scorecard measures: the checkpoints of a run, the files of a bundle, the same files on a device."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.errors import MissingToolError, ModelError
from edgeface.evaluate import Runner
from edgeface.report.scorecard import DEVICE, FAKE_QUANT, FILE, FOREST, STUDENT, TEACHER

if TYPE_CHECKING:
    from edgeface.specs import ModelSpec
    from targets.devices.device import Device

# Suffix to the runtimes beside the first that an int8 file is tried on, where they are installed. Float files answer
# alike in all of them up to rounding.
MORE_RUNTIMES = {".tflite": ("tflite-builtin", "tensorflow", "tflite-2.14"), ".mlpackage": ("coreml",)}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model to be scored.

    Attributes:
        role: One of scorecard.ROLES; deltas refer to the one teacher and the one student.
        name: What the row is called.
        open: Gives its Runner; MissingToolError makes the row NOT_RUN.
        size_bytes: Size of its weights or file on disk; 0 when unknown.
        digest: Of all that decides its answers but runtime, machine and pictures; "" when they must not be kept.
        batch: Pictures per call of the runner.
        optional: True for a row that is left out where its runtime is not installed.
        runtime: What is to run it, said of a row that could not be run; "" when only the opened model tells.
    """

    role: str
    name: str
    open: Callable[[], Runner]
    size_bytes: int = 0
    digest: str = ""
    batch: int = 64
    optional: bool = False
    runtime: str = ""


def stage_entries(run: Path) -> list[Entry]:
    """The checkpoints of a run as entries: teacher, its forests, fp32 and fake-quant student, those that are there.

    Raises:
        ModelError: None is there.
    """
    import torch

    from edgeface.checkpoint import WEIGHTS, load_checkpoint
    from edgeface.files import sha256_file, sha256_json
    from targets.runners import locate, open_model

    entries = []
    for stage, role in (("teacher", TEACHER), ("student", STUDENT), ("qat", FAKE_QUANT)):
        folder = run / stage
        if (folder / "manifest.json").is_file():
            checkpoint = load_checkpoint(folder)
            name = f"{role} {checkpoint.network.backbone}"
            size = (folder / WEIGHTS).stat().st_size
            digest = sha256_json([checkpoint.sha256, checkpoint.manifest["network"], checkpoint.manifest["model"]])
            # The students are what files are compared with, and files run on the CPU.
            device = "cuda" if role == TEACHER and torch.cuda.is_available() else "cpu"
            opened = partial(open_model, folder, device=device)
            entries.append(Entry(role=role, name=name, open=opened, size_bytes=size, digest=digest))
        if role == TEACHER and (run / FOREST / "manifest.json").is_file():
            located = locate(run / FOREST)
            opened = partial(open_model, run / FOREST)
            digest = sha256_file(run / FOREST / "manifest.json")  # it holds those of the forests and of their teacher
            entries.append(Entry(role=FOREST, name=FOREST, open=opened, size_bytes=located.size_bytes, digest=digest))
    if not entries:
        raise ModelError(
            "no teacher, student or qat checkpoint",
            expected="a run folder that `edgeface distill` wrote",
            where=str(run),
            do="Name a run folder, such as runs/demo",
        )
    return entries


def bundle_entries(bundle: Path) -> list[Entry]:
    """The files of a bundle on the first runtime of their format, from the finest arithmetic to the coarsest.

    Raises:
        ModelError: It is not a bundle.
    """
    return [_file_entry(bundle, name, file) for name, file in _files(bundle).items()]


def runtime_entries(bundle: Path) -> list[Entry]:
    """As `bundle_entries`, and each int8 file on every other runtime of MORE_RUNTIMES that is installed.

    Raises:
        ModelError: It is not a bundle.
    """
    entries = []
    for name, file in _files(bundle).items():
        entries.append(_file_entry(bundle, name, file))
        if file.get("precision") == "w8a8":
            more = MORE_RUNTIMES.get(Path(name).suffix, ())
            entries += [_file_entry(bundle, name, file, runtime=runtime) for runtime in more]
    return entries


def device_entries(bundle: Path, on: str, *, cpu: str | None = None) -> list[Entry]:
    """The .tflite files of a bundle as a device computes them. Their answers are never kept.

    Of an emulated device, which takes minutes a file, the int8 file alone: its integers are what emulation settles.

    Args:
        bundle: Its folder.
        on: The device as typed after `--on`.
        cpu: Which processor "arm64" imitates.

    Raises:
        ModelError: It is not a bundle.
        UsageError: There is no such device.
    """
    from edgeface.config import from_plain
    from edgeface.files import read_json
    from edgeface.specs import ModelSpec
    from targets.devices import open_device

    try:
        device: Device | MissingToolError = open_device(on, cpu=cpu)
    except MissingToolError as error:
        device = error
    emulated = on == "arm64" if isinstance(device, MissingToolError) else device.emulated
    spec = from_plain(ModelSpec, read_json(bundle / "manifest.json")["model"], where=str(bundle))
    return [
        Entry(
            role=DEVICE,
            name=name,
            open=partial(_on_device, device, bundle / name, spec, file["precision"]),
            size_bytes=file["size_bytes"],
            batch=4096,  # a call of the runner is a whole job on the device
            runtime=f"tflite-xnnpack on {on}",
        )
        for name, file in _files(bundle).items()
        if name.endswith(".tflite") and (file["precision"] == "w8a8" or not emulated)
    ]


def _on_device(device: Device | MissingToolError, file: Path, spec: ModelSpec, precision: str) -> Runner:
    from targets.devices.job import DeviceRunner

    if isinstance(device, MissingToolError):
        raise device
    return DeviceRunner(device, file, spec=spec, precision=precision)


def _file_entry(bundle: Path, name: str, file: dict[str, Any], *, runtime: str | None = None) -> Entry:
    from targets import artifacts
    from targets.runners import open_model

    return Entry(
        role=FILE,
        name=name,
        open=partial(open_model, bundle / name, runtime=runtime),
        size_bytes=artifacts.size_bytes(bundle / name),
        digest=file.get("sha256", ""),
        optional=runtime is not None,
    )


def _files(bundle: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file, from the finest arithmetic to the coarsest."""
    from edgeface.files import read_json

    path = bundle / "manifest.json"
    try:
        files = read_json(path)["files"]
        return {name: dict(files[name]) for name in sorted(files, key=_order)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"no bundle ({type(error).__name__}: {error})",
            expected="a folder that `edgeface build` wrote",
            where=str(path),
            do="Name a bundle, such as out/android",
        ) from error


def _order(name: str) -> tuple[int, str]:
    """Files from the finest arithmetic to the coarsest."""
    precisions = ("fp32", "fp16", "w8a32", "w8", "p6", "w8a8")
    found = [index for index, precision in enumerate(precisions) if precision in re.split(r"[._-]", name)]
    return (found[0] if found else len(precisions), name)
