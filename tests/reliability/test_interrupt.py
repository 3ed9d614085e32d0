"""Ctrl-C: it stops at a step boundary, saves, and prints the command that goes on; exit code 130."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import distill.train
import edgeface.data.pack
import targets.bundle
from edgeface.cli.main import main
from edgeface.files import read_json

from .tiny import Tiny, weights

pytestmark = pytest.mark.slow

STEPS = 36  # of the tiny recipe's int8 training


def stopped(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Type a command that Ctrl-C will stop; the command that goes on."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 130
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == 130
    lead, _, command = error["do"].partition("To go on, type: ")
    assert not lead
    program, *following = shlex.split(command)
    assert program == "edgeface"
    return following


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in the middle of a step, counted over the stages that are trained."""
    plain, calls = distill.train.learning_rate, 0

    def rate(*arguments: int, **options: float) -> float:
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(signal.SIGINT)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(distill.train, "learning_rate", rate)


@pytest.mark.parametrize(
    ("stage", "before"), [("teacher", ()), ("student", ("teacher",)), ("qat", ("teacher", "student"))]
)
def test_ctrl_c_in_training_saves_the_step_and_names_the_command_that_goes_on(
    tiny: Tiny,
    begun: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    stage: str,
    before: tuple[str, ...],
) -> None:
    run = begun(*before)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 4)
        following = stopped(tiny.distill(run, "--resume"), capsys)
    assert read_json(run / f"{stage}.partial" / "state.json")["step"] == 4  # the step that was under way is done
    assert weights(run).keys() == set(before)
    assert "--resume" in following
    assert main(following) == 0
    assert tiny.same_weights(run)
    assert not (run / f"{stage}.partial").exists()
    resumed_at = {each: read_json(run / each / "manifest.json")["training"]["resumed_at"] for each in (*before, stage)}
    assert resumed_at == {**{each: [] for each in before}, stage: [4]}


def test_ctrl_c_while_packing_leaves_nothing_and_names_the_command_that_goes_on(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = tmp_path / "runs" / "tiny", tmp_path / "cache"
    plain, main_thread, asked = edgeface.data.pack.crop_image, threading.main_thread().ident, threading.Event()

    def crop(*arguments: object, **options: object) -> object:
        assert main_thread is not None
        if not asked.is_set():
            asked.set()
            signal.pthread_kill(main_thread, signal.SIGINT)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFACE_CACHE", str(cache))
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(edgeface.data.pack, "crop_image", crop)
            following = stopped([*tiny.distill(run), "--until", "teacher", "--set", "seed=0"], capsys)
        assert not run.exists()
        assert list((cache / "packs").iterdir()) == []
        assert following == [
            *tiny.distill(run)[:2],
            "--set",
            "seed=0",
            "--out",
            str(run),
            "--until",
            "teacher",
            "--resume",
        ]
        assert main(following) == 0
    assert weights(run) == {"teacher": weights(tiny.run)["teacher"]}


def test_ctrl_c_in_quantize_names_the_same_command(
    tiny: Tiny, begun: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun("teacher", "student")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        following = stopped(["quantize", str(run)], capsys)
    assert following == ["quantize", str(run), "--json"]
    assert read_json(run / "qat.partial" / "state.json")["step"] == 3
    assert main(following) == 0
    assert tiny.same_weights(run)


def test_ctrl_c_while_building_keeps_the_earlier_bundle_and_names_the_same_command(
    tiny: Tiny, begun: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = begun("teacher", "student") / "student"
    shutil.rmtree(student.parent / "teacher")
    (student.parent / "recipe.toml").unlink()  # in no run: nothing to score on
    words = ["build", str(student), "--target", "onnx", "--precision", "fp32", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    plain = targets.bundle.answers_of

    def answers(*arguments: object, **options: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets.bundle, "answers_of", answers)
        following = stopped(words, capsys)
    assert following == [*words, "--json"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert main(following) == 0


def test_a_second_ctrl_c_does_not_wait_for_the_step(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    plain = distill.train.learning_rate

    def rate(*arguments: int, **options: float) -> float:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill.train, "learning_rate", rate)
        assert main(tiny.distill(run)) == 130
    assert not (run / "teacher.partial").exists()
    assert main(tiny.distill(run, "--resume", "--until", "teacher")) == 0


def test_without_a_ctrl_c_the_same_command_ends_with_0_twin(tiny: Tiny, begun: Callable[..., Path]) -> None:
    run = begun("teacher", "student")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, STEPS + 1)
        assert main(tiny.distill(run, "--resume")) == 0
