"""What is in a source, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus, is_labelled
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
        skipped                                     reason to {"count", "keys"}: left out by the reader
        unreadable                                  {"count", "keys"}: pictures whose pixels cannot be decoded
        sizes                                       "WxH" to number of pictures, most frequent first
        duplicates                                  {"count", "keys"}: samples whose picture repeats an earlier one
        tasks                                       task to {"labelled", …}: class shares, range, or landmark checks
        groups                                      subgroup column to value to count
        shared_people                               other split to number of people in both

        Landmark checks: `mirrored_eyes`, faces whose right eye is labelled at or left of the left eye, and
        `outside_crop`, faces with a point outside the nominal crop.

    Raises:
        UsageError, DataError: As `open_source`; with `strict`, the first picture that cannot be decoded.
    """
    corpus = open_source(source, root=root, strict=strict)
    sizes, unreadable, duplicates = _pictures(corpus, strict=strict, progress=progress)
    return {
        "schema": 1,
        "source": source,
        "corpus": corpus.name,
        "split": corpus.split,
        "samples": len(corpus),
        "people": len(set(corpus.people)),
        "licence": corpus.licence,
        "research_only": corpus.research_only,
        "skipped": {reason: listed(keys) for reason, keys in corpus.skipped.items()},
        "unreadable": listed(unreadable),
        "sizes": dict(sizes.most_common()),
        "duplicates": listed(duplicates),
        "tasks": {name: _task(TASKS[name], values, corpus.crops) for name, values in corpus.labels.items()},
        "groups": {name: dict(Counter(values.tolist()).most_common()) for name, values in corpus.groups.items()},
        "shared_people": _shared_people(corpus, parse_source(source), root=root),
    }


def listed(keys: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """How many keys, and the first of them."""
    return {"count": len(keys), "keys": list(keys[:LISTED])}


def _pictures(
    corpus: Corpus, *, strict: bool, progress: Callable[[int, int], None] | None
) -> tuple[Counter[str], list[str], list[str]]:
    """Counts of sizes, keys of unreadable pictures, and keys that repeat an earlier picture and crop."""
    sizes: Counter[str] = Counter()
    unreadable: list[str] = []
    duplicates: list[str] = []
    seen: set[bytes] = set()
    for start in range(0, len(corpus), _CHUNK):
        chosen = np.arange(start, min(start + _CHUNK, len(corpus)), dtype=np.int64)
        many = None if corpus.load_many is None else corpus.load_many(chosen)
        for place, index in enumerate(chosen.tolist()):
            try:
                picture = corpus.load(index) if many is None else many[place]
            except DataError as error:
                if strict:
                    raise
                unreadable.append(f"{corpus.keys[index]} ({error.found})")
                continue
            sizes[f"{picture.shape[1]}x{picture.shape[0]}"] += 1
            # Two faces of one picture differ in their crops and are no duplicates.
            content = hashlib.sha256(np.ascontiguousarray(picture).tobytes() + corpus.crops[index].tobytes()).digest()
            if content in seen:
                duplicates.append(corpus.keys[index])
            seen.add(content)
        if progress is not None:
            progress(int(chosen[-1]) + 1, len(corpus))
    return sizes, unreadable, duplicates


def _task(task: Task, values: NDArray[Any], crops: NDArray[np.float32]) -> dict[str, Any]:
    known = is_labelled(task, values)
    found: dict[str, Any] = {"labelled": int(known.sum())}
    if not known.any():
        return found
    values = values[known]
    if task.kind is Kind.CLASSES:
        shares = np.bincount(values, minlength=len(task.classes)) / len(values)
        found["classes"] = {name: round(float(share), 4) for name, share in zip(task.classes, shares, strict=True)}
    elif task.kind is Kind.LANDMARKS:
        left, right = EYES[task.points]
        inside = np.abs(values - crops[known, None, :2]).max(axis=(1, 2)) <= crops[known, 2] / 2
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
        found["exact"] = int((values[:, 0] == values[:, 1]).sum())
    else:
        found["range"] = [float(values.min()), float(values.max())]
        found["mean"] = round(float(values.mean()), 4)
    return found


def _shared_people(corpus: Corpus, parsed: Source, *, root: Path) -> dict[str, int]:
    """People of this split who are in another split too."""
    shared: dict[str, int] = {}
    if not corpus.split or corpus.name == "synthetic":
        return shared
    people = set(corpus.people)
    base = parsed.corpus + (f":{parsed.argument}" if parsed.argument else "")
    for split in SPLITS:
        if split == corpus.split:
            continue
        try:
            other = open_source(f"{base}@{split}", root=root)
        except (DataError, UsageError):
            continue  # a corpus need not have every split
        shared[split] = len(people & set(other.people))
    return shared
