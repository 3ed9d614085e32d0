"""The long tests themselves end: a command that hangs is stopped with what it started, and counts as broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kills, soak

SLEEPS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
SLEEPS += "print('begun', flush=True); time.sleep(60)"


def test_a_command_that_hangs_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that still held the pipes would be waited for; the limit is far below its 60 s, and above a start."""
    monkeypatch.setattr(soak, "HANG_S", 2.0)
    began = time.monotonic()
    assert soak.bounded([sys.executable, "-c", SLEEPS], folder=tmp_path) is None
    assert time.monotonic() - began < 30.0


def test_a_command_that_ends_tells_what_it_said_twin(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['WORD']); sys.exit('no')"
    done = soak.bounded([sys.executable, "-c", code], folder=tmp_path, more={"WORD": "yes"})
    assert done is not None
    assert (done.stdout, done.stderr, done.returncode) == ("yes\n", "no\n", 1)


class Once(soak.Clock):
    """Over after so many questions."""

    def __init__(self, questions: int) -> None:
        super().__init__(0.0)
        self.left = questions

    @property
    def is_over(self) -> bool:
        self.left -= 1
        return self.left < 0


def _ends(code: int) -> Callable[..., Any]:
    return lambda words, **_: subprocess.CompletedProcess(words, code, "", "found")


@pytest.mark.parametrize(
    ("answer", "broken"),
    [(lambda words, **_: None, "it did not end within 600 s"), (_ends(1), "found"), (_ends(0), "")],
    ids=["hangs", "finds", "twin"],
)
def test_a_reader_that_hangs_or_fails_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any], broken: str
) -> None:
    monkeypatch.setattr(soak, "bounded", answer)
    found = soak.fuzz(tmp_path, Once(2))
    assert found.tried == soak.FUZZED
    assert [each.partition(": ")[2] for each in found.broken] == ([broken] if broken else [])


def test_a_streaming_that_hangs_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"way": "stream", "samples": count, "most_mib": 400} for count in soak.SAMPLES]
    for answer, held in (
        (lambda words, **_: None, False),
        (lambda words, **_: subprocess.CompletedProcess(words, 0, json.dumps(rows), ""), True),
        (
            lambda words, **_: subprocess.CompletedProcess(
                words, 0, json.dumps([rows[0], rows[1] | {"most_mib": 600}]), ""
            ),
            False,
        ),
    ):
        monkeypatch.setattr(soak, "bounded", answer)
        found = soak.stream(tmp_path, Once(1))
        assert found.tried > 0
        assert (not found.broken) == held


def _row(hit: str) -> dict[str, Any]:
    return {"hit": hit, "share": 0.5, "steps_lost": 0, "equal": True, "half_written": [], "repeated": []}


def test_a_kill_in_each_stage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "undisturbed", lambda folder: None)
    monkeypatch.setattr(soak, "survive", lambda whole, moment, folder: _row(moment.stage))
    found = soak.kill(tmp_path, Once(len(kills.STAGES)))
    assert found.broken == []
    assert all(f"{stage} 1" in found.figures for stage in kills.STAGES)


def test_a_run_that_hangs_before_any_kill_is_not_held(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(folder: Path) -> None:
        raise kills.KillError("distill did not end")

    monkeypatch.setattr(soak, "undisturbed", hang)
    assert soak.main(["kill", "--minutes", "0"]) == 1
    assert "NOT HELD" in capsys.readouterr().out


def _process(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], text=True, start_new_session=True)


def test_a_killed_run_that_comes_no_further_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "_WAIT_S", 0.3)
    waiting, ending = _process(SLEEPS), _process(SLEEPS)
    with pytest.raises(kills.KillError, match=r"came no further within 0\.3 s"):
        kills._wait(waiting, lambda: False)
    with pytest.raises(kills.KillError, match=r"report did not end within 0\.3 s"):
        kills.Work(folder=tmp_path).ended(ending, "report")
    assert {waiting.returncode, ending.returncode} == {-9}
    for process in (waiting, ending):
        with pytest.raises(ProcessLookupError):
            _group_is_gone(process.pid)


def _group_is_gone(group: int) -> None:
    """Raises ProcessLookupError; children that were killed stay for a moment, until somebody has reaped them."""
    for _ in range(200):
        os.killpg(group, 0)
        time.sleep(0.05)


def test_a_run_that_ends_is_waited_for_twin() -> None:
    process = _process("")
    kills._wait(process, lambda: False)
    assert process.returncode == 0


def test_the_record_of_kills_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "kill.json"
    monkeypatch.setattr(
        kills, "undisturbed", lambda folder: kills.Whole(work=kills.Work(folder=folder), seconds={}, files={})
    )
    monkeypatch.setattr(kills, "survive", lambda whole, moment, folder: folder.mkdir() or _row(moment.stage))
    for moments in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["kills.py", "--moments", moments, "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            kills.main()
        assert ended.value.code == 0
        found = json.loads(out.read_text())
        assert found["conditions"]["command"] == f"python -m benchmarks.kills --moments {moments} --out {out}"
        assert len(found["rows"]) == int(moments)
