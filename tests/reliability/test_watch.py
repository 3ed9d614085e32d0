"""A command under a memory limit, in a process of its own (edgeface/cli/watch.py)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_MIB = 4_000  # more than enough: what ends these commands is not the limit
# Stands in for a verb whose native code ends the process, as `abort` and `exit` do behind Python's back, or that waits.
VERB = """
import os, signal, sys, time
from edgeface.cli.result import Result

def add_arguments(parser):
    parser.add_argument("how")

def run(arguments):
    if arguments.how == "abort":
        os.abort()
    if arguments.how == "exit":
        os._exit(1)
    if arguments.how == "wait":
        print(os.getpid(), file=sys.stderr, flush=True)
        time.sleep(60)
    return Result(payload={"said": "done"}, text="done", exit_code=1 if arguments.how == "fail" else 0)
"""


@pytest.fixture
def start(tmp_path: Path) -> list[str]:
    """A command line up to its first word; `python -m edgeface` is a package beside the verb's module."""
    (tmp_path / "crash.py").write_text(VERB)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if '-m' in sys.orig_argv:\n"
        "    import edgeface.cli.main as main\n"
        "    main.VERBS['crash'] = ('crash', 'ends.')\n"
    )
    return [sys.executable, "-m", "edgeface", "crash"]


def typed(
    start: list[str], folder: Path, *words: str, limit_mib: int = LIMIT_MIB, **options: object
) -> subprocess.Popen[str]:
    limited = ["sh", "-c", f'ulimit -v {limit_mib * 1024}; exec "$@"', "sh"] if limit_mib else []
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*limited, *start, *words], env=environment, **pipes, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(("how", "said"), [("abort", "SIGABRT"), ("exit", "exit 1")])
def test_native_code_that_ends_the_process_is_an_error_of_one_line(
    start: list[str], tmp_path: Path, how: str, said: str
) -> None:
    process = typed(start, tmp_path, how)
    _, told = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in told.splitlines() if line.startswith("ResourceError: ")]
    assert f"native code ended the process, {said}" in line
    assert f"its limit is {LIMIT_MIB} MiB of address space" in line


def test_without_a_limit_no_process_stands_between_twin(start: list[str], tmp_path: Path) -> None:
    process = typed(start, tmp_path, "abort", limit_mib=0)
    _, told = process.communicate()
    assert process.returncode == -signal.SIGABRT
    assert "ResourceError" not in told


@pytest.mark.parametrize(("how", "code"), [("well", 0), ("fail", 1)])
def test_an_orderly_end_keeps_its_exit_code_and_output(start: list[str], tmp_path: Path, how: str, code: int) -> None:
    process = typed(start, tmp_path, how, "--json")
    printed, told = process.communicate()
    assert (process.returncode, json.loads(printed), told) == (code, {"said": "done"}, "")


def test_the_error_is_json_where_json_was_asked_for(start: list[str], tmp_path: Path) -> None:
    process = typed(start, tmp_path, "abort", "--json")
    printed, _ = process.communicate()
    assert "out of memory" in json.loads(printed)["error"]["found"]


def _pid_of(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    return int(process.stderr.readline())


def test_ctrl_c_and_the_end_of_the_waiting_process_reach_the_other(start: list[str], tmp_path: Path) -> None:
    process = typed(start, tmp_path, "wait")
    _pid_of(process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told.startswith("InterruptedRun: stopped by the user")

    process = typed(start, tmp_path, "wait")
    child = _pid_of(process)
    assert child != process.pid
    process.kill()
    process.communicate(timeout=20)
    end = time.monotonic() + 20.0
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]


def test_sigterm_ends_both_as_it_ends_any_command(start: list[str], tmp_path: Path) -> None:
    process = typed(start, tmp_path, "wait")
    _pid_of(process)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_a_limit_of_its_own_is_not_raised_for_a_trial(tmp_path: Path) -> None:
    """A file is tried with limits; under a lower one of the user's that one stays."""
    from edgeface import limits
    from targets.foreign import try_apart

    program = "import resource\nassert resource.getrlimit(resource.RLIMIT_AS)[1] == 1500 << 20\n"
    inside = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1500 << 20,) * 2); from pathlib import Path; "
        f"from targets.foreign import try_apart; try_apart({program!r}, Path('x'), runtime='it', expected='one')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", inside], env=environment, check=True)
    assert limits.TRIAL_MEMORY_BYTES > 1500 << 20, "the twin: else nothing was lower"
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    try_apart(
        "import resource\nassert resource.getrlimit(resource.RLIMIT_AS)[1] > 1500 << 20\n",
        Path("x"),
        runtime="it",
        expected="one",
    )
