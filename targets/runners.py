"""From a path to a Runner: checkpoints in torch, TFLite files in LiteRT. Whatever scores or compares sits on this.

    open_model("runs/demo")                         the fake-quant student of a run, in torch
    open_model("runs/demo/teacher")                 any checkpoint
    open_model("out/android", precision="fp16")     a file of a bundle; w8a8 when none is named
    open_model("model.tflite")                      a file of ours or of anyone
    open_model("peer.onnx", described="peer.toml")  a file of others, with what it means (targets/description.py)
    open_to_score("peer.onnx")                      the same, or an error that holds the description to fill in

Loading a broken flatbuffer can end the process that tries, so a file is first run in a process of its own: one of a
bundle once, one that no manifest vouches for each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.checkpoint import WEIGHTS, Checkpoint, load_checkpoint, read_model_spec
from edgeface.errors import ConfigError, MissingToolError, ModelError, UnsupportedError, UsageError
from edgeface.evaluate import Outputs
from edgeface.files import is_plain_name, read_json, sha256_json
from edgeface.models.runner import TorchRunner
from edgeface.runs import is_run
from edgeface.specs import RUNTIMES, ModelSpec
from quantize.grid import Quantized, dequantize, simulate
from targets import artifacts
from targets.description import DescribedRunner, read_description, undescribed
from targets.foreign import takes_pictures
from targets.litert import TFLITE_RUNTIMES
from targets.protocol import FileRunner, Grids, TimedRunner

MANIFEST = "manifest.json"
DEVICES = ("cpu", "cuda")

Opener = Callable[..., TimedRunner]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of model file.

    Attributes:
        target: The target whose files these are.
        runtimes: What runs them; the first is the default.
        magic: Whether a file's first bytes can be of this kind; None for folders.
        open: (path, spec=, runtime=, precision=, threads=) to a runner.
        probe: Raises ModelError when a file cannot be run, without harm to this process.
        note: What edgeface wrote into a file; {} for files of others.
        load: Imports what a runtime needs, so that the time a file takes to open does not hold it.
    """

    target: str
    runtimes: tuple[str, ...]
    magic: Callable[[bytes], bool] | None
    open: Opener
    probe: Callable[[Path], None]
    note: Callable[[Path], Mapping[str, Any]]
    load: Callable[[str], None]


def _open_tflite(path: Path, **options: Any) -> TimedRunner:
    from targets.litert import TfliteRunner

    return TfliteRunner(path, **options)


def _probe_tflite(path: Path) -> None:
    from targets.litert import probe

    probe(path)


def _note_tflite(path: Path) -> Mapping[str, Any]:
    from targets.tflite import read_note

    return read_note(path)


def _load_tflite(runtime: str) -> None:
    from targets.litert import load_runtime

    load_runtime(runtime)


def _open_openvino(path: Path, **options: Any) -> TimedRunner:
    from targets.openvino import OpenvinoRunner

    return OpenvinoRunner(path, **options)


def _probe_openvino(path: Path) -> None:
    from targets.openvino import probe

    probe(path)


def _note_openvino(path: Path) -> Mapping[str, Any]:
    from targets.openvino import read_note

    return read_note(path)


def _load_openvino(runtime: str) -> None:
    from targets.openvino import load_runtime

    load_runtime()


def _open_onnx(path: Path, **options: Any) -> TimedRunner:
    from targets.onnx import OnnxRunner

    return OnnxRunner(path, **options)


def _probe_onnx(path: Path) -> None:
    from targets.onnx import probe

    probe(path)


def _note_onnx(path: Path) -> Mapping[str, Any]:
    from targets.onnx import read_note

    return read_note(path)


def _load_onnx(runtime: str) -> None:
    from targets.onnx import load_runtime

    load_runtime()


def _open_coreml(path: Path, *, runtime: str, **options: Any) -> TimedRunner:
    if runtime == "coreml":
        from targets.coreml import CoremlRunner

        return CoremlRunner(path, runtime=runtime, **options)
    from targets.mil import MilRunner

    return MilRunner(path, runtime=runtime, arithmetic="fp16" if runtime == "mil-fp16" else "fp32", **options)


def _probe_coreml(path: Path) -> None:
    from targets.mil import probe

    probe(path)


def _note_coreml(path: Path) -> Mapping[str, Any]:
    from targets.coreml import read_note

    return read_note(path)


def _load_coreml(runtime: str) -> None:
    from targets import mil  # noqa: F401 (loading it is all that is wanted)


FORMATS: dict[str, Format] = {
    ".tflite": Format(
        target="android",
        runtimes=TFLITE_RUNTIMES,
        magic=lambda head: head[4:8] == b"TFL3",
        open=_open_tflite,
        probe=_probe_tflite,
        note=_note_tflite,
        load=_load_tflite,
    ),
    ".xml": Format(
        target="openvino",
        runtimes=("openvino",),
        magic=lambda head: head.lstrip().startswith((b"<?xml", b"<net")),
        open=_open_openvino,
        probe=_probe_openvino,
        note=_note_openvino,
        load=_load_openvino,
    ),
    ".onnx": Format(
        target="onnx",
        runtimes=("onnxruntime",),
        magic=lambda head: head[:1] == b"\x08",  # field 1 of the protobuf, ir_version
        open=_open_onnx,
        probe=_probe_onnx,
        note=_note_onnx,
        load=_load_onnx,
    ),
    ".mlpackage": Format(
        target="ios",
        runtimes=("mil", "mil-fp16", "coreml"),
        magic=None,
        open=_open_coreml,
        probe=_probe_coreml,
        note=_note_coreml,
        load=_load_coreml,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Located:
    """What a path stands for.

    Attributes:
        checkpoint: A checkpoint, or None.
        forest: A folder of forests on a teacher's features, or None.
        file: A model file, or None.
        spec: The file's spec, when a manifest beside it tells.
        precision: The file's precision, when a manifest beside it tells.
        size_bytes: Size on disk.
    """

    checkpoint: Checkpoint | None = None
    forest: Path | None = None
    file: Path | None = None
    spec: ModelSpec | None = None
    precision: str = ""
    size_bytes: int = 0


def open_model(
    path: str | Path,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int = 1,
    described: str | Path | None = None,
    device: str = "cpu",
    verify_key: str | Path | None = None,
) -> TimedRunner:
    """Open a run, a checkpoint, a bundle or a model file.

    Args:
        path: A run folder stands for its `qat/`.
        runtime: One of specs.RUNTIMES; None takes torch for checkpoints and the first of its format for files.
        precision: Which file of a bundle; None takes w8a8, or the only one.
        threads: CPU threads of each run.
        described: A --spec file that says what a model file means, in place of what stands in or beside it.
        device: One of DEVICES, for checkpoints; files run on the CPU.
        verify_key: An ed25519 public key (PEM): refuse what is not a bundle, or a file of one, that its holder signed.

    Raises:
        ModelError: Nothing there, it is broken, or its signature does not hold.
        UnsupportedError: The runtime cannot run this kind of model.
        ConfigError: What the description has wrong or leaves open.
        MissingToolError: The runtime or the device is not here, or edgeface does not speak to it yet.
    """
    if verify_key is not None:
        from targets.signing import public_key, verify

        folder = Path(path) if is_bundle(Path(path)) else Path(path).parent
        verify(folder, key=public_key(Path(verify_key)))
    return _open(path, runtime=runtime, precision=precision, threads=threads, described=described, device=device)[0]


def open_to_score(
    path: str | Path,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int = 1,
    described: str | Path | None = None,
    device: str = "cpu",
) -> TimedRunner:
    """As `open_model`, for what pictures are to be run through.

    Raises:
        UnsupportedError: Also for a file of others that does not tell what it takes or answers: with its inputs and
            outputs, and the description to fill in.
    """
    runner, known = _open(
        path, runtime=runtime, precision=precision, threads=threads, described=described, device=device
    )
    if known:
        return runner
    file: Any = runner  # the formats' runners of files; Core ML's own has no ports
    if not hasattr(file, "inputs"):
        return runner
    if not takes_pictures(file.inputs[0]):
        why = "how a picture becomes this file's input is not written in it"
    elif not runner.spec.outputs:
        why = "none of its outputs is named after a task, so what they mean is not known"
    else:
        return runner
    raise undescribed(Path(path), file.inputs, file.outputs, why=why)


def _open(
    path: str | Path,
    *,
    runtime: str | None,
    precision: str | None,
    threads: int,
    described: str | Path | None,
    device: str,
) -> tuple[TimedRunner, bool]:
    """The runner, and whether somebody said what it takes and answers."""
    if threads < 1:
        raise UsageError(f"{threads} threads", expected="1 or more", where="--threads")
    if runtime is not None and runtime not in RUNTIMES:
        raise UsageError(f"{runtime!r}", expected=f"one of {', '.join(RUNTIMES)}", where="--runtime")
    found = locate(Path(path), precision=precision)
    if found.checkpoint is not None or found.forest is not None:
        if runtime not in (None, "torch"):
            raise _other_runtime(runtime, ("torch",), where=str(path), do="Build it first: edgeface build")
        if described is not None:
            raise UsageError(
                "a description of a checkpoint", expected="a model file", where="--spec", do="A checkpoint has its own"
            )
        opened = _open_checkpoint(
            found.forest or found.checkpoint,
            precision=precision,
            threads=threads,
            size_bytes=found.size_bytes,
            device=device,
        )
        return opened, True
    assert found.file is not None
    kind = FORMATS[found.file.suffix]
    chosen = runtime or kind.runtimes[0]
    if chosen not in kind.runtimes:
        do = "Name the checkpoint instead" if chosen == "torch" else "Choose one of them"
        raise _other_runtime(chosen, kind.runtimes, where=str(path), do=do)
    spec, own = found.spec, found.precision
    if spec is not None:
        _try_once(found.file, kind)
    else:
        kind.probe(found.file)
        spec, own = noted(found.file, kind)
        if precision is not None and own and precision != own:
            raise UsageError(f"{precision!r}", expected=repr(own), where=f"--precision for {path}")
    if described is None:
        opened_file = kind.open(found.file, spec=spec, runtime=chosen, precision=own, threads=threads)
        return opened_file, spec is not None
    return _open_described(found.file, described=described, runtime=chosen, precision=own, threads=threads), True


def _try_once(path: Path, kind: Format) -> None:
    """Run a bundle's file in a process of its own, the first time that its content is met with these runtimes.

    A digest says that a file is whole, not that it is harmless: whoever wrote the file may have written its manifest.
    """
    from edgeface.data.pack import cache_folder
    from edgeface.provenance import versions

    mark = cache_folder() / "tried" / sha256_json([artifacts.digests(path), versions()])
    if mark.exists():
        return
    try:
        kind.probe(path)
    except MissingToolError:  # another runtime of the format was asked for, or opening says the same
        return
    with suppress(OSError):  # a cache that cannot be written costs a second trial
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def open_file(
    path: Path, *, spec: ModelSpec, precision: str, runtime: str | None = None, threads: int = 1
) -> TimedRunner:
    """Open a model file that is known to be whole, by the runtime named or the first of its format."""
    kind = FORMATS[path.suffix]
    return kind.open(path, spec=spec, runtime=runtime or kind.runtimes[0], precision=precision, threads=threads)


def reopen(
    path: Path,
    *,
    runtime: str,
    precision: str | None,
    threads: int,
    described: str | Path | None,
    device: str,
) -> Callable[[], TimedRunner]:
    """What opens again a model that was opened before, with everything read and imported that is not the opening.

    Args:
        path: As for `open_model`; a broken file may end this process.
        runtime: What the model was opened in.
        precision: As for `open_model`.
        threads: CPU threads.
        described: A --spec file.
        device: One of DEVICES.
    """
    found = locate(path, precision=precision)
    if found.checkpoint is not None or found.forest is not None:
        import distill.forest
        import distill.stages  # noqa: F401 (loaded here, so that opening need not)
        import quantize.qat  # noqa: F401

        return partial(
            _open_checkpoint,
            found.forest or found.checkpoint,
            precision=precision,
            threads=threads,
            size_bytes=found.size_bytes,
            device=device,
        )
    assert found.file is not None
    kind = FORMATS[found.file.suffix]
    kind.load(runtime)
    spec, own = (found.spec, found.precision) if found.spec is not None else noted(found.file, kind)
    if described is not None:
        return partial(
            _open_described, found.file, described=described, runtime=runtime, precision=own, threads=threads
        )
    return partial(kind.open, found.file, spec=spec, runtime=runtime, precision=own, threads=threads)


def _open_described(
    file: Path, *, described: str | Path, runtime: str, precision: str, threads: int
) -> DescribedRunner:
    description = read_description(Path(described))
    base: Any = FORMATS[file.suffix].open(file, spec=None, runtime=runtime, precision=precision, threads=threads)
    if not hasattr(base, "answer"):
        raise UnsupportedError(f"--spec with runtime {runtime!r}", expected="another runtime", where=str(file))
    raw: FileRunner = base
    return DescribedRunner(raw, description, where=str(described))


def _other_runtime(runtime: str | None, accepted: Sequence[str], *, where: str, do: str) -> UnsupportedError:
    expected = f"one of {', '.join(map(repr, accepted))}" if len(accepted) > 1 else repr(accepted[0])
    return UnsupportedError(f"runtime {runtime!r}", expected=expected, where=where, do=do)


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
    if path.is_dir() and path.suffix not in FORMATS:
        manifest = _read_manifest(path / MANIFEST)
        if "target" in manifest:
            return _locate_in_bundle(path, manifest, precision=precision)
        if manifest.get("kind") == "forest":
            return Located(forest=path, size_bytes=sum(file.stat().st_size for file in path.glob("*.skops")))
        checkpoint = load_checkpoint(path)
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return Located(checkpoint=checkpoint, size_bytes=size)
    if not path.exists():
        raise ModelError("no such file or folder", expected="a model", where=str(path), do="Check the path")
    _check_identifier(path)
    return _beside_manifest(path, precision=precision)


def is_bundle(path: Path) -> bool:
    """Whether a path is a folder of built files, so that a precision chooses among them."""
    return (path / MANIFEST).is_file() and "target" in _read_manifest(path / MANIFEST)


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
    held = {entry["precision"] for entry in files.values()}
    wanted = precision or ("w8a8" if "w8a8" in held or len(held) > 1 else held.pop())
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
        is_plain_name(name) and isinstance(entry, dict) and isinstance(entry.get("precision"), str)
        for name, entry in files.items()
    )
    if not well_formed or manifest.get("schema") != 1 or not files:
        raise ModelError("not a bundle manifest of schema 1", expected="one", where=str(where), do="Build it again")
    assert isinstance(files, dict)  # for the type checker
    return files


def _vouched(path: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> Located:
    """A file whose manifest says what it is, checked against its digest."""
    artifacts.check(path, entry)
    _check_identifier(path)
    try:
        spec = read_model_spec(manifest["model"], where=str(path.parent / MANIFEST))
    except (ConfigError, KeyError) as error:
        raise ModelError(f"a model spec that is not valid ({error})", where=str(path.parent / MANIFEST)) from error
    return Located(file=path, spec=spec, precision=str(entry["precision"]), size_bytes=artifacts.size_bytes(path))


def _check_identifier(path: Path) -> None:
    """Refuse what cannot be a model by its suffix and first bytes, before any tool-kit reads it."""
    kind = FORMATS.get(path.suffix)
    if kind is None:
        raise ModelError(
            f"a file whose name ends in {path.suffix!r}",
            expected=f"one that ends in {', '.join(FORMATS)}",
            where=str(path),
            do="Name a model file, a checkpoint, a run or a bundle",
        )
    if path.is_dir() != (kind.magic is None):
        raise ModelError(
            "a folder" if path.is_dir() else "a file",
            expected=f"a {path.suffix} {'folder' if kind.magic is None else 'file'}",
            where=str(path),
            do="Name a whole model",
        )
    artifacts.require_readable(path)
    if kind.magic is None:
        return
    with path.open("rb") as stream:
        head = stream.read(64)
    if not kind.magic(head):
        raise ModelError(
            f"not a {path.suffix} file (it begins with {head[:8]!r})",
            expected=f"a {path.suffix} file",
            where=str(path),
            do="Name a model file, a checkpoint, a run or a bundle",
        )


def _beside_manifest(path: Path, *, precision: str | None) -> Located:
    """A file by itself: its bundle's manifest tells the rest, when it lies beside it and lists the file."""
    manifest_path = path.parent / MANIFEST
    found = Located(file=path, size_bytes=artifacts.size_bytes(path), precision="")
    if manifest_path.is_file():
        manifest = _read_manifest(manifest_path)
        if "target" in manifest:
            files = _manifest_files(manifest, where=manifest_path)
            if path.name in files:
                found = _vouched(path, manifest, files[path.name])
    if precision is not None and found.precision and precision != found.precision:
        raise UsageError(f"{precision!r}", expected=repr(found.precision), where=f"--precision for {path}")
    return found


def noted(path: Path, kind: Format) -> tuple[ModelSpec | None, str]:
    """Spec and precision that a file of ours carries in its metadata."""
    note = kind.note(path)
    try:
        return read_model_spec(note["model"], where=str(path)), str(note["precision"])
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
        self.device = str(self._device)
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
        if not isinstance(self._network, MultiTaskNetwork):  # a forest compares, it does not multiply
            return None
        try:
            return macs(trace(self._network))
        except UnsupportedError:  # a teacher with layers that have no integer form
            return None

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        with self._settled():
            return super().run(batch)

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare; on a GPU a run ends when its results are there, still on the GPU."""
        import torch

        side = self.spec.input_px
        picture = np.random.default_rng(seed).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        image = torch.tensor(picture, device=self._device).permute(0, 3, 1, 2)
        image = image.to(torch.float32, memory_format=torch.channels_last)
        on_gpu = self._device.type == "cuda"

        @torch.no_grad()
        def once() -> None:
            with self._settled():
                self._network(image)
                if on_gpu:
                    torch.cuda.synchronize()

        return once

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """This runner's threads, and on a GPU float32 that is not shortened to TF32 on the way."""
        import torch

        before, on_gpu = torch.get_num_threads(), self._device.type == "cuda"
        torch.set_num_threads(self.threads)
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if on_gpu else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)


class SimulatedRunner:
    """A network on the integer grid, computed by the simulator: what a file with float layers is held against.

    Attributes:
        quantized: The network.
    """

    runtime = "torch"
    precision = "fake-quant"
    threads = 1
    size_bytes = 0

    def __init__(self, quantized: Quantized, spec: ModelSpec) -> None:
        self.quantized = quantized
        self.spec = spec

    @property
    def grids(self) -> Grids:
        names = [output.name for output in self.spec.outputs]
        return {name: self.quantized.output_grid(name) for name in names if not self.quantized.is_float(name)}

    @property
    def macs(self) -> int | None:
        from quantize.graph import macs

        return macs(self.quantized.graph)

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        return dequantize(self.quantized, simulate(self.quantized, batch))

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare."""
        side = self.spec.input_px
        picture = np.random.default_rng(seed).integers(0, 256, (1, side, side, 3), dtype=np.uint8)

        def once() -> None:
            self.run(picture)

        return once


def _open_checkpoint(
    checkpoint: Checkpoint | Path | None, *, precision: str | None, threads: int, size_bytes: int, device: str
) -> CheckpointRunner:
    import torch

    from distill.forest import load_forest
    from distill.stages import load_network
    from quantize.qat import load_qat

    assert checkpoint is not None
    forest = None
    if isinstance(checkpoint, Path):
        forest, checkpoint = load_forest(checkpoint)
        size_bytes += (checkpoint.folder / WEIGHTS).stat().st_size
    own = "fake-quant" if checkpoint.kind == "qat" else "fp32"
    if precision not in (None, own):
        raise UsageError(
            f"precision {precision!r}",
            expected=f"{own!r}, which is what this checkpoint computes in",
            where=str(checkpoint.folder),
            do="Name a bundle to choose among its files",
        )
    if device not in DEVICES:
        raise UsageError(f"{device!r}", expected=f"one of {', '.join(map(repr, DEVICES))}", where="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingToolError(
            "no CUDA device here" if torch.version.cuda else "this torch was built without CUDA",
            expected="an NVIDIA GPU and a torch that can use it",
            where="--device cuda",
            do="Leave --device out to run on the CPU",
        )
    fake_quant = load_qat(checkpoint) if checkpoint.kind == "qat" else None
    return CheckpointRunner(
        (fake_quant or forest or load_network(checkpoint)).to(device),
        checkpoint.model,
        precision=own,
        threads=threads,
        quantized=fake_quant.quantized() if fake_quant is not None else None,
        size_bytes=size_bytes,
    )
