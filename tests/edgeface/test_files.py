"""Nothing half-written is ever taken for whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeface.errors import OutputError
from edgeface.files import settle, sha256_file, sha256_json, write_bytes, write_folder, write_json


def test_a_file_appears_whole_and_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "value.json"
    write_json(path, {"b": 1, "a": [1, 2]})
    write_json(path, {"b": 2})
    assert path.read_text() == '{\n  "b": 2\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", {"a": float("nan")})


def test_folder_filled_with_an_error_leaves_the_earlier_one(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    with write_folder(place) as aside:
        (aside / "one").write_text("old")

    def fill_and_fail() -> None:
        with write_folder(place) as aside:
            (aside / "one").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_and_fail()
    assert (place / "one").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_folder_filled_again_holds_only_the_new_files(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    for name in ("old", "new"):
        with write_folder(place) as aside:
            (aside / name).write_text(name)
    assert [path.name for path in place.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_full_or_forbidden_place_is_an_output_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path / "file", b"content")
    with pytest.raises(OutputError, match="cannot write"), write_folder(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_digests_depend_on_content_and_not_on_key_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert sha256_file(tmp_path / "a") != sha256_file(tmp_path / "b")
    assert sha256_json({"x": 1, "y": 2}) == sha256_json({"y": 2, "x": 1})
    assert sha256_json({"x": 1, "y": 2}) != sha256_json({"x": 2, "y": 1})


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc: what a number stands for is not known")
def test_what_an_ended_process_or_a_thread_left_is_cleared_away_and_a_living_process_keeps_its_own(
    tmp_path: Path,
) -> None:
    def left_by(number: int) -> Path:
        aside = tmp_path / f".file.{number}.partial"
        aside.write_bytes(b"half")
        return aside

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        over = threading.Event()
        thread = threading.Thread(target=over.wait)
        thread.start()
        try:
            mine = left_by(thread.native_id or 0)
            theirs = left_by(child.pid)
            settle(tmp_path / "file")
            assert theirs.exists()  # twin: it lives
            assert not mine.exists()
        finally:
            over.set()
            thread.join()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has taken note
        settle(tmp_path / "file")
        assert not theirs.exists()
