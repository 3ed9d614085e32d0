"""A full disk, a read-only folder, too little memory, a clock that goes back, faces that change, numbers that break."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import datetime
import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import distill.train
import distill.trouble
from distill.train import Trained, train
from edgeface.cli.main import main
from edgeface.data.pack import cache_folder
from edgeface.errors import DeviceError, MissingToolError, OutputError, ResourceError
from edgeface.files import no_room, read_json, require_room, write_folder
from edgeface.memory import is_memory, largest_that_fits, memory_error
from edgeface.runs import FACES, begin, mark_latest, newest_run
from edgeface.specs import TrainSpec

from .tiny import Tiny, weights

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edgeface", "distill", "quantize", "targets")


def failed(words: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> dict[str, str]:
    """The error object of a command that must end with a code."""
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    error: dict[str, str] = answer["error"]
    return error


# A full disk


@contextlib.contextmanager
def full_at(size_bytes: int) -> Iterator[None]:
    """No file may become larger, as on a disk that has no more room; unlike a small disk, anybody may set this up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_disk_full_while_packing_leaves_no_pack(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "runs" / "tiny"
    with full_at(100_000):
        error = failed(tiny.distill(run), capsys)
    assert "the packed faces cannot be kept" in error["found"]
    assert "EDGEFACE_CACHE" in error["do"]
    assert list((tmp_path / "cache" / "packs").iterdir()) == []
    assert not run.exists()


@pytest.mark.slow
def test_disk_full_while_packing_into_shards_keeps_finished_ones_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, whole = tmp_path / "shards", tmp_path / "whole"
    pack = ["data", "pack", "synthetic:12@val", "--px", "40", "--shard-size", "5", "--workers", "1", "--shards"]
    with full_at(4096):
        error = failed([*pack, str(shards)], capsys)
    assert "cannot write" in error["found"]
    assert not list(shards.rglob("*.tar"))
    assert main([*pack, str(shards)]) == main([*pack, str(whole)]) == 0
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.tar")} for folder in (shards, whole)
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3, "the twin: there is something to compare"


@pytest.mark.slow
def test_disk_full_while_answers_are_kept_keeps_the_earlier_ones(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "answers"
    ask = ["eval", str(tiny.run / "student"), "--data", "synthetic:300@val", "--answers", str(kept)]
    with full_at(512):
        assert "cannot write" in failed(ask, capsys)["found"]
    assert not kept.exists() or not list(kept.rglob("*.npy"))
    assert main(ask) == 0
    files = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert files
    with full_at(512):
        failed(ask, capsys)
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "before"), [("teacher", ()), ("student", ("teacher",)), ("qat", ("teacher", "student"))]
)
def test_disk_full_in_training_is_told_and_the_run_goes_on_when_there_is_room(
    tiny: Tiny,
    begun: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    stage: str,
    before: tuple[str, ...],
) -> None:
    run = begun(*before)
    left = sorted(path.name for path in run.iterdir())
    with full_at(4096):
        error = failed(tiny.distill(run, "--resume"), capsys)
    assert "cannot write" in error["found"]
    assert error["where"].startswith(str(run / stage))
    assert sorted(path.name for path in run.iterdir()) == left
    assert main(tiny.distill(run, "--resume")) == 0
    assert tiny.same_weights(run)


@pytest.mark.slow
def test_disk_full_in_build_and_report_keeps_the_earlier_files(
    tiny: Tiny, begun: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = begun("teacher", "student", "qat"), tmp_path / "out"
    build = ["build", str(run), "--target", "onnx", "--precision", "w8a8", "--out", str(out)]
    report = ["report", str(run), "--bundle", str(out / "onnx"), "--no-bench"]
    with full_at(4096):
        error = failed(build, capsys)
    assert "cannot write" in error["found"]
    assert not any(out.glob("**/*")) if out.exists() else True
    assert main(build) == 0
    assert main(report) == 0
    page = (run / "report.html").read_bytes()
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with full_at(4096):
        assert failed(report, capsys)["where"] == str(run / "report.html")
        assert "cannot write" in failed(build, capsys)["found"]
    assert (run / "report.html").read_bytes() == page
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files


_ON_A_SMALL_DISK = """
set -u
mount -t tmpfs -o size=400k tmpfs "$DISK" || exit 77
"$@" --out "$DISK/run" --resume; echo "full $?"
ls -A "$DISK" "$DISK/run"
mount -o remount,ro "$DISK" || exit 77
"$@" --out "$DISK/run" --resume; echo "read-only $?"
EDGEFACE_CACHE="$DISK/cache" "$@" --out "$OTHER" --resume; echo "cache $?"
mount -o remount,rw,size=50m "$DISK" || exit 77
"$@" --out "$DISK/run" --resume; echo "room $?"
cp -r "$DISK/run" "$KEPT"
"""


@pytest.mark.slow
def test_a_small_disk_that_fills_is_read_only_and_has_room_again(tiny: Tiny, tmp_path: Path) -> None:
    """A disk of its own, in a mount namespace of its own: root and, where the system lets them, users can have one."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on the PATH: no disk of its own to fill")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", "edgeface", "distill", str(tiny.recipe)]
    done = subprocess.run(
        ["unshare", "-m" if os.getuid() == 0 else "-Urm", "sh", "-c", _ON_A_SMALL_DISK, "sh", *command],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DISK": str(disk),
            "OTHER": str(tmp_path / "other"),
            "KEPT": str(tmp_path / "kept"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "full" not in done.stdout:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()[-100:]}")
    told = dict(re.findall(r"^(full|read-only|cache|room) (\d+)$", done.stdout, flags=re.MULTILINE))
    assert told == {"full": "2", "read-only": "2", "cache": "2", "room": "0"}, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("OutputError")]
    assert len(errors) == 3
    assert "no space left on device" in errors[0]
    assert "read-only file system" in errors[1]
    assert "Read-only file system" in errors[2]
    assert "EDGEFACE_CACHE" in errors[2]
    assert "Traceback" not in done.stderr
    assert ".partial" not in done.stdout.replace("teacher.partial", "")  # the last step checkpoint that found room
    assert tiny.same_weights(tmp_path / "kept")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_what_native_code_says_of_a_full_disk_is_an_output_error_that_names_the_folder(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(OutputError, match=str(tmp_path / "place")), write_folder(tmp_path / "place"):
        raise error
    assert list(tmp_path.iterdir()) == []
    assert no_room(RuntimeError("another fault")) is None
    with pytest.raises(RuntimeError, match="another fault"), write_folder(tmp_path / "place"):
        raise RuntimeError("another fault")


def test_room_for_native_code_is_asked_for_before_it_is_let_loose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_room(tmp_path, 1 << 20, where=tmp_path)
    with full_at(1 << 19), pytest.raises(OutputError, match="file too large"):
        require_room(tmp_path, 1 << 20, where=tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", _full)
    with pytest.raises(OutputError, match="no space left on device"):
        require_room(tmp_path, 1 << 20, where=tmp_path)
    assert list(tmp_path.iterdir()) == []


def _full(descriptor: int, begin: int, length: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["android", "openvino", "ios"])
def test_a_full_disk_is_told_before_a_converter_meets_it(tiny: Tiny, tmp_path: Path, target: str) -> None:
    from targets.build import build

    with full_at(50_000), pytest.raises(OutputError, match="cannot write"):
        build(tiny.run, target=target, precisions=["w8a8"], out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.slow
def test_a_read_only_folder_is_told_before_anything_is_trained(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.getuid() == 0:
        pytest.skip("root ignores modes: see test_a_small_disk_that_fills_is_read_only_and_has_room_again")
    (tmp_path / "mine").mkdir(mode=0o555)
    error = failed(tiny.distill(tmp_path / "mine" / "run"), capsys)
    assert "permission denied" in error["found"]


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("limit_mib", [150, 350, 500])
def test_a_memory_limit_is_an_error_of_one_line(tiny: Tiny, tmp_path: Path, limit_mib: int) -> None:
    limited = ["sh", "-c", f'ulimit -v {limit_mib * 1024}; exec "$@"', "sh"]
    done = subprocess.run(
        [*limited, sys.executable, "-m", "edgeface", *tiny.distill(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    *native, told = done.stderr.splitlines()
    assert told.startswith("ResourceError: out of memory (")
    assert f"{limit_mib} MiB of address space" in told
    assert not any(line.startswith(("Traceback", "  File")) for line in native), "words of libraries at most"


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:120] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (OSError("libgomp.so.1: cannot allocate memory in static TLS block"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), False),
        (RuntimeError("shape '[2, 3]' is invalid"), False),
        (MissingToolError("litert-torch cannot be imported (libx.so: failed to map segment from shared object)"), True),
        (MissingToolError("onnx cannot be imported (No module named 'onnx')"), False),
        (DeviceError("the phone: cannot allocate memory"), False),
        (SystemError("returned NULL without setting an exception"), False),  # no limit is in force here
        (SystemError("error return without exception set"), False),
        (ImportError("No module named 'onnx'"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out_is_known(error: Exception, short: bool) -> None:
    assert is_memory(error) is short
    found = memory_error(error)
    assert isinstance(found, ResourceError) is short


# A GPU out of memory: there is none here, so a network that refuses large batches as CUDA does stands for it


class Hungry(nn.Module):
    """Two outputs of twelve inputs; more than `most` samples are too many."""

    def __init__(self, most: int, error: type[RuntimeError]) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 2)
        self.most, self.error = most, error

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if len(images) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB")
        return {"y": self.fc(images.flatten(1) / 255.0)}


@dataclasses.dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: dict[str, Tensor]
    ids: Tensor


@dataclasses.dataclass
class Batches:
    """Batches of 40 samples, the same in every epoch."""

    steps_per_epoch: int = 6

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        for step in range(start_step, self.steps_per_epoch):
            images = torch.rand(40, 3, 2, 2, generator=torch.Generator().manual_seed(step)) * 255
            yield Batch(images, {"y": images.flatten(1)[:, :2] / 255.0}, torch.arange(40 * step, 40 * step + 40))


Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def square(
    outputs: Mapping[str, Tensor], images: Tensor, labels: Mapping[str, Tensor], **rest: object
) -> tuple[Tensor, dict[str, Tensor]]:
    loss = (outputs["y"] - labels["y"]).square().mean()
    return loss, {"y": loss}


def fit(network: nn.Module, folder: Path, *, loss: Loss = square) -> Trained:
    return train(
        network,
        loss,
        Batches(),
        spec=TrainSpec(epochs=1, batch=40, warmup_epochs=0.0, checkpoint_s=1e-9),
        seed=0,
        key="k",
        partial=folder / "student.partial",
        input_px=2,
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize(
    ("most", "fits", "refused"), [(39, 20, "40"), (7, 5, "40, 20, 10"), (1, 1, "40, 20, 10, 5, 2")]
)
def test_a_gpu_out_of_memory_names_the_batch_that_fits(
    tmp_path: Path, error: type[RuntimeError], most: int, fits: int, refused: str
) -> None:
    with pytest.raises(ResourceError) as raised:
        fit(Hungry(most, error), tmp_path)
    assert f"{refused} did not, {fits} does" in raised.value.expected
    assert f"student.train.batch={fits}" in raised.value.do
    assert raised.value.found.startswith("a batch of 40 at step 0 of 'student' does not fit")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(("most", "fits"), [(39, 20), (7, 5)])
def test_memory_that_runs_out_in_the_optimizers_first_step_names_the_batch_that_fits_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, fits: int
) -> None:
    network = Hungry(40, torch.OutOfMemoryError)
    seen: list[int] = []
    network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    step = torch.optim.AdamW.step

    def hungry(self: torch.optim.AdamW, *given: object, **named: object) -> object:
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, *given, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.optim.AdamW, "step", hungry)
    with pytest.raises(ResourceError) as raised:
        fit(network, tmp_path)
    assert f"{fits} does" in raised.value.expected
    assert raised.value.found.startswith("a batch of 40 at step 0 of 'student' does not fit")
    assert f"student.train.batch={fits}" in raised.value.do
    seen.clear()
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert fit(network, tmp_path / "whole").steps == 6  # twin: with room it is trained


def test_a_gpu_that_does_not_hold_one_sample_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as raised:
        fit(Hungry(0, torch.OutOfMemoryError), tmp_path)
    assert "not even one sample does" in raised.value.expected
    assert "smaller network" in raised.value.do


def test_what_fits_is_found_with_the_optimizers_tensors_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    plain = torch.empty_like

    def counted(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return plain(tensor)

    monkeypatch.setattr(distill.trouble.torch, "empty_like", counted)
    with pytest.raises(ResourceError):
        fit(Hungry(20, torch.OutOfMemoryError), tmp_path)
    assert sum(kept) == 2 * sum(parameter.numel() for parameter in Hungry(20, RuntimeError).parameters())


def test_halving_finds_the_first_that_fits() -> None:
    assert largest_that_fits(lambda count: count <= 100, 256) == (64, [256, 128])
    assert largest_that_fits(lambda count: True, 256) == (128, [256])
    assert largest_that_fits(lambda count: False, 3) == (0, [3, 1])


def test_another_fault_of_a_network_is_not_taken_for_memory_twin(tmp_path: Path) -> None:
    def wrong(*_: object, **__: object) -> tuple[Tensor, dict[str, Tensor]]:
        raise RuntimeError("shape '[2, 3]' is invalid for input of size 5")

    with pytest.raises(RuntimeError, match="shape"):
        fit(Hungry(40, RuntimeError), tmp_path, loss=wrong)
    assert fit(Hungry(40, RuntimeError), tmp_path / "whole").steps == 6


# Numbers that are not finite


def nan_from(step: int) -> Loss:
    """A loss that breaks at a step."""
    calls = 0

    def loss(
        outputs: Mapping[str, Tensor], images: Tensor, labels: Mapping[str, Tensor], **rest: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        total, parts = square(outputs, images, labels)
        calls += 1
        return (total * float("nan") if calls > step else total), parts

    return loss


def test_a_nan_loss_stops_with_the_step_the_samples_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(distill.trouble.DivergedError) as raised:
        fit(Hungry(40, RuntimeError), tmp_path, loss=nan_from(3))
    assert raised.value.ids == tuple(range(120, 160))
    assert (
        raised.value.found
        == f"the loss is nan at step 3, in the batch of samples {', '.join(map(str, range(120, 160)))}"
    )
    assert f"the last good step checkpoint is that of step 3, in {tmp_path / 'student.partial'}" in raised.value.do
    assert raised.value.exit_code == 2
    kept = load_file(tmp_path / "student.partial" / "state.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_weights_that_broke_do_not_take_the_place_of_a_good_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def broken_gradient(
        outputs: Mapping[str, Tensor], images: Tensor, labels: Mapping[str, Tensor], **rest: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        total, parts = square(outputs, images, labels)
        calls += 1
        # The root of 0 is 0, and its slope infinite: the loss is finite, the weights after the step are not.
        return (total + (outputs["y"] * 0.0).square().sum().sqrt() if calls == 3 else total), parts

    with pytest.raises(
        distill.trouble.DivergedError, match=r"weights '.*fc.weight' are not finite at step 3"
    ) as raised:
        fit(Hungry(40, RuntimeError), tmp_path, loss=broken_gradient)
    assert "the last good step checkpoint is that of step 2" in raised.value.do
    assert read_json(tmp_path / "student.partial" / "state.json")["step"] == 2


def test_a_loss_that_breaks_before_any_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(distill.trouble.DivergedError, match="no step checkpoint was written before"):
        fit(Hungry(40, RuntimeError), tmp_path, loss=nan_from(0))


@pytest.mark.slow
def test_a_run_that_diverges_names_its_samples_as_the_corpus_does(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without validation, which would notice first: see the next test.
    words = ["--set", "teacher.train.lr=1e30", "--set", "data.val=[]"]
    error = failed(tiny.distill(tmp_path / "run", *words), capsys)
    assert re.match(r"the loss is (nan|inf) at step [1-8], in the batch of samples ", error["found"])
    named = error["found"].partition("samples ")[2].split(", ")
    assert len(set(named)) == 32
    keys = {key for path in cache_folder().glob("packs/*/pack.json") for key in read_json(path)["keys"]}
    assert set(named) <= keys
    assert "Lower teacher.train.lr" in error["do"]
    assert "the last good step checkpoint is that of step " in error["do"]


@pytest.mark.slow
def test_a_network_whose_answers_are_no_numbers_stops_at_its_validation(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failed(tiny.distill(tmp_path / "run", "--set", "teacher.train.lr=1e30"), capsys)
    assert re.match(r"\d+ of \d+ .*values are not finite at step 1$", error["found"])
    assert "Lower teacher.train.lr" in error["do"]


# The clock


@pytest.mark.slow
def test_a_clock_that_goes_back_gives_no_negative_durations(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()

    def backwards() -> float:
        nonlocal now
        now -= 3600.0
        return now

    monkeypatch.setattr(time, "time", backwards)
    run = tmp_path / "runs" / "tiny"
    assert main(tiny.distill(run)) == 0
    for stage in ("teacher", "student", "qat"):
        assert read_json(run / stage / "manifest.json")["training"]["seconds"] >= 0.0
    assert tiny.same_weights(run)
    monkeypatch.setattr(distill.train.time, "monotonic", backwards)  # the twin: as if it asked that clock
    assert fit(Hungry(40, RuntimeError), tmp_path / "twin").seconds < 0.0


# Where a clock may be asked that people set: for a date to be read, never for a duration or an order.
DATES = {"edgeface/report/compare.py", "edgeface/runs.py"}


def wall_clocks(source: str) -> list[str]:
    """Calls that ask a clock which may go back, and reads of when a file was written."""
    asked = ("time.time", "time.time_ns", "time.localtime", "os.path.getmtime", "os.path.getctime")
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (
            ast.unparse(node.func) in asked or ast.unparse(node.func).endswith((".now", ".utcnow", ".today"))
        ):
            found.append(ast.unparse(node.func))
        if isinstance(node, ast.Attribute) and node.attr in ("st_mtime", "st_ctime", "st_birthtime"):
            found.append(node.attr)
    return found


def test_durations_and_orders_ask_no_clock_that_goes_back() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix(): wall_clocks(path.read_text(encoding="utf-8")) for path in files}
    assert {name for name, calls in found.items() if calls} <= DATES
    for line in ("time.time() - began", "datetime.datetime.now()", "max(runs, key=lambda run: run.stat().st_mtime)"):
        assert wall_clocks(line)  # the twin


def test_the_newest_run_is_the_one_that_finished_last_whatever_the_clock_says(tmp_path: Path) -> None:
    for name, year in (("a", 2030), ("b", 1980)):
        begin(tmp_path / name, 'name = "demo"\n')
        (tmp_path / name / "qat").mkdir()
        (tmp_path / name / "qat" / "manifest.json").write_text("{}")
        mark_latest(tmp_path / name)
        stamp = datetime.datetime(year, 1, 1).timestamp()
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            os.utime(path, (stamp, stamp))
    assert newest_run(tmp_path) == tmp_path / "b"


# Faces that change


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["file_name,gender"]
    for number in range(64):
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'male' if number % 2 else 'female'}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_faces_that_change_during_a_run_are_noticed_by_their_hash(
    tiny: Tiny, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, source = tmp_path / "runs" / "tiny", f"folder:{corpus}"
    words = tiny.distill(
        run, "--set", f'data.train=["{source}"]', "--set", "data.val=[]", "--set", "tasks={gender=1.0}"
    )
    assert main([*words, "--until", "teacher"]) == 0
    kept = (corpus / "7.png").read_bytes()
    finished = (run / "teacher" / "manifest.json").stat().st_mtime_ns
    for change in ("picture", "label"):
        labels = (corpus / "metadata.csv").read_text()
        if change == "picture":
            Image.new("RGB", (48, 48), "grey").save(corpus / "7.png")
        else:
            (corpus / "metadata.csv").write_text(labels.replace("9.png,male", "9.png,female", 1))
        error = failed([*words, "--resume"], capsys)
        assert error["found"] == f"the faces of {source!r} have changed since this run began"
        assert error["where"] == str(run / FACES)
        (corpus / "7.png").write_bytes(kept)
        (corpus / "metadata.csv").write_text(labels)
    # Put back, and with another time of writing: their content decides.
    assert main([*words, "--resume"]) == 0
    assert (run / "teacher" / "manifest.json").stat().st_mtime_ns == finished


GENDER = ("--set", "tasks={gender=1.0}")


@pytest.mark.slow
def test_validation_faces_that_change_during_a_run_are_noticed_by_their_hash(
    tiny: Tiny, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, source = tmp_path / "runs" / "tiny", f"folder:{corpus}"
    words = tiny.distill(run, "--set", f'data.val=["{source}"]', *GENDER)
    assert main([*words, "--until", "teacher"]) == 0
    kept, began = (corpus / "7.png").read_bytes(), read_json(run / FACES)
    assert began["validation"].keys() == {source}
    finished = (run / "teacher" / "manifest.json").stat().st_mtime_ns
    Image.new("RGB", (48, 48), "grey").save(corpus / "7.png")
    error = failed([*words, "--resume"], capsys)
    assert error["found"] == f"the validation faces of {source!r} have changed since this run began"
    assert error["where"] == str(run / FACES)
    # A run from before these were kept goes on: no stage's digest holds them, so its teacher is not trained again.
    old = {name: digest for name, digest in began.items() if name != "validation"}
    (run / FACES).write_text(json.dumps(old))
    assert main([*words, "--resume", "--until", "teacher"]) == 0
    (run / FACES).write_text(json.dumps(began))
    (corpus / "7.png").write_bytes(kept)
    assert main([*words, "--resume"]) == 0  # twin: put back, it goes on
    assert (run / "teacher" / "manifest.json").stat().st_mtime_ns == finished
    assert read_json(run / FACES) == began


@pytest.mark.slow
def test_quantize_refuses_faces_that_have_changed_since_its_run_began(
    tiny: Tiny, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, judged = tmp_path / "runs" / "tiny", tmp_path / "judged"
    shutil.copytree(corpus, judged)
    words = ("--set", f'data.train=["folder:{corpus}"]', "--set", f'data.val=["folder:{judged}"]', *GENDER)
    assert main(tiny.distill(run, *words, "--until", "student")) == 0
    quantize = ["quantize", str(run)]
    for folder, what in ((corpus, "faces"), (judged, "validation faces")):
        kept = (folder / "7.png").read_bytes()
        Image.new("RGB", (48, 48), "grey").save(folder / "7.png")
        error = failed(quantize, capsys)
        assert error["found"] == f"the {what} of {f'folder:{folder}'!r} have changed since this run began"
        assert not (run / "qat").exists()
        if folder == corpus:  # other faces that are asked for, or the same ones cut otherwise, are no change
            asked = ["--set", 'data.train=["synthetic:64@train"]', "--out", str(tmp_path / "asked")]
            assert main([*quantize, *asked]) == 0
        (folder / "7.png").write_bytes(kept)
    assert main([*quantize, "--set", "data.pack_px=44", "--out", str(tmp_path / "cut")]) == 0
    assert main(quantize) == 0  # twin


@pytest.mark.slow
def test_a_picture_that_changes_within_a_shard_between_two_sittings_is_noticed(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, run = tmp_path / "shards", tmp_path / "runs" / "tiny"
    pack = ["data", "pack", "synthetic:64@train", "--shards", str(shards), "--px", "40", "--image", "ppm"]
    assert main(pack) == 0
    words = tiny.distill(run, "--set", f'data.train=["webdataset:{shards}@train"]')
    assert main([*words, "--until", "teacher"]) == 0
    (shard,) = shards.glob("*.tar")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2048] + bytes(1024) + whole[3072:])  # within the first picture
    error = failed([*words, "--resume"], capsys)
    assert error["found"] == f"the bytes of {shard.name} have changed"
    assert error["where"] == str(shard)
    shard.write_bytes(whole)
    assert main([*words, "--resume", "--until", "student"]) == 0  # twin


@pytest.mark.slow
def test_a_step_checkpoint_of_other_faces_is_not_gone_on_with(
    tiny: Tiny, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the run's own list of faces is gone: the step checkpoint is named by their hash."""
    run = tmp_path / "runs" / "tiny"
    words = tiny.distill(run, "--set", f'data.train=["folder:{corpus}"]', "--set", "data.val=[]")
    words += ["--set", "tasks={gender=1.0}"]
    with monkeypatch.context() as patch:
        plain = distill.train.learning_rate

        def rate(*arguments: int, **options: float) -> float:
            signal.raise_signal(signal.SIGINT)
            return plain(*arguments, **options)  # type: ignore[arg-type]

        patch.setattr(distill.train, "learning_rate", rate)
        assert main(words) == 130
    Image.new("RGB", (48, 48), "grey").save(corpus / "7.png")
    (run / FACES).unlink()
    error = failed([*words, "--resume"], capsys)
    assert "another recipe, data set" in error["found"]


# Processes that die


@pytest.mark.slow
def test_a_build_goes_on_without_the_process_that_answers_ahead(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, killed = multiprocessing.context.SpawnProcess.start, []

    def start(self: multiprocessing.context.SpawnProcess) -> None:
        plain(self)
        self.kill()
        killed.append(self)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    assert (
        main(["build", str(tiny.run), "--target", "onnx", "--precision", "fp32", "--out", str(tmp_path / "out")]) == 0
    )
    assert killed
    assert (tmp_path / "out" / "onnx" / "scorecard.json").is_file()


@pytest.mark.slow
def test_a_build_process_that_dies_is_told_and_leaves_no_bundle(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from targets.build import build_many

    plain = multiprocessing.context.SpawnProcess.start

    def start(self: multiprocessing.context.SpawnProcess) -> None:
        plain(self)
        self.kill()

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    with pytest.raises(ResourceError, match="a process that builds ended before its target"):
        build_many(tiny.run, {"onnx": ["fp32"], "openvino": ["fp32"]}, out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_weights_of_an_undisturbed_run_are_told_apart_twin(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name / "teacher").mkdir(parents=True)
        (tmp_path / name / "teacher" / "weights.safetensors").write_bytes(content)
    assert weights(tmp_path / "a") != weights(tmp_path / "b")
    assert not Tiny(recipe=tmp_path, run=tmp_path / "a").same_weights(tmp_path / "b")
