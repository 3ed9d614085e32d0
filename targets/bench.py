"""Time models side by side. Every round times every model, so that whatever else the machine does meets them all alike
and the ratio of two models holds where their milliseconds do not.

What is reported in milliseconds is the time on the wall. A ratio is the median over rounds of the quotient of the two
models' least times in that round: what disturbs a run only ever lengthens it. A run of more than a millisecond seldom
escapes being set aside for another process, so for those the time counted in ratios is the processor's, as long as one
thread of this process does the work.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.geometry import crop_image
from edgeface.errors import MissingToolError, ModelError, UnsupportedError, UsageError
from edgeface.evaluate import decode
from edgeface.provenance import commit, cpu, versions
from targets.cold import Cold, cold_start
from targets.description import DescribedRunner
from targets.protocol import TimedRunner
from targets.runners import CheckpointRunner, open_model

ROUNDS = 20  # at least
RUNS_A_ROUND = 5  # more of them with more runs: many short rounds see more states of the machine than few long ones
WARM_UP = 20  # runs of each model before the clock counts: caches, packed weights and clock speed settle
SPLIT_ROUNDS = 20

PHOTO = (480, 640)  # height and width of the picture that a face is cut from
FACE_PX = 240  # side of the crop in it

NOISY_PERCENT = 10.0  # spread over rounds beyond which milliseconds should not be quoted
THROTTLED = 1.10  # last second over first
_HELD_CORE = 0.9  # share of a second that the processor worked for this process: below, others were in the way
_LONG_MS = 1.0  # Linux takes a core away after 1 to 4 ms when others want it

# Work that the clock of this process does not see.
_ELSEWHERE = ("tflite-2.14", "coreml")

_PACKAGES = {
    "torch": "torch",
    "tflite-xnnpack": "ai-edge-litert",
    "tflite-builtin": "ai-edge-litert",
    "tensorflow": "tensorflow",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "mil": "torch",
    "mil-fp16": "torch",
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the time of one face goes, in milliseconds, medians; all of it by the code that `predict` uses.

    Attributes:
        pre_ms: The square cut from a photo and resampled to the input.
        inference_ms: The bare run.
        post_ms: Outputs to answers.
        whole_ms: All three together, with what lies between them: values handed in and out, standardized, dequantized.
    """

    pre_ms: float
    inference_ms: float
    post_ms: float
    whole_ms: float


@dataclass(frozen=True, kw_only=True)
class Sustained:
    """A model run without a pause.

    Attributes:
        curve: Per second: `second`, `runs`, `median_ms`, `core_share` (how much of it the processor worked for us) and,
            where the system tells, `mhz`.
        first_ms: Median of the first second.
        last_ms: Median of the last whole second.
        slowdown: Last over first.
        throttled: Whether the last second was slower by a tenth although no other process took the core; None when it
            was slower and another did, so that nothing can be said.
    """

    curve: tuple[Mapping[str, float], ...]
    first_ms: float
    last_ms: float
    slowdown: float
    throttled: bool | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's times, in milliseconds per picture.

    Attributes:
        device: "CPU", or "GPU: " and its name.
        runtime_version: Of what ran it.
        ratio_to_first: The first model's time over this one's, the median over rounds; 2 means twice as fast.
        ratio_interval: 95 % interval of that median, by the order of the rounds.
        ratio_quartiles: First and third quartile over rounds.
        spread_percent: Distance of the quartiles of the rounds' times, over their median.
        waited_percent: Share of the time that this process waited for its core; None with several threads.
        split: None for a file that takes no pictures or whose answers are not known.
        load_ms: First start to first answer; None where not measured.
        peak_memory_bytes: See cold.Cold; None where not measured.
        operations: See protocol.FileRunner.operations.
        sustained: None unless asked for.
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
    device: str
    runtime_version: str
    ratio_interval: tuple[float, float]
    ratio_quartiles: tuple[float, float]
    spread_percent: float
    waited_percent: float | None
    split: Split | None
    load_ms: float | None
    peak_memory_bytes: int | None
    operations: Mapping[str, Mapping[str, int]] | None
    sustained: Sustained | None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Times of several models and the conditions they were taken under."""

    rows: tuple[Row, ...]
    conditions: dict[str, object]

    @property
    def noisy(self) -> bool:
        """Whether others used the machine so much that milliseconds, unlike ratios, should not be quoted."""
        return any(row.spread_percent > NOISY_PERCENT or (row.waited_percent or 0) > NOISY_PERCENT for row in self.rows)

    def as_json(self) -> dict[str, object]:
        """The `bench` object of the command line's JSON contract."""
        return {
            "schema": 1,
            "rows": [asdict(row) for row in self.rows],
            "noisy": self.noisy,
            "conditions": self.conditions,
        }


def bench(
    models: Sequence[tuple[str, str | None, str | None]],
    *,
    threads: int = 1,
    runs: int = 400,
    seed: int = 0,
    starts: int = 0,
    sustained_s: float = 0.0,
    described: str | None = None,
    device: str = "cpu",
    told: Callable[[str], None] | None = None,
) -> Bench:
    """Time models, interleaved.

    Args:
        models: (path, runtime or None, precision or None) each.
        threads: CPU threads of each model; the process is pinned to as many cores meanwhile.
        runs: Timed runs of each model, over all rounds.
        seed: Of the random pictures.
        starts: Processes in which each model's first start is measured; 0 leaves that out.
        sustained_s: Seconds each model is run without a pause after that; 0 leaves it out.
        described: A --spec file, for the files of others.
        device: One of runners.DEVICES, for checkpoints; files run on the CPU.
        told: Called with what comes next.

    Raises:
        UsageError: No models, fewer runs than rounds, a sustained run of under two seconds, or no checkpoint for a GPU.
        MissingToolError: There is no such device.
    """
    if not models:
        raise UsageError("no models", expected="at least one", where="bench")
    if runs < ROUNDS:
        raise UsageError(f"{runs} runs", expected=f"at least {ROUNDS}, one a round", where="--runs")
    if sustained_s and not 2.0 <= sustained_s <= 3600.0:
        raise UsageError(f"{sustained_s:g} seconds", expected="2 to 3600: a first and a last", where="--sustained")
    tell = told or (lambda _: None)
    rounds = max(ROUNDS, runs // RUNS_A_ROUND)
    with _pinned(threads) as cores:
        runners = [
            _opened(path, runtime=runtime, precision=precision, threads=threads, described=described, device=device)
            for path, runtime, precision in models
        ]
        if device != "cpu" and not any(isinstance(runner, CheckpointRunner) for runner in runners):
            raise UsageError("files alone", expected="a run or a checkpoint: files run on the CPU", where="--device")
        calls = [runner.prepare(seed) for runner in runners]
        tell("warm-up")
        long = [_warm(call) > _LONG_MS for call in calls]
        in_sight = [_in_sight(runner, threads) for runner in runners]
        by_core = [seen and slow for seen, slow in zip(in_sight, long, strict=True)]
        load_before = _load()
        tell("timing, interleaved")
        times = _interleaved(calls, by_core, rounds=rounds, runs=runs // rounds)
        tell("pre- and post-processing")
        splits = _splits(runners, seed=seed, inference_ms=[float(np.median(part)) for part in times.wall])
        load_after = _load()
        colds: list[Cold | None] = []
        for place, (path, _, precision) in enumerate(models):
            tell(f"first start of {path}")
            colds.append(
                _cold(
                    path, precision, runners[place], threads=threads, described=described, device=device, starts=starts
                )
            )
        lasting: list[Sustained | None] = []
        for place, call in enumerate(calls):
            if sustained_s:
                tell(f"{models[place][0]} for {sustained_s:g} s")
            measured = _sustain(call, sustained_s, by_core=by_core[place], cores=cores) if sustained_s else None
            lasting.append(measured)
    least = times.own.min(axis=2)  # (models, rounds)
    rows = []
    for place, runner in enumerate(runners):
        wall, quotients = times.wall[place], least[0] / least[place]
        rows.append(
            Row(
                model=models[place][0],
                runtime=runner.runtime,
                precision=runner.precision,
                threads=threads,
                batch=1,
                median_ms=float(np.median(wall)),
                p90_ms=float(np.percentile(wall, 90)),
                p99_ms=float(np.percentile(wall, 99)),
                size_bytes=runner.size_bytes,
                macs=runner.macs,
                ratio_to_first=float(np.median(quotients)),
                device=_device_name(runner),
                runtime_version=runtime_version(runner.runtime),
                ratio_interval=median_interval(quotients),
                ratio_quartiles=(float(np.percentile(quotients, 25)), float(np.percentile(quotients, 75))),
                spread_percent=_spread_percent(np.median(wall, axis=1)),
                waited_percent=100.0 * max(0.0, 1.0 - float(times.core[place])) if in_sight[place] else None,
                split=splits[place],
                load_ms=None if (cold := colds[place]) is None else cold.load_ms,
                peak_memory_bytes=None if cold is None else cold.peak_memory_bytes,
                operations=getattr(runner, "operations", None),
                sustained=lasting[place],
            )
        )
    conditions: dict[str, object] = {
        "cpu": cpu(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
        "commit": commit(),
        "threads": threads,
        "pinned_to_cores": cores,
        "rounds": rounds,
        "runs": runs // rounds * rounds,
        "warm_up": WARM_UP,
        "starts": starts,
        "photo": f"{PHOTO[1]}x{PHOTO[0]}, face {FACE_PX} px",
        "load_average": [load_before, load_after],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    return Bench(rows=tuple(rows), conditions=conditions)


def median_interval(values: NDArray[np.float64], *, share: float = 0.95) -> tuple[float, float]:
    """Interval of a median that needs no assumption about the values: two of them, by their ranks.

    Args:
        values: (N,).
        share: How often such intervals hold the median, at least; where too few values allow that, their extremes.

    Source:
        Conover, Practical Nonparametric Statistics, section 3.2: the number of values below the median is binomial.
    """
    ordered = np.sort(values)
    count = len(ordered)
    mass, below = 0.0, 0
    for rank in range(count // 2):
        ways = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1)
        mass += math.exp(ways - count * math.log(2.0))
        if mass > (1.0 - share) / 2.0:
            break
        below = rank + 1
    first = max(below - 1, 0)
    return float(ordered[first]), float(ordered[count - 1 - first])


def runtime_version(runtime: str) -> str:
    """Version of what runs a model, "" when that cannot be told."""
    if runtime == "tflite-2.14":
        return "2.14.0"
    if runtime == "coreml":
        return f"macOS {platform.mac_ver()[0]}".strip()
    try:
        return importlib.metadata.version(_PACKAGES[runtime])
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return ""


@dataclass(frozen=True, kw_only=True)
class _Times:
    """Milliseconds.

    Attributes:
        wall: (models, rounds, runs) on the wall.
        own: As `wall`, without waiting for the core where that can be told apart.
        core: (models,) processor time over wall time, all rounds together.
    """

    wall: NDArray[np.float64]
    own: NDArray[np.float64]
    core: NDArray[np.float64]


def _interleaved(calls: Sequence[Callable[[], None]], by_core: Sequence[bool], *, rounds: int, runs: int) -> _Times:
    """Time every model in every round; each round begins with another model."""
    wall = np.empty((len(calls), rounds, runs))
    own = np.empty_like(wall)
    spent = np.zeros((len(calls), 2))  # processor, wall
    for turn in range(rounds):
        for place in range(len(calls)):
            index = (turn + place) % len(calls)
            call = calls[index]
            call()  # brings this model's weights back into the caches its neighbour used
            visit_core, visit_wall = time.process_time_ns(), time.perf_counter_ns()
            for run in range(runs):
                if by_core[index]:
                    core, begin = time.process_time_ns(), time.perf_counter_ns()
                    call()
                    wall[index, turn, run] = (time.perf_counter_ns() - begin) / 1e6
                    own[index, turn, run] = (time.process_time_ns() - core) / 1e6
                else:
                    begin = time.perf_counter_ns()
                    call()
                    wall[index, turn, run] = own[index, turn, run] = (time.perf_counter_ns() - begin) / 1e6
            spent[index] += time.process_time_ns() - visit_core, time.perf_counter_ns() - visit_wall
    return _Times(wall=wall, own=own, core=spent[:, 0] / spent[:, 1])


def _warm(call: Callable[[], None]) -> float:
    """Run a model until caches are warm; its least time in milliseconds."""
    least = math.inf
    for _ in range(WARM_UP):
        begin = time.perf_counter_ns()
        call()
        least = min(least, (time.perf_counter_ns() - begin) / 1e6)
    return least


def _in_sight(runner: TimedRunner, threads: int) -> bool:
    """Whether this process's processor time is the model's time: one thread, of this process, on the CPU."""
    return threads == 1 and runner.runtime not in _ELSEWHERE and _device_name(runner) == "CPU"


def _opened(
    path: str, *, runtime: str | None, precision: str | None, threads: int, described: str | None, device: str
) -> TimedRunner:
    plain = open_model(path, runtime=runtime, precision=precision, threads=threads, device=device)
    if described is None or plain.spec.outputs or isinstance(plain, CheckpointRunner):
        return plain
    return open_model(path, runtime=runtime, precision=precision, threads=threads, described=described)


def _device_name(runner: TimedRunner) -> str:
    if not str(getattr(runner, "device", "cpu")).startswith("cuda"):
        return "CPU"
    import torch

    return f"GPU: {torch.cuda.get_device_name()}"


def _splits(runners: Sequence[TimedRunner], *, seed: int, inference_ms: Sequence[float]) -> list[Split | None]:
    """What a face costs from photo to answers; None for a model that pictures cannot be run through."""
    generator = np.random.default_rng(seed)
    photo = generator.integers(0, 256, (*PHOTO, 3), dtype=np.uint8)
    crop = np.array([PHOTO[1] / 2 + 0.3, PHOTO[0] / 2 + 0.7, FACE_PX], np.float32)
    calls: list[Callable[[], None]] = []
    places: list[int] = []
    for place, runner in enumerate(runners):
        try:
            steps = _steps(runner, photo, crop)
        except (UnsupportedError, ModelError, MissingToolError):
            continue
        places.append(place)
        calls += steps
    found: list[Split | None] = [None] * len(runners)
    if not calls:
        return found
    times = _interleaved(calls, [False] * len(calls), rounds=SPLIT_ROUNDS, runs=RUNS_A_ROUND)
    middle = np.median(times.wall, axis=(1, 2)).reshape(-1, 3)
    for place, (pre, post, whole) in zip(places, middle.tolist(), strict=True):
        found[place] = Split(pre_ms=pre, inference_ms=inference_ms[place], post_ms=post, whole_ms=whole)
    return found


def _steps(
    runner: TimedRunner, photo: NDArray[np.uint8], crop: NDArray[np.float32]
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Cutting, decoding, and everything."""
    spec = runner.spec
    if not spec.outputs or spec.input_px < 1:
        raise UnsupportedError("no known answers", expected="outputs with a meaning", where=spec.name)

    def cut() -> NDArray[np.uint8]:
        return crop_image(photo, crop, px=spec.input_px)[None]

    answers = runner.run(cut())

    def pre() -> None:
        cut()

    def post() -> None:
        decode(spec, answers)

    def whole() -> None:
        decode(spec, runner.run(cut()))

    return pre, post, whole


def _cold(
    path: str,
    precision: str | None,
    runner: TimedRunner,
    *,
    threads: int,
    described: str | None,
    device: str,
    starts: int,
) -> Cold | None:
    if starts < 1:
        return None
    on_gpu = _device_name(runner) != "CPU"
    request: dict[str, Any] = {
        "path": path,
        "runtime": runner.runtime,
        "precision": precision,
        "threads": threads,
        "described": described if isinstance(runner, DescribedRunner) else None,
        "device": device if isinstance(runner, CheckpointRunner) else "cpu",
    }
    found = cold_start(request, starts=starts)
    # What a GPU's driver takes of this machine's memory is no property of the model.
    return Cold(load_ms=found.load_ms, peak_memory_bytes=None, starts=starts) if on_gpu else found


def _sustain(call: Callable[[], None], seconds: float, *, by_core: bool, cores: Sequence[int] | None) -> Sustained:
    """Run one model without a pause; a last second that is cut short is left out."""
    whole = int(seconds)
    curve: list[Mapping[str, float]] = []
    call()
    for second in range(whole):
        own: list[float] = []
        core_begin, begin = time.process_time_ns(), time.perf_counter_ns()
        end = begin + 1_000_000_000
        now = begin
        while now < end:
            before = time.process_time_ns() if by_core else now
            call()
            now = time.perf_counter_ns()
            own.append(((time.process_time_ns() if by_core else now) - before) / 1e6)
        entry = {
            "second": float(second),
            "runs": float(len(own)),
            "median_ms": float(np.median(own)),
            "core_share": (time.process_time_ns() - core_begin) / (now - begin),
        }
        mhz = _mhz(cores)
        curve.append(entry if mhz is None else {**entry, "mhz": mhz})
    first, last = curve[0], curve[-1]
    slowdown = last["median_ms"] / first["median_ms"]
    return Sustained(
        curve=tuple(curve),
        first_ms=first["median_ms"],
        last_ms=last["median_ms"],
        slowdown=slowdown,
        throttled=was_throttled(slowdown, last["core_share"]),
    )


def was_throttled(slowdown: float, core_share: float) -> bool | None:
    """Whether a last second slower than the first tells of heat; None where others may have slowed it.

    Args:
        slowdown: Last second's median time over the first's.
        core_share: Share of the last second that the processor worked for this process.
    """
    if slowdown < THROTTLED:
        return False
    return True if core_share >= _HELD_CORE else None


def _mhz(cores: Sequence[int] | None) -> float | None:
    """Clock of the first core of the list, where the system tells."""
    core = cores[0] if cores else 0
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq").read_text(encoding="ascii")
    except OSError:
        return None
    return float(text) / 1000.0


def _spread_percent(values: NDArray[np.float64]) -> float:
    first, middle, third = np.percentile(values, (25, 50, 75))
    return float(100.0 * (third - first) / middle)


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
