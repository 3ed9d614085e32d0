"""What `edgeface check` answers: a row for each file and runtime, and one outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeface.metrics import Scores
from targets.judge import Judgement

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT_RUN"


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """One task on the device and here.

    Attributes:
        there: Metrics of the device's answers.
        here: Metrics of the expected answers; None when nothing else was computed here.
        worse_by: How much worse the main metric is there: points, or relative percent for errors in units of their own;
            negative is better, None when it cannot be said.
    """

    there: Scores
    here: Scores | None
    worse_by: float | None

    def as_json(self) -> dict[str, object]:
        return {**self.there, "here": self.here, "worse_by": self.worse_by}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file by one runtime.

    Attributes:
        file: Its name.
        precision: Its precision.
        runtime: What ran it, or would have.
        outcome: PASS, FAIL or NOT_RUN.
        reason: Why not PASS; "" for a pass.
        own: Whether it is the runtime that the file was built with.
        identical: Whether its answers may not differ by a bit.
        reference: What `here` is: the runtime that computed what is expected, on this machine.
        here: Against the reference, all faces; None when nothing else runs it here.
        golden: Against the answers it was shipped with, golden faces.
        tasks: Task name to its scores.
        latency: median_ms, p90_ms, p99_ms, runs and load_ms of one picture; None when it was not measured.
        latency_reason: Why not; "" when it was.
    """

    file: str
    precision: str
    runtime: str
    outcome: str
    reason: str = ""
    own: bool = False
    identical: bool = False
    reference: str = ""
    here: Judgement | None = None
    golden: Judgement | None = None
    tasks: Mapping[str, TaskScores]
    latency: Mapping[str, float] | None = None
    latency_reason: str = ""

    @property
    def judgement(self) -> Judgement | None:
        """Over the most faces there are."""
        return self.here or self.golden

    @property
    def bit_identical(self) -> bool | None:
        """None when it did not answer."""
        judged = [each for each in (self.here, self.golden) if each is not None and each.outputs]
        if self.here is not None and not self.own:  # what it was shipped with comes from other kernels
            judged = [self.here]
        return all(each.bit_identical for each in judged) if judged else None

    def as_json(self) -> dict[str, object]:
        found = self.judgement
        measured = found is not None and bool(found.outputs)
        return {
            "file": self.file,
            "precision": self.precision,
            "runtime": self.runtime,
            "outcome": self.outcome,
            "reason": self.reason,
            "reference": self.reference,
            "must_be_identical": self.identical,
            "bit_identical": self.bit_identical,
            "equal": found.equal if measured and found else None,
            "max_lsb": found.max_lsb if measured and found else None,
            "sqnr_db": found.sqnr_db if measured and found else None,
            "outputs": {} if found is None else {name: vars(output) for name, output in found.outputs.items()},
            "golden": None
            if self.golden is None
            else {name: vars(output) for name, output in self.golden.outputs.items()},
            "tasks": {name: scores.as_json() for name, scores in self.tasks.items()},
            "latency": self.latency,
            "latency_reason": self.latency_reason,
        }


@dataclass(frozen=True, kw_only=True)
class Check:
    """The answer of `edgeface check`.

    Attributes:
        on: As typed after `--on`.
        bundle: What was checked, as named.
        kind: "bundle", "file" or "checkpoint"; "" when it was not opened.
        rows: One for each file and runtime.
        faces: How many were run.
        source: Where they come from.
        left_out: What cannot be compared, and why.
        emulated: Whether the device imitates its processor.
        detail: What the device is.
        machine: What it says of itself; {} when it never answered.
        versions: Of what computed there.
        fault: Why the whole of what it sent is not believed; "".
        absent: Why nothing was run at all; "".
    """

    on: str
    bundle: str
    kind: str = ""
    rows: tuple[Row, ...] = ()
    faces: int = 0
    source: str = ""
    left_out: tuple[str, ...] = ()
    emulated: bool = False
    detail: str = ""
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    fault: str = ""
    absent: str = ""

    @property
    def outcome(self) -> str:
        if self.fault or any(row.outcome == FAIL for row in self.rows):
            return FAIL
        return PASS if any(row.outcome == PASS for row in self.rows) else NOT_RUN

    @property
    def reason(self) -> str:
        """What failed; or else what was not run, a pass of others notwithstanding."""
        if self.fault or self.absent:
            return self.fault or self.absent
        failed = [row for row in self.rows if row.outcome == FAIL]
        left = failed or [row for row in self.rows if row.outcome == NOT_RUN]
        words = "" if failed else "not run: "
        return words + "; ".join(f"{row.file} on {row.runtime}: {row.reason}" for row in left) if left else ""

    @property
    def bit_identical(self) -> bool | None:
        """Of the w8a8 files by the runtime they were built with; None when none of those ran."""
        own = [row for row in self.rows if row.own and row.precision == "w8a8"]
        found = [row.bit_identical for row in own if row.outcome != NOT_RUN]
        return all(each is True for each in found) if found else None

    @property
    def compared(self) -> tuple[str, ...]:
        """What the answers were held against."""
        judged = [row for row in self.rows if row.here is not None]
        same = any(row.reference == row.runtime for row in judged)
        others = dict.fromkeys(row.reference for row in judged if row.reference != row.runtime)
        golden = any(row.golden is not None for row in self.rows)
        return (
            *((f"what the same kernels answer here, in another process ({self.faces} inputs)",) if same else ()),
            *(f"what {reference} answers here" for reference in others),
            *(("the answers it was shipped with",) if golden else ()),
        )

    @property
    def main(self) -> Row | None:
        """The row that stands for the bundle: w8a8 by its own runtime where there is one."""
        ran = [row for row in self.rows if row.outcome != NOT_RUN]
        return next((row for row in ran if row.precision == "w8a8"), ran[0] if ran else None)

    def as_json(self) -> dict[str, object]:
        """The `check` object of the command line's JSON contract."""
        main = self.main
        return {
            "schema": 1,
            "on": self.on,
            "bundle": self.bundle,
            "kind": self.kind,
            "outcome": self.outcome,
            "reason": self.reason,
            "bit_identical": self.bit_identical,
            "tasks": {} if main is None else {name: scores.as_json() for name, scores in main.tasks.items()},
            "latency": None if main is None else main.latency,
            "latency_reason": "nothing was run" if main is None else main.latency_reason,
            "faces": self.faces,
            "data": self.source,
            "compared": list(self.compared),
            "not_compared": list(self.left_out),
            "device": {**self.machine, "detail": self.detail},
            "versions": dict(self.versions),
            "emulated": self.emulated,
            "files": [row.as_json() for row in self.rows],
        }


def not_run(bundle: Path, *, on: str, reason: str) -> Check:
    """The answer when there is no such device."""
    return Check(on=on, bundle=str(bundle), machine={}, versions={}, absent=reason)
