"""From a corpus's label table, one picture a row, to a `Corpus`: what the readers of such tables share."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.data.corpus import Corpus, is_validation, unlabelled
from edgeface.data.images import read_image, read_size
from edgeface.errors import DataError, UsageError
from edgeface.tasks import TASKS

REPAIR = "Correct the row, or read without --strict to leave it out"

# Parts of a published training list, for corpora that publish a validation list of their own: all of it; without the
# tenth that a hash of the person chooses; and that tenth, to choose by without looking at the published lists.
TRAIN_PARTS = ("train", "fit", "dev")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a corpus is called and allowed for.

    Attributes:
        name: The reader's name.
        version: Raised when the reader gives other labels or crops for the same files.
        licence: Terms in a few words.
        research_only: True when weights trained on it may not be shipped.
        scales: Score task to the corpus's own values that 0 and 1 stand for.
    """

    name: str
    version: int
    licence: str
    research_only: bool
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        where: File and line, for messages.
        cells: Column to text, without surrounding blanks.
    """

    where: str
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def path(self, column: str) -> str:
        """A path inside the corpus, with slashes whichever way the table has them.

        Raises:
            DataError: The cell is empty.
        """
        text = self.cells[column].replace("\\", "/").removeprefix("./")
        if not text:
            raise self.fault("no file name", expected="a path inside the corpus")
        return text

    def number(self, column: str, low: float, high: float) -> float:
        """A number within limits.

        Raises:
            DataError: The cell holds none.
        """
        text = self.cells[column]
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise self.fault(f"wrong {column}: {text!r}", expected=f"a number from {low:g} to {high:g}")
        return value

    def one_of(self, column: str, names: Sequence[str]) -> str:
        """One of some words.

        Raises:
            DataError: The cell holds another.
        """
        text = self.cells[column]
        if text not in names:
            raise self.fault(f"wrong {column}: {text!r}", expected=f"one of {', '.join(map(repr, names))}")
        return text

    def fault(self, found: str, *, expected: str) -> DataError:
        return DataError(found, expected=expected, where=self.where, do=REPAIR)


@dataclass(frozen=True, kw_only=True)
class Face:
    """What one row says.

    Attributes:
        key: The picture's path inside the corpus.
        crop: Centre x and side over the picture's width, centre y over its height: (x, y, side).
        labels: Task to label in the form of tasks.py; landmarks over the picture's width and height. A task that is
            absent is unlabelled.
        groups: Subgroup column to value.
        person: Who it is; "" where the corpus does not say.
    """

    key: str
    crop: tuple[float, float, float]
    labels: Mapping[str, Any]
    groups: Mapping[str, str] = field(default_factory=dict)
    person: str = ""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A row that is no fault, but that the corpus's protocol does not use."""

    key: str
    reason: str


def check_split(split: str, splits: Sequence[str], *, source: str, why: str = "") -> None:
    """Raises UsageError when a corpus has no such split; `why` says what to do instead."""
    if split not in splits:
        raise UsageError(f"split {split!r}", expected=f"one of {', '.join(map(repr, splits))}", where=source, do=why)


def in_part(key: str, part: str) -> bool:
    """Whether a face of the training list is in one of TRAIN_PARTS."""
    return part == "train" or is_validation(key) == (part == "dev")


def read_table(listing: Path, columns: Sequence[str], *, source: str, layout: str) -> list[Row]:
    """Rows of a CSV file with a first line of column names; columns beside `columns` are kept and need no meaning.

    Args:
        listing: The file.
        columns: The columns it must have.
        source: The source as typed, for messages.
        layout: What the corpus's folder holds, for messages.

    Raises:
        DataError: The file is missing, is no text, or lacks a column.
    """
    try:
        with listing.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            names = [name.strip() for name in next(reader, [])]
            rows = []
            for cells in reader:
                if cells:
                    padded = [*map(str.strip, cells), *[""] * (len(names) - len(cells))]
                    rows.append(Row(where=f"{listing}:{reader.line_num}", cells=dict(zip(names, padded, strict=False))))
    except FileNotFoundError:
        raise DataError(
            f"{listing} is missing",
            expected=layout,
            where=source,
            do="Set EDGEFACE_DATA to the folder that holds the corpora, or type this one's path: CORPUS:PATH",
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{listing} cannot be read ({error})", expected="a UTF-8 CSV file", where=source) from None
    absent = [name for name in columns if name not in names]
    if absent:
        raise DataError(
            f"no column {absent[0]!r} among {names}",
            expected=f"the columns {', '.join(columns)}",
            where=f"{listing}:1",
            do="Use the corpus as published",
        )
    return rows


def gather(
    path: Path,
    rows: Sequence[Row],
    parse: Callable[[Row], Face | LeftOut | None],
    *,
    terms: Terms,
    tasks: Sequence[str],
    source: str,
    split: str,
    strict: bool,
    size_of: Callable[[Path], tuple[int, int]] = read_size,
) -> Corpus:
    """Puts the faces of a table together.

    Args:
        path: The corpus's folder.
        rows: The table.
        parse: A row to what it says; None where it is of another split. Raises DataError at a fault.
        terms: The corpus's name and terms.
        tasks: The tasks it has labels for.
        source: The source as typed.
        split: The split.
        strict: Raise at the first faulty row or missing picture instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: No usable row; with `strict`, any fault.
    """
    faces: list[Face] = []
    crops: list[tuple[float, float, float]] = []
    sizes: list[tuple[int, int]] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    taken: set[str] = set()
    digest = hashlib.sha256(f"{terms.name} {terms.version}".encode())
    for row in rows:
        try:
            face = parse(row)
            if face is None:
                continue
            if isinstance(face, LeftOut):
                skipped[face.reason].append(f"{face.key or '?'} ({_short(row.where)})")
                continue
            if face.key in taken:
                raise row.fault(f"named twice: {face.key!r}", expected="each picture once")
            width, height = _size(path / face.key, size_of, row=row)
        except DataError as error:
            if strict:
                raise
            named = next((text for text in row.cells.values() if "." in text), "?")
            skipped[error.found.split(":")[0]].append(f"{named} ({_short(row.where)})")
            continue
        stat = (path / face.key).stat()
        digest.update(f"{face.key} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        taken.add(face.key)
        faces.append(face)
        sizes.append((width, height))
        x, y, side = face.crop
        crops.append((x * width, y * height, side * width))
    if not faces:
        first = f" (first left out: {next(iter(skipped))})" if skipped else ""
        raise DataError(
            f"no usable face of @{split}{first}",
            expected="at least one",
            where=source,
            do="Read another split, or complete this copy of the corpus",
        )
    labels = {name: unlabelled(TASKS[name], len(faces)) for name in tasks}
    for place, (face, size) in enumerate(zip(faces, sizes, strict=True)):
        for name, label in face.labels.items():
            labels[name][place] = label * np.asarray(size) if TASKS[name].points else label
    keys = tuple(face.key for face in faces)
    columns = sorted({name for face in faces for name in face.groups})
    return Corpus(
        name=terms.name,
        source=source,
        split=split,
        licence=terms.licence,
        research_only=terms.research_only,
        keys=keys,
        people=tuple(face.person or face.key for face in faces),
        crops=np.asarray(crops, dtype=np.float32),
        labels=labels,
        groups={name: np.asarray([face.groups.get(name, "") for face in faces]) for name in columns},
        skipped={reason: tuple(where) for reason, where in skipped.items()},
        load=lambda index: read_image(path / keys[index]),
        fingerprint=digest.hexdigest(),
        scales=terms.scales,
    )


def _short(where: str) -> str:
    return where.rpartition("/")[2]


def _size(file: Path, size_of: Callable[[Path], tuple[int, int]], *, row: Row) -> tuple[int, int]:
    try:
        return size_of(file)
    except DataError as error:
        reason = "unreadable picture" if file.is_file() else "missing picture"
        raise row.fault(f"{reason}: {file.name!r} ({error.found})", expected=error.expected) from None
