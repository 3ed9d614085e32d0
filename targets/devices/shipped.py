"""A bundle to check, and the faces it is checked on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.config import from_plain
from edgeface.errors import ConfigError, ModelError, UsageError
from edgeface.evaluate import evaluation_pack
from edgeface.specs import ModelSpec
from targets import artifacts
from targets.bundle import read_bundle, read_golden
from targets.judge import FLOORS_DB, Codes
from targets.runners import FORMATS, MANIFEST

FACES = 64


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A bundle, read and known to be what was built.

    Attributes:
        folder: Where it lies.
        manifest: Its manifest.
        golden: Golden faces and the answers it was shipped with.
        spec: Its input and outputs.
        files: The files to check.
    """

    folder: Path
    manifest: Mapping[str, Any]
    golden: Codes
    spec: ModelSpec
    files: tuple[Path, ...]

    def entry(self, file: Path) -> Mapping[str, Any]:
        entry: Mapping[str, Any] = self.manifest["files"][file.name]
        return entry

    def precision(self, file: Path) -> str:
        return str(self.entry(file)["precision"])


@dataclass(frozen=True, kw_only=True)
class Faces:
    """What is run.

    Attributes:
        images: (N, H, W, 3) RGB, the golden faces first.
        golden: How many golden faces.
        first: The first face that has labels; those before have none.
        labels: Task name to labels of the faces from `first` on.
        source: Where they come from.
    """

    images: NDArray[np.uint8]
    golden: int
    first: int
    labels: Mapping[str, NDArray[Any]]
    source: str


def open_bundle(folder: Path, *, precisions: Sequence[str] = ()) -> Shipped:
    """A bundle to check, its files compared with their digests.

    Args:
        folder: The bundle.
        precisions: Which files; () takes all.

    Raises:
        ModelError: It is no bundle, or damaged.
        UsageError: It has no file of such a precision.
    """
    manifest, golden = read_bundle(folder), read_golden(folder)
    entries = _entries(manifest, folder)
    held = {str(entry["precision"]) for entry in entries.values()}
    for precision in precisions:
        if precision not in held:
            raise UsageError(
                f"{precision!r}",
                expected=f"some of {', '.join(sorted(map(repr, held)))}, which {folder} holds",
                where="--precision",
                do="Name one of them, or leave it out for all",
            )
    files = []
    for name, entry in entries.items():
        if not precisions or entry["precision"] in precisions:
            artifacts.check(folder / name, entry)
            files.append(folder / name)
    try:
        spec = from_plain(ModelSpec, manifest["model"], where=str(folder))
    except (ConfigError, KeyError) as error:
        raise ModelError(f"a model spec that is not valid ({error})", where=str(folder)) from error
    return Shipped(folder=folder, manifest=manifest, golden=golden, spec=spec, files=tuple(files))


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
        shipped: The bundle.
        source: A corpus to take `n` faces of, evenly spread over it; "" draws faces until there are `n`.
        n: How many.
        root: Folder that holds the corpora.
        progress: Called with the number of faces cut and their total, when they are not in the cache.

    Raises:
        UsageError: `n` is below 1.
        DataError: The source cannot be read.
    """
    if n < 1:
        raise UsageError(f"{n} faces", expected="1 or more", where="--n")
    golden = shipped.golden["images"]
    if source:
        pack = evaluation_pack(source, shipped.spec, root=root, progress=progress)
        rows = np.unique(np.linspace(0, len(pack) - 1, min(n, len(pack))).round().astype(np.int64))
        first, images = len(golden), pack.images[rows]
        words = f"{len(golden)} golden faces and {len(rows)} of the {len(pack)} of {source}"
    else:
        pack = evaluation_pack(f"synthetic:{max(n, len(golden))}@test", shipped.spec, root=root, progress=progress)
        first = 0 if _same_drawing(pack.images[: len(golden)], golden) else len(golden)
        rows, images = np.arange(first, len(pack)), pack.images[len(golden) :]
        words = f"{len(golden)} golden faces and {len(images)} more drawn ones"
    return Faces(
        images=np.concatenate([golden, images]),
        golden=len(golden),
        first=first,
        labels={name: labels[rows] for name, labels in pack.labels.items()},
        source=words,
    )


def _same_drawing(now: NDArray[np.uint8], then: NDArray[np.uint8]) -> bool:
    """False for a bundle built when faces were drawn otherwise: what their labels were is not known."""
    # The last digit of a sum depends on how many threads share it, and so does a pixel now and then.
    return now.shape == then.shape and int(np.abs(now.astype(np.int16) - then).max()) <= 1
