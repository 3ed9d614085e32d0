"""Bad input meets a clear error: its exit code, what was found and what to do, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeface.cli.main import main

POINTS = "20 40 30 22 38 22 22 32 40 40"


def corpus(root: Path, *, lines: list[str], images: int = 12) -> Path:
    """A tiny MTFL in its published format, all faces of people who land in training."""
    folder = root / "mtfl" / "lfw_5590"
    folder.mkdir(parents=True)
    picture = np.full((60, 60, 3), 127, np.uint8)
    for number in range(images):
        cv2.imwrite(str(folder / f"Person_{number:04d}.jpg"), picture)
    (root / "mtfl" / "training.txt").write_text("\n".join(lines) + "\n")
    (root / "mtfl" / "testing.txt").write_text("\n".join(lines) + "\n")
    return root


def line(number: int, *, points: str = POINTS, codes: str = "1 2 2 3") -> str:
    return f" lfw_5590\\Person_{number:04d}.jpg {points} {codes}"


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--json"])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    payload: dict[str, Any] = json.loads(printed.out)
    return code, payload


def refusal(words: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> dict[str, Any]:
    found, payload = answer(words, capsys)
    assert found == code, payload
    error: dict[str, Any] = payload["error"]
    assert error["code"] == code
    assert error["found"]
    assert error["where"]
    assert error["do"]
    return error


def test_missing_corpus_folder_names_the_folder_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_DATA", str(tmp_path / "nowhere"))
    error = refusal(["distill", "mtfl-cpu", "--out", str(tmp_path / "run")], capsys)
    assert str(tmp_path / "nowhere") in error["found"]
    assert "EDGEFACE_DATA" in error["do"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (" lfw_5590\\Person_0001.jpg 20 40 30 22 38 22 22 32 40 40 1 2 2", "14"),
        (line(1, codes="1 2 2 9"), "9"),
        (line(1, points="20 40 30 nan 38 22 22 32 40 40"), "nan"),
    ],
    ids=["short line", "class out of range", "not a number"],
)
def test_bad_label_line_is_counted_and_listed_and_strict_stops_at_it(
    bad: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = corpus(tmp_path, lines=[line(0), bad, *(line(n) for n in range(2, 12))])
    monkeypatch.setenv("EDGEFACE_DATA", str(root))
    code, payload = answer(["data", "inspect", "mtfl@test"], capsys)
    assert code == 0
    (listed,) = payload["skipped"].values()
    assert listed["count"] == 1
    assert "testing.txt:2" in listed["keys"][0]
    error = refusal(["data", "inspect", "mtfl@test", "--strict"], capsys)
    assert "testing.txt" in error["where"]
    assert "2" in error["where"]
    assert message in error["found"] + error["expected"]


def test_truncated_jpeg_is_skipped_and_listed_and_strict_stops_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = corpus(tmp_path, lines=[line(n) for n in range(12)])
    broken = root / "mtfl" / "lfw_5590" / "Person_0003.jpg"
    noisy = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    cv2.imwrite(str(broken), noisy)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    monkeypatch.setenv("EDGEFACE_DATA", str(root))
    code, payload = answer(["data", "pack", "mtfl@test", str(tmp_path / "packed"), "--px", "32"], capsys)
    assert code == 0, payload
    assert "Person_0003" in json.dumps(payload["skipped"])
    error = refusal(["data", "pack", "mtfl@test", str(tmp_path / "strict"), "--px", "32", "--strict"], capsys)
    assert "Person_0003" in error["where"]
    assert not (tmp_path / "strict").exists()


def test_recipe_with_four_mistakes_names_all_four_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'name = "mine"\n[data]\ntrain = ["synthetic:64"]\npack_size = 96\n[tasks]\ngendr = 1.0\n'
        '[student.network]\nbackbone = "edge_x"\n[qat.train]\nepochs = "five"\n'
    )
    error = refusal(["distill", str(recipe), "--out", str(tmp_path / "run")], capsys)
    told = json.dumps(error)
    for part in ("data.pack_size", "gendr", "student.network.backbone", "qat.train.epochs"):
        assert part in told
    assert "pack_px" in told  # did you mean
    assert "gender" in told
    assert "edge_s" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_full_or_read_only_output_leaves_nothing_half_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = corpus(tmp_path, lines=[line(n) for n in range(12)])
    monkeypatch.setenv("EDGEFACE_DATA", str(root))
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if str(tmp_path / "run") in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    words = ["distill", "mtfl-cpu", "--out", str(tmp_path / "run"), "--until", "teacher"]
    words += ["--set", 'data.train=["mtfl@test"]', "--set", "data.val=[]"]
    error = refusal([*words, "--set", "teacher.train.batch=4", "--set", "teacher.train.epochs=0.3"], capsys)
    assert os.strerror(number).lower() in error["found"]
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", b"\x1c\x00\x00\x00TFL3" + bytes(200), bytes(4) + b"TFL3"],
    ids=["empty", "text", "header alone", "magic alone"],
)
def test_a_file_that_is_not_tflite_is_refused_by_eval(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install edgeface[android]")
    root = corpus(tmp_path, lines=[line(n) for n in range(12)])
    monkeypatch.setenv("EDGEFACE_DATA", str(root))
    file = tmp_path / "model.tflite"
    file.write_bytes(content)
    error = refusal(["eval", str(file), "--data", "mtfl@test"], capsys)
    assert str(file) in error["where"]


def test_no_traceback_reaches_a_user_of_the_installed_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeface.cli.main", "eval", str(tmp_path / "none.tflite"), "--data", "synthetic:8"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "none.tflite" in done.stderr
    assert done.stdout == ""
