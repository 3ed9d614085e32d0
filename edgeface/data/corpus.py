"""What every reader hands out: labelled pictures that are not decoded yet."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import DataError
from edgeface.tasks import TASKS, Kind, Task

Labels = dict[str, NDArray[Any]]


class Texts(Sequence[str]):
    """Many short texts in one piece of memory, which takes some 60 bytes a text less than a tuple of them."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Add texts at the end; done before anyone else holds these."""
        for text in texts:
            self._bytes += text.encode("utf-8", "surrogatepass")  # JSON may name half of a character
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return self._ends == other._ends and self._bytes == other._bytes
        same = isinstance(other, Sequence) and not isinstance(other, str) and len(self) == len(other)
        return same and all(one == two for one, two in zip(self, other, strict=True))  # type: ignore[call-overload]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Texts({', '.join(map(repr, self[:3]))}{', …' if len(self) > 3 else ''})"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One split of one corpus, N faces.

    Attributes:
        name: The reader's name, such as "mtfl".
        source: The source as typed, such as "mtfl@train".
        split: The part that was read.
        licence: Terms in a few words.
        research_only: True when weights trained on it may not be shipped.
        keys: N stable sample ids, such as the picture's path inside the corpus.
        people: N identities; the key itself where the corpus does not name the person.
        crops: (N, 3) centre x, centre y and side of the nominal square crop, in source-image pixels. Coordinates are
            continuous: (0, 0) is the outer corner of the first pixel, whose centre is (0.5, 0.5).
        labels: Task name to labels in the form of tasks.py; landmarks in source-image pixels.
        groups: Subgroup column to N strings; "" is unknown.
        skipped: Reason to the keys (or file:line) left out for it.
        load: Index to (H, W, 3) RGB picture; raises DataError when it cannot be read.
        load_many: Indices to (n, H, W, 3) RGB pictures of one size, where that is cheaper than one by one.
        scales: Score task to the corpus's own values that 0 and 1 stand for, such as (1, 7).
        fingerprint: Changes whenever the pictures behind `load` change; part of the key of the packed cache.
    """

    name: str
    source: str
    split: str
    licence: str
    research_only: bool
    keys: Sequence[str]
    people: Sequence[str]
    crops: NDArray[np.float32]
    labels: Labels
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    load: Callable[[int], NDArray[np.uint8]]
    load_many: Callable[[NDArray[np.int64]], NDArray[np.uint8]] | None = None
    fingerprint: str = ""
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.keys)
        if len(self.people) != count or self.crops.shape != (count, 3):
            raise DataError(
                f"{len(self.people)} people and crops of shape {self.crops.shape} for {count} keys",
                expected=f"{count} people and crops of shape {(count, 3)}",
                where=self.source,
                do="Correct the reader",
            )
        for name, values in self.labels.items():
            expected = label_shape(TASKS[name], count)
            if values.shape != expected and not (name == "attributes" and len(values) == count):
                raise DataError(
                    f"labels of shape {values.shape}",
                    expected=f"shape {expected}",
                    where=f"{self.source} {name}",
                    do="Correct the reader",
                )

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Corpus:
        """The same corpus with only these samples, in this order."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        load, load_many = self.load, self.load_many
        return dataclasses.replace(
            self,
            keys=tuple(self.keys[i] for i in chosen.tolist()),
            people=tuple(self.people[i] for i in chosen.tolist()),
            crops=self.crops[chosen],
            labels={name: values[chosen] for name, values in self.labels.items()},
            groups={name: values[chosen] for name, values in self.groups.items()},
            load=lambda index: load(int(chosen[index])),
            load_many=None if load_many is None else (lambda wanted: load_many(chosen[wanted])),
        )


def label_shape(task: Task, count: int) -> tuple[int, ...]:
    """Shape of `count` labels of a task."""
    if task.kind is Kind.LANDMARKS:
        return (count, task.points, 2)
    if task.kind is Kind.AGE:
        return (count, 2)
    if task.kind is Kind.ATTRIBUTES:
        return (count, len(task.classes))
    return (count,)


def unlabelled(task: Task, count: int) -> NDArray[Any]:
    """`count` labels that all say "no label"."""
    if task.kind in (Kind.LANDMARKS, Kind.SCORE, Kind.AGE):
        return np.full(label_shape(task, count), np.nan, dtype=np.float32)
    dtype = np.int8 if task.kind is Kind.ATTRIBUTES else np.int64
    return np.full(label_shape(task, count), -1, dtype=dtype)


def is_labelled(task: Task, values: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) True where a sample has a label of this task (for attributes: at least one)."""
    known = np.isfinite(values) if task.kind in (Kind.LANDMARKS, Kind.SCORE, Kind.AGE) else values >= 0
    flat = known.reshape(len(values), -1)
    return np.asarray(flat.any(axis=1) if task.kind is Kind.ATTRIBUTES else flat.all(axis=1))


def is_validation(person: str) -> bool:
    """True for the tenth of the people (or files) that a corpus without a validation split keeps for one."""
    return int.from_bytes(hashlib.sha256(person.encode()).digest()[:4]) % 10 == 0
