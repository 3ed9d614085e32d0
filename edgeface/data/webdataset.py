"""Tar shards as a corpus: `webdataset:PATH[@SPLIT]`. What a sample holds is said in `edgeface.data.shards`.

Every sample's labels and names are read at once, and pictures one by one where they are asked for. Scoring takes
pictures in batches (`edgeface.data.crops`); training reads labels, too, when their turn comes (`edgeface.data.stream`).
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus, Labels, Texts, unlabelled
from edgeface.data.shards import Shards, Table, describe, open_shards, read_pictures
from edgeface.data.tar import open_tar
from edgeface.errors import DataError
from edgeface.files import sha256_file
from edgeface.tasks import TASKS

NAME = "webdataset"
TWICE = "name that stands twice"
_CHUNK = 1024  # samples whose descriptions are in memory at a time
_TABLES = 8  # of places, kept for whoever asks for pictures in another order than theirs


def read(path: Path, *, source: str, split: str = "", strict: bool = False) -> Corpus:
    """Reads the labels of shards, and compares each shard with the sha256 that its index file states.

    Args:
        path: A folder of shards, or one shard.
        source: The source as typed, for messages.
        split: As for `edgeface.data.shards.open_shards`.
        strict: Raise at the first bad sample instead of counting it in `skipped`.

    Raises:
        DataError: No shard, one that is refused or has changed; with `strict`, any bad sample.
        UsageError: No such split.
    """
    shards = open_shards(path, source=source, split=split)
    for shard in shards.shards:
        _check(shard.path, shard.sha256)
    corpus, _ = labelled(shards, strict=strict)
    return corpus


def _check(path: Path, sha256: str) -> None:
    found = sha256_file(path)
    if found != sha256:
        raise DataError(
            f"sha256 {found[:12]}…",
            expected=f"{sha256[:12]}…, as when it was written; its bytes have changed",
            where=str(path),
            do="Restore the shard, or write the shards again",
        )


def labelled(shards: Shards, *, strict: bool = False) -> tuple[Corpus, NDArray[np.int64]]:
    """The samples of shards with their labels; bytes are not compared with any sha256.

    Args:
        shards: From `open_shards`.
        strict: As for `read`.

    Returns:
        The corpus, of N samples, and (N,) the place of each among all samples of the shards, in their order.

    Raises:
        DataError: A shard is not what it was; with `strict`, any bad sample.
    """
    count = len(shards)
    keys, people = Texts(), Texts()
    crops = np.empty((count, 3), np.float32)
    labels: Labels = {name: unlabelled(TASKS[name], count) for name in shards.tasks}
    groups: dict[str, _Words] = {}
    done = 0
    for shard in shards.shards:
        table = shard.whole_table() if strict else shard.table()
        with open_tar(table.path) as descriptor:
            for start in range(0, len(table), _CHUNK):
                rows = range(start, min(start + _CHUNK, len(table)))
                # A label that nobody can use is looked for among all tasks, as it was when the shard was surveyed.
                told = describe(
                    descriptor, table, rows, tasks=tuple(TASKS if strict else labels), class_task=shards.class_task
                )
                for error in told.broken.values():
                    raise error
                here = slice(done, done + len(rows))
                keys.extend(told.keys)
                people.extend(told.people)
                crops[here] = told.crops
                for name, values in labels.items():
                    values[here] = told.labels[name]
                for name, words in told.groups.items():
                    groups.setdefault(name, _Words(count)).put(here, words)
                done += len(rows)
    skipped: dict[str, list[str]] = defaultdict(list)
    for reason, (number, named) in shards.skipped.items():
        skipped[reason] = [*named, *[f"and {number - len(named)} more"] * (number > len(named))]
    kept = _first_of_each_name(keys, skipped, source=shards.source, strict=strict)
    ends = np.cumsum([shard.samples for shard in shards.shards])

    @lru_cache(maxsize=_TABLES)
    def table_of(number: int) -> Table:
        return shards.shards[number].table()

    def load(index: int) -> NDArray[np.uint8]:
        number = int(np.searchsorted(ends, index, side="right"))
        table = table_of(number)
        with open_tar(table.path) as descriptor:
            return next(read_pictures(descriptor, table, [index - (int(ends[number]) - len(table))]))

    whole = Corpus(
        name=shards.corpus or NAME,
        source=shards.source,
        split=shards.split,
        licence=shards.licence,
        research_only=shards.research_only,
        keys=keys,
        people=people,
        crops=crops,
        labels=labels,
        groups={name: groups[name].texts() for name in sorted(groups)},
        skipped={reason: tuple(which) for reason, which in skipped.items()},
        load=load,
        fingerprint=shards.content_hash,
        scales=shards.scales,
    )
    return (whole if len(kept) == count else whole.select(kept)), kept


class _Words:
    """A column of few different words, "" where none was said."""

    def __init__(self, count: int) -> None:
        self._numbers: dict[str, int] = {"": 0}
        self._column = np.zeros(count, np.int32)

    def put(self, here: slice, words: tuple[str, ...]) -> None:
        self._column[here] = [self._numbers.setdefault(word, len(self._numbers)) for word in words]

    def texts(self) -> NDArray[np.str_]:
        return np.asarray(list(self._numbers))[self._column]


def _first_of_each_name(keys: Texts, skipped: dict[str, list[str]], *, source: str, strict: bool) -> NDArray[np.int64]:
    """Places of the samples, of those with one name the first; the others are noted in `skipped`."""
    places = np.arange(len(keys))
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    seen: set[str] = set()
    again = []
    for place in np.flatnonzero(counts[which] > 1).tolist():  # names of one hash; of others there is but one
        if keys[place] not in seen:
            seen.add(keys[place])
        elif strict:
            raise DataError(
                f"{keys[place]!r} stands twice", expected="each sample once", where=source, do="Write the shards again"
            )
        else:
            again.append(place)
    if again:
        skipped[TWICE].extend(keys[place] for place in again)
    return np.delete(places, again)
