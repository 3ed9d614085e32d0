"""The HTML report, and `edgeface report` and `edgeface eval` on a run of random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
from edgeface.report.compare import scorecard
from edgeface.report.entries import Entry, bundle_entries
from edgeface.report.gather import measure_speed, origins, place_of
from edgeface.report.html import MEANING, Examples, Speed, example_faces, page, wilson
from edgeface.report.scorecard import FILE, STUDENT, TEACHER, Row, Scorecard
from edgeface.specs import BudgetSpec, NetworkSpec, QatSpec, output_spec
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

    VOID = ("meta", "link", "img", "br", "wbr", "circle", "image", "path", "rect")

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
    assert main(["report", str(run), "--out", str(out), "--no-bench", "--plots", str(tmp_path / "plots")]) == 0
    assert str(out) in capsys.readouterr().out
    html = out.read_text(encoding="utf-8")
    found = Page(html)
    assert found.open == []
    assert "script" not in found.tags
    ids = set(re.findall(r' id="([^"]+)"', html))
    assert len(ids) == len(re.findall(r' id="', html))
    assert {"data:image/jpeg;base64,", "#provenance"} <= {address[:23] for address in found.addresses}
    for address in found.addresses:
        assert address.startswith("data:image/jpeg;base64,") or address.removeprefix("#") in ids
    assert "http" not in re.sub(r"data:[^\"]*", "", html)
    assert len(list((tmp_path / "plots").glob("*.png"))) == html.count('<svg class="plot"')
    assert len(html) < 2_000_000
    for words in ("toy", f"Scorecard on {FACES}", f"Scorecard on {TEST_FACES}", "teacher vgg16", "student edge_s"):
        assert words in found.text
    for words in (
        "fake-quant edge_s",
        "Training",
        "The resolved recipe",
        "left mouth corner",
        "Apache-2.0",
        MEANING["age"],
    ):
        assert words in found.text
    for words in ("Not timed: --no-bench.", "Quantization error of each layer", "pose: confidence and accuracy"):
        assert words in found.text
    for stage in ("teacher", "student", "qat"):
        for digest in json.loads((run / stage / "manifest.json").read_text())["files"].values():
            assert digest in found.text
    assert MEANING["gender"] not in found.text  # the run has no such task


def test_report_shows_the_numbers_of_the_scorecard(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(out), "--data", FACES, "--json", "--no-bench"]) == 0
    answer = json.loads(capsys.readouterr().out)
    text = read(out).text
    assert answer["report"] == str(out)
    (card,) = answer["scorecards"]
    assert [row["role"] for row in card["rows"]] == ["teacher", "student", "fake-quant"]
    for row in card["rows"]:
        assert f"{row['tasks']['landmarks5']['value']:.2f}" in text
        assert f"{100 * row['tasks']['pose']['value']:.2f}" in text


def test_report_scores_what_evaluation_scores(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["report", str(run), "--out", str(tmp_path / "r.html"), "--data", FACES, "--json", "--no-bench"]
    assert main(line) == 0
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


def test_weights_and_criteria_of_the_tasks_are_drawn_a_line_a_task() -> None:
    curve = (
        "step,epoch,lr,gender.accuracy,gender.active,gender.criterion,gender.loss,gender.weight,pose.weight\n"
        "10,1,0.1,0.5,1,,0.7,1,0.5\n20,2,0.1,0.6,1,3.5,0.6,0.8,0.7\n"
    )
    made = {plot.name: plot for plot in page(name="x", cards=[], curves={"teacher": curve}).plots}
    assert set(made) == {"training-gender-accuracy", "teacher-weight", "teacher-criterion"}
    lines_drawn = made["teacher-weight"].figure.axes[0].lines
    assert [list(line.get_ydata()) for line in lines_drawn] == [[1.0, 0.8], [0.5, 0.7]]
    assert list(made["teacher-criterion"].figure.axes[0].lines[0].get_ydata()) == [3.5]


def test_damaged_curve_is_refused() -> None:
    with pytest.raises(ModelError, match="damaged training curve"):
        page(name="x", cards=[], curves={"teacher": "step,epoch,pose.accuracy\n1,one,0.5\n"})


def test_texts_are_escaped() -> None:
    html = page(name="<script>alert(1)</script>", cards=[], recipe='name = "<b>"').html
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
    html = page(name="x", cards=[scorecard([(entry(STUDENT), replace(scored, source="mtfl@test"))])]).html
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
    shown = Examples(faces=faces, model="toy", source=FACES)
    assert words(examples=shown).count(" years") == 4
    assert "mind whom you send it to" not in words(examples=shown)
    assert "mind whom you send it to" in words(examples=replace(shown, source="folder:mine"))


def words(cards: Sequence[Scorecard] = (), **parts: Any) -> str:
    return Page(page(name="x", cards=cards, **parts).html).text


def entry(role: str, name: str = "") -> Entry:
    return Entry(role=role, name=name or role, open=lambda: toy_runner(1), size_bytes=1_000_000)


def test_verdict_is_said_in_words_and_not_in_colour_alone(tmp_path: Path) -> None:
    teacher, student, other = (
        evaluate(toy_runner(seed), evaluation_pack(FACES, toy_runner(seed).spec, root=tmp_path)) for seed in (1, 2, 3)
    )
    rows: list[tuple[Entry, Any]] = [(entry(TEACHER), teacher), (entry(STUDENT), student)]
    same = replace(student, model="a")
    kept = words([scorecard([*rows, (entry(FILE, "a"), same)], budget={"pose": BudgetSpec(points=0.5)})])
    assert "✓ PASS on" in kept
    assert "✗" not in kept.split("Scorecard")[0]
    broken = scorecard([*rows, (entry(FILE, "a.tflite"), other)], budget={"landmarks5": BudgetSpec(points=-1e9)})
    assert broken.exit_code == 1
    text = words([broken])
    assert "✗ FAIL on synthetic:24@val: a.tflite broke a budget" in text
    waiting = scorecard([*rows, (entry(FILE, "b"), "no tool-kit")])
    assert f"NOT_RUN on {FACES}: b" in words([waiting])
    assert f"Measured on {FACES}" in words([scorecard(rows)])


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

    monkeypatch.setattr(targets.runners, "open_to_score", missing)
    assert main(["eval", str(run), "--data", FACES]) == 3
    assert "not installed" in capsys.readouterr().err


def test_curves_of_the_loop_are_drawn_int8_training_after_the_student() -> None:
    text = words(curves={"teacher": CURVE, "student": CURVE, "qat": CURVE})
    for said in ("landmarks5: mean error, %", "pose: accuracy, %", "int8 training"):
        assert said in text
    alone = page(name="x", cards=[], curves={"student": CURVE}).plots[0].figure.axes[0].lines
    both = page(name="x", cards=[], curves={"student": CURVE, "qat": CURVE}).plots[0].figure.axes[0].lines
    assert list(alone[0].get_xdata()) == [0.5, 1.0]
    assert [list(line.get_xdata()) for line in both] == [[0.5, 1.0], [1.5, 2.0]]
    assert list(both[0].get_ydata()) == [12.5, 9.25]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Scorecard:
    """A teacher, a student and a file of random weights."""
    cache = tmp_path_factory.mktemp("root")
    scored = [evaluate(toy_runner(seed), evaluation_pack(FACES, toy_runner(1).spec, root=cache)) for seed in (1, 2, 3)]
    roles = ((TEACHER, "teacher"), (STUDENT, "student"), (FILE, "a.w8a8.tflite"))
    return scorecard([(entry(*role), each) for role, each in zip(roles, scored, strict=True)])


def test_cells_hold_value_changes_intervals_and_agreement(card: Scorecard) -> None:
    text = words([card])
    for row in card.rows[1:]:
        cell = row.tasks["landmarks5"]
        assert cell.delta_teacher is not None
        assert cell.interval_teacher is not None
        half = (cell.interval_teacher[1] - cell.interval_teacher[0]) / 2
        assert f"{cell.delta_teacher:+.2f} ±{half:.2f}" in text
        assert f"{cell.agreement['distance_percent']:.2f} %" in text
        assert f"{100 * row.tasks['pose'].agreement['equal_share']:.2f} %" in text
    moved = replace(card.rows[2].tasks["landmarks5"], delta_teacher=77.77)
    rows = [*card.rows[:2], replace(card.rows[2], tasks={**card.rows[2].tasks, "landmarks5": moved})]
    assert "+77.77" in words([replace(card, rows=rows)])
    assert "+77.77" not in text


def test_a_change_is_dark_only_when_its_interval_leaves_out_zero(card: Scorecard) -> None:
    def dark(ends: tuple[float, float]) -> bool:
        cell = replace(card.rows[2].tasks["pose"], delta_teacher=-3.21, interval_teacher=ends)
        html = page(name="x", cards=[replace(card, rows=[replace(card.rows[2], tasks={"pose": cell})])]).html
        return '<span class="real"><i>teacher</i>-3.21' in html

    assert dark((-4.0, -2.0))
    assert not dark((-4.0, 2.0))


def test_what_did_not_run_gives_its_reason_and_no_value(card: Scorecard) -> None:
    idle = Row(
        role=FILE,
        model="b.xml",
        runtime="",
        precision="",
        size_bytes=0,
        outcome="NOT_RUN",
        reason="OpenVINO is not installed",
        tasks={},
        absent={},
    )
    liar = replace(idle, model="c.tflite", outcome="FAIL", reason="swapped outputs")
    text = words([replace(card, rows=[*card.rows, idle])])
    assert "OpenVINO is not installed" in text
    assert f"NOT_RUN on {FACES}: b.xml" in text
    text = words([replace(card, rows=[*card.rows, liar])])
    assert f"✗ FAIL on {FACES}: the answers of c.tflite cannot be believed" in text
    assert "swapped outputs" in text


def test_unlabelled_faces_show_agreement_alone(card: Scorecard) -> None:
    rows = [
        replace(row, tasks={}, unlabelled={"gender": {"equal_share": 0.4321, "n": 24}} if row.role != TEACHER else {})
        for row in card.rows
    ]
    text = words([replace(card, rows=rows)])
    assert text.count("43.21 %") == 2
    assert "agreement with the teacher" in text


def test_times_stand_with_their_rows_and_in_the_chart(card: Scorecard) -> None:
    speed = Speed(median_ms={("a.w8a8.tflite", "torch"): 0.1234, ("student", "torch"): 4.2}, conditions="On a toy.")
    made = page(name="x", cards=[card], speed=speed)
    text = Page(made.html).text
    for said in ("0.123 ms a face", "4.2 ms a face", "On a toy."):
        assert said in text
    (latency,) = (plot for plot in made.plots if plot.name == "latency")
    drawn = sorted(float(line.get_xdata()[0]) for line in latency.figure.axes[0].lines)
    assert drawn == [0.1234, 4.2]
    assert all(plot.name != "latency" for plot in page(name="x", cards=[card], speed="no clock").plots)


def test_models_of_a_run_are_timed_by_the_bench(run: Path) -> None:
    named = [
        Row(
            role=role,
            model=f"{role} toy",
            runtime="torch",
            precision="fp32",
            size_bytes=1,
            outcome="MEASURED",
            reason="",
            tasks=measured,
            absent={},
        )
        for role, measured in ((TEACHER, {"pose": None}), (STUDENT, {"pose": None}), ("fake-quant", {"pose": None}))
    ]
    found = measure_speed(
        Scorecard(
            source="",
            samples=1,
            skipped={},
            licence="",
            research_only=False,
            rows=named,  # type: ignore[arg-type]
            conditions={},
        ),
        run=run,
        bundles=[],
        runs=20,
    )
    assert set(found.median_ms) == {("teacher toy", "torch"), ("student toy", "torch")}
    assert all(ms > 0 for ms in found.median_ms.values())
    assert "20 runs" in found.conditions
    assert place_of(FILE, "absent.tflite", run=run, bundles=[run]) is None


def subgroup(gap: float) -> dict[str, Any]:
    rows = [
        {
            "model": model,
            "runtime": "torch",
            "values": [0.9, 0.9 - width],
            "gap": width,
            "gap_interval": [width / 2, width * 2],
            "gap_change_teacher": change,
            "gap_change_interval": None if change is None else [-0.01, 0.03],
        }
        for model, width, change in (("teacher", 0.05, None), ("a.w8a8.tflite", gap, 0.0123))
    ]
    groups = [{"name": "dark", "n": 40}, {"name": "light", "n": 60}]
    asked = {"task": "pose", "by": "skin", "metric": "accuracy"}
    return asked | {"groups": groups, "minimum": 30, "few": [{"name": "deep", "n": 12}], "left_out": 12, "rows": rows}


def test_subgroups_show_gap_interval_and_change(card: Scorecard) -> None:
    made = page(name="x", cards=[replace(card, subgroups=[subgroup(0.07)])])
    text = Page(made.html).text
    for said in (
        "pose by skin",
        "7.00 [3.50, 14.00]",
        "change +1.23 [-1.00, +3.00]",
        "30 labelled faces or more",
        "too few: deep (12)",
    ):
        assert said in text
    (chart,) = (plot for plot in made.plots if plot.name.startswith("groups-"))
    dots = [
        float(line.get_xdata()[0])
        for line in chart.figure.axes[0].lines
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert 90.0 in dots
    assert pytest.approx(83.0) in dots
    other = words([replace(card, subgroups=[subgroup(0.2)])])
    assert "7.00 [3.50, 14.00]" not in other


def test_blame_names_layers_and_what_they_cost(card: Scorecard) -> None:
    layers = [{"layer": "backbone_conv1", "cost": 1.25}]
    entry_of = {"model": "a", "runtime": "torch", "task": "pose", "unit": "points", "layers": layers, "faces": 24}
    text = words([replace(card, blame=[entry_of])])  # type: ignore[list-item]
    assert "backbone_conv1 +1.25 points" in text
    assert "Which layer costs which task" not in words([card])


def test_wilson_interval_of_published_cases() -> None:
    # Newcombe, Statistics in Medicine 17, 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    for share, n, low, high in ((81 / 263, 263, 25.53, 36.62), (15 / 148, 148, 6.24, 16.05), (0.0, 20, 0.0, 16.11)):
        assert wilson(share, n) == pytest.approx((low, high), abs=0.005)  # as many digits as printed
    assert wilson(0.5, 40) != pytest.approx(wilson(0.5, 41), abs=0.005)


def test_meaning_is_said_of_the_tasks_that_are_there(card: Scorecard) -> None:
    assert MEANING["age"] in words([card])
    bare = replace(card, rows=[replace(row, tasks={"pose": row.tasks["pose"]}) for row in card.rows])
    assert MEANING["age"] not in words([bare])


def test_faces_of_a_corpus_are_refused_and_chosen_ones_shown(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    line = ["report", str(run), "--out", str(out), "--data", FACES, "--no-bench"]
    assert main([*line, "--faces", "mtfl@test"]) == 2
    assert "never stand in a report" in capsys.readouterr().err
    assert not out.exists()
    assert main([*line, "--faces", "synthetic:3@test"]) == 0
    assert out.read_text(encoding="utf-8").count("data:image/jpeg") == 3


def test_the_same_data_give_the_same_page(card: Scorecard) -> None:
    assert page(name="x", cards=[card]).html == page(name="x", cards=[card]).html


def test_provenance_says_where_a_stopped_training_went_on(tmp_path: Path) -> None:
    for stage, resumed_at in (("teacher", [310, 4500]), ("student", [])):
        training = {"steps": 7000, "samples": 448000, "seconds": 2423.6, "resumed_at": resumed_at}
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "manifest.json").write_text(json.dumps({"kind": stage, "training": training}))
    stopped, whole = (dict(each.facts)["Training"] for each in origins(tmp_path, []))
    assert stopped == "7,000 steps, 448,000 samples, 2,424 s; stopped, and went on at step 310, 4,500"
    assert whole == "7,000 steps, 448,000 samples, 2,424 s"
