"""Time models side by side. Every round times every model once, so that whatever else the machine does meets them all
alike and the ratio of two models holds where their milliseconds do not."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgeface.errors import UsageError
from edgeface.provenance import commit, cpu, versions
from targets.runners import open_model

ROUNDS = 20
WARM_UP = 20  # runs of each model before the clock counts: caches, packed weights and clock speed settle


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's times, in milliseconds per picture.

    Attributes:
        ratio_to_first: The first model's time over this one's, the median over rounds; 2 means twice as fast.
    """

    model: str
    runtime: str
    precision: str
    threads: int
    batch: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    size_bytes: int
    macs: int | None
    ratio_to_first: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Times of several models and the conditions they were taken under."""

    rows: tuple[Row, ...]
    conditions: dict[str, object]

    def as_json(self) -> dict[str, object]:
        """The `bench` object of the command line's JSON contract."""
        return {"schema": 1, "rows": [asdict(row) for row in self.rows], "conditions": self.conditions}


def bench(
    models: Sequence[tuple[str, str | None, str | None]], *, threads: int = 1, runs: int = 400, seed: int = 0
) -> Bench:
    """Time models, interleaved.

    Args:
        models: (path, runtime or None, precision or None) each.
        threads: CPU threads of each model; the process is pinned to as many cores meanwhile.
        runs: Timed runs of each model, over all rounds.
        seed: Of the random pictures.

    Raises:
        UsageError: No models, or fewer runs than rounds.
    """
    if not models:
        raise UsageError("no models", expected="at least one", where="bench")
    if runs < ROUNDS:
        raise UsageError(f"{runs} runs", expected=f"at least {ROUNDS}, one a round", where="--runs")
    with _pinned(threads) as cores:
        runners = [
            open_model(Path(path), runtime=runtime, precision=precision, threads=threads)
            for path, runtime, precision in models
        ]
        calls = [runner.prepare(seed) for runner in runners]
        for call in calls:
            for _ in range(WARM_UP):
                call()
        load_before = _load()
        times = _interleaved(calls, rounds=ROUNDS, runs=runs // ROUNDS)
    middle = np.median(times, axis=2)  # (models, rounds)
    rows = tuple(
        Row(
            model=models[index][0],
            runtime=runner.runtime,
            precision=runner.precision,
            threads=threads,
            batch=1,
            median_ms=float(np.median(times[index])),
            p90_ms=float(np.percentile(times[index], 90)),
            p99_ms=float(np.percentile(times[index], 99)),
            size_bytes=runner.size_bytes,
            macs=runner.macs,
            ratio_to_first=float(np.median(middle[0] / middle[index])),
        )
        for index, runner in enumerate(runners)
    )
    conditions = {
        "cpu": cpu(),
        "versions": versions(),
        "commit": commit(),
        "threads": threads,
        "pinned_to_cores": cores,
        "rounds": ROUNDS,
        "runs": runs // ROUNDS * ROUNDS,
        "warm_up": WARM_UP,
        "load_average": [load_before, _load()],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    return Bench(rows=rows, conditions=conditions)


def _interleaved(
    calls: Sequence[Callable[[], None]], *, rounds: int, runs: int
) -> np.ndarray[tuple[int, int, int], np.dtype[np.float64]]:
    """(models, rounds, runs) milliseconds; each round begins with another model."""
    times = np.empty((len(calls), rounds, runs))
    for turn in range(rounds):
        for place in range(len(calls)):
            index = (turn + place) % len(calls)
            call = calls[index]
            call()  # brings this model's weights back into the caches its neighbour used
            for run in range(runs):
                begin = time.perf_counter_ns()
                call()
                times[index, turn, run] = (time.perf_counter_ns() - begin) / 1e6
    return times


@contextlib.contextmanager
def _pinned(threads: int) -> Iterator[list[int] | None]:
    """Keep the process on as many cores as it has threads; None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)[-threads:] if threads < len(before) else sorted(before)
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
