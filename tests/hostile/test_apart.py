"""A model file of others first runs in a process of its own: what ends or fills that one is an error that names it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgeface import limits
from edgeface.errors import ModelError
from targets.foreign import try_apart

CRASH = "import ctypes; ctypes.string_at(0)"
HANG = "import sys\nwhile True: pass"
SLEEP = "import time; time.sleep(60)"
BOMB = "held = []\nwhile True: held.append(bytearray(1 << 26))"
TALK = "import os\nwhile True: os.write(2, b'x' * 65536)"


def _tried(program: str, path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        try_apart(program, path, runtime="LiteRT", expected="a whole TFLite file")
    assert refused.value.exit_code == 2
    assert refused.value.where == str(path)
    return refused.value.found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3")
    return path


def test_a_native_crash_is_an_error_that_names_the_file(file: Path) -> None:
    assert "ended by signal 11" in _tried(CRASH, file)


@pytest.mark.parametrize("program", [HANG, SLEEP], ids=["busy", "idle"])
def test_a_hang_is_ended(file: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(limits, "TRIAL_S", 1.0)
    assert "within 1 s" in _tried(program, file)


def test_what_a_hanging_file_started_ends_with_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRIAL_S", 2.0)
    note = file.with_suffix(".pid")
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\ntime.sleep(60)"
    )
    assert "within 2 s" in _tried(program, file)
    pid = int(note.read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the grandchild lived on")


def test_a_memory_bomb_meets_the_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRIAL_MEMORY_BYTES", 1 << 30)
    assert "more than 1,073,741,824 bytes of memory" in _tried(BOMB, file)


def test_endless_messages_are_ended_and_not_kept_in_memory(file: Path) -> None:
    assert "does not stop writing messages" in _tried(TALK, file)


def test_escape_sequences_of_a_runtime_do_not_reach_the_terminal(file: Path) -> None:
    found = _tried("import sys; sys.stderr.write('bad \\x1b[2J file'); sys.exit(1)", file)
    assert "bad  [2J file" in found
    assert "\x1b" not in found


def test_a_file_that_runs_is_accepted_twin(file: Path) -> None:
    try_apart("import sys; assert open(sys.argv[1], 'rb').read()", file, runtime="LiteRT", expected="a file")
