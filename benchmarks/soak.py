"""The long tests of faults, in bounded time: kills, full disks, memory limits, hostile files, memory of streaming.

    python -m benchmarks.soak [kill] [disk] [limit] [fuzz] [stream] [--minutes 30]

`make test` has the short forms (`tests/reliability`, `tests/hostile`). The time is shared out evenly, and a part begins
nothing new when its share is over. What it has begun goes on to its end: a kill with the commands that go on from it, a
command under a limit, 2,000 inputs of one reader, the two epochs of `stream`. Each command has ten minutes (`HANG_S`);
one that takes longer is stopped, with all that it started, and counts as broken. So a part whose commands all end
oversteps its share by minutes at most, and each that hangs adds ten. Ends with 1 when anything did not hold, or nothing
was tried.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kills import ROOT, STAGES, TRAINED, KillError, Whole, Work, is_held, moments, survive, undisturbed
from edgeface.files import sha256_file

DISK_BYTES = (2_000, 8_000, 30_000, 60_000, 120_000, 500_000)
LIMITS_MIB = (150, 300, 500, 700, 800, 900, 1000, 1100, 1300, 1600, 2000, 3000)
TARGETS = ("onnx", "openvino", "android", "ios")
FUZZED = 2_000  # inputs of a reader at a time
SAMPLES = (10_000, 100_000)
HANG_S = 600.0  # the longest, 2,000 OpenVINO files, took 160 s on a busy machine; that of a kill is in kills.py
FLAT = 1.25  # most that resident memory may grow from the first of SAMPLES to the last


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a part of the soak gave.

    Attributes:
        figures: In words, for people.
        tried: How many things.
        broken: What did not hold.
    """

    figures: str
    tried: int
    broken: Sequence[str]


class Clock:
    """A part's share of the time."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end


def bounded(
    words: Sequence[str], *, folder: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run a command, and stop it with all that it started when it takes longer than HANG_S.

    Args:
        words: The command line.
        folder: Where.
        more: Variables beside those of this process.

    Returns:
        What it said; None where it had to be stopped.
    """
    process = subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, **(more or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its children too: they hold the pipes
        process.communicate()
        return None
    return subprocess.CompletedProcess(words, process.returncode, said, complained)


def kill(folder: Path, clock: Clock) -> Found:
    """SIGKILL at random moments: benchmarks.kills."""
    whole = undisturbed(folder / "whole")
    rows, failed, broken = [], [], []
    for number, moment in enumerate(moments(1000, seed=time.time_ns() % 2**31)):
        if clock.is_over and number:  # the run without a kill takes time too, and alone would show nothing
            break
        try:
            row = survive(whole, moment, folder / f"killed-{number}")
        except KillError as error:
            failed.append(f"{moment}: {error}")
            continue
        rows.append(row)
        if not is_held(row):
            broken.append(f"{moment}: {json.dumps(row)}")
    lost = max((row["steps_lost"] for row in rows), default=0)
    hit = ", ".join(f"{stage} {sum(row['hit'] == stage for row in rows)}" for stage in STAGES)
    return Found(
        figures=f"{len(rows)} kills ({hit}); at most {lost} step lost",
        tried=len(rows) + len(failed),
        broken=[*failed, *broken],
    )


_LIMITED = """
import os, resource, sys
kind, most = getattr(resource, sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (most, most))
os.execv(sys.executable, [sys.executable, "-m", "edgeface", *sys.argv[3:]])
"""


def limited(work: Work, words: Sequence[str], *, kind: str, most: int) -> tuple[str, str]:
    """Type a command under a limit of the system's.

    Returns:
        "done", "told" or "broken", and what it said on stderr.
    """
    done = bounded(
        [sys.executable, "-c", _LIMITED, kind, str(most), *words],
        folder=work.folder,
        more={"OMP_NUM_THREADS": "1", "EDGEFACE_CACHE": str(work.cache), "PYTHONPATH": str(ROOT)},
    )
    if done is None:
        return "broken", f"it did not end within {HANG_S:g} s"
    told = [line for line in done.stderr.splitlines() if re.match(r"[A-Z]\w+Error: ", line)]
    if "Traceback" in done.stderr or done.returncode not in (0, 2) or (done.returncode == 2 and len(told) != 1):
        return "broken", done.stderr[-600:]
    return ("told", told[0]) if told else ("done", "")


def commands(whole: Whole) -> Iterator[tuple[str, list[str]]]:
    """Verb by verb, what is typed under a limit; each on its own outputs."""
    yield "distill", ["distill", "recipe.toml", "--out", "runs/tiny", "--resume"]
    run = str(whole.work.run)
    for target in TARGETS:
        yield f"build {target}", ["build", run, "--target", target, "--out", "out"]
    yield "report", ["report", run, "--bundle", str(whole.work.bundle), "--no-bench", "--out", "report.html"]


def under(folder: Path, clock: Clock, *, kind: str, limits: Sequence[int], expected: str) -> Found:
    """Every verb under every limit: it does its work, or says in one line why not; then the limit goes, and it does it.

    Args:
        folder: For everything.
        clock: This part's time.
        kind: Of the limit, as `resource` calls it.
        limits: To try.
        expected: What a told error must say.
    """
    whole = undisturbed(folder / "whole")
    counts = {"done": 0, "told": 0}
    broken = []
    for most in limits:
        for name, words in commands(whole):
            if clock.is_over and (broken or any(counts.values())):
                break
            work = Work(folder=folder / f"{name.replace(' ', '-')}-{most}")
            work.folder.mkdir()
            (work.folder / "recipe.toml").write_bytes((whole.work.folder / "recipe.toml").read_bytes())
            outcome, said = limited(work, words, kind=kind, most=most)
            if outcome == "broken" or (outcome == "told" and expected not in said.lower()):
                broken.append(f"{name} under {most}: {said}")
                continue
            counts[outcome] += 1
            if name == "distill":
                try:
                    work.finish("distill")
                except KillError as error:
                    broken.append(f"{name} under {most}, then without a limit: {error}")
                    continue
                pairs = [
                    (run / stage / "weights.safetensors" for run in (work.run, whole.work.run)) for stage in TRAINED
                ]
                if any(sha256_file(own) != sha256_file(other) for own, other in pairs):
                    broken.append(f"{name} under {most}: other weights after it went on")
    figures = f"{counts['told']} told in one line, {counts['done']} had enough"
    return Found(figures=figures, tried=sum(counts.values()) + len(broken), broken=broken)


def disk(folder: Path, clock: Clock) -> Found:
    """Files that may not grow beyond a size, in each verb."""
    return under(folder, clock, kind="RLIMIT_FSIZE", limits=DISK_BYTES, expected="")


def limit(folder: Path, clock: Clock) -> Found:
    """Address space that does not suffice, in each verb."""
    sizes = [mib << 20 for mib in LIMITS_MIB]
    return under(folder, clock, kind="RLIMIT_AS", limits=sizes, expected="memory")


def fuzz(folder: Path, clock: Clock) -> Found:
    """Mutated files to every reader, a new seed each round: benchmarks.fuzz."""
    from benchmarks.fuzz.readers import READERS

    inputs, broken, seed = 0, [], time.time_ns() % 2**20
    while not clock.is_over:
        for name in READERS:
            if clock.is_over:
                break
            command = [sys.executable, "-m", "benchmarks.fuzz", name, "--inputs", str(FUZZED), "--seed", str(seed)]
            done = bounded(command, folder=ROOT)
            inputs += FUZZED
            if done is None:
                # Its own limit is 10 s of CPU time an input, which native code and sleep get past.
                broken.append(f"{name}, seed {seed}: it did not end within {HANG_S:g} s")
            elif done.returncode != 0:
                broken.append(f"{name}, seed {seed}: {done.stderr[-600:]}")
        seed += 1
    return Found(figures=f"{inputs:,} inputs to {len(READERS)} readers", tried=inputs, broken=broken)


def stream(folder: Path, clock: Clock) -> Found:
    """Resident memory of a streamed epoch, of few samples and of many: benchmarks.streaming."""
    code = "import json, sys; from pathlib import Path; from benchmarks.streaming import memory; "
    code += "print(json.dumps(memory(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])))"
    done = bounded([sys.executable, "-c", code, str(folder), *map(str, SAMPLES)], folder=ROOT)
    if done is None or done.returncode != 0:
        why = f"it did not end within {HANG_S:g} s" if done is None else done.stderr[-600:]
        return Found(figures="no figures", tried=1, broken=[why])
    rows: list[dict[str, Any]] = [row for row in json.loads(done.stdout) if row["way"] == "stream"]
    most = {row["samples"]: row["most_mib"] for row in rows}
    first, last = most[min(most)], most[max(most)]
    broken = [] if last <= FLAT * first else [f"{first} MiB grew to {last} MiB"]
    told = ", ".join(f"{count:,} samples {mib} MiB" for count, mib in most.items())
    return Found(figures=told, tried=len(rows), broken=broken)


PARTS: Mapping[str, Callable[[Path, Clock], Found]] = {
    "kill": kill,
    "disk": disk,
    "limit": limit,
    "fuzz": fuzz,
    "stream": stream,
}


@contextmanager
def work_folder(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"edgeface-soak-{name}-") as folder:
        yield Path(folder)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all of them")
    parser.add_argument("--minutes", type=float, default=30.0, help="in all (default %(default)s)")
    options = parser.parse_args(words)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    chosen = list(dict.fromkeys(options.parts)) or list(PARTS)
    failed = False
    for name in chosen:
        began = time.monotonic()
        try:
            with work_folder(name) as folder:
                found = PARTS[name](folder, Clock(60.0 * options.minutes / len(chosen)))
        except KillError as error:  # already the run that nobody kills
            found = Found(figures="no figures", tried=1, broken=[str(error)])
        verdict = "NOT HELD" if found.broken else "held" if found.tried else "NOTHING TRIED"
        print(f"{name:7} {verdict}: {found.figures}; {time.monotonic() - began:.0f} s", flush=True)
        for each in found.broken:
            print(f"        {each}", flush=True)
        failed |= bool(found.broken) or not found.tried
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
