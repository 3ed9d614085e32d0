"""From a path to a Runner: checkpoints in torch, TFLite files in LiteRT. Whatever scores or compares sits on this.

    open_model("runs/demo")                         the fake-quant student of a run, in torch
    open_model("runs/demo/teacher")                 any checkpoint
    open_model("out/android", precision="fp16")     a file of a bundle; w8a8 when none is named
    open_model("model.tflite")                      a file of ours or of anyone

Loading a broken flatbuffer can end the process that tries. A file whose digest a bundle's manifest vouches for is
opened at once; any other is first run in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.checkpoint import Checkpoint, load_checkpoint
from edgeface.config import from_plain
from edgeface.errors import ConfigError, MissingToolError, ModelError, UnsupportedError, UsageError
from edgeface.evaluate import Outputs
from edgeface.files import read_json, sha256_file
from edgeface.models.runner import TorchRunner
from edgeface.runs import is_run
from edgeface.specs import RUNTIMES, ModelSpec
from quantize.grid import Quantized
from targets.litert import TFLITE_RUNTIMES, TfliteRunner, probe
from targets.protocol import Grids, TimedRunner

MANIFEST = "manifest.json"

# Files of targets that edgeface does not build or run yet.
_FOREIGN = {".mlpackage": "coreml", ".mlmodel": "coreml", ".xml": "openvino", ".onnx": "onnxruntime"}


@dataclass(frozen=True, kw_only=True)
class Located:
    """What a path stands for.

    Attributes:
        checkpoint: A checkpoint, or None.
        file: A model file, or None.
        spec: The file's spec, when a manifest beside it tells.
        precision: The file's precision, when a manifest beside it tells.
        size_bytes: Size on disk.
    """

    checkpoint: Checkpoint | None = None
    file: Path | None = None
    spec: ModelSpec | None = None
    precision: str = ""
    size_bytes: int = 0


def open_model(
    path: str | Path, *, runtime: str | None = None, precision: str | None = None, threads: int = 1
) -> TimedRunner:
    """Open a run, a checkpoint, a bundle or a model file.

    Args:
        path: A run folder stands for its `qat/`.
        runtime: One of specs.RUNTIMES; None takes torch for checkpoints and tflite-xnnpack for TFLite files.
        precision: Which file of a bundle; None takes w8a8, or the only one.
        threads: CPU threads of each run.

    Raises:
        ModelError: Nothing there, or it is broken.
        UnsupportedError: The runtime cannot run this kind of model.
        MissingToolError: The runtime is not installed, or edgeface does not speak to it yet.
    """
    if threads < 1:
        raise UsageError(f"{threads} threads", expected="1 or more", where="--threads")
    found = locate(Path(path), precision=precision)
    chosen = runtime or ("torch" if found.checkpoint is not None else "tflite-xnnpack")
    if chosen not in RUNTIMES:
        raise UsageError(f"{chosen!r}", expected=f"one of {', '.join(RUNTIMES)}", where="--runtime")
    if chosen not in ("torch", *TFLITE_RUNTIMES):
        raise MissingToolError(
            f"edgeface {_version()} does not run models in {chosen!r}",
            expected=f"one of {', '.join(('torch', *TFLITE_RUNTIMES))}",
            where="--runtime",
            do="Choose one of them",
        )
    if (chosen == "torch") != (found.checkpoint is not None):
        raise UnsupportedError(
            f"runtime {chosen!r}",
            expected="'torch'" if found.checkpoint is not None else f"one of {', '.join(map(repr, TFLITE_RUNTIMES))}",
            where=str(path),
            do="Build it first: edgeface build" if found.checkpoint is not None else "Name the checkpoint instead",
        )
    if found.checkpoint is not None:
        return _open_checkpoint(found.checkpoint, precision=precision, threads=threads, size_bytes=found.size_bytes)
    assert found.file is not None
    spec, own = found.spec, found.precision
    if spec is None:
        probe(found.file)
        spec, own = _noted(found.file)
        if precision is not None and own and precision != own:
            raise UsageError(f"{precision!r}", expected=repr(own), where=f"--precision for {path}")
    return TfliteRunner(found.file, spec=spec, runtime=chosen, precision=own, threads=threads)


def locate(path: Path, *, precision: str | None = None) -> Located:
    """Find out what a path stands for, without running anything.

    Raises:
        ModelError: Nothing there, or not a model.
    """
    if is_run(path):
        path = path / "qat"
        if not (path / MANIFEST).is_file():
            raise ModelError(
                "an unfinished run",
                expected="a run with its qat/",
                where=str(path.parent),
                do=f"Type `edgeface distill --resume`, or name {path.parent / 'student'}",
            )
    if path.is_dir() and path.suffix not in _FOREIGN:
        manifest = _read_manifest(path / MANIFEST)
        if "target" in manifest:
            return _locate_in_bundle(path, manifest, precision=precision)
        checkpoint = load_checkpoint(path)
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return Located(checkpoint=checkpoint, size_bytes=size)
    if not path.exists():
        raise ModelError("no such file or folder", expected="a model", where=str(path), do="Check the path")
    if path.suffix in _FOREIGN:
        raise MissingToolError(
            f"edgeface {_version()} does not run {path.suffix} files",
            expected="a checkpoint or a .tflite file",
            where=str(path),
            do="Build for android to have it measured",
        )
    _check_identifier(path)
    return _beside_manifest(path, precision=precision)


def _version() -> str:
    from edgeface import __version__

    return __version__


def _read_manifest(path: Path) -> dict[str, Any]:
    where = str(path.parent)
    if not path.is_file():
        raise ModelError(
            f"no {MANIFEST}",
            expected="a run, a checkpoint, a bundle or a model file",
            where=where,
            do="Check the path",
        )
    try:
        manifest = read_json(path)
    except (ValueError, OSError) as error:
        raise ModelError(f"not JSON ({error})", expected="a manifest", where=str(path)) from error
    if not isinstance(manifest, dict):
        raise ModelError("not an object", expected="a manifest", where=str(path))
    return manifest


def _locate_in_bundle(folder: Path, manifest: Mapping[str, Any], *, precision: str | None) -> Located:
    files = _manifest_files(manifest, where=folder / MANIFEST)
    if manifest["target"] != "android":
        raise MissingToolError(
            f"edgeface {_version()} does not run bundles of target {manifest['target']!r}",
            expected="'android'",
            where=str(folder),
        )
    wanted = precision or ("w8a8" if len(files) > 1 else next(iter(files.values()))["precision"])
    chosen = [name for name, entry in files.items() if entry["precision"] == wanted]
    if len(chosen) != 1:
        raise UsageError(
            f"no file of precision {wanted!r}",
            expected=f"one of {', '.join(sorted(repr(entry['precision']) for entry in files.values()))}",
            where=str(folder),
            do="Choose one with --precision",
        )
    return _vouched(folder / chosen[0], manifest, files[chosen[0]])


def _manifest_files(manifest: Mapping[str, Any], *, where: Path) -> dict[str, Any]:
    files = manifest.get("files")
    well_formed = isinstance(files, dict) and all(
        Path(name).name == name and isinstance(entry, dict) and {"precision", "sha256"} <= entry.keys()
        for name, entry in files.items()
    )
    if not well_formed or manifest.get("schema") != 1 or not files:
        raise ModelError("not a bundle manifest of schema 1", expected="one", where=str(where), do="Build it again")
    assert isinstance(files, dict)  # for the type checker
    return files


def _vouched(path: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> Located:
    """A file whose manifest says what it is, checked against its digest."""
    if not path.is_file():
        raise ModelError("is missing", expected="the file its manifest lists", where=str(path), do="Build it again")
    if sha256_file(path) != entry["sha256"]:
        raise ModelError(
            "its content does not match the manifest's sha256",
            expected="the file as it was built",
            where=str(path),
            do="Build it again, or copy it again",
        )
    try:
        spec = from_plain(ModelSpec, manifest["model"], where=str(path.parent / MANIFEST))
    except (ConfigError, KeyError) as error:
        raise ModelError(f"a model spec that is not valid ({error})", where=str(path.parent / MANIFEST)) from error
    return Located(file=path, spec=spec, precision=str(entry["precision"]), size_bytes=path.stat().st_size)


def _check_identifier(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(8)
    if len(head) < 8 or head[4:] != b"TFL3":
        raise ModelError(
            f"not a TFLite file (bytes 4 to 8 are {head[4:]!r})",
            expected="b'TFL3' there",
            where=str(path),
            do="Name a .tflite file, a checkpoint, a run or a bundle",
        )


def _beside_manifest(path: Path, *, precision: str | None) -> Located:
    """A file by itself: its bundle's manifest tells the rest, when it lies beside it and lists the file."""
    manifest_path = path.parent / MANIFEST
    found = Located(file=path, size_bytes=path.stat().st_size, precision="")
    if manifest_path.is_file():
        manifest = _read_manifest(manifest_path)
        if "target" in manifest:
            files = _manifest_files(manifest, where=manifest_path)
            if path.name in files:
                found = _vouched(path, manifest, files[path.name])
    if precision is not None and found.precision and precision != found.precision:
        raise UsageError(f"{precision!r}", expected=repr(found.precision), where=f"--precision for {path}")
    return found


def _noted(path: Path) -> tuple[ModelSpec | None, str]:
    """Spec and precision that a file of ours carries in its metadata."""
    from targets.tflite import read_note

    note = read_note(path.read_bytes())
    try:
        return from_plain(ModelSpec, note["model"], where=str(path)), str(note["precision"])
    except (ConfigError, KeyError, TypeError):  # a file of someone else
        return None, ""


class CheckpointRunner(TorchRunner):
    """A checkpoint in torch, on a fixed number of threads.

    Attributes:
        quantized: The integer network of a QAT checkpoint, else None.
    """

    def __init__(
        self,
        network: Any,
        spec: ModelSpec,
        *,
        precision: str,
        threads: int,
        quantized: Quantized | None,
        size_bytes: int,
    ) -> None:
        super().__init__(network, spec, precision=precision)
        self.threads = threads
        self.quantized = quantized
        self.size_bytes = size_bytes

    @property
    def grids(self) -> Grids:
        if self.quantized is None:
            return {}
        return {output.name: self.quantized.output_grid(output.name) for output in self.spec.outputs}

    @property
    def macs(self) -> int | None:
        from edgeface.models.network import MultiTaskNetwork
        from quantize.graph import macs, trace

        if self.quantized is not None:
            return macs(self.quantized.graph)
        assert isinstance(self._network, MultiTaskNetwork)
        try:
            return macs(trace(self._network))
        except UnsupportedError:  # a teacher with layers that have no integer form
            return None

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return super().run(batch)
        finally:
            torch.set_num_threads(before)

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare."""
        side = self.spec.input_px
        picture = np.random.default_rng(seed).integers(0, 256, (1, side, side, 3), dtype=np.uint8)

        def once() -> None:
            self.run(picture)

        return once


def _open_checkpoint(
    checkpoint: Checkpoint, *, precision: str | None, threads: int, size_bytes: int
) -> CheckpointRunner:
    from distill.stages import load_network
    from quantize.qat import load_qat

    own = "fake-quant" if checkpoint.kind == "qat" else "fp32"
    if precision not in (None, own):
        raise UsageError(
            f"precision {precision!r}",
            expected=f"{own!r}, which is what this checkpoint computes in",
            where=str(checkpoint.folder),
            do="Name a bundle to choose among its files",
        )
    fake_quant = load_qat(checkpoint) if checkpoint.kind == "qat" else None
    return CheckpointRunner(
        fake_quant or load_network(checkpoint),
        checkpoint.model,
        precision=own,
        threads=threads,
        quantized=fake_quant.quantized() if fake_quant is not None else None,
        size_bytes=size_bytes,
    )
