"""A recipe over all folds of its corpus: each fold trains on its own part and is scored on its own, once."""

from __future__ import annotations

import importlib.util
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import folds
from benchmarks.folds import count_folds, of_fold, over_folds
from edgeface.checkpoint import load_checkpoint
from edgeface.config import load_recipe
from edgeface.data.sources import data_root
from edgeface.errors import UsageError
from edgeface.evaluate import evaluate, evaluation_pack
from targets.runners import open_model

RECIPE = """
name = "tiny-folds"
threads = 1
[data]
train = ["scut_fbp5500@fold1-train"]
val = ["scut_fbp5500@fold1-test"]
test = ["scut_fbp5500@fold1-test"]
pack_px = 40
[tasks]
beauty_score = 1.0
gender = 0.3
[teacher.network]
backbone = "tcdcn_relu"
input_px = 40
[teacher.train]
epochs = 2
batch = 5
warmup_epochs = 0
"""


def test_a_recipe_of_the_first_fold_has_as_many_as_its_corpus() -> None:
    assert count_folds(load_recipe("scut-fbp5500-folds")) == 5
    assert count_folds(load_recipe("dynamic-ckplus")) == 10
    with pytest.raises(UsageError, match="fold1-test alone"):
        count_folds(load_recipe("scut-fbp5500"))
    recipe = load_recipe("dynamic-ckplus")
    mixed = replace(recipe, data=replace(recipe.data, val=("scut_fbp5500@fold1-dev",)))
    with pytest.raises(UsageError, match="as many in each corpus"):
        count_folds(mixed)


def test_a_fold_takes_the_place_of_the_first_in_every_source() -> None:
    recipe = load_recipe("dynamic-ckplus")
    last = of_fold(recipe, 10)
    assert (last.data.train, last.data.val, last.data.test) == (
        ("ckplus@fold10-fit",),
        ("ckplus@fold10-dev",),
        ("ckplus@fold10-test",),
    )
    assert last.name == "dynamic-ckplus-fold10"
    assert replace(last, name=recipe.name, data=recipe.data) == recipe, "and nothing else changes"


def test_the_mean_is_over_the_folds_that_have_the_metric() -> None:
    scores = [{"tasks": {"gender": {"n": 3.0, "accuracy": value}}} for value in (0.5, 1.0, 0.6)]
    scores.append({"tasks": {"gender": {"n": 1.0}}})
    found = over_folds(scores)
    assert found["gender"].keys() == {"accuracy"}
    assert found["gender"]["accuracy"]["mean"] == pytest.approx(0.7)
    assert found["gender"]["accuracy"]["deviation"] == pytest.approx(statistics.stdev([0.5, 1.0, 0.6]))
    assert found["gender"]["accuracy"]["folds"] == 3
    assert over_folds(scores[:2])["gender"]["accuracy"]["mean"] == pytest.approx(0.75)  # the twin


@pytest.mark.slow
def test_each_fold_is_trained_and_scored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(__file__).parent / "edgeface" / "test_beauty_readers.py"
    spec = importlib.util.spec_from_file_location("writes_scut", place)
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    monkeypatch.setenv("EDGEFACE_DATA", str(writer.write_scut(tmp_path / "data")))
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny-folds.toml").write_text(RECIPE, encoding="utf-8")
    words = [str(tmp_path / "tiny-folds.toml"), "--until", "teacher", "--runs", str(tmp_path / "runs")]
    assert folds.main([*words, "--folds", "6"]) == 2
    assert "Expected 1 to 5" in capsys.readouterr().err
    assert folds.main(words) == 0
    result = json.loads((tmp_path / "runs" / "tiny-folds-folds.json").read_text(encoding="utf-8"))
    assert [one["fold"] for one in result["folds"]] == [1, 2, 3, 4, 5]
    assert [one["samples"] for one in result["folds"]] == [1] * 5

    errors = []
    weights = set()
    for fold in range(1, 6):
        stage = tmp_path / "runs" / f"tiny-folds-fold{fold}" / "teacher"
        runner = open_model(stage)
        test = evaluation_pack(f"scut_fbp5500@fold{fold}-test", runner.spec, root=data_root())
        errors.append(evaluate(runner, test).tasks["beauty_score"]["mae"])
        weights.add(load_checkpoint(stage).sha256)
    assert len(weights) == 5, "each fold has trained on faces of its own"
    told = result["over_folds"]["beauty_score"]["mae"]
    assert told["mean"] == pytest.approx(statistics.mean(errors), rel=1e-6)
    assert told["mean"] != pytest.approx(statistics.mean(errors[:4]), rel=1e-6)  # the twin: a fold left out
    assert f"mae {told['mean']:.4f}" in capsys.readouterr().out

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/teacher/manifest.json")}
    assert len(times) == 5
    assert folds.main([*words, "--folds", "2"]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}, "finished folds are not trained again"
