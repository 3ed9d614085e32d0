"""Two runs on one folder: the second is refused, by name; a lock ends with its process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeface.cli.main import main
from edgeface.errors import OutputError, UsageError
from edgeface.runs import begin, choose_run, hold_folder, hold_run

from .tiny import Tiny

ROOT = Path(__file__).resolve().parents[2]
BEGUN = r"begun \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}"

_HOLDER = """
import sys, time
from pathlib import Path
from edgeface.runs import hold_folder, hold_run
with {"run": hold_run, "folder": hold_folder}[sys.argv[1]](Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(kind: str, folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, kind, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("kind", "hold"), [("run", hold_run), ("folder", hold_folder)])
def test_the_second_is_refused_with_the_firsts_pid_and_start_until_it_is_killed(
    tmp_path: Path, kind: str, hold: Callable[[Path], contextlib.AbstractContextManager[None]]
) -> None:
    folder = tmp_path / "place"
    first = holder(kind, folder)
    try:
        words = rf"process {first.pid}, {BEGUN}, is at work there.*kill -INT {first.pid}"
        with pytest.raises(UsageError, match=words), hold(folder):
            pass
    finally:
        end(first)
    assert any(path.name.endswith(".lock") for path in tmp_path.rglob("*"))  # the dead one's file is still there
    with hold(folder):
        pass
    assert not any(path.name.endswith(".lock") for path in tmp_path.rglob("*"))


def test_a_lock_file_whose_pid_lives_again_holds_nobody_up(tmp_path: Path) -> None:
    """After a reboot, or in another container, the number may be some other process's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text(json.dumps({"pid": os.getppid(), "host": "here", "began": "2020-01-01"}))
    with hold_run(run):
        assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_file_that_says_nothing_is_still_a_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hold_run(run):
        (run / ".lock").write_text("")
        with pytest.raises(UsageError, match="another process is at work there"), hold_run(run):
            pass


def test_one_folder_under_two_names_is_one_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to("run")
    (tmp_path / "here").symlink_to(".")
    with hold_run(tmp_path / "run"), pytest.raises(UsageError, match="at work"), hold_run(tmp_path / "latest"):
        pass
    with (
        hold_folder(tmp_path / "out"),
        pytest.raises(UsageError, match="at work"),
        hold_folder(tmp_path / "here" / "out"),
    ):
        pass


def test_two_folders_do_not_wait_for_each_other_twin(tmp_path: Path) -> None:
    with hold_run(tmp_path / "a"), hold_run(tmp_path / "b"), hold_folder(tmp_path / "a"), hold_folder(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), hold_run(tmp_path / "file" / "run"):
        pass


def test_a_run_that_is_at_work_is_named_where_it_would_be_offered_for_resuming(tmp_path: Path) -> None:
    begin(tmp_path / "demo", 'name = "demo"\n')
    with hold_run(tmp_path / "demo"):
        for out in (None, tmp_path / "demo"):
            with pytest.raises(UsageError, match=f"process {os.getpid()}"):
                choose_run("demo", out=out, resume=False, runs=tmp_path)
    with pytest.raises(UsageError, match="Add --resume"):
        choose_run("demo", out=None, resume=False, runs=tmp_path)


def test_a_run_killed_while_it_packed_is_no_folder_with_other_files(tmp_path: Path) -> None:
    end(holder("run", tmp_path / "run"))
    assert (tmp_path / "run" / ".lock").is_file()
    assert choose_run("demo", out=tmp_path / "run", resume=True) == tmp_path / "run"


@pytest.mark.slow
def test_distill_quantize_and_build_refuse_a_folder_that_another_process_writes_into(
    tiny: Tiny, begun: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = begun("teacher", "student"), tmp_path / "out"
    for kind, folder, words in (
        ("run", run, tiny.distill(run, "--resume")),
        ("run", run, tiny.distill(run)),
        ("run", run, ["quantize", str(run)]),
        ("folder", tmp_path / "qat", ["quantize", str(run), "--out", str(tmp_path / "qat")]),
        ("folder", out / "onnx", ["build", str(tiny.run), "--target", "onnx", "--out", str(out)]),
        ("folder", out / "onnx", ["build", str(tiny.run), "--target", "all", "--out", str(out)]),
    ):
        first = holder(kind, folder)
        try:
            capsys.readouterr()
            assert main([*words, "--json"]) == 2, words
            error = json.loads(capsys.readouterr().out)["error"]
            assert re.match(rf"process {first.pid}, {BEGUN}, is at work there", error["found"])
            assert error["where"] == str(folder)
        finally:
            end(first)
    shutil.rmtree(out, ignore_errors=True)
    assert main(["quantize", str(run)]) == 0  # the twin: nobody at work, nobody refused
