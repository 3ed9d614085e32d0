"""A device that answers as expected passes; one that lies is caught, and what it did is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeface.cli.main import main
from edgeface.errors import BudgetError, DataError, DeviceError, MissingToolError, ModelError, UsageError
from edgeface.evaluate import evaluate, evaluation_pack
from edgeface.files import sha256_file
from targets import devices
from targets.devices import job as jobs
from targets.devices import open_device
from targets.devices.answer import Check
from targets.devices.check import check
from targets.devices.job import DeviceRunner
from targets.devices.shipped import Faces, Shipped, choose_faces, open_bundle
from targets.judge import judge, must_be_identical
from targets.runners import open_model

from .conftest import FILES, Arrays, Board, Result, edited


def checked(shipped: Shipped, faces: Faces, tamper: Callable[[Path], None] = lambda job: None) -> Check:
    return check(shipped, Board(tamper), faces=faces)


def spoken(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


# What honest devices get.


def test_honest_device_passes_bit_identical(bundle: Path, faces: Faces) -> None:
    found = checked(open_bundle(bundle), faces)

    assert (found.outcome, found.reason, found.bit_identical, found.faces) == ("PASS", "", True, 32)
    rows = {(row.file, row.runtime): row for row in found.rows}
    assert rows.keys() == {(name, f"tflite-{kernels}") for name in FILES.values() for kernels in ("xnnpack", "builtin")}
    w8a8 = rows[FILES["w8a8"], "tflite-xnnpack"]
    assert w8a8.here is not None
    assert w8a8.golden is not None
    assert {name: (each.equal, each.max_lsb, each.n) for name, each in w8a8.here.outputs.items()} == {
        "landmarks5": (1.0, 0.0, 320),
        "gender": (1.0, 0.0, 64),
        "smile": (1.0, 0.0, 64),
    }
    assert {each.n for each in w8a8.golden.outputs.values()} == {240, 48}
    assert w8a8.latency is not None
    assert w8a8.latency["median_ms"] > 0
    # Builtin kernels are held against builtin kernels: against XNNPACK's answers they would not be equal.
    assert rows[FILES["w8a8"], "tflite-builtin"].bit_identical


def test_metrics_there_are_those_of_evaluation(bundle: Path, shipped: Shipped, faces: Faces) -> None:
    found = checked(shipped, faces).main
    assert found is not None
    pack = evaluation_pack("synthetic:32@test", shipped.spec, root=Path())
    evaluated = evaluate(open_model(bundle), pack)

    assert found.tasks.keys() == {"landmarks5", "gender", "smile"}
    for name, scores in found.tasks.items():
        assert scores.there == evaluated.tasks[name]
        assert (scores.here, scores.worse_by) == (scores.there, 0.0)
    other = evaluate(open_model(bundle), evaluation_pack("synthetic:31@test", shipped.spec, root=Path()))
    assert found.tasks["landmarks5"].there != other.tasks["landmarks5"]  # the twin


def test_emulated_device_is_never_timed(shipped: Shipped, faces: Faces) -> None:
    device = Board(lambda job: timed.append(json.loads((job / "job.json").read_text(encoding="utf-8"))["timed_runs"]))
    timed: list[int] = []
    device.emulated = True

    payload = check(shipped, device, faces=faces).as_json()

    assert (timed, payload["latency"], payload["emulated"]) == ([0], None, True)
    assert "emulated" in str(payload["latency_reason"])


def test_lost_device_is_not_run(shipped: Shipped, faces: Faces) -> None:
    def lose(job: Path) -> None:
        raise DeviceError("Connection reset by peer", where="board")

    found = checked(shipped, faces, lose)

    assert (found.outcome, found.bit_identical) == ("NOT_RUN", None)
    assert "Connection reset by peer" in found.reason
    assert {row.outcome for row in found.rows} == {"NOT_RUN"}


def test_files_of_other_formats_are_not_run_on_a_board(run_folder: Path, tmp_path: Path, faces: Faces) -> None:
    from targets.build import build

    folder = build(run_folder, target="onnx", precisions=("w8a8",), out=tmp_path)
    shipped = open_bundle(folder)

    found = checked(shipped, faces)
    assert found.outcome == "NOT_RUN"
    assert ".onnx files are not run on board, .tflite files are" in found.reason


# What liars get: their deed, and what is said of it.


def exchanged(result: Result, arrays: Arrays) -> Arrays:
    return {**arrays, "gender": arrays["smile"], "smile": arrays["gender"]}


def exchanged_grids(result: Result, arrays: Arrays) -> Arrays:
    outputs = result["files"][0]["outputs"]
    outputs["gender"], outputs["smile"] = outputs["smile"], outputs["gender"]
    return exchanged(result, arrays)


def one_step(result: Result, arrays: Arrays) -> Arrays:
    smile = arrays["smile"].copy()
    smile[3, 1] += 1 if smile[3, 1] < 127 else -1
    return {**arrays, "smile": smile}


def constant(result: Result, arrays: Arrays) -> Arrays:
    return {**arrays, "gender": np.repeat(arrays["gender"][:1], len(arrays["gender"]), axis=0)}


def as_float(result: Result, arrays: Arrays) -> Arrays:
    return {**arrays, "gender": arrays["gender"].astype(np.float32)}


def flat(result: Result, arrays: Arrays) -> Arrays:
    return {**arrays, "landmarks5": arrays["landmarks5"].reshape(-1, 10)}


def short(result: Result, arrays: Arrays) -> Arrays:
    return {name: values[:-1] for name, values in arrays.items()}


def without(result: Result, arrays: Arrays) -> Arrays:
    return {name: values for name, values in arrays.items() if name != "smile"}


def entry_of(change: Callable[[dict[str, Any]], None]) -> Callable[[Result, Arrays], None]:
    return lambda result, arrays: change(result["files"][0])


LIES: dict[str, tuple[Callable[[Result, Arrays], Arrays | None], str]] = {
    "outputs exchanged": (exchanged, "'gender' and 'smile' look exchanged"),
    "outputs exchanged with their grids": (exchanged_grids, r"output 'gender' has .*, which are those of 'smile'"),
    "one value one step off": (one_step, r"output 'smile' differs in 1\.562% of its values, by up to 1 LSB"),
    "one answer for all": (constant, "output 'gender' is the same for all 32 faces"),
    "another type": (as_float, "output 'gender' is float32"),
    "another shape": (flat, r"output 'landmarks5' is int8 \(32, 10\)"),
    "a row too few": (short, r"output '\w+' has 31 rows for 32 pictures"),
    "an output missing": (without, "output 'smile' is missing"),
    "an output unmentioned": (entry_of(lambda entry: entry["outputs"].pop("smile")), "output 'smile' is missing"),
    "another scale": (entry_of(lambda entry: entry["outputs"]["gender"].update(scale=0.5)), "'gender' has type, scale"),
    "another zero point": (entry_of(lambda entry: entry["outputs"]["smile"].update(zero_point=9)), "'smile' has type"),
    "a type that is told": (entry_of(lambda entry: entry["outputs"]["smile"].update(dtype="uint8")), "'smile' has"),
    "no grid at all": (entry_of(lambda entry: entry["outputs"].update(smile=None)), "its outputs are"),
    "another model": (entry_of(lambda entry: entry.update(sha256="ab" * 32)), "loaded another model: sha256 abababab"),
    "another file": (entry_of(lambda entry: entry.update(file="x.tflite")), r"in its place stands 'x\.tflite'"),
    "another runtime": (entry_of(lambda entry: entry.update(runtime="gpu")), "on 'gpu'"),
    "a fault of its own": (entry_of(lambda entry: entry.update(error="no such op")), "could not be run there: no such"),
    "a time that is none": (entry_of(lambda entry: entry["latency"].update(median_ms=-1)), "its latency is"),
    "a time without end": (entry_of(lambda entry: entry["latency"].update(p99_ms=float("inf"))), "its latency is"),
    "an entry that is none": (lambda result, arrays: result["files"].__setitem__(0, 7), "its entry is '7'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_file_is_caught_and_named(lie: str, shipped: Shipped, faces: Faces) -> None:
    change, words = LIES[lie]

    found = checked(shipped, faces, edited(change))

    row, other = found.rows
    assert (found.outcome, row.outcome, other.outcome) == ("FAIL", "FAIL", "PASS"), found.reason
    assert found.bit_identical is not True
    assert found.reason.startswith("edge_s.w8a8.tflite on tflite-xnnpack: ")
    assert re.search(words, found.reason), found.reason


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, 1), (-np.inf, 1)])
def test_not_a_number_is_named(value: float, count: int, bundle: Path, faces: Faces) -> None:
    def spoil(result: Result, arrays: Arrays) -> Arrays:
        gender = arrays["gender"].copy()
        gender[5, 0] = value
        return {**arrays, "gender": gender}

    found = checked(open_bundle(bundle, precisions=("fp32",)), faces, edited(spoil))

    assert found.outcome == "FAIL"
    assert f"output 'gender' holds NaN or infinity in {count} of 64 values" in found.reason
    assert found.rows[0].tasks == {}  # an argmax would have made a decision of it
    json.dumps(found.rows[1].as_json(), default=float)


def test_other_weights_in_float_are_noticed(bundle: Path, faces: Faces) -> None:
    def shift(result: Result, arrays: Arrays) -> Arrays:
        return {**arrays, "smile": arrays["smile"] * np.float32(1.01)}

    found = checked(open_bundle(bundle, precisions=("fp32",)), faces, edited(shift))

    assert found.outcome == "FAIL"
    assert "output 'smile' is 40.0 dB from what was expected, where 60 dB are asked" in found.reason


def test_exchanged_float_outputs_are_named(bundle: Path, faces: Faces) -> None:
    found = checked(open_bundle(bundle, precisions=("fp32",)), faces, edited(exchanged))

    assert "'gender' and 'smile' look exchanged" in found.reason


def test_output_that_stands_in_for_another_is_named(shipped: Shipped, faces: Faces) -> None:
    found = checked(shipped, faces, edited(lambda result, arrays: {**arrays, "gender": arrays["smile"]}))

    assert "it looks like 'smile'" in found.reason
    assert "exchanged" not in found.reason


def test_stale_result_is_refused(shipped: Shipped, faces: Faces, tmp_path: Path) -> None:
    """The device keeps what an earlier job left, and gives it out again."""
    kept = tmp_path / "kept"

    def keep(job: Path) -> None:
        shutil.copytree(job, kept)

    def replay(job: Path) -> None:
        for path in (kept / "result.json", *kept.glob("*.npz")):
            shutil.copy(path, job)

    assert checked(shipped, faces, keep).outcome == "PASS"
    found = checked(shipped, faces, replay)

    assert found.outcome == "FAIL"
    assert "a stale result" in found.reason
    assert all(row.judgement is None for row in found.rows)


def result_text(text: bytes) -> Callable[[Path], None]:
    return lambda job: (job / "result.json").write_bytes(text) and None


def truncated(job: Path) -> None:
    content = (job / "result.json").read_bytes()
    (job / "result.json").write_bytes(content[: len(content) // 2])


def linked(job: Path) -> None:
    (job / "result.json").replace(job / "elsewhere")
    os.symlink(job / "elsewhere", job / "result.json")


def another_schema(job: Path) -> None:
    result = json.loads((job / "result.json").read_text(encoding="utf-8"))
    (job / "result.json").write_text(json.dumps({**result, "schema": 2}), encoding="utf-8")


def half_the_files(job: Path) -> None:
    result = json.loads((job / "result.json").read_text(encoding="utf-8"))
    (job / "result.json").write_text(json.dumps({**result, "files": result["files"][:1]}), encoding="utf-8")


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (truncated, "not JSON, or cut short"),
        (result_text(b"\xff\xfe"), "not JSON"),
        (result_text(b"[" * 100_000), "not JSON"),
        (result_text(b"[]"), "a JSON list"),
        (result_text(b" " * (1 << 21)), "2,097,152 bytes"),
        (lambda job: (job / "result.json").unlink(), "there is none"),
        (linked, "not a plain file"),
        (another_schema, "schema '2'"),
        (half_the_files, "1 files"),
    ],
)
def test_result_that_cannot_be_read_is_refused(
    tamper: Callable[[Path], None], words: str, shipped: Shipped, faces: Faces
) -> None:
    found = checked(shipped, faces, tamper)

    assert (found.outcome, found.bit_identical) == ("FAIL", False)
    assert words in found.reason


def altered(job: Path) -> None:
    content = bytearray((job / "0.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (job / "0.npz").write_bytes(content)


def told(job: Path, **entry: str) -> None:
    result = json.loads((job / "result.json").read_text(encoding="utf-8"))
    result["files"][0].update(entry)
    (job / "result.json").write_text(json.dumps(result), encoding="utf-8")


def outside(job: Path) -> None:
    """The true answers, with their true digest, from another place."""
    (job.parent / "edgeface-test-outside.npz").write_bytes((job / "0.npz").read_bytes())
    told(job, answers="../edgeface-test-outside.npz")


def linked_answers(job: Path) -> None:
    (job / "0.npz").replace(job / "other")
    os.symlink(job / "other", job / "0.npz")


def vouched(job: Path) -> None:
    told(job, answers_sha256=sha256_file(job / "0.npz"))


def no_archive(job: Path) -> None:
    (job / "0.npz").write_bytes(b"PK\x03\x04 and nothing")
    vouched(job)


def pickled(job: Path) -> None:
    np.savez(job / "0.npz", **{name: np.array([print], dtype=object) for name in ("landmarks5", "gender", "smile")})
    vouched(job)


def promising(job: Path) -> None:
    """A header that promises 2^40 values, in a few bytes."""
    with zipfile.ZipFile(job / "0.npz", "w") as archive:
        for name in ("landmarks5", "gender", "smile"):
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array_header_1_0(
                    stream, {"descr": "|i1", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
                )
    vouched(job)


def bomb(job: Path) -> None:
    """Few bytes that unpack to many."""
    with zipfile.ZipFile(job / "0.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("landmarks5", "gender", "smile"):
            archive.writestr(f"{name}.npy", bytes(1 << 24))
    vouched(job)


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (altered, "'0.npz' are not those the result speaks of"),
        (outside, "no plain file name"),
        (lambda job: told(job, answers="/etc/passwd"), "no plain file name"),
        (lambda job: told(job, answers=".."), "no plain file name"),
        (lambda job: told(job, answers=""), "no plain file name"),
        (lambda job: told(job, answers="..\\0.npz"), "no plain file name"),
        (lambda job: told(job, answers="gone.npz"), "'gone.npz': there is none"),
        (linked_answers, "'0.npz': not a plain file"),
        (lambda job: (job / "0.npz").write_bytes(bytes(1 << 20)) and None, "'0.npz' have 1,048,576 bytes"),
        (no_archive, "'0.npz' cannot be read"),
        (pickled, "is object (1,)"),
        (promising, "(1048576, 1048576)"),
        (bomb, "is no array"),
    ],
)
def test_answer_file_that_is_not_what_it_should_be_is_refused(
    tamper: Callable[[Path], None], words: str, shipped: Shipped, faces: Faces
) -> None:
    found = checked(shipped, faces, tamper)

    assert [row.outcome for row in found.rows] == ["FAIL", "PASS"]
    assert words in found.rows[0].reason


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_outside() -> Iterator[None]:
    yield
    import tempfile

    (Path(tempfile.gettempdir()) / "edgeface-test-outside.npz").unlink(missing_ok=True)


def test_device_cannot_write_on_the_terminal(shipped: Shipped, faces: Faces) -> None:
    def escape(result: Result, arrays: Arrays) -> None:
        result["machine"] = {"model": "\x1b[2Jboard" + "!" * 1000, "detail": "me", "features": ["\x07"], "deep": {}}
        result["files"][0]["error"] = "\x1b[31mno"

    found = checked(shipped, faces, edited(escape))

    assert "\x1b" not in json.dumps(found.as_json(), default=float)
    assert "\\u001b" not in json.dumps(found.as_json(), default=float)
    assert (len(found.machine["model"]), found.machine["features"]) == (100, [" "])
    assert found.as_json()["device"]["detail"] == "a stand-in"  # type: ignore[index]
    assert "could not be run there:  [31mno" in found.reason


def test_job_folder_is_gone_afterwards(shipped: Shipped, faces: Faces) -> None:
    seen: list[Path] = []

    checked(shipped, faces, seen.append)

    assert seen
    assert not seen[0].exists()


# The rules.


def test_int8_must_be_identical_by_the_kernels_that_are() -> None:
    def asked(precision: str, runtime: str, reference: str, *, floats: bool = False) -> bool:
        return must_be_identical(precision, runtime, reference=reference, floats=floats)

    assert asked("w8a8", "tflite-xnnpack", "tflite-xnnpack")
    assert not asked("w8a8", "tflite-xnnpack", "tflite-xnnpack", floats=True)
    assert not asked("w8a8", "tflite-builtin", "tflite-builtin")
    assert not asked("w8a8", "tensorflow", "tflite-xnnpack")
    assert not asked("fp32", "tflite-xnnpack", "tflite-xnnpack")


def test_steps_are_counted_on_the_grid() -> None:
    expected = {"a": np.array([[10], [20], [30], [40]], np.int8)}
    found = {"a": np.array([[10], [22], [30], [37]], np.int8)}

    judged = judge(expected, found, precision="w8a8", grids={"a": (0.5, 4)}, identical=False)

    agreement = judged.outputs["a"]
    assert (agreement.equal, agreement.max_lsb, agreement.max_abs, agreement.n) == (0.5, 3.0, 1.5, 4)
    signal = 3.0**2 + 8.0**2 + 13.0**2 + 18.0**2
    assert agreement.sqnr_db == pytest.approx(10 * np.log10(signal / (1.0 + 2.25)))
    assert judged.passed
    assert not judge(expected, found, precision="w8a8", grids={"a": (0.5, 4)}, identical=True).passed


def test_missing_output_is_never_identical() -> None:
    expected = {"a": np.zeros((2, 1), np.int8), "b": np.zeros((2, 1), np.int8)}

    judged = judge(expected, {"a": expected["a"]}, precision="w8a8", grids={}, identical=False)

    assert (judged.passed, judged.bit_identical) == (False, False)


# Faces, bundles, devices.


def test_faces_of_a_corpus_are_spread_evenly_and_stand_behind_the_golden_ones(shipped: Shipped) -> None:
    chosen = choose_faces(shipped, source="synthetic:41@val", n=5, root=Path())
    pack = evaluation_pack("synthetic:41@val", shipped.spec, root=Path())

    assert (len(chosen.images), chosen.golden, chosen.first) == (29, 24, 24)
    rows = [0, 10, 20, 30, 40]
    assert np.array_equal(chosen.images[24:], pack.images[rows])
    assert np.array_equal(chosen.labels["landmarks5"], pack.labels["landmarks5"][rows])
    assert not np.array_equal(chosen.images[24:], pack.images[:5])  # the twin


def test_small_corpus_is_taken_whole_and_golden_faces_are_always_there(shipped: Shipped) -> None:
    assert len(choose_faces(shipped, source="synthetic:3@val", n=64, root=Path()).images) == 27
    assert len(choose_faces(shipped, n=1, root=Path()).images) == 24
    with pytest.raises(UsageError, match="0 faces"):
        choose_faces(shipped, n=0, root=Path())


def test_golden_faces_of_another_drawing_have_no_labels(shipped: Shipped) -> None:
    golden = {**shipped.golden, "images": shipped.golden["images"][::-1]}

    chosen = choose_faces(replace(shipped, golden=golden), n=32, root=Path())

    assert (chosen.first, len(chosen.labels["gender"])) == (24, 8)


def test_last_digit_of_a_pixel_makes_no_other_drawing(shipped: Shipped) -> None:
    images = shipped.golden["images"].copy()
    images[3, 5, 5, 0] ^= 1

    chosen = choose_faces(replace(shipped, golden={**shipped.golden, "images": images}), n=32, root=Path())

    assert (chosen.first, len(chosen.labels["gender"])) == (0, 32)
    assert np.array_equal(chosen.images[:24], images)  # what is run is what was shipped


def test_damaged_bundle_is_a_model_error(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / FILES["w8a8"]).open("ab") as stream:
        stream.write(b"\0")

    with pytest.raises(ModelError, match="sha256"):
        open_bundle(copy)
    assert open_bundle(copy, precisions=("fp32",)).files == (copy / FILES["fp32"],)
    with pytest.raises(UsageError, match="'p6'"):
        open_bundle(copy, precisions=("p6",))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.pop("outputs"),
        lambda manifest: manifest["files"].update({"x.tflite": 7}),
        lambda manifest: manifest["files"].update({"../x.tflite": manifest["files"][FILES["w8a8"]]}),
        lambda manifest: manifest["files"].update({"x.bin": manifest["files"][FILES["w8a8"]]}),
        lambda manifest: manifest["files"][FILES["w8a8"]].pop("grids"),
        lambda manifest: manifest["files"][FILES["w8a8"]].update(precision="w4"),
        lambda manifest: manifest["model"].pop("outputs"),
    ],
)
def test_manifest_that_says_too_little_is_a_model_error(
    change: Callable[[dict[str, Any]], object], bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(ModelError):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("on", "cpu"),
    [("hots", None), ("ssh", None), ("ssh:", None), ("adb:", None), ("host:x", None), ("", None), ("host", "a53")],
)
def test_device_that_is_none_is_a_usage_error(on: str, cpu: str | None) -> None:
    with pytest.raises(UsageError):
        open_device(on, cpu=cpu)


# The runner.


def test_device_runner_scores_as_the_file_does(bundle: Path, shipped: Shipped) -> None:
    pack = evaluation_pack("synthetic:24@test", shipped.spec, root=Path())
    runner = DeviceRunner(Board(), bundle / FILES["w8a8"], spec=shipped.spec, precision="w8a8")

    there, here = evaluate(runner, pack, batch=len(pack)), evaluate(open_model(bundle), pack)

    assert (there.runtime, there.precision) == ("tflite-xnnpack on board", "w8a8")
    assert there.tasks == here.tasks
    assert all(np.array_equal(there.outputs[name], here.outputs[name]) for name in here.outputs)


def test_device_runner_names_an_emulated_processor(bundle: Path, shipped: Shipped) -> None:
    device = Board()
    device.emulated = True

    runner = DeviceRunner(device, bundle / FILES["w8a8"], spec=shipped.spec, precision="w8a8")
    assert runner.runtime == "tflite-xnnpack on board (a stand-in)"


@pytest.mark.parametrize("lie", ["another model", "a row too few", "another scale"])
def test_device_runner_believes_no_liar(lie: str, bundle: Path, shipped: Shipped, faces: Faces) -> None:
    # Nothing is timed for a runner.
    device = Board(edited(LIES[lie][0]))
    runner = DeviceRunner(device, bundle / FILES["w8a8"], spec=shipped.spec, precision="w8a8")

    with pytest.raises(BudgetError, match="tflite-xnnpack on board"):
        runner.run(faces.images)


# The verb.


def test_verb_answers_by_the_contract(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "check",
        str(bundle),
        "--on",
        "host",
        "--n",
        "24",
        "--precision",
        "w8a8",
        "--out",
        str(tmp_path / "a.json"),
    ]
    code, answer = spoken(words, capsys)

    assert (code, answer["schema"], answer["on"], answer["outcome"]) == (0, 1, "host", "PASS")
    assert answer.keys() == {
        *("schema", "on", "bundle", "outcome", "reason", "bit_identical", "tasks", "latency", "latency_reason"),
        *("faces", "data", "device", "versions", "emulated", "files", "kind", "compared", "not_compared"),
    }
    assert answer["bit_identical"] is True
    assert answer["tasks"]["gender"]["n"] == 24
    assert answer["tasks"]["gender"]["here"]["accuracy"] == answer["tasks"]["gender"]["accuracy"]
    assert answer["latency"]["median_ms"] > 0
    assert answer["device"]["machine"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == answer


def test_verb_exits_1_when_a_device_lies(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "open_device", lambda on, *, cpu: Board(edited(exchanged)))
    words = ["check", str(bundle), "--on", "host", "--n", "24", "--precision", "w8a8"]

    code, answer = spoken(words, capsys)
    assert (code, answer["outcome"], answer["bit_identical"]) == (1, "FAIL", False)
    assert "look exchanged" in answer["reason"]

    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert "look exchanged" in printed


def test_verb_exits_3_with_its_own_object_when_there_is_no_device(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(on: str, *, cpu: str | None) -> None:
        raise MissingToolError("no devices/emulators found", where="adb")

    monkeypatch.setattr(devices, "open_device", absent)
    code, answer = spoken(["check", str(bundle), "--on", "adb"], capsys)

    assert (code, answer["outcome"], answer["on"], answer["bit_identical"]) == (3, "NOT_RUN", "adb", None)
    assert "no devices/emulators found" in answer["reason"]
    assert (answer["tasks"], answer["latency"], answer["files"]) == ({}, None, [])


@pytest.mark.parametrize(
    "words", [["--on", "nowhere"], ["--on", "host", "--precision", "p6"], ["--on", "host", "--threads", "0"]]
)
def test_verb_refuses_what_it_cannot_do(words: list[str], bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spoken(["check", str(bundle), *words], capsys)[0] == 2


def test_verb_exits_2_on_a_damaged_bundle_even_without_a_device(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "golden.npz").unlink()

    assert spoken(["check", str(copy), "--on", "macos"], capsys)[0] == 2


def test_source_that_is_not_there_is_a_data_error(shipped: Shipped, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        choose_faces(shipped, source=f"folder:{tmp_path / 'gone'}", root=Path())


def test_limit_of_a_result_leaves_room_for_honest_ones(shipped: Shipped, faces: Faces) -> None:
    sizes: list[int] = []

    checked(shipped, faces, lambda job: sizes.append((job / "result.json").stat().st_size))

    assert sizes[0] * 20 < jobs.RESULT_LIMIT
