"""Work done ahead in threads: the same results in the same order, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from distill import ranks, stages
from edgeface.data.ahead import ahead
from edgeface.data.loader import Batches
from edgeface.data.pack import pack
from edgeface.data.sources import open_source
from edgeface.specs import AugmentSpec


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads: int) -> None:
    assert list(ahead((partial(pow, 2, power) for power in range(20)), threads=threads)) == [2**p for p in range(20)]


def test_two_pieces_are_in_the_making_at_a_time() -> None:
    both = threading.Barrier(2, timeout=20)
    assert len(list(ahead([both.wait, both.wait], threads=2))) == 2
    alone = threading.Barrier(2, timeout=0.05)
    with pytest.raises(threading.BrokenBarrierError):  # the twin: one thread waits for the other for ever
        list(ahead([alone.wait, alone.wait], threads=1))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_fault_comes_in_its_turn(threads: int) -> None:
    def fault() -> int:
        raise ValueError("third")

    pieces: list[Callable[[], int]] = [lambda: 1, lambda: 2, fault, lambda: 4]
    results = ahead(pieces, threads=threads)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)


def test_who_stops_early_leaves_no_thread_and_asks_for_no_more() -> None:
    begun: list[int] = []

    def pieces() -> Iterator[Callable[[], int]]:
        for number in range(1000):
            begun.append(number)
            yield partial(int, number)

    results = ahead(pieces(), threads=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(begun) == 4, "two in the making, one more, and the one that was handed out"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_batches_made_ahead_are_the_same_to_the_bit() -> None:
    packed = pack(open_source("synthetic:40@train", root=Path()), px=40, margin=1.3)
    options = {
        "tasks": ["landmarks5", "gender"], "augment": AugmentSpec(), "input_px": 32, "batch": 8, "seed": 3,
    }  # fmt: skip
    plain = list(Batches([packed], **options).epoch(1))  # type: ignore[arg-type]
    for threads in (1, 3):
        made = list(Batches([packed], **options, threads=threads).epoch(1, start_step=2))  # type: ignore[arg-type]
        assert len(made) == len(plain) - 2
        for one, other in zip(made, plain[2:], strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.ids, other.ids)
            assert all(torch.equal(one.labels[name], other.labels[name]) for name in other.labels)
    changed = replace(AugmentSpec(), rotation_deg=29.0)
    other = next(iter(Batches([packed], **{**options, "augment": changed}, threads=1).epoch(1)))  # type: ignore[arg-type]
    assert not torch.equal(other.images, plain[0].images), "the twin"


@pytest.mark.parametrize(
    ("cores", "processes", "gpu", "busy", "spare"),
    [(2, 1, False, 2, 0), (2, 1, False, 1, 1), (16, 1, False, 16, 0), (16, 2, False, 4, 4), (16, 1, True, 16, 4)],
)
def test_only_cores_that_the_networks_leave_work_ahead(
    cores: int, processes: int, gpu: bool, busy: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "usable_cores", lambda: cores)
    monkeypatch.setattr(ranks, "count", lambda: processes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert stages.spare_threads(busy) == spare
