"""Faces in tar shards, as the WebDataset convention lays them out: what a sample holds, and what a set of shards holds.

A shard is a tar file; members whose names agree up to the first dot are one sample, and stand one after another:

    00000007.png         the picture (jpg, jpeg, png, ppm, webp or bmp)
    00000007.json        what is known of it; or
    00000007.TASK.cls    the index or the name of the class of one task; or
    00000007.cls         the same, of the task that the index file calls "cls"

The JSON object holds, each only where it is known:

    key, person          which sample and who it is; SHARD/NAME, as the members are named, without them
    crop                 [centre x, centre y, side] of the face in pixels; or box: [left, top, width, height]; without
                         either, the largest centred square
    labels               task to label: a class's index or name; [[x, y], …] in pixels; a score; years, [least, most] or
                         "20-29"; a person's number; for attributes [1, 0, null, …] or {"acne": 1, …}.
                         Labels may also stand beside `key`, without this level
    groups               subgroup to text

An index file SPLIT.json stands beside the shards that edgeface writes: the terms, and of each shard its samples, bytes
and sha256, and the sha256 of the table of their places (`edgeface.data.places`). Shards of others need neither: they
are read through once, and what was found is kept in the cache.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.data.corpus import Labels, is_labelled, unlabelled
from edgeface.data.geometry import apply_matrix, crop_image, crop_matrix
from edgeface.data.images import decode_image
from edgeface.data.pack import SURVEYS, cache_folder
from edgeface.data.places import read_places
from edgeface.data.tar import Member, member_at, members, open_tar, read_member
from edgeface.errors import DataError, UsageError
from edgeface.files import is_plain_name, read_json, sha256_file, sha256_json, write_json
from edgeface.tasks import TASKS, Kind, Task

SCHEMA = 1
KIND = "shards"
SUFFIX = ".tar"
PICTURES = ("jpg", "jpeg", "png", "ppm", "webp", "bmp")
NAMED = 20  # samples named for each reason to leave some out; the counts are whole
_VERSION = 1  # of what a survey finds
_CHUNK = 1024  # samples whose labels are in memory while a shard is gone through

_PICTURE, _JSON, _CLASS = "picture", "json", "cls"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Where the samples of a shard lie.

    Attributes:
        path: The shard.
        names: What the members of each sample share, one after the other: one text, because thousands of small ones
            would leave holes in memory when the next shard takes their place.
        spans: (N, 2) int64 beginning and end of each name.
        columns: "picture", "json", "cls" and "TASK.cls" to a column of `places`.
        places: (N, columns, 2) int64: offset and size; size -1 where a sample has no such member.
        others: Suffixes of members that nothing is read of, and how many of each.
        walked: Whether headers were gone through for it; else each member's is judged when the member is read.
    """

    path: Path
    names: str
    spans: NDArray[np.int64]
    columns: Mapping[str, int]
    places: NDArray[np.int64]
    others: Mapping[str, int]
    walked: bool = True

    def __len__(self) -> int:
        return len(self.spans)

    def key(self, row: int) -> str:
        """The name of a sample."""
        first, end = self.spans[row]
        return self.names[first:end]

    def without(self, rows: Sequence[int]) -> Table:
        """The same without some samples."""
        if not rows:
            return self
        kept = np.setdiff1d(np.arange(len(self)), rows)
        return replace(self, spans=self.spans[kept], places=self.places[kept])

    def read(self, descriptor: int, row: int, column: str) -> bytes | None:
        """The bytes of one member of a sample; None where there is none."""
        if column not in self.columns:
            return None
        offset, size = (int(value) for value in self.places[row, self.columns[column]])
        if size < 0:
            return None
        if column != _PICTURE and size > limits.SAMPLE_BYTES:
            raise DataError(
                f"member {self.key(row)}.{column} of {size:,} bytes",
                expected=f"at most {limits.SAMPLE_BYTES:,}",
                where=str(self.path),
            )
        member = Member(f"{self.key(row)}.{column}", offset, size)
        if not self.walked:
            member = self._judged(member_at(descriptor, self.path, offset), row, column, size=size)
        return read_member(descriptor, member, where=str(self.path))

    def _judged(self, member: Member, row: int, column: str, *, size: int) -> Member:
        key, suffix = _split(member.name)
        if (key, _column(suffix), member.size) != (self.key(row), column, size):
            raise DataError(
                f"member {member.name!r} of {member.size:,} bytes at byte {member.offset:,}",
                expected=f"the {column} of sample {self.key(row)!r} with {size:,}, as the table of places says",
                where=str(self.path),
                do="Write the shards again; or delete the table, and the shard's headers are gone through instead",
            )
        return member

    def where(self, row: int) -> str:
        """Shard and sample, for messages."""
        return f"{self.path}, sample {self.key(row)!r}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is known of one task's labels without going through them.

    Attributes:
        labelled: Samples with a label.
        counts: (C,) samples of each class; of attributes (M, 2), without and with; else empty.
        shape: (K, 2) sum over the labelled samples of their landmarks in sides of the nominal crop; else empty.
        people: Largest person's number plus one.
    """

    labelled: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    shape: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    people: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            labelled=self.labelled + other.labelled,
            counts=self.counts + other.counts,
            shape=self.shape + other.shape,
            people=max(self.people, other.people),
        )

    def as_json(self) -> dict[str, Any]:
        """As it stands in an index file."""
        return {
            "labelled": self.labelled,
            **({"counts": self.counts.tolist()} if self.counts.size else {}),
            **({"shape": self.shape.tolist()} if self.shape.size else {}),
            **({"people": self.people} if self.people else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file.

    Attributes:
        path: Where it is.
        samples: Samples that can be used.
        size_bytes: Its size.
        sha256: Digest of its bytes.
        left_out: Rows of samples that cannot be used.
        places_sha256: Digest of its table of places; "" where it has none.
    """

    path: Path
    samples: int
    size_bytes: int
    sha256: str
    left_out: tuple[int, ...] = ()
    places_sha256: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    def whole_table(self) -> Table:
        """Where its samples lie, those left out included: by its table of places, else by its headers.

        Raises:
            DataError: No shard, one that is refused, or a table that is not its own.
        """
        found = self._tabled() if self.places_sha256 else None
        return tabulate(self.path) if found is None else found

    def _tabled(self) -> Table | None:
        with open_tar(self.path) as descriptor:
            shard_bytes = os.fstat(descriptor).st_size
        told = read_places(self.path, sha256=self.places_sha256, shard_bytes=shard_bytes)
        if told is None:
            return None
        names, spans, places = told
        columns = {_PICTURE: 0, _JSON: 1}
        return Table(path=self.path, names=names, spans=spans, columns=columns, places=places, others={}, walked=False)

    def table(self) -> Table:
        """Where its samples lie, without those left out.

        Raises:
            DataError: The shard is not what it was, or no shard.
        """
        found = self.whole_table().without(self.left_out)
        if len(found) != self.samples:
            raise DataError(
                f"{len(found)} samples",
                expected=f"the {self.samples} that were there; the shard has changed",
                where=str(self.path),
                do="Restore it, or write the shards again",
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The shards of one split.

    Attributes:
        source: The source as typed.
        split: The part they hold.
        licence: Terms in a few words.
        research_only: True when weights trained on them may not be shipped.
        shards: In the order of their names.
        tasks: Task name to what is known of its labels.
        skipped: Reason to how many samples were left out for it, and the first of them.
        px: Side in pixels of every picture; 0 where they differ.
        margin: Side of the pictures over the side of the nominal crop; 0 where they differ.
        corpus: Reader's name of what they were packed from; "" for shards of others.
        class_task: Task that a bare `.cls` member labels; "" when nothing says so.
        scales: Score task to the corpus's own values that 0 and 1 stand for.
    """

    source: str
    split: str
    licence: str
    research_only: bool
    shards: tuple[Shard, ...]
    tasks: Mapping[str, Summary]
    skipped: Mapping[str, tuple[int, tuple[str, ...]]]
    px: int = 0
    margin: float = 0.0
    corpus: str = ""
    class_task: str = ""
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def content_hash(self) -> str:
        """Digest of everything in them that is used."""
        return sha256_json([[shard.sha256, list(shard.left_out)] for shard in self.shards])


@dataclass(frozen=True, kw_only=True)
class Described:
    """What n samples say of themselves, apart from their pictures.

    Attributes:
        rows: (n,) of the table: those that could be read.
        keys: n sample ids.
        people: n identities.
        crops: (n, 3) float64 centre x, centre y, side in pixels.
        labels: Task to labels in the form of tasks.py; landmarks float64 in pixels of the picture.
        groups: Subgroup to n texts.
        broken: Row to what is wrong with it.
    """

    rows: NDArray[np.int64]
    keys: tuple[str, ...]
    people: tuple[str, ...]
    crops: NDArray[np.float64]
    labels: Labels
    groups: Mapping[str, tuple[str, ...]]
    broken: Mapping[int, DataError]


def tabulate(path: Path) -> Table:
    """Where the samples of a shard lie.

    Raises:
        DataError: No tar file, one that `edgeface.data.tar` refuses, or a sample that comes twice.
    """
    keys: list[str] = []
    seen: set[str] = set()
    columns: dict[str, int] = {_PICTURE: 0, _JSON: 1}
    found: list[dict[int, tuple[int, int]]] = []
    others: dict[str, int] = defaultdict(int)
    with open_tar(path) as descriptor:
        for member in members(descriptor, path):
            key, suffix = _split(member.name)
            if not key:
                continue
            if not keys or keys[-1] != key:
                if key in seen:
                    raise _twice(path, member, "its sample began earlier in the shard")
                seen.add(key)
                keys.append(key)
                found.append({})
            name = _column(suffix)
            if not name:
                others[suffix] += 1
                continue
            column = columns.setdefault(name, len(columns))
            if column in found[-1]:
                raise _twice(path, member, "its sample has one already")
            found[-1][column] = (member.offset, member.size)
    places = np.full((len(keys), len(columns), 2), -1, np.int64)
    for row, held in enumerate(found):
        for column, place in held.items():
            places[row, column] = place
    ends = np.cumsum([0, *map(len, keys)], dtype=np.int64)
    spans = np.stack([ends[:-1], ends[1:]], axis=1)
    return Table(path=path, names="".join(keys), spans=spans, columns=columns, places=places, others=dict(others))


def _split(name: str) -> tuple[str, str]:
    """The sample that a member is of, "" for one of none, and its suffix in small letters."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem if stem and dot else "", suffix.lower()


def _column(suffix: str) -> str:
    """What members with a suffix hold, as `Table.columns` names it; "" where nothing is read of them."""
    if suffix in PICTURES:
        return _PICTURE
    known = suffix in (_JSON, _CLASS) or (suffix.endswith(f".{_CLASS}") and suffix[:-4] in TASKS)
    return suffix if known else ""


def _twice(path: Path, member: Member, why: str) -> DataError:
    return DataError(
        f"member {member.name!r} stands twice: {why}",
        expected="the members of a sample one after another, with one picture",
        where=str(path),
        do="Write the shard again with names that tell the samples apart",
    )


def describe(
    descriptor: int,
    table: Table,
    rows: Sequence[int] | NDArray[np.int64],
    *,
    tasks: Sequence[str],
    class_task: str = "",
) -> Described:
    """Reads what samples say of themselves.

    Args:
        descriptor: Of the shard, open.
        table: Where its samples lie.
        rows: Which of them.
        tasks: Tasks whose labels are wanted.
        class_task: Task that a bare `.cls` member labels.
    """
    count = len(rows)
    labels: Labels = {name: unlabelled(TASKS[name], count) for name in tasks}
    for name in tasks:
        if TASKS[name].kind is Kind.LANDMARKS:  # pixels of a picture need more digits than sides of a crop
            labels[name] = labels[name].astype(np.float64)
    groups: dict[str, list[str]] = {}
    keys, people, kept = [], [], []
    crops = np.empty((count, 3))
    broken: dict[int, DataError] = {}
    for place, row in enumerate(int(row) for row in rows):
        where = table.where(row)
        try:
            told = _told(descriptor, table, row, class_task=class_task, where=where)
            crops[place] = _crop(descriptor, table, row, told, where=where)
            for name, value in _labels(told).items():
                if name in labels and value is not None:
                    labels[name][place] = _label(TASKS[name], value, where=where)
        except DataError as error:
            broken[row] = error
            continue
        kept.append(place)
        keys.append(_words(told, "key") or f"{table.path.stem}/{table.key(row)}")
        people.append(_words(told, "person") or keys[-1])
        for name, word in _groups(told).items():
            groups.setdefault(name, []).extend([""] * (len(keys) - 1 - len(groups.get(name, ()))))
            groups[name].append(word)
    whole = len(kept) == count
    return Described(
        rows=np.asarray(rows, np.int64)[kept],
        keys=tuple(keys),
        people=tuple(people),
        crops=crops if whole else crops[kept],
        labels=labels if whole else {name: values[kept] for name, values in labels.items()},
        groups={name: (*words, *[""] * (len(keys) - len(words))) for name, words in groups.items()},
        broken=broken,
    )


def read_pictures(
    descriptor: int, table: Table, rows: Sequence[int] | NDArray[np.int64]
) -> Iterator[NDArray[np.uint8]]:
    """The (H, W, 3) RGB picture of each of these samples.

    Raises:
        DataError: One cannot be read.
    """
    for row in rows:
        yield _picture(descriptor, table, int(row))


def read_crops(
    descriptor: int,
    table: Table,
    rows: NDArray[np.int64],
    *,
    shards: Shards,
    px: int,
    margin: float,
    tasks: Sequence[str],
) -> tuple[NDArray[np.uint8], Labels]:
    """Samples as a pack holds them.

    Args:
        descriptor: Of the shard, open.
        table: Where its samples lie.
        rows: Which of them.
        shards: The set it belongs to.
        px: Side of the crops in pixels.
        margin: Side of the crops over the side of the nominal crop.
        tasks: Tasks whose labels are wanted.

    Returns:
        (n, px, px, 3) RGB, and labels with landmarks in sides of these crops.

    Raises:
        DataError: A sample cannot be read: training would otherwise go on without it, and nobody would know.
    """
    told = describe(descriptor, table, rows, tasks=tasks, class_task=shards.class_task)
    for error in told.broken.values():
        raise error
    images = np.empty((len(rows), px, px, 3), np.uint8)
    ready = shards.px == px and shards.margin == margin
    for place, picture in enumerate(read_pictures(descriptor, table, rows)):
        if ready and picture.shape == images.shape[1:]:
            images[place] = picture
            continue
        if ready:
            raise DataError(
                f"a picture of {picture.shape[1]}x{picture.shape[0]} px",
                expected=f"{px}x{px}, as the index file says of all",
                where=table.where(int(rows[place])),
                do="Write the shards again",
            )
        images[place] = crop_image(picture, told.crops[place].astype(np.float32), px=px, margin=margin)
    labels = dict(told.labels)
    # Through the nominal crop's rounded side the landmarks of a picture that is the crop would move by a rounding.
    matrices = _whole(len(rows), px) if ready else crop_matrix(told.crops, margin=margin)
    for name, values in labels.items():
        if TASKS[name].kind is Kind.LANDMARKS:
            moved: NDArray[np.float64] = apply_matrix(matrices, values)
            labels[name] = moved.astype(np.float32)
    return images, labels


def _whole(count: int, px: int) -> NDArray[np.float64]:
    """(count, 2, 3) matrices from pixels to sides of a picture of `px`."""
    matrices = np.zeros((count, 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1.0 / px
    return matrices


def encode_labels(labels: Labels, row: int, *, px: int) -> dict[str, Any]:
    """The `labels` of a packed sample's JSON, such that `read_crops` gives back the very same numbers.

    Args:
        labels: Of a pack; landmarks in sides of the packed crop.
        row: Which of its samples.
        px: Side of the crop in pixels.
    """
    told: dict[str, Any] = {}
    for name, values in labels.items():
        task, value = TASKS[name], values[row]
        if not is_labelled(task, values[row : row + 1])[0]:
            continue
        if task.kind is Kind.LANDMARKS:
            # float32 has 9 digits; a product of one with a whole number, in 12, rounds back to it.
            told[name] = [[float(f"{axis * px:.12g}") for axis in point] for point in value.astype(np.float64)]
        elif task.kind is Kind.ATTRIBUTES:
            told[name] = [int(one) if one >= 0 else None for one in value]
        elif task.kind in (Kind.AGE, Kind.SCORE):
            told[name] = [float(str(one)) for one in value] if task.kind is Kind.AGE else float(str(value))
        else:
            told[name] = int(value)
    return told


def survey(path: Path, *, class_task: str = "") -> Shards:
    """Goes through one shard; every label is read and judged, pictures only where no crop is given.

    Args:
        path: The shard.
        class_task: Task that a bare `.cls` member labels.

    Returns:
        The shard, with what is known of each task that it labels, and the samples that are left out.

    Raises:
        DataError: No tar file, or one that is refused.
    """
    table = tabulate(path)
    tasks: dict[str, Summary] = {}
    skipped: dict[str, list[str]] = defaultdict(list)
    left_out: list[int] = []
    with open_tar(path) as descriptor:
        for start in range(0, len(table), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(table)))
            told = describe(descriptor, table, rows, tasks=tuple(TASKS), class_task=class_task)
            for row, error in told.broken.items():
                left_out.append(row)
                skipped[error.found.split(":")[0]].append(f"{table.key(row)} ({path.name})")
            for name, values in told.labels.items():
                found = _summary(TASKS[name], values, told.crops)
                if found.labelled:
                    tasks[name] = tasks[name] + found if name in tasks else found
    shard = Shard(
        path=path,
        samples=len(table) - len(left_out),
        size_bytes=path.stat().st_size,
        sha256=sha256_file(path),
        left_out=tuple(left_out),
    )
    return Shards(
        source=str(path),
        split="",
        licence="",
        research_only=True,
        shards=(shard,),
        tasks=tasks,
        skipped={reason: (len(keys), tuple(keys[:NAMED])) for reason, keys in skipped.items()},
        class_task=class_task,
    )


def _summary(task: Task, values: NDArray[Any], crops: NDArray[np.float64]) -> Summary:
    if not len(values):
        return Summary()
    known = is_labelled(task, values)
    labelled = int(known.sum())
    if not labelled:
        return Summary()
    if task.kind is Kind.CLASSES:
        return Summary(labelled=labelled, counts=np.bincount(values[known], minlength=len(task.classes)))
    if task.kind is Kind.ATTRIBUTES:
        return Summary(labelled=labelled, counts=np.stack([(values == one).sum(axis=0) for one in (0, 1)], axis=1))
    if task.kind is Kind.LANDMARKS:
        matrices = crop_matrix(crops[known])
        points: NDArray[np.float64] = values[known]
        moved: NDArray[np.float64] = apply_matrix(matrices, points)
        return Summary(labelled=labelled, shape=moved.sum(axis=0))
    if task.kind is Kind.IDENTITY:
        return Summary(labelled=labelled, people=int(values.max()) + 1)
    return Summary(labelled=labelled)


def index_file(folder: Path, split: str) -> Path:
    """Where the index of a split's shards stands."""
    return folder / f"{split or 'all'}.json"


def open_shards(path: Path, *, source: str, split: str = "") -> Shards:
    """The shards of a split: by their index file, or, for shards of others, by going through them once.

    Args:
        path: A folder of shards, or one shard.
        source: The source as typed, for messages.
        split: Names the index file, a folder in `path`, or what the shards' names begin with. Without it, train where
            there is one, else all.

    Raises:
        DataError: There are none, or one that is refused, damaged or missing.
        UsageError: No such split.
    """
    if path.is_file():
        return _without_index([path], {}, source=source, split=split)
    parts = sorted(file.stem for file in path.glob("*.json"))
    if not split and index_file(path, "train").is_file():
        split = "train"
    if index_file(path, split).is_file():
        return _with_index(index_file(path, split), source=source, split=split)
    files, split = _files(path, split, source=source, indexed=parts)
    described = files[0].parent / "shards.json"
    return _without_index(files, _described(described), source=source, split=split)


def _files(path: Path, split: str, *, source: str, indexed: Sequence[str]) -> tuple[list[Path], str]:
    """The shards of a split in a folder without an index file, and the split's name."""

    def inside(folder: Path, lead: str) -> list[Path]:
        found = sorted(file for file in folder.glob(f"*{SUFFIX}") if not file.name.startswith("."))
        return [file for file in found if file.name.startswith(lead)]

    for name in (split,) if split else ("train", ""):
        for files in (inside(path / name, "") if name else [], inside(path, name)):
            if files:
                return files, name
    if not path.is_dir() or not any(path.rglob(f"*{SUFFIX}")):
        raise DataError(
            f"no shard in {str(path)!r}",
            expected=f"files *{SUFFIX}, in the folder or in one for each split",
            where=f"source {source!r}",
            do="Write some: edgeface data pack SOURCE --shards FOLDER",
        )
    raise UsageError(
        f"no split named {split!r}" if split else "no shard in the folder itself",
        expected=f"one of {', '.join(map(repr, indexed))}" if indexed else f"{split or 'SPLIT'}-000000{SUFFIX}, …",
        where=f"source {source!r}",
        do="Name a split that is there: webdataset:PATH@SPLIT",
    )


def _with_index(file: Path, *, source: str, split: str) -> Shards:
    index = read_index(file)
    for shard in index.shards:
        size = shard.path.stat().st_size if shard.path.is_file() else -1
        if size != shard.size_bytes:
            raise DataError(
                "the shard is missing" if size < 0 else f"{size:,} bytes",
                expected=f"the {shard.size_bytes:,} bytes that {file.name} states",
                where=str(shard.path),
                do="Restore it, or write the shards again with edgeface data pack … --shards",
            )
    return replace(index, source=source, split=split)


def read_index(file: Path) -> Shards:
    """What an index file says; `source` is that which the shards were packed from.

    Raises:
        DataError: It is damaged, or no index file.
    """
    try:
        told = read_json(file)
        if not isinstance(told, dict) or told.get("schema") != SCHEMA or told.get("kind") != KIND:
            raise ValueError("no index of shards, schema 1")
        shards = tuple(_shard_of(entry, file.parent) for entry in told["shards"])
        found = Shards(
            source=str(told["source"]),
            split=str(told["split"]),
            licence=str(told["licence"]),
            research_only=_bool(told["research_only"]),
            shards=shards,
            tasks={name: _summary_of(TASKS[name], entry) for name, entry in told["tasks"].items() if name in TASKS},
            skipped={
                str(reason): (_whole_number(entry["count"]), tuple(map(str, entry["keys"])))
                for reason, entry in told["skipped"].items()
            },
            px=_whole_number(told["px"]),
            margin=_finite(told["margin"]),
            corpus=str(told["corpus"]),
            class_task=str(told.get("cls", "")),
            scales={name: (_finite(low), _finite(high)) for name, (low, high) in told.get("scales", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"an index that cannot be read ({type(error).__name__}: {error})",
            expected="an index file as edgeface data pack --shards writes it",
            where=str(file),
            do="Delete it, and the shards are gone through once; or write them again",
        ) from None
    if not shards or len({shard.path for shard in shards}) != len(shards):
        raise DataError("no shard, or one twice", expected="each shard once", where=str(file), do="Write them again")
    return found


def write_index(file: Path, shards: Shards, *, key: str) -> None:
    """Write an index file aside and rename it into place.

    Args:
        file: Beside the shards.
        shards: What they hold.
        key: What they were made from, as their maker names it.
    """
    write_json(
        file,
        {
            "schema": SCHEMA,
            "kind": KIND,
            "key": key,
            "source": shards.source,
            "split": shards.split,
            "corpus": shards.corpus,
            "licence": shards.licence,
            "research_only": shards.research_only,
            "samples": len(shards),
            "px": shards.px,
            "margin": shards.margin,
            "cls": shards.class_task,
            "scales": {name: list(ends) for name, ends in shards.scales.items()},
            "shards": [_shard_as_json(shard) for shard in shards.shards],
            "tasks": {name: summary.as_json() for name, summary in shards.tasks.items()},
            "skipped": {reason: {"count": n, "keys": list(keys)} for reason, (n, keys) in shards.skipped.items()},
        },
    )


def joined(parts: Sequence[Shards]) -> Shards:
    """Parts of one split as one, in this order; what they have in common is that of the first."""
    tasks: dict[str, Summary] = {}
    skipped: dict[str, tuple[int, tuple[str, ...]]] = {}
    for part in parts:
        for name, summary in part.tasks.items():
            tasks[name] = tasks[name] + summary if name in tasks else summary
        for reason, (count, keys) in part.skipped.items():
            before, first = skipped.get(reason, (0, ()))
            skipped[reason] = (before + count, (*first, *keys)[:NAMED])
    return replace(
        parts[0], shards=tuple(shard for part in parts for shard in part.shards), tasks=tasks, skipped=skipped
    )


def _shard_of(entry: Mapping[str, Any], folder: Path) -> Shard:
    if not is_plain_name(entry["name"]):
        raise ValueError(f"a shard called {entry['name']!r}")
    return Shard(
        path=folder / entry["name"],
        samples=_whole_number(entry["samples"]),
        size_bytes=_whole_number(entry["bytes"]),
        sha256=str(entry["sha256"]),
        left_out=tuple(map(_whole_number, entry.get("left_out", ()))),
        places_sha256=str(entry.get("places", "")),
    )


def _shard_as_json(shard: Shard) -> dict[str, Any]:
    """As it stands in an index file."""
    return {
        "name": shard.path.name,
        "samples": shard.samples,
        "bytes": shard.size_bytes,
        "sha256": shard.sha256,
        **({"left_out": list(shard.left_out)} if shard.left_out else {}),
        **({"places": shard.places_sha256} if shard.places_sha256 else {}),
    }


def _summary_of(task: Task, entry: Mapping[str, Any]) -> Summary:
    counts = np.asarray(_whole_numbers(entry.get("counts", [])), np.int64)
    shape = np.asarray(entry.get("shape", []), np.float64).reshape(-1, 2)
    expected = {Kind.CLASSES: (len(task.classes),), Kind.ATTRIBUTES: (len(task.classes), 2)}.get(task.kind, (0,))
    points = task.points if task.kind is Kind.LANDMARKS else 0
    if counts.shape != expected or len(shape) != points or not np.isfinite(shape).all() or (counts < 0).any():
        raise ValueError(f"a summary of {task.name!r} with {counts.shape} counts and {len(shape)} points")
    return Summary(
        labelled=_whole_number(entry["labelled"]),
        counts=counts,
        shape=shape,
        people=_whole_number(entry.get("people", 0)),
    )


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} in the place of a whole number")
    return value


def _whole_numbers(value: Any) -> Any:
    return [_whole_numbers(part) for part in value] if isinstance(value, list) else _whole_number(value)


def _finite(value: Any) -> float:
    if not _is_number(value):
        raise ValueError(f"{value!r} in the place of a number")
    return float(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} in the place of true or false")
    return value


def _described(file: Path) -> Mapping[str, Any]:
    """What someone wrote beside shards of others: licence, research_only, cls."""
    if not file.is_file():
        return {}
    try:
        told = read_json(file, limit=limits.RECIPE_BYTES)
        if not isinstance(told, dict) or told.get("cls", "") not in ("", *TASKS):
            raise ValueError(f"an object, and 'cls' one of {', '.join(map(repr, TASKS))}")
        return {
            "licence": str(told.get("licence", "")),
            "research_only": _bool(told.get("research_only", not told.get("licence"))),
            "cls": told.get("cls", ""),
        }
    except (OSError, ValueError) as error:
        raise DataError(
            f"it cannot be read ({error})",
            expected='{"licence": "…", "research_only": false, "cls": "TASK"}',
            where=str(file),
            do="Correct or delete it",
        ) from None


def _without_index(files: Sequence[Path], told: Mapping[str, Any], *, source: str, split: str) -> Shards:
    class_task = str(told.get("cls", ""))
    whole = joined([_surveyed(file, class_task=class_task) for file in files])
    if not len(whole):
        why = next(iter(whole.skipped), "they are empty")
        raise DataError(
            f"no usable sample in {len(files)} shards ({why})",
            expected="pictures, each with a .json or a .cls beside it",
            where=f"source {source!r}",
            do="See docs/shards.md for what a sample holds",
        )
    return replace(
        whole,
        source=source,
        split=split,
        licence=str(told.get("licence") or "terms not known"),
        research_only=bool(told.get("research_only", True)),  # terms nobody stated are not leave to ship
    )


def _surveyed(file: Path, *, class_task: str) -> Shards:
    """`survey`, kept in the cache for as long as the file stays as it is."""
    stat = file.stat()
    key = sha256_json([_VERSION, str(file.resolve()), stat.st_size, stat.st_mtime_ns, class_task])
    kept = cache_folder() / SURVEYS / f"{key[:32]}.json"
    if kept.is_file():
        with contextlib.suppress(DataError):  # a damaged note is made again
            found = read_index(kept)
            return replace(found, shards=tuple(replace(shard, path=file) for shard in found.shards))
    found = survey(file, class_task=class_task)
    write_index(kept, found, key=key)
    return found


def _told(descriptor: int, table: Table, row: int, *, class_task: str, where: str) -> dict[str, Any]:
    """The JSON object of a sample, with its classes among its labels."""
    if table.places[row, 0, 1] < 0:
        raise DataError("no picture", expected=f"a member {', '.join(PICTURES)}", where=where, do="Write it again")
    told: dict[str, Any] = {}
    content = table.read(descriptor, row, _JSON)
    if content is not None:
        try:
            told = json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"JSON that cannot be read: {error}", expected="an object in UTF-8", where=where, do="Write it again"
            ) from None
        if not isinstance(told, dict):
            raise DataError(f"JSON that is no object: {type(told).__name__}", expected="an object", where=where)
    classes = {}
    for column in table.columns:
        if column.endswith(_CLASS) and (content := table.read(descriptor, row, column)) is not None:
            task = class_task if column == _CLASS else column.removesuffix(f".{_CLASS}")
            if task:
                word = content.decode("utf-8", "replace").strip()
                classes[task] = int(word) if word.isascii() and word.isdecimal() and len(word) < 9 else word
    return {**told, "labels": {**_labels(told), **classes}} if classes else told


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON")


def _labels(told: Mapping[str, Any]) -> Mapping[str, Any]:
    labels = told.get("labels", told)
    return labels if isinstance(labels, dict) else {}


def _groups(told: Mapping[str, Any]) -> Mapping[str, str]:
    groups = told.get("groups")
    return {str(name): str(word) for name, word in groups.items()} if isinstance(groups, dict) else {}


def _words(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name, "")
    return str(value)[: limits.LABEL_NAME] if isinstance(value, (str, int)) else ""


def _is_number(value: Any) -> bool:
    """Whether JSON gave a number to reckon with: to Python true is one, 1e999 infinite, and whole ones have no end."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**53)


def _numbers(value: Any, count: int, *, name: str, where: str) -> list[float]:
    fine = isinstance(value, list) and len(value) == count
    if not fine or not all(map(_is_number, value)):
        raise DataError(f"wrong {name}: {str(value)[:60]!r}", expected=f"{count} numbers", where=where)
    return value  # type: ignore[no-any-return]


def _crop(descriptor: int, table: Table, row: int, told: Mapping[str, Any], *, where: str) -> tuple[float, ...]:
    if told.get("crop") is not None:
        x, y, side = _numbers(told["crop"], 3, name="crop", where=where)
    elif told.get("box") is not None:
        left, top, width, height = _numbers(told["box"], 4, name="box", where=where)
        x, y, side = left + width / 2, top + height / 2, max(width, height) if min(width, height) > 0 else 0.0
    else:
        tall, wide = _picture(descriptor, table, row).shape[:2]
        x, y, side = wide / 2, tall / 2, float(min(wide, tall))
    if not (side > 0 and max(abs(x), abs(y), side) < 1e6):
        raise DataError(f"wrong crop: ({x:g}, {y:g}) of side {side:g}", expected="a square with a size", where=where)
    return x, y, side


def _picture(descriptor: int, table: Table, row: int) -> NDArray[np.uint8]:
    content = table.read(descriptor, row, _PICTURE)
    assert content is not None, "samples without a picture are left out"
    return decode_image(content, where=table.where(row))


def _label(task: Task, value: Any, *, where: str) -> Any:
    """One sample's label in the form of tasks.py."""
    if task.kind is Kind.LANDMARKS:
        if not isinstance(value, list) or len(value) != task.points:
            raise DataError(f"wrong {task.name}: {str(value)[:60]!r}", expected=f"{task.points} points", where=where)
        return [_numbers(point, 2, name=task.name, where=where) for point in value]
    if task.kind is Kind.ATTRIBUTES:
        return _attributes(task, value, where=where)
    if task.kind is Kind.CLASSES and isinstance(value, str) and value in task.classes:
        return task.classes.index(value)
    if task.kind is Kind.AGE:
        return _age(value, where=where)
    if task.kind is Kind.SCORE:
        if _is_number(value) and 0 <= value <= 1:
            return value
        raise DataError(f"wrong {task.name}: {str(value)[:60]!r}", expected="a number from 0 to 1", where=where)
    most = len(task.classes) if task.kind is Kind.CLASSES else 2**40
    if type(value) is int and 0 <= value < most:
        return value
    expected = f"one of {', '.join(map(repr, task.classes))}, or its index" if task.classes else "a person's number"
    raise DataError(f"wrong {task.name}: {str(value)[:60]!r}", expected=expected, where=where)


def _attributes(task: Task, value: Any, *, where: str) -> list[int]:
    if isinstance(value, dict) and set(value) <= set(task.classes):
        value = [value.get(name) for name in task.classes]
    fine = isinstance(value, list) and len(value) == len(task.classes)
    if not fine or not all(one is None or (type(one) is int and one in (0, 1)) for one in value):
        raise DataError(
            f"wrong {task.name}: {str(value)[:60]!r}", expected=f"{len(task.classes)} of 0, 1, null", where=where
        )
    return [-1 if one is None else one for one in value]


def _age(value: Any, *, where: str) -> tuple[float, float]:
    ends = value if isinstance(value, list) else [value, value]
    if isinstance(value, str):
        low, dash, high = value.partition("-")
        words = (low, high if dash else low)
        ends = [float(word) if word.isascii() and word.isdecimal() and len(word) < 4 else None for word in words]
    fine = len(ends) == 2 and all(map(_is_number, ends))
    if not fine or not 0 <= ends[0] <= ends[1] <= 150:
        raise DataError(f"wrong age: {str(value)[:60]!r}", expected="years from 0 to 150, or a bin", where=where)
    return ends[0], ends[1]
