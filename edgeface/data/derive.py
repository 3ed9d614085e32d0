"""Labels that follow from others: open eyes and mouths from landmarks, three kinds of glasses from two.

A recipe asks for them with `[data] derive = ["eyes_open", …]`, and a model that answers such a task is scored on them.
A label that a corpus gives itself is never replaced, and what a face's labels do not decide stays without one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Labels, is_labelled, unlabelled
from edgeface.data.pack import Pack
from edgeface.errors import ConfigError
from edgeface.specs import DERIVED
from edgeface.tasks import TASKS

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The points around an eye or between the lips.

    Attributes:
        span: Two points whose distance its height is compared with: an eye's corners; for the lips the top of the nose
            and the chin, because a head that turns away shortens a mouth but not a face.
        pairs: Upper and lower points that face each other.
    """

    span: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]


# Left (the image's) eye, right eye, inner lips, of the published orders: 300-W (Sagonas et al. 2013), WFLW (Wu et al.
# 2018) and the 106 points of the common mobile detectors. A test holds each against the drawn faces.
OPENINGS: dict[int, tuple[Opening, Opening, Opening]] = {
    68: (
        Opening(span=(36, 39), pairs=((37, 41), (38, 40))),
        Opening(span=(42, 45), pairs=((43, 47), (44, 46))),
        Opening(span=(27, 8), pairs=((61, 67), (62, 66), (63, 65))),
    ),
    98: (
        Opening(span=(60, 64), pairs=((61, 67), (62, 66), (63, 65))),
        Opening(span=(68, 72), pairs=((69, 75), (70, 74), (71, 73))),
        Opening(span=(51, 16), pairs=((89, 95), (90, 94), (91, 93))),
    ),
    106: (
        Opening(span=(35, 39), pairs=((41, 36), (40, 33), (42, 37))),
        Opening(span=(89, 93), pairs=((95, 90), (94, 87), (96, 91))),
        Opening(span=(72, 0), pairs=((66, 54), (62, 60), (70, 57))),
    ),
}

# The points whose mean is the centre of the left and of the right eye.
EYE_CENTRES: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    5: ((0,), (1,)),
    **{count: (left.span, right.span) for count, (left, right, _) in OPENINGS.items()},
}

# An eye's height over its width from which it counts as open. The ratio is that of Soukupová and Čech, Real-Time Eye
# Blink Detection using Facial Landmarks, CVWW 2016; their 0.2, for one person's film, would shut the narrower eyes of a
# population. Ours lies between the drawn faces' shut eyes (at most 0.06) and open ones (at least 0.1).
EYES_OPEN_FROM = 0.1
# The gap between the inner lips over the height from the top of the nose to the chin. Ours, from the drawn faces: shut
# mouths reach 0.043, and 99 in 100 open ones are above it.
MOUTH_OPEN_FROM = 0.043


def ratio(points: NDArray[Any], opening: Opening) -> Floats:
    """Height of an opening over its span.

    Args:
        points: (N, K, 2) landmarks in any unit that is the same along x and y; NaN where there are none.
        opening: Its points.

    Returns:
        (N,) 0 or more; the same for a rotated, mirrored or scaled face. NaN without landmarks.
    """
    first, second = (points[:, end].astype(np.float64) for end in opening.span)
    upper, lower = (points[:, [pair[side] for pair in opening.pairs]].astype(np.float64) for side in (0, 1))
    height = np.linalg.norm(upper - lower, axis=2).mean(axis=1)
    span = np.linalg.norm(first - second, axis=1)
    return np.asarray(height / np.where(span > 0, span, np.nan))


def eyes_open(points: NDArray[Any]) -> NDArray[np.int64]:
    """Whether both eyes are open.

    Args:
        points: (N, K, 2) with K one of OPENINGS; NaN where there are none.

    Returns:
        (N,) 1 open, 0 when either eye is shut, -1 without landmarks.
    """
    left, right, _ = OPENINGS[points.shape[1]]
    return _above(np.minimum(ratio(points, left), ratio(points, right)), EYES_OPEN_FROM)


def mouth_open(points: NDArray[Any]) -> NDArray[np.int64]:
    """Whether there is a gap between the lips: as `eyes_open`."""
    return _above(ratio(points, OPENINGS[points.shape[1]][2]), MOUTH_OPEN_FROM)


def _above(values: Floats, limit: float) -> NDArray[np.int64]:
    return np.where(np.isfinite(values), values >= limit, -1).astype(np.int64)


def merge_glasses(eyeglasses: NDArray[np.int64], dark: NDArray[np.int64]) -> NDArray[np.int64]:
    """Three classes from two questions, "eyeglasses?" and "dark glasses?".

    Args:
        eyeglasses: (N,) 1 yes, 0 no, -1 not known. Some corpora say yes to dark glasses here too.
        dark: (N,) the same.

    Returns:
        (N,) 0 none, 1 eyeglasses, 2 dark, -1 where the answers leave it open. Dark glasses are dark whatever the first
        answer is.
    """
    merged = np.full(len(dark), -1, np.int64)
    merged[(eyeglasses == 0) & (dark == 0)] = 0
    merged[(eyeglasses == 1) & (dark == 0)] = 1
    merged[dark == 1] = 2
    return merged


def split_glasses(glasses3: NDArray[np.int64]) -> NDArray[np.int64]:
    """The question "any glasses?" from three classes: (N,) 0 none, 1 eyeglasses or dark, -1 not known."""
    return np.where(glasses3 < 0, -1, glasses3 > 0).astype(np.int64)


def _from_points(rule: Callable[[NDArray[Any]], NDArray[np.int64]], labels: Labels) -> NDArray[np.int64] | None:
    """By the largest set of landmarks that each face has."""
    sets = [labels[name] for count in sorted(OPENINGS) if (name := f"landmarks{count}") in labels]
    if not sets:
        return None
    found = np.full(len(sets[0]), -1, np.int64)
    for points in sets:
        own = rule(points)
        found = np.where(own >= 0, own, found)
    return found


def _clear_eyes(labels: Labels) -> NDArray[np.int8] | None:
    """Both eyes are clear on faces with landmarks of which nothing says that they are occluded."""
    counts = [count for count in (5, *OPENINGS) if f"landmarks{count}" in labels]
    if not counts:
        return None
    known = np.any([is_labelled(TASKS[f"landmarks{count}"], labels[f"landmarks{count}"]) for count in counts], axis=0)
    if "occlusion" in labels:
        known &= labels["occlusion"] != 1
    return np.repeat(np.where(known, 0, -1).astype(np.int8)[:, None], 2, axis=1)


# Task to what derives it from a corpus's labels; None where they hold nothing to derive it from.
DERIVATIONS: dict[str, Callable[[Labels], NDArray[Any] | None]] = {
    "eyes_open": lambda labels: _from_points(eyes_open, labels),
    "mouth_open": lambda labels: _from_points(mouth_open, labels),
    "glasses": lambda labels: split_glasses(labels["glasses3"]) if "glasses3" in labels else None,
    "eyes_occluded": _clear_eyes,
}


def derived(pack: Pack, tasks: Sequence[str]) -> Pack:
    """A pack with more labels.

    Args:
        pack: Crops with their labels.
        tasks: Which to derive; of those a corpus labels itself, only the faces it left out.

    Raises:
        ConfigError: A task that no rule derives.
    """
    labels, made = derive_labels(pack.labels, tasks, count=len(pack))
    return dataclasses.replace(pack, labels=labels, derived=made)


def derive_labels(given: Labels, tasks: Sequence[str], *, count: int) -> tuple[Labels, tuple[str, ...]]:
    """As `derived`, of the labels of `count` samples alone.

    Returns:
        The labels with those that were derived, and the tasks that gained any.
    """
    labels = dict(given)
    made = []
    for name in tasks:
        if name not in DERIVATIONS:
            raise ConfigError(
                f"{name!r}", expected=f"one of {', '.join(map(repr, DERIVED))}", where="data.derive", do="Remove it"
            )
        found = DERIVATIONS[name](given)
        if found is None:
            continue
        own = labels.get(name, unlabelled(TASKS[name], count))
        labels[name] = np.where(own >= 0, own, found).astype(own.dtype)
        if not np.array_equal(labels[name], own):
            made.append(name)
    return labels, tuple(made)
