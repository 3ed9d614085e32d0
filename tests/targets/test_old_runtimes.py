"""The same files in TensorFlow and tflite-runtime 2.14: like kernels answer alike; what would be wrong is refused."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from edgeface.specs import STUDENTS, NetworkSpec
from quantize.graph import trace
from quantize.grid import Quantized, simulate
from targets import interpreter, tflite, tflite214
from targets.flatbuffer import Flatbuffer
from targets.litert import TfliteRunner, open_engine
from targets.tflite214 import BUILTIN, Worker

from .conftest import quantize_network, random_network, random_pictures, spec_of

pytestmark = pytest.mark.slow

PRECISIONS = ("fp32", "fp16", "w8a32", "w8a8")
WIDTH = {"tcdcn_relu": 0.5}
PICTURES = random_pictures(8, 32)


@pytest.fixture(scope="session")
def students() -> dict[str, Quantized]:
    return {name: quantize_network(random_network(name, width=WIDTH.get(name, 0.25))) for name in STUDENTS}


@pytest.fixture(scope="session")
def files(students: dict[str, Quantized], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name, quantized in students.items():
        found[name] = {precision: folder / f"{name}.{precision}.tflite" for precision in PRECISIONS}
        width = WIDTH.get(name, 0.25)
        model = spec_of(NetworkSpec(backbone=name, width=width, input_px=32))
        tflite.write(found[name], graph=trace(random_network(name, width=width)), quantized=quantized, model=model)
    return found


@pytest.fixture(scope="session")
def old_runtime() -> Path:
    """The environment of tflite-runtime 2.14, made on first use: it stays in the user's cache folder."""
    try:
        return tflite214.install()
    except MissingToolError as error:
        pytest.skip(f"tflite-2.14: {error}")


def gap(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest distance over all outputs, as a share of the range of that output."""
    assert found.keys() == expected.keys()
    return max(
        float(np.abs(found[name].astype(np.float64) - value).max() / np.ptp(value.astype(np.float64)))
        for name, value in expected.items()
    )


@pytest.mark.usefixtures("old_runtime")
@pytest.mark.parametrize("student", STUDENTS)
def test_old_runtime_computes_int8_as_the_builtin_rule_says(
    student: str, files: dict[str, dict[str, Path]], students: dict[str, Quantized]
) -> None:
    """By default and without XNNPACK alike: that one leaves int8 to the builtin kernels."""
    expected = simulate(students[student], PICTURES, kernels="tflite-builtin")
    for resolver in ("AUTO", BUILTIN):
        found = Worker(files[student]["w8a8"], threads=1, resolver=resolver).run(PICTURES)
        assert all(np.array_equal(found[name], value) for name, value in expected.items())
    # Twin: LiteRT's default kernels round otherwise.
    others = simulate(students[student], PICTURES, kernels="xnnpack")
    assert not all(np.array_equal(others[name], value) for name, value in expected.items())


# float32 sums in another order; int8 codes of dynamic activations that fall on the other side of a rounding, of 1/127.
@pytest.mark.usefixtures("old_runtime")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 1e-5), ("w8a32", 0.05)])
@pytest.mark.parametrize("student", STUDENTS)
def test_old_runtime_answers_float_files_as_litert_does(
    student: str, precision: str, most: float, files: dict[str, dict[str, Path]]
) -> None:
    path = files[student][precision]

    found = Worker(path, threads=1).run(PICTURES)

    expected = open_engine(path, runtime="tflite-xnnpack", threads=1).run(PICTURES)
    assert gap(found, expected) < most
    # Twin: outputs of other pictures are further off.
    assert gap(found, open_engine(path, runtime="tflite-xnnpack", threads=1).run(PICTURES[::-1])) > most


@pytest.mark.usefixtures("old_runtime")
def test_file_that_the_old_runtime_gets_silently_wrong_is_refused_twin(
    files: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scale per channel in a fully connected layer, as converters write it: half the range off, without a word."""
    file = Flatbuffer(files["edge_s"]["w8a32"].read_bytes())
    for operator in file.operators:
        if file.kind(operator) == "FULLY_CONNECTED":
            index = int(operator.inputs[1])
            scale = float(file.scales(index)[0])
            file.set_grid(index, [scale] * file.shape(index)[0], [0] * file.shape(index)[0])
    path = tmp_path / "per_channel.tflite"
    path.write_bytes(file.pack())

    with pytest.raises(UnsupportedError, match="silently"):
        Worker(path, threads=1)
    # The same numbers, so LiteRT does not mind; the old runtime, left to itself, does.
    expected = open_engine(files["edge_s"]["w8a32"], runtime="tflite-xnnpack", threads=1).run(PICTURES)
    assert gap(open_engine(path, runtime="tflite-xnnpack", threads=1).run(PICTURES), expected) < 0.05
    monkeypatch.setattr(tflite214, "_refuse_what_it_gets_wrong", lambda path: None)
    assert gap(Worker(path, threads=1).run(PICTURES), expected) > 0.05


@pytest.mark.parametrize("student", STUDENTS)
def test_tensorflow_computes_int8_as_xnnpack_does(
    student: str, files: dict[str, dict[str, Path]], students: dict[str, Quantized]
) -> None:
    pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
    expected = simulate(students[student], PICTURES, kernels="xnnpack")

    found = open_engine(files[student]["w8a8"], runtime="tensorflow", threads=1).run(PICTURES)

    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    # Twin: it is not the builtin kernels' rule.
    others = simulate(students[student], PICTURES, kernels="tflite-builtin")
    assert not all(np.array_equal(others[name], value) for name, value in expected.items())


@pytest.mark.parametrize("precision", PRECISIONS[:3])
def test_tensorflow_answers_float_files_as_litert_does(precision: str, files: dict[str, dict[str, Path]]) -> None:
    pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
    path = files["edge_s"][precision]

    found = open_engine(path, runtime="tensorflow", threads=1).run(PICTURES)

    # float32 sums in another order.
    expected = open_engine(path, runtime="tflite-xnnpack", threads=1).run(PICTURES)
    assert (
        gap(found, expected)
        < 1e-5
        < gap(found, open_engine(path, runtime="tflite-builtin", threads=1).run(PICTURES[::-1]))
    )


@pytest.mark.usefixtures("old_runtime")
def test_runner_of_the_old_runtime_is_a_runner_like_any(files: dict[str, dict[str, Path]]) -> None:
    spec = spec_of(NetworkSpec(backbone="edge_s", input_px=32))
    options = {"spec": spec, "precision": "w8a8", "threads": 1}

    old = TfliteRunner(files["edge_s"]["w8a8"], runtime="tflite-2.14", **options)  # type: ignore[arg-type]
    new = TfliteRunner(files["edge_s"]["w8a8"], runtime="tflite-builtin", **options)  # type: ignore[arg-type]

    found, expected = old.run(PICTURES), new.run(PICTURES)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert (old.grids, old.macs, old.size_bytes) == (new.grids, new.macs, new.size_bytes)
    old.prepare(0)()
    again = old.run(PICTURES[:0])
    assert {name: values.shape for name, values in again.items()} == {
        name: (0, *values.shape[1:]) for name, values in expected.items()
    }


@pytest.mark.usefixtures("old_runtime")
def test_process_that_dies_is_a_model_error_with_its_last_words(
    files: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    (tmp_path / "broken.tflite").write_bytes(files["cnn5"]["fp32"].read_bytes())
    worker = Worker(tmp_path / "broken.tflite", threads=1)

    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(ModelError, match="signal 9"):
        worker.run(PICTURES)
    with pytest.raises(ModelError, match=r"broken\.tflite"):
        worker.run(PICTURES)
    worker.close()

    file = Flatbuffer(files["cnn5"]["fp32"].read_bytes())
    file.set_kind(file.operators[1], file.kind(file.operators[1]), version=99)
    (tmp_path / "future.tflite").write_bytes(file.pack())
    with pytest.raises(ModelError, match="version '99'"):
        Worker(tmp_path / "future.tflite", threads=1)


@pytest.mark.usefixtures("old_runtime")
def test_process_ends_with_its_worker(files: dict[str, dict[str, Path]]) -> None:
    worker = Worker(files["cnn5"]["fp32"], threads=1)
    process = worker._process

    assert process.poll() is None
    worker.close()
    assert process.poll() is not None


def test_environment_that_is_not_there_names_the_command(
    files: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))

    assert tflite214.find() is None
    with pytest.raises(MissingToolError, match=r"doctor --install tflite-2\.14"):
        open_engine(files["cnn5"]["fp32"], runtime="tflite-2.14", threads=1)


def test_half_made_environment_or_other_pins_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    python = tmp_path / "tflite-2.14" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    mark = tmp_path / "tflite-2.14" / "edgeface.json"

    assert tflite214.find() is None
    mark.write_text(json.dumps(["tflite-runtime==2.13.0", "numpy==1.26.4"]))
    assert tflite214.find() is None
    mark.write_text(json.dumps(tflite214.PACKAGES))
    assert tflite214.find() == tmp_path / "tflite-2.14"  # Twin: a whole one does


def test_install_without_a_network_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")

    with pytest.raises(MissingToolError, match="Check the network"):
        tflite214.install()
    assert not any((tmp_path / "cache").iterdir())


def test_python_that_the_old_runtime_was_not_built_for_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))

    with pytest.raises(MissingToolError, match=r"python3\.11"):
        tflite214.install()


def test_frames_survive_the_pipe_and_a_torn_one_is_noticed() -> None:
    import io

    stream = io.BytesIO()
    array = np.arange(6, dtype=np.int8).reshape(2, 3)
    interpreter.write_frame(stream, interpreter.to_npy(array))
    interpreter.write_frame(stream, b"")
    content = stream.getvalue()

    again = io.BytesIO(content)
    found = interpreter.read_frame(again)
    assert found is not None
    assert np.array_equal(interpreter.from_npy(found), array)
    assert (interpreter.read_frame(again), interpreter.read_frame(again)) == (b"", None)
    assert interpreter.read_frame(io.BytesIO(content[:-9])) is None  # Twin: one byte short
    with pytest.raises(ValueError, match="pickle"):
        interpreter.to_npy(np.array([object()]))
