"""Forests on a teacher's features: what they answer, how they are kept, and whom they teach."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.foreign import load_answers
from distill.forest import TRUSTED, _dumped, _read_forest, grow, load_forest, out_of_bag, raw_answers
from edgeface.checkpoint import load_checkpoint
from edgeface.cli.main import main
from edgeface.config import from_plain, load_recipe
from edgeface.data.pack import pack
from edgeface.data.sources import open_source
from edgeface.errors import ConfigError, ModelError
from edgeface.files import read_json, sha256_file, write_json
from edgeface.specs import ForestSpec, Recipe, output_spec
from edgeface.tasks import Kind

GENDER, BEAUTY, SCORE = output_spec("gender"), output_spec("beauty"), output_spec("beauty_score")
SPEC = ForestSpec(tasks=("gender",), trees=50, leaf=1)


def recipe(**changes: object) -> Recipe:
    return from_plain(
        Recipe,
        {"name": "f", "threads": 1, "data": {"train": ["synthetic:8"]}, "tasks": {"gender": 1.0}, **changes},
        where="test",
    )


def noise(count: int = 120, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that say nothing of their labels: only learning by heart gets them right."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)).astype(np.float32), rng.integers(0, 2, count)


def test_answers_are_log_probabilities_that_end() -> None:
    features, labels = noise()
    forest = grow(features, labels, kind=Kind.CLASSES, spec=SPEC, recipe=recipe())
    raw = raw_answers(forest, features, GENDER)
    # Back from logits to shares by softmax: exact but for the floor under "never", half a tree of 50, and float32.
    shares = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, forest.predict_proba(features), atol=0.011)
    assert np.isfinite(raw).all()
    assert raw.min() == pytest.approx(np.log(0.01))
    assert np.abs(shares[:, ::-1] - forest.predict_proba(features)).max() > 0.5  # the twin: classes swapped


def test_a_class_without_a_training_face_is_never_said() -> None:
    features, labels = noise()
    forest = grow(features, labels * 3, kind=Kind.CLASSES, spec=SPEC, recipe=recipe())
    raw = raw_answers(forest, features, BEAUTY)
    assert raw.shape == (120, 5)
    assert set(raw.argmax(axis=1).tolist()) == {0, 3}
    assert (raw[:, [1, 2, 4]] == raw.min()).all()


def test_what_is_stored_of_a_face_comes_from_trees_that_did_not_have_it() -> None:
    features, labels = noise()
    forest = grow(features, labels, kind=Kind.CLASSES, spec=SPEC, recipe=recipe())
    by_heart = float((raw_answers(forest, features, GENDER).argmax(axis=1) == labels).mean())
    honest = float((out_of_bag(forest, GENDER).argmax(axis=1) == labels).mean())
    # Nothing can be known of these labels: 120 coins fall within 0.5 ± 0.15 but once in a thousand times.
    assert honest == pytest.approx(0.5, abs=0.15)
    assert by_heart > 0.95  # the twin: what asking all trees would have taught


def test_scores_get_a_regression_forest() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(200, 4)).astype(np.float32)
    forest = grow(features, features[:, 0], kind=Kind.SCORE, spec=SPEC, recipe=recipe())
    raw = out_of_bag(forest, SCORE)
    assert raw.shape == raw_answers(forest, features, SCORE).shape == (200, 1)
    assert np.corrcoef(raw[:, 0], features[:, 0])[0, 1] > 0.8
    assert abs(np.corrcoef(raw[:, 0], features[:, 1])[0, 1]) < 0.4  # the twin


def test_a_seed_decides_a_forest_and_threads_do_not() -> None:
    features, labels = noise()

    def grown(**changes: object) -> bytes:
        return _dumped(grow(features, labels, kind=Kind.CLASSES, spec=SPEC, recipe=recipe(**changes)))

    assert grown() == grown(threads=2)
    assert grown() != grown(seed=1)


def test_a_kept_forest_answers_as_before_and_a_file_with_more_in_it_is_refused(tmp_path: Path) -> None:
    import skops.io

    features, labels = noise()
    forest = grow(features, labels, kind=Kind.CLASSES, spec=SPEC, recipe=recipe())
    path = tmp_path / "gender.skops"
    path.write_bytes(_dumped(forest))
    assert skops.io.get_untrusted_types(file=path) == list(TRUSTED)
    again = _read_forest(path, GENDER, features=6)
    assert np.array_equal(again.predict_proba(features), forest.predict_proba(features))
    other = grow(features, 1 - labels, kind=Kind.CLASSES, spec=SPEC, recipe=recipe())
    assert not np.array_equal(again.predict_proba(features), other.predict_proba(features))  # the twin

    forest.verdict = np.random.RandomState
    path.write_bytes(_dumped(forest))
    with pytest.raises(ModelError, match=r"it holds numpy\.random"):
        _read_forest(path, GENDER, features=6)
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match="cannot be read"):
        _read_forest(path, GENDER, features=6)


@pytest.mark.parametrize("where", ["feature", "left_child"])
def test_a_tree_that_leads_out_of_itself_is_refused_before_it_is_asked(tmp_path: Path, where: str) -> None:
    features, labels = noise()
    path = tmp_path / "gender.skops"
    path.write_bytes(_dumped(grow(features, labels, kind=Kind.CLASSES, spec=SPEC, recipe=recipe())))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name in sorted(parts):
        if name.endswith(".npy"):
            values = np.load(io.BytesIO(parts[name]), allow_pickle=False)
            if values.dtype.names and where in values.dtype.names and len(values) > 1:
                values[where][0] = 1_000_000
                stream = io.BytesIO()
                np.save(stream, values)
                parts[name] = stream.getvalue()
                break
    else:
        raise AssertionError("no array of nodes in the file")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match=r"lead out of it|cannot be read"):
        _read_forest(path, GENDER, features=6)


def test_forests_of_other_kinds_and_few_trees_are_refused() -> None:
    with pytest.raises(ConfigError, match="tasks"):
        ForestSpec(tasks=("landmarks5",))
    with pytest.raises(ConfigError, match="50 to 10000"):
        ForestSpec(tasks=("gender",), trees=10)
    with pytest.raises(ConfigError, match="'softmax' while no task has a forest"):
        recipe(distill={"classifier": "forest"})
    with pytest.raises(ConfigError, match=r"teacher\.forest\.tasks\[0\]"):
        recipe(teacher={"forest": ["smile"]})
    assert recipe(teacher={"forest": ["gender"]}).teacher.forest == ForestSpec(tasks=("gender",))


TINY = [
    'data.train=["synthetic:96@train"]',
    'data.val=["synthetic:32@val"]',
    "data.test=[]",
    "data.pack_px=40",
    "threads=1",
    "tasks={landmarks5 = 1.0, gender = 0.5, beauty_score = 0.5}",
    "budget={}",
    "teacher.network.width=0.125",
    "teacher.network.input_px=32",
    "teacher.train={epochs = 2.0, batch = 32, warmup_epochs = 0.0}",
    "student.network.width=0.25",
    "student.network.input_px=32",
    "student.train={epochs = 1.0, batch = 32, warmup_epochs = 0.0}",
    "qat.train={epochs = 1.0, batch = 32, warmup_epochs = 0.0}",
    "qat.calibration_batches=2",
]
PORTS = {"x": [1, 3, 32, 32], "sex": [1, 2]}
FOREST = ["teacher.forest={tasks = ['gender', 'beauty_score'], trees = 50}"]


def command(*words: str, changes: list[str] = FOREST) -> list[str]:
    return [*words, *(word for change in (*TINY, *changes) for word in ("--set", change))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "forest"
    assert main(command("distill", "demo", "--out", str(folder), changes=[*FOREST, "distill.classifier=forest"])) == 0
    return folder


@pytest.mark.slow
def test_a_student_of_the_forest_learns_from_its_answers(run: Path) -> None:
    teacher, student = load_checkpoint(run / "teacher"), load_checkpoint(run / "student")
    answers = load_answers(run / "forest")
    assert student.manifest["made_from"] == {"teacher": teacher.sha256, "answers": answers.sha256}
    assert set(answers.outputs) == {"gender", "beauty_score"}
    other = run.parent / "softmax"
    assert main(command("distill", "demo", "--out", str(other), "--until", "student")) == 0
    assert (other / "teacher").is_symlink()
    assert (other / "forest").is_symlink()  # grown once, beside the teacher it grew on
    plain = load_checkpoint(other / "student")
    assert plain.manifest["made_from"] == {"teacher": teacher.sha256}
    assert plain.sha256 != student.sha256
    assert main(["quantize", str(run), "--out", str(run.parent / "again")]) == 0
    assert load_checkpoint(run.parent / "again").sha256 == load_checkpoint(run / "qat").sha256


@pytest.mark.slow
def test_forests_do_not_change_what_a_teacher_is_recognised_by(run: Path) -> None:
    plain = run.parent / "plain"
    assert main(command("distill", "demo", "--out", str(plain), "--until", "teacher", changes=[])) == 0
    assert (plain / "teacher").is_symlink()
    assert not (plain / "forest").exists()


@pytest.mark.slow
def test_the_forest_is_scored_beside_softmax_and_is_not_built(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = {}
    for name in ("teacher", "forest"):
        assert main(["eval", str(run / name), "--data", "synthetic:32@val", "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)["tasks"]
    assert found["forest"]["landmarks5"] == found["teacher"]["landmarks5"]  # the head it kept
    assert found["forest"]["beauty_score"]["mae"] != found["teacher"]["beauty_score"]["mae"]
    assert main(["build", str(run / "forest"), "--target", "onnx", "--out", str(tmp_path), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert said["found"] == "a random forest on a teacher's features"
    assert "no form in any target's files" in said["expected"]


@pytest.mark.slow
def test_the_report_has_a_row_of_the_forest(run: Path) -> None:
    from edgeface.report.entries import stage_entries

    entries = stage_entries(run)
    assert [entry.role for entry in entries] == ["teacher", "forest", "student", "fake-quant"]
    batch = np.zeros((2, 32, 32, 3), np.uint8)
    softmax, forest = (entry.open().run(batch) for entry in entries[:2])
    assert np.array_equal(softmax["landmarks5"], forest["landmarks5"])
    assert not np.array_equal(softmax["gender"], forest["gender"])


@pytest.mark.slow
def test_the_network_with_forests_answers_as_the_forests_do(run: Path) -> None:
    network, teacher = load_forest(run / "forest")
    images = torch.arange(3 * 3 * 32 * 32, dtype=torch.float32).reshape(3, 3, 32, 32) % 256
    outputs = network.eval()(images)
    hidden = network.network.hidden(network.network.backbone(network.network.standardize(images)))
    forest = _read_forest(run / "forest" / "gender.skops", GENDER, features=hidden.shape[1])
    expected = raw_answers(forest, hidden.detach().numpy(), teacher.model.output("gender"))
    assert np.array_equal(outputs["gender"].numpy(), expected)


@pytest.mark.slow
def test_a_forest_beside_another_teacher_or_an_altered_one_is_refused(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    with (moved / "forest" / "gender.skops").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ModelError, match=r"gender\.skops.*sha256"):
        load_forest(moved / "forest")
    manifest = read_json(moved / "forest" / "manifest.json")
    manifest["files"]["gender.skops"] = sha256_file(moved / "forest" / "gender.skops")
    manifest["made_from"]["teacher"] = "0" * 64
    write_json(moved / "forest" / "manifest.json", manifest)
    with pytest.raises(ModelError, match="another teacher than the forests grew on"):
        load_forest(moved / "forest")


@pytest.mark.slow
def test_frozen_teachers_of_every_kind_teach(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "said"
    words = ["eval", str(run / "teacher"), "--data", "synthetic:96@train", "--answers", str(answers)]
    assert main(words) == 0
    assert main(["build", str(run), "--target", "onnx", "--precision", "fp32", "--out", str(tmp_path / "built")]) == 0
    file = tmp_path / "built" / "onnx" / "edge_s.fp32.onnx"
    made = {}
    for name, frozen in {"checkpoint": run / "teacher", "answers": answers, "onnx": file}.items():
        out = tmp_path / name
        changes = [f'teacher.frozen="{frozen}"']
        assert main(command("distill", "demo", "--out", str(out), "--until", "student", changes=changes)) == 0
        assert "is frozen; nothing to train" in capsys.readouterr().err
        made[name] = load_checkpoint(out / "student")
    assert made["checkpoint"].manifest["made_from"] == {"teacher": load_checkpoint(run / "teacher").sha256}
    assert made["answers"].manifest["made_from"] == {"answers": load_answers(answers).sha256}
    assert made["onnx"].manifest["made_from"] == {"answers": load_answers(tmp_path / "onnx" / "answers").sha256}
    assert len({checkpoint.sha256 for checkpoint in made.values()}) == 3
    out = str(tmp_path / "onnx")
    assert main(command("distill", "demo", "--out", out, "--resume", "--until", "teacher", changes=changes)) == 0
    # What the file says is what is stored of it.
    stored = load_answers(tmp_path / "onnx" / "answers")
    from targets.runners import open_model

    faces = pack(open_source("synthetic:96@train", root=Path()), px=32, margin=1.0)
    said = open_model(file).run(np.ascontiguousarray(faces.images[:5]))
    np.testing.assert_allclose(stored.outputs["gender"][:5], said["gender"], atol=1e-5)
    assert not np.allclose(stored.outputs["gender"][1:6], said["gender"], atol=1e-5)  # the twin


@pytest.mark.slow
def test_a_frozen_run_an_int8_student_and_nothing_are_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for frozen, found in ((run, "is a run"), (run / "qat", "is a fake-quantized student")):
        changes = [f'teacher.frozen="{frozen}"']
        assert main(command("distill", "demo", "--out", str(tmp_path / "r"), "--json", changes=changes)) == 2
        assert found in json.loads(capsys.readouterr().out)["error"]["found"]
        shutil.rmtree(tmp_path / "r")
    absent = ['teacher.frozen="nowhere/teacher"']
    assert main(command("distill", "demo", "--out", str(tmp_path / "r"), "--json", changes=absent)) == 2
    assert json.loads(capsys.readouterr().out)["error"]["where"] == "teacher.frozen"


@pytest.mark.slow
def test_a_recipe_that_lists_students_becomes_one_run_each_under_one_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "many"
    changes = ['students=["cnn5", "edge_s"]']
    words = command("distill", "demo", "--out", str(out), "--until", "student", "--json", changes=changes)
    assert main(words) == 0
    payload = json.loads(capsys.readouterr().out)
    folders = [tmp_path / f"many-{name}" for name in ("cnn5", "edge_s")]
    assert [run["run"] for run in payload["runs"]] == [str(folder) for folder in folders]
    assert (folders[1] / "teacher").readlink() == Path("../many-cnn5/teacher")
    assert [load_checkpoint(folder / "student").network.backbone for folder in folders] == ["cnn5", "edge_s"]
    assert load_recipe(str(folders[0] / "recipe.toml")).name == "demo-cnn5"
    assert not load_recipe(str(folders[0] / "recipe.toml")).students
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}
    assert main([*words, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")} == before


def test_students_are_checked_with_the_recipe() -> None:
    with pytest.raises(ConfigError, match=r"students\[1\]"):
        replace(recipe(), students=("cnn5", "vgg16"))


@pytest.mark.slow
def test_a_model_of_others_teaches_what_its_description_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper, values = onnx.helper, onnx.numpy_helper.from_array
    weights = np.asarray([[1.0, -1.0], [0.5, 0.0], [0.0, 0.25]], np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["sex"]),
    ]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in PORTS.items()]
    graph = helper.make_graph(
        nodes, "theirs", ports[:1], ports[1:], [values(weights, "w"), values(np.zeros(2, np.float32), "b")]
    )
    file, description = tmp_path / "theirs.onnx", tmp_path / "theirs.toml"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    description.write_text(
        '[input]\ncolour = "RGB"\nmean = [0.0]\nstd = [255.0]\n'
        '[[outputs]]\nname = "sex"\ntask = "gender"\nvalues = "logits"\nclasses = ["female", "male"]\n'
    )
    out = tmp_path / "run"
    changes = [f'teacher.frozen="{file}"', f'teacher.described="{description}"']
    assert main(command("distill", "demo", "--out", str(tmp_path / "r"), "--json", changes=changes[:1])) == 2
    assert "name it in teacher.described" in json.loads(capsys.readouterr().out)["error"]["do"]
    words = command("distill", "demo", "--out", str(out), "--until", "student", changes=changes)
    assert main(words) == 0
    faces = pack(open_source("synthetic:96@train", root=Path()), px=32, margin=1.0)
    means = np.asarray(faces.images, np.float64).mean(axis=(1, 2)) / 255.0
    expected = (means @ weights)[:, ::-1]  # its classes stand the other way round
    answers = load_answers(out / "answers")
    # float32 means of 1,024 pixels.
    np.testing.assert_allclose(answers.outputs["gender"], expected, atol=1e-4)
    assert np.abs(answers.outputs["gender"] - expected[:, ::-1]).max() > 0.1  # the twin
    student = load_checkpoint(out / "student").manifest["provenance"]
    assert student["research_only"] is True
    assert "theirs.onnx: terms not known" in student["licences"]
    capsys.readouterr()
    told = tmp_path / "told"
    words = command(
        "distill", "demo", "--out", str(told), "--until", "student", changes=[*changes, "teacher.licence=MIT"]
    )
    assert main(words) == 0
    student = load_checkpoint(told / "student").manifest["provenance"]
    assert student["research_only"] is False
    assert "theirs.onnx: MIT" in student["licences"]
