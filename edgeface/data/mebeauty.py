"""MEBeauty: how attractive about 300 raters found each face, gender, and six ethnicities to report by.

Source:
    Lebedeva et al., MEBeauty: a multi-ethnic facial beauty dataset in-the-wild, Neural Computing and Applications 2022;
    for non-commercial research.

Layout: `labels.csv` with the columns

    image,split,beauty_1to10,gender,ethnicity

(the corpus's score lists put together) and the corpus's aligned crops in `images/`. The mean rating of 1 to 10 becomes
`beauty_score` = (rating - 1) / 9; a score's error is nine times as much on the scale of the raters. The corpus has no
grades of its own; for methods that were published on grades, the classes of `beauty` are the fifths of the training
ratings. Ethnicity is a group to report by.

Splits: `train`, `val` and `test` as the table marks them; `fit` and `dev` part `train` into nine tenths and one, so
that something can be chosen without a list that is reported on. Copies of one picture stand under several names, some
in two splits: `edgeface data inspect` counts them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import TRAIN_PARTS, Face, Row, Terms, check_split, gather, in_part, read_table
from edgeface.tasks import TASKS

LOWEST, HIGHEST = 1.0, 10.0
TERMS = Terms(
    name="mebeauty",
    version=1,
    licence="non-commercial research only (MEBeauty)",
    research_only=True,
    scales={"beauty_score": (LOWEST, HIGHEST)},
)
SPLITS = (*TRAIN_PARTS, "val", "test")
ETHNICITIES = ("asian", "black", "caucasian", "hispanic", "indian", "mideastern")

# Medians over all 1,981 faces of the box around a teacher's five points (VGG16 trained on MTFL, four rounds of
# predicting and cropping anew); centre x, side over the width, centre y over the height: (x, y, side).
CROP = (0.501, 0.581, 0.855)

# Quantiles of the 1,757 ratings of `train`, rounded: each class has 342 to 360 of them.
FIFTHS = (4.97, 5.89, 6.6, 7.27)

_COLUMNS = ("image", "split", "beauty_1to10", "gender", "ethnicity")
_LAYOUT = "a folder with labels.csv and images"


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
        path: Folder that holds labels.csv and images.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad row instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The folder or table is missing, or has no row of the split; with `strict`, any bad row or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source)
    part = "train" if split in TRAIN_PARTS else split

    def parse(row: Row) -> Face | None:
        key = row.path("image")
        if row.one_of("split", ("train", "val", "test")) != part or (part == "train" and not in_part(key, split)):
            return None
        rating = row.number("beauty_1to10", LOWEST, HIGHEST)
        return Face(
            key=key,
            crop=CROP,
            labels={
                "beauty_score": (rating - LOWEST) / (HIGHEST - LOWEST),
                "beauty": bisect_right(FIFTHS, rating),
                "gender": TASKS["gender"].classes.index(row.one_of("gender", TASKS["gender"].classes)),
            },
            groups={"ethnicity": row.one_of("ethnicity", ETHNICITIES)},
        )

    rows = read_table(path / "labels.csv", _COLUMNS, source=source, layout=_LAYOUT)
    return gather(
        path,
        rows,
        parse,
        terms=TERMS,
        tasks=("beauty_score", "beauty", "gender"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )
