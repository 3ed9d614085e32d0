"""What `edgeface check` prints: an outcome for every file, its reasons once, and an exit code that says the same."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeface.cli import check as verb
from edgeface.cli.check import EXIT_CODES
from edgeface.cli.main import VERBS, _parse
from edgeface.errors import UsageError
from targets.devices import FORMS
from targets.devices.answer import Check, Row, TaskScores, not_run
from targets.judge import Judgement, judge

CODES = {"gender": np.arange(8, dtype=np.int8).reshape(4, 2)}
LATENCY = {"median_ms": 0.25, "p90_ms": 0.3, "p99_ms": 0.4, "runs": 200, "load_ms": 2.0}


def judgement(*, steps: int = 0, identical: bool = True) -> Judgement:
    found = {"gender": CODES["gender"] + np.int8(steps)}
    return judge(CODES, found, precision="w8a8", grids={"gender": (0.5, 0)}, identical=identical)


def row(runtime: str = "tflite-xnnpack", *, outcome: str = "PASS", reason: str = "", worse: float = 0.0) -> Row:
    ran = outcome != "NOT_RUN"
    found = judgement(steps=outcome == "FAIL") if ran else None
    tasks = {
        "gender": TaskScores(there={"accuracy": 0.5, "n": 4}, here={"accuracy": 0.5, "n": 4}, worse_by=worse),
        "pose": TaskScores(there={"accuracy": 0.5, "n": 4}, here={"accuracy": 0.5, "n": 4}, worse_by=-9.0),
    }
    return Row(
        file="edge_s.w8a8.tflite",
        precision="w8a8",
        runtime=runtime,
        outcome=outcome,
        reason=reason,
        own=runtime == "tflite-xnnpack",
        identical=runtime == "tflite-xnnpack",
        here=found,
        golden=found,
        tasks=tasks if ran else {},
        latency=LATENCY if ran else None,
        latency_reason="" if ran else "not run",
    )


def answer(*rows: Row) -> Check:
    return Check(on="host", bundle="out/android", rows=rows, faces=4, machine={"model": "a box"}, versions={})


def printed(found: Check) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=200).print(verb._rendered(found))
    return stream.getvalue()


def test_pass_shows_share_steps_task_and_time() -> None:
    text = printed(answer(row(worse=1.25)))

    assert text.startswith("PASS out/android on host")
    for shown in ("a box", "100.000%", "same", "gender -1.25", "0.250", "the same to the bit"):
        assert shown in text


def test_task_that_lost_nothing_is_not_named() -> None:
    text = printed(answer(row(worse=0.0)))

    assert "none lost" in text
    assert "pose +" not in text
    assert "pose -" not in text


def test_metrics_there_stand_beside_those_expected() -> None:
    scores = TaskScores(there={"accuracy": 0.25, "n": 4}, here={"accuracy": 0.5, "n": 4}, worse_by=25.0)

    text = printed(answer(replace(row(), tasks={"gender": scores})))

    assert re.search(r"gender\s+accuracy, %\s+25\.00\s+50\.00\s+4", text), text
    assert "gender -25.00" in text


def test_metric_without_a_value_is_a_dash() -> None:
    scores = TaskScores(there={"n": 4}, here=None, worse_by=None)

    text = printed(answer(replace(row(), tasks={"beauty_score": scores})))

    assert re.search(r"beauty_score .* -\s+-\s+4", text), text


def test_fail_says_why_and_that_bits_differ() -> None:
    text = printed(answer(row(outcome="FAIL", reason="output 'gender' differs")))

    assert text.startswith("FAIL")
    assert "FAIL edge_s.w8a8.tflite on tflite-xnnpack: output 'gender' differs" in text
    assert "NOT the same to the bit" in text


def test_one_reason_of_many_rows_is_printed_once() -> None:
    rows = [row(runtime, outcome="NOT_RUN", reason="no cable") for runtime in ("tflite-xnnpack", "tflite-builtin")]

    text = printed(answer(*rows))

    assert text.startswith("NOT_RUN")
    assert text.count("no cable") == 1
    assert "all of them: no cable" in text
    assert "max LSB" not in text
    assert "to the bit" not in text


def test_device_that_is_not_there_is_told_without_a_table() -> None:
    text = printed(not_run(Path("out/android"), on="adb", reason="no devices found"))

    assert " ".join(text.split()) == "NOT_RUN out/android on adb no devices found"


def test_what_was_compared_and_what_was_not_is_said() -> None:
    row_alone = replace(row(), golden=None, reference="tflite-xnnpack")
    found = replace(answer(row_alone), left_out=("no golden answers: those come with a bundle",))

    text = printed(found)

    assert "compared with what the same kernels answer here, in another process (4 inputs)\n" in text
    assert "no golden answers" in text
    assert found.as_json()["not_compared"] == ["no golden answers: those come with a bundle"]


def test_bundle_leaves_nothing_out_twin() -> None:
    others = replace(row("tflite-builtin"), reference="tflite-xnnpack")

    text = printed(answer(replace(row(), reference="tflite-xnnpack"), others))

    assert "what tflite-xnnpack answers here; the answers it was shipped with" in text
    assert "no golden answers" not in text


def test_nothing_is_said_of_what_was_not_run() -> None:
    found = replace(answer(row(outcome="NOT_RUN", reason="no cable")), left_out=("no golden answers",))

    assert found.compared == ()
    assert "no golden answers" not in printed(found)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (("PASS", "PASS"), "PASS"),
        (("PASS", "NOT_RUN"), "PASS"),
        (("PASS", "FAIL"), "FAIL"),
        (("NOT_RUN", "FAIL"), "FAIL"),
        (("NOT_RUN", "NOT_RUN"), "NOT_RUN"),
        ((), "NOT_RUN"),
    ],
)
def test_outcome_is_the_worst_that_was_measured(outcomes: tuple[str, ...], expected: str) -> None:
    found = answer(*(row(outcome=outcome, reason=outcome.lower()) for outcome in outcomes))

    assert found.outcome == expected
    assert EXIT_CODES[found.outcome] == {"PASS": 0, "FAIL": 1, "NOT_RUN": 3}[expected]


def test_bit_identity_speaks_of_the_own_runtime_alone() -> None:
    builtin = row("tflite-builtin", outcome="FAIL", reason="x")

    assert answer(row(), builtin).bit_identical is True
    assert answer(row(outcome="FAIL"), builtin).bit_identical is False
    assert answer(builtin).bit_identical is None
    assert answer(row(outcome="NOT_RUN")).bit_identical is None


def test_help_names_every_device() -> None:
    assert "check" in VERBS
    text = (Path(verb.__file__)).read_text(encoding="utf-8")
    assert all(form in text for form in FORMS)


DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "devices.md"


@pytest.mark.parametrize(
    "line", re.findall(r"^edgeface check .*", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
)
def test_documented_command_parses(line: str) -> None:
    _, arguments = _parse(shlex.split(line)[1:])

    assert arguments.on.partition(":")[0] in {form.partition(":")[0].partition("[")[0] for form in FORMS}


def test_undocumented_option_is_refused_twin() -> None:
    with pytest.raises(UsageError):
        _parse(["check", "out/android", "--on", "host", "--device", "x"])
