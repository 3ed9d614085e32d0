"""The script that keeps a device clean, in each shell that a device may have."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from edgeface.errors import DeviceError
from targets.devices import guard
from targets.devices.guard import Command, Guard, words

from .far import left_behind, running

SHELLS = {"sh": ("sh",), "bash": ("bash", "--posix"), "mksh": ("mksh",), "busybox": ("busybox", "sh")}


class Here:
    """A device that is this machine, without a client program.

    Args:
        shell: Its shell.
        folder: Its TMPDIR.
    """

    where, folders, hints, unreachable = "here", ("/nowhere",), (), "Wake it"

    def __init__(self, shell: tuple[str, ...], folder: Path) -> None:
        self._argv = ("env", f"TMPDIR={folder}", *shell, "-c")

    def shell(self, script: str) -> Command:
        return Command(argv=(*self._argv, script))

    def push(self, local: Path, remote: str) -> Command:
        raise AssertionError

    def pull(self, remote: str, local: Path) -> Command:
        raise AssertionError


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = SHELLS[request.param]
    if shutil.which(found[0]) is None:
        pytest.skip(f"no {found[0]}: apt-get install {found[0]}")
    return found


@pytest.fixture
def device(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a $HOME"
    folder.mkdir()
    return folder


def test_the_folder_is_private_and_goes_away(shell: tuple[str, ...], device: Path) -> None:
    with Guard(Here(shell, device)) as found:
        assert found.machine == f"{os.uname().sysname} {os.uname().machine}"
        folder = Path(found.folder(1000))
        assert folder.parent == device
        assert folder.stat().st_mode & 0o777 == 0o700
        assert list(folder.iterdir()) == []
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(bytes(1000))
    assert left_behind(device, within_s=0.0) == []
    assert found.left == ""


def test_a_program_that_still_runs_is_killed(shell: tuple[str, ...], device: Path) -> None:
    with Guard(Here(shell, device)) as found:
        folder = found.folder(1000)
        inside = f"cd {shlex.quote(folder)} && echo $$ > pid && exec sleep 67"
        process = subprocess.Popen([*shell, "-c", inside])
        while not Path(folder, "pid").exists():
            time.sleep(0.01)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert left_behind(device) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_stop_the_clean_up(number: int, shell: tuple[str, ...], device: Path) -> None:
    with Guard(Here(shell, device)) as found:
        found.folder(1000)
        found._process.send_signal(number)
    assert left_behind(device) == []


def test_a_guard_whose_reader_is_gone_cleans_up_all_the_same(shell: tuple[str, ...], device: Path) -> None:
    command = Here(shell, device).shell(guard._GUARD.replace("FOLDERS", "/nowhere").replace("LIMIT", "60")).argv
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write(b"1\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith(b"edgeface folder ")
    process.stdout.close()
    process.stdin.close()
    process.wait(timeout=10)
    assert left_behind(device) == []


def test_a_dead_line_is_noticed_by_the_clock(
    shell: tuple[str, ...], device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_GUARD_S", 1)
    with Guard(Here(shell, device)) as found:
        found.folder(1000)
        assert left_behind(device) == []
        with pytest.raises(DeviceError, match="connection was lost while waiting"):
            found.require("waiting")


def test_a_folder_that_cannot_be_used_is_passed_over(shell: tuple[str, ...], device: Path) -> None:
    with Guard(Here(shell, device / "not there")) as found, pytest.raises(DeviceError, match="no folder on the device"):
        found.folder(1000)


def test_what_cannot_be_removed_is_named(device: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rm").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "bin" / "rm").chmod(0o755)
    with Guard(Here(("env", f"PATH={tmp_path / 'bin'}:/usr/bin:/bin", "sh"), device)) as found:
        folder = found.folder(1000)
    assert found.left == folder


def test_a_guard_that_does_not_clean_up_is_noticed_twin(
    shell: tuple[str, ...], device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_GUARD", guard._GUARD.replace("trap clean EXIT", ""))
    with Guard(Here(shell, device)) as found:
        found.folder(1000)
    assert len(left_behind(device, within_s=0.2)) == 1


def test_a_device_that_never_speaks_is_given_up(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_HELLO_S", 0.3)
    with (
        pytest.raises(DeviceError, match=r"did not answer within 0 s.*Wake it"),
        Guard(Here(("sh", "-c", "exec sleep 68", "sh"), device)),
    ):
        pass
    assert running("sleep 68") == []


def test_the_last_words_are_one_printable_line() -> None:
    assert words(b"1\n2\n\n3\x1b[31m\n4\r\n5\xff\n") == "2 3[31m 4 5\ufffd"
    assert words("") == ""
    assert len(words("x" * 2000)) == 600
