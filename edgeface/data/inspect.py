"""What is in a source, before anything is trained on it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus, is_labelled
from edgeface.data.sources import Source, open_source, parse_source, splits_apart
from edgeface.errors import DataError, UsageError
from edgeface.tasks import EYES, TASKS, Kind, Task

LISTED = 20  # keys named for each finding unless asked for all; the counts are whole
MIRRORED_EYES = "right eye labelled at or left of the left eye"
OUTSIDE_CROP = "point outside the crop"

_CHUNK = 64


def inspect(
    source: str,
    *,
    root: Path,
    strict: bool = False,
    most: int | None = LISTED,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Reads every label and decodes every picture of a source.

    Args:
        source: As for `open_source`.
        root: Folder that holds the corpora.
        strict: Raise at the first bad sample instead of listing it.
        most: Keys named for each finding; None names them all.
        progress: Called with the number of pictures decoded and their total.

    Returns:
        The JSON object of `edgeface data inspect`:

        samples, people, licence, research_only     counts and terms
        named                                       samples whose person the corpus names; the rest count as one each
        skipped                                     reason to {"count", "keys"}: left out by the reader
        unreadable                                  {"count", "keys"}: pictures whose pixels cannot be decoded
        doubtful                                    reason to {"count", "keys"}: labels that look wrong but are used
        sizes                                       "WxH" to number of pictures, most frequent first
        duplicates                                  {"count", "keys"}: samples whose picture repeats an earlier one
        disagreeing                                 {"count", "keys"}: those of them whose labels are others
        tasks                                       task to {"labelled", …}: class shares, range, or landmark checks
        groups                                      subgroup column to value to count
        compared                                    other split to its number of samples
        shared_people                               other split to number of people in both
        shared_pictures                             other split to {"count", "keys"}: samples whose picture is there too

        Other splits are those that should have nothing in common with this one (`splits_apart`). Of a folder without a
        split the folder's splits are compared with each other: "train and test" to what is in both.

        Landmark checks: `mirrored_eyes`, faces whose right eye is labelled at or left of the left eye, and
        `outside_crop`, faces with a point outside the nominal crop. `doubtful` names them.

    Raises:
        UsageError, DataError: As `open_source`; with `strict`, the first picture that cannot be decoded.
    """
    corpus = open_source(source, root=root, strict=strict)
    parsed = parse_source(source)
    others = _other_splits(corpus, parsed, root=root)
    whole = not corpus.split  # the others are then parts of it, and their pictures are among its own
    bar = _Bar(total=len(corpus) + (0 if whole else sum(map(len, others.values()))), told=progress)
    pictures = _pictures(corpus, strict=strict, bar=bar)
    if whole:
        people = {
            f"{one} and {two}": len(set(others[one].people) & set(others[two].people))
            for one, two in itertools.combinations(others, 2)
        }
        held = {split: _of_keys(pictures.contents, other.keys) for split, other in others.items()}
        shared = {
            f"{one} and {two}": _in_both(held[two], set(held[one].values()))
            for one, two in itertools.combinations(others, 2)
        }
    else:
        people = {split: len(set(corpus.people) & set(other.people)) for split, other in others.items()}
        shared = {split: _in_both(pictures.contents, set(_contents(other, bar=bar))) for split, other in others.items()}
    return {
        "schema": 1,
        "source": source,
        "corpus": corpus.name,
        "split": corpus.split,
        "samples": len(corpus),
        "people": len(set(corpus.people)),
        "named": sum(person != key for person, key in zip(corpus.people, corpus.keys, strict=True)),
        "licence": corpus.licence,
        "research_only": corpus.research_only,
        "skipped": {reason: listed(keys, most=most) for reason, keys in corpus.skipped.items()},
        "unreadable": listed(pictures.unreadable, most=most),
        "doubtful": {reason: listed(keys, most=most) for reason, keys in _doubtful(corpus).items()},
        "sizes": dict(pictures.sizes.most_common()),
        "duplicates": listed(pictures.duplicates, most=most),
        "disagreeing": listed(pictures.disagreeing, most=most),
        "tasks": {name: _task(TASKS[name], values, corpus) for name, values in corpus.labels.items()},
        "groups": {name: dict(Counter(values.tolist()).most_common()) for name, values in corpus.groups.items()},
        "compared": {split: len(other) for split, other in others.items()},
        "shared_people": people,
        "shared_pictures": {split: listed(keys, most=most) for split, keys in shared.items()},
    }


def listed(keys: Sequence[str], *, most: int | None = LISTED) -> dict[str, Any]:
    """How many keys, and the first of them; all with `most` None."""
    return {"count": len(keys), "keys": list(keys[:most])}


def _of_keys(contents: Mapping[str, bytes], keys: Sequence[str]) -> dict[str, bytes]:
    return {key: contents[key] for key in keys if key in contents}


def _in_both(contents: Mapping[str, bytes], there: set[bytes]) -> list[str]:
    return [key for key, content in contents.items() if content in there]


@dataclass(kw_only=True)
class _Bar:
    """Counts decoded pictures over several corpora."""

    total: int
    told: Callable[[int, int], None] | None
    done: int = 0

    def advance(self, count: int) -> None:
        self.done += count
        if self.told is not None:
            self.told(self.done, self.total)


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """What decoding every picture showed.

    Attributes:
        sizes: "WxH" to number of pictures.
        unreadable: Keys, each with what was wrong.
        duplicates: Keys that repeat an earlier picture and crop.
        disagreeing: Those of them whose labels are not the earlier one's.
        contents: Key to the hash of the picture.
    """

    sizes: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    disagreeing: list[str] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)


def _decoded(corpus: Corpus, *, bar: _Bar) -> Iterator[tuple[int, NDArray[np.uint8] | DataError]]:
    """Index and picture, or why there is none, of every sample."""
    for start in range(0, len(corpus), _CHUNK):
        chosen = np.arange(start, min(start + _CHUNK, len(corpus)), dtype=np.int64)
        many = None if corpus.load_many is None else corpus.load_many(chosen)
        for place, index in enumerate(chosen.tolist()):
            try:
                yield index, corpus.load(index) if many is None else many[place]
            except DataError as error:
                yield index, error
        bar.advance(len(chosen))


def _contents(corpus: Corpus, *, bar: _Bar) -> Iterator[bytes]:
    """Hashes of the pictures that can be decoded."""
    return (_hash(picture) for _, picture in _decoded(corpus, bar=bar) if not isinstance(picture, DataError))


def _hash(picture: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).digest()


def _pictures(corpus: Corpus, *, strict: bool, bar: _Bar) -> _Pictures:
    found = _Pictures()
    first: dict[bytes, int] = {}
    for index, picture in _decoded(corpus, bar=bar):
        key = corpus.keys[index]
        if isinstance(picture, DataError):
            if strict:
                raise picture
            found.unreadable.append(f"{key} ({picture.found})")
            continue
        found.sizes[f"{picture.shape[1]}x{picture.shape[0]}"] += 1
        content = found.contents[key] = _hash(picture)
        # Two faces of one picture differ in their crops and are no duplicates.
        earlier = first.setdefault(content + corpus.crops[index].tobytes(), index)
        if earlier != index:
            found.duplicates.append(f"{key} = {corpus.keys[earlier]}")
            if not _same_labels(corpus, earlier, index):
                found.disagreeing.append(f"{key} = {corpus.keys[earlier]}")
    return found


def _same_labels(corpus: Corpus, one: int, other: int) -> bool:
    return all(
        np.array_equal(values[one], values[other], equal_nan=values.dtype.kind == "f")
        for values in corpus.labels.values()
    )


def _task(task: Task, values: NDArray[Any], corpus: Corpus) -> dict[str, Any]:
    known = is_labelled(task, values)
    found: dict[str, Any] = {"labelled": int(known.sum())}
    if not known.any():
        return found
    values = values[known]
    if task.kind is Kind.CLASSES:
        shares = np.bincount(values, minlength=len(task.classes)) / len(values)
        found["classes"] = {name: round(float(share), 6) for name, share in zip(task.classes, shares, strict=True)}
    elif task.kind is Kind.LANDMARKS:
        mirrored, outside = _landmark_checks(task, values, corpus.crops[known])
        found["mirrored_eyes"] = int(mirrored.sum())
        found["outside_crop"] = int(outside.sum())
    elif task.kind is Kind.ATTRIBUTES:
        found["attributes"] = {
            name: {"labelled": int((column >= 0).sum()), "positive": int((column == 1).sum())}
            for name, column in zip(task.classes, values.T, strict=True)
        }
    elif task.kind is Kind.IDENTITY:
        found["identities"] = len(np.unique(values))
    elif task.kind is Kind.AGE:
        found["range"] = [float(values[:, 0].min()), float(values[:, 1].max())]
        exact = values[:, 0] == values[:, 1]
        found["exact"] = int(exact.sum())
        if not exact.all():
            bins, counts = np.unique(values[~exact], axis=0, return_counts=True)
            found["bins"] = {f"{low:g}-{high:g}": int(count) for (low, high), count in zip(bins, counts, strict=True)}
    else:
        found["range"] = [float(values.min()), float(values.max())]
        found["mean"] = round(float(values.mean()), 4)
        if task.name in corpus.scales:
            found["scale"] = list(corpus.scales[task.name])
    return found


def _landmark_checks(
    task: Task, points: NDArray[np.float32], crops: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) of faces whose eyes are the wrong way round, and (N,) of those with a point outside (N, 3) nominal crops."""
    left, right = EYES[task.points]
    mirrored = points[:, right, 0] <= points[:, left, 0]
    outside = np.abs(points - crops[:, None, :2]).max(axis=(1, 2)) > crops[:, 2] / 2
    return mirrored, outside


def _doubtful(corpus: Corpus) -> dict[str, list[str]]:
    """Reason to the keys of faces that are used as they are labelled."""
    found: dict[str, list[str]] = {}
    for name, values in corpus.labels.items():
        task = TASKS[name]
        if task.kind is not Kind.LANDMARKS:
            continue
        known = np.flatnonzero(is_labelled(task, values))
        checks = _landmark_checks(task, values[known], corpus.crops[known])
        for reason, faces in zip((MIRRORED_EYES, OUTSIDE_CROP), checks, strict=True):
            if faces.any():
                found[f"{name}: {reason}"] = [corpus.keys[index] for index in known[faces]]
    return found


def _other_splits(corpus: Corpus, parsed: Source, *, root: Path) -> dict[str, Corpus]:
    """The other splits that there are and that should have nothing in common with this one, or with each other."""
    others: dict[str, Corpus] = {}
    base = parsed.corpus + (f":{parsed.argument}" if parsed.argument else "")
    for split in splits_apart(parsed.corpus, corpus.split):
        with contextlib.suppress(DataError, UsageError):  # a corpus need not have every split
            others[split] = open_source(f"{base}@{split}", root=root)
    return others
