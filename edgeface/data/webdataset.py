"""Tar shards as a corpus: `webdataset:PATH[@SPLIT]`. What a sample holds is said in `edgeface.data.shards`.

Every sample's labels are read at once, so a corpus in memory comes of it, as of any other reader: for looking at shards
and for scoring on them. Training takes the same shards sample by sample (`edgeface.data.stream`).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus, Labels, unlabelled
from edgeface.data.shards import Described, Shards, Table, describe, open_shards, read_pictures
from edgeface.data.tar import open_tar
from edgeface.errors import DataError
from edgeface.files import sha256_file
from edgeface.tasks import TASKS

NAME = "webdataset"
TWICE = "name that stands twice"


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
    tables: list[Table] = []
    parts: list[Described] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    for shard in shards.shards:
        _check(shard.path, shard.sha256)
        table = shard.table() if not strict else shard.whole_table()
        with open_tar(table.path) as descriptor:
            told = describe(descriptor, table, range(len(table)), tasks=tuple(TASKS), class_task=shards.class_task)
        for error in told.broken.values():
            raise error
        tables.append(table)
        parts.append(told)
    for reason, (count, keys) in shards.skipped.items():
        skipped[reason] = [*keys, *[f"and {count - len(keys)} more"] * (count > len(keys))]
    return _joined(shards, tables, parts, skipped, strict=strict)


def _check(path: Path, sha256: str) -> None:
    found = sha256_file(path)
    if found != sha256:
        raise DataError(
            f"sha256 {found[:12]}…",
            expected=f"{sha256[:12]}…, as when it was written; its bytes have changed",
            where=str(path),
            do="Restore the shard, or write the shards again",
        )


def _joined(
    shards: Shards, tables: list[Table], parts: list[Described], skipped: dict[str, list[str]], *, strict: bool
) -> Corpus:
    keys = [key for part in parts for key in part.keys]
    seen: set[str] = set()
    kept = []
    for place, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            kept.append(place)
        elif strict:
            raise DataError(
                f"{key!r} stands twice", expected="each sample once", where=shards.source, do="Write the shards again"
            )
        else:
            skipped[TWICE].append(key)
    count = len(keys)
    labels: Labels = {}
    for name in shards.tasks:
        values = np.concatenate([part.labels[name] for part in parts])
        labels[name] = values.astype(unlabelled(TASKS[name], 0).dtype)
    names = sorted({name for part in parts for name in part.groups})
    groups = {
        name: np.asarray([word for part in parts for word in part.groups.get(name, [""] * len(part.keys))])
        for name in names
    }
    owner = np.repeat(np.arange(len(parts)), [len(part.keys) for part in parts])
    rows = np.concatenate([part.rows for part in parts])

    def load(index: int) -> NDArray[np.uint8]:
        table = tables[int(owner[index])]
        with open_tar(table.path) as descriptor:
            return next(read_pictures(descriptor, table, [int(rows[index])]))

    whole = Corpus(
        name=shards.corpus or NAME,
        source=shards.source,
        split=shards.split,
        licence=shards.licence,
        research_only=shards.research_only,
        keys=tuple(keys),
        people=tuple(person for part in parts for person in part.people),
        crops=np.concatenate([part.crops for part in parts]).astype(np.float32),
        labels=labels,
        groups=groups,
        skipped={reason: tuple(which) for reason, which in skipped.items()},
        load=load,
        fingerprint=shards.content_hash,
        scales=shards.scales,
    )
    return whole if len(kept) == count else whole.select(kept)
