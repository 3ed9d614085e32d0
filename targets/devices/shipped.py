"""What is to be checked, and the faces it is checked on.

open_to_check("out/android")                       a bundle, with the answers it was shipped with
open_to_check("out/android/edge_s.w8a8.tflite")    one of its files
open_to_check("ours.tflite")                       a file of ours alone: it says what it is, golden answers it has none
open_to_check("peer.tflite", described="p.toml")   a file of others, and what it means
open_to_check("peer.tflite")                       the same without: run on pictures where it takes them, else on
                                                   random inputs of its own shape and type
open_to_check("runs/demo")                         a checkpoint
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.checkpoint import read_model_spec
from edgeface.errors import ConfigError, ModelError, UnsupportedError, UsageError
from edgeface.evaluate import Outputs, evaluation_pack
from edgeface.specs import ModelSpec
from targets import artifacts
from targets.bundle import GOLDEN, grids_of, read_bundle, read_golden
from targets.description import DescribedRunner, read_description, undescribed
from targets.devices.job import dequantize
from targets.foreign import random_input, takes_pictures
from targets.judge import FLOORS_DB, Codes
from targets.protocol import FileRunner, Grids
from targets.runners import FORMATS, MANIFEST, Located, is_bundle, locate, noted

FACES = 64

BUNDLE, FILE, CHECKPOINT = "bundle", "file", "checkpoint"

_NO_GOLDEN = "no golden answers: those come with a bundle"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model that is run.

    Attributes:
        path: A model file, or a checkpoint.
        name: What its rows are called.
        precision: As its manifest or its note calls it, else as its tensors show.
        floor: Key of judge.FLOORS_DB that its answers are held to where they may differ.
        runtimes: What runs it; the first is what others are held against.
        own: The runtime that it was built with.
        exact: Whether it computes nothing but integers, by kernels that answer alike on every processor.
        grids: Output name to (scale, zero point) of what is integer, or was before it left the file.
        golden: Whether it was shipped with answers to golden faces.
    """

    path: Path
    name: str
    precision: str
    floor: str
    runtimes: tuple[str, ...]
    own: str
    exact: bool
    grids: Grids
    golden: bool


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What is to be checked, read and known to be whole.

    Attributes:
        path: As it was named.
        kind: BUNDLE (or a file of one), FILE or CHECKPOINT.
        folder: Where it lies.
        manifest: A bundle's manifest; {} without one.
        golden: Golden faces and the answers it was shipped with; {} without any.
        spec: Its input and outputs; no outputs where their meaning is not known.
        files: What is checked: files, or a checkpoint.
        parts: Each of `files`.
        foreign: A file that is asked in its own terms: one of others, or one that somebody described.
        described: The same, with what it means.
        left_out: What cannot be compared, and why.
    """

    path: Path
    kind: str = BUNDLE
    folder: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)
    golden: Codes = field(default_factory=dict)
    spec: ModelSpec
    files: tuple[Path, ...]
    parts: Mapping[Path, Part]
    foreign: FileRunner | None = None
    described: DescribedRunner | None = None
    left_out: tuple[str, ...] = ()

    @property
    def takes_pictures(self) -> bool:
        """False for a file of others of which nobody said how a picture becomes its input."""
        return self.foreign is None or self.described is not None or takes_pictures(self.foreign.inputs[0])

    def feed(self, images: NDArray[Any]) -> NDArray[Any]:
        """What a runner is given for `Faces.images`: those, or (N, …) in the form that a description gives them."""
        return images if self.described is None else self.described.feed(images)

    def read(self, codes: Codes, *, grids: Grids) -> Outputs:
        """The outputs of `spec` from what a file answered.

        Args:
            codes: Output name to (N, …), as they leave the file.
            grids: Of its integer outputs.
        """
        if self.foreign is None:
            return dequantize(codes, spec=self.spec, grids=grids)
        values = {name: _real(raw, grids.get(name)) for name, raw in codes.items()}
        if self.described is not None:
            return self.described.read(values)
        return {
            output.name: values[output.name].reshape(len(values[output.name]), *output.shape)
            for output in self.spec.outputs
        }


@dataclass(frozen=True, kw_only=True)
class Faces:
    """What is run.

    Attributes:
        images: (N, H, W, 3) RGB, the golden faces first; for a file that takes no pictures (N, …) in its own form.
        golden: How many golden faces.
        first: The first face that has labels; those before have none.
        labels: Task name to labels of the faces from `first` on.
        source: Where they come from.
    """

    images: NDArray[Any]
    golden: int
    first: int
    labels: Mapping[str, NDArray[Any]]
    source: str


def open_to_check(path: Path, *, precisions: Sequence[str] = (), described: Path | None = None) -> Shipped:
    """Anything that can be checked.

    Args:
        path: A bundle, a file, a run or a checkpoint.
        precisions: Which files of a bundle; () takes all.
        described: A --spec file that says what a model file means.

    Raises:
        ModelError: Nothing there, or damaged; a file that no manifest vouches for was tried in a process of its own.
        UsageError: No file of such a precision, or a description of what has its own.
        UnsupportedError: A file of several inputs.
        ConfigError: What the description has wrong or leaves open.
        MissingToolError: What reads the file is not installed.
    """
    if is_bundle(path):
        _require_file(described, what="a bundle")
        return open_bundle(path, precisions=precisions)
    located = locate(path)
    if located.file is None:
        _require_file(described, what="a checkpoint")
        shipped = _checkpoint(path, located)
    elif located.spec is not None and described is None and (path.parent / GOLDEN).is_file():
        whole = open_bundle(path.parent, names=(path.name,))
        shipped = replace(whole, path=path)
    else:
        shipped = _file(path, located, described=described)
    held = {part.precision for part in shipped.parts.values()}
    for precision in precisions:
        if precision not in held:
            raise _no_such_precision(precision, held, where=path)
    return shipped


def _require_file(described: Path | None, *, what: str) -> None:
    if described is not None:
        raise UsageError(f"a description of {what}", expected="a model file", where="--spec", do="It has its own")


def open_bundle(folder: Path, *, precisions: Sequence[str] = (), names: Sequence[str] = ()) -> Shipped:
    """A bundle to check, its files compared with their digests.

    Args:
        folder: The bundle.
        precisions: Which files; () takes all.
        names: Which files by name; () takes all.

    Raises:
        ModelError: It is no bundle, or damaged.
        UsageError: It has no file of such a precision.
    """
    manifest, golden = read_bundle(folder), read_golden(folder)
    entries = _entries(manifest, folder)
    held = {str(entry["precision"]) for entry in entries.values()}
    for precision in precisions:
        if precision not in held:
            raise _no_such_precision(precision, held, where=folder)
    parts = {}
    for name, entry in entries.items():
        if (not precisions or entry["precision"] in precisions) and (not names or name in names):
            artifacts.check(folder / name, entry)
            parts[folder / name] = Part(
                path=folder / name,
                name=name,
                precision=str(entry["precision"]),
                floor=str(entry["precision"]),
                runtimes=FORMATS[Path(name).suffix].runtimes,
                own=str(entry["golden_runtime"]),
                exact=not entry["float_layers"],
                grids=grids_of(entry),
                golden=True,
            )
    try:
        spec = read_model_spec(manifest["model"], where=str(folder))
    except (ConfigError, KeyError) as error:
        raise ModelError(f"a model spec that is not valid ({error})", where=str(folder)) from error
    return Shipped(
        path=folder, folder=folder, manifest=manifest, golden=golden, spec=spec, files=tuple(parts), parts=parts
    )


def _no_such_precision(precision: str, held: set[str], *, where: Path) -> UsageError:
    return UsageError(
        f"{precision!r}",
        expected=f"some of {', '.join(sorted(map(repr, held)))}, which {where} holds",
        where="--precision",
        do="Name one of them, or leave it out for all",
    )


def _entries(manifest: Mapping[str, Any], folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """The files of a manifest, each with all that a check reads of it."""
    wanted = {"precision", "sha256", "grids", "golden_runtime", "float_layers"}
    entries = manifest.get("files")
    if not isinstance(entries, dict) or not entries or not isinstance(manifest.get("outputs"), list):
        raise ModelError("a manifest without files or outputs", where=str(folder), do="Build the bundle again")
    for name, entry in entries.items():
        missing = sorted(wanted - entry.keys()) if isinstance(entry, dict) else sorted(wanted)
        if missing or Path(name).name != name or Path(name).suffix not in FORMATS:
            raise ModelError(
                f"{name!r} without {', '.join(missing)}" if missing else f"a file {name!r}",
                expected=f"one of {', '.join(FORMATS)} in the bundle, with its precision, grids and golden runtime",
                where=str(folder / MANIFEST),
                do="Build the bundle again",
            )
        if entry["precision"] not in FLOORS_DB:
            raise ModelError(
                f"precision {entry['precision']!r}", expected=f"one of {', '.join(FLOORS_DB)}", where=f"{folder / name}"
            )
    return entries


def _checkpoint(path: Path, located: Located) -> Shipped:
    from targets.runners import open_model

    runner = open_model(path)
    folder = located.checkpoint.folder if located.checkpoint is not None else path
    part = Part(
        path=path,
        name="/".join(folder.resolve().parts[-2:]),
        precision=runner.precision,
        floor="fp32",
        runtimes=("torch",),
        own="torch",
        exact=False,
        grids=runner.grids,
        golden=False,
    )
    left_out = (_NO_GOLDEN, "no other kernels: a checkpoint is held against a second process of its own")
    return Shipped(
        path=path,
        kind=CHECKPOINT,
        folder=folder,
        spec=runner.spec,
        files=(path,),
        parts={path: part},
        left_out=left_out,
    )


def _file(path: Path, located: Located, *, described: Path | None) -> Shipped:
    """A file without golden answers."""
    kind = FORMATS[path.suffix]
    spec, precision = located.spec, located.precision
    if spec is None:
        kind.probe(path)
        spec, precision = noted(path, kind)
    own = None if described is not None else spec
    # Beyond the protocol of runners, those of files are asked in the files' own terms.
    runner: Any = kind.open(path, spec=own, runtime=kind.runtimes[0], precision=precision, threads=1)
    foreign: FileRunner | None = runner if own is None else None
    grids = {port.name: port.grid for port in runner.outputs if port.grid is not None}
    meant = None if described is None else DescribedRunner(runner, read_description(described), where=str(described))
    found = Shipped(
        path=path,
        kind=FILE,
        folder=path.parent,
        spec=runner.spec if meant is None else meant.spec,
        files=(path,),
        parts={
            path: Part(
                path=path,
                name=path.name,
                precision=runner.precision,
                # Old int8 files answer in uint8, or as floats through a last step of their own.
                floor="w8a8" if grids or runner.precision not in FLOORS_DB else runner.precision,
                runtimes=kind.runtimes,
                own=kind.runtimes[0],
                exact=path.suffix == ".tflite" and _is_exact(path, runner),
                grids=grids,
                golden=False,
            )
        },
        foreign=foreign,
        described=meant,
    )
    left_out = [_NO_GOLDEN]
    if not found.takes_pictures:
        left_out.append("no task metrics: the file does not say how a picture becomes its input (--spec FILE does)")
    elif not found.spec.outputs:
        left_out.append("no task metrics: none of its outputs is named after a task (--spec FILE says which is which)")
    return replace(found, left_out=tuple(left_out))


def _is_exact(path: Path, runner: FileRunner) -> bool:
    """Whether a file computes in integers alone, all of it by XNNPACK."""
    from targets.litert import open_engine

    integer = "float32" not in open_engine(path, runtime="tflite-xnnpack", threads=1).description["dtypes"]
    left = dict((runner.operations or {}).get("builtin", {}))
    # The one that moves a picture's zero point rounds nothing, and XNNPACK leaves it to the kernels that differ.
    left["QUANTIZE"] = left.get("QUANTIZE", 0) - 1
    return integer and all(count <= 0 for count in left.values())


def choose_faces(
    shipped: Shipped,
    *,
    source: str = "",
    n: int = FACES,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Faces:
    """The golden faces, and more.

    Args:
        shipped: What is to be checked.
        source: A corpus to take `n` faces of, evenly spread over it; "" draws faces until there are `n`.
        n: How many.
        root: Folder that holds the corpora.
        progress: Called with the number of faces cut and their total, when they are not in the cache.

    Raises:
        UsageError: `n` is below 1.
        UnsupportedError: A source for a file that nobody described, with the description to fill in.
        DataError: The source cannot be read.
    """
    if n < 1:
        raise UsageError(f"{n} faces", expected="1 or more", where="--n")
    if not shipped.takes_pictures:
        return _random_inputs(shipped, source=source, n=n)
    side = shipped.spec.input_px
    golden = shipped.golden.get("images", np.zeros((0, side, side, 3), np.uint8))
    begun = f"{len(golden)} golden faces and " if len(golden) else ""
    if source:
        pack = evaluation_pack(source, shipped.spec, root=root, progress=progress)
        rows = np.unique(np.linspace(0, len(pack) - 1, min(n, len(pack))).round().astype(np.int64))
        first, images = len(golden), pack.images[rows]
        words = f"{begun}{len(rows)} of the {len(pack)} of {source}"
    else:
        pack = evaluation_pack(f"synthetic:{max(n, len(golden))}@test", shipped.spec, root=root, progress=progress)
        first = 0 if _same_drawing(pack.images[: len(golden)], golden) else len(golden)
        rows, images = np.arange(first, len(pack)), pack.images[len(golden) :]
        words = f"{begun}{len(images)} more drawn ones" if begun else f"{len(images)} drawn faces"
        words = words if len(images) else f"{len(golden)} golden faces"
    return Faces(
        images=np.concatenate([golden, images]),
        golden=len(golden),
        first=first,
        labels={name: labels[rows] for name, labels in pack.labels.items()},
        source=words,
    )


def _random_inputs(shipped: Shipped, *, source: str, n: int) -> Faces:
    file = shipped.foreign
    assert file is not None
    if source:
        why = "how a picture becomes this file's input is not written in it"
        raise undescribed(shipped.path, file.inputs, file.outputs, why=why)
    (port,) = file.inputs
    sides = [side for side in port.shape[1:] if side is not None]
    if port.shape[:1] not in ((1,), (None,)) or len(sides) != len(port.shape) - 1:
        raise UnsupportedError(
            f"an input {port}",
            expected="one sample of a fixed shape: (1, …)",
            where=str(shipped.path),
            do="Export it so, or say its size in a description: --spec FILE",
        )
    inputs = random_input((n, *sides), port.dtype, seed=0)
    words = f"{n} random inputs of its own form, {port.dtype} ({', '.join(map(str, (1, *sides)))})"
    return Faces(images=inputs, golden=0, first=n, labels={}, source=words)


def _same_drawing(now: NDArray[np.uint8], then: NDArray[np.uint8]) -> bool:
    """False for a bundle built when faces were drawn otherwise: what their labels were is not known."""
    # The last digit of a sum depends on how many threads share it, and so does a pixel now and then.
    return now.shape == then.shape and int(np.abs(now.astype(np.int16) - then).max(initial=0)) <= 1


def _real(raw: NDArray[Any], grid: tuple[float, int] | None) -> NDArray[np.float32]:
    values = raw.astype(np.float32)
    return values if grid is None else (values - np.float32(grid[1])) * np.float32(grid[0])
