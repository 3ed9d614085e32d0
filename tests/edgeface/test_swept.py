"""A sweep in the report: what is kept of it, its page, its place in the report of a trial, and damaged figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeface.cli.main import main
from edgeface.cli.report import sweep_of
from edgeface.errors import ModelError
from edgeface.files import write_json
from edgeface.report.html import page, sweep_page
from edgeface.report.pareto import DONE, FAILED, REFUSED, Candidate, with_fronts
from edgeface.report.swept import SWEPT, Swept, read_swept

TASKS = {"smile": "accuracy", "landmarks5": "nme_percent"}
TRIAL, OTHER = "edge_s-w0.5-48px-1a2b3c4d", "cnn5-w1-48px-5e6f7a8b"


def candidate(nme: float, accuracy: float, ms: float, *, trial: str = TRIAL, **changes: object) -> Candidate:
    fields: dict[str, object] = {
        "student": "edge_s",
        "width": 0.5,
        "input_px": 48,
        "precision": "w8a8",
        "state": DONE,
        "file": f"trials/{trial}/out/android/edge_s.w8a8.tflite",
        "metrics": {"landmarks5": {"nme_percent": nme, "n": 20.0}, "smile": {"accuracy": accuracy, "n": 20.0}},
        "costs": {"latency_ms": ms, "size_bytes": 2048.0, "macs": None},
        "seconds": 12.5,
    }
    return Candidate(**(fields | changes))  # type: ignore[arg-type]


FOUND = [
    candidate(5.0, 0.9, 0.2),
    candidate(4.0, 0.8, 0.4, trial=OTHER, student="cnn5", width=1.0),
    candidate(6.0, 0.7, 0.3, precision="fp32", file=f"trials/{TRIAL}/out/android/edge_s.fp32.tflite"),
    Candidate(student="cnn5", width=1.0, input_px=16, precision="", state=REFUSED, reason="16 px <is> too small"),
]


def swept(**changes: object) -> Swept:
    fields: dict[str, object] = {
        "name": "a <sweep>",
        "summary": "of two students",
        "candidates": with_fronts(FOUND, tasks=TASKS, cost="latency_ms"),
        "tasks": TASKS,
        "cost": "latency_ms",
        "teacher": {"landmarks5": {"nme_percent": 3.21}},
        "source": dict.fromkeys(TASKS, "synthetic:20@val"),
        "running": [],
        "left": 0,
        "conditions": "one thread of a toy",
        "noisy": False,
        "recipe": "name = 'a'",
    }
    return Swept(**(fields | changes))  # type: ignore[arg-type]


def kept(folder: Path, found: Swept) -> Path:
    write_json(folder / SWEPT, found.as_json())
    return folder


def test_what_is_kept_is_read_back_with_its_fronts_and_the_order_of_its_objectives(tmp_path: Path) -> None:
    found = swept()
    again = read_swept(kept(tmp_path, found))
    assert again == found
    assert list(again.tasks) == list(TASKS)
    assert [each.on_front for each in again.candidates] == [True, True, False, False]
    assert again != swept(left=1)  # twin
    assert found.as_json(Path("runs/x"))["trials"][0]["file"] == f"runs/x/{FOUND[0].file}"


def test_a_front_that_a_file_claims_is_not_believed(tmp_path: Path) -> None:
    plain = swept().as_json()
    plain["trials"][2]["front"] = True
    write_json(tmp_path / SWEPT, plain)
    assert [each.on_front for each in read_swept(tmp_path).candidates] == [True, True, False, False]


def test_the_page_of_a_sweep_stands_alone_and_escapes_what_it_is_given() -> None:
    report = sweep_page(swept())
    assert [plot.name for plot in report.plots] == ["pareto"]
    for words in (
        "a &lt;sweep&gt;",
        "16 px &lt;is&gt; too small",
        "3 files, 2 on the front",
        "one thread of a toy",
        "3.21",
    ):
        assert words in report.html
    assert "http" not in report.html
    assert "<script" not in report.html
    assert report.html.count('class="front"') == 2
    assert "this run" not in report.html
    assert "Finished: 2 students, 1 refused" in report.html


def test_the_head_says_what_failed_and_what_is_to_come() -> None:
    failed = replace(FOUND[3], state=FAILED)
    assert "✗ FAILED: cnn5 ×1 16 px" in sweep_page(swept(candidates=[*swept().candidates[:3], failed])).html
    unfinished = sweep_page(swept(running=["edge_s-w1-48px"], left=2)).html
    assert "Not finished: trials at work 1, not begun 2" in unfinished
    assert "Not finished" not in sweep_page(swept()).html  # twin


def test_a_sweep_without_a_file_yet_has_a_page_without_a_chart() -> None:
    report = sweep_page(swept(candidates=[], tasks={}, left=4))
    assert not report.plots
    assert "0 files" in report.html


def test_the_files_of_a_run_stand_out_in_its_report() -> None:
    own = [FOUND[0].file, FOUND[2].file]
    report = page(name="trial", cards=[], sweep=swept(), own=own)
    assert report.html.count("<small>this run</small>") == 2
    assert "have a ring" in report.html
    stranger = page(name="other", cards=[], sweep=swept(), own=["trials/none/x.tflite"])  # twin
    assert "this run" not in stranger.html
    assert len(re.findall("<use ", report.html)) == len(re.findall("<use ", stranger.html)) + 2 * len(TASKS)
    assert 'id="sweep"' not in page(name="no trial", cards=[]).html


def test_a_run_is_known_as_a_trial_by_where_it_lies(tmp_path: Path) -> None:
    sweep = kept(tmp_path / "sweep", swept())
    for name in (TRIAL, OTHER):
        (sweep / "trials" / name).mkdir(parents=True)
    found, own = sweep_of(sweep / "trials" / TRIAL)
    assert found == swept()
    assert own == [FOUND[0].file, FOUND[2].file]
    assert sweep_of(sweep / "trials" / OTHER)[1] == [FOUND[1].file]
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    assert sweep_of(elsewhere) == (None, [])
    assert sweep_of(elsewhere, sweep) == (swept(), [])
    (tmp_path / "trials" / "x").mkdir(parents=True)  # a folder of that name in no sweep
    assert sweep_of(tmp_path / "trials" / "x") == (None, [])
    with pytest.raises(ModelError, match="no figures of a sweep"):
        sweep_of(elsewhere, tmp_path)


def test_report_of_a_sweep_measures_nothing_and_tells_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, swept())
    assert main(["report", str(tmp_path), "--plots", str(tmp_path / "plots"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["scorecards"]) == (1, [])
    assert told["sweep"] == json.loads((tmp_path / SWEPT).read_text())
    assert Path(told["report"]) == tmp_path / "report.html"
    assert Path(told["report"]).read_text() == sweep_page(swept()).html
    assert [Path(path).name for path in told["plots"]] == ["pareto.png"]
    assert (tmp_path / "plots" / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    for words in (["--data", "synthetic:8"], ["--sweep", str(tmp_path)], ["--on", "arm64"]):
        assert main(["report", str(tmp_path), *words, "--json"]) == 2
        assert "with a sweep" in json.loads(capsys.readouterr().out)["error"]["found"]


def test_a_sweep_that_has_given_nothing_yet_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trials").mkdir()
    assert main(["report", str(tmp_path), "--json"]) == 2
    assert "edgeface sweep" in json.loads(capsys.readouterr().out)["error"]["do"]


def first(plain: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plain["trials"][0]
    return found


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("trials"),
        lambda plain: plain.update(schema=2),
        lambda plain: plain.update(trials={"a": 1}),
        lambda plain: plain.update(trials=[1]),
        lambda plain: plain.update(cost="price"),
        lambda plain: plain.update(cost=["macs"]),
        lambda plain: plain.update(objectives=["smile"]),
        lambda plain: plain.update(objectives=[["smile"], "landmarks5"]),
        lambda plain: plain.update(tasks={"smile": "no such metric", "landmarks5": "nme_percent"}),
        lambda plain: plain.update(tasks={"smile": "nonsense", "landmarks5": "nme_percent"}),
        lambda plain: plain.update(teacher=[1]),
        lambda plain: plain.update(left="2"),
        lambda plain: plain.update(running=[1]),
        lambda plain: plain.update(name=None),
        lambda plain: first(plain).update(file="../../etc/passwd"),
        lambda plain: first(plain).update(file="/etc/passwd"),
        lambda plain: first(plain).update(file=""),
        lambda plain: first(plain).update(student="<b>edge_s</b>"),
        lambda plain: first(plain).update(width="0.5"),
        lambda plain: first(plain).update(state="WELL"),
        lambda plain: first(plain).update(costs={"latency_ms": "fast"}),
        lambda plain: first(plain).update(costs={"latency_ms": 10**400}),
        lambda plain: first(plain).update(tasks={"smile": {"accuracy": True}}),
        lambda plain: first(plain).update(tasks={"no_task": {"accuracy": 1.0}}),
        lambda plain: first(plain).pop("seconds"),
    ],
)
def test_damaged_figures_are_an_error_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[dict[str, Any]], object]
) -> None:
    plain = swept().as_json()
    damage(plain)
    (tmp_path / SWEPT).write_text(json.dumps(plain))
    assert main(["report", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["where"] == str(tmp_path / SWEPT)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"schema": NaN}'])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SWEPT).write_bytes(content)
    with pytest.raises(ModelError, match=r"sweep\.json"):
        read_swept(tmp_path)
