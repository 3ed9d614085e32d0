"""Run folders: which name a run takes, which one goes on, and which teacher is shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeface import limits
from edgeface.errors import DataError, OutputError, UsageError
from edgeface.files import read_json, write_json
from edgeface.runs import FACES, begin, choose_run, is_finished, is_run, mark_latest, newest_run, share_teacher


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


@pytest.mark.parametrize("content", [b"\xff", b"#" * (limits.RECIPE_BYTES + 1)])
def test_a_recipe_of_a_run_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    run = make(tmp_path / "run", finished=False)
    (run / "recipe.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe\.toml: cannot be read .*Put it back"):
        begin(run, 'name = "demo"\n')
    (run / "recipe.toml").write_bytes(b'name = "demo"\n')
    begin(run, 'name = "demo"\n')  # twin: put back, it is gone on with


def test_a_run_is_held_to_its_validation_faces_apart_from_those_it_learns_from(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", 'name = "demo"\n'
    begin(run, recipe, faces={"a@train": "1"}, validation={"a@val": "2"})
    begin(run, recipe, faces={"a@train": "1"}, validation={"a@val": "2"})  # twin
    with pytest.raises(DataError, match=r"the faces of 'a@train' have changed.*learns from"):
        begin(run, recipe, faces={"a@train": "3"}, validation={"a@val": "2"})
    with pytest.raises(DataError, match=r"the validation faces of 'a@val' have changed.*judged by"):
        begin(run, recipe, faces={"a@train": "1"}, validation={"a@val": "3"})


def test_a_run_that_kept_no_validation_faces_goes_on_with_any(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", 'name = "demo"\n'
    begin(run, recipe, faces={"a@train": "1"})
    begin(run, recipe, faces={"a@train": "1"}, validation={"a@val": "2"})
    assert read_json(run / FACES) == {"a@train": "1"}
    with pytest.raises(DataError, match="'a@train' have changed"):  # twin
        begin(run, recipe, faces={"a@train": "2"}, validation={"a@val": "2"})


@pytest.mark.parametrize("content", ["[]", "{", '{"validation": []}', "\x00"])
def test_digests_of_faces_that_cannot_be_read_are_an_error(tmp_path: Path, content: str) -> None:
    run = make(tmp_path / "run", finished=False)
    (run / FACES).write_text(content)
    with pytest.raises(DataError, match=r"faces\.json: cannot be read"):
        begin(run, 'name = "demo"\n', faces={"a@train": "1"}, validation={})


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
