"""Recipes: strict, all faults at once, and the same after a round trip."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface import config
from edgeface.config import dump_recipe, from_plain, list_recipes, load_recipe, to_plain
from edgeface.errors import ConfigError
from edgeface.specs import (
    BACKBONES,
    BUDGET_REFERENCES,
    CALIBRATIONS,
    STUDENTS,
    AugmentSpec,
    BudgetSpec,
    BuildSpec,
    DataSpec,
    DistillSpec,
    LossSpec,
    ModelSpec,
    NetworkSpec,
    QatSpec,
    Recipe,
    StudentSpec,
    TeacherSpec,
    TrainSpec,
    output_spec,
)
from edgeface.tasks import TASKS

SMALLEST = 'name = "small"\n[data]\ntrain = ["synthetic:10"]\n[tasks]\npose = 1\n'


def write(folder: Path, text: str, *, name: str = "recipe.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults_of(path: str, *overrides: str) -> dict[str, ConfigError]:
    """The faults a recipe is refused with, by dotted path."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides=overrides)
    assert caught.value.faults
    return {fault.where: fault for fault in caught.value.faults}


def shares(top: float = 1.0, *, open_end: bool = False) -> st.SearchStrategy[float]:
    return st.floats(0.0, top, exclude_max=open_end)


def networks(backbones: tuple[str, ...]) -> st.SearchStrategy[NetworkSpec]:
    return st.builds(
        NetworkSpec,
        backbone=st.sampled_from(backbones),
        width=st.floats(0.0, 4.0, exclude_min=True),
        input_px=st.integers(16, 512),
        hidden=st.integers(0, 8192),
        head=st.sampled_from(["", "pool", "flatten"]),
        dropout=shares(open_end=True),
    )


TRAINS = st.builds(
    TrainSpec,
    epochs=st.floats(1e-9, 1e5),
    batch=st.integers(2, 65_536),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    lr=st.floats(5e-324, 1e300),
    ema=shares(open_end=True),
    dtype=st.sampled_from(["fp32", "bf16"]),
)
SOURCES = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: f"folder:{text}")
RECIPES = st.builds(
    Recipe,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    summary=st.text(st.characters(codec="utf-8")),
    seed=st.integers(0, 2**31 - 1),
    threads=st.integers(0, 1024),
    data=st.builds(
        DataSpec,
        train=st.lists(SOURCES, min_size=1, max_size=3).map(tuple),
        val=st.lists(SOURCES, max_size=2).map(tuple),
    ),
    tasks=st.dictionaries(st.sampled_from(sorted(TASKS)), st.floats(5e-324, 1e300), min_size=1),
    augment=st.builds(
        AugmentSpec,
        rotation_deg=shares(180.0),
        scale=st.tuples(st.floats(0.2, 1.0), st.floats(1.0, 3.0)),
        mirror_share=shares(),
    ),
    loss=st.builds(LossSpec, landmarks=st.sampled_from(["wing", "l2", "smooth_l1"])),
    teacher=st.builds(TeacherSpec, network=networks(BACKBONES), train=TRAINS),
    student=st.builds(StudentSpec, network=networks(STUDENTS), train=TRAINS),
    distill=st.builds(DistillSpec, soft=shares(), temperature=st.floats(1e-9, 100.0)),
    qat=st.builds(QatSpec, train=TRAINS, calibration=st.sampled_from(CALIBRATIONS)),
    build=st.builds(BuildSpec, targets=st.sampled_from([(), ("android",), ("ios", "onnx")])),
).flatmap(
    lambda recipe: st.builds(
        dataclasses.replace,
        st.just(recipe),
        budget=st.dictionaries(
            st.sampled_from(sorted(recipe.tasks)),
            st.builds(BudgetSpec, points=st.floats(0.0, 1e6), vs=st.sampled_from(BUDGET_REFERENCES)),
        ),
    )
)


@given(recipe=RECIPES)
@settings(max_examples=60)
def test_a_dumped_recipe_loads_back_equal(recipe: Recipe) -> None:
    table = tomllib.loads(dump_recipe(recipe))
    assert from_plain(Recipe, table, where="dump") == recipe


def test_a_dump_of_another_recipe_is_not_equal_twin(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    table = tomllib.loads(dump_recipe(recipe))
    table["qat"]["train"]["lr"] *= 1.0 + 2**-52  # one unit in the last place
    assert from_plain(Recipe, table, where="dump") != recipe


def test_a_dump_is_a_file_load_recipe_reads(tmp_path: Path) -> None:
    recipe = load_recipe("mtfl-cpu")
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_a_model_spec_survives_plain_json() -> None:
    mean_shape = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
    spec = ModelSpec(
        name="edge_s",
        input_px=64,
        outputs=(output_spec("landmarks5", mean_shape=mean_shape), output_spec("pose")),
    )
    assert from_plain(ModelSpec, to_plain(spec), where="manifest.json") == spec


def test_a_missing_key_of_a_model_spec_is_named() -> None:
    plain = to_plain(ModelSpec(name="edge_s", input_px=64, outputs=(output_spec("pose"),)))
    del plain["outputs"][0]["task"]
    with pytest.raises(ConfigError, match=r"manifest\.json: 1 fault") as caught:
        from_plain(ModelSpec, plain, where="manifest.json")
    assert [fault.where for fault in caught.value.faults] == ["outputs[0].task"]


def test_what_is_left_out_takes_its_own_default(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST + "[qat.train]\nbatch = 8\n"))
    assert recipe.qat.train == dataclasses.replace(QatSpec().train, batch=8)
    assert recipe.qat.train.epochs != TrainSpec().epochs
    assert recipe.student == StudentSpec()


def test_four_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = """
        name = "four"
        seed = -1
        [data]
        train = ["mtlf@train"]
        [tasks]
        smil = 0.1
        [student.netwrok]
        width = 0.5
        [qat.train]
        batch = "64"
    """
    faults = faults_of(write(tmp_path, text))
    assert set(faults) == {"seed", "data.train[0]", "tasks.smil", "student.netwrok", "qat.train.batch"}
    assert "'mtfl'" in faults["data.train[0]"].do
    assert "'smile'" in faults["tasks.smil"].do
    assert "'network'" in faults["student.netwrok"].do
    assert faults["qat.train.batch"].expected == "a whole number"


def test_a_right_recipe_has_no_faults_twin(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SMALLEST)).tasks == {"pose": 1.0}


def test_two_values_out_of_range_in_one_table_are_both_reported(tmp_path: Path) -> None:
    faults = faults_of(write(tmp_path, SMALLEST + "[student.train]\nepochs = 0\nlr = -1\n"))
    assert set(faults) == {"student.train.epochs", "student.train.lr"}


def test_range_faults_show_beside_a_missing_required_key(tmp_path: Path) -> None:
    faults = faults_of(
        write(tmp_path, "threads = -2\n[data]\ntrain = []\n[tasks]\npose = 'high'\n[budget]\nsmile = 1\n")
    )
    assert {"name", "threads", "data.train", "tasks.pose"} == set(faults)
    assert faults["name"].found == "missing"


@pytest.mark.parametrize(
    ("line", "where", "expected"),
    [
        ("seed = true", "seed", "a whole number"),
        ("seed = 1.0", "seed", "a whole number"),
        ("student.train.lr = false", "student.train.lr", "a number"),
        ("student.train.lr = nan", "student.train.lr", "a finite number"),
        ("student.train.clip = inf", "student.train.clip", "a finite number"),
        ("summary = 3", "summary", "a string"),
        ("summary = 1979-05-27", "summary", "a string"),
        ("augment.scale = [1.0]", "augment.scale", "a list of 2 numbers"),
        ("augment.scale = [1.0, 'x']", "augment.scale[1]", "a number"),
        ("build.targets = 'android'", "build.targets", "a list of strings"),
        ("build.targets = ['andriod']", "build.targets[0]", "one of 'android', 'ios', 'openvino', 'onnx'"),
        ("student = 'edge_s'", "student", "a table"),
        ("budget = {smile = 1.0}", "budget.smile", "one of 'pose'"),
        ("budget = {pose = -1.0}", "budget.pose", "0 points or more"),
        ("budget = {pose = 'low'}", "budget.pose", "a number"),
        ("budget = {pose = {vs = 'teacher'}}", "budget.pose.points", "a number"),
        ("budget = {pose = {points = 1, vs = 'techer'}}", "budget.pose.vs", "one of 'student', 'teacher'"),
        ("student.network.backbone = 'vgg16'", "student.network.backbone", "one of 'edge_s'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(tmp_path: Path, line: str, where: str, expected: str) -> None:
    faults = faults_of(write(tmp_path, f"{line}\n{SMALLEST}"))
    assert list(faults) == [where]
    assert faults[where].expected.startswith(expected)


def test_a_whole_number_serves_where_a_number_is_wanted(tmp_path: Path) -> None:
    epochs = load_recipe(write(tmp_path, f"student.train.epochs = 7\n{SMALLEST}")).student.train.epochs
    assert epochs == 7.0
    assert isinstance(epochs, float)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("student.train.dtype=bf16", "bf16"),
        ("student.train.dtype='bf16'", "bf16"),
        ("student.train.lr=3e-4", 3e-4),
        ("student.train.batch=32", 32),
        ("student.train.batch = 32", 32),
        ('data.train=["folder:/a b@train"]', ("folder:/a b@train",)),
        ("augment.scale=[0.9, 1.1]", (0.9, 1.1)),
        ("budget.pose=2", BudgetSpec(points=2.0)),
        ('budget.pose={points=0.3, vs="teacher"}', BudgetSpec(points=0.3, vs="teacher")),
    ],
)
def test_set_changes_one_value(tmp_path: Path, text: str, value: object) -> None:
    path = write(tmp_path, SMALLEST)
    found: Any = load_recipe(path, overrides=[text])
    for part in text.partition("=")[0].strip().split("."):
        found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    assert found == value
    assert load_recipe(path) != load_recipe(path, overrides=[text])


def test_the_last_set_of_a_key_counts(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SMALLEST), overrides=["seed=1", "seed=2"]).seed == 2


def test_a_fault_from_set_says_so(tmp_path: Path) -> None:
    faults = faults_of(write(tmp_path, SMALLEST), "student.train.lr=fast", "student.trian.lr=1")
    assert set(faults) == {"--set student.train.lr", "--set student.trian"}


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=1", "seed.inner=1", "seed=[1", 'summary="open'])
def test_a_malformed_set_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_recipe(write(tmp_path, SMALLEST), overrides=[override])


@pytest.mark.parametrize(
    ("content", "line"), [("name = \n", 1), ('name = "a"\nseed = 1\nseed = 2\n', 3), ("[data\n", 1), ('x = "open', 0)]
)
def test_malformed_toml_names_its_line(tmp_path: Path, content: str, line: int) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert caught.value.where == (f"{path}:{line}" if line else path)


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"\n')
    (tmp_path / "folder.toml").mkdir()
    for name in ("latin.toml", "folder.toml", "absent.toml"):
        with pytest.raises(ConfigError, match=name):
            load_recipe(str(tmp_path / name))


def test_an_unknown_recipe_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mtfl-cpu'"):
        load_recipe("mtfl_cpu")


def test_every_packaged_recipe_loads_and_is_named_like_its_file() -> None:
    packaged = list_recipes()
    files = sorted(Path(config.__file__).parent.rglob("*.toml"))
    assert sorted(Path(recipe.source) for recipe in packaged) == files
    assert len({recipe.name for recipe in packaged}) == len(packaged), "a name means one recipe"
    assert {"demo", "mtfl-cpu", "mtfl-gpu"} <= {recipe.name for recipe in packaged}
    for recipe in packaged:
        loaded = load_recipe(recipe.name)
        assert loaded.name == recipe.name
        assert recipe.summary
        assert loaded.data.val, "a budget is measured on val"
        alone = not recipe.group and not loaded.sweep.students
        assert loaded.budget or not alone, "rows of tables build no files, and a sweep compares its own"


def test_the_demo_needs_no_corpus() -> None:
    data = load_recipe("demo").data
    assert all(source.startswith("synthetic:") for source in (*data.train, *data.val, *data.test))


def test_every_required_key_of_a_recipe_has_a_stand_in() -> None:
    todo: list[Any] = [Recipe]
    required = set()
    while todo:
        cls = todo.pop()
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[field.name]):
                todo.append(hints[field.name])
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                required.add((cls, field.name))
    assert required == set(config._STAND_INS)
