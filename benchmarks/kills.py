"""SIGKILL at random moments of a tiny run, from packing to report, and what `--resume` makes of what is left.

python -m benchmarks.kills --moments 20 --out benchmarks/results/kill.json

A moment is a stage and a share of the time that stage took when nothing stopped it. The whole process group is killed.
Then, before anything is resumed, all that claims to be whole is checked; after it, every file is compared with those of
a run that nobody stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

RECIPE = """
name = "tiny"
threads = 1
[data]
train = ["synthetic:96@train"]
val = ["synthetic:32@val"]
pack_px = 40
[tasks]
landmarks5 = 1.0
gender = 0.1
[teacher.network]
backbone = "vgg16"
width = 0.125
input_px = 32
[teacher.train]
epochs = 3
batch = 32
warmup_epochs = 0.0
checkpoint_s = 0.001
[student.network]
backbone = "edge_s"
width = 0.25
input_px = 32
[student.train]
epochs = 3
batch = 32
warmup_epochs = 0.0
checkpoint_s = 0.001
[qat]
calibration_batches = 2
[qat.train]
epochs = 12
batch = 32
warmup_epochs = 0.0
checkpoint_s = 0.001
"""
ROOT = Path(__file__).resolve().parents[1]
TRAINED = ("teacher", "student", "qat")
STAGES = ("packing", *TRAINED, "build", "report")
TARGET = "onnx"
_TRIES = 8  # kills that came too late are tried again, earlier
_WAIT_S = 600.0  # for a command, and for each stage of one that nobody stops


class KillError(Exception):
    """A run that did not do what it must."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When to kill.

    Attributes:
        stage: One of STAGES.
        share: Of the stage's time, 0 to 1.
    """

    stage: str
    share: float


@dataclass(kw_only=True)
class Work:
    """A folder in which a tiny run is made, built and reported on.

    Attributes:
        folder: Holds recipe, run, cache and bundles.
        steps: Stage to the last step that the process in progress has told of.
        said: What it has written to stderr.
        listener: Reads that.
    """

    folder: Path
    steps: dict[str, int] = field(default_factory=dict)
    said: str = ""
    listener: threading.Thread = field(default_factory=threading.Thread)

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def bundle(self) -> Path:
        return self.folder / "out" / TARGET

    @property
    def page(self) -> Path:
        return self.run / "report.html"

    def words(self, verb: str) -> list[str]:
        """The command line of a verb: distill goes on where it was left, the others are simply typed again."""
        if verb == "distill":
            return ["distill", "recipe.toml", "--out", "runs/tiny", "--resume"]
        if verb == "build":
            return ["build", "runs/tiny", "--target", TARGET, "--out", "out"]
        return ["report", "runs/tiny", "--bundle", f"out/{TARGET}", "--no-bench"]

    def start(self, verb: str) -> subprocess.Popen[str]:
        (self.folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeface", *self.words(verb)],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "EDGEFACE_CACHE": str(self.cache), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        self.steps, self.said = {}, ""
        self.listener = threading.Thread(target=self._listen, args=(process.stderr,), daemon=True)
        self.listener.start()
        return process

    def _listen(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.said += line
                head, found, rest = line.partition(" step ")  # "teacher (vgg16) step 3/9  loss …"
                if found:
                    self.steps[head.split(" ")[0]] = int(rest.partition("/")[0])

    def finish(self, verb: str) -> None:
        """Type a verb and let it end.

        Raises:
            KillError: It failed, or did not end within _WAIT_S.
        """
        self.ended(self.start(verb), verb)

    def ended(self, process: subprocess.Popen[str], verb: str) -> None:
        try:
            process.wait(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            _stop(process)
            raise KillError(f"{verb} did not end within {_WAIT_S:g} s: {self.said[-400:]}") from None
        self.listener.join(timeout=_WAIT_S)
        if process.returncode != 0:
            raise KillError(f"{verb} ended with {process.returncode}: {self.said[-400:]}")

    def is_done(self, stage: str) -> bool:
        """Whether a stage's result is in its place."""
        if stage == "packing":
            return (self.run / "recipe.toml").is_file()
        if stage in TRAINED:
            return (self.run / stage / "manifest.json").is_file()
        return (self.bundle / "scorecard.json").is_file() if stage == "build" else self.page.is_file()


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run that nobody stopped.

    Attributes:
        work: Its folder.
        seconds: Stage to the time from its begin to its end, as seen from outside.
        files: What every run must end with, from `result`.
    """

    work: Work
    seconds: Mapping[str, float]
    files: Mapping[str, str]


def verb_of(stage: str) -> str:
    return stage if stage in ("build", "report") else "distill"


def has_begun(work: Work, stage: str) -> bool:
    """Whether a process is at a stage, as far as that can be seen from outside."""
    if stage == "packing":
        return (work.cache / "packs").is_dir()
    if stage in TRAINED:
        return work.is_done(STAGES[STAGES.index(stage) - 1])
    return stage == "report" or any((work.folder / "out").glob(".*.lock"))


def undisturbed(folder: Path, *, stages: Sequence[str] = STAGES) -> Whole:
    """Run the given stages' verbs once, timing each stage.

    Raises:
        KillError: A verb failed, or a stage took longer than _WAIT_S.
    """
    work = Work(folder=folder)
    folder.mkdir(parents=True)
    seconds: dict[str, float] = {}
    for verb in dict.fromkeys(map(verb_of, stages)):
        process = work.start(verb)
        for stage in (each for each in STAGES if verb_of(each) == verb):
            _wait(process, lambda stage=stage: has_begun(work, stage))  # type: ignore[misc]
            began = time.monotonic()
            _wait(process, lambda stage=stage: work.is_done(stage))  # type: ignore[misc]
            seconds[stage] = time.monotonic() - began
        work.ended(process, verb)
    return Whole(work=work, seconds=seconds, files=result(work))


def _wait(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Until something has happened or the process has ended, whichever comes first.

    Raises:
        KillError: Neither has within _WAIT_S; the process is stopped.
    """
    until = time.monotonic() + _WAIT_S
    while not ready() and process.poll() is None:
        if time.monotonic() > until:
            _stop(process)
            raise KillError(f"{shlex.join(map(str, process.args))} came no further within {_WAIT_S:g} s")  # type: ignore[arg-type]
        time.sleep(0.002)


def _stop(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def result(work: Work) -> dict[str, str]:
    """Everything a work folder must end with: name to digest, "" for what names times or commands.

    Names alone of what the cache holds beside packs; nothing that a killed process left behind may be among them.
    """
    found: dict[str, str] = {}
    timed = {"manifest.json", "report.html", "scorecard.json", "MODEL_CARD.md", "sbom.cdx.json"}
    for path in sorted(work.folder.rglob("*")):
        name = path.relative_to(work.folder).as_posix()
        if path.is_file() and not name.startswith(("cache/answers/", "cache/tried/")):
            found[name] = "" if path.name in timed else hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_symlink():
            found[name] = str(path.readlink())
    for stage in TRAINED:
        if (work.run / stage / "manifest.json").is_file():
            manifest = json.loads((work.run / stage / "manifest.json").read_text(encoding="utf-8"))
            found[f"{stage}: key, parents, steps"] = json.dumps(
                [manifest["key"], manifest["made_from"], manifest["training"]["steps"], manifest["training"]["samples"]]
            )
    return found


def faults(work: Work, whole: Whole) -> list[str]:
    """What claims to be whole and is not, in what a killed process left."""
    from edgeface.checkpoint import load_checkpoint
    from edgeface.errors import EdgefaceError
    from edgeface.files import sha256_file
    from targets.bundle import read_bundle

    found = []
    for stage in TRAINED:
        folder = work.run / stage
        if folder.exists():
            try:
                load_checkpoint(folder)  # compares each file's digest
            except EdgefaceError as error:
                found.append(str(error))
        step = work.run / f"{stage}.partial"
        if step.exists():
            digest = json.loads((step / "state.json").read_text(encoding="utf-8"))["sha256"]
            if digest != sha256_file(step / "state.safetensors"):
                found.append(f"{step}: state.safetensors has another digest")
    for pack in work.cache.glob("packs/[!.]*"):
        for path in pack.iterdir():
            name = path.relative_to(work.folder).as_posix()
            if sha256_file(path) != whole.files[name]:
                found.append(f"{path}: other content")
    if work.bundle.exists():
        manifest = read_bundle(work.bundle)
        found += [
            f"{name} in the bundle has another digest"
            for name, entry in manifest["files"].items()
            if sha256_file(work.bundle / name) != entry["sha256"]
        ]
    if work.page.exists() and not work.page.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        found.append("half a report")
    return found


def kill(work: Work, stage: str, *, ready: Callable[[], bool], after_s: float = 0.0) -> dict[str, Any] | None:
    """Start the verb of a stage, wait for a moment, kill the process group.

    Args:
        work: Where.
        stage: One of STAGES.
        ready: Asked again and again.
        after_s: How long to wait from then on.

    Returns:
        What was hit and what was lost; None when the verb ended before, or behind its last file.
    """
    process = work.start(verb_of(stage))
    _wait(process, ready)
    time.sleep(after_s)
    told = dict(work.steps)
    os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the group is still its own even where it has ended
    process.wait()
    work.listener.join(timeout=_WAIT_S)
    if process.returncode != -signal.SIGKILL:
        return None
    hit = next((each for each in STAGES if verb_of(each) == verb_of(stage) and not work.is_done(each)), "")
    if not hit:
        return None
    kept = _saved_step(work.run / f"{hit}.partial")
    return {
        "hit": hit,
        "steps_told": told.get(hit, 0),
        "steps_kept": kept,
        "steps_lost": max(0, told.get(hit, 0) - kept),
    }


def _saved_step(partial: Path) -> int:
    try:
        step: int = json.loads((partial / "state.json").read_text(encoding="utf-8"))["step"]
    except FileNotFoundError:
        return 0
    return step


def _times(work: Work) -> dict[Path, int]:
    """When each file of what is finished was written."""
    folders = [work.run / stage for stage in TRAINED if work.is_done(stage)]
    folders += work.cache.glob("packs/[!.]*")
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def survive(whole: Whole, moment: Moment, folder: Path) -> dict[str, Any]:
    """One moment: a fresh folder, a kill, a look at what is left, a resume, a comparison.

    Raises:
        KillError: A command failed or took longer than _WAIT_S, or none of _TRIES could be killed in time.
    """
    share = moment.share
    for _ in range(_TRIES):
        work = Work(folder=folder)
        folder.mkdir(parents=True)
        if moment.stage in ("build", "report"):
            shutil.copytree(whole.work.run.parent, work.run.parent, symlinks=True)
            work.page.unlink()
            shutil.copytree(whole.work.cache, work.cache)
            shutil.rmtree(work.cache / "answers", ignore_errors=True)
        if moment.stage == "report":
            shutil.copytree(whole.work.bundle, work.bundle)
        row = kill(
            work,
            moment.stage,
            ready=lambda work=work: has_begun(work, moment.stage),  # type: ignore[misc]
            after_s=share * whole.seconds[moment.stage],
        )
        if row is not None:
            row |= {"aimed_at": moment.stage, "share": round(share, 3)}
            break
        shutil.rmtree(folder)
        share *= 0.7
    else:
        raise KillError(f"{moment.stage} always ended before it was killed")
    row["half_written"] = faults(work, whole)
    kept = _times(work)
    row["finished_before"] = sorted({path.parent.name for path in kept} & set(TRAINED))
    for verb in dict.fromkeys(map(verb_of, STAGES[STAGES.index(moment.stage) :])):
        work.finish(verb)
    row["repeated"] = sorted(
        str(path.relative_to(folder)) for path, at in kept.items() if path.stat().st_mtime_ns != at
    )
    ended = result(work)
    row["differs"] = sorted(
        name for name in ended.keys() | whole.files.keys() if ended.get(name) != whole.files.get(name)
    )
    row["equal"] = not row["differs"]
    return row


def moments(count: int, *, seed: int) -> Iterator[Moment]:
    """Each stage in turn, at a random share of its time."""
    draw = random.Random(seed)
    for number in range(count):
        yield Moment(stage=STAGES[number % len(STAGES)], share=draw.random())


def is_held(row: Mapping[str, Any]) -> bool:
    """Whether a moment was survived: the same files, nothing half, nothing twice, one interval lost at most."""
    return bool(row["equal"] and not row["half_written"] and not row["repeated"] and row["steps_lost"] <= 1)


def main() -> None:
    from edgeface.files import write_json
    from edgeface.provenance import commit, cpu, versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no further moment after these")
    parser.add_argument("--out", type=Path, default=None, help="default: print alone")
    options = parser.parse_args()
    until = time.monotonic() + 60.0 * options.minutes
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgeface-kill-") as name:
        whole = undisturbed(Path(name) / "whole")
        for number, moment in enumerate(moments(options.moments, seed=options.seed)):
            if time.monotonic() > until:
                print(f"time is up after {number} of {options.moments} moments", file=sys.stderr)
                break
            row = survive(whole, moment, Path(name) / f"killed-{number}")
            shutil.rmtree(Path(name) / f"killed-{number}")
            rows.append(row)
            told = f"{row['hit']} at {row['share']:.2f}, {row['steps_lost']} step lost, equal: {row['equal']}"
            print(f"{number + 1}: {told}", flush=True)
    held = sum(map(is_held, rows))
    summary = {
        "moments": len(rows),
        "held": held,
        "most_steps_lost": max((row["steps_lost"] for row in rows), default=0),
        "hit": {stage: sum(row["hit"] == stage for row in rows) for stage in STAGES},
    }
    print(f"{held} of {len(rows)} kills survived; at most {summary['most_steps_lost']} step lost; hit {summary['hit']}")
    if options.out is not None:
        conditions = {"machine": cpu(), "versions": versions(), "commit": commit(), "seed": options.seed}
        conditions["command"] = shlex.join(["python", "-m", "benchmarks.kills", *sys.argv[1:]])
        conditions["seconds"] = {stage: round(took, 3) for stage, took in whole.seconds.items()}
        write_json(options.out, {"schema": 1, "summary": summary, "rows": rows, "conditions": conditions})
    sys.exit(0 if rows and held == len(rows) else 1)


if __name__ == "__main__":
    main()
