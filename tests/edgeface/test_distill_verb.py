"""`edgeface distill` and `edgeface quantize` end to end on a handful of synthetic faces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeface.checkpoint import load_checkpoint
from edgeface.cli.main import main

pytestmark = pytest.mark.slow

TINY = [
    'data.train=["synthetic:96@train"]',
    'data.val=["synthetic:32@val"]',
    "data.test=[]",
    "data.pack_px=40",
    "threads=1",
    "tasks={landmarks5 = 1.0, gender = 0.1}",
    "budget={}",
    "teacher.network.width=0.125",
    "teacher.network.input_px=32",
    "teacher.train={epochs = 1.0, batch = 32, warmup_epochs = 0.0}",
    "student.network.width=0.25",
    "student.network.input_px=32",
    "student.train={epochs = 1.0, batch = 32, warmup_epochs = 0.0}",
    "qat.train={epochs = 1.0, batch = 32, warmup_epochs = 0.0}",
    "qat.calibration_batches=2",
]


def command(*words: str) -> list[str]:
    return [*words, *(word for change in TINY for word in ("--set", change))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(command("distill", "demo", "--out", str(folder))) == 0
    return folder


def test_a_run_holds_three_checkpoints_each_naming_what_it_was_made_from(run: Path) -> None:
    teacher, student, qat = (load_checkpoint(run / stage) for stage in ("teacher", "student", "qat"))
    assert (teacher.kind, student.kind, qat.kind) == ("teacher", "student", "qat")
    assert student.manifest["made_from"] == {"teacher": teacher.sha256}
    assert qat.manifest["made_from"] == {"student": student.sha256, "teacher": teacher.sha256}
    assert qat.manifest["student"] == "../student"
    assert sorted(path.name for path in run.iterdir()) == ["faces.json", "qat", "recipe.toml", "student", "teacher"]
    assert (run.parent / "latest").readlink() == Path("tiny")


def test_each_stage_keeps_its_resolved_recipe_and_curve(run: Path) -> None:
    for stage in ("teacher", "student", "qat"):
        assert (run / stage / "recipe.toml").read_text() == (run / "recipe.toml").read_text()
        assert (run / stage / "curve.csv").read_text().startswith("step,epoch,lr,")


def test_resuming_a_finished_run_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert main(command("distill", "demo", "--out", str(run), "--resume", "--json")) == 0
    payload = json.loads(capsys.readouterr().out)
    assert set(payload["stages"]) == {"teacher", "student", "qat"}
    assert payload["stages"]["qat"]["val"]["synthetic:32@val"]["landmarks5"]["n"] == 32
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_stages_run_one_by_one_end_with_the_same_weights(run: Path) -> None:
    steps = run.parent / "steps"
    assert main(command("distill", "demo", "--out", str(steps), "--until", "teacher")) == 0
    assert (steps / "teacher").is_symlink()  # the same recipe part and data: the neighbour's teacher is shared
    assert not (steps / "student").exists()
    assert main(command("distill", "demo", "--out", str(steps), "--resume", "--until", "student")) == 0
    assert main(["quantize", str(steps)]) == 0
    for stage in ("student", "qat"):
        assert load_checkpoint(steps / stage).sha256 == load_checkpoint(run / stage).sha256


def test_another_seed_ends_with_other_weights_twin(run: Path) -> None:
    other = run.parent / "other"
    assert main([*command("distill", "demo", "--out", str(other), "--until", "student"), "--set", "seed=1"]) == 0
    assert load_checkpoint(other / "student").sha256 != load_checkpoint(run / "student").sha256


def test_quantize_refuses_a_teacher_and_an_occupied_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(run / "teacher"), "--json"]) == 2
    assert "a float student" in json.loads(capsys.readouterr().out)["error"]["expected"]
    assert main(["quantize", str(run), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["found"] == "already there"


def test_a_task_that_no_source_labels_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "metadata.csv").write_text("file_name,gender\n")
    words = command("distill", "demo", "--out", str(tmp_path / "run"), "--json")
    words += ["--set", f'data.train=["folder:{folder}"]']
    assert main(words) == 2
    assert "error" in json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()


def test_read_only_output_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.write_text("a file where a folder should be made")
    assert main(command("distill", "demo", "--out", str(file / "run"), "--json")) == 2
    assert str(file) in json.loads(capsys.readouterr().out)["error"]["where"]


def test_quantize_elsewhere_names_its_float_student(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "qat"
    assert main(["quantize", str(run), "--out", str(out)]) == 0
    named = (out / load_checkpoint(out).manifest["student"]).resolve()
    assert named == (run / "student").resolve()
