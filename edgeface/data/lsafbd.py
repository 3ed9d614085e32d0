"""LSAFBD: Asian faces in five classes of beauty.

Source:
    Zhai et al., Benchmark of a large scale database for facial beauty prediction, ICIIP 2016 (LSFBD); Gan et al.,
    2M BeautyNet, IEEE Access 2020, calls it LSAFBD: 20,000 labelled faces, half of them women. From its authors, for
    research only.

Layout: no description of it is published. The lists are those that the group's own programs read: `train.txt` and
`test.txt`, one face a line,

    path class

with class 0 (least) to 4, and paths from this folder. [Assumed: that no header stands above them, and that a path may
have backslashes, for they were written on Windows.]

Crop: the whole picture. [Assumed: no picture was at hand to measure on.]

Splits: `train` and `test` are the lists; `fit` and `dev` part `train` into nine tenths and one, to choose by.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import TRAIN_PARTS, Face, Row, Terms, check_split, gather, in_part, read_lines
from edgeface.tasks import TASKS

TERMS = Terms(name="lsafbd", version=1, licence="research only (LSAFBD, Wuyi University)", research_only=True)
SPLITS = (*TRAIN_PARTS, "test")
CROP = (0.5, 0.5, 1.0)

_LAYOUT = "a folder with train.txt, test.txt (lines of path and class) and the pictures they name"


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
        path: Folder that holds the two lists.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad line instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The list is missing or has no usable face; with `strict`, any bad line or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Choose by @dev, and train on @fit meanwhile")
    classes = TASKS["beauty"].classes

    def parse(row: Row) -> Face | None:
        key = row.path("file")
        if split != "test" and not in_part(key, split):
            return None
        return Face(key=key, crop=CROP, labels={"beauty": classes.index(row.one_of("class", classes))})

    name = "test.txt" if split == "test" else "train.txt"
    return gather(
        path,
        read_lines(path / name, ("file", "class"), source=source, layout=_LAYOUT),
        parse,
        terms=TERMS,
        tasks=("beauty",),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )
