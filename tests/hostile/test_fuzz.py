"""A small share of what `python -m benchmarks.fuzz` runs, and that its loop would notice a reader that fails."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

import benchmarks.fuzz as fuzzer
from edgeface.errors import DataError

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz.json"


@pytest.mark.parametrize("name", fuzzer.READERS)
def test_hostile_inputs_are_read_or_refused(name: str) -> None:
    row = fuzzer.fuzz(name, inputs=60, seed=7)
    assert row["found"] == []
    assert row["refused"] > 0
    assert row["accepted"] + row["refused"] == 60


@pytest.mark.parametrize("name", fuzzer.READERS)
def test_some_inputs_are_whole_enough_to_be_read(name: str) -> None:
    """Else only the first check of a reader would ever run."""
    row = fuzzer.fuzz(name, inputs=120, seed=3)
    assert row["accepted"] > 0


def _reader(fail: Any) -> Any:
    return lambda: fuzzer.Reader(make=lambda dice: {"a": bytes([dice.randrange(256)])}, read=fail)


def test_a_reader_that_fails_is_noticed_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        value = (folder / "a").read_bytes()[0]
        if value < 64:
            raise KeyError(value)
        if value < 128:
            raise DataError("no")

    monkeypatch.setitem(fuzzer.READERS, "bad", _reader(fail))
    row = fuzzer.fuzz("bad", inputs=200)
    (found,) = row["found"]
    assert found["case"].startswith("KeyError")
    assert found["count"] + row["accepted"] + row["refused"] == 200
    assert found["count"] > 10


def test_a_reader_that_hangs_is_noticed_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(folder: Path) -> None:
        end = time.process_time() + 20.0
        while time.process_time() < end:
            pass

    monkeypatch.setattr(fuzzer, "SLOW_S", 0.05)
    monkeypatch.setitem(fuzzer.READERS, "slow", _reader(hang))
    (found,) = fuzzer.fuzz("slow", inputs=1)["found"]
    assert found["case"].startswith("SlowError")


def test_an_error_that_cannot_be_printed_is_noticed_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    class MuteError(DataError):
        def __str__(self) -> str:
            return "\ud800"

    def fail(folder: Path) -> None:
        raise MuteError("x")

    monkeypatch.setitem(fuzzer.READERS, "mute", _reader(fail))
    (found,) = fuzzer.fuzz("mute", inputs=1)["found"]
    assert found["case"].startswith("UnicodeEncodeError")


@pytest.mark.parametrize("name", fuzzer.READERS)
def test_an_input_is_a_function_of_seed_and_index(name: str) -> None:
    reader = fuzzer.READERS[name]()
    first, again, other = (reader.make(random.Random(text)) for text in ("0:5", "0:5", "0:6"))
    assert first == again
    assert first != other


@pytest.mark.skipif(not RESULTS.is_file(), reason="benchmarks/results/fuzz.json is not there")
def test_the_recorded_table_is_that_of_its_figures() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    text = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    assert fuzzer.markdown(rows) in text
    assert all(row["found"] == [] for row in rows)
    rows[0]["refused"] += 1
    assert fuzzer.markdown(rows) not in text
