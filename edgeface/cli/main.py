"""`edgeface VERB …`: chooses the verb, prints its result, turns errors into exit codes.

0 pass · 1 a budget, parity or check failed · 2 usage, recipe or data error · 3 a tool-kit or device is missing
4 internal error · 130 interrupted
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NoReturn, Protocol, TextIO, cast

from edgeface import __version__
from edgeface.cli.result import Result
from edgeface.cli.watch import Watch, run_apart
from edgeface.errors import EdgefaceError, InterruptedRun, ResourceError, UsageError, did_you_mean
from edgeface.files import no_room, output_error
from edgeface.memory import is_limited, memory_error

# Verb to its module and one line of help. A module is imported when its verb is chosen.
VERBS: dict[str, tuple[str, str]] = {
    "doctor": ("edgeface.cli.doctor", "what is installed, which targets build and run here, what to install"),
    "recipes": ("edgeface.cli.recipes", "list the packaged recipes, or copy one out to edit"),
    "data": ("edgeface.cli.data", "inspect or pack a corpus, or clear the cache of packed crops"),
    "distill": ("edgeface.cli.distill", "train teacher, student and int8 student from a recipe"),
    "quantize": ("edgeface.cli.quantize", "quantization-aware training alone, on a float student"),
    "build": ("edgeface.cli.build", "write the files an app ships, with their scorecard"),
    "eval": ("edgeface.cli.eval", "score a checkpoint, bundle or model file on labelled faces"),
    "parity": ("edgeface.cli.parity", "compare two models output by output on the same faces"),
    "bench": ("edgeface.cli.bench", "time models side by side, interleaved"),
    "check": ("edgeface.cli.check", "run a bundle on the device it ships to, compare and score its answers there"),
    "report": ("edgeface.cli.report", "one self-contained report.html of a run, a bundle or a sweep"),
    "sweep": ("edgeface.cli.sweep", "compare students of every size under one teacher, and mark the best trades"),
    "predict": ("edgeface.cli.predict", "find the faces in pictures, print and draw the answers"),
    "demo": ("edgeface.cli.demo", "all of it on built-in synthetic faces"),
}


class Verb(Protocol):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> Result: ...


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and exit, so that --json answers in JSON there too."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, where=self.prog, do=self._nearest(message) or f"See `{self.prog} --help`")

    def _nearest(self, message: str) -> str:
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            return did_you_mean(choice[1], re.findall(r"[^', ]+", choice[2]))
        option = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        return did_you_mean(option[1], self._option_string_actions) if option else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The arguments after `edgeface`; None takes the process's own.

    Returns:
        The exit code.
    """
    if argv is not None:
        return _run(argv)
    watched, words = Watch(), sys.argv[1:]
    if is_limited() and not watched:
        try:
            return run_apart(words)
        except ResourceError as error:
            return _refuse(error, words, in_json=_wants_json(words))
    code = _run(words)
    watched.ended()
    return code


def _run(argv: Sequence[str]) -> int:
    words = list(argv)
    in_json = _wants_json(words)
    try:
        verb, arguments = _parse(words)
        with _stdout_kept_clean():
            result = verb.run(arguments)
        return _answer(result, in_json=in_json)
    except SystemExit as stop:  # argparse, after printing help
        return stop.code if isinstance(stop.code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        return _refuse(error, words, in_json=in_json)


def _wants_json(words: Sequence[str]) -> bool:
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _parse(words: list[str]) -> tuple[Verb, argparse.Namespace]:
    name = words[0] if words else ""
    if name in ("-h", "--help", "help"):
        _write(sys.stdout, _help())
        raise SystemExit(0)
    if name == "--version":
        _write(sys.stdout, f"edgeface {__version__}\n")
        raise SystemExit(0)
    if not words:
        _write(sys.stderr, _help())
        raise SystemExit(2)
    if name not in VERBS:
        raise UsageError(
            f"{name!r} is not a verb",
            expected=f"one of {', '.join(VERBS)}",
            where="edgeface VERB",
            do=did_you_mean(name, VERBS) or "See `edgeface --help`",
        )
    module, summary = VERBS[name]
    verb = cast(Verb, importlib.import_module(module))
    parser = _Parser(prog=f"edgeface {name}", description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False)
    verb.add_arguments(parser)
    for innermost in _leaves(parser):
        innermost.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return verb, parser.parse_args(words[1:])


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers a command line can end in: `data inspect`, `data pack`, …, or the verb's own."""
    inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [leaf for choices in inner for choice in choices.values() for leaf in _leaves(choice)] or [parser]


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "".join(f"  {name:<{width}}  {summary}\n" for name, (_, summary) in VERBS.items())
    return (
        "usage: edgeface VERB ...\n\n"
        "Distil face networks into small int8 students for phones and edge boxes,\n"
        "and prove they agree with their teacher.\n\n"
        f"verbs:\n{verbs}\n"
        "`edgeface VERB --help` explains one; every verb takes --json. Begin with `edgeface demo`.\n"
    )


def _answer(result: Result, *, in_json: bool) -> int:
    if in_json:
        text = json.dumps(_jsonable(result.payload), allow_nan=False)
        _write(sys.stdout, text + "\n")
        return result.exit_code
    from edgeface.cli.console import show

    try:
        show(result.text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    return result.exit_code


def _refuse(error: BaseException, words: Sequence[str], *, in_json: bool) -> int:
    known = _as_edgeface_error(error)
    if isinstance(known, InterruptedRun) and not known.do:
        known = InterruptedRun(known.found, where=known.where, do=f"To go on, type: {shlex.join(['edgeface', *words])}")
    if os.environ.get("EDGEFACE_DEBUG"):
        traceback.print_exception(error)
    if in_json:
        _write(sys.stdout, json.dumps({"schema": 1, "error": known.as_json()}) + "\n")
    else:
        _write(sys.stderr, f"{type(known).__name__}: {known}\n")
    return known.exit_code


def _as_edgeface_error(error: BaseException) -> EdgefaceError:
    short = memory_error(error)
    if short is not None:
        return short
    if isinstance(error, EdgefaceError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRun("stopped by the user")
    full = no_room(error)
    if full is not None:
        return output_error(full, where=Path(str(full.filename or "the output")))
    reason = " ".join(str(error).split())[:200]
    return EdgefaceError(
        f"internal error, {type(error).__name__}: {reason}",
        do="This is a fault of edgeface: run again with EDGEFACE_DEBUG=1 for the traceback and report it",
    )


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send what a tool-kit prints on stdout to stderr, so that stdout holds the result alone.

    Some write past Python, from C++, so the file descriptor itself is turned round.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # a closed stdout or stderr: there is nothing to keep clean
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _flush_c_streams()
        os.dup2(kept, 1)
        os.close(kept)


def _flush_c_streams() -> None:
    """Text that C code has buffered for stdout must leave before stdout is turned back."""
    if os.name == "posix":
        import ctypes

        ctypes.CDLL(None).fflush(None)


def _jsonable(value: Any) -> Any:
    """Plain JSON values: NumPy scalars unwrapped, paths as text, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if value is not None and not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(stream: TextIO, text: str) -> None:
    """Write and flush; a reader that has gone away (`edgeface … | head`) is no error."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _drop_stdout()


def _drop_stdout() -> None:
    # the interpreter flushes stdout once more as it ends, and would complain then
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
