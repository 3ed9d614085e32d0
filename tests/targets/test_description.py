"""Files of others, described by the user: read as described, and refused with everything that is left open."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeface.cli.main import main
from edgeface.errors import ConfigError, UnsupportedError, UsageError
from edgeface.evaluate import decode
from edgeface.specs import ModelSpec
from edgeface.tasks import TASKS
from targets.build import build
from targets.description import DescribedRunner, InputDescription, read_description, template, to_input
from targets.protocol import Port
from targets.runners import open_model, open_to_score

from .conftest import random_pictures

PICTURES = random_pictures(6, 32)


class File:
    """A file that answers what it is told to."""

    runtime, precision, size_bytes, macs, grids, operations, threads = "torch", "fp32", 1, None, {}, None, 1
    path = Path("peer.onnx")

    def __init__(self, answers: dict[str, NDArray[np.float32]], *, taken: Port | None = None) -> None:
        self.answers = answers
        self.inputs = (taken or Port(name="in", dtype="float32", shape=(1, 3, 32, 32)),)
        self.outputs = tuple(
            Port(name=name, dtype="float32", shape=(1, *values.shape[1:])) for name, values in answers.items()
        )
        self.spec = ModelSpec(name="peer", input_px=32, outputs=())
        self.seen: list[NDArray[Any]] = []

    def answer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        self.seen.append(batch)
        return self.answers

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        raise AssertionError("not asked")

    def hold(self, sample: NDArray[Any]) -> Callable[[], None]:
        self.seen.append(sample)
        return lambda: None

    def prepare(self, seed: int) -> Callable[[], None]:
        raise AssertionError("not asked")


INPUT = '[input]\ncolour = "RGB"\nmean = [128.0]\nstd = [64.0]\n'


def described(file: File, text: str, folder: Path, *, picture: str = INPUT) -> DescribedRunner:
    path = folder / "peer.toml"
    path.write_text(picture + text, encoding="utf-8")
    return DescribedRunner(file, read_description(path), where=str(path))


def _random(*shape: int, seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Files of ours with everything that says so removed.


def stripped_tflite(bundle: Path, folder: Path) -> Path:
    from targets.flatbuffer import Flatbuffer

    file = Flatbuffer((bundle / "edge_s.w8a8.tflite").read_bytes())
    file.drop_unused()  # our note among it
    path = folder / "peer.tflite"
    path.write_bytes(file.pack())
    return path


def stripped_onnx(run: Path, folder: Path) -> tuple[Path, Path]:
    """The fp32 file of ours, and the same network from its first convolution on: floats, channels first, no note."""
    import onnx

    bundle = build(run, target="onnx", out=folder / "out")
    ours = bundle / "edge_s.fp32.onnx"
    model = onnx.load(str(ours))
    first = next(place for place, node in enumerate(model.graph.node) if node.op_type == "Conv")
    picture = model.graph.node[first].input[0]
    del model.graph.node[:first]
    del model.metadata_props[:]
    model.graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info(picture, onnx.TensorProto.FLOAT, ["batch", 3, 32, 32])
    )
    path = folder / "peer.onnx"
    onnx.save(model, str(path))
    return ours, path


def description_of(spec: ModelSpec, *, exchanged: bool = False) -> str:
    landmarks = spec.output("landmarks5")
    names = ("smile", "gender") if exchanged else ("gender", "smile")
    return "\n".join(
        [
            '[[outputs]]\nname = "landmarks5"\ntask = "landmarks5"\ncoordinates = "offsets"',
            f"mean_shape = {[list(point) for point in landmarks.mean_shape]}",
            *(
                f'[[outputs]]\nname = "{name}"\ntask = "{task}"\nvalues = "logits"\n'
                f"classes = {list(TASKS[task].classes)}"
                for name, task in zip(names, ("gender", "smile"), strict=True)
            ),
        ]
    )


def evaluated(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = main(["eval", *words, "--data", "synthetic:24@val", "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0, answer
    return answer


def test_our_tflite_without_its_note_scores_the_same(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    peer, spec = stripped_tflite(bundle_folder, tmp_path), open_model(bundle_folder).spec
    (tmp_path / "right.toml").write_text('[input]\ncolour = "RGB"\n' + description_of(spec), encoding="utf-8")
    (tmp_path / "exchanged.toml").write_text(
        '[input]\ncolour = "RGB"\n' + description_of(spec, exchanged=True), encoding="utf-8"
    )

    ours = evaluated([str(bundle_folder)], capsys)
    theirs = evaluated([str(peer), "--spec", str(tmp_path / "right.toml")], capsys)
    exchanged = evaluated([str(peer), "--spec", str(tmp_path / "exchanged.toml")], capsys)

    assert theirs["tasks"] == ours["tasks"]
    assert theirs["precision"] == "w8a8"
    # Twin: with two outputs exchanged the answers are others.
    assert exchanged["tasks"] != ours["tasks"]


@pytest.mark.slow
def test_our_onnx_with_a_float_input_channels_first_answers_the_same(run_folder: Path, tmp_path: Path) -> None:
    ours, peer = stripped_onnx(run_folder, tmp_path)
    spec = open_model(ours).spec
    expected = open_model(ours).run(PICTURES)
    path = tmp_path / "peer.toml"

    def answers(picture: str, *, exchanged: bool = False) -> dict[str, NDArray[np.float32]]:
        path.write_text(picture + description_of(spec, exchanged=exchanged), encoding="utf-8")
        return open_to_score(peer, described=path).run(PICTURES)

    found = answers(INPUT)
    # The same arithmetic on the same values; ONNX Runtime may add in another order once the graph begins elsewhere.
    assert all(np.allclose(found[name], values, rtol=0, atol=1e-5) for name, values in expected.items())
    for wrong in (
        answers(INPUT.replace("RGB", "BGR")),
        answers(INPUT.replace("64.0", "128.0")),
        answers(INPUT, exchanged=True),
    ):
        assert not all(np.allclose(wrong[name], values, rtol=0, atol=1e-3) for name, values in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(("target", "picture"), [("openvino", ""), ("onnx", ""), ("ios", "mean = [0]\nstd = [1]\n")])
def test_every_format_answers_through_a_description(
    target: str, picture: str, run_folder: Path, tmp_path: Path
) -> None:
    ours = open_model(build(run_folder, target=target, out=tmp_path / "out"))
    expected = ours.run(PICTURES)
    path = tmp_path / "peer.toml"
    file = next(file for file in (tmp_path / "out").rglob("*w8a8*") if file.suffix in (".xml", ".onnx", ".mlpackage"))

    def answers(*, exchanged: bool = False) -> dict[str, NDArray[np.float32]]:
        text = f'[input]\ncolour = "RGB"\n{picture}' + description_of(ours.spec, exchanged=exchanged)
        path.write_text(text, encoding="utf-8")
        return open_to_score(file, described=path).run(PICTURES)

    assert all(np.array_equal(values, expected[name]) for name, values in answers().items())
    executed: Any = ours
    if target != "ios":  # edgeface's own executor says nothing of a device
        assert sum(n for counts in executed.operations.values() for n in counts.values()) >= 8, "edge_s has 8 layers"
    assert not np.array_equal(answers(exchanged=True)["gender"], expected["gender"])


def test_file_that_nobody_described_is_refused_with_a_form_to_fill_in(bundle_folder: Path, tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("Flatten", ["x"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "peer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 192])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "peer.onnx"
    onnx.save(model, str(path))

    with pytest.raises(UnsupportedError, match=r"--spec") as caught:
        open_to_score(path)
    message = str(caught.value)
    assert "float32 (1, 3, 8, 8)" in message
    assert "float32 (1, 192)" in message
    form = tomllib.loads(message.partition("FILE.toml")[2])
    assert form["input"]["layout"] == "NCHW"
    assert [output["name"] for output in form["outputs"]] == ["y"]
    # A file of ours, and one whose outputs bear the tasks' names, needs none.
    assert open_to_score(bundle_folder).spec.outputs
    assert open_to_score(stripped_tflite(bundle_folder, tmp_path)).spec.outputs
    assert open_model(path).prepare(0)() is None, "it can be timed all the same"


def test_the_form_as_it_stands_is_refused(tmp_path: Path) -> None:
    file = File({"y": _random(6, 2)})
    path = tmp_path / "form.toml"
    path.write_text(template(file.path, file.inputs, file.outputs), encoding="utf-8")

    with pytest.raises(ConfigError, match=r"input\.mean"):
        read_description(path)


def test_a_checkpoint_takes_no_description(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "peer.toml").write_text(INPUT, encoding="utf-8")
    with pytest.raises(UsageError, match="--spec"):
        open_model(run_folder, described=tmp_path / "peer.toml")


# From pictures to the file's input.


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_float_input_is_the_naive_loop(layout: str, colour: str) -> None:
    mean, std = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)
    form = InputDescription(colour=colour, mean=mean, std=std, size=32, layout=layout, dtype="float32")

    found = to_input(PICTURES[:2], form)

    expected = np.empty_like(found)
    for row, picture in enumerate(PICTURES[:2]):
        for y in range(32):
            for x in range(32):
                for channel in range(3):
                    value = float(picture[y, x, channel if colour == "RGB" else 2 - channel])
                    place = (row, channel, y, x) if layout == "NCHW" else (row, y, x, channel)
                    expected[place] = (value - mean[channel]) / std[channel]
    assert np.allclose(found, expected, rtol=1e-6, atol=0)
    other = InputDescription(
        colour="RGB" if colour == "BGR" else "BGR", mean=mean, std=std, layout=layout, dtype="float32"
    )
    assert not np.allclose(to_input(PICTURES[:2], other), expected)


def test_integer_inputs_hold_pixels_or_codes() -> None:
    plain = InputDescription(colour="RGB", layout="NHWC", dtype="int8")
    coded = InputDescription(colour="RGB", layout="NHWC", dtype="int8", mean=(127.5,), std=(127.5,))

    assert np.array_equal(to_input(PICTURES, plain).astype(int), PICTURES.astype(int) - 128)
    # The scale that converters choose for -1 to 1; half a code is how far rounding may be off, and -128 + 127 ties.
    codes = to_input(PICTURES, coded, grid=(2 / 255, 0)).astype(int)
    assert np.abs(codes - (PICTURES.astype(int) - 127.5)).max() <= 0.5 + 1e-3
    assert to_input(PICTURES, InputDescription(colour="RGB", layout="NHWC", dtype="uint8")).dtype == np.uint8


def test_grey_is_the_luma_in_one_channel() -> None:
    found = to_input(PICTURES, InputDescription(colour="grey", layout="NCHW", dtype="uint8"))

    red, green, blue = (PICTURES[..., channel].astype(float) for channel in range(3))
    assert found.shape == (6, 1, 32, 32)
    assert np.abs(found[:, 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 0.5 + 1e-4


# From the file's outputs to the tasks.


def test_landmarks_in_pixels_of_a_larger_set_become_ours(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 32, (6, 68, 3)).astype(np.float32)
    planar = points.transpose(0, 2, 1).reshape(6, -1)
    text = """
[[outputs]]
name = "y"
task = "landmarks5"
coordinates = "pixels"
dimensions = 3
order = "{order}"
points = [[36, 39], [42, 45], [30], [48], [54]]
"""
    runner = described(File({"y": planar}), text.format(order="planar"), tmp_path)

    found = decode(runner.spec, runner.run(PICTURES))["landmarks5"]

    flat = points[..., :2] / 32
    expected = [(flat[:, 36] + flat[:, 39]) / 2, (flat[:, 42] + flat[:, 45]) / 2, flat[:, 30], flat[:, 48], flat[:, 54]]
    assert np.allclose(found, np.stack(expected, axis=1), atol=1e-6)
    runner = described(File({"y": planar}), text.format(order="xy"), tmp_path)
    assert not np.allclose(decode(runner.spec, runner.run(PICTURES))["landmarks5"], np.stack(expected, axis=1))


def test_landmarks_scale_and_offset_bring_other_ranges_to_the_crop(tmp_path: Path) -> None:
    text = '[[outputs]]\nname = "y"\ntask = "landmarks5"\ncoordinates = "crop"\nscale = 0.5\noffset = 0.5\n'
    values = np.random.default_rng(0).uniform(-1, 1, (6, 10)).astype(np.float32)
    runner = described(File({"y": values}), text, tmp_path)

    found = decode(runner.spec, runner.run(PICTURES))["landmarks5"]

    assert np.allclose(found, (values.reshape(6, 5, 2) + 1) / 2, atol=1e-6)


def _classes(values: str, classes: list[str], task: str, *, part: str = "") -> str:
    return f'[[outputs]]\nname = "y"\ntask = "{task}"\nvalues = "{values}"\nclasses = {json.dumps(classes)}\n{part}\n'


def test_classes_are_put_into_our_order(tmp_path: Path) -> None:
    logits = _random(6, 4)
    text = _classes("logits", ["dark", "", "none", "eyeglasses"], "glasses3")

    found = described(File({"y": logits}), text, tmp_path).run(PICTURES)["glasses3"]

    assert np.array_equal(found, logits[:, [2, 3, 0]])
    other = described(File({"y": logits}), text.replace('"dark", ""', '"", "dark"'), tmp_path).run(PICTURES)
    assert not np.array_equal(other["glasses3"], found)


def test_two_classes_of_theirs_that_are_one_of_ours_add_their_shares(tmp_path: Path) -> None:
    shares = np.exp(_random(6, 3))
    shares /= shares.sum(1, keepdims=True)
    runner = described(
        File({"y": shares}), _classes("probabilities", ["glasses", "none", "glasses"], "glasses"), tmp_path
    )

    found = np.exp(runner.run(PICTURES)["glasses"])

    assert np.allclose(found, np.stack([shares[:, 1], shares[:, 0] + shares[:, 2]], axis=1), rtol=1e-5)


@pytest.mark.parametrize(("label", "sign"), [("smiling", 1), ("not_smiling", -1)])
def test_one_value_speaks_for_the_class_it_is_said_to(label: str, sign: int, tmp_path: Path) -> None:
    logits = _random(6, 1)
    shares = 1 / (1 + np.exp(-logits))

    for values, given in (("logits", logits), ("probabilities", shares)):
        runner = described(File({"y": given}), _classes(values, [label], "smile"), tmp_path)
        found = runner.run(PICTURES)["smile"]
        assert np.allclose(found[:, 1] - found[:, 0], sign * logits[:, 0], atol=1e-4)
        assert np.array_equal(decode(runner.spec, {"smile": found})["smile"], (sign * logits[:, 0] > 0).astype(int))


def test_slices_of_one_output_serve_several_tasks(tmp_path: Path) -> None:
    values = _random(6, 7)
    text = _classes("logits", ["male", "female"], "gender", part="slice = [0, 2]") + _classes(
        "logits", list(TASKS["pose"].classes), "pose", part="slice = [2, 7]"
    )

    found = described(File({"y": values}), text, tmp_path).run(PICTURES)

    assert np.array_equal(found["gender"], values[:, :2])
    assert np.array_equal(found["pose"], values[:, 2:])
    assert not np.array_equal(found["gender"], values[:, 2:4])


def test_years_keep_their_value(tmp_path: Path) -> None:
    years = np.array([[0.0], [0.315], [0.31], [1.0], [1.2], [-0.1]], np.float32)
    text = '[[outputs]]\nname = "y"\ntask = "age"\nvalues = "years"\nscale = 100.0\n'
    runner = described(File({"y": years}), text, tmp_path)

    found = decode(runner.spec, runner.run(PICTURES))["age"]

    # Outside of 0 to 100 the nearest year that has a class; 1e-3 year is the float32 of the logarithms.
    assert np.allclose(found, [0, 31.5, 31, 100, 100, 0], atol=1e-3)


def test_attributes_and_scores_are_reordered_and_scaled(tmp_path: Path) -> None:
    names = list(TASKS["attributes"].classes)
    shares = 1 / (1 + np.exp(-_random(6, 4)))
    runner = described(File({"y": shares}), _classes("probabilities", names[::-1], "attributes"), tmp_path)
    assert np.allclose(1 / (1 + np.exp(-runner.run(PICTURES)["attributes"])), shares[:, ::-1], atol=1e-5)

    score = described(
        File({"y": _random(6, 1)}),
        '[[outputs]]\nname = "y"\ntask = "beauty_score"\nscale = 0.25\noffset = -0.25\n',
        tmp_path,
    )
    assert np.allclose(score.run(PICTURES)["beauty_score"], _random(6, 1) * 0.25 - 0.25)


def test_lsb_is_known_where_values_pass_untouched(tmp_path: Path) -> None:
    file = File({"y": _random(6, 2)})
    file.outputs = (Port(name="y", dtype="int8", shape=(1, 2), grid=(0.5, 3)),)

    assert described(file, _classes("logits", ["female", "male"], "gender"), tmp_path).grids == {"gender": (0.5, 3)}
    assert described(file, _classes("probabilities", ["female", "male"], "gender"), tmp_path).grids == {}


# What is refused.

GENDER = _classes("logits", ["male", "female"], "gender")


@pytest.mark.parametrize(
    ("picture", "outputs", "where"),
    [
        ("", GENDER, "input.colour"),
        ('[input]\ncolour = "RGB"\n', GENDER, "input.mean"),
        ('[input]\ncolour = "RGB"\nmean = [1.0]\n', GENDER, "input.std"),
        ('[input]\ncolour = "RGB"\nmean = [1.0]\nstd = [0.0]\n', GENDER, "input.std"),
        ('[input]\ncolour = "RGB"\nmean = [1.0, 2.0]\nstd = [1.0]\n', GENDER, "input.mean"),
        (INPUT + 'layout = "NHWC"\n', GENDER, "input.layout"),
        (INPUT + "size = 64\n", GENDER, "input.layout"),
        (INPUT + 'dtype = "uint8"\n', GENDER, "input.dtype"),
        (INPUT.replace("RGB", "grey"), GENDER, "input.layout"),
        (INPUT, "", "no [[outputs]]"),
        (INPUT, GENDER.replace('"y"', '"z"'), "outputs[0].name"),
        (INPUT, GENDER.replace('"gender"', '"gendre"'), "Did you mean 'gender'?"),
        (INPUT, GENDER + GENDER, "a second time"),
        (INPUT, GENDER.replace("logits", "odds"), "outputs[0].values"),
        (INPUT, GENDER.replace('"male"', '"man"'), "outputs[0].classes"),
        (INPUT, GENDER.replace('"male"', '"female"'), "no 'male'"),
        (INPUT, GENDER.replace('["male", "female"]', '["male"]'), "1 labels"),
        (INPUT, GENDER + "slice = [1, 9]\n", "outputs[0].slice"),
        (INPUT, GENDER + "threshold = 2.0\n", "outputs[0].threshold"),
        (INPUT, '[[outputs]]\nname = "y"\ntask = "landmarks5"\n', "outputs[0].coordinates"),
        (INPUT, '[[outputs]]\nname = "y"\ntask = "landmarks5"\ncoordinates = "crop"\n', "outputs[0].points"),
        (INPUT, '[[outputs]]\nname = "y"\ntask = "landmarks5"\ncoordinates = "offsets"\n', "outputs[0].mean_shape"),
        (INPUT, '[[outputs]]\nname = "y"\ntask = "age"\nvalues = "years"\n', "outputs[0].values"),
        (INPUT, '[[outputs]]\nname = "y"\ntask = "beauty_score"\n', "outputs[0].slice"),
    ],
)
def test_what_is_wrong_or_left_open_is_named(picture: str, outputs: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        described(File({"y": _random(6, 2)}), outputs, tmp_path, picture=picture)
    assert where in str(caught.value)
    # Twin: the whole description is accepted.
    assert described(File({"y": _random(6, 2)}), GENDER, tmp_path).spec.input_px == 32


def test_everything_that_is_left_open_is_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        described(File({"y": _random(6, 2)}), '[[outputs]]\nname = "y"\ntask = "gender"\n', tmp_path, picture="")
    places = {fault.where for fault in caught.value.faults}
    assert {"input.colour", "input.mean", "input.std", "outputs[0].values", "outputs[0].classes"} <= places
    assert caught.value.exit_code == 2


def test_sides_that_are_not_fixed_must_be_said(tmp_path: Path) -> None:
    taken = Port(name="in", dtype="float32", shape=(None, 3, None, None))
    with pytest.raises(ConfigError, match=r"input\.size"):
        described(File({"y": _random(6, 2)}, taken=taken), GENDER, tmp_path)

    runner = described(File({"y": _random(6, 2)}, taken=taken), GENDER, tmp_path, picture=INPUT + "size = 48\n")
    assert runner.spec.input_px == 48


@pytest.mark.parametrize(
    ("name", "content"),
    [("peer.toml", "[input"), ("peer.json", "{"), ("peer.json", "[]"), ("peer.txt", ""), ("absent.toml", None)],
)
def test_broken_description_is_refused(name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_description(tmp_path / name)


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    (tmp_path / "peer.toml").write_text(INPUT + GENDER, encoding="utf-8")
    (tmp_path / "peer.json").write_text(json.dumps(tomllib.loads(INPUT + GENDER)), encoding="utf-8")

    assert read_description(tmp_path / "peer.json") == read_description(tmp_path / "peer.toml")


def test_pictures_reach_the_file_in_its_form(tmp_path: Path) -> None:
    file = File({"y": _random(6, 2)})
    runner = described(file, GENDER, tmp_path)
    runner.run(PICTURES)
    runner.prepare(0)()

    assert [seen.shape for seen in file.seen] == [(6, 3, 32, 32), (1, 3, 32, 32)]
    assert math.isclose(float(file.seen[0][0, 2, 5, 7]), (float(PICTURES[0, 5, 7, 2]) - 128) / 64)
