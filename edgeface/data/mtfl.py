"""MTFL, the faces of TCDCN: five landmarks, gender, smile, glasses and five-step pose.

Source:
    Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014; for non-commercial research.

Layout, as published: `training.txt` and `testing.txt`, one face a line,

    path x1 x2 x3 x4 x5 y1 y2 y3 y4 y5 gender smile glasses pose

with pictures in `lfw_5590`, `net_7876` and `AFLW`. Every line but the first begins with a space, and training.txt
writes paths with backslashes. Points are left eye, right eye, nose tip, left and right mouth corner as seen in the
picture; gender is 1 male, 2 female; smile and glasses are 1 yes, 2 no; pose is 1 (left profile) to 5 (right profile).

The lists count pixel centres from 1, as MATLAB does: half a pixel is taken off, of the published 400 px where a square
picture of net_7876 is stored smaller with its points. [Inferred: a network that sees each training picture mirrored too
has no bias of its own in x, and lies 0.51 ± 0.01 px left of the points in lfw_5590, 0.28 ± 0.01 in net_7876's square
pictures, stored at 240 px, and 0.54 ± 0.01 in its others.]

The crop comes from the picture's size alone. Each of the three sources was cut by a detector with its own margin, so
the mean extent of the five points and the centre of their box are constants of the source: three numbers for each kind
of picture, averaged over the labels of that source (for AFLW, over test labels, which a result on it should say).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeface import limits
from edgeface.data.corpus import Corpus, is_validation
from edgeface.data.images import MISSING, read_image, read_size
from edgeface.data.listing import leads_out
from edgeface.errors import DataError, UsageError
from edgeface.files import read_limited

VERSION = 2
SPLITS = ("train", "val", "test")
LICENCE = "research only (MTFL, Chinese University of Hong Kong)"
CROP_OVER_EXTENT = 2.26

_FIELDS = 15
_CODES = (("gender", 2), ("smile", 2), ("glasses", 2), ("pose", 5))
_PERSON = re.compile(r"^lfw_5590/(.+)_\d{4}\.jpg$")

_PUBLISHED_PX = 400  # side of net_7876's square pictures

# (extent over width, centre x over width, centre y over height)
_GEOMETRY = {
    "lfw_5590": (0.196, 0.506, 0.543),
    "net_7876": (0.278, 0.501, 0.498),
    "net_7876 tall": (0.233, 0.504, 0.370),  # the 160×216 pictures
    "AFLW": (0.355, 0.496, 0.487),
}


def first_centre(folder: str, width: int, height: int) -> float:
    """How far the lists' coordinates lie beyond continuous ones, in pixels of the picture as it is stored."""
    return 0.5 * width / _PUBLISHED_PX if folder == "net_7876" and width == height else 0.5


def nominal_crop(folder: str, width: int, height: int) -> tuple[float, float, float]:
    """Centre x, centre y and side in pixels of a picture's crop, from its folder and size alone.

    Raises:
        DataError: The folder is none of the three published ones.
    """
    kind = "net_7876 tall" if folder == "net_7876" and height > width else folder
    if kind not in _GEOMETRY:
        raise DataError(
            f"a picture in folder {folder!r}",
            expected="'lfw_5590', 'net_7876' or 'AFLW'",
            do="Use the corpus as published, or read your own pictures with folder:PATH",
        )
    extent, x, y = _GEOMETRY[kind]
    return x * width, y * height, CROP_OVER_EXTENT * extent * width


def person_of(key: str) -> str:
    """The person's name where the file name gives one (lfw_5590), else the key itself."""
    match = _PERSON.match(key)
    return match.group(1) if match else key


def read(
    path: Path,
    *,
    source: str,
    split: str,
    strict: bool = False,
    size_of: Callable[[Path], tuple[int, int]] = read_size,
) -> Corpus:
    """Reads one split.

    Args:
        path: Folder that holds training.txt, testing.txt and the three picture folders.
        source: The source as typed, for messages.
        split: "train" (without validation), "val" or "test".
        strict: Raise at the first bad line instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The folder or list is missing; with `strict`, any bad line or picture.
        UsageError: No such split.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r}", expected=f"one of {', '.join(map(repr, SPLITS))}", where=source)
    listing = path / ("testing.txt" if split == "test" else "training.txt")
    try:
        lines = read_limited(listing, limit=limits.LABEL_BYTES).decode("utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{listing} is missing",
            expected="the published MTFL folder: training.txt, testing.txt, lfw_5590, net_7876, AFLW",
            where=source,
            do="Set EDGEFACE_DATA to the folder that holds mtfl, or type the path: mtfl:PATH",
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{listing} cannot be read ({error})", expected="a text file", where=source) from None

    keys: list[str] = []
    taken: set[str] = set()
    people: list[str] = []
    rows: list[tuple[float, ...]] = []
    crops: list[tuple[float, float, float]] = []
    beyond: list[float] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    digest = hashlib.sha256(f"mtfl {VERSION}".encode())
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        where = f"{listing}:{number}"
        key = words[0].replace("\\", "/")
        person = person_of(key)
        if split != "test" and is_validation(person) != (split == "val"):
            continue
        try:
            row = _parse(words, where=where)
            if wrong := leads_out(key):
                raise DataError(wrong, expected="a path inside the corpus", where=where)
            if key in taken:
                raise DataError(f"named twice: {key!r}", expected="each picture once", where=where)
            file = path / key
            width, height = _size(file, size_of, where=where)
            folder = key.split("/")[0]
            crop = nominal_crop(folder, width, height)
        except DataError as error:
            if strict:
                raise DataError(error.found, expected=error.expected, where=error.where or where, do=error.do) from None
            skipped[error.found.split(":")[0]].append(f"{key} ({listing.name}:{number})")
            continue
        stat = file.stat()
        digest.update(f"{key} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        taken.add(key)
        keys.append(key)
        people.append(person)
        rows.append(row)
        crops.append(crop)
        beyond.append(first_centre(folder, width, height))
    if not keys:
        raise DataError(
            f"no usable face in {listing}", expected="at least one", where=source, do="Read `skipped` with data inspect"
        )
    table = np.asarray(rows, dtype=np.float64)
    points = np.stack([table[:, 0:5], table[:, 5:10]], axis=-1) - np.asarray(beyond)[:, None, None]  # (N, 5, 2)
    codes = table[:, 10:].astype(np.int64)
    return Corpus(
        name="mtfl",
        source=source,
        split=split,
        licence=LICENCE,
        research_only=True,
        keys=tuple(keys),
        people=tuple(people),
        crops=np.asarray(crops, dtype=np.float32),
        labels={
            "landmarks5": points.astype(np.float32),
            "pose": codes[:, 3] - 1,
            "gender": codes[:, 0] - 1,
            "smile": 2 - codes[:, 1],
            "glasses": 2 - codes[:, 2],
        },
        groups={"folder": np.asarray([key.split("/")[0] for key in keys])},
        skipped={reason: tuple(where) for reason, where in skipped.items()},
        load=lambda index: read_image(path / keys[index]),
        fingerprint=digest.hexdigest(),
    )


def _parse(words: list[str], *, where: str) -> tuple[float, ...]:
    """Ten coordinates and four codes of one line."""
    repair = "Correct the line, or read without --strict to leave it out"
    if len(words) != _FIELDS:
        kind = "short line" if len(words) < _FIELDS else "long line"
        raise DataError(f"{kind}: {len(words)} fields", expected=f"{_FIELDS} fields", where=where, do=repair)
    values = []
    for word in words[1:]:
        try:
            value = float(word)
        except ValueError:
            raise DataError(f"not a number: {word!r}", expected="a number", where=where, do=repair) from None
        if not math.isfinite(value):
            raise DataError(f"not finite: {word!r}", expected="a finite number", where=where, do=repair)
        values.append(value)
    for (name, count), code in zip(_CODES, values[10:], strict=True):
        if code not in range(1, count + 1):
            raise DataError(
                f"wrong {name} code: {code:g}", expected=f"a whole number from 1 to {count}", where=where, do=repair
            )
    return tuple(values)


def _size(file: Path, size_of: Callable[[Path], tuple[int, int]], *, where: str) -> tuple[int, int]:
    try:
        return size_of(file)
    except DataError as error:
        reason = "missing picture" if error.found == MISSING else "unreadable picture"
        raise DataError(f"{reason}: {file.name!r} ({error.found})", expected=error.expected, where=where) from None
