"""The generated code of every language cuts the bytes that evaluation cuts, and decodes what evaluation decodes.

Kotlin and Swift are compiled and run where a compiler is (kotlinc and swiftc on the path, or named in EDGEFACE_KOTLINC
and EDGEFACE_SWIFTC), Kotlin against stand-ins for Android's and LiteRT's classes; elsewhere these tests are skipped as
NOT_RUN, and test_syntax.py is all that looks at those files.
"""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeface.data.finder import crop_of_box
from edgeface.data.geometry import crop_image
from edgeface.specs import ModelSpec
from targets.codegen import generate

from .conftest import (
    HARNESS,
    LANGUAGES,
    Cases,
    Program,
    changed,
    compile_program,
    faces_of,
    flat_answers,
    make_cases,
    manifest_of,
    model,
    read_answers,
    read_crops,
    run,
    tool,
)

# Answers leave every language as float32: an age of up to 100 years is then exact to 4e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="session", params=LANGUAGES)
def program(request: pytest.FixtureRequest, spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp(request.param)
    return compile_program(request.param, manifest_of(spec, LANGUAGES[request.param]), folder)


def cut_and_decoded(program: Program, spec: ModelSpec, cases: Cases, folder: Path) -> tuple[Any, Any]:
    cases.write(folder / "cases")
    program(folder / "cases", folder / "answers")
    return read_answers(spec, cases, folder / "answers")


def apart(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max())


def test_crops_are_the_bytes_that_evaluation_cuts(
    program: Program, spec: ModelSpec, cases: Cases, tmp_path: Path
) -> None:
    faces, _ = cut_and_decoded(program, spec, cases, tmp_path)

    assert np.array_equal(faces, faces_of(cases, px=spec.input_px))


def test_answers_are_those_that_evaluation_decodes(
    program: Program, spec: ModelSpec, cases: Cases, tmp_path: Path
) -> None:
    _, answers = cut_and_decoded(program, spec, cases, tmp_path)

    assert apart(answers, flat_answers(spec, cases)) <= TOLERANCE
    # The twin: answers of a model whose mean shape or threshold is another are told apart.
    for output in spec.outputs[:2]:
        shape = tuple((x + 0.001, y) for x, y in output.mean_shape)
        other = replace(output, mean_shape=shape, threshold=0.95)
        outputs = tuple(other if known.name == output.name else known for known in spec.outputs)
        assert apart(answers, flat_answers(replace(spec, outputs=outputs), cases)) > 10 * TOLERANCE


@pytest.mark.parametrize("head", ["3x3", "3x3x3"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_stage_wise_age_is_decoded_as_evaluation_does(language: str, head: str, tmp_path: Path) -> None:
    spec = model(heads={"age": head})
    cases = make_cases(spec)
    program = compile_program(language, manifest_of(spec, LANGUAGES[language]), tmp_path)

    _, answers = cut_and_decoded(program, spec, cases, tmp_path)

    assert apart(answers, flat_answers(spec, cases)) <= TOLERANCE
    # The twin: bins, shifts and widths read in another order.
    turned = cases.outputs | {"age": cases.outputs["age"][:, ::-1].copy()}
    assert apart(answers, flat_answers(spec, replace(cases, outputs=turned))) > 10.0


@pytest.mark.parametrize("language", LANGUAGES)
def test_landmarks_of_heatmaps_are_decoded_as_evaluation_does(language: str, tmp_path: Path) -> None:
    outputs = tuple(
        replace(output, shape=(4, 3, 5), heatmap=True) if output.name == "landmarks5" else output
        for output in model().outputs
    )
    spec = replace(model(), outputs=outputs)
    cases = make_cases(spec)
    program = compile_program(language, manifest_of(spec, LANGUAGES[language]), tmp_path)

    _, answers = cut_and_decoded(program, spec, cases, tmp_path)

    assert apart(answers, flat_answers(spec, cases)) <= TOLERANCE
    # The twin: rows of cells read in another order.
    turned = cases.outputs | {"landmarks5": cases.outputs["landmarks5"][:, ::-1].copy()}
    assert apart(answers, flat_answers(spec, replace(cases, outputs=turned))) > 0.1


def test_shifted_crop_is_noticed_twin(program: Program, spec: ModelSpec, cases: Cases, tmp_path: Path) -> None:
    shifted = replace(cases, crops=cases.crops.copy())
    shifted.crops[:6, 0] += 1

    faces, _ = cut_and_decoded(program, spec, shifted, tmp_path)

    assert not any(np.array_equal(*pair) for pair in zip(faces[:6], faces_of(cases, px=spec.input_px)[:6], strict=True))


def test_swapped_colours_are_noticed_twin(program: Program, spec: ModelSpec, cases: Cases, tmp_path: Path) -> None:
    swapped = replace(cases, pictures=[np.ascontiguousarray(picture[..., ::-1]) for picture in cases.pictures])

    faces, _ = cut_and_decoded(program, spec, swapped, tmp_path)

    assert not np.array_equal(faces, faces_of(cases, px=spec.input_px))


@pytest.mark.parametrize("language", LANGUAGES)
def test_float_input_is_standardized(language: str, spec: ModelSpec, cases: Cases, tmp_path: Path) -> None:
    program = compile_program(language, manifest_of(spec, LANGUAGES[language], float_input=True), tmp_path)
    cases.write(tmp_path / "cases")

    program(tmp_path / "cases", tmp_path / "answers")

    content = np.frombuffer((tmp_path / "answers").read_bytes(), "<f4").reshape(len(cases.crops), -1)
    tensors = content[:, : spec.input_px**2 * 3].reshape(-1, spec.input_px, spec.input_px, 3)
    faces = faces_of(cases, px=spec.input_px).astype(np.float32)
    expected = (faces - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    assert np.array_equal(tensors, expected)
    # The twin: standardization with the channels' statistics exchanged.
    assert not np.array_equal(tensors, (faces - np.array(spec.mean[::-1], np.float32)) / np.array(spec.std, np.float32))


def _mean_shape(manifest: dict[str, Any]) -> None:
    manifest["outputs"][0]["mean_shape"][2][1] += 0.01


def _threshold(manifest: dict[str, Any]) -> None:
    for output in manifest["outputs"]:
        output["threshold"] = 0.9


def _side(manifest: dict[str, Any]) -> None:
    manifest["crop"]["size_px"] -= 1


@pytest.mark.parametrize("change", [_mean_shape, _threshold, _side])
def test_code_of_another_manifest_is_noticed_twin(
    change: Callable[[dict[str, Any]], None], spec: ModelSpec, cases: Cases, tmp_path: Path
) -> None:
    program = compile_program("python", changed(manifest_of(spec, "onnx"), change), tmp_path)
    cases.write(tmp_path / "cases")
    program(tmp_path / "cases", tmp_path / "answers")

    if change is _side:
        whole = len(cases.crops) * (spec.input_px**2 * 3 + 4 * flat_answers(spec, cases).shape[1] + 24)
        assert (tmp_path / "answers").stat().st_size < whole
        return
    _, answers = read_answers(spec, cases, tmp_path / "answers")
    assert apart(answers, flat_answers(spec, cases)) > 10 * TOLERANCE


@pytest.mark.parametrize("spoil", ["missing", "not finite"])
def test_python_refuses_outputs_that_cannot_be_decoded(spoil: str, spec: ModelSpec, cases: Cases) -> None:
    generated = load(generate(manifest_of(spec, "onnx"))["edgeface_example.py"])
    outputs = {name: values[0].copy() for name, values in cases.outputs.items()}
    if spoil == "not finite":
        outputs["gender"][0] = np.nan
    else:
        del outputs["gender"]

    with pytest.raises((ValueError, KeyError), match="gender"):
        generated.decode(outputs, generated.Crop(1, 1, 1))
    with pytest.raises(ValueError, match="touches"):
        generated.cut(cases.pictures[0], generated.Crop(-50, 1, 1))


def load(text: str) -> Any:
    """A generated Python file as a module."""
    module = types.ModuleType("generated_example")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
        exec(text, module.__dict__)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [("2048 + 0.5", "2048 + 0.4"), ("(1 << 21)", "(1 << 20)"), ("max(1.0, scale)", "max(1.0, 0.9 * scale)")]
)
@pytest.mark.parametrize("language", ["python", "cpp", "swift"])
def test_code_with_another_resampling_is_noticed_twin(
    language: str, fault: tuple[str, str], spec: ModelSpec, cases: Cases, tmp_path: Path
) -> None:
    program = compile_program(language, manifest_of(spec, LANGUAGES[language]), tmp_path, fault=fault)

    faces, answers = cut_and_decoded(program, spec, cases, tmp_path)

    assert not np.array_equal(faces, faces_of(cases, px=spec.input_px))
    assert apart(answers, flat_answers(spec, cases)) <= TOLERANCE


def test_crops_around_boxes_and_landmarks_are_those_of_edgeface(
    program: Program, spec: ModelSpec, cases: Cases, tmp_path: Path
) -> None:
    cut_and_decoded(program, spec, cases, tmp_path)

    box, landmarks = read_crops(tmp_path / "answers", count=len(cases.crops))

    assert np.array_equal(box, crop_of_box(np.array([10.25, 20.125, 33.5, 47.75], np.float32)))
    # The box around the five points of the harness: 10 to 30.5 across, 20 to 44 down.
    assert np.array_equal(landmarks, np.array([20.25, 32.0, 2.26 * 24], np.float32))
    assert not np.array_equal(box, crop_of_box(np.array([10.25, 20.25, 33.5, 47.75], np.float32)))  # the twin


def test_cpp_example_writes_the_crop_it_would_run(spec: ModelSpec, cases: Cases, tmp_path: Path) -> None:
    (tmp_path / "x.cpp").write_text(generate(manifest_of(spec, "openvino"))["edgeface_example.cpp"], encoding="utf-8")
    run(tool("g++", "EDGEFACE_CXX"), "-std=c++17", "-O2", tmp_path / "x.cpp", "-o", tmp_path / "x")
    picture = cases.pictures[0]
    height, width = picture.shape[:2]
    (tmp_path / "in.ppm").write_bytes(f"P6\n{width} {height}\n255\n".encode() + picture.tobytes())

    run(tmp_path / "x", tmp_path / "out.ppm", tmp_path / "in.ppm", "10", "12", "40.5", "44.25")

    face = crop_image(picture, crop_of_box(np.array([10, 12, 40.5, 44.25], np.float32)), px=spec.input_px)
    assert (tmp_path / "out.ppm").read_bytes().endswith(b"\n255\n" + face.tobytes())


@pytest.mark.parametrize("float_input", [False, True])
def test_core_ml_part_of_the_swift_file_has_the_right_types(float_input: bool, spec: ModelSpec, tmp_path: Path) -> None:
    """Against stand-ins for Apple's modules, so it is no proof that a Mac would compile it."""
    compiler = tool("swiftc", "EDGEFACE_SWIFTC")
    for module in ("CoreGraphics", "CoreVideo", "CoreML"):
        source = HARNESS / "swift" / "apple" / f"{module}.swift"
        shutil.copy(source, tmp_path)
        words = ("-emit-module", "-module-name", module, "-I", tmp_path, tmp_path / source.name)
        run(compiler, *words, "-o", tmp_path / f"{module}.swiftmodule", cwd=tmp_path)
    text = generate(manifest_of(spec, "ios", float_input=float_input))["EdgeFace.swift"]
    file = tmp_path / "EdgeFace.swift"
    file.write_text(text, encoding="utf-8")

    run(compiler, "-typecheck", "-warnings-as-errors", "-I", tmp_path, file, cwd=tmp_path)

    file.write_text(text.replace("try model.prediction(from:", "try model.predict(from:"), encoding="utf-8")
    with pytest.raises(AssertionError, match="predict"):
        run(compiler, "-typecheck", "-I", tmp_path, file, cwd=tmp_path)
