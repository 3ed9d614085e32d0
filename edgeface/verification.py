"""Verification: are two faces one person? The ten-fold protocol over a list of pairs, in NumPy.

A pair is called the same when its score is above a threshold. Scores are cosines of embeddings, or anything that is
larger for faces more alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.errors import DataError
from edgeface.files import read_limited

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FARS = (1e-1, 1e-2, 1e-3)
_LARGEST_FOLD = 2000  # pictures that pairs are drawn from: two million pairs, more than any protocol asks for


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """P pairs of pictures.

    Attributes:
        first: P keys, "NAME/NAME_0001.jpg".
        second: P keys.
        same: (P,) whether both show one person.
        fold: (P,) int64, from 0.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    same: Bools
    fold: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What F folds gave, each scored at the threshold that the others chose.

    Attributes:
        accuracy: Mean over the folds, in 0 to 1.
        deviation: Standard deviation over the folds (of a sample: F - 1 in the denominator).
        folds: (F,) accuracy of each.
        thresholds: (F,) that each was scored at.
    """

    accuracy: float
    deviation: float
    folds: Floats
    thresholds: Floats


@dataclass(frozen=True, kw_only=True)
class Roc:
    """Every operating point, from "nothing is the same" to "everything is".

    Attributes:
        far: (T,) false accept rate, rising: share of different pairs called the same.
        tar: (T,) true accept rate: share of same pairs called the same.
        thresholds: (T,) falling; the first is infinite.
    """

    far: Floats
    tar: Floats
    thresholds: Floats


def read_pairs(path: Path) -> Pairs:
    """A list of pairs in the format in which Labeled Faces in the Wild publishes its own (pairs.txt).

    The first line holds the number of folds F and of pairs N of each sort in a fold (or N alone: one fold). Then come,
    fold by fold, N lines "NAME a b" (pictures a and b of one person) and N lines "NAME a OTHER b"; fields are parted by
    tabs or spaces.

    Raises:
        DataError: It cannot be read, or a line is not of this form; file and line are named.

    Source:
        Huang et al., Labeled Faces in the Wild, UMass technical report 07-49, 2007, and its README.
    """
    try:
        text = read_limited(path, limit=limits.LABEL_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", expected="a list of pairs", where=str(path)) from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    head = lines[0] if lines else []
    if len(head) not in (1, 2) or not all(_whole(word) and int(word) > 0 for word in head):
        raise _bad_line(path, 1, " ".join(head), "number of folds and number of pairs")
    folds, count = (1, int(head[0])) if len(head) == 1 else (int(head[0]), int(head[1]))
    if len(lines) - 1 != 2 * folds * count:
        raise DataError(
            f"{len(lines) - 1} pairs",
            expected=f"{2 * folds * count}: {folds} folds of {count} same and {count} different pairs",
            where=str(path),
            do="Fetch the list again",
        )
    first, second, same = [], [], []
    for place, words in enumerate(lines[1:]):
        alike = (place // count) % 2 == 0
        if len(words) != (3 if alike else 4) or not (_whole(words[1]) and _whole(words[-1])):
            form = "NAME a b" if alike else "NAME a OTHER b"
            raise _bad_line(path, place + 2, " ".join(words), form)
        first.append(picture_key(words[0], int(words[1])))
        second.append(picture_key(words[0] if alike else words[2], int(words[-1])))
        same.append(alike)
    fold = np.arange(len(same), dtype=np.int64) // (2 * count)
    return Pairs(first=tuple(first), second=tuple(second), same=np.array(same), fold=fold)


def _whole(word: str) -> bool:
    """Whether a word is a whole number that `int` takes; it refuses thousands of digits."""
    return word.isdecimal() and len(word) < 10


def _bad_line(path: Path, line: int, found: str, expected: str) -> DataError:
    return DataError(f"{found!r}", expected=expected, where=f"{path}:{line}", do="Correct that line")


def picture_key(name: str, number: int) -> str:
    """Where LFW keeps a picture: NAME/NAME_0001.jpg."""
    return f"{name}/{name}_{number:04d}.jpg"


def pair_scores(embeddings: NDArray[Any], keys: Sequence[str], pairs: Pairs) -> Floats:
    """Cosine of the two embeddings of each pair.

    Args:
        embeddings: (N, D) of any length above 0.
        keys: N, as in the pairs.
        pairs: P of them.

    Returns:
        (P,) in -1 to 1.

    Raises:
        DataError: A picture of a pair is not among the keys.
    """
    place = {key: row for row, key in enumerate(keys)}
    missing = sorted({key for key in (*pairs.first, *pairs.second) if key not in place})
    if missing:
        raise DataError(
            f"{len(missing)} pictures of the pairs are not here (first {missing[0]!r})",
            expected="an embedding for every picture that a pair names",
            where="pairs",
            do="Score the source that the list belongs to",
        )
    values = embeddings.astype(np.float64)
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    first, second = (unit[[place[key] for key in side]] for side in (pairs.first, pairs.second))
    return np.asarray((first * second).sum(1))


def roc(scores: Floats, same: Bools) -> Roc:
    """The operating points of (P,) scores.

    Raises:
        DataError: Not both sorts of pairs are among them.
    """
    positives, negatives = int(same.sum()), int((~same).sum())
    if positives == 0 or negatives == 0:
        raise DataError(
            f"{positives} same and {negatives} different pairs", expected="both sorts", where="verification pairs"
        )
    order = np.argsort(-scores, kind="stable")
    falling, alike = scores[order], same[order]
    # Pairs of one score fall on one side together, so an operating point ends where the score changes.
    ends = np.flatnonzero(np.diff(falling, append=-np.inf))
    accepted = np.concatenate([[0], ends + 1])
    true = np.concatenate([[0], np.cumsum(alike)])[accepted]
    levels = falling[ends]
    # Half-way to the next score, so that rounding of either does not decide; between neighbouring floats, the lower.
    between = 0.5 * (levels[:-1] + levels[1:])
    between = np.where(between < levels[:-1], between, levels[1:])
    return Roc(
        far=(accepted - true) / negatives,
        tar=true / positives,
        thresholds=np.concatenate([[np.inf], between, [levels[-1] - 1.0]]),
    )


def best_threshold(scores: Floats, same: Bools) -> float:
    """The threshold that calls most of (P,) pairs rightly; of several, the highest, which accepts the fewest."""
    curve = roc(scores, same)
    right = curve.tar * same.sum() + (1.0 - curve.far) * (~same).sum()
    # Counts of pairs: half a pair is more than rounding and less than a difference.
    return float(curve.thresholds[np.flatnonzero(right > right.max() - 0.5)[0]])


def verify(scores: Floats, pairs: Pairs) -> Verification:
    """Accuracy fold by fold, each at the threshold that is best on all other folds.

    Raises:
        DataError: There is one fold only, or one sort of pairs only.

    Source:
        Huang et al., Labeled Faces in the Wild, UMass technical report 07-49, 2007, section 4 (view 2).
    """
    folds = np.unique(pairs.fold)
    if len(folds) < 2:
        raise DataError(
            f"{len(folds)} fold", expected="two or more", where="verification pairs", do="Take the list of ten folds"
        )
    thresholds, accuracies = [], []
    for fold in folds:
        held = pairs.fold == fold
        threshold = best_threshold(scores[~held], pairs.same[~held])
        thresholds.append(threshold)
        accuracies.append(float(((scores[held] > threshold) == pairs.same[held]).mean()))
    return Verification(
        accuracy=float(np.mean(accuracies)),
        deviation=float(np.std(accuracies, ddof=1)),
        folds=np.array(accuracies),
        thresholds=np.array(thresholds),
    )


def tar_at_far(curve: Roc, far: float) -> float:
    """The largest true accept rate whose false accept rate is at most `far`, in 0 to 1."""
    return float(curve.tar[curve.far <= far].max())


def area_under(curve: Roc) -> float:
    """Area under a curve, in 0 to 1: how often a same pair scores above a different one, ties counted as half.

    Source:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27, 2006, section 7.
    """
    return float((np.diff(curve.far) * 0.5 * (curve.tar[1:] + curve.tar[:-1])).sum())


def score_pairs(embeddings: NDArray[Any], keys: Sequence[str], pairs: Pairs) -> dict[str, float | int]:
    """Every figure of the protocol.

    Args:
        embeddings: (N, D).
        keys: N, as in the pairs.
        pairs: The list.

    Returns:
        `n` pairs, `verification_accuracy` and `verification_sd` over the folds, and `roc_area` and `tar_at_far_0.1`,
        `_0.01`, `_0.001` over all pairs. A rate that fewer than one false accept would stand for is absent.

    Raises:
        DataError: A picture is missing, or the list has one fold or one sort of pairs only.
    """
    scores = pair_scores(embeddings, keys, pairs)
    verified, curve = verify(scores, pairs), roc(scores, pairs.same)
    different = int((~pairs.same).sum())
    return {
        "n": len(scores),
        "verification_accuracy": verified.accuracy,
        "verification_sd": verified.deviation,
        "roc_area": area_under(curve),
        **{f"tar_at_far_{far:g}": tar_at_far(curve, far) for far in FARS if far * different >= 1.0},
    }


def draw_pairs(
    keys: Sequence[str], people: NDArray[np.int64], *, folds: int = 10, count: int = 300, seed: int = 0
) -> Pairs:
    """Pairs for a corpus that names its people but publishes no list: folds that share no person, as LFW's do not.

    Args:
        keys: N pictures.
        people: (N,) person of each; below 0 where not known, and then it is in no pair.
        folds: How many.
        count: Pairs of each sort in a fold; fewer, but as many in each, where the pictures do not give as many.
        seed: Decides who is in which fold and which pairs are drawn.

    Raises:
        DataError: The labels do not give a pair of each sort in each fold.
    """
    generator = np.random.default_rng(seed)
    named = np.unique(people[people >= 0])
    fold_of = dict(zip(generator.permutation(named).tolist(), (np.arange(len(named)) % folds).tolist(), strict=True))
    fold = np.array([fold_of.get(int(person), -1) for person in people])
    drawn: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for number in range(folds):
        rows = generator.permutation(np.flatnonzero(fold == number))[:_LARGEST_FOLD]
        first, second = np.triu_indices(len(rows), k=1)
        alike = people[rows[first]] == people[rows[second]]
        for sort in (alike, ~alike):
            chosen = generator.permutation(np.flatnonzero(sort))[:count]
            drawn.append((rows[first[chosen]], rows[second[chosen]]))
    least = min(len(first) for first, _ in drawn)
    if least == 0:
        raise DataError(
            f"{len(named)} people in {int((people >= 0).sum())} pictures",
            expected=f"in each of {folds} folds two people, and one of them twice",
            where="labels of task 'identity'",
            do="Take more pictures, or a list of pairs",
        )
    first, second = (np.concatenate([pair[side][:least] for pair in drawn]) for side in (0, 1))
    place = np.arange(len(first)) // least
    return Pairs(
        first=tuple(keys[row] for row in first.tolist()),
        second=tuple(keys[row] for row in second.tolist()),
        same=place % 2 == 0,
        fold=place // 2,
    )
