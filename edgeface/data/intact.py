"""Shards whose bytes are those that were written: hashed once, and again as soon as the file is another one.

The digest of a set of shards is made of the sha256 of each, as their index file states it; so what is read must be what
was hashed. A shard is hashed before the first use, and what its file then is (its place on the disk, its size and its
times, which no copy and no change leaves alone) is kept in the cache: the next run looks at that, and reads it again
only where it differs. While a stream is read, each opening of a shard looks at it, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgeface.data.pack import SURVEYS, cache_folder
from edgeface.data.shards import Shard, Shards
from edgeface.data.tar import open_tar
from edgeface.errors import DataError, OutputError
from edgeface.files import read_json, sha256_json, write_json

Stamp = tuple[int, ...]

_VERSION = 1  # of what is kept
_READERS = 4  # threads; hashing releases the interpreter lock
_NAMED = 5


def stamp(descriptor: int) -> Stamp:
    """What an open file is, apart from its bytes."""
    found = os.fstat(descriptor)
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def require_intact(shard: Shard, descriptor: int) -> Stamp:
    """Hash a shard that is open.

    Returns:
        What its file was when that began.

    Raises:
        DataError: Its bytes are not those that were written.
    """
    found = _hashed(shard, descriptor)
    if found is None:
        raise _changed([shard])
    return found


def require_all_intact(shards: Shards, *, progress: Callable[[int, int], None] | None = None) -> dict[int, Stamp]:
    """Hash the shards of a split that were not hashed before, or are other files since.

    Args:
        shards: What is to be read.
        progress: Told how many samples are done, and of how many, where there is anything to hash.

    Returns:
        Number of a shard to what its file was.

    Raises:
        DataError: Bytes are not those that were written; it names the shards.
    """
    every = shards.shards
    note = cache_folder() / SURVEYS / f"intact-{_key(every)[:32]}.json"
    known = _noted(note, count=len(every))
    stamps = {number: now for number, shard in enumerate(every) if (now := _stamp_of(shard)) == known[number]}
    left = [number for number in range(len(every)) if number not in stamps]
    if not left:
        return stamps
    odd: list[Shard] = []
    done = sum(every[number].samples for number in stamps)
    pool = ThreadPoolExecutor(max_workers=_READERS)
    try:
        for number, found in zip(left, pool.map(lambda number: _opened(every[number]), left), strict=True):
            if found is None:
                odd.append(every[number])
            else:
                stamps[number] = found
            done += every[number].samples
            if progress is not None:
                progress(done, len(shards))
    finally:  # after Ctrl-C, too: what was hashed need not be hashed again
        pool.shutdown(cancel_futures=True)
        with contextlib.suppress(OutputError):  # a cache that takes no notes costs time, nothing else
            write_json(note, {"stamps": [list(stamps.get(number, ())) for number in range(len(every))]})
    if odd:
        raise _changed(odd)
    return stamps


def _stamp_of(shard: Shard) -> Stamp:
    with open_tar(shard.path) as descriptor:
        return stamp(descriptor)


def _opened(shard: Shard) -> Stamp | None:
    with open_tar(shard.path) as descriptor:
        return _hashed(shard, descriptor)


def _hashed(shard: Shard, descriptor: int) -> Stamp | None:
    found = stamp(descriptor)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return found if digest == shard.sha256 else None


def _key(shards: Sequence[Shard]) -> str:
    return sha256_json([_VERSION, *([str(shard.path.resolve()), shard.sha256] for shard in shards)])


def _noted(note: Path, *, count: int) -> list[Stamp]:
    """What an earlier run has hashed, by number of the shard; nothing where that is not known, or damaged."""
    try:
        told = read_json(note)["stamps"]
        kept = [tuple(each) for each in told]
    except (OSError, ValueError, KeyError, TypeError):
        kept = []
    return kept if len(kept) == count else [()] * count


def _changed(odd: Sequence[Shard]) -> DataError:
    names = ", ".join(shard.path.name for shard in odd[:_NAMED]) + (", …" if len(odd) > _NAMED else "")
    first = odd[0]
    return DataError(
        f"the bytes of {names} have changed",
        expected=f"sha256 {first.sha256[:12]}…, as when it was written",
        where=str(first.path.parent if len(odd) > 1 else first.path),
        do="Restore it, or write the shards again; shards of others that were meant to change: edgeface data clear",
    )
