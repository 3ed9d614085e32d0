"""Every packaged recipe trains: two steps on drawn faces in the place of its own, or on its corpus in tiny."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks.tables import load_tables, starts
from distill.foreign import load_answers
from distill.stages import begin_network, load_network
from edgeface.checkpoint import load_checkpoint
from edgeface.cli.distill import distill
from edgeface.config import list_recipes, load_recipe
from edgeface.specs import IMAGENET, Recipe, StudentSpec, TrainSpec, TransferSpec

pytestmark = pytest.mark.slow

STAGES = ("teacher", "student", "qat")
# Corpora that drawn faces cannot stand for, by labels that these lack or have without deriving them; with the batch
# that fills an epoch of their tiny files.
TINY = {"celeba": 16, "wflw": 8}


def last_stages() -> Mapping[str, str]:
    """Recipe to the last stage that its tables ask for; one that stands alone or has a student runs to its end."""
    found = {}
    for recipe in list_recipes():
        has_student = load_recipe(recipe.name).student != StudentSpec()
        found[recipe.name] = "qat" if has_student or not recipe.group else "teacher"
    for table in load_tables().values():
        for row in table.rows:
            stage = (row.stage or table.stage).replace("forest", "teacher")  # forests grow with their teacher
            found[row.recipe] = max(found[row.recipe], stage, key=STAGES.index)
    return found


LAST = last_stages()


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe on a few drawn faces, narrow, for two steps of each stage."""

    corpus = recipe.data.train[0].partition("@")[0]
    data = replace(recipe.data, train=("synthetic:16@train",), val=("synthetic:8@val",), test=(), pack_px=64)
    if corpus in TINY:
        data = replace(recipe.data, train=(f"{corpus}@train",), val=(f"{corpus}@test",), test=(), pack_px=64)

    def brief(train: TrainSpec) -> TrainSpec:
        return replace(train, epochs=2.0, batch=TINY.get(corpus, 16), warmup_epochs=0.0)

    def narrow(spec: object) -> dict[str, object]:
        network = spec.network  # type: ignore[attr-defined]
        smallest = 80 if network.backbone == "inception_resnet_v1" else 64
        return {"network": replace(network, width=min(network.width, 0.25), input_px=min(network.input_px, smallest))}

    teacher = replace(recipe.teacher, forest=replace(recipe.teacher.forest, trees=50))
    if teacher.transfer.start == IMAGENET:  # torchvision's file is not here, and does not fit a narrow trunk
        teacher = replace(teacher, transfer=TransferSpec())
    return replace(
        recipe,
        threads=1,
        data=data,
        teacher=replace(teacher, train=brief(teacher.train), **narrow(teacher)),
        student=replace(recipe.student, train=brief(recipe.student.train), **narrow(recipe.student)),
        qat=replace(recipe.qat, train=brief(recipe.qat.train), calibration_batches=1),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpora of TINY in their published form."""
    root = tmp_path_factory.mktemp("corpora")
    module("test_people_readers").write_celeba(root, more=14)
    return Path(module("test_landmark_readers").write_wflw(root))


def module(name: str) -> ModuleType:
    """A test file that writes a corpus in its published form."""
    spec = importlib.util.spec_from_file_location(f"writes_{name}", Path(__file__).parent / "edgeface" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(autouse=True)
def surroundings(runs: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(runs.parent / "cache"))
    monkeypatch.setenv("EDGEFACE_DATA", str(corpora))


def begun(recipe: Recipe, runs: Path) -> Recipe:
    """With what it starts from trained, and named where it lies."""
    for key, start in starts(recipe).items():
        assert key == "teacher.transfer.start", f"{key}: say here how to fill it in"
        folder = runs / start.recipe
        if not (folder / start.stage / "manifest.json").is_file():
            distill(tiny(load_recipe(start.recipe)), folder, until=start.stage)
        transfer = replace(recipe.teacher.transfer, start=str(folder / start.stage))
        recipe = replace(recipe, teacher=replace(recipe.teacher, transfer=transfer))
    return recipe


@pytest.mark.parametrize("name", LAST)
def test_every_packaged_recipe_trains_for_two_steps(name: str, runs: Path, tmp_path: Path) -> None:
    recipe = begun(tiny(load_recipe(name)), runs)
    last = LAST[name]
    distill(recipe, tmp_path / "run", until=None if last == "qat" else last)
    alone = recipe.distill.soft == 0.0 and last != "teacher"
    for stage in STAGES[1 if alone else 0 : STAGES.index(last) + 1]:
        checkpoint = load_checkpoint(tmp_path / "run" / stage)
        assert checkpoint.manifest["training"]["steps"] == 2
        assert {output.task for output in checkpoint.model.outputs} == set(recipe.tasks)
    if recipe.teacher.forest.tasks and not alone:
        assert set(load_answers(tmp_path / "run" / "forest").outputs) == set(recipe.teacher.forest.tasks)
    if alone:
        assert not (tmp_path / "run" / "teacher").exists()
        return
    teacher = load_checkpoint(tmp_path / "run" / "teacher")
    before = begin_network(recipe.teacher, teacher.model, seed=recipe.seed).state_dict()
    after = load_network(teacher).state_dict()
    kept = [name for name in before if torch.equal(before[name], after[name])]
    assert not any(name.startswith("heads.") and name.endswith("weight") for name in kept)
    trunk = [name for name in kept if name.startswith("backbone.") and before[name].ndim == 4 and "luma" not in name]
    assert bool(trunk) is (recipe.teacher.transfer.frozen_prefix > 0), "what is frozen stays, and nothing else"
