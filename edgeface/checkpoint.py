"""Checkpoints: a folder with a manifest and safetensors weights. Nothing is ever unpickled.

manifest.json         kind, network, model, provenance, sha256 of each file
weights.safetensors   every tensor by name
companions.safetensors   what was trained beside it (a classifier over people, …), where there was something
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface import limits
from edgeface.config import from_plain, to_plain
from edgeface.errors import ConfigError, ModelError, UnsupportedError
from edgeface.files import is_plain_name, read_json, sha256_file, write_folder, write_json
from edgeface.specs import STAGES, ModelSpec, NetworkSpec
from edgeface.tasks import TASKS

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
WEIGHTS = "weights.safetensors"
COMPANIONS = "companions.safetensors"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checked checkpoint on disk.

    Attributes:
        folder: Where it lies.
        kind: "teacher", "student" or "qat".
        network: How to build it.
        model: Its input and outputs.
        manifest: Everything the manifest says.
    """

    folder: Path
    kind: str
    network: NetworkSpec
    model: ModelSpec
    manifest: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Digest of the weights."""
        digest: str = self.manifest["files"][WEIGHTS]
        return digest

    def weights(self) -> dict[str, Tensor]:
        """Every tensor by name, on the CPU."""
        return _tensors(self.folder / WEIGHTS)

    def companions(self) -> dict[str, Tensor]:
        """Tensors of what was trained beside the network, on the CPU; empty when there was nothing."""
        return _tensors(self.folder / COMPANIONS) if COMPANIONS in self.manifest["files"] else {}


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if (size := path.stat().st_size) > limits.WEIGHTS_BYTES:
            raise _broken(path, f"{size:,} bytes, where at most {limits.WEIGHTS_BYTES:,} are read")
        return load_file(path)
    # torch's own stand for dtypes it has no name for, and for shapes whose product overflows.
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise _broken(path, f"cannot be read as safetensors ({type(error).__name__}: {str(error)[:200]})") from error


def _broken(where: Path, found: str) -> ModelError:
    return ModelError(
        found,
        expected="a checkpoint folder that edgeface wrote",
        where=str(where),
        do="Train it again with edgeface distill, or take it from a backup",
    )


def save_checkpoint(
    folder: Path,
    *,
    kind: str,
    network: NetworkSpec,
    model: ModelSpec,
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, object],
    extra: Mapping[str, object] | None = None,
    texts: Mapping[str, str] | None = None,
    companions: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Write a checkpoint aside and rename it into place.

    Args:
        folder: Its place; an earlier checkpoint there is replaced only when this one is whole.
        kind: One of specs.STAGES.
        network: How to build it.
        model: Its input and outputs.
        weights: Every tensor by name.
        provenance: From edgeface.provenance.
        extra: More manifest entries, such as the digest of what it was made from.
        texts: More text files by name, such as the training curve.
        companions: Tensors of what was trained beside the network; a file of their own, since nothing is built of them.

    Raises:
        OutputError: The place cannot be written.
    """
    from safetensors.torch import save_file

    with write_folder(folder) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, aside / WEIGHTS)
        if companions:
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in companions.items()}
            save_file(kept, aside / COMPANIONS)
        for name, text in (texts or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
        files = {path.name: sha256_file(path) for path in sorted(aside.iterdir())}
        write_json(
            aside / MANIFEST,
            {
                "schema": SCHEMA,
                "kind": kind,
                "network": to_plain(network),
                "model": to_plain(model),
                "provenance": dict(provenance),
                "files": files,
                **(extra or {}),
            },
        )
    return load_checkpoint(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and check a checkpoint folder.

    Raises:
        ModelError: It is missing, incomplete, altered, or of another schema.
        UnsupportedError: It holds a forest or stored answers, which are no network.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise _broken(folder, f"no {MANIFEST}" if folder.is_dir() else "no such folder")
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise _broken(path, f"not JSON ({error})") from error
    if isinstance(manifest, dict) and manifest.get("kind") in ("forest", "answers"):
        raise UnsupportedError(
            "a random forest on a teacher's features" if manifest["kind"] == "forest" else "a teacher's stored answers",
            expected="the checkpoint of a network: trees and stored answers have no form in any target's files",
            where=str(folder),
            do="Distil a student from it (distill.classifier, teacher.frozen), and name that",
        )
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or manifest.get("kind") not in STAGES:
        raise _broken(path, "not a checkpoint manifest of schema 1")
    files = manifest.get("files")
    if not isinstance(files, dict) or WEIGHTS not in files:
        raise _broken(path, f"'files' does not list {WEIGHTS!r}")
    for name, digest in files.items():
        if not is_plain_name(name):
            raise _broken(path, f"file name {name!r} leads out of the folder")
        if not (folder / name).is_file():
            raise _broken(folder / name, "is missing")
        if sha256_file(folder / name) != digest:
            raise _broken(folder / name, "its content does not match the manifest's sha256")
    try:
        network = from_plain(NetworkSpec, manifest["network"], where="network")
        model = read_model_spec(manifest["model"], where="model")
    except (ConfigError, KeyError) as error:
        raise _broken(path, f"its spec is not valid ({error})") from error
    return Checkpoint(folder=folder, kind=manifest["kind"], network=network, model=model, manifest=manifest)


def read_model_spec(plain: Any, *, where: str) -> ModelSpec:
    """A model's spec out of a manifest, fit to be built and decoded by: known tasks, sizes within limits.

    Args:
        plain: What `to_plain` gave, as read back from JSON.
        where: The document, for the error.

    Raises:
        ConfigError: With every fault in `faults`.
    """
    spec: ModelSpec = from_plain(ModelSpec, plain, where=where)
    faults: list[ConfigError] = []

    def fault(key: str, found: object, expected: str) -> None:
        faults.append(ConfigError(f"{found!r}"[:80], expected=expected, where=f"{where}.{key}"))

    if not is_plain_name(spec.name):
        fault("name", spec.name, "a name that can be a file's")
    if not 1 <= spec.input_px <= limits.INPUT_PX:
        fault("input_px", spec.input_px, f"1 to {limits.INPUT_PX}")
    if 0.0 in spec.std:
        fault("std", spec.std, "numbers other than 0")
    names = [output.name for output in spec.outputs]
    if not 1 <= len(names) <= limits.OUTPUTS or len(set(names)) != len(names):
        fault("outputs", names, f"1 to {limits.OUTPUTS} outputs, each name once")
    for place, output in enumerate(spec.outputs):
        task = TASKS.get(output.task)
        if task is None:
            fault(f"outputs[{place}].task", output.task, f"one of {', '.join(map(repr, TASKS))}")
        if not is_plain_name(output.name):
            fault(f"outputs[{place}].name", output.name, "a name of letters, digits and underscores")
        values = math.prod(output.shape)
        if not output.shape or min(output.shape) < 1 or values > limits.OUTPUT_VALUES:
            fault(
                f"outputs[{place}].shape", output.shape, f"sides of 1 or more, at most {limits.OUTPUT_VALUES:,} values"
            )
        if output.mean_shape and task is not None and len(output.mean_shape) != task.points:
            fault(f"outputs[{place}].mean_shape", len(output.mean_shape), f"{task.points} points")
        points = len(output.mean_shape)
        if output.heatmap and (len(output.shape) != 3 or output.shape[2] != points):
            fault(f"outputs[{place}].shape", output.shape, f"rows, columns and {points} points of heatmaps")
        if not 0.0 < output.threshold < 1.0:
            fault(f"outputs[{place}].threshold", output.threshold, "a probability between 0 and 1")
        if any(not 1 <= bins <= limits.OUTPUT_VALUES for bins in output.stages):
            fault(f"outputs[{place}].stages", output.stages, "whole numbers of 1 or more")
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(count, where=where, do="Correct each of these", faults=faults)
    return spec
