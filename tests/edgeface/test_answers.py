"""Answers kept in the cache: taken again, never for another model, and computed anew when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeface.data.pack import ANSWERS, Pack, clear_cache
from edgeface.evaluate import Outputs
from edgeface.report import answers
from edgeface.report.entries import Entry
from edgeface.report.measure import answer_ahead, measure
from edgeface.report.scorecard import FILE, TEACHER, Scorecard
from edgeface.specs import ModelSpec, output_spec

N = 40
SPEC = ModelSpec(name="toy", input_px=16, outputs=(output_spec("gender"), output_spec("age")))


class Counted:
    """Answers by the pictures' first pixel, and counts what it is asked."""

    precision = "fp32"

    def __init__(self, *, runtime: str = "torch", sign: float = 1.0) -> None:
        self.spec = SPEC
        self.runtime = runtime
        self.sign = sign
        self.asked = 0

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        self.asked += len(batch)
        first = self.sign * (batch[:, 0, 0, 0].astype(np.float32) - 20.0)
        return {"gender": np.stack([-first, first], 1), "age": np.tile(first[:, None], (1, 101))}


def pack(content_hash: str = "abc") -> Pack:
    images = np.zeros((N, 16, 16, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(N)
    return Pack(
        images=images, px=16, margin=1.0, keys=tuple(map(str, range(N))), people=tuple(map(str, range(N))),
        labels={"gender": (np.arange(N) > 20).astype(np.int64)}, groups={}, name="toy", source="toy@val", split="val",
        licence="none", research_only=False, skipped={}, content_hash=content_hash, folder=Path(),
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    return tmp_path


def scored(teacher: Counted, file: Counted, *, digest: str = "1" * 64, content: str = "abc") -> Scorecard:
    entries = [
        Entry(role=TEACHER, name="big", open=lambda: teacher, digest=digest),
        Entry(role=FILE, name="small", open=lambda: file),
    ]
    return measure(entries, lambda runner: pack(content))


def test_a_second_scorecard_asks_the_teacher_nothing(cache: Path) -> None:
    teacher, file = Counted(), Counted()
    first = scored(teacher, file)
    assert (teacher.asked, file.asked) == (N, N)
    second = scored(teacher, file)
    assert (teacher.asked, file.asked) == (N, 2 * N)  # an entry without a digest, such as a device, is never kept
    assert second.rows == first.rows
    assert len(list((cache / ANSWERS).iterdir())) == 1


def test_what_was_answered_ahead_is_not_asked_again(cache: Path) -> None:
    teacher, file = Counted(), Counted()
    entries = [
        Entry(role=TEACHER, name="big", open=lambda: teacher, digest="1" * 64),
        Entry(role=FILE, name="small", open=lambda: file),
    ]
    answer_ahead(entries, lambda runner: pack())
    assert (teacher.asked, file.asked) == (N, 0)
    scored(teacher, file)
    assert (teacher.asked, file.asked) == (N, N)
    scored(teacher, file, content="abd")  # Twin: other pictures were not answered
    assert teacher.asked == 2 * N


def test_another_model_source_or_runtime_is_asked_again_twin(cache: Path) -> None:
    teacher = Counted()
    scored(teacher, Counted())
    scored(teacher, Counted(), digest="2" * 64)
    assert teacher.asked == 2 * N
    scored(teacher, Counted(), content="abd")
    assert teacher.asked == 3 * N
    other = Counted(runtime="onnxruntime")
    scored(other, Counted())
    assert other.asked == N


def test_another_processor_or_version_is_another_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = answers.key("1", Counted(), pack())
    assert answers.key("1", Counted(), pack()) == here
    monkeypatch.setattr(answers, "cpu", lambda: {"model": "another", "flags": [], "cores": 1, "machine": "x86_64"})
    there = answers.key("1", Counted(), pack())
    monkeypatch.setattr(answers, "versions", lambda: {"torch": "0.1"})
    assert len({here, there, answers.key("1", Counted(), pack())}) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "short"])
def test_damaged_answers_are_computed_anew(cache: Path, damage: str) -> None:
    teacher = Counted()
    first = scored(teacher, Counted())
    (path,) = (cache / ANSWERS).iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 0xFF
    path.write_bytes({"cut": content[:100], "empty": b"", "text": b"no archive"}.get(damage, content))
    if damage == "short":
        np.savez(path, gender=np.zeros((N - 1, 2), np.float32), age=np.zeros((N - 1, 101), np.float32))
    again = scored(teacher, Counted())
    assert teacher.asked == 2 * N
    assert again.rows == first.rows
    scored(teacher, Counted())
    assert teacher.asked == 2 * N


def test_kept_answers_decide_what_is_scored_twin(cache: Path) -> None:
    first = scored(Counted(), Counted())
    (path,) = (cache / ANSWERS).iterdir()
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    held["gender"][5] = held["gender"][5, ::-1]
    np.savez(path, **held)
    again = scored(Counted(), Counted())
    assert again.rows[0].tasks["gender"].value == pytest.approx(first.rows[0].tasks["gender"].value - 1 / N)


def test_a_cache_that_cannot_be_written_costs_time_only(cache: Path) -> None:
    (cache / ANSWERS).write_text("a file where the folder should be")
    teacher = Counted()
    scored(teacher, Counted())
    scored(teacher, Counted())
    assert teacher.asked == 2 * N


def test_clearing_the_cache_clears_the_answers(cache: Path) -> None:
    scored(Counted(), Counted())
    size = sum(path.stat().st_size for path in (cache / ANSWERS).iterdir())
    assert clear_cache() == size
    assert not (cache / ANSWERS).exists()


def test_nothing_is_kept_of_answers_that_are_not_finite(cache: Path) -> None:
    from edgeface.errors import ModelError

    broken = Counted(sign=float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        scored(broken, Counted())
    assert not (cache / ANSWERS).exists()
