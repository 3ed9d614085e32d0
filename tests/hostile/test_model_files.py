"""Model files that are truncated, of wrong magic or have flipped bits: exit 2 and the file's name, no traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz.bundles import small_tflite, tiny_bundle, with_digests
from benchmarks.tiny_models import make_apart
from edgeface import limits
from edgeface.cli.main import main
from edgeface.errors import ModelError, UnsupportedError
from targets import artifacts
from targets.runners import locate, open_model

CASES = Path(__file__).resolve().parent / "cases"
TOOLS = {"tflite": "ai_edge_litert", "onnx": "onnxruntime", "openvino": "openvino", "coreml": "coremltools"}
FILES = {"tflite": "int8.tflite", "onnx": "int8.onnx", "openvino": "int8.xml", "coreml": "int8.mlpackage"}
INSIDE = Path("Data", "com.apple.CoreML")
WEIGHTS = INSIDE / "weights" / "weight.bin"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A whole model of each format, written once."""
    made: dict[str, Path] = {}

    def model(kind: str) -> Path:
        pytest.importorskip(TOOLS[kind], reason=f"{TOOLS[kind]} is not installed")
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            make_apart(kind, made[kind])
        return made[kind] / FILES[kind]

    return model


def _copied(model: Path, folder: Path) -> Path:
    if model.is_dir():
        return Path(shutil.copytree(model, folder / model.name))
    for part in artifacts.parts(model):
        shutil.copy(part, folder)
    return folder / model.name


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _other_magic(content: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + content[8:]


def _flipped(content: bytes) -> bytes:
    return content[:64] + bytes(byte ^ 0x55 if place % 3 == 0 else byte for place, byte in enumerate(content[64:]))


def _nothing(content: bytes) -> bytes:
    return b""


DAMAGES = (_half, _other_magic, _nothing, pytest.param(_flipped, marks=pytest.mark.slow))


def _ends_with_2(path: Path, named: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(path), "--runs", "80"]) == 2
    said = capfd.readouterr().err
    assert named in said
    assert "Traceback" not in said
    assert "internal error" not in said


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["tflite", "onnx", "openvino"])
def test_a_damaged_file_ends_a_verb_with_2_and_its_name(
    kind: str,
    damage: Callable[[bytes], bytes],
    models: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = _copied(models(kind), tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    _ends_with_2(path, str(path), capfd)


@pytest.mark.parametrize("damage", [_half, _nothing])
def test_truncated_weights_beside_an_xml_end_a_verb_with_2(
    damage: Callable[[bytes], bytes],
    models: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = _copied(models("openvino"), tmp_path)
    weights = path.with_suffix(".bin")
    weights.write_bytes(damage(weights.read_bytes()))
    _ends_with_2(path, str(path), capfd)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "part", ["Manifest.json", str(INSIDE / "model.mlmodel"), str(INSIDE / "weights" / "weight.bin")]
)
def test_a_damaged_part_of_a_package_ends_a_verb_with_2(
    part: str,
    damage: Callable[[bytes], bytes],
    models: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = _copied(models("coreml"), tmp_path)
    (path / part).write_bytes(damage((path / part).read_bytes()))
    _ends_with_2(path, str(path), capfd)


@pytest.mark.parametrize("kind", ["tflite", "onnx", "openvino"])
def test_the_whole_file_is_opened_twin(kind: str, models: Callable[[str], Path]) -> None:
    open_model(models(kind)).prepare(0)()


# -- found by fuzzing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["segfault", "no_utf8"])
def test_a_found_tflite_file_ends_a_verb_with_2(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The first one takes LiteRT 2.3.0 down in most runs, and is refused by it in the others."""
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    _ends_with_2(CASES / f"{name}.tflite", f"{name}.tflite: LiteRT cannot run it", capfd)


@pytest.mark.parametrize("name", ["batch_of_704", "batch_of_8388608"])
def test_a_found_file_of_many_pictures_at_a_time_is_refused_before_it_computes_them(name: str) -> None:
    """The second takes seconds and gigabytes a call, too little for the trial to notice."""
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    with pytest.raises(UnsupportedError, match=rf"{name}\.tflite: an input of the shape .* Expected one picture"):
        open_model(CASES / f"{name}.tflite")


def test_a_found_file_that_opens_answers_with_an_error_of_ours() -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    runner = open_model(CASES / "output_without_data.tflite")
    with pytest.raises(ModelError, match=r"output_without_data\.tflite: LiteRT cannot run it"):
        runner.answer(np.zeros((1, 4, 4, 3), np.int8))  # type: ignore[attr-defined]


def test_a_found_ir_with_a_name_that_is_no_text_ends_a_verb_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    _ends_with_2(CASES / "no_utf8.xml", "no_utf8.xml: OpenVINO cannot run it (a name in it is no UTF-8 text", capfd)


def test_a_found_ir_with_a_constant_of_no_numpy_type_is_read() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    runner = open_model(CASES / "constant_of_another_type.xml")
    (values,) = runner.answer(np.zeros(runner.inputs[0].shape, np.float32)).values()  # type: ignore[attr-defined]
    assert values.shape == (1, 2)


def test_an_onnx_file_of_another_batch_than_one_answers_with_an_error_of_ours(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from targets.onnx import OnnxRunner

    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (2, 3)) for name in ("image", "out")]
    node = onnx.helper.make_node("Relu", ["image"], ["out"])
    graph = onnx.helper.make_graph([node], "two", ports[:1], ports[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "two.onnx"
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
    runner = OnnxRunner(path, spec=None, runtime="onnxruntime", precision="", threads=1)
    with pytest.raises(ModelError, match=r"two\.onnx: ONNX Runtime cannot run it"):
        runner.answer(np.zeros((1, 3), np.float32))


@pytest.mark.slow
def test_a_package_that_asks_for_all_memory_meets_the_trials_limit(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    """Padding of a convolution that makes 72 GB of a picture: read in this process, it took this process down."""
    from targets import coreml

    path = _copied(models("coreml").with_name("float.mlpackage"), tmp_path)
    model = coreml.read_model(path)
    function = model.mlProgram.functions["main"]
    for op in function.block_specializations[function.opset].operations:
        values = op.attributes["val"].immediateValue.tensor.ints.values if op.type == "const" else []
        if list(values) == [1, 1, 1, 1]:
            values[1], values[3] = 30_000, 100_000
    (path / INSIDE / "model.mlmodel").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="it wants more than 8,589,934,592 bytes of memory"):
        open_model(path)


# -- what is no plain file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tflite", ".onnx", ".xml"])
def test_a_pipe_is_refused_and_not_waited_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    os.mkfifo(path)
    with pytest.raises(ModelError, match="not a plain file"):
        locate(path)


def test_a_pipe_for_weights_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(b"<?xml version='1.0'?><net/>")
    os.mkfifo(tmp_path / "model.bin")
    with pytest.raises(ModelError, match=r"model\.bin: not a plain file"):
        locate(tmp_path / "model.xml")


def _package(folder: Path) -> Path:
    path = folder / "a.mlpackage"
    (path / INSIDE / "weights").mkdir(parents=True)
    (path / "Manifest.json").write_text("{}")
    return path


def test_a_link_out_of_a_package_is_refused(tmp_path: Path) -> None:
    path = _package(tmp_path)
    locate(path)
    (tmp_path / "secret").write_bytes(b"x")
    (path / INSIDE / "weights" / "weight.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="a link out of the package"):
        locate(path)


def test_a_pipe_in_a_package_is_refused(tmp_path: Path) -> None:
    path = _package(tmp_path)
    os.mkfifo(path / INSIDE / "model.mlmodel")
    with pytest.raises(ModelError, match="not a plain file"):
        locate(path)


def test_the_limits_on_bytes_and_files_are_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _package(tmp_path)
    monkeypatch.setattr(limits, "MODEL_FILES", 3)
    with pytest.raises(ModelError, match=r"4 files\. Expected at most 3"):
        locate(path)
    monkeypatch.setattr(limits, "MODEL_BYTES", 7)
    file = tmp_path / "a.tflite"
    file.write_bytes(small_tflite()[:8])
    with pytest.raises(ModelError, match=r"8 bytes\. Expected at most 7"):
        locate(file)


# -- what a manifest vouches for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("edge_s.foo", b"x" * 100, "a file whose name ends in '.foo'"),
        ("edge_s.tflite", b"\x7fELF" + b"x" * 96, "not a .tflite file"),
        ("edge_s.mlpackage", b"x" * 100, "a file"),
    ],
)
def test_a_vouched_file_is_still_one_of_a_known_format(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    """Found by reading: a manifest that listed an unknown suffix ended a verb with a KeyError."""
    files = tiny_bundle()
    manifest = json.loads(files["manifest.json"])
    (entry,) = manifest["files"].values()
    manifest["files"] = {name: entry}
    manifest = with_digests(manifest, files["golden.npz"], content)
    for file, held in {**files, name: content, "manifest.json": json.dumps(manifest).encode()}.items():
        (tmp_path / file).write_bytes(held)
    with pytest.raises(ModelError, match=why):
        open_model(tmp_path)


# -- XML ---------------------------------------------------------------------------------------------------------------


def test_entities_that_grow_are_not_unfolded(tmp_path: Path) -> None:
    """The billion laughs: 10^9 words in a few hundred bytes."""
    from targets.openvino import read_note

    grown = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    text = f'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a0 "ha">{grown}]><net><rt_info>&a9;</rt_info></net>'
    path = tmp_path / "a.xml"
    path.write_text(text)
    assert read_note(path) == {}
