"""`edgeface demo`: distill, build and report on built-in synthetic faces, each step shown as a command."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import ModuleType

from edgeface.cli.result import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="A.B=V", help="change a key of the demo recipe")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="the bundle goes to DIR/android; default: out",
    )


def _typed(verb: ModuleType, *words: str) -> argparse.Namespace:
    """What a verb gets when these words are typed behind it."""
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args(words)


def run(arguments: argparse.Namespace) -> Result:
    from rich.console import Group

    from edgeface.cli import build, report
    from edgeface.cli.console import note
    from edgeface.cli.distill import distill
    from edgeface.config import load_recipe
    from edgeface.runs import choose_run

    started = time.monotonic()
    recipe = load_recipe("demo", overrides=arguments.set)
    folder = choose_run(recipe.name, out=None, resume=True)
    note(f"$ edgeface distill demo --out {folder}")
    distilled = distill(recipe, folder)
    note(f"$ edgeface build {folder} --target android")
    built = build.run(_typed(build, str(folder), "--target", "android", "--out", str(arguments.out)))
    note(f"$ edgeface report {folder}")
    reported = report.run(_typed(report, str(folder), "--bundle", str(arguments.out / "android")))
    minutes = (time.monotonic() - started) / 60.0
    return Result(
        payload={
            "schema": 1,
            "minutes": round(minutes, 2),
            "distill": distilled.payload,
            "build": built.payload,
            "report": reported.payload,
        },
        text=Group(distilled.text, built.text, reported.text, f"done in {minutes:.1f} minutes"),
        exit_code=max(built.exit_code, reported.exit_code),
    )
