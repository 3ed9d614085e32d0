"""What is in a source, before anything is trained on it."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus, is_labelled
from edgeface.data.listing import TRAIN_PARTS, fold_and_part
from edgeface.data.sources import Source, open_source, parse_source
from edgeface.errors import DataError, UsageError
from edgeface.tasks import EYES, TASKS, Kind, Task

SPLITS = ("train", "val", "test")
LISTED = 20  # keys named for each finding; the counts are whole

_CHUNK = 64


def inspect(
    source: str, *, root: Path, strict: bool = False, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Reads every label and decodes every picture of a source.

    Args:
        source: As for `open_source`.
        root: Folder that holds the corpora.
        strict: Raise at the first bad sample instead of listing it.
        progress: Called with the number of pictures decoded and their total.

    Returns:
        The JSON object of `edgeface data inspect`:

        samples, people, licence, research_only     counts and terms
        named                                       samples whose person the corpus names; the rest count as one each
        skipped                                     reason to {"count", "keys"}: left out by the reader
        unreadable                                  {"count", "keys"}: pictures whose pixels cannot be decoded
        sizes                                       "WxH" to number of pictures, most frequent first
        duplicates                                  {"count", "keys"}: samples whose picture repeats an earlier one
        disagreeing                                 {"count", "keys"}: those of them whose labels are others
        tasks                                       task to {"labelled", …}: class shares, range, or landmark checks
        groups                                      subgroup column to value to count
        shared_people                               other split to number of people in both
        shared_pictures                             other split to {"count", "keys"}: samples whose picture is there too

        Landmark checks: `mirrored_eyes`, faces whose right eye is labelled at or left of the left eye, and
        `outside_crop`, faces with a point outside the nominal crop.

    Raises:
        UsageError, DataError: As `open_source`; with `strict`, the first picture that cannot be decoded.
    """
    corpus = open_source(source, root=root, strict=strict)
    others = _other_splits(corpus, parse_source(source), root=root)
    bar = _Bar(total=len(corpus) + sum(map(len, others.values())), told=progress)
    pictures = _pictures(corpus, strict=strict, bar=bar)
    elsewhere = {split: set(_contents(other, bar=bar)) for split, other in others.items()}
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
        "skipped": {reason: listed(keys) for reason, keys in corpus.skipped.items()},
        "unreadable": listed(pictures.unreadable),
        "sizes": dict(pictures.sizes.most_common()),
        "duplicates": listed(pictures.duplicates),
        "disagreeing": listed(pictures.disagreeing),
        "tasks": {name: _task(TASKS[name], values, corpus) for name, values in corpus.labels.items()},
        "groups": {name: dict(Counter(values.tolist()).most_common()) for name, values in corpus.groups.items()},
        "shared_people": {split: len(set(corpus.people) & set(other.people)) for split, other in others.items()},
        "shared_pictures": {
            split: listed([key for key, content in pictures.contents.items() if content in there])
            for split, there in elsewhere.items()
        },
    }


def listed(keys: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """How many keys, and the first of them."""
    return {"count": len(keys), "keys": list(keys[:LISTED])}


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
        left, right = EYES[task.points]
        crops = corpus.crops[known]
        inside = np.abs(values - crops[:, None, :2]).max(axis=(1, 2)) <= crops[:, 2] / 2
        found["mirrored_eyes"] = int((values[:, right, 0] <= values[:, left, 0]).sum())
        found["outside_crop"] = int((~inside).sum())
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


def _other_splits(corpus: Corpus, parsed: Source, *, root: Path) -> dict[str, Corpus]:
    """The other splits that there are and that should have nothing in common with this one."""
    others: dict[str, Corpus] = {}
    if not corpus.split or corpus.name == "synthetic":
        return others
    base = parsed.corpus + (f":{parsed.argument}" if parsed.argument else "")
    fold, part = fold_and_part(corpus.split)
    parts = set(TRAIN_PARTS) - {"train"}
    # A part of the training list lies in it by design, and so does every fold's in the other folds'.
    splits = (*sorted(parts), "val", "test") if part in parts else SPLITS
    for split in (f"fold{fold}-{name}" if fold else name for name in splits):
        if split != corpus.split:
            with contextlib.suppress(DataError, UsageError):  # a corpus need not have every split
                others[split] = open_source(f"{base}@{split}", root=root)
    return others
