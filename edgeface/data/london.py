"""Studio faces of the Face Research Lab London Set and its companions: beauty, age, gender, five landmarks. Test only.

Source:
    DeBruine and Jones, Face Research Lab London Set, figshare 2017, CC BY 4.0, with the rated and template faces of
    webmorphR.stim.

Layout: `labels.csv` with the columns

    image,set,expression,attractiveness_1to7,n_raters,gender,age,ethnicity,landmarks189_xy_norm

and pictures in `images/`, each aligned by its eyes. The sets are `neutral_front` and `smiling_front` (the same 102
people), `3dsk` and `canada`. The mean rating of 1 to 7 becomes `beauty_score` = (rating - 1) / 6. The two rated sets
had other raters, so correlations are best read set by set. An empty cell, or an age of NA, is no label.

The five landmarks come from the 189 points of the template: 0 and 1 are the pupils, 87 and 93 the corners of the mouth.
None is the tip of the nose. 54 and 60 lie to either side of it, a little above, and 55 below it, where the nose meets
the lip; a third of the way down from the middle of those two to 55 is where the tip is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import Face, Row, Terms, check_split, gather, read_table
from edgeface.tasks import EXPRESSIONS, TASKS

LOWEST, HIGHEST = 1.0, 7.0
TERMS = Terms(
    name="london",
    version=1,
    licence="CC BY 4.0 (Face Research Lab London Set)",
    research_only=False,
    scales={"beauty_score": (LOWEST, HIGHEST)},
)
SPLITS = ("test",)
TEMPLATE_POINTS = 189

# Medians over a set of the box around a teacher's five points (VGG16 trained on MTFL, four rounds of predicting and
# cropping anew); no label entered. Centre x, side over the width, centre y over the height: (x, y, side).
CROPS = {
    "neutral_front": (0.499, 0.521, 0.860),
    "smiling_front": (0.499, 0.605, 0.823),
    "3dsk": (0.501, 0.526, 0.883),
    "canada": (0.499, 0.527, 0.885),
}

_COLUMNS = (
    "image",
    "set",
    "expression",
    "attractiveness_1to7",
    "gender",
    "age",
    "ethnicity",
    "landmarks189_xy_norm",
)
_LAYOUT = "a folder with labels.csv and images"
_FARTHEST = 10.0  # picture sides; hair and ears of the template leave the picture by less than one
_POSED = {"neutral": "calm", "smiling": "happy"}


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
        path: Folder that holds labels.csv and images.
        source: The source as typed, for messages.
        split: "test"; there is no other.
        strict: Raise at the first bad row instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The folder or table is missing; with `strict`, any bad row or picture.
        UsageError: Any split but "test".
    """
    check_split(split, SPLITS, source=source, why="These faces are for testing alone: train on another corpus")
    rows = read_table(path / "labels.csv", _COLUMNS, source=source, layout=_LAYOUT)
    return gather(
        path,
        rows,
        _face,
        terms=TERMS,
        tasks=("landmarks5", "gender", "smile", "expression", "age", "beauty_score"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def five_points(template: NDArray[np.float64]) -> NDArray[np.float64]:
    """The five landmarks of (189, 2) template points, in the same unit: (5, 2)."""
    above = (template[54] + template[60]) / 2
    tip = above + (template[55] - above) / 3
    return np.stack([template[0], template[1], tip, template[87], template[93]])


def person_of(key: str, group: str) -> str:
    """The person: the number that starts the name in the two sets of the same people, else the key itself."""
    number = key.rpartition("/")[2].partition("__")[2].partition("_")[0]
    return f"london {number}" if group in ("neutral_front", "smiling_front") and number else key


def _face(row: Row) -> Face:
    key = row.path("image")
    group = row.one_of("set", tuple(CROPS))
    posed = row.one_of("expression", tuple(_POSED))
    labels = {
        "gender": TASKS["gender"].classes.index(row.one_of("gender", TASKS["gender"].classes)),
        "smile": int(posed == "smiling"),
        "expression": EXPRESSIONS.index(_POSED[posed]),
    }
    groups = {"set": group, "ethnicity": row["ethnicity"]}
    more: dict[str, NDArray[np.float64] | float] = {}
    if row["age"] not in ("", "NA"):
        years = row.number("age", 0, 100)
        more["age"] = np.array([years, years])
        decade = int(years) // 10 * 10
        groups["age"] = f"{decade}-{decade + 9}"
    if row["attractiveness_1to7"]:
        more["beauty_score"] = (row.number("attractiveness_1to7", LOWEST, HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
    if row["landmarks189_xy_norm"]:
        more["landmarks5"] = five_points(_template(row))
    return Face(
        key=key,
        crop=CROPS[group],
        labels={**labels, **more},
        groups=groups,
        person=person_of(key, group),
    )


def _template(row: Row) -> NDArray[np.float64]:
    words = row["landmarks189_xy_norm"].split()
    try:
        points = np.array([float(word) for word in words])
    except ValueError:
        points = np.array([np.nan])
    if points.size != 2 * TEMPLATE_POINTS or not (np.abs(points) <= _FARTHEST).all():
        raise row.fault(
            f"wrong landmarks: {len(words)} values",
            expected=f"{2 * TEMPLATE_POINTS} numbers over the picture's sides, x and y in turn",
        )
    return points.reshape(TEMPLATE_POINTS, 2)
