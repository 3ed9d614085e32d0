"""SIGKILL at any moment: nothing half-written is taken for whole, finished work stays, the rest ends in the same bits.

Twenty random moments, from packing to report: `python -m benchmarks.kills`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import distill.train
from benchmarks.kills import Whole, Work, faults, is_held, kill, moments, result, undisturbed
from distill.train import Trained, train
from edgeface.files import settle, write_bytes, write_folder
from edgeface.specs import TrainSpec

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ("packing", "teacher", "student", "qat")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return undisturbed(tmp_path_factory.mktemp("kill") / "whole", stages=TRAINING)


@pytest.mark.slow
def test_a_run_killed_in_packing_teacher_and_qat_ends_with_the_files_of_one_that_was_not(
    whole: Whole, tmp_path: Path
) -> None:
    work = Work(folder=tmp_path / "killed")
    work.folder.mkdir()
    ready = {
        "packing": lambda: any(work.cache.glob("packs/.*/images.raw")),
        "teacher": lambda: work.steps.get("teacher", 0) >= 4,
        "qat": lambda: work.steps.get("qat", 0) >= 4,
    }
    for stage, moment in ready.items():
        kept = {path: path.stat().st_mtime_ns for path in work.run.glob("*/*") if not path.parent.suffix}
        row = kill(work, stage, ready=moment)
        assert row is not None
        assert faults(work, whole) == []
        assert row["steps_lost"] <= 1  # it saves after every step
        assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished stages are not repeated
    assert work.is_done("student")
    work.finish("distill")
    assert result(work) == whole.files


@pytest.mark.slow
def test_what_the_kill_loop_looks_for_is_noticed_twin(whole: Whole, tmp_path: Path) -> None:
    work = Work(folder=tmp_path / "copy")
    subprocess.run(["cp", "-a", whole.work.folder, work.folder], check=True)
    assert faults(work, whole) == []
    assert result(work) == whole.files
    weights = work.run / "teacher" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (pack,) = work.cache.glob("packs/synthetic-train-*")
    (pack / "labels.npz").write_bytes(b"half")
    (work.run / ".student.1.partial").mkdir()
    (work.run / ".student.1.partial" / "state.json").write_text("{}")
    assert len(faults(work, whole)) == 2
    differs = {name for name, digest in result(work).items() if whole.files.get(name) != digest}
    assert differs == {
        "runs/tiny/teacher/weights.safetensors",
        "runs/tiny/.student.1.partial/state.json",
        f"cache/packs/{pack.name}/labels.npz",
    }


def test_moments_fall_into_every_stage_and_a_row_is_held_only_when_nothing_was_lost() -> None:
    drawn = list(moments(20, seed=0))
    assert {moment.stage for moment in drawn} == {*TRAINING, "build", "report"}
    assert all(0.0 <= moment.share < 1.0 for moment in drawn)
    assert list(moments(20, seed=1)) != drawn
    row = {"equal": True, "half_written": [], "repeated": [], "steps_lost": 1}
    assert is_held(row)
    for worse in ({"equal": False}, {"half_written": ["x"]}, {"repeated": ["x"]}, {"steps_lost": 2}):
        assert not is_held(row | worse)


# Every call of the writers that Python reports, each as the last one of a process: opening, making, listing, locking,
# renaming and deleting, and looking up the exchange; not writing, flushing and closing, for which it has no audit event

_EVERY_CALL = """
import ctypes, os, signal, sys
from pathlib import Path
import edgeface.files as files

place, fallback, what = Path(sys.argv[1]), sys.argv[2] == "fallback", sys.argv[3]
if fallback:
    files._exchange = lambda one, other: False

def write(text):
    if what == "file":
        files.write_bytes(place, text.encode())
        return
    with files.write_folder(place) as aside:
        for name in ("a", "b"):
            (aside / name).write_text(text)

def read():
    if what == "file":
        return {place.read_text()}
    return {(place / name).read_text() for name in ("a", "b")}

calls = 0
while True:
    write("old")
    child = os.fork()
    if child == 0:
        left = calls
        def count(event, arguments):
            global left
            if event in ("open", "ctypes.dlsym") or event.startswith(("os.", "shutil.", "fcntl.")):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        write("new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    files.settle(place)
    left = [name for name in os.listdir(place.parent) if name != place.name]
    assert read() in ({"old"}, {"new"}), (calls, read())
    assert not left, (calls, left)
    if os.WIFEXITED(status):
        break
    calls += 1
print(calls)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("way", ["exchange", "fallback"])
def test_a_writer_killed_at_any_call_that_python_reports_leaves_the_old_or_the_new_and_nothing_else(
    tmp_path: Path, way: str, what: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EVERY_CALL, str(tmp_path / "place"), way, what],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= (4 if what == "file" else 10)  # so many calls were the last one


def test_a_writer_without_the_aside_is_caught_half_written_twin(tmp_path: Path) -> None:
    plain = _EVERY_CALL.replace(
        "    with files.write_folder(place) as aside:\n",
        "    for aside in [place]:\n        place.mkdir(exist_ok=True)\n",
    )
    done = subprocess.run(
        [sys.executable, "-c", plain, str(tmp_path / "place"), "exchange", "folder"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "AssertionError" in done.stderr


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    place, dead = tmp_path / "stage", _dead_process()
    for name in (f".stage.{dead}.partial", f".stage.{os.getppid()}.partial", f".stages.{dead}.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / f".stage.{dead}.old").mkdir()
    (tmp_path / f".stage.{dead}.old" / "weights").write_text("the only ones")
    settle(place)
    assert (place / "weights").read_text() == "the only ones"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f".stage.{os.getppid()}.partial", f".stages.{dead}.partial", "stage"]
    )
    # The number of a dead process, but somebody holds it: a process on another machine, or in another container.
    (tmp_path / f".stage.{dead}.partial").mkdir()
    descriptor = os.open(tmp_path / f".stage.{dead}.partial", os.O_RDONLY)
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)
    settle(place)
    assert (tmp_path / f".stage.{dead}.partial").is_dir()
    os.close(descriptor)
    settle(place)
    assert not (tmp_path / f".stage.{dead}.partial").exists()


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_two_writers_of_one_place_both_succeed(tmp_path: Path) -> None:
    place = tmp_path / "pack"
    with write_folder(place) as first:
        (first / "file").write_text("first")
        script = (
            "import sys\nfrom pathlib import Path\nfrom edgeface.files import write_folder\n"
            f"with write_folder(Path({str(place)!r})) as aside:\n    (aside / 'file').write_text('second')"
        )
        subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (place / "file").read_text() == "second"
    assert (place / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    write_bytes(place / "file", b"third")
    assert [path.name for path in place.iterdir()] == ["file"]


# One checkpoint interval


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"y": self.fc(images.flatten(1) / 255.0)}


@dataclasses.dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: dict[str, Tensor]
    ids: Tensor


class Batches:
    steps_per_epoch = 30

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        for step in range(start_step, self.steps_per_epoch):
            generator = torch.Generator().manual_seed(100 * epoch + step)
            images = torch.rand(4, 3, 2, 2, generator=generator) * 255
            yield Batch(images, {"y": images.flatten(1)[:, :2] / 255.0}, torch.arange(4))


def square(
    outputs: Mapping[str, Tensor], images: Tensor, labels: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    loss = (outputs["y"] - labels["y"]).square().mean()
    return loss, {"y": loss}


class _KilledError(BaseException):
    """Stands for SIGKILL where nothing is cleaned up: no handler of the loop sees it."""


def _fit(folder: Path, *, checkpoint_s: float, killed_at: int | None = None) -> Trained:
    def before(network: nn.Module, step: int, steps: int) -> None:
        if step == killed_at:
            raise _KilledError

    return train(
        Net(),
        square,
        Batches(),
        spec=TrainSpec(epochs=1, batch=4, warmup_epochs=0.0, checkpoint_s=checkpoint_s),
        seed=0,
        key="k",
        partial=folder / "stage.partial",
        input_px=2,
        before_step=before,
    )


@pytest.mark.parametrize("killed_at", [3, 11, 29])
def test_at_most_one_checkpoint_interval_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    clock = {"now": 0.0}

    def monotonic() -> float:
        clock["now"] += 1.0
        return clock["now"]

    torch.manual_seed(0)
    whole = _fit(tmp_path / "whole", checkpoint_s=4.0)
    monkeypatch.setattr(distill.train.time, "monotonic", monotonic)
    torch.manual_seed(0)
    with pytest.raises(_KilledError):
        _fit(tmp_path / "killed", checkpoint_s=4.0, killed_at=killed_at)
    path = tmp_path / "killed" / "stage.partial" / "state.json"
    kept = json.loads(path.read_text())["step"] if path.is_file() else 0
    # The loop reads the clock at least once a step, so an interval of 4 s is 5 steps at most.
    assert 0 <= killed_at - kept <= 5
    torch.manual_seed(1)  # what the network began with is in the checkpoint, or the run begins anew
    if kept:
        resumed = _fit(tmp_path / "killed", checkpoint_s=4.0)
        assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_without_checkpoints_all_is_lost_twin(tmp_path: Path) -> None:
    with pytest.raises(_KilledError):
        _fit(tmp_path, checkpoint_s=1e9, killed_at=29)
    assert not (tmp_path / "stage.partial").exists()


# Processes that work for a killed one

_PARENT = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
from edgeface.processes import ending_children, live_with_parent

def work(path):
    with open(path, "w") as file:
        file.write(str(__import__("os").getpid()))
    time.sleep(600)

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=live_with_parent)
    with pool, ending_children():
        pool.submit(work, sys.argv[1]).result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_children_of_a_killed_or_interrupted_process_end_with_it(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "parent.py").write_text(_PARENT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "pid")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    child = _written(tmp_path / "pid")
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert "SpawnProcess" not in said  # no traceback of the child among the parent's
    for _ in range(600):
        if not _runs(child):
            break
        time.sleep(0.05)
    assert not _runs(child)


def _written(path: Path) -> int:
    while not path.is_file() or not path.read_text():
        time.sleep(0.01)
    return int(path.read_text())


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
