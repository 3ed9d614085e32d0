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

from edgeface.errors import DataError, MissingToolError, ModelError
from edgeface.evaluate import Evaluation, evaluate
from edgeface.metrics import agreement, score
from edgeface.report.scorecard import (
    CURVE_PERCENT,
    FAKE_QUANT,
    FILE,
    STUDENT,
    TEACHER,
    Entry,
    Scorecard,
    from_json,
    lines,
    measure,
    read_scorecard,
    render,
    scorecard,
    signed,
    stage_entries,
)
from edgeface.specs import ModelSpec, output_spec
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


def card(*files: Evaluation | str, budget: dict[str, float] | None = None) -> Scorecard:
    rows = [
        (entry(TEACHER), answered(shift=0.01, wrong=20)),
        (entry(STUDENT), answered(shift=0.02, wrong=40)),
        (entry(FAKE_QUANT), answered(shift=0.022, wrong=42)),
        *((entry(FILE, f"file{i}"), made) for i, made in enumerate(files)),
    ]
    return scorecard(rows, budget=budget)


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
    made = scorecard([(entry(FILE), answered())], budget={"gender": 1.0})
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
    for text in ("landmarks5", "failures, %", "Δ student, points", "file1: not here", "FAIL", "NOT_RUN", "88.75"):
        assert text in plain
    assert re.search(r"\x1b\[1;31m *-1\.25 ✗", styled)
    assert not re.search(r"\x1b\[1;31m *-0\.50", styled)


def test_lines_have_a_text_per_row() -> None:
    made = card(answered(wrong=45), "not here", budget={"gender": 1.0})
    printed = lines(made)
    assert set(printed) == {"landmarks5", "gender", "age"}
    for task in printed.values():
        for line in task:
            assert len(line.texts) == len(line.verdicts) == len(made.rows)
    deltas = next(line for line in printed["gender"] if "student" in line.title)
    assert deltas.title == "Δ student, points (budget 1)"
    assert deltas.texts == ("-", "-", "-0.50", "-1.25 ✗", "-")
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
            labels=truth,
            name="toy",
            source="toy@val",
            licence="none",
            research_only=False,
            skipped={},
        )

    def missing() -> Still:
        raise MissingToolError("ai-edge-litert is not installed", do="Install it")

    entries = [
        Entry(role=TEACHER, name="big", open=lambda: Still(32)),
        Entry(role=STUDENT, name="small", open=lambda: Still(16)),
        Entry(role=FILE, name="shipped", open=missing),
    ]
    told: list[tuple[str, int, int]] = []
    made = measure(entries, crops, budget={"gender": 1.0}, progress=lambda *now: told.append(now))
    assert [row.outcome for row in made.rows] == ["MEASURED", "MEASURED", "NOT_RUN"]
    assert "not installed" in made.rows[2].reason
    assert told[-1] == ("small", N, N)
    assert {name for name, _, _ in told} == {"big", "small"}
    assert made.rows[1].tasks["landmarks5"].agreement["distance_percent"] == 0.0
    assert made.rows[1].tasks["gender"].value == evaluate(Still(16), crops(Still(16))).tasks["gender"]["accuracy"]

    # A second bundle of the same run: its checkpoints are not run again, its files are.
    known: dict[str, Evaluation] = {}
    measure(entries, crops, known=known)
    assert known.keys() == {"big", "small"}
    told.clear()
    files = [*entries[:2], Entry(role=FILE, name="shipped", open=lambda: Still(16))]
    again = measure(files, crops, budget={"gender": 1.0}, progress=lambda *now: told.append(now), known=known)
    assert {name for name, _, _ in told} == {"shipped"}
    assert again.rows[1].tasks["gender"] == made.rows[1].tasks["gender"]


def test_run_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("targets.runners", reason="no runners")
    with pytest.raises(ModelError, match="no teacher, student or qat checkpoint"):
        stage_entries(tmp_path)


def test_relative_change_of_nothing_has_no_interval() -> None:
    rows = [(entry(STUDENT), answered(years=0.0)), (entry(FILE), answered(years=1.0))]
    cell = scorecard(rows, budget={"age": 10.0}).rows[1].tasks["age"]
    assert cell.delta_student is None
    assert cell.interval is None
    assert cell.within_budget is False
