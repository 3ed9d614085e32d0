"""The scorecard's arithmetic, verdicts and forms, on evaluations whose answers are chosen."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeface.errors import BudgetError, DataError, MissingToolError, ModelError
from edgeface.evaluate import Evaluation, evaluate
from edgeface.metrics import agreement, paired_interval, score
from edgeface.report.compare import scorecard
from edgeface.report.entries import Entry, stage_entries
from edgeface.report.measure import measure
from edgeface.report.scorecard import (
    CURVE_PERCENT,
    DEVICE,
    FAKE_QUANT,
    FILE,
    STUDENT,
    TEACHER,
    Scorecard,
    from_json,
    read_scorecard,
)
from edgeface.report.table import as_markdown, heading, is_real, lines, render, signed, with_interval
from edgeface.specs import BudgetSpec, ModelSpec, output_spec
from edgeface.tasks import TASKS

SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
SPEC = ModelSpec(
    name="toy",
    input_px=16,
    outputs=tuple(
        output_spec(task, mean_shape=SHAPE if "5" in task else ()) for task in ("landmarks5", "gender", "age")
    ),
)
N = 400


def labels(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    years = generator.integers(10, 80, N).astype(np.float32)
    return {
        "landmarks5": np.tile(np.array(SHAPE, np.float32), (N, 1, 1)),
        "gender": generator.integers(0, 2, N),
        "age": np.stack([years, years], 1),
    }


def answered(
    *, shift: float = 0.0, wrong: int = 0, years: float = 5.0, model: str = "toy", runtime: str = "torch"
) -> Evaluation:
    """Every point moved right by `shift` crop sides, `wrong` genders wrong, every age off by `years`."""
    truth = labels()
    gender = truth["gender"].copy()
    gender[:wrong] = 1 - gender[:wrong]
    predictions = {
        "landmarks5": truth["landmarks5"] + np.array([shift, 0.0]),
        "gender": gender,
        "age": truth["age"][:, 0] + years,
    }
    return Evaluation(
        model=model,
        spec=SPEC,
        runtime=runtime,
        precision="fp32",
        source="toy@val",
        licence="none",
        research_only=False,
        keys=tuple(map(str, range(N))),
        skipped={"truncated": ("a", "b")},
        outputs={},
        predictions=predictions,
        labels=truth,
        tasks={name: score(TASKS[name], predictions[name], truth[name]) for name in predictions},
        absent={"smile": "toy has no labels for it"},
    )


def never() -> None:
    raise AssertionError("not opened")


def entry(role: str, name: str = "") -> Entry:
    return Entry(role=role, name=name or role, open=never, size_bytes=1000)


def budgets(budget: dict[str, float], *, vs: str = "student") -> dict[str, BudgetSpec]:
    return {task: BudgetSpec(points=points, vs=vs) for task, points in budget.items()}


def card(*files: Evaluation | str, budget: dict[str, float] | None = None, vs: str = "student") -> Scorecard:
    rows = [
        (entry(TEACHER), answered(shift=0.01, wrong=20)),
        (entry(STUDENT), answered(shift=0.02, wrong=40)),
        (entry(FAKE_QUANT), answered(shift=0.022, wrong=42)),
        *((entry(FILE, f"file{i}"), made) for i, made in enumerate(files)),
    ]
    return scorecard(rows, budget=budgets(budget or {}, vs=vs))


def test_deltas_and_agreement_refer_to_teacher_and_student() -> None:
    made = card(answered(shift=0.024, wrong=44, years=5.5))
    teacher, student, _, file = made.rows
    # The eyes are 0.4 apart: a shift of 0.024 is 6 %, of 0.02 is 5 %. float32 labels: about 1e-5 %.
    points = file.tasks["landmarks5"]
    assert points.value == pytest.approx(6.0, abs=1e-4)
    assert points.delta_student == pytest.approx(1.0, abs=1e-4)
    assert points.delta_teacher == pytest.approx(3.5, abs=1e-4)
    assert file.tasks["gender"].delta_student == pytest.approx(-1.0)
    assert file.tasks["gender"].delta_teacher == pytest.approx(-6.0)
    assert file.tasks["age"].delta_student == pytest.approx(10.0)  # percent of 5 years
    assert file.tasks["gender"].agreement == {"equal_share": pytest.approx(1 - 24 / N), "n": N}
    assert file.tasks["landmarks5"].agreement["distance_percent"] == pytest.approx(3.5, abs=1e-4)
    assert teacher.tasks["gender"].agreement == {}
    assert teacher.tasks["gender"].delta_teacher is None
    assert student.tasks["gender"].delta_student is None
    assert student.tasks["gender"].delta_teacher == pytest.approx(-5.0)


def test_agreement_in_the_scorecard_is_the_metrics_own_twin() -> None:
    file = answered(shift=0.024, wrong=44)
    teacher = answered(shift=0.01, wrong=20)
    cell = card(file).rows[3].tasks["gender"]
    assert cell.agreement == agreement(TASKS["gender"], file.predictions["gender"], teacher.predictions["gender"])
    other = card(answered(shift=0.024, wrong=45)).rows[3].tasks["gender"]
    assert other.agreement != cell.agreement
    assert other.value != cell.value


def test_interval_holds_the_difference_and_widens_with_noise() -> None:
    cell = card(answered(shift=0.02, wrong=60)).rows[3].tasks["gender"]
    low, high = cell.interval
    assert low < cell.delta_student < high < 0.0
    same = card(answered(shift=0.02, wrong=40)).rows[3].tasks["gender"]
    assert same.interval == (0.0, 0.0)


def test_budget_is_kept_up_to_its_edge_and_broken_beyond() -> None:
    budget = {"gender": 1.0, "age": 10.0}
    kept = card(answered(shift=0.9, wrong=44, years=5.5), budget=budget)
    assert [row.outcome for row in kept.rows] == ["MEASURED", "MEASURED", "MEASURED", "PASS"]
    assert kept.exit_code == 0
    assert kept.as_json()["pass"] is True
    broken = card(answered(wrong=45, years=5.5), budget=budget)
    assert broken.rows[3].outcome == "FAIL"
    assert broken.rows[3].reason == "gender worse by more than 1 points"
    assert [(row.model, task) for row, task in broken.broken] == [("file0", "gender")]
    assert broken.exit_code == 1
    assert card(answered(wrong=44, years=5.51), budget=budget).exit_code == 1


def test_budget_against_the_teacher_is_another_one_twin() -> None:
    # 44 wrong genders: 1 point below the student's 40, 6 points below the teacher's 20.
    file = answered(wrong=44)
    assert card(file, budget={"gender": 1.0}).exit_code == 0
    broken = card(file, budget={"gender": 5.9}, vs="teacher")
    assert broken.rows[3].reason == "gender worse by more than 5.9 points than the teacher"
    assert broken.exit_code == 1
    assert card(file, budget={"gender": 6.0}, vs="teacher").exit_code == 0
    cell = broken.rows[3].tasks["gender"]
    assert (cell.budget, cell.budget_vs, cell.within_budget) == (5.9, "teacher", False)
    printed = {line.key: line for line in lines(broken)["gender"]}
    assert printed["delta_teacher"].verdicts == (None, None, None, False)
    assert printed["delta_student"].verdicts == (None, None, None, None)
    assert printed["delta_teacher"].title == "Δ teacher, points (budget 5.9)"


def test_budget_against_a_teacher_that_is_not_there_is_not_checked() -> None:
    rows = [(entry(STUDENT), answered()), (entry(FILE), answered())]
    made = scorecard(rows, budget=budgets({"gender": 1.0}, vs="teacher"))
    assert made.rows[1].outcome == "NOT_RUN"
    assert "no teacher" in made.rows[1].reason


def test_interval_of_the_teacher_holds_its_difference() -> None:
    cell = card(answered(shift=0.02, wrong=60)).rows[3].tasks["gender"]
    low, high = cell.interval_teacher
    assert low < cell.delta_teacher < high < 0.0
    same = scorecard([(entry(TEACHER), answered(wrong=9)), (entry(FILE), answered(wrong=9))]).rows[1].tasks["gender"]
    assert same.interval_teacher == (0.0, 0.0)
    assert same.interval is None


def test_intervals_are_those_of_the_paired_bootstrap() -> None:
    file, student = answered(wrong=60, years=6.0), answered(shift=0.02, wrong=40)
    cells = card(file).rows[3].tasks
    for task, factor in (("gender", 100.0), ("age", 20.0)):  # percent of the student's 5 years
        labels, pair = file.labels[task], (file.predictions[task], student.predictions[task])
        expected = paired_interval(TASKS[task], pair, labels=labels, resamples=1000)
        assert cells[task].interval == pytest.approx((factor * expected.low, factor * expected.high), abs=1e-9)


def test_a_device_is_judged_like_a_file_and_a_lying_one_fails() -> None:
    rows = [(entry(STUDENT), answered(wrong=40)), (entry(DEVICE, "phone"), answered(wrong=45))]
    made = scorecard(rows, budget=budgets({"gender": 1.0}))
    assert [(row.role, row.outcome) for row in made.rows] == [(STUDENT, "MEASURED"), (DEVICE, "FAIL")]
    lied = scorecard([rows[0], (entry(DEVICE, "phone"), BudgetError("outputs swapped", where="a.tflite"))])
    assert lied.rows[1].outcome == "FAIL"
    assert "outputs swapped" in lied.rows[1].reason
    assert lied.exit_code == 1
    assert lied.as_json()["pass"] is False


def without_labels(made: Evaluation) -> Evaluation:
    why = "toy has no labels for it"
    return replace(made, labels={}, tasks={}, absent=dict.fromkeys(made.predictions, why))


def test_agreement_is_the_only_column_of_unlabelled_faces() -> None:
    from rich.console import Console

    rows = [
        (entry(TEACHER), without_labels(answered(shift=0.01, wrong=20))),
        (entry(STUDENT), without_labels(answered(shift=0.02, wrong=40))),
        (entry(FILE, "a.tflite"), without_labels(answered(shift=0.024, wrong=44, years=5.5))),
    ]
    made = scorecard(rows)
    file = made.rows[2]
    assert file.tasks == {}
    labelled = card(answered(shift=0.024, wrong=44, years=5.5)).rows[3]
    assert file.unlabelled == {task: cell.agreement for task, cell in labelled.tasks.items()}
    assert labelled.unlabelled == {}
    printed = lines(made)
    assert list(printed) == ["landmarks5", "gender", "age"]
    assert all([line.key for line in found] == ["agreement"] for found in printed.values())
    assert printed["gender"][0].texts == ("-", "95.00", "94.00")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(made))
    text = console.export_text()
    assert "same answer" in text
    assert "94.00" in text
    assert "| `a.tflite` | torch | 94.00 |" in as_markdown(made)
    assert "NOT_RUN" not in as_markdown(made)
    assert "| `file0` |  | NOT_RUN: no tool |  |  |  |  |" in as_markdown(card("no tool"))
    assert from_json(json.loads(json.dumps(made.as_json())), where="here").as_json() == made.as_json()


def sure(made: Evaluation, *, shift: float = 0.0) -> Evaluation:
    """The same genders as logits, `shift` added to the second; noise decides how far the two are apart."""
    apart = np.abs(np.random.default_rng(7).normal(2.0, 1.0, N)) + 0.05
    margin = np.where(made.predictions["gender"] == 1, apart, -apart) + shift
    raw = np.stack([np.zeros(N), margin], 1).astype(np.float32)
    predictions = {**made.predictions, "gender": (raw[:, 1] > 0).astype(np.int64)}
    tasks = {**made.tasks, "gender": score(TASKS["gender"], predictions["gender"], made.labels["gender"])}
    return replace(made, outputs={"gender": raw}, predictions=predictions, tasks=tasks)


def test_confusion_calibration_and_threshold_of_two_classes() -> None:
    cell = scorecard([(entry(FILE), sure(answered(wrong=40)))]).rows[0].tasks["gender"]
    made = sure(answered(wrong=40))
    truth, said = made.labels["gender"], made.predictions["gender"]
    assert sum(map(sum, cell.confusion)) == N
    assert cell.confusion[0][1] == int(((truth == 0) & (said == 1)).sum())
    assert sum(n for _, _, n in cell.calibration) == N
    confidence = 1 / (1 + np.exp(-np.abs(made.outputs["gender"][:, 1].astype(np.float64))))
    assert sum(c * n for c, _, n in cell.calibration) == pytest.approx(confidence.sum(), rel=1e-9)
    assert cell.ece == pytest.approx(sum(n * abs(a - c) for c, a, n in cell.calibration) / N)
    assert cell.recalibrated["n"] == N
    assert cell.recalibrated["value"] == pytest.approx(cell.value, abs=0.02)
    assert scorecard([(entry(FILE), answered(wrong=40))]).rows[0].tasks["gender"].calibration == ()


def test_another_threshold_takes_a_shift_of_the_logits_back_twin() -> None:
    plain = scorecard([(entry(FILE), sure(answered(wrong=40)))]).rows[0].tasks["gender"]
    moved = scorecard([(entry(FILE), sure(answered(wrong=40), shift=2.0))]).rows[0].tasks["gender"]
    assert moved.value < plain.value - 0.1
    assert moved.recalibrated["value"] == pytest.approx(plain.value, abs=0.02)
    assert moved.recalibrated["threshold"] > 0.75  # a logit of 1.1; 2 was added
    assert moved.ece > plain.ece


def test_better_than_the_student_keeps_any_budget() -> None:
    made = card(answered(shift=0.0, wrong=0, years=1.0), budget={"gender": 0.0, "age": 0.0, "landmarks5": 0.0})
    assert made.rows[3].outcome == "PASS"


def test_file_that_could_not_be_run_is_not_run_and_never_a_pass() -> None:
    made = card(answered(wrong=40), "ai-edge-litert is not installed", budget={"gender": 1.0})
    assert made.rows[4].outcome == "NOT_RUN"
    assert made.rows[4].reason == "ai-edge-litert is not installed"
    assert made.exit_code == 3
    assert made.as_json()["pass"] is False
    both = card(answered(wrong=100), "not installed", budget={"gender": 1.0})
    assert both.exit_code == 1


def test_budget_of_an_unlabelled_task_is_not_checked_and_never_a_pass() -> None:
    made = card(answered(wrong=40), budget={"gender": 1.0, "smile": 1.0})
    assert made.rows[3].outcome == "NOT_RUN"
    assert made.rows[3].reason == "budget of smile not checked: toy has no labels for it"
    assert made.exit_code == 3


def test_budget_without_a_student_is_not_checked() -> None:
    made = scorecard([(entry(FILE), answered())], budget=budgets({"gender": 1.0}))
    assert made.rows[0].outcome == "NOT_RUN"
    assert "no fp32 student" in made.rows[0].reason


def test_curve_of_a_constant_error_is_a_step() -> None:
    cell = card(answered(shift=0.024)).rows[3].tasks["landmarks5"]  # 6 %, up to float32 labels
    for threshold, share in zip(CURVE_PERCENT, cell.curve, strict=True):
        if abs(threshold - 6.0) > 0.1:
            assert share == (threshold > 6.0)
    assert cell.per_point == pytest.approx([6.0] * 5, abs=1e-4)
    assert cell.failure_percent == 0.0


def test_scorecard_survives_json() -> None:
    made = card(answered(wrong=45), "not here", budget={"gender": 1.0})
    again = from_json(json.loads(json.dumps(made.as_json(), allow_nan=False)), where="here")
    assert again.as_json() == made.as_json()
    assert again.rows[3].tasks == made.rows[3].tasks


def test_scorecard_from_before_intervals_of_the_teacher_is_read() -> None:
    plain = json.loads(json.dumps(card(answered(wrong=45)).as_json()))
    for name in ("subgroups", "blame"):
        del plain[name]
    for row in plain["rows"]:
        del row["unlabelled"], row["hardware"]
        for cell in row["tasks"].values():
            for name in ("interval_teacher", "budget_vs", "confusion", "calibration", "ece", "recalibrated"):
                del cell[name]
    old = from_json(plain, where="here")
    assert old.rows[3].tasks["gender"].value == pytest.approx(1 - 45 / N)
    assert old.rows[3].tasks["gender"].interval_teacher is None
    assert "gender" in lines(old)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plain: plain.update(schema=2),
        lambda plain: plain.pop("rows"),
        lambda plain: plain["rows"][0].pop("role"),
        lambda plain: plain["rows"][0]["tasks"]["gender"].pop("curve"),
        lambda plain: plain["rows"][0]["tasks"].update(nose={}),
        lambda plain: plain["rows"][0].update(colour="red"),
    ],
)
def test_spoilt_scorecard_is_refused(spoil: Callable[[dict], object], tmp_path: Path) -> None:
    plain = json.loads(json.dumps(card(answered()).as_json()))
    path = tmp_path / "scorecard.json"
    path.write_text(json.dumps(plain))
    assert read_scorecard(path).samples == N
    spoil(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(ModelError, match="not a scorecard of schema 1"):
        read_scorecard(path)


def test_scorecard_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scorecard.json").write_text("{")
    for path in (tmp_path / "scorecard.json", tmp_path / "absent.json"):
        with pytest.raises(ModelError, match="cannot be read"):
            read_scorecard(path)


def test_rows_of_different_faces_are_refused() -> None:
    other = replace(answered(), keys=tuple(f"x{i}" for i in range(N)))
    with pytest.raises(DataError, match="that 'toy' was scored on"):
        card(replace(other, model="stranger"))


def test_two_teachers_are_refused() -> None:
    with pytest.raises(DataError, match="2 rows with the role 'teacher'"):
        scorecard([(entry(TEACHER), answered()), (entry(TEACHER), answered())])


def test_nothing_run_is_refused() -> None:
    with pytest.raises(DataError, match="no model could be run: no tool"):
        scorecard([(entry(FILE), "no tool")])


def test_table_shows_every_task_and_colours_the_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.delenv("NO_COLOR", raising=False)
    made = card(answered(wrong=45), "not here", budget={"gender": 1.0})
    console = Console(width=200, record=True, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(render(made))
    styled = console.export_text(styles=True, clear=False)
    plain = console.export_text()
    for text in ("landmarks5", "failures", "Δ student", "budget 1", "file1: not here", "FAIL", "NOT_RUN", "88.75"):
        assert text in plain
    assert re.search(r"\x1b\[1;31m *-1\.25 ±\d\.\d\d✗", styled)
    assert not re.search(r"\x1b\[1;31m *-0\.50", styled)


def test_table_keeps_within_the_terminal_and_shows_every_task_once() -> None:
    from rich.console import Console

    made = card(answered(wrong=45), "not here", "not here", budget={"gender": 1.0})
    for width in (60, 100, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(render(made))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        for words in ("landmarks5", "gender", "age", "-1.25 ±", "88.75", "5.00"):
            assert words in text
        assert text.count("budget 1") == 1
        assert "file1, file2: not here" in text
    assert text.count("mean error") == 2  # of landmarks5 and age: one panel in a wide terminal


def test_a_change_that_may_be_chance_is_not_bold() -> None:
    made = card(answered(shift=0.0201, wrong=60), answered(shift=0.02, wrong=41))
    deltas = next(line for line in lines(made)["gender"] if line.key == "delta_student")
    assert deltas.real == (False, False, False, True, False)
    text = as_markdown(made)
    assert f"| **{deltas.texts[3]}** |" in text
    assert f"| {deltas.texts[4]} |" in text
    assert is_real((-1.0, -0.1))
    assert not is_real((-1.0, 0.0))
    assert not is_real((1e-5, 2e-5)), "printed, it is 0.00"
    assert not is_real(None)


def test_where_the_teacher_was_run_is_said() -> None:
    made = scorecard([(entry(TEACHER), replace(answered(), hardware="GPU: Board X")), (entry(STUDENT), answered())])
    assert heading(made.rows[0])[1] == ("fp32", "torch (GPU: Board X)", "0.00 MB")
    assert heading(made.rows[1])[1] == ("fp32", "torch", "0.00 MB")
    assert "torch (GPU: Board X)" in as_markdown(made)
    assert heading(card(answered()).rows[0])[1][1] == "torch (CPU)"


def test_lines_have_a_text_per_row() -> None:
    made = card(answered(wrong=45), "not here", budget={"gender": 1.0})
    printed = lines(made)
    assert set(printed) == {"landmarks5", "gender", "age"}
    for task in printed.values():
        for line in task:
            assert len(line.texts) == len(line.verdicts) == len(made.rows)
    deltas = next(line for line in printed["gender"] if "student" in line.title)
    assert deltas.title == "Δ student, points (budget 1)"
    assert [text.partition(" ±")[0] for text in deltas.texts] == ["-", "-", "-0.50", "-1.25", "-"]
    assert deltas.texts[3].endswith("✗")
    assert with_interval(-0.5, (-1.0, 0.25)) == "-0.50 ±0.62"
    assert deltas.verdicts == (None, None, None, False, None)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.00"), (-0.001, "0.00"), (0.005001, "+0.01"), (-1.5, "-1.50"), (None, "-")]
)
def test_deltas_carry_their_sign(value: float | None, text: str) -> None:
    assert signed(value) == text


def test_measuring_runs_each_model_on_its_own_crops_and_reports_missing_tools() -> None:
    from types import SimpleNamespace

    truth = labels()

    class Still:
        runtime, precision = "torch", "fp32"

        def __init__(self, px: int) -> None:
            self.spec = replace(SPEC, input_px=px)

        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            assert batch.shape[1] == self.spec.input_px
            return {output.name: np.zeros((len(batch), *output.shape), np.float32) for output in SPEC.outputs}

    def crops(runner: Still) -> SimpleNamespace:
        px = runner.spec.input_px
        return SimpleNamespace(
            images=np.zeros((N, px, px, 3), np.uint8),
            px=px,
            margin=1.0,
            keys=tuple(map(str, range(N))),
            people=tuple(map(str, range(N))),
            groups={},
            labels=truth,
            name="toy",
            source="toy@val",
            licence="none",
            research_only=False,
            skipped={},
            derived=(),
            pairs=None,
        )

    def missing() -> Still:
        raise MissingToolError("ai-edge-litert is not installed", do="Install it")

    entries = [
        Entry(role=TEACHER, name="big", open=lambda: Still(32)),
        Entry(role=STUDENT, name="small", open=lambda: Still(16)),
        Entry(role=FILE, name="shipped", open=missing),
    ]
    told: list[tuple[str, int, int]] = []
    made = measure(entries, crops, budget=budgets({"gender": 1.0}), progress=lambda *now: told.append(now))
    assert [row.outcome for row in made.rows] == ["MEASURED", "MEASURED", "NOT_RUN"]
    assert "not installed" in made.rows[2].reason
    assert told[-1] == ("small", N, N)
    assert {name for name, _, _ in told} == {"big", "small"}
    assert made.rows[1].tasks["landmarks5"].agreement["distance_percent"] == 0.0
    assert made.rows[1].tasks["gender"].value == evaluate(Still(16), crops(Still(16))).tasks["gender"]["accuracy"]


def test_run_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("targets.runners", reason="no runners")
    with pytest.raises(ModelError, match="no teacher, student or qat checkpoint"):
        stage_entries(tmp_path)


def test_relative_change_of_nothing_has_no_interval() -> None:
    rows = [(entry(STUDENT), answered(years=0.0)), (entry(FILE), answered(years=1.0))]
    cell = scorecard(rows, budget=budgets({"age": 10.0})).rows[1].tasks["age"]
    assert cell.delta_student is None
    assert cell.interval is None
    assert cell.within_budget is False
