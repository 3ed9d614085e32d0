"""Synthetic faces: pictures drawn by `edgeface.data.faces`, with an exact label for every task.

`synthetic:N[@SPLIT]` is N faces, four shots of each person. A face is a pure function of its seed and index: the same
pixels and labels in any batch and any order. `train`, `val` and `test` are far-apart ranges of the index, so they share
no person. Pictures span 1.5 nominal crops; the crop is their middle, as if a detector had found it, and faces sit in it
with the scatter of real crops: its side is 2.26 times the mean extent of the five points, as for MTFL.

What the labels are. Landmarks are points of one 3-D template, projected, hidden ones included. Pose is the drawn yaw,
cut at 15° and 45°. `occlusion` says that a drawn hand, mask, strand or thing covers one of the five points; glasses,
hair that frames the face and the head's own turning do not count. `mouth_open` is a gap between the jaws, `eyes_open`
the height of the lids; neither is drawn near its threshold. The rest are functions of the numbers a face is drawn from,
and claims about nobody:

- `gender` is one drawn number, above or below one half, on which the chances of jaw, brow and nose shape, hair length,
  beard and make-up lean. It labels that number.
- `beauty` and `beauty_score` fall with the distance of the drawn shape from the mean shape, with drawn lop-sidedness
  and with drawn blemishes. They give a network something measurable to learn; they say nothing about people's looks.
- `age` is the number that sets wrinkles, grey hair and proportions. `identity` is the index of the drawn person.

The group `skin` is the lightness of the drawn skin colour, before any light falls on it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus, Labels, label_shape, unlabelled
from edgeface.data.faces.camera import FRAME
from edgeface.data.faces.draw import PER_PERSON, Person, Shot, draw_person, draw_shot, person_of
from edgeface.data.faces.scene import locate, render_face
from edgeface.data.faces.template import ORDERS
from edgeface.errors import UsageError
from edgeface.tasks import EXPRESSIONS, TASKS

VERSION: Final = 4  # of the pixels: a new number makes packed caches new
PX: Final = 144  # side of a corpus picture; its nominal crop is 96 px
SEED: Final = 0
SPLITS: Final = {"train": 0, "val": 1 << 40, "test": 2 << 40}  # first index of each
LARGEST: Final = 10_000_000
LICENCE: Final = "Apache-2.0 (drawn by edgeface)"

SMILES_FROM: Final = 0.3  # amount of the smile action
EYES_OPEN_FROM: Final = 0.3  # lid aperture; drawn below 0.07 or above 0.35
MOUTH_OPEN_FROM: Final = 0.1  # gap; drawn 0 or above 0.2
WRINKLES_FROM: Final = 0.3
# Individual typology angle, degrees, of the darkest medium and the darkest light skin: pairs of the six classes of
# Chardon et al., Skin colour typology and suntanning pathways, Int. J. Cosmetic Science 13 (1991).
_SKIN_EDGES: Final = (10.0, 41.0)
SKINS: Final = np.array(["dark", "medium", "light"])
UNDRAWN: Final = ("attributes40", "eyes_occluded")  # tasks that a drawn face has no labels of
_POSE_EDGES: Final = np.radians([-45.0, -15.0, 15.0, 45.0])


@lru_cache(maxsize=256)
def _person(seed: int, person: int) -> Person:
    return draw_person(seed, person)


def _drawn(seed: int, index: int) -> tuple[Person, Shot]:
    person = _person(seed, person_of(index))
    return person, draw_shot(seed, index, person)


def _fill(labels: Labels, row: int, *, index: int, person: Person, shot: Shot) -> None:
    """Writes every label but landmarks and occlusion."""
    labels["pose"][row] = int(np.searchsorted(_POSE_EDGES, shot.yaw))
    labels["gender"][row] = int(person.feminine > 0.5)
    labels["smile"][row] = int(shot.smile >= SMILES_FROM)
    labels["glasses"][row] = int(shot.glasses > 0)
    labels["glasses3"][row] = shot.glasses
    labels["expression"][row] = shot.expression if shot.expression < len(EXPRESSIONS) else -1
    labels["expression8"][row] = shot.expression
    labels["age"][row] = person.age
    labels["beauty"][row] = min(int(person.beauty * 5), 4)
    labels["beauty_score"][row] = person.beauty
    labels["identity"][row] = person_of(index)
    aperture = min(shot.features["open_left"], shot.features["open_right"])
    labels["eyes_open"][row] = int(aperture >= EYES_OPEN_FROM)
    labels["mouth_open"][row] = int(shot.features["gap"] >= MOUTH_OPEN_FROM)
    labels["attributes"][row] = (person.dark_circles, person.acne, person.spots, person.wrinkles >= WRINKLES_FROM)


def _empty(count: int) -> Labels:
    drawn = {name: task for name, task in TASKS.items() if name not in UNDRAWN}
    return {name: unlabelled(task, count).reshape(label_shape(task, count)) for name, task in drawn.items()}


def label(indices: NDArray[np.int64], *, seed: int, px: int) -> Labels:
    """Labels without pictures, several times faster than `render`.

    Args:
        indices: (N,) face numbers, 0 or above.
        seed: Of the stream of faces.
        px: Side of the picture that landmarks refer to.

    Returns:
        Every task's labels in the form of tasks.py; landmarks in picture pixels, (0, 0) the outer corner of the first.
    """
    labels = _empty(len(indices))
    for row, index in enumerate(indices.tolist()):
        person, shot = _drawn(seed, index)
        points, occluded = locate(person, shot, px=px)
        _fill(labels, row, index=index, person=person, shot=shot)
        for count, order in ORDERS.items():
            labels[f"landmarks{count}"][row] = points[order]
        labels["occlusion"][row] = int(occluded)
    return labels


def render(indices: NDArray[np.int64], *, seed: int, px: int) -> tuple[NDArray[np.uint8], Labels]:
    """Draws faces.

    Args:
        indices: (N,) face numbers, 0 or above.
        seed: Of the stream of faces.
        px: Side of each picture, 32 to 512.

    Returns:
        (N, px, px, 3) RGB pictures, and every task's labels as `label` gives them.

    Raises:
        UsageError: `px` is out of range.
    """
    if not 32 <= px <= 512:
        raise UsageError(f"a picture of {px} px", expected="32 to 512", where="px", do="Choose a side in that range")
    images = np.empty((len(indices), px, px, 3), dtype=np.uint8)
    labels = _empty(len(indices))
    for row, index in enumerate(indices.tolist()):
        person, shot = _drawn(seed, index)
        face = render_face(person, shot, px=px)
        images[row] = face.image
        _fill(labels, row, index=index, person=person, shot=shot)
        for count, order in ORDERS.items():
            labels[f"landmarks{count}"][row] = face.points[order]
        labels["occlusion"][row] = int(face.occluded)
    return images, labels


def skin_groups(indices: NDArray[np.int64], *, seed: int) -> NDArray[np.str_]:
    """The skin of each face: one of SKINS.

    Args:
        indices: (N,) face numbers, 0 or above.
        seed: Of the stream of faces.
    """
    people, place = np.unique([person_of(index) for index in indices.tolist()], return_inverse=True)
    colours = np.array([_person(seed, person).skin for person in people.tolist()])
    return SKINS[np.searchsorted(_SKIN_EDGES, _typology_angle(colours))][place]


def _typology_angle(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Individual typology angle in degrees of (N, 3) sRGB colours, 0 to 255: arctan of (L* − 50) / b* under D65."""
    share = colours / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    y = linear @ (0.2126729, 0.7151522, 0.0721750)
    z = linear @ (0.0193339, 0.1191920, 0.9503041) / 1.08883
    # CIE 1976 L*a*b*; no drawn skin is so dark that the cube root gives way to the straight line near black.
    return np.asarray(np.degrees(np.arctan2(116.0 * np.cbrt(y) - 66.0, 200.0 * (np.cbrt(y) - np.cbrt(z)))))


def read(source: str) -> Corpus:
    """The corpus of `synthetic:N[@SPLIT]`; without a split, `train`.

    Raises:
        UsageError: N is not a whole number from 1 to ten million, or there is no such split.
    """
    body, _, split = source.partition("@")
    count = body.partition(":")[2]
    split = split or "train"
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= LARGEST):
        raise UsageError(
            f"{count!r} synthetic faces",
            expected=f"a whole number from 1 to {LARGEST}",
            where=f"source {source!r}",
            do="Write synthetic:N, such as synthetic:4000",
        )
    if split not in SPLITS:
        raise UsageError(
            f"no split named {split!r}",
            expected=f"one of {', '.join(map(repr, SPLITS))}",
            where=f"source {source!r}",
            do="Choose a split that exists",
        )
    first = SPLITS[split]
    indices = np.arange(first, first + int(count), dtype=np.int64)
    labels = label(indices, seed=SEED, px=PX)
    labels["identity"] -= first // PER_PERSON

    def load_many(wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        return render(indices[wanted], seed=SEED, px=PX)[0]

    crop = (PX / 2, PX / 2, PX / FRAME)
    return Corpus(
        name="synthetic",
        source=source,
        split=split,
        licence=LICENCE,
        research_only=False,
        keys=tuple(f"{index:08d}" for index in range(int(count))),
        people=tuple(f"{split}-{person_of(index)}" for index in range(int(count))),
        crops=np.tile(np.array(crop, dtype=np.float32), (int(count), 1)),
        labels=labels,
        groups={"skin": skin_groups(indices, seed=SEED)},
        load=lambda index: load_many(np.array([index], dtype=np.int64))[0],
        load_many=load_many,
        fingerprint=f"faces {VERSION}, seed {SEED}, {PX} px, from {first}",
    )
