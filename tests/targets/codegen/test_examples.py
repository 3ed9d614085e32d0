"""The Python and C++ examples run a bundle's files and give the answers the bundle was shipped with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from targets.build import build
from targets.bundle import read_golden
from targets.runners import open_model

from ..conftest import OUTPUTS
from .conftest import run, tool

# Runs the shipped golden faces, then the same with red and blue exchanged, in a process that has NumPy and the runtime.
SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import edgeface_example as example
images = np.load(sys.argv[1] + "/golden.npz")["images"]
model = example.EdgeFace(sys.argv[2])
answers = {}
for order, faces in {"straight": images, "swapped": images[..., ::-1].copy()}.items():
    for name, rows in {name: [model.run(face)[name] for face in faces] for name in example.SHAPES}.items():
        answers[f"{order}/{name}"] = np.concatenate(rows)
assert not {"torch", "edgeface", "PIL", "cv2"} & set(sys.modules)
np.savez(sys.argv[3], **answers)
"""


@pytest.fixture(scope="session", params=["openvino", "onnx"])
def bundle(request: pytest.FixtureRequest, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(run_folder, target=request.param, out=tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_python_example_gives_the_golden_answers(bundle: Path, precision: str, tmp_path: Path) -> None:
    (model,) = (path for path in bundle.glob(f"*.{precision}.*") if path.suffix in (".xml", ".onnx"))

    run(sys.executable, "-I", "-W", "error", "-c", SCRIPT, bundle, model, tmp_path / "answers.npz")

    golden = read_golden(bundle)
    with np.load(tmp_path / "answers.npz") as answers:
        for output in OUTPUTS:
            shipped = golden[f"{precision}/{output.name}"]
            # The same runtime on the same machine; one step of an int8 output is above 1e-3.
            np.testing.assert_allclose(answers[f"straight/{output.name}"], shipped, rtol=0, atol=1e-5)
            assert np.abs(answers[f"swapped/{output.name}"] - shipped).max() > 1e-3  # the twin


@pytest.mark.slow
def test_examples_answer_for_a_picture_as_predict_does(bundle: Path, tmp_path: Path) -> None:
    from edgeface.cli.predict import predict

    runner = open_model(bundle, precision="fp32")
    model = next(path for path in bundle.glob("*.fp32.*") if path.suffix in (".xml", ".onnx"))
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "in.ppm")
    (face,) = predict(runner, picture, np.array([[20.5, 10, 70, 64]], np.float32))
    box = ("20.5", "10", "70", "64")

    example = str(bundle / "edgeface_example.py")
    printed = [_printed(sys.executable, example, str(model), str(tmp_path / "in.ppm"), *box)]
    if bundle.name == "openvino":
        program = _with_openvino(bundle / "edgeface_example.cpp", tmp_path)
        printed.append(_printed(str(program), str(model), str(tmp_path / "in.ppm"), *box))

    for text in printed:
        for task in ("gender", "smile"):
            answer = face.answers[task]["answer"]
            assert answer in text
            assert _holds(text, face.answers[task]["probabilities"][answer])
        assert all(_holds(text, value) for value in face.points["landmarks5"].ravel())
        assert not _holds(text, face.points["landmarks5"][0, 0] + 1)  # the twin: a crop one pixel aside


def _holds(text: str, value: float) -> bool:
    """Whether a number is printed; std::cout prints six digits, which of a coordinate above 100 leaves 1e-3."""
    return any(abs(float(number) - value) <= 1e-3 for number in re.findall(r"-?\d+\.\d*", text))


def _printed(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _with_openvino(source: Path, folder: Path) -> Path:
    """The C++ example with OpenVINO, from the headers and the library that its Python package carries."""
    openvino = pytest.importorskip("openvino", reason="NOT_RUN: no openvino here")
    package = Path(openvino.__file__).parent
    libraries = sorted((package / "libs").glob("libopenvino.so*"))
    if not libraries or not (package / "include" / "openvino").is_dir():
        pytest.skip("NOT_RUN: this openvino package carries no C++ headers")
    words = ("-std=c++17", "-O2", "-DEDGEFACE_WITH_OPENVINO", "-isystem", package / "include", source, libraries[0])
    run(tool("g++", "EDGEFACE_CXX"), *words, f"-Wl,-rpath,{package / 'libs'}", "-o", folder / "example")
    return folder / "example"
