"""Training data beyond memory: shards read sample by sample, in an order that is a function of seed and epoch alone.

What is read is what was written: a shard is hashed before it is read for the first time, and again where its file has
become another one (`edgeface.data.intact`).

The order of an epoch: shards are shuffled, then taken in windows of about BUFFER samples, and the samples of a window
are shuffled among each other. Nothing is drawn while reading, so any batch of any epoch can be begun with: a stopped
run goes on with the batches it would have had, and each process of several reads its share of them alone. Every sample
comes once an epoch. Where all of them fit one window, the order is that of `Batches`, and so are the batches.

What is in memory grows with the number of shards (a few bytes of each), not of samples: the places of the samples of
the shards that are open, and a few batches read ahead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.data.augment import hash64
from edgeface.data.corpus import Labels, unlabelled
from edgeface.data.derive import DERIVATIONS, derive_labels
from edgeface.data.geometry import require_mirror
from edgeface.data.intact import Stamp, require_all_intact, require_intact, stamp
from edgeface.data.loader import ORDER, Batch, class_counts, share_of_batch, varied
from edgeface.data.pack import DECODERS, Pack
from edgeface.data.shards import Shard, Shards, Summary, Table, open_shards, read_crops
from edgeface.data.sources import parse_source, shards_path
from edgeface.data.tar import open_tar
from edgeface.data.webdataset import NAME
from edgeface.errors import ConfigError
from edgeface.files import sha256_json
from edgeface.specs import AugmentSpec
from edgeface.tasks import TASKS, Kind

BUFFER = 1 << 16  # samples that are shuffled among each other
OPEN = 64  # shards of a window at most, which bounds the memory for shards of few samples each
AHEAD = 4  # batches that are read while another one is trained on
_SHARDS = 0x736861726473  # keeps the shards' random numbers apart from the samples'


class _Names(Sequence[str]):
    """Names that are made when they are asked for."""

    def name(self, index: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self.name(place) for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.name(index)


class _Keys(_Names):
    """The samples of shards: shard and row."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._ends = np.cumsum([shard.samples for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        return f"{shard.path.name}, sample {index - (int(self._ends[number]) - shard.samples)}"


class _Skipped(_Names):
    """Samples left out for one reason, of which the first are named."""

    def __init__(self, count: int, keys: Sequence[str]) -> None:
        self._count, self._keys = count, keys

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return self._keys[index] if index < len(self._keys) else "…"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Shards in the place of a pack: cut to one size while they are read, never all in memory.

    Attributes:
        shards: What is read.
        px: Side of the crops in pixels.
        margin: Side of the crops over the side of the nominal crop.
        derive: Tasks whose labels are derived from others.
        stamps: Number of a shard to what its file was when its bytes were found to be those that were written.
    """

    shards: Shards
    px: int
    margin: float
    derive: tuple[str, ...] = ()
    stamps: dict[int, Stamp] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def name(self) -> str:
        """Reader's name of what was packed, else the reader of shards."""
        return self.shards.corpus or NAME

    @property
    def source(self) -> str:
        """Source as typed."""
        return self.shards.source

    @property
    def split(self) -> str:
        """The part that is read."""
        return self.shards.split

    @property
    def licence(self) -> str:
        """Terms in a few words."""
        return self.shards.licence

    @property
    def research_only(self) -> bool:
        """True when weights trained on it may not be shipped."""
        return self.shards.research_only

    @property
    def skipped(self) -> Mapping[str, Sequence[str]]:
        """Reason to the samples left out for it, of which the first are named."""
        return {reason: _Skipped(count, keys) for reason, (count, keys) in self.shards.skipped.items()}

    @property
    def keys(self) -> Sequence[str]:
        """Names of the samples by place: shard and row."""
        return _Keys(self.shards.shards)

    @property
    def labels(self) -> Mapping[str, Summary]:
        """What is known of each task's labels; of a derived one only that there are some."""
        made = {name: Summary() for name in self.derive if name not in self.shards.tasks and self._derivable(name)}
        return {**self.shards.tasks, **made}

    def _derivable(self, name: str) -> bool:
        none = {task: unlabelled(TASKS[task], 1) for task in self.shards.tasks}
        return name in DERIVATIONS and DERIVATIONS[name](none) is not None

    @property
    def content_hash(self) -> str:
        """Digest of the samples, and of how they are cut."""
        return sha256_json([self.shards.content_hash, self.px, self.margin])

    def require_intact(self, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Make sure, before anything is read, that every shard holds the bytes that were written.

        Raises:
            DataError: One does not; `content_hash` would be that of other samples.
        """
        self.stamps.update(require_all_intact(self.shards, progress=progress))

    @contextmanager
    def open(self, number: int) -> Iterator[int]:
        """A descriptor of a shard, by its number; one that was not hashed yet, or is another file since, is hashed.

        Raises:
            DataError: Its bytes are not those that were written.
        """
        shard = self.shards.shards[number]
        with open_tar(shard.path) as descriptor:
            if self.stamps.get(number) != stamp(descriptor):
                self.stamps[number] = require_intact(shard, descriptor)
            yield descriptor

    def read(
        self, descriptor: int, table: Table, rows: NDArray[np.int64], *, tasks: Sequence[str]
    ) -> tuple[NDArray[np.uint8], Labels]:
        """Crops of some samples of a shard, and their labels of `tasks`, as a pack holds them."""
        needed = tuple(self.shards.tasks) if self.derive else tuple(name for name in tasks if name in self.shards.tasks)
        images, labels = read_crops(
            descriptor, table, rows, shards=self.shards, px=self.px, margin=self.margin, tasks=needed
        )
        if self.derive:
            labels, _ = derive_labels(labels, self.derive, count=len(rows))
        return images, {name: labels[name] for name in tasks if name in labels}


class Taught(Protocol):
    """What a teacher answered for streamed samples: distill.foreign.ShardAnswers."""

    def rows(self, shard: Shard, rows: NDArray[np.int64], *, margin: float) -> dict[str, NDArray[np.float32]]: ...

    def none(self, count: int) -> dict[str, NDArray[np.float32]]: ...


def open_stream(source: str, *, px: int, margin: float, derive: Sequence[str] = ()) -> Stream | None:
    """A source that is streamed, or None for one that is packed.

    Args:
        source: As for `open_source`.
        px: Side of the crops in pixels.
        margin: Side of the crops over the side of the nominal crop.
        derive: Tasks whose labels are derived from others.

    Raises:
        DataError: As `open_shards`.
        UsageError: As `open_shards`.
    """
    parsed = parse_source(source)
    if parsed.corpus != NAME:
        return None
    shards = open_shards(shards_path(parsed), source=source, split=parsed.split)
    return Stream(shards=shards, px=px, margin=margin, derive=tuple(derive))


def mean_shape(name: str, parts: Sequence[Pack | Stream]) -> NDArray[np.float64]:
    """(K, 2) mean landmarks of all labelled samples, in sides of the nominal crop."""
    total, count = np.zeros((TASKS[name].points, 2)), 0
    for part in parts:
        if name not in part.labels:
            continue
        if isinstance(part, Stream):
            summary = part.labels[name]
            total, count = total + summary.shape, count + summary.labelled
        else:
            points = part.labels[name].astype(np.float64)
            points = (points[np.isfinite(points).all(axis=(1, 2))] - 0.5) * part.margin + 0.5
            total, count = total + points.sum(axis=0), count + len(points)
    return np.asarray(total / max(1, count))


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """What is shuffled as a whole: a shard, or as many rows of a pack.

    Attributes:
        part: Index of the pack or stream it is of.
        number: Index of the shard; of a pack, the first row.
        count: Samples.
    """

    part: int
    number: int
    count: int


class _Tables:
    """The tables of the shards that were used last, shared by the threads that read."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[_Unit, Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, unit: _Unit, shard: Shard) -> Table:
        with self._lock:  # held while a shard is gone through, so that two threads do not both do it
            table = self._kept.pop(unit, None) or shard.table()
            self._kept[unit] = table
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return table


class StreamBatches:
    """Shuffled, augmented batches of streamed sources, or of streamed and packed ones together.

    Args:
        parts: Streams and packs of one size and margin.
        tasks: Tasks whose labels are wanted; a part without one contributes samples without a label.
        augment: How crops vary.
        input_px: Side of the crops handed out.
        batch: Samples of a batch; a last, shorter one is dropped.
        seed: Decides order and augmentation together with the epoch.
        answers: What a teacher answered for streamed samples.
        rank: Which process this is, 0 to `world` - 1. It is handed its consecutive share of each batch.
        world: Processes that share each batch of `batch` samples.
        buffer: Samples that are shuffled among each other.

    Raises:
        ConfigError: As `Batches`.
        UnsupportedError: As `Batches`.
    """

    def __init__(
        self,
        parts: Sequence[Pack | Stream],
        *,
        tasks: Sequence[str],
        augment: AugmentSpec,
        input_px: int,
        batch: int,
        seed: int,
        answers: Taught | None = None,
        rank: int = 0,
        world: int = 1,
        buffer: int = BUFFER,
    ) -> None:
        shapes = {(part.px, part.margin) for part in parts}
        if len(shapes) != 1:
            raise ConfigError(
                f"parts of (pixels, margin) {sorted(shapes)}", expected="one size and one margin", where="data.train"
            )
        ((self._px, self._margin),) = shapes
        self._parts, self._tasks, self._answers = tuple(parts), tuple(tasks), answers
        self._augment, self._input_px, self._batch, self._seed = augment, input_px, batch, seed
        self._share, self._buffer = share_of_batch(batch, rank=rank, world=world), buffer
        self._units = [unit for place, part in enumerate(parts) for unit in _units(place, part)]
        self._starts = np.cumsum([0, *(unit.count for unit in self._units)])
        self._count = int(self._starts[-1])
        self._before = self._people_before()
        if self._count < batch:
            raise ConfigError(
                f"{self._count} samples", expected=f"at least one batch of {batch}", where="train.batch", do="Lower it"
            )
        unknown = [name for name in tasks if not any(name in part.labels for part in parts)]
        if unknown:
            raise ConfigError(
                f"no source labels {', '.join(map(repr, unknown))}",
                expected=f"tasks among {', '.join(sorted({name for part in parts for name in part.labels}))}",
                where="tasks",
                do="Drop the task, or add a source that has its labels",
            )
        if augment.mirror_share > 0.0:
            for name in tasks:
                require_mirror(name)
        smallest = np.cumsum(np.sort([unit.count for unit in self._units]))
        window = int(np.clip(np.searchsorted(smallest, buffer, side="right"), 1, OPEN))
        self._tables = _Tables(most=2 * window)  # of the window that is read, and of the next or the last one

    def __len__(self) -> int:
        return self._count

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self._count // self._batch

    @property
    def people(self) -> int:
        """How many people the labels tell apart; 0 when identity is not among the tasks."""
        return self._before[-1] if "identity" in self._tasks else 0

    def class_counts(self, name: str) -> Tensor:
        """Samples of each class of a task, as `edgeface.data.loader.class_counts` counts them.

        Raises:
            ConfigError: Its labels are derived while they are read, so that nobody has counted them.
        """
        total: Tensor | None = None
        for part in self._parts:
            if name not in part.labels:
                continue
            if isinstance(part, Stream):
                if name in part.derive:
                    raise ConfigError(
                        f"labels of {name!r} that are derived from streamed ones, and not counted",
                        expected="a loss that needs no counts of classes",
                        where=f"loss.forms.{name}",
                        do="Take 'focal' or the plain loss",
                    )
                found = torch.from_numpy(part.labels[name].counts)
            else:
                found = class_counts(name, torch.from_numpy(part.labels[name]))
            total = found if total is None else total + found
        assert total is not None, "a task that no source labels is refused at the start"
        return total

    def windows(self, epoch: int) -> list[NDArray[np.int64]]:
        """Numbers of the units, shuffled, in groups whose samples are shuffled among each other."""
        keys = hash64(self._seed ^ _SHARDS, epoch, torch.arange(len(self._units)), draws=1)[:, 0]
        order = torch.argsort(keys, stable=True).numpy()
        groups: list[list[int]] = [[]]
        held = 0
        for number in order.tolist():
            if groups[-1] and (held + self._units[number].count > self._buffer or len(groups[-1]) == OPEN):
                groups.append([])
                held = 0
            groups[-1].append(number)
            held += self._units[number].count
        return [np.sort(np.asarray(group, np.int64)) for group in groups]

    def order(self, window: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The ids of a window's samples in the order of an epoch."""
        ids = np.concatenate([np.arange(self._starts[number], self._starts[number + 1]) for number in window])
        keys = hash64(self._seed ^ ORDER, epoch, torch.from_numpy(ids), draws=1)[:, 0]
        return np.asarray(ids[torch.argsort(keys, stable=True).numpy()])

    def ids(self, epoch: int, *, start_step: int = 0) -> Iterator[NDArray[np.int64]]:
        """(B,) ids of each whole batch of an epoch, from a step on."""
        windows = self.windows(epoch)
        sizes = [int(sum(self._units[number].count for number in window)) for window in windows]
        left = start_step * self._batch
        rest = np.zeros(0, np.int64)
        for window, size in zip(windows, sizes, strict=True):
            if left >= size:
                left -= size
                continue
            rest = np.concatenate([rest, self.order(window, epoch)[left:]])
            left = 0
            whole = len(rest) // self._batch * self._batch
            yield from rest[:whole].reshape(-1, self._batch)
            rest = rest[whole:]

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """This process's share of the batches of an epoch, from a step on."""
        shares = (ids[self._share] for ids in self.ids(epoch, start_step=start_step))
        with ThreadPoolExecutor(max_workers=DECODERS) as pool:
            waiting: deque[tuple[NDArray[np.int64], Future[_Loaded]]] = deque()
            try:
                for ids in shares:
                    waiting.append((ids, pool.submit(self._load, ids)))
                    if len(waiting) >= AHEAD:
                        yield self._varied(*waiting.popleft(), epoch=epoch)
                while waiting:
                    yield self._varied(*waiting.popleft(), epoch=epoch)
            finally:
                for _, future in waiting:
                    future.cancel()

    def at(self, ids: NDArray[np.int64], *, epoch: int) -> Batch:
        """The batch of these samples, as they look in an epoch."""
        loaded: Future[_Loaded] = Future()
        loaded.set_result(self._load(ids))
        return self._varied(ids, loaded, epoch=epoch)

    def _varied(self, ids: NDArray[np.int64], loaded: Future[_Loaded], *, epoch: int) -> Batch:
        images, labels, answers = loaded.result()
        places = torch.from_numpy(ids)
        return varied(
            torch.from_numpy(images),
            {name: torch.from_numpy(values) for name, values in labels.items()},
            {name: torch.from_numpy(values) for name, values in answers.items()},
            spec=self._augment,
            margin=self._margin,
            out_px=self._input_px,
            seed=self._seed,
            epoch=epoch,
            ids=places,
            draws=places,
        )

    def _load(self, ids: NDArray[np.int64]) -> _Loaded:
        """Crops, labels and answers of some samples, read shard by shard."""
        count = len(ids)
        images = np.empty((count, self._px, self._px, 3), np.uint8)
        labels: Labels = {name: unlabelled(TASKS[name], count) for name in self._tasks}
        answers = {} if self._answers is None else self._answers.none(count)
        owners = np.searchsorted(self._starts, ids, side="right") - 1
        for number in np.unique(owners):
            places = np.flatnonzero(owners == number)
            rows = ids[places] - self._starts[number]
            unit = self._units[number]
            part = self._parts[unit.part]
            if isinstance(part, Stream):
                shard = part.shards.shards[unit.number]
                table = self._tables.get(unit, shard)
                with part.open(unit.number) as descriptor:
                    images[places], told = part.read(descriptor, table, rows, tasks=self._tasks)
                if self._answers is not None:
                    for name, values in self._answers.rows(shard, rows, margin=self._margin).items():
                        answers[name][places] = values
            else:
                rows = rows + unit.number
                images[places] = part.images[rows]
                told = {name: part.labels[name][rows] for name in self._tasks if name in part.labels}
            for name, values in told.items():
                labels[name][places] = self._renumbered(name, values, unit.part)
        return images, labels, answers

    def _renumbered(self, name: str, values: NDArray[Any], part: int) -> NDArray[Any]:
        """People are counted on from part to part: each numbers its own from 0, and two share none."""
        if TASKS[name].kind is not Kind.IDENTITY:
            return values
        return np.where(values >= 0, values + self._before[part], values)

    def _people_before(self) -> list[int]:
        """How many people the parts before each one tell apart, and all of them."""
        before = [0]
        for part in self._parts:
            before.append(before[-1] + _people(part))
        return before


def _people(part: Pack | Stream) -> int:
    if "identity" not in part.labels:
        return 0
    return (
        part.labels["identity"].people if isinstance(part, Stream) else int(part.labels["identity"].max(initial=-1)) + 1
    )


_Loaded = tuple[NDArray[np.uint8], Labels, dict[str, NDArray[np.float32]]]


def _units(place: int, part: Pack | Stream, *, rows: int = 4096) -> list[_Unit]:
    if isinstance(part, Stream):
        shards = enumerate(part.shards.shards)
        return [_Unit(part=place, number=number, count=shard.samples) for number, shard in shards if shard.samples]
    edges = [*range(0, len(part), rows), len(part)]
    return [_Unit(part=place, number=first, count=end - first) for first, end in pairwise(edges) if end > first]


def once(
    stream: Stream, *, rank: int = 0, world: int = 1, chunk: int = 256, wanted: Callable[[Shard], bool] | None = None
) -> Iterator[tuple[Shard, Iterator[NDArray[np.uint8]]]]:
    """Every sample exactly once over all processes, in order: the shards of this one, and the crops of each.

    Args:
        stream: What is read, at the size and margin wanted.
        rank: Which process this is, 0 to `world` - 1.
        world: Processes that share the work; each takes every `world`-th shard.
        chunk: Samples that are in memory at a time.
        wanted: Whether a shard is needed; None takes all.

    Yields:
        A shard, and its (n, px, px, 3) crops in pieces, which are to be taken before the next shard is.
    """
    for number in range(rank, len(stream.shards.shards), world):
        shard = stream.shards.shards[number]
        if wanted is None or wanted(shard):
            yield shard, _pieces(stream, number, chunk=chunk)


def _pieces(stream: Stream, number: int, *, chunk: int) -> Iterator[NDArray[np.uint8]]:
    table = stream.shards.shards[number].table()
    edges = [*range(0, len(table), chunk), len(table)]
    with stream.open(number) as descriptor, ThreadPoolExecutor(max_workers=DECODERS) as pool:
        waiting: deque[Future[tuple[NDArray[np.uint8], Labels]]] = deque()
        for first, end in pairwise(edges):
            if end > first:
                waiting.append(pool.submit(stream.read, descriptor, table, np.arange(first, end), tasks=()))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()[0]
        while waiting:
            yield waiting.popleft().result()[0]
