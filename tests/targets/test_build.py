"""What `build` takes, what it refuses, and that nothing half-built is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeface.checkpoint import load_checkpoint, save_checkpoint
from edgeface.cli.main import main
from edgeface.errors import BudgetError, EdgefaceError, ModelError, OutputError, UnsupportedError
from edgeface.precision import TARGETS
from edgeface.provenance import provenance
from targets import tflite
from targets.build import build, find_sources
from targets.bundle import read_bundle, read_golden


def test_float_student_alone_is_told_to_be_quantized(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"edgeface quantize .*student") as caught:
        build(run_folder / "student", out=tmp_path)
    assert caught.value.exit_code == 2
    assert not any(tmp_path.iterdir())


def test_float_files_come_from_the_student_the_manifest_names(run_folder: Path) -> None:
    sources = find_sources(run_folder, ["fp32", "w8a8"])

    assert sources.student is not None
    assert sources.qat is not None
    assert sources.student.sha256 == sources.qat.manifest["made_from"]["student"]


def test_another_student_beside_it_is_refused_twin(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    manifest = json.loads((run / "qat" / "manifest.json").read_text(encoding="utf-8"))
    manifest["made_from"]["student"] = "0" * 64
    (run / "qat" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(ModelError, match="float student"):
        find_sources(run, ["fp32"])
    assert find_sources(run, ["w8a8"]).student is None


def _without_smile(folder: Path) -> None:
    """The manifest of another task set over the same weights."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    outputs = manifest["model"]["outputs"]
    manifest["model"]["outputs"] = [output for output in outputs if output["name"] != "smile"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(("stage", "precision"), [("qat", "w8a8"), ("qat", "fp32"), ("student", "fp32")])
def test_checkpoint_of_another_task_set_is_refused(
    stage: str, precision: str, run_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    _without_smile(run / stage)

    with pytest.raises(ModelError, match="smile"):
        build(run, precisions=[precision], out=tmp_path / "out")
    assert not (tmp_path / "out" / "android").exists()


@pytest.mark.parametrize(
    ("target", "precisions", "error"),
    [
        ("android", ["p6"], UnsupportedError),
        ("windows", None, UnsupportedError),
        ("ios", ["w8a32"], UnsupportedError),
        ("openvino", ["w8"], UnsupportedError),
        ("onnx", ["fp16"], UnsupportedError),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(
    target: str, precisions: list[str] | None, error: type[EdgefaceError], run_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        build(run_folder, target=target, precisions=precisions, out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_folder_of_something_else_is_left_alone(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "android").mkdir()
    (tmp_path / "android" / "thesis.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(OutputError, match="other files"):
        build(run_folder, out=tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["android", "thesis.txt"]


def _fails(*_: object, **__: object) -> None:
    raise ModelError("the converter failed", expected="a file")


def test_failed_build_leaves_the_earlier_bundle(
    run_folder: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "android")
    before = {path.name: path.read_bytes() for path in (tmp_path / "android").iterdir()}
    monkeypatch.setattr(tflite, "write", _fails)

    with pytest.raises(ModelError, match="converter failed"):
        build(run_folder, precisions=["w8a8"], out=tmp_path)

    assert {path.name: path.read_bytes() for path in (tmp_path / "android").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["android"]


def test_file_that_disagrees_with_its_student_is_not_shipped_twin(
    run_folder: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that hands out the float file in place of the int8 one."""

    def swapped(files: Mapping[str, Path], **_: object) -> None:
        shutil.copy(bundle_folder / "edge_s.fp32.tflite", files["w8a8"])

    monkeypatch.setattr(tflite, "write", swapped)

    with pytest.raises((BudgetError, ModelError)):
        build(run_folder, precisions=["w8a8"], out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_release_of_weights_for_research_only_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    manifest = json.loads((run / "qat" / "manifest.json").read_text(encoding="utf-8"))
    manifest["provenance"]["research_only"] = True
    (run / "qat" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    arguments = ["build", str(run), "--target", "android", "--release", "--out", str(tmp_path / "out")]
    code, answer = spoken(arguments, capsys)

    assert (code, "research only" in str(answer["error"])) == (2, True)
    assert not (tmp_path / "out").exists()


def test_w8a8_alone_needs_no_float_student(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "qat", tmp_path / "qat")

    folder = build(tmp_path / "qat", precisions=["w8a8"], out=tmp_path / "out")

    assert set(read_bundle(folder)["files"]) == {"edge_s.w8a8.tflite"}
    assert read_bundle(folder)["checkpoints"].keys() == {"qat"}


def spoken(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    """Exit code and JSON answer of a command line."""
    code = main([*arguments, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return code, answer


AUTO_RECIPE = """
name = "tiny"
[data]
train = ["synthetic:8@train"]
val = ["synthetic:48@val"]
[tasks]
landmarks5 = 1.0
gender = 1.0
smile = 1.0
[student.network]
backbone = "edge_s"
width = 0.25
input_px = 32
[budget]
"""


@pytest.mark.slow
def test_auto_takes_the_cheapest_mix_inside_the_budget(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (run / "recipe.toml").write_text(f"{AUTO_RECIPE}landmarks5 = 100.0\n", encoding="utf-8")

    arguments = ["build", str(run), "--target", "android", "--auto", "--out", str(tmp_path / "out")]
    code, answer = spoken(arguments, capsys)

    auto = answer["auto"]
    assert isinstance(auto, dict)
    assert (code, auto["precision"], auto["float_layers"], len(auto["tried"])) == (0, "w8a8", [], 1)
    assert auto["tried"][0].keys() == {"precision", "float_layers", "cost", "size_bytes", "change", "broken"}
    assert list(read_bundle(tmp_path / "out" / "android")["files"]) == ["edge_s.w8a8.tflite"]


@pytest.mark.slow
def test_auto_counts_a_budget_against_the_teacher_from_the_teacher(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    arguments = ["build", str(run), "--target", "android", "--auto", "--out", str(tmp_path / "out")]

    def change(budget: str) -> float:
        (run / "recipe.toml").write_text(f"{AUTO_RECIPE}landmarks5 = {budget}\n", encoding="utf-8")
        answer = spoken(arguments, capsys)[1]
        assert isinstance(answer["auto"], dict)
        return float(answer["auto"]["tried"][0]["change"]["landmarks5"])

    student = load_checkpoint(run / "student")
    shutil.copytree(run / "student", run / "teacher")
    against_student = change("100.0")
    # The teacher is run as it is, the student with its batch-norms folded: float32 rounding, in points of some hundred.
    assert change('{points = 100.0, vs = "teacher"}') == pytest.approx(against_student, abs=1e-3)
    weights = student.weights()
    weights["heads.landmarks5.bias"] += 0.05
    save_checkpoint(
        run / "teacher",
        kind="teacher",
        network=student.network,
        model=student.model,
        weights=weights,
        provenance=provenance(seed=0, licences=[], research_only=False),
    )
    assert change("100.0") == against_student
    assert abs(change('{points = 100.0, vs = "teacher"}') - against_student) > 0.01


@pytest.mark.slow
def test_layers_left_in_float_are_in_the_file_and_in_its_manifest(run_folder: Path, tmp_path: Path) -> None:
    floats = frozenset({"heads_gender", "backbone_conv3_conv"})

    folder = build(run_folder, precisions=["w8a8"], floats=floats, out=tmp_path)

    entry = read_bundle(folder)["files"]["edge_s.w8a8.tflite"]
    assert entry["float_layers"] == sorted(floats)
    assert entry["grids"].keys() == {"landmarks5", "smile"}


def test_auto_without_a_budget_says_what_is_missing(
    run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (run / "recipe.toml").write_text(AUTO_RECIPE, encoding="utf-8")
    code, answer = spoken(["build", str(run), "--target", "android", "--auto"], capsys)
    assert (code, "budget" in str(answer["error"])) == (2, True)


def test_auto_beside_a_precision_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(run_folder), "--target", "android", "--auto", "--precision", "fp16"]
    assert spoken(arguments, capsys)[0] == 2


def test_parity_verb_answers_by_the_contract(
    run_folder: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = spoken(["parity", str(run_folder), str(bundle_folder), "--data", "synthetic:16@test"], capsys)

    assert (code, answer["schema"], answer["pass"], answer["simulator_exact"]) == (0, 1, True, 1.0)
    outputs = answer["outputs"]
    assert isinstance(outputs, dict)
    assert outputs.keys() == {"landmarks5", "gender", "smile"}
    keys = {"max_abs", "mean_abs", "sqnr_db", "max_lsb", "within_1_lsb", "n"}
    assert all(keys <= output.keys() and output["within_1_lsb"] == 1.0 for output in outputs.values())


def test_bench_verb_answers_by_the_contract(bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = spoken(
        ["bench", str(bundle_folder), "--precision", "fp32,w8a8", "--runs", "20", "--starts", "0"], capsys
    )

    rows = answer["rows"]
    assert isinstance(rows, list)
    assert (code, [row["precision"] for row in rows]) == (0, ["fp32", "w8a8"])
    assert rows[0].keys() >= {
        *("model", "runtime", "precision", "threads", "batch", "median_ms", "p90_ms", "p99_ms", "size_bytes", "macs"),
        "ratio_to_first",
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (lambda run: ["build", str(run / "student"), "--target", "android"], 2),
        (lambda run: ["build", str(run), "--target", "ios", "--ios", "16", "--precision", "w8a8"], 2),
        (lambda run: ["build", str(run), "--target", "android", "--precision", "p6"], 2),
        (lambda run: ["build", str(run / "absent"), "--target", "android"], 2),
        (lambda run: ["build", str(run)], 2),
        (lambda run: ["parity", str(run), str(run / "absent"), "--data", "synthetic:4"], 2),
        (lambda run: ["parity", str(run), str(run), "--data", "nowhere"], 2),
        (lambda run: ["bench", str(run / "absent")], 2),
        (lambda run: ["bench", str(run), "--runs", "1"], 2),
        (lambda run: ["bench", str(run), "--threads", "0"], 2),
    ],
)
def test_bad_command_lines_end_in_words_and_their_code(
    arguments: Callable[[Path], list[str]],
    code: int,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    found, answer = spoken(arguments(run_folder), capsys)

    assert found == code
    error = answer["error"]
    assert isinstance(error, dict)
    assert error["code"] == code
    assert error["found"]
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_float_input_files_are_built_and_answer_the_same(target: str, run_folder: Path, tmp_path: Path) -> None:
    """A w8a8 file that takes standardized values computes what the one that takes the picture does."""
    made = {
        kind: build(run_folder, target=target, precisions=["w8a8"], float_input=kind == "float", out=tmp_path / kind)
        for kind in ("picture", "float")
    }
    answers = {kind: read_golden(folder) for kind, folder in made.items()}
    assert read_bundle(made["float"])["input"]["type"] == "float32"
    assert read_bundle(made["picture"])["input"]["type"] != "float32"
    assert answers["float"].keys() == answers["picture"].keys()
    assert all(np.array_equal(answers["float"][name], answers["picture"][name]) for name in answers["float"])
