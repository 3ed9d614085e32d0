"""benchmarks/pareto.py: a sweep's folder becomes table, chart and page, with the front marked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.pareto import RESULTS, found_in, main, markdown, read, write
from edgeface.errors import ModelError
from edgeface.report.pareto import DONE, REFUSED, Candidate, csv_text, with_fronts
from edgeface.report.swept import SWEPT, Swept

TASKS = {"gender": "accuracy", "landmarks5": "nme_percent"}


def candidate(student: str, *, ms: float, accuracy: float, nme: float) -> Candidate:
    trial = f"trials/{student}-w1-64px"
    return Candidate(
        student=student,
        width=1.0,
        input_px=64,
        precision="w8a8",
        state=DONE,
        file=f"{trial}/out/android/{student}.w8a8.tflite",
        metrics={"gender": {"accuracy": accuracy, "n": 90}, "landmarks5": {"nme_percent": nme, "n": 90}},
        costs={"latency_ms": ms, "size_bytes": 1000.0 * ms, "macs": None},
        seconds=7200.0,
    )


THREE = [
    candidate("edge_s", ms=0.2, accuracy=0.90, nme=3.4),
    candidate("cnn5", ms=0.5, accuracy=0.89, nme=3.6),
    candidate("vgg11", ms=3.0, accuracy=0.93, nme=3.2),
]
NONE = Candidate(student="lightcnn9", width=1.0, input_px=16, precision="", state=REFUSED, reason="input too small")


def written(folder: Path, candidates: list[Candidate]) -> Path:
    marked = with_fronts(candidates, tasks=TASKS, cost="latency_ms")
    kept = Swept(
        name="toy",
        summary="",
        candidates=marked,
        tasks=TASKS,
        cost="latency_ms",
        teacher={"gender": {"accuracy": 0.95, "n": 90}},
        source=dict.fromkeys(TASKS, "mtfl@val"),
        running=[],
        left=0,
        conditions="Times are medians of 400 runs on a toy.",
        noisy=False,
        recipe="",
    )
    (folder / SWEPT).write_text(json.dumps(kept.as_json()))
    for each in candidates:
        if each.file:
            stage = folder / Path(each.file).parents[2] / "student"
            stage.mkdir(parents=True)
            training = {"steps": 3000, "samples": 1, "seconds": 7200.0, "resumed_at": [1400]}
            (stage / "manifest.json").write_text(json.dumps({"training": training}))
    return folder


def test_what_the_sweep_wrote_is_read_back_and_written_alike(tmp_path: Path) -> None:
    folder = written(tmp_path, [*THREE, NONE])
    found = read(folder)
    assert found.swept.tasks == TASKS
    assert list(found.swept.candidates) == with_fronts([*THREE, NONE], tasks=TASKS, cost="latency_ms")
    places = write(found, tmp_path / "pareto-toy")
    assert sorted(place.suffix for place in places) == [".csv", ".json", ".md", ".png"]
    result = json.loads((tmp_path / "pareto-toy.json").read_text(encoding="utf-8"))
    assert markdown(found_in(result), name="toy") == (tmp_path / "pareto-toy.md").read_text(encoding="utf-8")
    assert (tmp_path / "pareto-toy.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "pareto-toy.csv").read_text(encoding="utf-8")
    assert table == csv_text(found.swept.candidates, tasks=TASKS)
    assert table != csv_text(found.swept.candidates[1:], tasks=TASKS), "twin"


def test_the_page_marks_the_front_and_says_what_is_missing(tmp_path: Path) -> None:
    text = markdown(read(written(tmp_path, [*THREE, NONE])), name="toy")
    assert "| ● | `edge_s ×1 64 px` | w8a8 | **90.00** | **3.40** | 0.200 |" in text
    assert "|  | `cnn5 ×1 64 px` | w8a8 | 89.00 | 3.60 | 0.500 |" in text
    assert "Front of gender, from the cheapest: `edge_s ×1 64 px` w8a8, `vgg11 ×1 64 px` w8a8." in text
    assert "3 files of 3 students" in text
    assert "At least 8 are asked for" in text
    assert "REFUSED `lightcnn9 ×1 16 px`: input too small" in text
    assert "Times are medians of 400 runs on a toy." in text
    assert "|  | teacher |  | 95.00 | - |" in text
    assert "| `vgg11 ×1 64 px` | student | 3,000 | 2.00 | 1,400 |" in text


def test_another_figure_moves_the_front_twin(tmp_path: Path) -> None:
    better = {"gender": {"accuracy": 0.91, "n": 90}, "landmarks5": {"nme_percent": 3.6, "n": 90}}
    text = markdown(read(written(tmp_path, [THREE[0], replace(THREE[1], metrics=better), THREE[2]])), name="toy")
    assert "| ● | `cnn5 ×1 64 px` | w8a8 | **91.00** | 3.60 | 0.500 |" in text


@pytest.mark.parametrize("content", [None, "", "[]", '{"trials": 3}'])
def test_a_folder_without_a_sweep_is_refused(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / SWEPT).write_text(content)
    with pytest.raises(ModelError, match=r"no figures of a sweep|cannot be used"):
        read(tmp_path)
    monkeypatch.setattr("sys.argv", ["pareto", str(tmp_path), "--out", str(tmp_path / "pareto-x")])
    assert main() == 2
    assert "Type the edgeface sweep command" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(RESULTS.glob("pareto-*.json")), ids=lambda path: path.stem)
def test_a_committed_page_and_its_values_are_those_of_its_figures(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    found, text = found_in(result), path.with_suffix(".md").read_text(encoding="utf-8")
    name = path.stem.removeprefix("pareto-")
    assert markdown(found, name=name) == text
    assert csv_text(found.swept.candidates, tasks=found.swept.tasks) == path.with_suffix(".csv").read_text("utf-8")
    assert path.with_suffix(".png").is_file()
    moved = next(each for each in result["sweep"]["trials"] if each["state"] == DONE)
    moved["costs"]["latency_ms"] *= 2.0
    assert markdown(found_in(result), name=name) != text  # the twin
