"""A small share of what `python -m benchmarks.fuzz` runs, and that its loop would notice a reader that fails."""

from __future__ import annotations

import ctypes
import datetime
import faulthandler
import io
import json
import random
import re
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import benchmarks.fuzz.__main__ as program
from benchmarks.fuzz import loop
from benchmarks.fuzz.mutate import room, toml_of
from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.readers import READERS
from edgeface.errors import DataError
from edgeface.provenance import commit

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz.json"


# Writing the files that these start from takes seconds; those of Core ML the longest.
APART = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "openvino": "openvino", "mil": "coremltools"}
EACH = [pytest.param(name, marks=pytest.mark.slow if name in ("onnx", "openvino", "mil") else ()) for name in READERS]


def _row(name: str, *, inputs: int, seed: int) -> dict[str, Any]:
    if name in APART:
        pytest.importorskip(APART[name], reason=f"{APART[name]} is not installed")
    return loop.fuzz(name, inputs=inputs, seed=seed)


@pytest.mark.parametrize("name", EACH)
def test_hostile_inputs_are_read_or_refused(name: str) -> None:
    """Some are whole enough to be read: else only the first check of a reader would ever run."""
    row = _row(name, inputs=120, seed=3)
    assert row["found"] == []
    assert row["refused"] > 0
    assert row["accepted"] > 0
    assert row["accepted"] + row["refused"] == 120


@pytest.mark.slow
def test_processes_that_share_the_inputs_count_what_one_does() -> None:
    timing = ("seconds", "slowest_ms", "slowest")
    one, two = (loop.fuzz("pairs", inputs=90, seed=4, jobs=jobs) for jobs in (1, 2))
    assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in two.items() if k not in timing}
    assert one["accepted"] != loop.fuzz("pairs", inputs=90, seed=5)["accepted"], (
        "the twin: other inputs count otherwise"
    )


def test_what_two_processes_found_is_one_list() -> None:
    counts = [loop.Count(name="x", engine="mutation", seed=0, told=print) for _ in range(2)]
    for count, at, case in ((counts[0], "0:8", "a"), (counts[1], "0:3", "a"), (counts[1], "0:5", "b")):
        count.add(loop.Outcome(kind="found", case=case), at, took=1.0)
    counts[0].take_in(counts[1])
    row = counts[0].row()
    assert row["found"] == [{"case": "a", "first": "0:3", "count": 2}, {"case": "b", "first": "0:5", "count": 1}]
    assert row["inputs"] == 3


def _reader(fail: Any, *, trial: Any = None) -> Any:
    return lambda: Reader(make=lambda dice: {"a": bytes([dice.randrange(256)])}, read=fail, trial=trial)


def test_a_reader_that_fails_is_noticed_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        value = (folder / "a").read_bytes()[0]
        if value < 64:
            raise KeyError(value)
        if value < 128:
            raise DataError("no")

    monkeypatch.setitem(READERS, "bad", _reader(fail))
    row = loop.fuzz("bad", inputs=200)
    (found,) = row["found"]
    assert found["case"].startswith("KeyError")
    assert found["count"] + row["accepted"] + row["refused"] == 200
    assert found["count"] > 10


def test_a_reader_that_hangs_is_noticed_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(folder: Path) -> None:
        end = time.process_time() + 20.0
        while time.process_time() < end:
            pass

    monkeypatch.setattr(loop, "SLOW_S", 0.05)
    monkeypatch.setitem(READERS, "slow", _reader(hang))
    (found,) = loop.fuzz("slow", inputs=1)["found"]
    assert found["case"].startswith("SlowError")


def test_an_error_that_cannot_be_printed_is_noticed_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    class MuteError(DataError):
        def __str__(self) -> str:
            return "\ud800"

    def fail(folder: Path) -> None:
        raise MuteError("x")

    monkeypatch.setitem(READERS, "mute", _reader(fail))
    (found,) = loop.fuzz("mute", inputs=1)["found"]
    assert found["case"].startswith("UnicodeEncodeError")


def _crash(folder: Path) -> None:
    value = (folder / "a").read_bytes()[0]
    if value < 64:
        faulthandler.disable()  # this crash is meant, and nobody needs its trace
        ctypes.string_at(0)
    if value < 128:
        raise ValueError(value)


def test_what_ends_its_trial_is_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "crash", _reader(lambda folder: None, trial=_crash))
    row = loop.fuzz("crash", inputs=60)
    values = [loop.make_input("crash", seed=0, index=index)["a"][0] for index in range(60)]
    assert row["ended"] == sum(value < 64 for value in values) > 5
    assert row["refused"] == sum(value < 128 for value in values)
    assert row["found"] == []


def test_what_ends_the_process_after_its_trial_is_found_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "crash", _reader(_crash, trial=lambda folder: None))
    row = loop.fuzz("crash", inputs=60)
    cases = {found["case"].partition(" in ")[0]: found["count"] for found in row["found"]}
    assert cases.keys() == {"ended by SIGSEGV after its trial", "ValueError"}
    assert row["accepted"] + sum(cases.values()) == 60


def test_native_code_that_hangs_in_its_trial_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(folder: Path) -> None:
        re.match(r"(a|a)*b", "a" * 40)  # no handler of Python's runs before this returns

    monkeypatch.setattr(loop, "SLOW_S", 0.2)
    monkeypatch.setitem(READERS, "hang", _reader(lambda folder: None, trial=hang))
    assert loop.fuzz("hang", inputs=2)["ended"] == 2


@pytest.mark.parametrize("name", EACH)
def test_an_input_is_a_function_of_seed_and_index(name: str) -> None:
    reader = READERS[name]()
    first, again, other = (reader.make(random.Random(text)) for text in ("0:5", "0:5", "0:6"))
    assert first == again
    assert first != other
    if reader.grown is not None:  # what coverage leads is the same file
        assert reader.grown.taken(reader.grown.embed(reader.grown.taken(first))) == reader.grown.taken(first)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # two members of one archive, which is meant
def test_an_input_holds_no_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did could not be made again by its seed and index."""

    def twin() -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a", b"")
        return stream.getvalue()

    def made() -> list[Any]:
        return [READERS["golden"]().make(random.Random(str(index))) for index in range(20)]

    early = made(), twin()
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((2031, 1, 1, 0, 0, 0, 0, 1, 0)))
    late = made(), twin()
    assert early[0] == late[0]
    assert early[1] != late[1]


@pytest.mark.skipif(not RESULTS.is_file(), reason="benchmarks/results/fuzz.json is not there")
def test_the_recorded_table_is_that_of_its_figures() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    text = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    assert program.markdown(rows) in text
    assert all(row["found"] == [] for row in rows)
    rows[0]["refused"] += 1
    assert program.markdown(rows) not in text


def _recorded(out: Path) -> dict[str, tuple[str, str]]:
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    return {row["reader"]: (row["commit"], row["date"]) for row in rows}


def test_a_row_keeps_the_commit_and_date_that_it_was_recorded_at(tmp_path: Path) -> None:
    """One commit for all rows would be that of the last one, and false of the others."""
    out = tmp_path / "fuzz.json"
    row = loop.Count(name="pairs", engine="mutation", seed=0, told=print).row()
    program.record(out, [{**row, "commit": "a", "date": "2026-01-01"}])
    program.record(out, [{**row, "reader": "recipe", "commit": "b", "date": "2026-01-02"}])
    assert _recorded(out) == {"pairs": ("a", "2026-01-01"), "recipe": ("b", "2026-01-02")}
    assert "commit" not in json.loads(out.read_text(encoding="utf-8"))["conditions"]
    program.record(out, [{**row, "commit": "c", "date": "2026-01-03"}])  # the twin: a row that is recorded anew
    assert _recorded(out) == {"pairs": ("c", "2026-01-03"), "recipe": ("b", "2026-01-02")}


def test_of_rows_that_named_no_commit_it_is_unknown(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    row = loop.Count(name="pairs", engine="mutation", seed=0, told=print).row()
    out.write_text(json.dumps({"schema": 1, "rows": [row], "conditions": {"commit": "z"}}), encoding="utf-8")
    program.record(out, [{**row, "reader": "recipe", "commit": "b", "date": "2026-01-02"}])
    assert _recorded(out) == {"pairs": ("unknown", "unknown"), "recipe": ("b", "2026-01-02")}


def test_the_command_line_records_its_commit_and_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "fuzz.json"
    monkeypatch.setattr(sys, "argv", ["fuzz", "pairs", "--inputs", "3", "--out", str(out)])
    monkeypatch.setattr(program.resource, "setrlimit", lambda *_: None)  # it would hold for the tests after this one
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 0
    made_at, date = _recorded(out)["pairs"]
    assert (made_at, date) == (commit(), datetime.date.today().isoformat())
    assert made_at != "unknown"


def test_a_tree_grown_into_a_tree_can_be_written() -> None:
    deep: object = 0
    for _ in range(3000):  # a dozen deep values, one in another
        deep = [deep]
    with room():
        assert toml_of({"a": deep}).count("[") == 3000
    with pytest.raises(RecursionError):  # twin
        toml_of({"a": deep})
