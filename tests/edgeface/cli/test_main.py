"""The frame of the command line: one JSON object, the right exit code, never a traceback."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeface.cli import main as frame
from edgeface.cli.main import VERBS, main
from edgeface.cli.result import Result
from edgeface.errors import (
    BudgetError,
    ConfigError,
    DataError,
    EdgefaceError,
    InterruptedRun,
    MissingToolError,
    ModelError,
    OutputError,
    UnsupportedError,
    UsageError,
)

HEAVY = (
    "numpy",
    "torch",
    "cv2",
    "PIL",
    "rich",
    "lightning_fabric",
    "litert_torch",
    "ai_edge_litert",
    "ai_edge_quantizer",
)

Plug = Callable[[Callable[[argparse.Namespace], Result]], None]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Plug:
    """Puts a verb called `probe` into the table."""

    def with_run(run: Callable[[argparse.Namespace], Result]) -> None:
        verb = types.ModuleType("probe_verb")

        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--number", type=int)

        verb.add_arguments = add_arguments  # type: ignore[attr-defined]
        verb.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_verb", verb)
        monkeypatch.setitem(frame.VERBS, "probe", ("probe_verb", "a verb for tests"))

    monkeypatch.delenv("EDGEFACE_DEBUG", raising=False)
    return with_run


def raising(error: BaseException) -> Callable[[argparse.Namespace], Result]:
    def run(arguments: argparse.Namespace) -> Result:
        raise error

    return run


def in_process(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def loaded_by(words: list[str], *, first: str = "") -> tuple[int, set[str]]:
    """Exit code of a command line in a fresh process, and which of HEAVY it imported."""
    script = (
        f"import sys\n{first}\nfrom edgeface.cli.main import main\ncode = main({words!r})\n"
        f"print('\\n', code, *(name for name in {HEAVY!r} if name in sys.modules), sep=' ')"
    )
    done = in_process(script)
    assert done.returncode == 0, done.stderr
    code, *names = done.stdout.splitlines()[-1].split()
    return int(code), set(names)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["nonsense"], []])
def test_the_front_door_imports_nothing_heavy(words: list[str]) -> None:
    code, names = loaded_by(words)
    assert code == (2 if words in ([], ["nonsense"]) else 0)
    assert names == set()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_imports_no_toolkit(verb: str) -> None:
    assert loaded_by([verb, "--help"]) == (0, set())


def test_recipes_are_listed_without_anything_heavy() -> None:
    assert loaded_by(["recipes"]) == (0, set())


def test_a_heavy_import_is_seen_twin() -> None:
    assert loaded_by(["--help"], first="import numpy") == (0, {"numpy"})


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for verb, (_, summary) in VERBS.items():
        assert f"  {verb} " in printed
        assert summary in printed


def test_a_mistyped_verb_gets_the_nearest_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["biuld"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Did you mean 'build'?" in printed.err
    assert all(verb in printed.err for verb in VERBS)


def test_a_result_is_one_json_object(plug: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    payload = {
        "schema": 1,
        "float": np.float32(0.5),
        "int": np.int64(3),
        "bool": np.bool_(True),
        "nan": float("nan"),
        "inner": {"infinite": np.float64("inf"), "path": Path("a") / "b", "rows": (1, None, "x")},
    }
    plug(lambda arguments: Result(payload=payload, text="for people", exit_code=1))
    assert main(["probe", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert json.loads(printed.out) == {
        "schema": 1,
        "float": 0.5,
        "int": 3,
        "bool": True,
        "nan": None,
        "inner": {"infinite": None, "path": str(Path("a") / "b"), "rows": [1, None, "x"]},
    }


def test_text_is_printed_as_it_is(plug: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    long = "[bold]" + "x" * 300
    plug(lambda arguments: Result(payload={"schema": 1}, text=long))
    assert main(["probe"]) == 0
    assert capsys.readouterr().out == long + "\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EdgefaceError("x"), 4),
        (UsageError("x"), 2),
        (ConfigError("x"), 2),
        (DataError("x"), 2),
        (ModelError("x"), 2),
        (UnsupportedError("x"), 2),
        (OutputError("x"), 2),
        (BudgetError("x"), 1),
        (MissingToolError("x"), 3),
        (InterruptedRun("x"), 130),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 2),
        (OSError(errno.EROFS, "Read-only file system", "runs/a"), 2),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2),
        (ZeroDivisionError("a fault\nof two lines"), 4),
        (MemoryError(), 2),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 2),
        (ImportError("libx.so: failed to map segment from shared object"), 2),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_an_error_ends_with_its_exit_code_and_no_traceback(
    plug: Plug, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    plug(raising(error))

    assert main(["probe"]) == code
    plain = capsys.readouterr()
    assert plain.out == ""
    assert plain.err.count("\n") == 1
    assert "Traceback" not in plain.err

    assert main(["probe", "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"schema", "error"}
    assert answer["schema"] == 1
    assert set(answer["error"]) == {"code", "found", "expected", "where", "do"}
    assert answer["error"]["code"] == code


def test_an_internal_error_says_how_to_get_the_traceback(
    plug: Plug, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug(raising(ZeroDivisionError("oh")))
    assert main(["probe"]) == 4
    assert "EDGEFACE_DEBUG=1" in capsys.readouterr().err
    monkeypatch.setenv("EDGEFACE_DEBUG", "1")
    assert main(["probe"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_all_faults_of_a_recipe_reach_the_json(plug: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    faults = [ConfigError("'a'", where="seed"), ConfigError("'b'", where="data.train")]
    plug(raising(ConfigError("2 faults", where="x.toml", faults=faults)))
    assert main(["probe", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["error"]["found"]
    assert "seed: 'a'" in found
    assert "data.train: 'b'" in found


@pytest.mark.parametrize("words", [["--nummer", "3"], ["--num", "3"], ["--number", "three"], ["stray"]])
def test_a_wrong_argument_is_a_usage_error(plug: Plug, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    plug(lambda arguments: Result(payload={"schema": 1}, text=""))
    assert main(["probe", *words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["where"] == "edgeface probe"
    assert "--help" in error["do"] or "--number" in error["do"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["build", "--target", "andriod"], "'android'"),
        (["build", "--tagret", "android", "--target", "android"], "'--target'"),
        (["data", "inspct", "mtfl"], "'inspect'"),
    ],
)
def test_a_mistyped_option_or_choice_gets_the_nearest(
    capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    assert main(words) == 2
    assert f"Did you mean {hint}?" in capsys.readouterr().err


CHATTY = """
import ctypes, os, sys, types
from edgeface.cli import main as frame
from edgeface.cli.result import Result

def run(arguments):
    print("from Python")
    os.write(1, b"from a descriptor\\n")
    libc = ctypes.CDLL(None)
    libc.printf(b"from C, buffered\\n")
    return Result(payload={"schema": 1}, text="the result")

verb = types.ModuleType("probe_verb")
verb.add_arguments = lambda parser: None
verb.run = run
sys.modules["probe_verb"] = verb
frame.VERBS["probe"] = ("probe_verb", "a verb for tests")
sys.exit(frame.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="C's stdout is reached through a POSIX libc")
def test_stdout_holds_the_result_alone() -> None:
    done = in_process(CHATTY, "probe", "--json")
    assert json.loads(done.stdout) == {"schema": 1}
    for speaker in ("from Python", "from a descriptor", "from C, buffered"):
        assert speaker in done.stderr
    assert in_process(CHATTY, "probe").stdout == "the result\n"


@pytest.mark.skipif(os.name != "posix", reason="C's stdout is reached through a POSIX libc")
def test_stdout_is_dirty_without_the_guard_twin() -> None:
    unguarded = CHATTY.replace(
        "sys.exit(frame", "import contextlib\nframe._stdout_kept_clean = contextlib.nullcontext\nsys.exit(frame"
    )
    assert "from a descriptor" in in_process(unguarded, "probe", "--json").stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = (
        "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "from edgeface.cli.main import main\nsys.exit(main(['recipes'] + sys.argv[1:]))"
    )
    for words in ([], ["--json"]):
        done = in_process(script, *words)
        assert done.returncode == 0
        assert done.stderr == ""


def test_json_is_offered_in_every_inner_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeface", "--version"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("edgeface ")
