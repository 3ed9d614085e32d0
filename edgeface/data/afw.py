"""AFW: 337 faces with 68 landmarks, in the annotation of 300-W. Test only, as in TCDCN's comparison.

Source:
    Zhu and Ramanan, Face Detection, Pose Estimation, and Landmark Localization in the Wild, CVPR 2012 (pictures);
    Sagonas et al., 300 Faces in-the-Wild Challenge, ICCV workshops 2013 (landmarks); for non-commercial research.

Layout, as published with 300-W: in one folder `134212_1.jpg` and `134212_1.pts`, `134212_2.jpg` … for each face of each
picture (edgeface/data/points.py says what is in a .pts file). The six points and thirteen poses of the first edition
(anno.mat) are not read.

Crop: about the face's own landmarks, as the protocol allows: say so beside a result. AFW is part of `w300@train`: a
network trained there cannot be reported here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import Terms, check_split
from edgeface.data.points import crop_about
from edgeface.data.w300 import read_annotated

TERMS = Terms(name="afw", version=1, licence="non-commercial research only (AFW, 300-W)", research_only=True)
SPLITS = ("test",)


def read(
    path: Path,
    *,
    source: str,
    split: str,
    strict: bool = False,
    size_of: Callable[[Path], tuple[int, int]] = read_size,
) -> Corpus:
    """Reads the faces.

    Args:
        path: Folder that holds the pictures and .pts files, or holds them in afw.
        source: The source as typed, for messages.
        split: "test"; there is no other.
        strict: Raise at the first bad .pts file or picture instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The folder has no usable face; with `strict`, any bad file.
        UsageError: Any split but "test".
    """
    check_split(split, SPLITS, source=source, why="These faces are for testing alone: train on another corpus")
    return read_annotated(
        path,
        "",
        lambda _, five: crop_about(five),
        wanted=lambda _: True,
        terms=TERMS,
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
        places=("afw" if (path / "afw").is_dir() else "",),
    )
