"""LFW: 13,233 pictures of 5,749 people, to ask of two faces whether they are one person.

Source:
    Huang, Ramesh, Berg, Learned-Miller, Labeled Faces in the Wild, University of Massachusetts technical report 07-49,
    2007. Its authors state no licence, and ask that nobody conclude from it that a system is fit for use.

Layout, as published: `NAME/NAME_0001.jpg`, 250×250, in `lfw` (or `lfw_funneled`, `lfw-deepfunneled`), and beside it the
lists `pairs.txt`, `pairsDevTrain.txt` and `pairsDevTest.txt` (edgeface/verification.py says what is in them).

Splits: `pairs` holds the pictures of pairs.txt (view 2: ten folds of 300 same and 300 different pairs), `devtrain` and
`devtest` those of view 1, `all` every picture. Labels are people alone. `edgeface eval MODEL --data lfw@pairs` scores
the pairs of pairs.txt without being given the list.

Crop: fixed, by the constants of MTFL for its pictures from LFW, which are of the same size and cut.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import Face, Row, Terms, check_split, first_there, gather, read_files
from edgeface.data.mtfl import nominal_crop
from edgeface.errors import DataError
from edgeface.verification import read_pairs

TERMS = Terms(name="lfw", version=1, licence="no licence stated (LFW, pictures from news sites)", research_only=True)
LISTS = {"pairs": "pairs.txt", "devtrain": "pairsDevTrain.txt", "devtest": "pairsDevTest.txt"}
SPLITS = (*LISTS, "all")
# View 2 was drawn without regard to view 1 and may hold the same people; the two lists of view 1 may not.
APART = {"devtrain": ("devtest",), "devtest": ("devtrain",)}
CROP = tuple(value / 250 for value in nominal_crop("lfw_5590", 250, 250))

_FOLDERS = ("lfw", "lfw_funneled", "lfw-deepfunneled", ".")
_LAYOUT = "the published LFW folder: lfw/NAME/NAME_0001.jpg, pairs.txt"


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
        path: Folder that holds the folder of pictures and the lists.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first missing picture instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The list is missing or of another form, or there is no usable face; with `strict`, any bad picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Score @pairs; train on another corpus")
    base = first_there(path, _FOLDERS)
    if split == "all":
        rows = read_files(base, "*/*.jpg", source=source, layout=_LAYOUT)
    else:
        listing = pairs_list(path, split)
        if not listing.is_file():
            raise DataError(
                f"{listing} is missing", expected=_LAYOUT, where=source, do="Put the published list beside the pictures"
            )
        pairs = read_pairs(listing)
        named = dict.fromkeys((*pairs.first, *pairs.second))
        rows = [Row(where=str(listing), cells={"file": key}) for key in named]

    def parse(row: Row) -> Face:
        key = row.path("file")
        x, y, side = CROP
        return Face(key=key, crop=(x, y, side), labels={}, person=key.partition("/")[0])

    return gather(
        base,
        rows,
        parse,
        terms=TERMS,
        tasks=("identity",),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def pairs_list(path: Path, split: str) -> Path:
    """The list of pairs of a split of LISTS."""
    name = LISTS[split]
    return first_there(path, (name, f"{first_there(path, _FOLDERS).name}/{name}"))
