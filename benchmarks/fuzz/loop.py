"""Inputs through a reader, one after another, and the count of what became of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.fuzz.reader import Files, Reader
from benchmarks.fuzz.readers import READERS
from edgeface.errors import EdgefaceError
from edgeface.processes import live_with_parent

SLOW_S = 10.0
WAIT_S = 60.0  # for a process that sleeps rather than computes
SERVED = 200  # inputs that one process reads; what native code leaks goes with it


class SlowError(BaseException):
    """A reader took more than SLOW_S; no reader catches it."""


def make_input(name: str, *, seed: int, index: int) -> Files:
    """The files of one input; the same for the same arguments."""
    return READERS[name]().make(random.Random(f"{name}:{seed}:{index}"))


def place(folder: Path, files: Files, *, known: set[str]) -> None:
    """Write an input into a folder in place of the one before it."""
    for name in known - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        path = folder / name
        if name not in known and "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    known.clear()
    known.update(files)


def signature(error: BaseException) -> str:
    """What tells one fault from another: the exception's type and the innermost line of edgeface."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if any(f"/{package}/" in frame.filename for package in ("edgeface", "distill", "quantize", "targets"))
        and "site-packages" not in frame.filename
    ]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} {last.name}"


def _printable(text: str) -> bool:
    """False for an error whose words a terminal cannot show, which is a failure of the error itself."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _alarm(number: int, frame: object) -> None:
    raise SlowError(f"more than {SLOW_S:g} s of CPU time")


def fuzz(
    name: str, *, inputs: int, seed: int = 0, jobs: int = 1, told: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Read that many hostile inputs.

    Args:
        name: One of READERS.
        inputs: How many.
        seed: With an input's number, decides it.
        jobs: Processes that share them; each says what it finds on stderr.
        told: Called with each fault and every ten thousand inputs, where one process reads all.

    Returns:
        A row: inputs, how many were read whole and how many refused, seconds, the slowest input, and what was found.
    """
    if jobs == 1:
        return _count(name, range(inputs), seed=seed, told=told).row()
    begin = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=live_with_parent) as pool:
        parts = [pool.submit(_count, name, range(first, inputs, jobs), seed=seed, told=tell) for first in range(jobs)]
        whole, *others = (part.result() for part in parts)
    for other in others:
        whole.take_in(other)
    whole.told, whole.begin = told, begin
    return whole.row()


def _count(name: str, indices: Sequence[int], *, seed: int, told: Callable[[str], None]) -> Count:
    reader = READERS[name]()
    count = Count(name=name, engine="mutation", seed=seed, told=told)
    read = _read_each if reader.trial is None else _read_each_apart
    with _scratch() as folder, _alarmed():
        outcomes = read(reader, folder, [f"{name}:{seed}:{index}" for index in indices])
        for index, (outcome, took) in zip(indices, outcomes, strict=True):
            count.add(outcome, f"{seed}:{index}", took=took)
    return count


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: "accepted", "refused", "ended" (in its trial, by a signal or a limit) or "found".
        case: What was found, the same words for the same fault.
        said: The error's.
    """

    kind: str
    case: str = ""
    said: str = ""


@dataclass(kw_only=True)
class Count:
    """Outcomes on their way into a row."""

    name: str
    engine: str
    seed: int
    told: Callable[[str], None]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_at: str = ""
    begin: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome, at: str, *, took: float) -> None:
        self.kinds[outcome.kind] += 1
        if outcome.kind == "found":
            case = self.found.setdefault(outcome.case, {"case": outcome.case, "first": at, "count": 0})
            case["count"] += 1
            if case["count"] == 1:
                self.told(f"{self.name} {at}: {outcome.case}: {outcome.said}")
        if took > self.slowest:
            self.slowest, self.slowest_at = took, at
        if (inputs := self.kinds.total()) % 10_000 == 0:
            seconds = time.monotonic() - self.begin
            self.told(f"{self.name}: {inputs:,} inputs, {len(self.found)} found, {seconds:.0f} s")

    def take_in(self, other: Count) -> None:
        """Add what another process counted."""
        self.kinds += other.kinds
        for case in other.found.values():
            own = self.found.setdefault(case["case"], {**case, "count": 0})
            own["count"] += case["count"]
            own["first"] = min(own["first"], case["first"], key=lambda at: int(at.partition(":")[2]))
        if other.slowest > self.slowest:
            self.slowest, self.slowest_at = other.slowest, other.slowest_at

    def row(self) -> dict[str, Any]:
        return {
            "reader": self.name,
            "inputs": self.kinds.total(),
            "seed": self.seed,
            "engine": self.engine,
            "accepted": self.kinds["accepted"],
            "refused": self.kinds["refused"] + self.kinds["ended"],
            "ended": self.kinds["ended"],
            "seconds": round(time.monotonic() - self.begin, 1),
            "slowest_ms": round(1000 * self.slowest, 1),
            "slowest": self.slowest_at,
            "found": sorted(self.found.values(), key=lambda case: case["first"]),
        }


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _alarmed() -> Iterator[None]:
    warnings.simplefilter("ignore")  # Pillow's about odd Exif blocks; they are no failures
    before = signal.signal(signal.SIGVTALRM, _alarm)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


def _read(reader: Reader, folder: Path) -> Outcome:
    signal.setitimer(signal.ITIMER_VIRTUAL, SLOW_S)
    try:
        reader.read(folder)
    except EdgefaceError as error:
        return Outcome(kind="refused") if _printable(str(error)) else Outcome(kind="found", case="UnicodeEncodeError")
    except (Exception, SlowError) as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        return Outcome(kind="found", case=signature(error), said=str(error)[:200])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    return Outcome(kind="accepted")


def _read_each(reader: Reader, folder: Path, dice: Sequence[str]) -> Iterator[tuple[Outcome, float]]:
    """Each input's outcome and its seconds of CPU time."""
    known = set[str]()
    for seed in dice:
        place(folder, reader.make(random.Random(seed)), known=known)
        start = time.process_time()
        outcome = _read(reader, folder)
        yield outcome, time.process_time() - start


def _read_each_apart(reader: Reader, folder: Path, dice: Sequence[str]) -> Iterator[tuple[Outcome, float]]:
    """The same after a trial, in processes that the native code may end; a new one goes on after the input that did."""
    done = 0
    while done < len(dice):
        for found in _served(reader, folder, dice[done : done + SERVED]):
            yield found
            done += 1


def _served(reader: Reader, folder: Path, dice: Sequence[str]) -> Iterator[tuple[Outcome, float]]:
    """Outcomes of one process, up to and with that of an input which ended it."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            _serve(reader, folder, dice, sender)
        finally:  # whatever happens, this copy of the process must not tidy up what belongs to the first
            os._exit(0)
    os.close(sender)
    answered, tried, rest = 0, False, b""
    with os.fdopen(receiver, "rb", buffering=0) as answers:
        while answered < len(dice):
            part = answers.read(1 << 16) if select.select([answers], [], [], WAIT_S)[0] else b""
            if not part:
                break
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                tried = line == b"tried"
                if not tried:
                    answer = json.loads(line)
                    yield Outcome(**answer["outcome"]), answer["took"]
                    answered += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answered < len(dice):
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        case = f"ended by {how} after its trial"
        yield Outcome(kind="found", case=case) if tried else Outcome(kind="ended", case=how), 0.0


def _serve(reader: Reader, folder: Path, dice: Sequence[str], sender: int) -> None:
    assert reader.trial is not None
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    known = set[str]()
    for seed in dice:
        place(folder, reader.make(random.Random(seed)), known=known)
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, SLOW_S)  # ends native code too, which no handler of Python's interrupts
        try:
            reader.trial(folder)
        except BaseException:
            outcome = Outcome(kind="refused")
        else:
            os.write(sender, b"tried\n")
            signal.setitimer(signal.ITIMER_PROF, 2 * SLOW_S)
            outcome = _read(reader, folder)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        answer = {"outcome": vars(outcome), "took": time.monotonic() - start}
        os.write(sender, json.dumps(answer).encode() + b"\n")


def grow(name: str, *, inputs: int, seed: int, done: Callable[[dict[str, Any]], None]) -> NoReturn:
    """Read inputs that libFuzzer grows by the coverage of edgeface's readers; ends the process.

    Args:
        name: Of a reader with `grown`.
        inputs: How many.
        seed: Of libFuzzer's generator; from one run to the next coverage differs a little, and so do its inputs.
        done: Called with the row.
    """
    import atheris

    scratch = contextlib.ExitStack()
    folder, corpus = scratch.enter_context(_scratch()), scratch.enter_context(_scratch())
    scratch.enter_context(_alarmed())
    known = set[str]()
    # tomllib and the readers themselves; what numpy and torch do inside is not theirs to lead.
    with atheris.instrument_imports(include=["edgeface", "distill", "quantize", "targets", "tomllib"]):
        reader = READERS[name]()
        for index in range(30):  # readers import what they need as they go
            place(folder, reader.make(random.Random(f"{name}:{seed}:{index}")), known=known)
            _read(reader, folder)
    grown = reader.grown
    if grown is None:
        sys.exit(f"{name}: native code reads it, where coverage of Python leads nowhere")
    count = Count(name=name, engine="coverage", seed=seed, told=tell)
    for index in range(300):
        (corpus / str(index)).write_bytes(grown.taken(reader.make(random.Random(f"{name}:{seed}:{index}"))))

    def one(content: bytes) -> None:
        place(folder, grown.embed(content), known=known)
        start = time.process_time()
        outcome = _read(reader, folder)
        count.add(outcome, hashlib.sha256(content).hexdigest()[:12], took=time.process_time() - start)
        if outcome.kind == "found" and count.found[outcome.case]["count"] == 1:
            Path(f"found-{name}-{len(count.found)}").write_bytes(content)
        if count.kinds.total() == inputs:
            done(count.row())
            scratch.close()
            sys.stdout.flush()
            os._exit(1 if count.found else 0)  # libFuzzer offers no other end

    options = [f"-seed={seed + 1}", "-rss_limit_mb=0", "-timeout=120", "-verbosity=0", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    raise AssertionError("libFuzzer ended before its last input")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
