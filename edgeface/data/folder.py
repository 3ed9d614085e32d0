"""Your own pictures: a folder with a metadata.csv, as the Hugging Face `imagefolder` convention lays it out.

`metadata.csv` stands beside the pictures, or in `PATH/SPLIT/` for each split. One face a row, one column for each thing
known about it; an empty cell is no label. Columns:

    file_name            path of the picture inside the folder (required; several rows may name one picture, each for a
                         face of its own: a row of the same picture, crop and labels as an earlier one is a fault)
    a class task         such as gender, smile, pose: the class's name or its index
    age                  years, `31`, or a bin, `20-29`
    beauty_score         0 to 1
    identity             any text, one for each person
    attributes_NAME      0 or 1, such as attributes_acne
    eyeglasses           0 or 1, with dark_glasses beside it: the two become glasses3 (none, eyeglasses, dark)
    landmarks5_x1 …      landmarksK_x1, landmarksK_y1 … landmarksK_xK, landmarksK_yK in pixels of the picture; a file
                         with one landmark set may call them x1, y1 … xK, yK
    x, y, w, h           box of the face in pixels: left, top, width, height. The crop is the square about its centre
                         with its longer side. Without a box it is the largest centred square of the picture
    person               who it is, so that validation holds other people than training; else identity, else the file
    split                train, val (or validation), test
    group_NAME           a subgroup to report by, such as group_skin

Pixels count from the outer corner of the first pixel, after the picture's Exif orientation is applied.

`terms.toml` in PATH, where there is one, says what the pictures may be used for, and every network that learns from
them carries it: `licence`, a few words; `research_only`, true where weights trained on them may not be shipped. Without
the file the pictures count as yours.
"""

from __future__ import annotations

import csv
import hashlib
import math
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.data.corpus import Corpus, Labels, is_validation, unlabelled
from edgeface.data.derive import merge_glasses
from edgeface.data.images import MISSING, read_image, read_size
from edgeface.data.listing import leads_out, table_lines
from edgeface.errors import DataError, UsageError, did_you_mean
from edgeface.files import read_limited
from edgeface.tasks import TASKS, Kind, Task

VERSION = 1
METADATA = "metadata.csv"
TERMS = "terms.toml"
SPLITS = ("train", "val", "test")
BOX = ("x", "y", "w", "h")
GLASSES = ("eyeglasses", "dark_glasses")

_POINT_SETS = tuple(task for task in TASKS.values() if task.kind is Kind.LANDMARKS)
_REPAIR = "Correct the row, or read without --strict to leave it out"


def read(
    path: Path,
    *,
    source: str,
    split: str = "",
    strict: bool = False,
    size_of: Callable[[Path], tuple[int, int]] = read_size,
) -> Corpus:
    """Reads a folder.

    Args:
        path: The folder.
        source: The source as typed, for messages.
        split: "train", "val", "test", or "" for every row. Without a row marked val, val is the tenth of the people of
            train (of all rows, without a split column) that a hash of their name chooses, and train is the rest.
        strict: Raise at the first bad row instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: No metadata.csv, a column nobody knows, no usable row, terms that cannot be read; with `strict`, any
            bad row or picture.
        UsageError: No such split.
    """
    if split and split not in SPLITS:
        raise UsageError(f"split {split!r}", expected=f"one of {', '.join(map(repr, SPLITS))}", where=source)
    licence, research_only = _terms(path / TERMS)
    folder = path / split if split and (path / split / METADATA).is_file() else path
    listing = folder / METADATA
    if not listing.is_file() and not split:
        _refuse_parts(path, source)
    columns, rows = _read_rows(listing, source)
    points = _point_columns(columns)
    _check_columns(columns, points, listing)
    if folder == path:
        rows = _of_split(rows, columns, split, listing)

    tasks = [task for task in TASKS.values() if _columns_of(task, columns, points)]
    labels: Labels = {task.name: unlabelled(task, len(rows)) for task in tasks if task.kind is not Kind.IDENTITY}
    identities = sorted({row.get("identity") for row in rows} - {""})
    if "identity" in columns:
        labels["identity"] = unlabelled(TASKS["identity"], len(rows))
    group_columns = [name for name in columns if name.startswith("group_")]

    digest = hashlib.sha256(f"folder {VERSION}".encode())
    sizes: dict[str, tuple[int, int]] = {}
    skipped: dict[str, list[str]] = defaultdict(list)
    faces: Counter[str] = Counter()
    taken: set[tuple[object, ...]] = set()
    keys, people, files = [], [], []
    crops: list[tuple[float, float, float]] = []
    kept: list[int] = []
    for place, row in enumerate(rows):
        where = f"{listing}:{row.line}"
        name = row.get("file_name")
        try:
            _check_width(row, columns, where=where)
            file = folder / name
            if name not in sizes:
                sizes[name] = _size(file, size_of, name=name, where=where)
                stat = file.stat()
                digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
            crop = _crop(row, sizes[name], columns, where=where)
            for task in tasks:
                if task.kind is not Kind.IDENTITY:
                    labels[task.name][place] = _label(task, row, points, where=where)
            if row.get("identity"):
                labels["identity"][place] = identities.index(row["identity"])
            # A face that is named twice would count twice in every mean; two faces of one picture differ in something.
            face = (Path(name), crop, *(values[place].tobytes() for values in labels.values()))
            if face in taken:
                raise DataError(
                    f"named twice: {name!r} with the same crop and labels",
                    expected="each face once; of two faces of a picture each in a box of its own",
                    where=where,
                    do=_REPAIR,
                )
            taken.add(face)
        except DataError as error:
            if strict:
                raise
            skipped[error.found.split(":")[0]].append(f"{name or '?'} ({METADATA}:{row.line})")
            continue
        faces[name] += 1
        keys.append(name if faces[name] == 1 else f"{name}#{faces[name]}")
        people.append(row.person)
        files.append(file)
        crops.append(crop)
        kept.append(place)
    if not kept:
        raise DataError(
            f"no usable row in {listing}" + (f" (first skipped: {next(iter(skipped))})" if skipped else ""),
            expected="at least one",
            where=source,
            do="Read again with --strict to see the first fault",
        )
    return Corpus(
        name="folder",
        source=source,
        split=split,
        licence=licence,
        research_only=research_only,
        keys=tuple(keys),
        people=tuple(people),
        crops=np.asarray(crops, dtype=np.float32),
        labels={name: values[kept] for name, values in labels.items()},
        groups={
            name.removeprefix("group_"): np.asarray([rows[place][name] for place in kept]) for name in group_columns
        },
        skipped={reason: tuple(where) for reason, where in skipped.items()},
        load=lambda index: read_image(files[index]),
        fingerprint=digest.hexdigest(),
    )


def _refuse_parts(path: Path, source: str) -> None:
    """Raises DataError where the splits lie in folders of their own and none is named."""
    parts = [split for split in SPLITS if (path / split / METADATA).is_file()]
    if parts:
        raise DataError(
            f"no {METADATA} in {path}, but one in {', '.join(f'{part}/' for part in parts)}",
            expected="the name of a split, as each lies in a folder of its own",
            where=source,
            do=f"Read {source}@{parts[0]}",
        )


def _terms(file: Path) -> tuple[str, bool]:
    """Licence, and whether it is for research only."""
    if not file.exists():
        return "yours", False
    try:
        found = tomllib.loads(read_limited(file, limit=limits.MANIFEST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({error})", expected="a TOML file", where=str(file)) from None
    licence, research_only = found.get("licence"), found.get("research_only")
    if set(found) != {"licence", "research_only"} or not isinstance(licence, str) or not licence.strip():
        wrong = f"the keys {', '.join(sorted(found)) or 'none'}"
    elif not isinstance(research_only, bool):
        wrong = f"research_only = {research_only!r}"
    else:
        return " ".join(licence.split()), research_only
    # Terms that are misread are worse than none: they would let weights out that must not go.
    raise DataError(
        wrong,
        expected='licence = "a few words" and research_only = true or false',
        where=str(file),
        do="Correct it, or delete it where the pictures are yours",
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line: its number, how many fields it has, and the text of each column."""

    line: int
    fields: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        return self.cells.get(column, "")

    @property
    def person(self) -> str:
        return self.get("person") or self.get("identity") or self.get("file_name")


def _read_rows(listing: Path, source: str) -> tuple[list[str], list[_Row]]:
    """Column names and rows."""
    try:
        reader = csv.reader(table_lines(listing), skipinitialspace=True)
        columns = [name.strip() for name in next(reader, [])]
        rows = [
            _Row(
                line=reader.line_num,
                fields=len(fields),
                cells=dict(zip(columns, map(str.strip, fields), strict=False)),
            )
            for fields in reader
            if fields
        ]
    except FileNotFoundError:
        raise DataError(
            f"{listing} is missing",
            expected="a folder of pictures with a metadata.csv",
            where=source,
            do="Write one: a file_name column, and one column for each task",
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{listing} cannot be read ({error})", expected="a UTF-8 CSV file", where=source) from None
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if "file_name" not in columns or twice:
        raise DataError(
            f"column {twice[0]!r} twice" if twice else f"no 'file_name' among {columns}",
            expected="one 'file_name' column, and each column once",
            where=f"{listing}:1",
            do="Correct the first line",
        )
    return columns, rows


def _point_columns(columns: list[str]) -> dict[str, str]:
    """Landmark task to the prefix of its columns: `landmarks5_`, or "" for bare x1, y1, …"""
    present = set(columns)
    prefixes = {task.name: f"{task.name}_" for task in _POINT_SETS if f"{task.name}_x1" in present}
    bare = {name for name in present if name[:1] in ("x", "y") and name[1:].isdigit()}
    for task in _POINT_SETS:
        if bare == set(_point_names(task, "")) and task.name not in prefixes:
            prefixes[task.name] = ""
    return prefixes


def _point_names(task: Task, prefix: str) -> list[str]:
    return [f"{prefix}{axis}{point}" for point in range(1, task.points + 1) for axis in "xy"]


def _columns_of(task: Task, columns: list[str], points: Mapping[str, str]) -> list[str]:
    """The columns of the file that hold this task."""
    if task.kind is Kind.LANDMARKS:
        return _point_names(task, points[task.name]) if task.name in points else []
    if task.kind is Kind.ATTRIBUTES:
        return [name for name in columns if name in {f"{task.name}_{part}" for part in task.classes}]
    if task.name == "glasses3" and not set(GLASSES).isdisjoint(columns):
        return [*GLASSES, *(["glasses3"] if "glasses3" in columns else [])]
    return [task.name] if task.name in columns else []


def _check_columns(columns: list[str], points: Mapping[str, str], listing: Path) -> None:
    known = {"file_name", "person", "split", *BOX}
    for task in TASKS.values():
        known.update(_columns_of(task, columns, points))
    absent = [name for task in TASKS.values() for name in _columns_of(task, columns, points) if name not in columns] + (
        [name for name in BOX if name not in columns] if any(name in columns for name in BOX) else []
    )
    if absent:
        raise DataError(
            f"no column {absent[0]!r}",
            expected="every point of a landmark set, all of x, y, w, h, both of eyeglasses and dark_glasses",
            where=f"{listing}:1",
            do="Complete the columns, or drop the set",
        )
    for name in columns:
        if name in known or name.startswith("group_"):
            continue
        spelled = [*TASKS, *known, *(f"attributes_{part}" for part in TASKS["attributes"].classes)]
        raise DataError(
            f"an unknown column {name!r}",
            expected="file_name, tasks, landmarks, x, y, w, h, person, split or group_NAME",
            where=f"{listing}:1",
            do=did_you_mean(name, spelled) or f"Drop it, or call it 'group_{name}' to report by it",
        )


def _of_split(rows: list[_Row], columns: list[str], split: str, listing: Path) -> list[_Row]:
    if not split:
        return rows
    names = [{"validation": "val"}.get(row.get("split"), row.get("split")) for row in rows]
    for row, name in zip(rows, names, strict=True):
        if name and name not in SPLITS:
            raise DataError(
                f"split {name!r}",
                expected=f"one of {', '.join(map(repr, SPLITS))}",
                where=f"{listing}:{row.line}",
                do="Correct it",
            )
    if "split" not in columns:
        names = ["train"] * len(rows)
    held_out = "val" not in names
    if held_out:
        names = [
            "val" if name == "train" and is_validation(row.person) else name
            for row, name in zip(rows, names, strict=True)
        ]
    chosen = [row for row, name in zip(rows, names, strict=True) if name == split]
    if rows and not chosen:
        people = len({row.person for row in rows})
        raise DataError(
            f"no row of @{split}",
            expected=", ".join(f"@{name} ({count} rows)" for name, count in Counter(names).items() if name),
            where=f"{listing}:1",
            do=(
                f"No row is marked 'val', and the hash that holds out a tenth of the people chose none of {people}: "
                "mark some in a column 'split'"
                if split == "val" and held_out
                else f"Mark some rows {split!r} in the column 'split', or read another split"
            ),
        )
    return chosen


def _check_width(row: _Row, columns: list[str], *, where: str) -> None:
    if row.fields != len(columns):
        raise DataError(
            f"{'long' if row.fields > len(columns) else 'short'} line: {row.fields} fields",
            expected=f"{len(columns)} fields",
            where=where,
            do=_REPAIR,
        )


def _size(file: Path, size_of: Callable[[Path], tuple[int, int]], *, name: str, where: str) -> tuple[int, int]:
    if not name:
        raise DataError("no file name", expected="a path", where=where, do=_REPAIR)
    if wrong := leads_out(name):
        raise DataError(wrong, expected="a path inside the folder", where=where, do=_REPAIR)
    try:
        return size_of(file)
    except DataError as error:
        reason = "missing picture" if error.found == MISSING else "unreadable picture"
        raise DataError(f"{reason}: {name!r} ({error.found})", expected=error.expected, where=where) from None


def _number(text: str, *, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"not a number: {column} {text!r}", expected="a finite number", where=where, do=_REPAIR)
    return value


def _crop(row: _Row, size: tuple[int, int], columns: list[str], *, where: str) -> tuple[float, float, float]:
    width, height = size
    cells = [row[name] for name in BOX] if "x" in columns else []
    if not any(cells):
        return width / 2, height / 2, float(min(width, height))
    x, y, w, h = (_number(cell, column=name, where=where) for name, cell in zip(BOX, cells, strict=True))
    if w <= 0 or h <= 0 or x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise DataError(
            f"wrong box: {x:g}, {y:g}, {w:g}, {h:g}",
            expected=f"left, top, width, height inside the {width}x{height} picture",
            where=where,
            do=_REPAIR,
        )
    return x + w / 2, y + h / 2, max(w, h)


def _yes_or_no(cell: str, *, column: str, where: str) -> int:
    """1, 0, or -1 of an empty cell."""
    if cell not in ("", "0", "1"):
        raise DataError(f"wrong {column}: {cell!r}", expected="0 or 1", where=where, do=_REPAIR)
    return int(cell) if cell else -1


def _label(task: Task, row: _Row, points: Mapping[str, str], *, where: str) -> NDArray[Any] | float | int:
    """One sample's label in the form of tasks.py."""
    empty = unlabelled(task, 1)[0]
    if task.kind is Kind.LANDMARKS:
        names = _point_names(task, points[task.name])
        cells = [row[name] for name in names]
        if not any(cells):
            return np.asarray(empty)
        values = [_number(cell, column=name, where=where) for name, cell in zip(names, cells, strict=True)]
        return np.asarray(values, dtype=np.float32).reshape(task.points, 2)
    if task.kind is Kind.ATTRIBUTES:
        label = np.array(empty)
        for index, part in enumerate(task.classes):
            column = f"{task.name}_{part}"
            label[index] = _yes_or_no(row.get(column), column=column, where=where)
        return label
    cell = row.get(task.name)
    if not cell and task.name == "glasses3":
        yes = [_yes_or_no(row.get(column), column=column, where=where) for column in GLASSES]
        return int(merge_glasses(*(np.array([answer]) for answer in yes))[0])
    if not cell:
        return empty  # type: ignore[no-any-return]
    if task.kind is Kind.CLASSES:
        if cell in task.classes:
            return task.classes.index(cell)
        if cell.isdecimal() and len(cell) < 4 and int(cell) < len(task.classes):
            return int(cell)
        allowed = f"one of {', '.join(map(repr, task.classes))}, or an index from 0 to {len(task.classes) - 1}"
        raise DataError(f"wrong {task.name}: {cell!r}", expected=allowed, where=where, do=_REPAIR)
    if task.kind is Kind.AGE:
        low, dash, high = cell.partition("-")
        years = [_number(part, column="age", where=where) for part in ((low, high) if dash else (low, low))]
        if not 0.0 <= years[0] <= years[1] <= 100.0:
            raise DataError(f"wrong age: {cell!r}", expected="0 to 100, or LOW-HIGH", where=where, do=_REPAIR)
        return np.asarray(years, dtype=np.float32)
    value = _number(cell, column=task.name, where=where)
    if not 0.0 <= value <= 1.0:
        raise DataError(f"wrong {task.name}: {cell!r}", expected="a number from 0 to 1", where=where, do=_REPAIR)
    return value
