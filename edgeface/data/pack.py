"""Decoded once: square crops of one size in a memory-mapped file, with their labels.

A pack is a folder in the cache: images.npy (N, px, px, 3) uint8, labels.npz and pack.json. It is written aside and
renamed whole, so a pack is complete or absent. Its name is a hash of everything that decides its contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.data.ahead import ahead
from edgeface.data.corpus import Corpus, Labels
from edgeface.data.geometry import apply_matrix, crop_image, crop_matrix
from edgeface.errors import DataError, OutputError
from edgeface.files import write_folder, write_json
from edgeface.processes import one_blas_thread
from edgeface.tasks import TASKS, Kind
from edgeface.verification import Pairs

VERSION = 1
ENVIRONMENT = "EDGEFACE_CACHE"
ANSWERS = "answers"  # folder beside the packs, which edgeface.report.answers fills
SURVEYS = "shards"  # folder beside the packs, which edgeface.data.shards fills
UNDECODABLE = "undecodable picture"  # reason in `skipped` of a picture whose header is well and whose pixels are not
DECODERS = 2  # threads; Pillow and NumPy release the interpreter lock while they decode and multiply
_CHUNK = 64

Progress = Callable[[int, int], None]


class Images(Protocol):
    """(N, px, px, 3) RGB pictures by row: a memory-mapped array, or edgeface.data.crops.StreamedCrops."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Of an int (px, px, 3), else (n, px, px, 3) uint8."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Crops ready to batch.

    Attributes:
        images: (N, px, px, 3) RGB, memory-mapped read-only; of shards they are read where they are asked for.
        px: Side of the crops in pixels.
        margin: Side of the crops over the side of the nominal crop.
        keys: N sample ids, as in the corpus.
        people: N identities, as in the corpus.
        labels: Labels in the form of tasks.py; landmarks in sides of the packed crop, 0 to 1 inside.
        groups: Subgroup column to N strings; "" is unknown.
        name: Reader's name.
        source: Source as typed.
        split: The part that was read.
        licence: Terms in a few words.
        research_only: True when weights trained on it may not be shipped.
        skipped: Reason to the keys left out for it, by the reader or while decoding.
        content_hash: sha256 of pictures, labels and keys.
        folder: Where it is kept; of shards, where they are.
        derived: Tasks whose labels, or some of them, follow from other labels (edgeface.data.derive).
        pairs: The pairs that the corpus publishes to verify identity on; None where it publishes none.
    """

    images: Images
    px: int
    margin: float
    keys: Sequence[str]
    people: Sequence[str]
    labels: Labels
    groups: Mapping[str, NDArray[np.str_]]
    name: str
    source: str
    split: str
    licence: str
    research_only: bool
    skipped: Mapping[str, tuple[str, ...]]
    content_hash: str
    folder: Path
    derived: tuple[str, ...] = ()
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.keys)


def in_batches(images: Images, size: int) -> Iterator[NDArray[np.uint8]]:
    """All pictures in their order, in batches; those that have to be decoded are, by threads, while one is worked on.

    Args:
        images: (N, px, px, 3).
        size: Pictures of a batch; the last one has what is left. Some `DECODERS` + 2 batches are in memory at a time.
    """
    starts = range(0, len(images), size)
    threads = 0 if isinstance(images, np.ndarray) else DECODERS
    pieces = (partial(images.__getitem__, slice(start, min(start + size, len(images)))) for start in starts)
    return (np.ascontiguousarray(piece) for piece in ahead(pieces, threads=threads))


def cache_folder(cache: Path | None = None) -> Path:
    """Where packs are kept: `cache`, else $EDGEFACE_CACHE, else the user's cache folder + /edgeface."""
    if cache is not None:
        return cache
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT]).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgeface"))


def clear_cache(cache: Path | None = None) -> int:
    """Deletes all packs, and what models answered on them, and returns the bytes freed."""
    freed = 0
    for folder in (cache_folder(cache) / part for part in ("packs", ANSWERS, SURVEYS)):
        freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            raise OutputError(f"it cannot be deleted ({error})", where=str(folder), do="Delete the folder") from None
    return freed


def pack(
    corpus: Corpus,
    *,
    px: int,
    margin: float,
    cache: Path | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Pack:
    """Cuts and keeps every face of a corpus, or takes the kept ones.

    With `margin=1.0` and the network's input size these are exactly the pictures that the shipped pre-processing makes.

    Args:
        corpus: Where the faces come from.
        px: Side of the crops in pixels.
        margin: Side of the crops over the side of the nominal crop.
        cache: Cache folder; None takes the default of `cache_folder`.
        strict: Raise at the first picture that cannot be read instead of listing it in `skipped`.
        progress: Called with the number of faces done and their total.

    Raises:
        DataError: No picture can be read; with `strict`, the first one that cannot.
        OutputError: The cache cannot be written.
    """
    root = cache_folder(cache) / "packs"
    key = pack_key(corpus, px=px, margin=margin)
    folder = root / f"{corpus.name}-{corpus.split or 'all'}-{key[:24]}"
    if not (folder / "pack.json").is_file():
        try:
            _write(corpus, folder, px=px, margin=margin, strict=strict, progress=progress)
        except (OSError, OutputError) as error:
            reason = error.found if isinstance(error, OutputError) else str(error)
            raise OutputError(
                f"the packed faces cannot be kept ({reason})",
                expected=f"a writable folder with about {len(corpus) * px * px * 3 / 1e6:.0f} MB free",
                where=str(root),
                do=f"Free some space, or set {ENVIRONMENT} to another folder",
            ) from None
    packed = _open(folder, corpus)
    if strict and UNDECODABLE in packed.skipped:
        # The kept pack was made without strict; cut again to raise the error of the first bad picture.
        for crops in _crops(corpus, px=px, margin=margin):
            for crop in crops:
                if isinstance(crop, DataError):
                    raise crop
    return packed


def copy_pack(packed: Pack, folder: Path) -> Path:
    """Copies a pack out of the cache and returns the folder it is in.

    Raises:
        OutputError: The folder holds something already, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            "the folder is not empty", expected="a new or an empty folder", where=str(folder), do="Name another"
        )
    with write_folder(folder) as aside:
        for file in sorted(packed.folder.iterdir()):
            shutil.copyfile(file, aside / file.name)
    return folder


def pack_key(corpus: Corpus, *, px: int, margin: float) -> str:
    """Digest of everything that decides the crops of a corpus and their labels."""
    digest = hashlib.sha256(json.dumps([VERSION, corpus.name, corpus.split, corpus.fingerprint, px, margin]).encode())
    digest.update("\n".join(corpus.keys).encode())
    digest.update("\n".join(corpus.people).encode())
    digest.update(np.ascontiguousarray(corpus.crops).tobytes())
    for name in sorted(corpus.labels):
        values = np.ascontiguousarray(corpus.labels[name])
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    for name in sorted(corpus.groups):
        digest.update(json.dumps([name, corpus.groups[name].tolist()]).encode())
    digest.update(json.dumps({reason: list(keys) for reason, keys in corpus.skipped.items()}).encode())
    return digest.hexdigest()


def packed_labels(corpus: Corpus, kept: NDArray[np.int64], *, margin: float) -> Labels:
    """Labels of some samples, with landmarks in sides of the packed crop."""
    labels = {name: values[kept] for name, values in corpus.labels.items()}
    matrices = crop_matrix(corpus.crops[kept], margin=margin)
    for name, values in labels.items():
        if TASKS[name].kind is Kind.LANDMARKS:
            labels[name] = apply_matrix(matrices, values.astype(np.float64)).astype(np.float32)
    return labels


def cut(corpus: Corpus, indices: range, *, px: int, margin: float) -> list[NDArray[np.uint8] | DataError]:
    """The crops of a few samples; a sample that cannot be read is its error."""
    cut: list[NDArray[np.uint8] | DataError] = []
    pictures: NDArray[np.uint8] | None = None
    if corpus.load_many is not None:
        pictures = corpus.load_many(np.arange(indices.start, indices.stop, dtype=np.int64))
    for place, index in enumerate(indices):
        try:
            picture = corpus.load(index) if pictures is None else pictures[place]
            cut.append(crop_image(picture, corpus.crops[index], px=px, margin=margin))
        except DataError as error:
            cut.append(error)
    return cut


def _crops(corpus: Corpus, *, px: int, margin: float) -> Iterator[list[NDArray[np.uint8] | DataError]]:
    """Crops in order, a chunk at a time, with few chunks in memory."""
    starts = range(0, len(corpus), _CHUNK)
    chunks = [range(start, min(start + _CHUNK, len(corpus))) for start in starts]
    with one_blas_thread(), ThreadPoolExecutor(max_workers=DECODERS) as pool:
        waiting = [pool.submit(cut, corpus, chunk, px=px, margin=margin) for chunk in chunks[: 2 * DECODERS]]
        try:
            for place in range(len(chunks)):
                ready = waiting.pop(0).result()
                following = place + 2 * DECODERS
                if following < len(chunks):
                    waiting.append(pool.submit(cut, corpus, chunks[following], px=px, margin=margin))
                yield ready
        finally:
            for task in waiting:
                task.cancel()


def _write(corpus: Corpus, folder: Path, *, px: int, margin: float, strict: bool, progress: Progress | None) -> None:
    skipped: dict[str, list[str]] = defaultdict(list)
    for reason, keys in corpus.skipped.items():
        skipped[reason].extend(keys)
    kept: list[int] = []
    content = hashlib.sha256()
    done = 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with write_folder(folder) as aside:
        with (aside / "images.raw").open("wb") as raw:
            for crops in _crops(corpus, px=px, margin=margin):
                for crop in crops:
                    if isinstance(crop, DataError):
                        if strict:
                            raise crop
                        skipped[UNDECODABLE].append(f"{corpus.keys[done]} ({crop.found})")
                    else:
                        kept.append(done)
                        content.update(crop.tobytes())
                        raw.write(crop.tobytes())
                    done += 1
                if progress is not None:
                    progress(done, len(corpus))
        if not kept:
            raise DataError(
                f"none of {len(corpus)} pictures can be read",
                expected="at least one",
                where=corpus.source,
                do=f"First: {next(iter(skipped.values()))[0]}" if skipped else "",
            )
        _with_header(aside / "images.raw", aside / "images.npy", shape=(len(kept), px, px, 3))
        rows = np.asarray(kept, dtype=np.int64)
        labels = packed_labels(corpus, rows, margin=margin)
        groups = {name: values[rows] for name, values in corpus.groups.items()}
        np.savez(
            aside / "labels.npz",
            allow_pickle=False,
            **{f"label {name}": values for name, values in labels.items()},
            **{f"group {name}": values for name, values in groups.items()},
        )
        for name in sorted(labels):
            content.update(name.encode() + np.ascontiguousarray(labels[name]).tobytes())
        content.update("\n".join(corpus.keys[i] for i in kept).encode())
        write_json(
            aside / "pack.json",
            {
                "version": VERSION,
                "px": px,
                "margin": margin,
                "keys": [corpus.keys[i] for i in kept],
                "people": [corpus.people[i] for i in kept],
                "skipped": skipped,
                "content_hash": content.hexdigest(),
            },
        )


def _with_header(raw: Path, npy: Path, *, shape: tuple[int, ...]) -> None:
    """Turns raw bytes, whose number of rows was not known before, into a .npy file."""
    with npy.open("wb") as file, raw.open("rb") as body:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        shutil.copyfileobj(body, file, length=1 << 22)
    raw.unlink()


def _open(folder: Path, corpus: Corpus) -> Pack:
    try:
        manifest: dict[str, Any] = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / "labels.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if images.shape != (len(manifest["keys"]), manifest["px"], manifest["px"], 3):
            raise ValueError(f"images of shape {images.shape}")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"a damaged pack ({error})", where=str(folder), do="Delete it, or run: edgeface data clear"
        ) from None
    return Pack(
        images=images,
        px=manifest["px"],
        margin=manifest["margin"],
        keys=tuple(manifest["keys"]),
        people=tuple(manifest["people"]),
        labels={name.removeprefix("label "): v for name, v in arrays.items() if name.startswith("label ")},
        groups={name.removeprefix("group "): v for name, v in arrays.items() if name.startswith("group ")},
        name=corpus.name,
        source=corpus.source,
        split=corpus.split,
        licence=corpus.licence,
        research_only=corpus.research_only,
        skipped={reason: tuple(keys) for reason, keys in manifest["skipped"].items()},
        content_hash=manifest["content_hash"],
        folder=folder,
    )
