"""Run folders: which name a run takes, which one goes on, and which teacher is shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeface.errors import OutputError, UsageError
from edgeface.files import write_json
from edgeface.runs import begin, choose_run, is_finished, is_run, mark_latest, newest_run, share_teacher


def make(run: Path, *, finished: bool, teacher: str = "") -> Path:
    begin(run, 'name = "demo"\n')
    if finished:
        write_json(run / "qat" / "manifest.json", {})
    if teacher:
        write_json(run / "teacher" / "manifest.json", {"key": teacher})
    return run


def test_first_run_takes_the_recipes_name(tmp_path: Path) -> None:
    assert choose_run("demo", out=None, resume=False, runs=tmp_path) == tmp_path / "demo"
    assert choose_run("demo", out=None, resume=True, runs=tmp_path) == tmp_path / "demo"


def test_finished_run_makes_the_next_one_count_up(tmp_path: Path) -> None:
    make(tmp_path / "demo", finished=True)
    make(tmp_path / "demo-2", finished=True)
    assert choose_run("demo", out=None, resume=False, runs=tmp_path) == tmp_path / "demo-3"


def test_unfinished_run_is_resumed_when_asked_and_refused_otherwise(tmp_path: Path) -> None:
    make(tmp_path / "demo", finished=True)
    make(tmp_path / "demo-2", finished=False)
    assert choose_run("demo", out=None, resume=True, runs=tmp_path) == tmp_path / "demo-2"
    with pytest.raises(UsageError, match="--resume"):
        choose_run("demo", out=None, resume=False, runs=tmp_path)


def test_named_folder_must_be_absent_or_a_run_to_resume(tmp_path: Path) -> None:
    assert choose_run("demo", out=tmp_path / "new", resume=False) == tmp_path / "new"
    run = make(tmp_path / "run", finished=False)
    assert choose_run("demo", out=run, resume=True) == run
    with pytest.raises(UsageError, match="unfinished run"):
        choose_run("demo", out=run, resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="other files"):
        choose_run("demo", out=tmp_path / "other", resume=True)


def test_resuming_with_another_recipe_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path / "run", finished=False)
    begin(run, 'name = "demo"\n')
    with pytest.raises(UsageError, match="seed = 4"):
        begin(run, 'name = "demo"\nseed = 4\n')


def test_latest_follows_the_run_that_finished_last(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        newest_run(tmp_path)
    first, second = make(tmp_path / "a", finished=True), make(tmp_path / "b", finished=True)
    mark_latest(second)
    mark_latest(first)
    assert newest_run(tmp_path) == first
    assert (tmp_path / "latest").readlink() == Path("a")
    assert is_run(first)
    assert is_finished(first)


def test_teacher_of_the_same_key_is_linked_and_of_another_is_not(tmp_path: Path) -> None:
    make(tmp_path / "a", finished=True, teacher="same")
    one, two = make(tmp_path / "b", finished=False), make(tmp_path / "c", finished=False)
    assert share_teacher(one, "same")
    assert (one / "teacher").readlink() == Path("../a/teacher")
    assert not share_teacher(two, "other")
    assert not (two / "teacher").exists()
