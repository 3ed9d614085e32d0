"""A model asked in a process of its own, where neither a device nor other kernels are there to compare with.

Run as a script with one argument, a folder:

    FOLDER/request.json  {"path", "runtime", "precision", "threads", "own_form", "timed_runs"}
    FOLDER/inputs.npy    what it is given
    FOLDER/answers.npz   output name to (N, …), as it leaves the model; and latency as the last line on stdout
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ModelError, UnsupportedError
from targets.devices import agent
from targets.devices.device import INPUTS
from targets.judge import Codes, answers_of
from targets.litert import TfliteRunner
from targets.protocol import TimedRunner

REQUEST, ANSWERS = "request.json", "answers.npz"
LIMIT_S = 1800.0
WARM_UP = 10


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model answered.

    Attributes:
        codes: Output name to (N, …), as it leaves the model.
        latency: median_ms, p90_ms, p99_ms, runs and load_ms of one sample.
    """

    codes: Codes
    latency: Mapping[str, float]


def ask(runner: TimedRunner, inputs: NDArray[Any], *, own_form: bool) -> Codes:
    """What a model answers in this process.

    Args:
        runner: The model.
        inputs: (N, H, W, 3) pictures, or (N, …) of its own form.
        own_form: Whether it is asked in its own terms, every output that it has, whatever they mean.

    Raises:
        UnsupportedError: It cannot be asked so.
    """
    if not own_form:
        return answers_of(runner, inputs)
    file: Any = runner
    if not hasattr(file, "answer"):
        raise UnsupportedError(f"inputs of its own form on {runner.runtime}", expected="another runtime")
    try:
        codes: Codes = file.answer_codes(inputs) if isinstance(runner, TfliteRunner) else file.answer(inputs)
    except ValueError as error:  # of shapes that do not fit together
        raise UnsupportedError(f"answers whose shape changes from input to input ({error})") from error
    return codes


def time_once(once: Callable[[], None], *, runs: int) -> dict[str, float]:
    """Milliseconds of one call."""
    for _ in range(WARM_UP):
        once()
    times = np.empty(runs)
    for place in range(runs):
        begin = time.perf_counter()
        once()
        times[place] = 1e3 * (time.perf_counter() - begin)
    median, p90, p99 = (float(np.percentile(times, share)) for share in (50, 90, 99))
    return {"median_ms": median, "p90_ms": p90, "p99_ms": p99, "runs": runs}


def prepare(runner: TimedRunner, inputs: NDArray[Any], *, own_form: bool) -> Callable[[], None]:
    """What to call to run one sample."""
    file: Any = runner
    once: Callable[[], None] = file.hold(inputs[:1]) if own_form else runner.prepare(0)
    return once


def ask_apart(
    path: Path,
    inputs: NDArray[Any],
    *,
    runtime: str,
    precision: str | None,
    threads: int,
    own_form: bool,
    timed_runs: int,
) -> Asked:
    """What a model answers in a process of its own.

    Args:
        path: A model that was opened in this process before: a broken one is not looked for here.
        inputs: As for `ask`.
        runtime: What runs it.
        precision: As runners.open_model takes it.
        threads: CPU threads.
        own_form: As for `ask`.
        timed_runs: Runs of one sample to time.

    Raises:
        ModelError: The process did not answer.
    """
    with tempfile.TemporaryDirectory(prefix="edgeface-apart-") as name:
        folder = Path(name)
        request = {"path": str(path.absolute()), "runtime": runtime, "precision": precision, "threads": threads}
        request |= {"own_form": own_form, "timed_runs": timed_runs}
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        np.save(folder / INPUTS, np.ascontiguousarray(inputs), allow_pickle=False)
        latency = _start(folder, where=str(path))
        with np.load(folder / ANSWERS, allow_pickle=False) as answers:
            return Asked(codes={output: answers[output] for output in answers.files}, latency=latency)


def _start(folder: Path, *, where: str) -> dict[str, float]:
    # The package lies where this process found it, which need not be on the child's path.
    beside = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "targets.devices.apart", str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
            env={**os.environ, "PYTHONPATH": beside.rstrip(os.pathsep)},
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"a second process did not end within {LIMIT_S:.0f} s", where=where) from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"a second process could not run it ({last[-300:]})", where=where)
    latency: dict[str, float] = json.loads(lines[-1])
    return latency


def answer(folder: Path) -> dict[str, float]:
    """Open and ask a model in this process, as the folder's request says; its latency."""
    from targets.runners import reopen

    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    inputs = np.load(folder / INPUTS, allow_pickle=False)
    open_again = reopen(
        Path(request["path"]),
        runtime=request["runtime"],
        precision=request["precision"],
        threads=request["threads"],
        described=None,
        device="cpu",
    )
    begin = time.perf_counter()
    runner = open_again()
    load_ms = 1e3 * (time.perf_counter() - begin)
    own_form = request["own_form"]
    agent.save(folder / ANSWERS, dict(ask(runner, inputs, own_form=own_form)))
    once = prepare(runner, inputs, own_form=own_form)
    return {**time_once(once, runs=request["timed_runs"]), "load_ms": load_ms}


if __name__ == "__main__":
    # What a library prints must not come after the answer.
    answers_stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(answer(Path(sys.argv[1])), answers_stream)
    answers_stream.write("\n")
    answers_stream.flush()
