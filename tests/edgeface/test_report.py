"""The HTML report, its charts, and `edgeface report` and `edgeface eval` on a run of random weights."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import targets.runners
from edgeface.checkpoint import save_checkpoint
from edgeface.cli.main import main
from edgeface.cli.report import bundles_of
from edgeface.config import dump_recipe, load_recipe
from edgeface.errors import MissingToolError, ModelError
from edgeface.evaluate import evaluate, evaluation_pack
from edgeface.models.network import build_network, model_spec
from edgeface.models.runner import TorchRunner
from edgeface.provenance import provenance
from edgeface.report.chart import COLOURS, DASHES, Series, line_chart, ticks
from edgeface.report.html import example_faces, page
from edgeface.report.scorecard import FILE, STUDENT, TEACHER, Entry, bundle_entries, scorecard
from edgeface.specs import NetworkSpec, QatSpec, output_spec
from quantize.calibrate import calibrate
from quantize.qat import finish, prepare, qat_weights

SHAPE = ((0.33, 0.33), (0.67, 0.33), (0.5, 0.52), (0.37, 0.69), (0.63, 0.69))
OUTPUTS = tuple(
    output_spec(task, mean_shape=SHAPE if task == "landmarks5" else ()) for task in ("landmarks5", "pose", "age")
)
CURVE = "step,epoch,lr,landmarks5.nme_percent,pose.accuracy\n10,0.5,0.001,12.5,0.41\n20,1,0.0005,9.25,0.62\n"
FACES = "synthetic:24@val"
TEST_FACES = "synthetic:20@test"


class Page(HTMLParser):
    """What a browser would load and read: addresses, texts, unclosed elements."""

    VOID = ("meta", "link", "img", "br", "wbr", "line", "circle", "polyline", "image", "path", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def checkpoint(folder: Path, kind: str, backbone: str, *, width: float, seed: int) -> None:
    network = NetworkSpec(backbone=backbone, width=width, input_px=32, head="flatten")
    model = model_spec(network, OUTPUTS)
    built = build_network(network, model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for head in built.heads.values():
        assert isinstance(head, torch.nn.Linear)
        torch.nn.init.normal_(head.weight, 0.0, 0.02, generator=generator)
    weights = built.state_dict()
    if kind == "qat":
        fake = prepare(built.eval(), QatSpec())
        calibrate(fake, [torch.randint(0, 256, (8, 3, 32, 32), generator=generator).float()], limit=1)
        finish(fake)
        weights = qat_weights(fake)
    save_checkpoint(
        folder,
        kind=kind,
        network=network,
        model=model,
        weights=weights,
        provenance=provenance(seed=0, licences=["none"], research_only=False),
        texts={"curve.csv": CURVE},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with random weights, on a few synthetic faces."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "toy"
    folder.mkdir()
    changes = [f'data.val=["{FACES}"]', f'data.test=["{TEST_FACES}"]', "name=toy", "budget.pose=100"]
    changes += ["budget.landmarks5=1000000", "threads=1"]
    recipe = load_recipe("demo", overrides=changes)
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    checkpoint(folder / "teacher", "teacher", "vgg16", width=0.1, seed=1)
    checkpoint(folder / "student", "student", "edge_s", width=0.25, seed=2)
    checkpoint(folder / "qat", "qat", "edge_s", width=0.25, seed=2)
    return folder


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_report_stands_alone_and_is_well_formed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(out), "--bundle", str(run)]) == 2  # a run is no bundle
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    html = out.read_text(encoding="utf-8")
    found = Page(html)
    assert found.open == []
    assert "script" not in found.tags
    assert found.addresses
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert "http" not in re.sub(r"data:[^\"]*", "", html)
    for words in ("toy", f"Scorecard on {FACES}", f"Scorecard on {TEST_FACES}", "teacher vgg16", "student edge_s"):
        assert words in found.text
    for words in ("fake-quant edge_s", "Training", "The resolved recipe", "left mouth corner", "Apache-2.0"):
        assert words in found.text


def test_report_shows_the_numbers_of_the_scorecard(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(out), "--data", FACES, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    text = read(out).text
    assert answer["report"] == str(out)
    (card,) = answer["scorecards"]
    assert [row["role"] for row in card["rows"]] == ["teacher", "student", "fake-quant"]
    for row in card["rows"]:
        assert f"{row['tasks']['landmarks5']['value']:.2f}" in text
        assert f"{100 * row['tasks']['pose']['value']:.2f}" in text


def test_report_scores_what_evaluation_scores(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "r.html"), "--data", FACES, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["scorecards"][0]["rows"]
    for row, stage in zip(rows, ("teacher", "student", "qat"), strict=True):
        assert main(["eval", str(run / stage), "--data", FACES, "--json"]) == 0
        scored = json.loads(capsys.readouterr().out)
        assert row["tasks"]["landmarks5"]["value"] == scored["tasks"]["landmarks5"]["nme_percent"]
        assert row["tasks"]["pose"]["n"] == scored["tasks"]["pose"]["n"]
    assert rows[0]["tasks"]["landmarks5"]["value"] != rows[1]["tasks"]["landmarks5"]["value"]


def test_report_of_anything_else_is_refused(tmp_path: Path) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_damaged_curve_is_refused() -> None:
    with pytest.raises(ModelError, match="damaged training curve"):
        page(name="x", cards=[], curves={"teacher": "step,epoch,pose.accuracy\n1,one,0.5\n"})


def test_texts_are_escaped() -> None:
    html = page(name="<script>alert(1)</script>", cards=[], recipe='name = "<b>"')
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;" in html


def toy_runner(seed: int) -> TorchRunner:
    network = NetworkSpec(backbone="edge_s", width=0.25, input_px=32)
    model = model_spec(network, OUTPUTS)
    return TorchRunner(build_network(network, model, seed=seed), model)


def test_pictures_of_real_faces_never_stand_in_a_report(tmp_path: Path) -> None:
    runner = toy_runner(1)
    pack = evaluation_pack(FACES, runner.spec, root=tmp_path)
    scored = evaluate(runner, pack)
    assert len(example_faces(scored, pack, count=3)) == 3
    for real in (replace(pack, name="mtfl"), replace(pack, research_only=True)):
        assert example_faces(scored, real, count=3) == []
    html = page(name="x", cards=[scorecard([(entry(STUDENT), replace(scored, source="mtfl@test"))])])
    assert "data:image" not in html
    assert "mtfl@test holds real faces" in html


def test_examples_show_the_answers_of_the_model(tmp_path: Path) -> None:
    runner = toy_runner(1)
    pack = evaluation_pack(FACES, runner.spec, root=tmp_path)
    scored = evaluate(runner, pack)
    faces = example_faces(scored, pack, count=4)
    for row, face in enumerate(faces):
        assert (face.predicted == scored.predictions["landmarks5"][row]).all()
        assert (face.labelled == pack.labels["landmarks5"][row]).all()
        answers = {task: (text, wrong) for task, text, wrong in face.answers}
        said = runner.spec.output("pose").classes[int(scored.predictions["pose"][row])].replace("_", " ")
        assert answers["pose"][0].startswith(said)
        assert answers["pose"][1] == bool(scored.predictions["pose"][row] != pack.labels["pose"][row])
    assert read_text(page(name="x", cards=[], faces=faces, faces_by="toy")).count(" years") == 4


def read_text(html: str) -> str:
    return Page(html).text


def entry(role: str, name: str = "") -> Entry:
    return Entry(role=role, name=name or role, open=lambda: toy_runner(1), size_bytes=1_000_000)


def test_verdict_is_said_in_words_and_not_in_colour_alone(tmp_path: Path) -> None:
    teacher, student, other = (
        evaluate(toy_runner(seed), evaluation_pack(FACES, toy_runner(seed).spec, root=tmp_path)) for seed in (1, 2, 3)
    )
    rows: list[tuple[Entry, Any]] = [(entry(TEACHER), teacher), (entry(STUDENT), student)]
    same = replace(student, model="a")
    kept = read_text(page(name="x", cards=[scorecard([*rows, (entry(FILE, "a"), same)], budget={"pose": 0.5})]))
    assert "✓ PASS on" in kept
    assert "✗" not in kept.split("Scorecard")[0]
    broken = scorecard([*rows, (entry(FILE, "a.tflite"), other)], budget={"landmarks5": -1e9})
    assert broken.exit_code == 1
    text = read_text(page(name="x", cards=[broken]))
    assert "✗ FAIL on synthetic:24@val: a.tflite broke a budget" in text
    waiting = scorecard([*rows, (entry(FILE, "b"), "no tool-kit")])
    assert f"NOT_RUN on {FACES}: b" in read_text(page(name="x", cards=[waiting]))
    assert f"Measured on {FACES}" in read_text(page(name="x", cards=[scorecard(rows)]))


def test_bundle_reports_its_scorecard_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = evaluate(toy_runner(1), evaluation_pack(FACES, toy_runner(1).spec, root=tmp_path))
    bundle = tmp_path / "android"
    bundle.mkdir()
    (bundle / "scorecard.json").write_text(json.dumps(scorecard([(entry(FILE, "toy.w8a8"), scored)]).as_json()))
    monkeypatch.setattr(targets.runners, "open_model", None)
    assert main(["report", str(bundle)]) == 0
    assert "toy. w8a8" in read(bundle / "report.html").text
    assert main(["report", str(bundle), "--data", FACES]) == 2
    (bundle / "scorecard.json").write_text("{}")
    assert main(["report", str(bundle)]) == 2


def test_bundle_files_come_from_fine_to_coarse_and_missing_tools_are_not_run(tmp_path: Path) -> None:
    names = [f"edge_s.{precision}.tflite" for precision in ("w8a8", "fp16", "w8a32", "fp32")]
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {name: {} for name in names}}))
    for name in names:
        (tmp_path / name).write_bytes(b"1234")
    entries = bundle_entries(tmp_path)
    assert [e.name.split(".")[1] for e in entries] == ["fp32", "fp16", "w8a32", "w8a8"]
    assert {e.role for e in entries} == {FILE}
    assert {e.size_bytes for e in entries} == {4}
    with pytest.raises(ModelError):
        entries[0].open()
    with pytest.raises(ModelError, match="no bundle"):
        bundle_entries(tmp_path / "absent")


def test_bundles_of_a_run_are_those_that_name_its_weights(run: Path, tmp_path: Path) -> None:
    digest = json.loads((run / "qat" / "manifest.json").read_text())["files"]["weights.safetensors"]
    for name, content in (("android", digest), ("onnx", "0" * 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"checkpoints": {"qat": content}}))
    assert bundles_of(run, out=tmp_path) == [tmp_path / "android"]
    assert bundles_of(run, out=tmp_path / "absent") == []


def test_eval_prints_the_contract(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["eval", str(run), "--data", FACES, "--teacher", str(run / "teacher")]
    assert main([*line, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["schema"], answer["model"], answer["runtime"]) == (1, str(run), "torch")
    assert (answer["precision"], answer["samples"], answer["skipped"]) == ("fake-quant", 24, {})
    assert set(answer["tasks"]) == {"landmarks5", "pose", "age"}
    assert set(answer["tasks"]["landmarks5"]) == {"nme_percent", "failure_percent", "n"}
    assert set(answer["teacher_agreement"]) == set(answer["tasks"])
    assert 0.0 <= answer["teacher_agreement"]["pose"]["equal_share"] <= 1.0
    assert main(line) == 0
    text = capsys.readouterr().out
    for words in ("fake-quant on torch, 24 faces of synthetic:24@val", "mean error, years", "failures, %", "agreement"):
        assert words in text


def test_model_agrees_with_itself_and_another_does_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = []
    for teacher in ("student", "teacher"):
        line = ["eval", str(run / "student"), "--data", FACES, "--teacher", str(run / teacher), "--json"]
        assert main(line) == 0
        shares.append(json.loads(capsys.readouterr().out)["teacher_agreement"])
    assert shares[0]["landmarks5"]["distance_percent"] == 0.0
    assert shares[1]["landmarks5"]["distance_percent"] > 0.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "mtfl@test"], "EDGEFACE_DATA"),
        (["--data", "nowhere@test"], "no corpus named"),
        ([], "--data"),
        (["--data", FACES, "--runtime", "abacus"], "--runtime"),
        (["--data", FACES, "--teacher", "absent"], "absent"),
    ],
)
def test_eval_of_bad_input_ends_with_two(
    run: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("EDGEFACE_DATA", str(tmp_path))
    assert main(["eval", str(run / "student"), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_eval_of_a_file_that_is_no_tflite_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.tflite").write_bytes(b"this is a text, not a model")
    assert main(["eval", str(tmp_path / "model.tflite"), "--data", FACES, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "not a .tflite file" in error["found"]
    assert error["do"]


def test_eval_without_the_tool_kit_ends_with_three(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*paths: object, **options: object) -> None:
        raise MissingToolError("ai-edge-litert is not installed", do="Install it")

    monkeypatch.setattr(targets.runners, "open_model", missing)
    assert main(["eval", str(run), "--data", FACES]) == 3
    assert "not installed" in capsys.readouterr().err


def test_ticks_are_round_and_span_the_range() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        low = float(generator.normal(0, 10.0 ** generator.integers(-3, 4)))
        high = low + float(10.0 ** generator.uniform(-3, 4))
        found = ticks(low, high)
        step = found[1] - found[0]
        assert 4 <= len(found) <= 9
        assert found[0] <= low + 1e-6 * step
        assert found[-1] >= high - 1e-6 * step
        assert round(step / 10 ** np.floor(np.log10(step * 1.0001)), 6) in (1, 2, 5)


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in path.split())]
        for path in re.findall(r'points="([^"]+)"', svg)
    ]


def test_chart_places_values_in_order() -> None:
    svg = line_chart([Series(name="a", x=[0, 1, 2], y=[1.0, 3.0, 2.0])], title="t", x_title="x", y_title="y")
    (line,) = points_of(svg)
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1]  # downwards on the page is less
    swapped = line_chart([Series(name="a", x=[0, 1, 2], y=[1.0, 2.0, 3.0])], title="t", x_title="x", y_title="y")
    assert points_of(swapped) != points_of(svg)


def test_chart_leaves_out_what_is_not_finite_and_bears_a_single_point() -> None:
    svg = line_chart(
        [Series(name="a<b", x=[0, 1], y=[float("nan"), 2.0]), Series(name="gone", x=[1], y=[float("nan")])],
        title="t",
        x_title="x",
        y_title="y",
    )
    assert len(points_of(svg)) == 1
    assert "a&lt;b" in svg
    assert "gone" not in svg
    assert "nan" not in svg
    assert "nothing to draw" in line_chart([], title="t", x_title="x", y_title="y")


def test_lines_differ_in_colour_and_in_dashes() -> None:
    assert len(set(COLOURS)) == len(COLOURS) == len(DASHES)
    assert len(set(zip(COLOURS, DASHES, strict=True))) == len(COLOURS)


def test_curves_of_the_loop_are_drawn(run: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(CURVE)))
    html = page(name="x", cards=[], curves={"teacher": CURVE, "student": CURVE})
    text = read_text(html)
    assert "landmarks5: mean error, %" in text
    assert "pose: accuracy, %" in text
    assert len(points_of(html)) == 4
    assert all(len(line) == len(rows) for line in points_of(html))
