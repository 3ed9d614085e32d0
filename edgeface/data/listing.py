"""From a corpus's labels, a table, a list or files beside the pictures, to a `Corpus`: what the readers share."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.data.corpus import Corpus, is_validation, unlabelled
from edgeface.data.images import MISSING, read_image, read_size
from edgeface.errors import DataError, UsageError
from edgeface.files import read_limited
from edgeface.tasks import TASKS

REPAIR = "Correct the row, or read without --strict to leave it out"

# Parts of a published training list, for corpora that publish a validation list of their own: all of it; without the
# tenth that a hash of the person chooses; and that tenth, to choose by without looking at the published lists.
TRAIN_PARTS = ("train", "fit", "dev")

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


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
        broken: What is wrong with the line as a whole, such as "short line: 3 fields"; "" when nothing is.
    """

    where: str
    cells: Mapping[str, str]
    broken: str = ""

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

    def numbers(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """Finite numbers of several columns.

        Raises:
            DataError: A cell holds none.
        """
        for column in columns:
            try:
                finite = np.isfinite(float(self.cells[column]))
            except ValueError:
                finite = False
            if not finite:
                raise self.fault(f"wrong {column}: {self.cells[column]!r}", expected="a finite number")
        return np.array([float(self.cells[column]) for column in columns])

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
        key: The picture's path inside the corpus; where a picture holds several faces, with "#" and a mark of the face.
        crop: Centre x and side over the picture's width, centre y over its height: (x, y, side). In pixels: all three.
        labels: Task to label in the form of tasks.py; landmarks over the picture's width and height, or in pixels. A
            task that is absent is unlabelled; identity follows from the person.
        groups: Subgroup column to value.
        person: Who it is; "" where the corpus does not say.
        file: The picture's path inside the corpus where it is not the key.
        unit: What crop and landmarks are measured in, "picture" or "pixel".
    """

    key: str
    crop: tuple[float, float, float]
    labels: Mapping[str, Any]
    groups: Mapping[str, str] = field(default_factory=dict)
    person: str = ""
    file: str = ""
    unit: str = "picture"


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


def fold_splits(folds: int) -> tuple[str, ...]:
    """Names of the splits of a cross-validation: "fold1-train", "fold1-fit", "fold1-dev", "fold1-test" and so on."""
    return tuple(f"fold{fold}-{part}" for fold in range(1, folds + 1) for part in (*TRAIN_PARTS, "test"))


def fold_and_part(split: str) -> tuple[int, str]:
    """Fold, from 1, and part of a split of `fold_splits`; fold 0 and the split itself of any other."""
    fold, dash, part = split.removeprefix("fold").partition("-")
    return (int(fold), part) if split.startswith("fold") and dash and fold.isdecimal() else (0, split)


def people_folds(people: Iterable[str], *, folds: int = 10) -> dict[str, int]:
    """Fold of each person, from 1: people in the order of their names, every tenth into one fold.

    Source:
        The subject-independent folds of CK+ and Oulu-CASIA: Liu, Li, Shan, Chen, AU-aware Deep Networks for Facial
        Expression Recognition, FG 2013, which sorts by subject and samples with a step of ten.
    """
    return {person: 1 + place % folds for place, person in enumerate(sorted(set(people)))}


def in_fold(person: str, split: str, folds: Mapping[str, int]) -> bool:
    """Whether a person's faces are in a split of `fold_splits`, or in one of TRAIN_PARTS of everybody."""
    fold, part = fold_and_part(split)
    if part == "test":
        return folds[person] == fold
    return folds[person] != fold and in_part(person, part)


def first_there(path: Path, places: Sequence[str]) -> Path:
    """The first of some places inside a corpus that is there; the first of all where none is."""
    found = [path / place for place in places if (path / place).exists()]
    return found[0] if found else path / places[0]


def read_table(listing: Path, columns: Sequence[str], *, source: str, layout: str) -> Iterator[Row]:
    """Rows of a CSV file with a first line of column names; columns beside `columns` are kept and need no meaning.

    Rows are read as they are asked for: of FER2013's, which hold the pictures, few fit into memory beside others.

    Args:
        listing: The file.
        columns: The columns it must have.
        source: The source as typed, for messages.
        layout: What the corpus's folder holds, for messages.

    Raises:
        DataError: The file is missing, is no text, or lacks a column.
    """
    reader = csv.reader(table_lines(listing), skipinitialspace=True)

    def cells_of() -> Iterator[list[str]]:
        try:
            yield from reader
        except (OSError, ValueError, csv.Error) as error:
            raise _unread(listing, error, source=source, layout=layout, expected="a UTF-8 CSV file") from None

    lines = cells_of()
    names = [name.strip() for name in next(lines, [])]
    absent = [name for name in columns if name not in names]
    if absent:
        raise DataError(
            f"no column {absent[0]!r} among {names}",
            expected=f"the columns {', '.join(columns)}",
            where=f"{listing}:1",
            do="Use the corpus as published",
        )
    return (
        Row(
            where=f"{listing}:{reader.line_num}",
            cells=dict(zip(names, [*map(str.strip, cells), *[""] * (len(names) - len(cells))], strict=False)),
        )
        for cells in lines
        if cells
    )


def read_lines(listing: Path, columns: Sequence[str], *, source: str, layout: str, skip: int = 0) -> Iterator[Row]:
    """Rows of a list without column names, its fields parted by blanks or tabs. A line with more or fewer is broken.

    They are made as they are asked for.

    Args:
        listing: The file.
        columns: Names for the fields of a line.
        source: The source as typed, for messages.
        layout: What the corpus's folder holds, for messages.
        skip: Lines at the top that are no rows.

    Raises:
        DataError: The file is missing or is no text.
    """
    lines = _text(listing, source=source, layout=layout).splitlines()

    def row(number: int, words: list[str]) -> Row:
        kind = "short" if len(words) < len(columns) else "long"
        return Row(
            where=f"{listing}:{number}",
            cells=dict(zip(columns, words, strict=False)),
            broken="" if len(words) == len(columns) else f"{kind} line: {len(words)} fields, not {len(columns)}",
        )

    return (row(number, line.split()) for number, line in enumerate(lines, start=1) if number > skip and line.strip())


def table_lines(listing: Path) -> Iterator[str]:
    """Lines of a table with their ends, as csv wants them, within limits.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no plain UTF-8 file, or it or one of its lines is larger than `limits` allows.
    """
    if listing.exists() and not listing.is_file():
        raise ValueError("not a plain file")
    with listing.open(newline="", encoding="utf-8-sig") as file:
        if (size := listing.stat().st_size) > limits.LABEL_BYTES:
            raise ValueError(f"{size:,} bytes, where at most {limits.LABEL_BYTES:,} are read")
        number = 0
        while line := file.readline(limits.LABEL_LINE + 1):
            number += 1
            if len(line) > limits.LABEL_LINE:
                raise ValueError(f"line {number} is longer than {limits.LABEL_LINE:,} characters")
            yield line


def leads_out(name: str) -> str:
    """What is wrong with a path that a list gives for a picture inside its folder; "" when nothing is."""
    path = PurePosixPath(name.replace("\\", "/"))
    if len(name) > limits.LABEL_NAME:
        return f"path too long: {len(name):,} characters"
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0][1:2] == ":"):
        return f"path out of the folder: {name!r}"
    return f"wrong path: {name!r}" if "\0" in name else ""


def read_files(path: Path, pattern: str, *, source: str, layout: str) -> list[Row]:
    """A row for each file of a pattern, in the order of their names; its column "file" is the path inside `path`.

    Raises:
        DataError: There is no such file.
    """
    files = sorted(file for file in path.glob(pattern) if not file.name.startswith("."))
    if not files:
        raise DataError(
            f"no file {pattern!r} in {path}", expected=layout, where=source, do="Use the corpus as published"
        )
    return [Row(where=str(file), cells={"file": file.relative_to(path).as_posix()}) for file in files]


def picture_beside(file: Path) -> Path:
    """The picture of the same name as a label file; `file` with .jpg where there is none.

    Names are compared without case: published copies hold .JPG beside .jpg.
    """
    for suffix in _PICTURE_SUFFIXES:
        for spelled in (suffix, suffix.upper()):
            if (picture := file.with_name(file.stem + spelled)).is_file():
                return picture
    return file.with_name(file.stem + _PICTURE_SUFFIXES[0])


def _text(listing: Path, *, source: str, layout: str) -> str:
    try:
        return read_limited(listing, limit=limits.LABEL_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise _unread(listing, error, source=source, layout=layout, expected="a UTF-8 text file") from None


def _unread(listing: Path, error: Exception, *, source: str, layout: str, expected: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"{listing} is missing",
            expected=layout,
            where=source,
            do="Set EDGEFACE_DATA to the folder that holds the corpora, or type this one's path: CORPUS:PATH",
        )
    return DataError(f"{listing} cannot be read ({error})", expected=expected, where=source)


def gather(
    path: Path,
    rows: Iterable[Row],
    parse: Callable[[Row], Face | LeftOut | None],
    *,
    terms: Terms,
    tasks: Sequence[str],
    source: str,
    split: str,
    strict: bool,
    size_of: Callable[[Path], tuple[int, int]] = read_size,
    embedded: Mapping[str, NDArray[np.uint8]] | None = None,
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
        embedded: Key to (H, W, 3) RGB picture, of a corpus that keeps its pictures in the table; `parse` may fill it.

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
            if row.broken:
                raise row.fault(row.broken, expected="the fields of the published list")
            face = parse(row)
            if face is None:
                continue
            if isinstance(face, LeftOut):
                skipped[face.reason].append(f"{face.key or '?'} ({_short(row.where)})")
                continue
            if wrong := leads_out(face.file or face.key):
                raise row.fault(wrong, expected="a path inside the corpus")
            if not (np.isfinite(face.crop).all() and face.crop[2] > 0):
                raise row.fault(f"no extent: a crop at {face.crop}", expected="landmarks or a box that span a face")
            if face.key in taken:
                raise row.fault(f"named twice: {face.key!r}", expected="each picture once")
            width, height, stamp = _stamp(path / (face.file or face.key), face.key, size_of, embedded, row=row)
        except DataError as error:
            if strict:
                raise
            skipped[error.found.split(":")[0]].append(f"{_named(row)} ({_short(row.where)})")
            continue
        digest.update(f"{face.key} {stamp}\n".encode())
        taken.add(face.key)
        faces.append(face)
        sizes.append((width, height))
        x, y, side = face.crop
        crops.append((x, y, side) if face.unit == "pixel" else (x * width, y * height, side * width))
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
            scaled = TASKS[name].points and face.unit == "picture"
            labels[name][place] = label * np.asarray(size) if scaled else label
    if "identity" in tasks:
        place_of = {person: place for place, person in enumerate(sorted({face.person for face in faces} - {""}))}
        labels["identity"][:] = [place_of.get(face.person, -1) for face in faces]
    files = [path / (face.file or face.key) for face in faces]
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
        load=lambda index: read_image(files[index]) if embedded is None else embedded[keys[index]],
        fingerprint=digest.hexdigest(),
        scales=terms.scales,
    )


def _named(row: Row) -> str:
    """The file that a row names; "?" where it names none."""
    pictures = [text for text in row.cells.values() if text.lower().endswith(_PICTURE_SUFFIXES)]
    return next(iter(pictures), next((text for text in row.cells.values() if "." in text), "?"))


def _short(where: str) -> str:
    return where.rpartition("/")[2]


def _stamp(
    file: Path,
    key: str,
    size_of: Callable[[Path], tuple[int, int]],
    embedded: Mapping[str, NDArray[np.uint8]] | None,
    *,
    row: Row,
) -> tuple[int, int, str]:
    """Width and height of a picture, and what changes when it does."""
    if embedded is not None:
        picture = embedded[key]
        return picture.shape[1], picture.shape[0], hashlib.sha256(picture.tobytes()).hexdigest()
    try:
        width, height = size_of(file)
    except DataError as error:
        reason = "missing picture" if error.found == MISSING else "unreadable picture"
        raise row.fault(f"{reason}: {file.name!r} ({error.found})", expected=error.expected) from None
    stat = file.stat()
    return width, height, f"{stat.st_size} {stat.st_mtime_ns}"
