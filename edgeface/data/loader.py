"""Batches for training: an endless, resumable order over one or more packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.data.ahead import ahead
from edgeface.data.augment import augment, hash64, move_answers
from edgeface.data.corpus import unlabelled
from edgeface.data.geometry import require_mirror
from edgeface.data.pack import Pack
from edgeface.errors import ConfigError
from edgeface.specs import AugmentSpec
from edgeface.tasks import TASKS, Kind

ORDER = 0x6F72646572  # keeps the order's random numbers apart from augmentation's


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Augmented crops with their labels.

    Attributes:
        images: (B, 3, I, I) float32, whole values 0 to 255.
        labels: Every requested task, coded as in tasks.py; landmarks in sides of these crops. Under `answered(task)`
            what a teacher answered before, where it did.
        ids: (B,) int64 place of each sample in the packs laid end to end.
    """

    images: Tensor
    labels: dict[str, Tensor]
    ids: Tensor


def answered(task: str) -> str:
    """Where a batch's labels hold a stored teacher's answers to a task; rows it has not seen are NaN."""
    return f"{task} (teacher)"


def share_of_batch(batch: int, *, rank: int, world: int) -> slice:
    """The rows of a batch that one of several processes computes: the shares in order of rank are the batch.

    Raises:
        ConfigError: The processes cannot have equal shares.
    """
    if batch % world:
        raise ConfigError(
            f"a batch of {batch} for {world} processes",
            expected="equal shares",
            where="train.batch",
            do=f"Take a multiple of {world}, or another number of processes",
        )
    part = batch // world
    return slice(rank * part, (rank + 1) * part)


class Batches:
    """Shuffled, augmented batches.

    Order and augmentation are pure functions of (seed, epoch, sample id). Ids count through the packs as given.

    Args:
        packs: Packs of one size and margin.
        tasks: Tasks whose labels are wanted; a pack without one contributes samples without a label.
        augment: How crops vary.
        input_px: Side of the crops handed out.
        batch: Samples of a batch; a last, shorter one is dropped.
        seed: Decides order and augmentation together with the epoch.
        balance: Task of kind `classes` to draw samples by; "" takes each sample once an epoch. Unlabelled samples count
            as a class of their own.
        databases: One of specs.DATABASES: "database" draws as many samples of each database, in each batch too, of a
            small one more than once an epoch.
        answers: Task name to what a teacher answered for each sample: landmarks as points in sides of the packed crop,
            else raw outputs. They move with the crops as labels do.
        rank: Which process this is, 0 to `world` - 1. It is handed its consecutive share of each batch.
        world: Processes that share each batch of `batch` samples.
        threads: Threads that make the next batches while the network is busy with this one; 0 makes each when it is
            asked for. Batches are the same.

    Raises:
        ConfigError: Packs of different size or margin, fewer samples than one batch, a batch that `world` does not
            divide, or a task nobody labels.
        UnsupportedError: Mirroring of landmarks whose mirrored order is not known.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        *,
        tasks: Sequence[str],
        augment: AugmentSpec,
        input_px: int,
        batch: int,
        seed: int,
        balance: str = "",
        databases: str = "",
        answers: Mapping[str, Tensor] | None = None,
        rank: int = 0,
        world: int = 1,
        threads: int = 0,
    ) -> None:
        shapes = {(pack.px, pack.margin) for pack in packs}
        if len(shapes) != 1:
            raise ConfigError(
                f"packs of (pixels, margin) {sorted(shapes)}", expected="one size and one margin", where="data.train"
            )
        ((_, self._margin),) = shapes
        self._images = [pack.images for pack in packs]
        self._starts = np.cumsum([0, *(len(pack) for pack in packs)])
        self._count = int(self._starts[-1])
        self._labels = {name: _joined(packs, name) for name in tasks}
        self._answers = dict(answers or {})
        self._augment, self._input_px, self._batch, self._seed = augment, input_px, batch, seed
        self._share = share_of_batch(batch, rank=rank, world=world)
        self._threads = threads
        if self._count < batch:
            raise ConfigError(
                f"{self._count} samples", expected=f"at least one batch of {batch}", where="train.batch", do="Lower it"
            )
        unknown = [name for name in tasks if not any(name in pack.labels for pack in packs)]
        if unknown:
            raise ConfigError(
                f"no source labels {', '.join(map(repr, unknown))}",
                expected=f"tasks among {', '.join(sorted({name for pack in packs for name in pack.labels}))}",
                where="tasks",
                do="Drop the task, or add a source that has its labels",
            )
        if augment.mirror_share > 0.0:
            for name in tasks:
                require_mirror(name)
        self._weights = None if balance == "" else _balanced(_joined(packs, balance), balance)
        self._database = _databases(packs) if databases else None
        if self._database is not None:
            weights = np.ones(self._count) if self._weights is None else self._weights
            totals = np.bincount(self._database, weights)
            self._weights = weights * (self._count / (len(totals) * totals))[self._database]

    def __len__(self) -> int:
        return self._count

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self._count // self._batch

    @property
    def labels(self) -> dict[str, Tensor]:
        """All labels by id; landmarks in sides of the PACKED crop."""
        return dict(self._labels)

    def class_counts(self, name: str) -> Tensor:
        """Samples of each class of a task, as `class_counts` counts them."""
        return class_counts(name, self._labels[name])

    @property
    def people(self) -> int:
        """How many people the labels tell apart; 0 when identity is not among the tasks."""
        return int(self._labels["identity"].max()) + 1 if "identity" in self._labels else 0

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(N,) draws in the order of an epoch: id + N · (how often the id came before)."""
        ids = torch.arange(self._count)
        keys = hash64(self._seed ^ ORDER, epoch, ids, draws=1)[:, 0]
        order = torch.argsort(keys, stable=True).numpy()
        if self._weights is None:
            return order
        if self._database is not None:  # one database behind the other, so that each gets its whole number of draws
            order = order[np.argsort(self._database[order], kind="stable")]
        # Systematic sampling: along the shuffled samples, one draw at every whole number that the weights add up to.
        reached = np.floor(np.cumsum(self._weights[order]) + 1e-9).astype(np.int64)
        reached[-1] = self._count
        times = np.diff(reached, prepend=0)
        first = np.repeat(np.cumsum(times) - times, times)
        draws = np.repeat(order, times) + self._count * (np.arange(self._count) - first)
        keys = hash64(self._seed ^ ORDER, epoch, torch.from_numpy(draws), draws=2)[:, 1]
        shuffled: NDArray[np.int64] = draws[torch.argsort(keys, stable=True).numpy()]
        return shuffled if self._database is None else _interleaved(shuffled, self._database[shuffled % self._count])

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """This process's share of the batches of an epoch, from a step on."""
        order = self.order(epoch)
        parts = (order[step * self._batch :][: self._batch] for step in range(start_step, self.steps_per_epoch))
        return ahead((partial(self.at, part[self._share], epoch=epoch) for part in parts), threads=self._threads)

    def at(self, ids: NDArray[np.int64], *, epoch: int) -> Batch:
        """The batch of these draws (see `order`), as they look in an epoch."""
        draws = torch.from_numpy(np.ascontiguousarray(ids))
        chosen = draws % self._count
        return varied(
            torch.from_numpy(self._gather(chosen.numpy())),
            {name: values[chosen] for name, values in self._labels.items()},
            {name: values[chosen] for name, values in self._answers.items()},
            spec=self._augment,
            margin=self._margin,
            out_px=self._input_px,
            seed=self._seed,
            epoch=epoch,
            ids=chosen,
            draws=draws,
        )

    def _gather(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        first = self._images[0]
        gathered = np.empty((len(ids), *first.shape[1:]), dtype=np.uint8)
        owner = np.searchsorted(self._starts, ids, side="right") - 1
        for number, images in enumerate(self._images):
            rows = np.flatnonzero(owner == number)
            gathered[rows] = images[ids[rows] - self._starts[number]]
        return gathered


def varied(
    images: Tensor,
    labels: dict[str, Tensor],
    answers: dict[str, Tensor],
    *,
    spec: AugmentSpec,
    margin: float,
    out_px: int,
    seed: int,
    epoch: int,
    ids: Tensor,
    draws: Tensor,
) -> Batch:
    """A batch of packed samples as they look in an epoch: `augment`, with a teacher's stored answers moved along.

    Args:
        images: As for `augment`, and so are the rest but:
        answers: As for `move_answers`.
        ids: (B,) what the batch calls its samples.
        draws: (B,) what decides every draw, with `seed` and `epoch`.
    """
    pictures, told = augment(images, labels, spec=spec, margin=margin, out_px=out_px, seed=seed, epoch=epoch, ids=draws)
    if answers:
        moved = move_answers(answers, spec=spec, margin=margin, seed=seed, epoch=epoch, ids=draws)
        told |= {answered(name): values for name, values in moved.items()}
    return Batch(images=pictures, labels=told, ids=ids)


def class_counts(name: str, labels: Tensor) -> Tensor:
    """(C,) samples of each class of a task; of attributes (M, 2), without and with each."""
    if TASKS[name].kind is Kind.ATTRIBUTES:
        return torch.stack([(labels == present).sum(dim=0) for present in (0, 1)], dim=1)
    return torch.bincount(labels[labels >= 0], minlength=len(TASKS[name].classes))


def _joined(packs: Sequence[Pack], name: str) -> Tensor:
    """Labels of one task over all packs; packs without it contribute missing labels.

    People are counted on from pack to pack: each corpus numbers its own from 0, and two corpora share none.
    """
    task = TASKS[name]
    parts = [pack.labels[name] if name in pack.labels else unlabelled(task, len(pack)) for pack in packs]
    if task.kind is Kind.IDENTITY:
        before = 0
        for place, part in enumerate(parts):
            parts[place] = np.where(part >= 0, part + before, part)
            before += int(part.max(initial=-1)) + 1
    return torch.from_numpy(np.concatenate(parts))


def _balanced(labels: Tensor, name: str) -> NDArray[np.float64]:
    """(N,) expected draws of each sample in an epoch, adding up to N."""
    if TASKS[name].kind is not Kind.CLASSES:
        raise ConfigError(
            f"balance = {name!r}", expected="a task with classes", where="train.balance", do="Name one, or leave it out"
        )
    _, which, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    weights = counts[which] ** -0.5
    return np.asarray(weights * (len(weights) / weights.sum()), np.float64)


def _databases(packs: Sequence[Pack]) -> NDArray[np.int64]:
    """(N,) which database each sample is from: the source without its split, empty ones not counted."""
    names = [pack.source.partition("@")[0] for pack in packs]
    _, place = np.unique(np.repeat(names, [len(pack) for pack in packs]), return_inverse=True)
    return np.asarray(place, np.int64)


def _interleaved(draws: NDArray[np.int64], database: NDArray[np.int64]) -> NDArray[np.int64]:
    """The draws of each database in their order, spread evenly over the epoch."""
    position = np.empty(len(draws))
    for number in range(database.max() + 1):
        rows = np.flatnonzero(database == number)
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    spread: NDArray[np.int64] = draws[np.argsort(position, kind="stable")]
    return spread
