"""Whatever can be opened can be checked: files of ours alone, files of others, checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeface.cli.main import main
from edgeface.errors import ModelError, UnsupportedError, UsageError
from targets import interpreter
from targets.build import build
from targets.devices import agent, apart, open_device
from targets.devices.answer import Check
from targets.devices.check import check
from targets.devices.host import Host
from targets.devices.job import PLAIN, subject
from targets.devices.shipped import Shipped, choose_faces, open_to_check
from targets.flatbuffer import Flatbuffer

from ..test_description import description_of, stripped_onnx
from .conftest import FILES, Arrays, Board, Result, edited
from .test_arm64 import with_another_weight

HOSTILE = "-o $(touch x); é.tflite"


def stripped(path: Path, to: Path) -> Path:
    """A file of ours without the note that says so."""
    file = Flatbuffer(path.read_bytes())
    file.drop_unused()
    to.write_bytes(file.pack())
    return to


@pytest.fixture(scope="session")
def floats(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 network with a float input, as others export theirs, under a name that means something to a shell."""
    folder = tmp_path_factory.mktemp("floats")
    ours = build(run_folder, precisions=("fp32",), out=folder / "out", float_input=True)
    return stripped(ours / FILES["fp32"], folder / HOSTILE)


def checked(shipped: Shipped, device: Any, *, n: int = 8, runtime: str | None = None) -> Check:
    return check(shipped, device, faces=choose_faces(shipped, n=n, root=Path()), runtime=runtime)


def spoken(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


class Altered(Board):
    """Runs the file with one weight changed, and says that it ran the right one."""

    def run(self, job: Path, *, told: Callable[[str], None]) -> None:
        (model,) = job.glob("*.tflite")
        true = subject(model, runtime="tflite-xnnpack").sha256
        model.write_bytes(with_another_weight(model))
        super().run(job, told=told)
        result = json.loads((job / "result.json").read_text(encoding="utf-8"))
        for entry in result["files"]:
            entry["sha256"] = true
        (job / "result.json").write_text(json.dumps(result), encoding="utf-8")


# Files of ours.


def test_file_of_a_bundle_is_held_against_its_golden_answers(bundle: Path) -> None:
    shipped = open_to_check(bundle / FILES["w8a8"])

    found = checked(shipped, Board(), n=24)

    assert (shipped.kind, [row.file for row in found.rows]) == ("bundle", [FILES["w8a8"]] * 2)
    assert (found.outcome, found.bit_identical, found.left_out) == ("PASS", True, ())
    assert all(row.golden is not None for row in found.rows)
    assert found.as_json()["bundle"] == str(bundle / FILES["w8a8"])
    assert "the answers it was shipped with" in found.compared


def test_file_of_ours_alone_is_held_against_the_same_kernels_here(bundle: Path, tmp_path: Path) -> None:
    shipped = open_to_check(Path(shutil.copy(bundle / FILES["w8a8"], tmp_path / "a.tflite")))

    found = checked(shipped, Board())

    assert (found.outcome, found.bit_identical, found.faces) == ("PASS", True, 8)
    own = found.rows[0]
    assert (own.precision, own.identical, own.golden, own.reference) == ("w8a8", True, None, "tflite-xnnpack")
    assert found.main is not None
    assert found.main.tasks.keys() == {"landmarks5", "gender", "smile"}
    payload = found.as_json()
    assert payload["not_compared"] == ["no golden answers: those come with a bundle"]
    assert payload["kind"] == "file"


def test_one_step_is_noticed_without_golden_answers_twin(bundle: Path, tmp_path: Path) -> None:
    def step(result: Result, arrays: Arrays) -> Arrays:
        smile = arrays["smile"].copy()
        smile[3, 1] += 1 if smile[3, 1] < 127 else -1
        return {**arrays, "smile": smile}

    shipped = open_to_check(Path(shutil.copy(bundle / FILES["w8a8"], tmp_path / "a.tflite")))

    found = checked(shipped, Board(edited(step)))

    assert (found.outcome, found.bit_identical) == ("FAIL", False)
    assert "by up to 1 LSB, where none may" in found.reason


# Files of others.


def test_file_of_others_answers_inputs_of_its_own_form(floats: Path) -> None:
    seen: list[tuple[set[str], Any]] = []

    def look(job: Path) -> None:
        ordered = json.loads((job / "job.json").read_text(encoding="utf-8"))
        seen.append(({path.name for path in job.iterdir()}, np.load(job / ordered["pictures"])))

    shipped = open_to_check(floats)
    found = checked(shipped, Board(look))

    assert (found.outcome, found.reason, found.bit_identical) == ("PASS", "", None)
    assert [row.runtime for row in found.rows] == ["tflite-xnnpack", "tflite-builtin"]
    assert all(row.here is not None and row.here.outputs["gender"].n == 16 for row in found.rows)
    assert all(row.tasks == {} for row in found.rows)
    assert found.source == "8 random inputs of its own form, float32 (1, 32, 32, 3)"
    assert any("no task metrics" in words for words in found.left_out)
    names, inputs = seen[0]
    assert "inputs.npy" in names
    assert "pictures.npy" not in names
    assert (inputs.shape, inputs.dtype) == ((8, 32, 32, 3), np.float32)
    # Whatever it is called here, its name means nothing to the device's shell.
    assert {name for name in names if name.endswith(".tflite")} == {
        f"model-{subject(floats, runtime='tflite-xnnpack').sha256[:12]}.tflite"
    }


@pytest.mark.parametrize("described", [False, True])
def test_another_weight_there_fails_twin(described: bool, floats: Path, shipped: Shipped, tmp_path: Path) -> None:
    spec = _described(shipped, tmp_path) if described else None

    found = checked(open_to_check(floats, described=spec), Altered())

    assert found.outcome == "FAIL"
    assert "dB from what was expected" in found.reason
    assert found.rows[0].outcome == "FAIL"


def _described(shipped: Shipped, folder: Path, *, exchanged: bool = False, picture: str = "") -> Path:
    path = folder / f"peer-{exchanged}.toml"
    given = picture or '[input]\ncolour = "RGB"\nmean = [128.0]\nstd = [64.0]\n'
    path.write_text(given + description_of(shipped.spec, exchanged=exchanged), encoding="utf-8")
    return path


def test_described_file_is_scored_as_ours_is(bundle: Path, floats: Path, shipped: Shipped, tmp_path: Path) -> None:
    ours = checked(open_to_check(bundle / FILES["fp32"]), Board(), n=24).main
    theirs = checked(open_to_check(floats, described=_described(shipped, tmp_path)), Board(), n=24).main
    exchanged = checked(
        open_to_check(floats, described=_described(shipped, tmp_path, exchanged=True)), Board(), n=24
    ).main

    assert ours is not None
    assert theirs is not None
    assert exchanged is not None
    assert theirs.tasks.keys() == ours.tasks.keys()
    for name, scores in theirs.tasks.items():
        # The picture is standardized here or in the file: the last digits of floats.
        assert scores.there == pytest.approx(ours.tasks[name].there, rel=1e-3)
        assert scores.worse_by == 0.0
    assert exchanged.tasks["gender"].there != ours.tasks["gender"].there or (
        exchanged.tasks["smile"].there != ours.tasks["smile"].there
    )


def test_file_that_takes_pictures_is_given_faces(bundle: Path, tmp_path: Path) -> None:
    shipped = open_to_check(stripped(bundle / FILES["w8a8"], tmp_path / "peer.tflite"))

    found = checked(shipped, Board())

    assert (found.outcome, found.bit_identical, found.source) == ("PASS", True, "8 drawn faces")
    assert found.rows[0].identical, "it computes integers alone, all of them in XNNPACK"
    assert found.rows[0].here is not None
    assert found.rows[0].here.outputs.keys() == {"landmarks5", "gender", "smile"}
    # Named after tasks, these two need no description; what landmarks are offsets from only one can tell.
    assert found.rows[0].tasks.keys() == {"gender", "smile"}


def test_file_with_float_layers_need_not_be_identical(bundle: Path, tmp_path: Path) -> None:
    (part,) = open_to_check(stripped(bundle / FILES["fp32"], tmp_path / "peer.tflite")).parts.values()

    assert (part.precision, part.floor, part.exact) == ("fp32", "fp32", False)


def test_faces_for_a_file_that_nobody_described_are_refused_with_a_form(
    floats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = spoken(["check", str(floats), "--on", "host", "--data", "synthetic:8@val"], capsys)

    assert code == 2
    assert "--spec" in answer["error"]["do"]
    assert "[[outputs]]" in answer["error"]["do"]


def test_broken_file_is_tried_apart(floats: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(floats.read_bytes()[:3000])

    with pytest.raises(ModelError, match=r"cut\.tflite"):
        open_to_check(path)


@pytest.mark.parametrize("name", ["a.tflite", "edge_s.w8a8.tflite", "9-b_c.tflite"])
def test_plain_name_is_kept(name: str) -> None:
    assert PLAIN.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    [HOSTILE, "-rf.tflite", ".tflite", "a b.tflite", "a\n.tflite", "é.tflite", "a.tflite\n", "x" * 200 + ".tflite"],
)
def test_any_other_name_is_replaced(name: str) -> None:
    assert not PLAIN.fullmatch(name)


class Fake:
    """An interpreter whose outputs lead with a batch, or not."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def set_tensor(self, index: int, values: Any) -> None:
        total = np.float32(values.sum())
        self.values = {1: np.full((1, 2), total), 2: np.full((3,), total), 3: total}

    def invoke(self) -> None:
        pass

    def get_tensor(self, index: int) -> Any:
        return np.asarray(self.values[index])


def test_outputs_without_a_batch_are_whole_there_and_here() -> None:
    shapes = {"batched": [1, 2], "flat": [3], "file": []}
    outputs = {
        name: {"index": index, "shape": np.array(shape), "dtype": np.float32}
        for index, (name, shape) in enumerate(shapes.items(), start=1)
    }
    given = np.arange(4, dtype=np.float32).reshape(2, 2)

    there = agent.run(Fake(), 0, outputs, given)
    slots = {name: {**slot, "shape": shapes[name]} for name, slot in outputs.items()}
    here = interpreter.run(Fake(), {"inputs": [{"index": 0}], "outputs": slots}, given)

    assert {name: values.shape for name, values in there.items()} == {"batched": (2, 2), "flat": (2, 3), "file": (2,)}
    for name, values in there.items():
        assert np.array_equal(values, here[name])
        assert (values[0] == 1.0).all()
        assert (values[1] == 5.0).all()


def test_outputs_of_every_name_are_written(tmp_path: Path) -> None:
    """numpy.savez has arguments of its own, which an output may be called like."""
    answers = {name: np.full((2, 1), place) for place, name in enumerate(("file", "allow_pickle", "a/b:0", "é"))}

    agent.save(tmp_path / "0.npz", answers)

    with np.load(tmp_path / "0.npz", allow_pickle=False) as found:
        assert set(found.files) == set(answers)
        assert all(np.array_equal(found[name], values) for name, values in answers.items())


# One runtime.


def test_one_runtime_is_picked(bundle: Path, shipped: Shipped) -> None:
    found = checked(shipped, Host(), n=24, runtime="tflite-builtin")

    (row,) = found.rows
    assert (row.runtime, row.reference, row.outcome) == ("tflite-builtin", "tflite-xnnpack", "PASS")


def test_runtime_that_the_device_has_not_is_not_run(shipped: Shipped) -> None:
    found = checked(shipped, Board(), n=24, runtime="tensorflow")

    assert found.outcome == "NOT_RUN"
    assert "tensorflow is not run on board, tflite-xnnpack and tflite-builtin are" in found.reason


@pytest.mark.parametrize(("runtime", "error"), [("openvino", UnsupportedError), ("tflight", UsageError)])
def test_runtime_of_another_format_is_refused(runtime: str, error: type[Exception], shipped: Shipped) -> None:
    with pytest.raises(error):
        checked(shipped, Board(), n=24, runtime=runtime)


# Checkpoints, and what runs nowhere but here.


@pytest.mark.slow
def test_checkpoint_is_held_against_a_second_process(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = spoken(["check", str(run_folder), "--on", "host", "--n", "8"], capsys)

    (row,) = answer["files"]
    assert (code, answer["outcome"], answer["kind"]) == (0, "PASS", "checkpoint")
    assert (row["runtime"], row["precision"], row["reference"], row["golden"]) == ("torch", "fake-quant", "torch", None)
    assert row["bit_identical"] is True
    assert row["tasks"].keys() == {"landmarks5", "gender", "smile"}
    assert row["latency"]["median_ms"] > 0
    assert any("no other kernels" in words for words in answer["not_compared"])


def test_second_process_with_other_answers_fails_twin(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(path: Path, inputs: Any, **options: Any) -> apart.Asked:
        from targets.runners import open_model

        codes = {name: values * np.float32(1.01) for name, values in open_model(path).run(inputs).items()}
        return apart.Asked(codes=codes, latency={"median_ms": 1.0})

    monkeypatch.setattr(apart, "ask_apart", other)

    found = checked(open_to_check(run_folder), Host())

    assert found.outcome == "FAIL"
    assert "where 60 dB are asked" in found.reason


def test_checkpoint_is_not_run_on_other_devices(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from targets import devices

    arm64 = SimpleNamespace(name="arm64", emulated=True, detail="cortex-a72")
    monkeypatch.setattr(devices, "open_device", lambda on, *, cpu: arm64)

    code, answer = spoken(["check", str(run_folder), "--on", "arm64", "--n", "4"], capsys)

    assert (code, answer["outcome"], answer["tasks"], answer["latency"]) == (3, "NOT_RUN", {}, None)
    assert "a checkpoint runs in torch, and not on arm64: build it (edgeface build)" in answer["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnx", "ios"])
def test_file_of_every_format_alone_is_held_against_a_second_process(
    target: str, run_folder: Path, tmp_path: Path
) -> None:
    folder = build(run_folder, target=target, precisions=("w8a8",), out=tmp_path / "out")
    (folder / "manifest.json").unlink()
    file = next(path for path in sorted(folder.iterdir()) if path.suffix in (".xml", ".onnx", ".mlpackage"))

    found = checked(open_to_check(file), open_device("host"))

    own = found.rows[0]
    assert (own.outcome, own.reference, own.golden, own.bit_identical) == ("PASS", own.runtime, None, True), own.reason
    assert own.tasks.keys() == {"landmarks5", "gender", "smile"}


@pytest.mark.slow
def test_onnx_of_others_channels_first_is_given_its_own_form(run_folder: Path, tmp_path: Path) -> None:
    _, peer = stripped_onnx(run_folder, tmp_path)

    (row,) = checked(open_to_check(peer), Host()).rows
    assert (row.outcome, row.tasks, row.bit_identical) == ("PASS", {}, True), row.reason

    found = checked(open_to_check(peer), Board())
    assert (found.outcome, ".onnx files are not run on board" in found.reason) == ("NOT_RUN", True)


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_what_has_a_spec_of_its_own_takes_no_description(kind: str, run_folder: Path, bundle: Path) -> None:
    with pytest.raises(UsageError, match="--spec"):
        open_to_check(run_folder if kind == "run" else bundle, described=Path("x.toml"))


def test_precision_that_a_file_has_not_is_a_usage_error(bundle: Path) -> None:
    assert open_to_check(bundle / FILES["fp32"], precisions=("fp32",)).parts
    with pytest.raises(UsageError, match="w8a8"):
        open_to_check(bundle / FILES["fp32"], precisions=("w8a8",))
