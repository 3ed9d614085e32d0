"""What opening a model costs: a process of its own opens it, runs it once, and says how long that took and how much
memory came on top of the runtime's. Run as a script with one argument, the request as JSON.

The runtime is imported before the clock starts and before memory is looked at: an app links it, Python imports it.
Memory is resident memory at its peak, the file's mapped pages included, over resident memory just before. Only Linux
lets a process forget its earlier peak; elsewhere memory is not measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.errors import ModelError

LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Cold:
    """A first start, the median over several processes.

    Attributes:
        load_ms: From nothing but the imported runtime to the first answer.
        peak_memory_bytes: Peak resident memory over that before opening; None where the system does not tell.
        starts: How many processes.
    """

    load_ms: float
    peak_memory_bytes: int | None
    starts: int


def cold_start(request: dict[str, Any], *, starts: int) -> Cold:
    """Open a model in fresh processes.

    Args:
        request: `path`, `runtime`, `precision`, `threads`, `described`, `device`, as runners.open_model takes them, of
            a model that has been opened before: a broken one is not looked for here.
        starts: Processes, one after another.

    Raises:
        ModelError: A process did not answer.
    """
    found = [_start(request) for _ in range(starts)]
    memory = [entry["peak_memory_bytes"] for entry in found if entry["peak_memory_bytes"] is not None]
    return Cold(
        load_ms=float(np.median([entry["load_ms"] for entry in found])),
        peak_memory_bytes=int(np.median(memory)) if memory else None,
        starts=starts,
    )


def _start(request: dict[str, Any]) -> dict[str, Any]:
    where = str(request["path"])
    command = [sys.executable, "-m", "targets.cold", json.dumps(request)]
    # The package lies where this process found it, which need not be on the child's path.
    beside = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
            env={**os.environ, "PYTHONPATH": beside.rstrip(os.pathsep)},
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"did not open within {LIMIT_S:.0f} s", expected="a first answer", where=where) from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(
            f"a process of its own could not open it ({last[-300:]})", expected="a first answer", where=where
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Open and run a model once, in this process; see `cold_start`."""
    import numpy.random  # noqa: F401 (NumPy loads it when it is first asked for)

    from targets.runners import reopen

    opener = reopen(
        Path(request["path"]),
        runtime=request["runtime"],
        precision=request["precision"],
        threads=request["threads"],
        described=request["described"],
        device=request["device"],
    )
    before = _forget_peak()
    begin = time.perf_counter_ns()
    opener().prepare(0)()
    load_ms = (time.perf_counter_ns() - begin) / 1e6
    peak = _memory().get("VmHWM") if before is not None else None
    return {
        "load_ms": load_ms,
        "peak_memory_bytes": None if before is None or peak is None else max(peak - before, 0),
    }


def _forget_peak() -> int | None:
    """Resident memory now, in bytes, once the peak has been set back to it; None where neither can be had."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _memory()["VmRSS"]
    except (OSError, KeyError):
        return None


def _memory() -> dict[str, int]:
    """The kernel's figures of this process in bytes; {} where there are none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    split = (line.split() for line in lines if line.endswith(" kB"))
    return {key.rstrip(":"): int(value) * 1024 for key, value, _ in split}


if __name__ == "__main__":
    # What a library prints must not come after the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(measure(json.loads(sys.argv[1])), answers)
    answers.write("\n")
    answers.flush()
