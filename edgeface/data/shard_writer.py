"""Packing a corpus into shards: by several processes, resumable, each shard whole or absent.

A shard is written aside, read back, flushed to disk and renamed, and so is the table of its samples' places
(`edgeface.data.places`); then what was found in it is noted beside it. Whoever comes again with the same source and
options keeps every shard whose note and bytes agree, and makes the others. The index file, which readers ask for, is
written last. The same source and options give the same bytes, whatever the number of processes and however often they
were killed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus, Labels
from edgeface.data.pack import UNDECODABLE, cut, pack_key, packed_labels
from edgeface.data.places import encode_places, places_file
from edgeface.data.shards import (
    NAMED,
    SUFFIX,
    Shard,
    Shards,
    encode_labels,
    index_file,
    joined,
    read_index,
    survey,
    tabulate,
    write_index,
)
from edgeface.data.sources import open_source
from edgeface.errors import DataError, InterruptedRun, OutputError, UsageError
from edgeface.files import output_error, read_json, settle, sha256_file, sha256_json, write_bytes
from edgeface.processes import ending_children, live_with_parent, one_blas_thread
from edgeface.runs import hold_run

VERSION = 1  # raised when the same source and options begin to give other bytes
SHARD_SIZE = 4096
ENCODINGS = ("png", "jpg", "ppm")
JPEG_QUALITY = 95
PNG_LEVEL = 1  # of zlib; a higher one makes crops a few percent smaller and takes several times as long
_CHUNK = 64  # as many samples are decoded at a time

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is packed, and how.

    Attributes:
        source: As for `open_source`.
        root: Folder that holds the corpora.
        px: Side of the crops in pixels.
        margin: Side of the crops over the side of the nominal crop.
        shard_size: Samples of a shard; the last one may have fewer.
        count: Samples taken, the first of the source; 0 takes all.
        encoding: One of ENCODINGS. png and ppm keep every pixel; ppm is not compressed.
        strict: Whether a sample that cannot be read is an error instead of being left out.
    """

    source: str
    root: Path
    px: int
    margin: float
    shard_size: int = SHARD_SIZE
    count: int = 0
    encoding: str = "png"
    strict: bool = False

    def __post_init__(self) -> None:
        for fine, found, expected, where in (
            (1 <= self.shard_size <= 100_000, self.shard_size, "1 to 100000 samples", "--shard-size"),
            (self.count >= 0, self.count, "0 or more samples", "--n"),
            (self.encoding in ENCODINGS, repr(self.encoding), f"one of {', '.join(ENCODINGS)}", "--image"),
        ):
            if not fine:
                raise UsageError(str(found), expected=expected, where=where, do="Choose another value")

    def corpus(self) -> Corpus:
        """The samples to pack."""
        found = open_source(self.source, root=self.root, strict=self.strict)
        return found.select(range(min(self.count, len(found)))) if self.count else found

    def key(self, corpus: Corpus) -> str:
        """Digest of everything that decides the bytes of the shards."""
        return sha256_json(
            [VERSION, pack_key(corpus, px=self.px, margin=self.margin), self.shard_size, self.encoding, self.strict]
        )

    def rows(self, number: int, corpus: Corpus) -> range:
        """The samples of a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(corpus)))


def pack_shards(plan: Plan, folder: Path, *, workers: int, progress: Progress | None = None) -> Shards:
    """Write a source's crops as shards; go on where an earlier attempt was stopped.

    Args:
        plan: What to pack.
        folder: Where the shards and their index file go; other splits may be there.
        workers: Processes; 1 packs in this one.
        progress: Told how many samples are done, and of how many.

    Raises:
        DataError: The source cannot be read; with `strict`, one of its samples.
        InterruptedRun: Ctrl-C; the same command goes on.
        OutputError: The folder is full, read-only, or holds shards of something else under these names.
        UsageError: Another process is writing there.
    """
    corpus = plan.corpus()
    index = index_file(folder, corpus.split)
    key = plan.key(corpus)
    if index.exists():
        return _finished(index, key)
    numbers = range(-(-len(corpus) // plan.shard_size))
    names = [f"{corpus.split or 'all'}-{number:06d}{SUFFIX}" for number in numbers]
    done: dict[int, Shards] = {}

    def tell() -> None:
        if progress is not None:
            progress(sum(len(plan.rows(number, corpus)) for number in done), len(corpus))

    with hold_run(folder):
        for number in numbers:
            kept = _kept(folder / names[number], key)
            if kept is not None:
                done[number] = kept
        tell()
        left = [number for number in numbers if number not in done]
        try:
            for number, note in _made(plan, corpus, folder, names, left, key=key, workers=workers):
                done[number] = note
                tell()
        except KeyboardInterrupt as error:
            raise InterruptedRun(f"stopped with {len(done)} of {len(numbers)} shards", where=str(folder)) from error
        packed = joined([done[number] for number in numbers])
        if not len(packed):
            raise DataError(f"none of {len(corpus)} pictures can be read", expected="at least one", where=plan.source)
        left_out = {reason: (len(keys), keys[:NAMED]) for reason, keys in corpus.skipped.items()}
        write_index(index, replace(packed, skipped={**left_out, **packed.skipped}), key=key)
        for name in names:
            _note_file(folder / name).unlink(missing_ok=True)
    return read_index(index)


def _finished(index: Path, key: str) -> Shards:
    try:
        found = read_index(index)
    except DataError as error:
        raise DataError(
            error.found,
            expected=error.expected,
            where=error.where,
            do="Delete it and type the same command, which makes the shards anew; or name another folder with --shards",
        ) from error
    if read_json(index).get("key") != key:
        raise OutputError(
            "shards of another source, or packed with other options",
            expected="a folder without this split's shards, or the same source and options",
            where=str(index),
            do="Name another folder with --shards, or delete these",
        )
    odd = [shard.path.name for shard in found.shards if sha256_file(shard.path) != shard.sha256]
    if odd:
        raise DataError(
            f"{len(odd)} shards have changed since they were written: {', '.join(odd[:5])}",
            expected="the sha256 in the index file",
            where=str(index.parent),
            do=f"Restore them; or delete {index.name} and them, and type the same command to write them again",
        )
    lacking = [shard for shard in found.shards if not _has_places(shard)]
    if lacking:  # written by an earlier version, or lost
        with hold_run(index.parent):
            found = replace(
                found, shards=tuple(_with_places(shard) if shard in lacking else shard for shard in found.shards)
            )
            write_index(index, found, key=key)
    return found


def _made(
    plan: Plan, corpus: Corpus, folder: Path, names: list[str], left: list[int], *, key: str, workers: int
) -> Iterator[tuple[int, Shards]]:
    """Makes the shards that are missing, in any order."""
    workers = min(workers, len(left))
    if workers <= 1:
        for number in left:
            yield number, _write_shard(plan, corpus, number, folder / names[number], key=key)
        return
    # spawn: a forked copy of a process with threads may find a lock taken for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=live_with_parent) as pool, ending_children():
        waiting: dict[Future[Shards], int] = {
            pool.submit(_write_in_child, plan, number, folder / names[number], key): number for number in left
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise DataError(
                "a packing process ended before its shard (killed, or out of memory)",
                expected="processes that live until they are done",
                where=str(folder),
                do="Type the same command to go on, with fewer --workers where memory is short",
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # shards that nobody began are not made
            raise


@functools.lru_cache(maxsize=1)
def _opened(plan: Plan) -> Corpus:
    return plan.corpus()


def _write_in_child(plan: Plan, number: int, file: Path, key: str) -> Shards:
    corpus = _opened(plan)
    if plan.key(corpus) != key:
        raise DataError(
            "the source changed while it was packed",
            expected="files that stay as they are",
            where=plan.source,
            do="Type the same command again",
        )
    return _write_shard(plan, corpus, number, file, key=key)


def _write_shard(plan: Plan, corpus: Corpus, number: int, file: Path, *, key: str) -> Shards:
    """Makes one shard; what is returned, and noted beside it, is the index of it alone."""
    rows = plan.rows(number, corpus)
    skipped: list[str] = []
    settle(file)
    aside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with one_blas_thread(), aside.open("wb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for start in range(rows.start, rows.stop, _CHUNK):
                    chunk = range(start, min(start + _CHUNK, rows.stop))
                    _add(archive, plan, corpus, chunk, skipped=skipped)
            stream.flush()
            os.fsync(stream.fileno())
        found = survey(aside)
        assert not found.skipped, f"a shard of ours that cannot be read back: {found.skipped}"
        aside.replace(file)
    except OSError as error:
        raise output_error(error, where=file) from error
    finally:
        aside.unlink(missing_ok=True)
    note = replace(
        found,
        source=corpus.source,
        split=corpus.split,
        licence=corpus.licence,
        research_only=corpus.research_only,
        shards=tuple(_with_places(replace(shard, path=file)) for shard in found.shards),
        skipped={UNDECODABLE: (len(skipped), tuple(skipped[:NAMED]))} if skipped else {},
        px=plan.px,
        margin=plan.margin,
        corpus=corpus.name,
        scales=corpus.scales,
    )
    write_index(_note_file(file), note, key=key)
    return note


def _with_places(shard: Shard) -> Shard:
    """Writes the table of a shard's places."""
    table = tabulate(shard.path)
    content = encode_places(table.names, table.spans, table.places)
    write_bytes(places_file(shard.path), content)
    return replace(shard, places_sha256=hashlib.sha256(content).hexdigest())


def _has_places(shard: Shard) -> bool:
    file = places_file(shard.path)
    return file.is_file() and sha256_file(file) == shard.places_sha256


def _add(archive: tarfile.TarFile, plan: Plan, corpus: Corpus, rows: range, *, skipped: list[str]) -> None:
    """Adds samples to a shard."""
    crops = cut(corpus, rows, px=plan.px, margin=plan.margin)
    chosen = np.arange(rows.start, rows.stop, dtype=np.int64)
    labels = packed_labels(corpus, chosen, margin=plan.margin)
    for place, (row, crop) in enumerate(zip(rows, crops, strict=True)):
        if isinstance(crop, DataError):
            if plan.strict:
                raise crop
            skipped.append(f"{corpus.keys[row]} ({crop.found})")
            continue
        told = _told(corpus, row, labels, place, px=plan.px, margin=plan.margin)
        for suffix, content in ((plan.encoding, encode_picture(crop, plan.encoding)), ("json", told)):
            member = tarfile.TarInfo(f"{row:08d}.{suffix}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _told(corpus: Corpus, row: int, labels: Labels, place: int, *, px: int, margin: float) -> bytes:
    person, key = corpus.people[row], corpus.keys[row]
    groups = {name: str(values[row]) for name, values in corpus.groups.items() if values[row]}
    told = {
        "key": key,
        **({"person": person} if person != key else {}),
        "crop": [px / 2, px / 2, px / margin],
        "labels": encode_labels(labels, place, px=px),
        **({"groups": groups} if groups else {}),
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def encode_picture(crop: NDArray[np.uint8], encoding: str) -> bytes:
    """A picture file of (H, W, 3) RGB pixels, in one of ENCODINGS."""
    from PIL import Image

    if encoding == "ppm":
        return f"P6 {crop.shape[1]} {crop.shape[0]} 255\n".encode() + crop.tobytes()
    stream = io.BytesIO()
    if encoding == "png":
        Image.fromarray(crop).save(stream, "PNG", compress_level=PNG_LEVEL)
    else:
        Image.fromarray(crop).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _note_file(file: Path) -> Path:
    return file.with_name(f".{file.name}.json")


def _kept(file: Path, key: str) -> Shards | None:
    """What is known of a shard that an earlier attempt finished; None where it has to be made."""
    note = _note_file(file)
    try:
        if read_json(note)["key"] != key:
            return None
        found = read_index(note)
        (shard,) = found.shards
        return found if sha256_file(file) == shard.sha256 and _has_places(shard) else None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
