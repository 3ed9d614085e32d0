"""From a path to answers: every form a model comes in opens, and everything that is none is refused in words."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeface.errors import EdgefaceError, MissingToolError, ModelError, UnsupportedError, UsageError
from edgeface.specs import RUNTIMES
from targets.litert import TFLITE_RUNTIMES, TfliteRunner
from targets.runners import open_model

from .conftest import random_pictures

PICTURES = random_pictures(5, 32)


def test_run_stands_for_its_fake_quant_student(run_folder: Path) -> None:
    found, expected = open_model(run_folder), open_model(run_folder / "qat")

    assert (found.runtime, found.precision) == ("torch", "fake-quant")
    assert all(np.array_equal(found.run(PICTURES)[name], value) for name, value in expected.run(PICTURES).items())
    assert set(found.grids) == {"landmarks5", "gender", "smile"}


def test_student_is_not_its_fake_quant_form_twin(run_folder: Path) -> None:
    student, fake_quant = open_model(run_folder / "student"), open_model(run_folder)

    assert (student.precision, dict(student.grids)) == ("fp32", {})
    assert not np.array_equal(student.run(PICTURES)["gender"], fake_quant.run(PICTURES)["gender"])


def test_bundle_opens_w8a8_unless_told_otherwise(bundle_folder: Path) -> None:
    assert open_model(bundle_folder).precision == "w8a8"
    assert open_model(bundle_folder, precision="fp16").precision == "fp16"
    with pytest.raises(UsageError, match="'w8a32'"):
        open_model(bundle_folder, precision="p6")


def test_file_of_a_bundle_knows_its_spec(bundle_folder: Path) -> None:
    runner = open_model(bundle_folder / "edge_s.fp16.tflite")

    assert runner.precision == "fp16"
    assert runner.spec.output("landmarks5").mean_shape[0] == (0.3, 0.4)
    shapes = {name: values.shape for name, values in runner.run(PICTURES).items()}
    assert shapes == {"landmarks5": (5, 5, 2), "gender": (5, 2), "smile": (5, 2)}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8a32", "w8a8"])
def test_file_by_itself_still_answers_what_it_names(precision: str, bundle_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.tflite"
    shutil.copy(bundle_folder / f"edge_s.{precision}.tflite", path)

    runner = open_model(path)

    assert runner.precision == precision
    expected = open_model(bundle_folder, precision=precision).run(PICTURES)
    found = runner.run(PICTURES)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert runner.spec.output("landmarks5").mean_shape[0] == (0.3, 0.4)


def test_file_of_someone_else_answers_what_its_outputs_are_named_after(bundle_folder: Path, tmp_path: Path) -> None:
    """Without our note: classes are known by name, landmarks are not, for want of the mean shape."""
    from targets.flatbuffer import Flatbuffer

    file = Flatbuffer((bundle_folder / "edge_s.w8a8.tflite").read_bytes())
    file.drop_unused()  # our note among it
    (tmp_path / "foreign.tflite").write_bytes(file.pack())

    runner = open_model(tmp_path / "foreign.tflite")

    assert runner.precision == "w8a8"
    assert [output.name for output in runner.spec.outputs] == ["gender", "smile"]
    assert np.array_equal(runner.run(PICTURES)["smile"], open_model(bundle_folder).run(PICTURES)["smile"])


def test_one_picture_answers_as_in_a_batch(bundle_folder: Path) -> None:
    runner = open_model(bundle_folder)
    together = runner.run(PICTURES)

    for place in range(len(PICTURES)):
        alone = runner.run(PICTURES[place : place + 1])
        assert all(np.array_equal(alone[name][0], together[name][place]) for name in together)
    # Twin: the rows are not all alike.
    assert not np.array_equal(together["landmarks5"][0], together["landmarks5"][1])


def test_builtin_kernels_are_another_runtime(bundle_folder: Path) -> None:
    runner = open_model(bundle_folder, runtime="tflite-builtin")

    assert runner.runtime == "tflite-builtin"
    assert runner.run(PICTURES).keys() == open_model(bundle_folder).run(PICTURES).keys()


def test_threads_of_torch_are_given_back(run_folder: Path) -> None:
    before = torch.get_num_threads()

    open_model(run_folder, threads=before + 1).run(PICTURES)

    assert torch.get_num_threads() == before


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _head_flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    for place in (0, 1, 12, 20, 24, 28):
        changed[place] ^= 0xFF
    return bytes(changed)


def _identifier_only(content: bytes) -> bytes:
    return b"\0\0\0\0TFL3" + bytes(1000)


def _text(content: bytes) -> bytes:
    return b"# This is a README, not a model\n"


def _nothing(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_cut, _head_flipped, _identifier_only, _text, _nothing])
def test_file_that_is_no_tflite_is_refused(
    damage: Callable[[bytes], bytes], bundle_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(damage((bundle_folder / "edge_s.w8a8.tflite").read_bytes()))

    with pytest.raises(ModelError, match=r"model\.tflite") as caught:
        open_model(path)
    assert caught.value.exit_code == 2


def test_file_altered_inside_a_bundle_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "android"
    shutil.copytree(bundle_folder, folder)
    path = folder / "edge_s.w8a8.tflite"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(ModelError, match="sha256"):
        open_model(folder)
    with pytest.raises(ModelError, match="sha256"):
        open_model(path)
    assert open_model(folder, precision="fp32").precision == "fp32"


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"target": "android", "schema": 1, "files": {}}', "not a bundle manifest"),
        ('{"target": "android", "schema": 1, "files": {"../x": {"precision": "fp32", "sha256": ""}}}', "not a bundle"),
        ('{"target": "android", "schema": 2, "files": {"x": {"precision": "fp32", "sha256": ""}}}', "not a bundle"),
    ],
)
def test_broken_manifest_is_refused(manifest: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8")

    with pytest.raises(ModelError, match=reason):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("absent", ModelError),
        ("empty", ModelError),
        ("model.onnx", ModelError),
        ("model.xml", ModelError),
        ("model.mlpackage", ModelError),
        ("model.pth", ModelError),
    ],
)
def test_path_of_no_model_here_is_refused(name: str, error: type[EdgefaceError], tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif name != "absent":
        path.write_bytes(b"x")

    with pytest.raises(error):
        open_model(path)


def test_unfinished_run_names_what_to_type(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "student", tmp_path / "half" / "student")
    shutil.copy(run_folder / "recipe.toml", tmp_path / "half")

    with pytest.raises(ModelError, match="--resume"):
        open_model(tmp_path / "half")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_runs_or_says_why_not(runtime: str, bundle_folder: Path) -> None:
    if runtime in ("tflite-xnnpack", "tflite-builtin"):
        assert open_model(bundle_folder, runtime=runtime).runtime == runtime
    elif runtime in TFLITE_RUNTIMES:
        try:
            assert open_model(bundle_folder, runtime=runtime).runtime == runtime
        except MissingToolError as error:
            assert error.do  # noqa: PT017 (either outcome is right, and each is asserted)
    elif runtime == "torch":
        with pytest.raises(UnsupportedError):
            open_model(bundle_folder, runtime=runtime)
    else:
        with pytest.raises((UnsupportedError, MissingToolError), match=runtime):
            open_model(bundle_folder, runtime=runtime)


def test_checkpoint_in_a_tflite_runtime_is_told_to_be_built(run_folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="edgeface build"):
        open_model(run_folder, runtime="tflite-xnnpack")


def test_pictures_of_another_size_are_refused(bundle_folder: Path) -> None:
    with pytest.raises(ModelError, match="uint8"):
        open_model(bundle_folder).run(random_pictures(1, 64))


def test_missing_runtime_is_named(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)

    with pytest.raises(MissingToolError, match="pip install"):
        open_model(bundle_folder)


def test_output_that_the_manifest_promises_must_be_there(bundle_folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle_folder / "manifest.json").read_text(encoding="utf-8"))
    from edgeface.config import from_plain
    from edgeface.specs import ModelSpec

    manifest["model"]["outputs"][1]["name"] = "pose"
    spec = from_plain(ModelSpec, manifest["model"], where="test")

    with pytest.raises(ModelError, match="pose"):
        TfliteRunner(
            bundle_folder / "edge_s.w8a8.tflite", spec=spec, runtime="tflite-xnnpack", precision="w8a8", threads=1
        )
