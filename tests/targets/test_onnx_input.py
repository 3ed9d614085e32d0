"""The float input of ONNX files in the form x = (x / 255 − mean) / std, and what slimming takes away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeface.specs import NetworkSpec
from quantize.graph import INPUT, trace
from quantize.grid import dequantize, simulate
from targets import onnx as target

from .conftest import quantize_network, random_network, random_pictures, spec_of

SPEC = spec_of(NetworkSpec(backbone="edge_s", input_px=32))
# The students' (x − 128) / 64, as libraries that scale pictures to 0 to 1 write it.
MEAN, STD = 128 / 255, 64 / 255


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Any]:
    folder, network = tmp_path_factory.mktemp("onnx"), random_network("edge_s")
    quantized = quantize_network(network)
    found = {"fp32": folder / "a.onnx", "w8a8": folder / "b.onnx"}
    target.write(found, graph=trace(random_network("edge_s")), quantized=quantized, model=SPEC, float_input=True)
    return found, quantized


def outputs(model: Path | bytes, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """All outputs of a file, (N, values)."""
    import onnxruntime

    content = model if isinstance(model, bytes) else model.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    rows = [session.run(names, {INPUT: picture[None]}) for picture in batch]
    return np.stack([np.concatenate([value.ravel() for value in row]) for row in rows])


def test_pictures_in_the_published_convention_give_the_integers_of_the_simulator(
    files: tuple[dict[str, Path], Any],
) -> None:
    paths, quantized = files
    pictures = random_pictures(6, 32)
    x = (pictures.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    expected = dequantize(quantized, simulate(quantized, pictures))
    names = [output.name for output in SPEC.outputs]
    flat = np.concatenate([expected[name].reshape(6, -1) for name in names], axis=1)

    assert np.array_equal(outputs(paths["w8a8"], x), flat)
    # The twin: the statistics of ImageNet, another convention that apps mix it up with.
    imagenet = (pictures.astype(np.float32) / 255 - np.float32(0.485)) / np.float32(0.229)
    assert not np.array_equal(outputs(paths["w8a8"], imagenet), flat)


def test_the_float_file_answers_alike_in_both_conventions(files: tuple[dict[str, Path], Any]) -> None:
    paths, _ = files
    pictures = random_pictures(3, 32).astype(np.float32)
    ours = outputs(paths["fp32"], (pictures - 128) / 64)
    theirs = outputs(paths["fp32"], (pictures / 255 - np.float32(MEAN)) / np.float32(STD))
    scale = np.abs(ours).max()
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * scale)  # float32 rounding of the two divisions
    shifted = outputs(paths["fp32"], (pictures / 255 - np.float32(MEAN + 0.01)) / np.float32(STD))
    assert np.abs(shifted - ours).max() > 1e-4 * scale  # the twin


def test_slimming_drops_what_no_output_needs_and_nothing_else(files: tuple[dict[str, Path], Any]) -> None:
    onnx = pytest.importorskip("onnx", reason="NOT_RUN: no onnx here")
    paths, _ = files
    proto = onnx.load(paths["fp32"])
    nodes, values = len(proto.graph.node), len(proto.graph.initializer)
    extra = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "unused")
    proto.graph.initializer.append(extra)
    proto.graph.node.append(onnx.helper.make_node("Mul", ["unused", "unused"], ["nowhere"], name="unused_product"))

    slim = target._slimmed(proto)

    kept = onnx.load_model_from_string(slim)
    assert (len(kept.graph.node), len(kept.graph.initializer)) == (nodes, values)
    assert len(slim) < proto.ByteSize() - 64 * 64
    batch = (random_pictures(2, 32).astype(np.float32) - 128) / 64
    assert np.array_equal(outputs(slim, batch), outputs(paths["fp32"], batch))
    # The twin: what an output needs stays, however odd.
    proto = onnx.load(paths["fp32"])
    name = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = [f"{each}_before" if each == name else each for each in node.output]
    one = onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two")
    proto.graph.initializer.append(one)
    proto.graph.node.append(onnx.helper.make_node("Mul", [f"{name}_before", "two"], [name], name="doubled"))
    doubled = onnx.load_model_from_string(target._slimmed(proto))
    assert "doubled" in {node.name for node in doubled.graph.node}
