"""Evaluation crops: of shards read batch by batch, of every other source cut into the cache once.

Of shards, labels and names are in memory, a few hundred bytes a sample, and so is what is in the making of pictures: a
few batches. They are the labels and pictures that `edgeface.data.pack` would keep of the same shards, to the last bit,
and each sample stands there once, in the order of the shards.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus
from edgeface.data.geometry import crop_image
from edgeface.data.pack import DECODERS, SURVEYS, UNDECODABLE, Pack, Progress, cache_folder, pack, packed_labels
from edgeface.data.shards import Table, read_pictures
from edgeface.data.sources import open_source
from edgeface.data.stream import Stream, open_stream
from edgeface.data.webdataset import labelled
from edgeface.errors import DataError, OutputError
from edgeface.files import read_json, sha256_json, write_json

_TABLES = 8  # shards whose tables of places stay in memory; rows are asked for in order, by a few threads
_VERSION = 1  # of what is kept of pictures that cannot be read
_CHUNK = 256  # pictures that a thread tries at a time
_TRIED_PX = 8  # to which a picture is cut to see whether it can be


class StreamedCrops:
    """(N, px, px, 3) RGB crops of shards, read where they are asked for; `edgeface.data.pack.Images`.

    Args:
        stream: The shards, at the size and margin wanted.
        crops: (N, 3) centre x, centre y and side of each sample's nominal crop in pixels of its picture.
        places: (N,) where each sample stands among all samples of the shards.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, stream: Stream, crops: NDArray[np.float32], places: NDArray[np.int64]) -> None:
        self._stream, self._crops, self._places = stream, crops, places
        shards = stream.shards.shards
        self._ends = np.cumsum([shard.samples for shard in shards])
        self._table = lru_cache(maxsize=_TABLES)(lambda number: shards[number].table())
        self.shape = (len(places), stream.px, stream.px, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Of an int (px, px, 3), of a slice or an array of rows (n, px, px, 3).

        Raises:
            DataError: A shard is not what it was, or a picture cannot be read.
        """
        if isinstance(rows, slice):
            return self._read(np.arange(*rows.indices(len(self))))
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            return self._read(np.flatnonzero(chosen))
        found = self._read(np.arange(len(self))[chosen.reshape(-1)])
        return found[0] if chosen.ndim == 0 else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them, in memory."""
        return np.asarray(self[:], dtype=dtype)

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        places = self._places[rows]
        owners = np.searchsorted(self._ends, places, side="right")
        for number in np.unique(owners).tolist():
            here = np.flatnonzero(owners == number)
            table = self._table(number)
            inside = places[here] - (int(self._ends[number]) - len(table))
            with self._stream.open(number) as descriptor:
                for place, picture in zip(here, read_pictures(descriptor, table, inside), strict=True):
                    images[place] = self._cut(picture, self._crops[rows[place]])
        return images

    def _cut(self, picture: NDArray[np.uint8], crop: NDArray[np.float32]) -> NDArray[np.uint8]:
        px, margin = self._stream.px, self._stream.margin
        if picture.shape == self.shape[1:] and crop.tolist() == [px / 2, px / 2, px / margin]:
            return picture  # what it would be cut to
        return crop_image(picture, crop, px=px, margin=margin)


def evaluation_crops(
    source: str, *, px: int, root: Path, strict: bool = False, progress: Progress | None = None
) -> Pack:
    """The nominal crop of every face of a source.

    Args:
        source: As for `open_source`.
        px: Side of the crops in pixels.
        root: Folder that holds the corpora.
        strict: Whether a sample that cannot be read is an error; otherwise it is counted and listed.
        progress: Called with the number of faces cut, or of shards looked through, and their total.

    Raises:
        DataError: The source cannot be read; with `strict`, one of its samples.
    """
    stream = open_stream(source, px=px, margin=1.0)
    if stream is None:
        corpus = open_source(source, root=root, strict=strict)
        return pack(corpus, px=px, margin=1.0, strict=strict, progress=progress)
    stream.require_intact(progress=progress)
    corpus, places = labelled(stream.shards, strict=strict)
    if not stream.shards.corpus:  # `edgeface data pack` encoded all pictures itself; others may have kept broken ones
        corpus, places = _decodable(stream, corpus, places, strict=strict, progress=progress)
    return Pack(
        images=StreamedCrops(stream, corpus.crops, places),
        px=px,
        margin=1.0,
        keys=corpus.keys,
        people=corpus.people,
        labels=packed_labels(corpus, np.arange(len(corpus)), margin=1.0),
        groups=corpus.groups,
        name=corpus.name,
        source=corpus.source,
        split=corpus.split,
        licence=corpus.licence,
        research_only=corpus.research_only,
        skipped={reason: tuple(keys) for reason, keys in corpus.skipped.items()},
        content_hash=stream.content_hash,
        folder=stream.shards.shards[0].path.parent,
    )


def _decodable(
    stream: Stream, corpus: Corpus, places: NDArray[np.int64], *, strict: bool, progress: Progress | None
) -> tuple[Corpus, NDArray[np.int64]]:
    """The samples whose pictures can be read."""
    broken = _broken(stream, corpus.crops, places, progress=progress)
    if not broken:
        return corpus, places
    rows = np.flatnonzero(np.isin(places, list(broken)))
    listed = tuple(f"{corpus.keys[row]} ({broken[int(places[row])]})" for row in rows.tolist())
    if strict or rows.size == len(places):
        raise DataError(
            f"a picture cannot be read: {listed[0]}" if strict else f"none of {len(places)} pictures can be read",
            expected="whole pictures" if strict else "at least one",
            where=corpus.source,
            do="Write the shards again without it" if strict else f"First: {listed[0]}",
        )
    kept = np.setdiff1d(np.arange(len(places)), rows)
    return replace(corpus.select(kept), skipped={**corpus.skipped, UNDECODABLE: listed}), places[kept]


def _broken(
    stream: Stream, crops: NDArray[np.float32], places: NDArray[np.int64], *, progress: Progress | None
) -> dict[int, str]:
    """Place of a sample to why its picture cannot be read: tried once, and kept for as long as the shards stay."""
    note = cache_folder() / SURVEYS / f"pictures-{sha256_json([_VERSION, stream.shards.content_hash])[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return {int(place): str(why) for place, why in read_json(note)["broken"].items()}
    broken: dict[int, str] = {}
    done = 0
    ends = np.cumsum([shard.samples for shard in stream.shards.shards])
    with ThreadPoolExecutor(max_workers=DECODERS) as pool:
        for number, (shard, end) in enumerate(zip(stream.shards.shards, ends.tolist(), strict=True)):
            start = end - shard.samples
            first, last = np.searchsorted(places, [start, end]).tolist()
            chunks = [slice(at, min(at + _CHUNK, last)) for at in range(first, last, _CHUNK)]
            tried = partial(_tried, stream, number, shard.table())
            rows = (places[chunk] - start for chunk in chunks)
            for chunk, odd in zip(chunks, pool.map(tried, rows, (crops[chunk] for chunk in chunks)), strict=True):
                broken |= {start + row: why for row, why in odd.items()}
                done += chunk.stop - chunk.start
                if progress is not None:
                    progress(done, len(places))
    with contextlib.suppress(OutputError):  # a cache that takes no notes costs time, nothing else
        write_json(note, {"broken": {str(place): why for place, why in broken.items()}})
    return broken


def _tried(
    stream: Stream, number: int, table: Table, rows: NDArray[np.int64], crops: NDArray[np.float32]
) -> dict[int, str]:
    """Row of a shard to why its picture cannot be read, or cut."""
    broken = {}
    with stream.open(number) as descriptor:
        for row, crop in zip(rows.tolist(), crops, strict=True):
            try:
                crop_image(next(read_pictures(descriptor, table, [row])), crop, px=_TRIED_PX, margin=stream.margin)
            except DataError as error:
                broken[row] = error.found
    return broken
