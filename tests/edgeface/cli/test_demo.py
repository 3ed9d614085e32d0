"""`edgeface demo` types what a user would type."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from edgeface.cli import build, demo, distill, report
from edgeface.cli.result import Result


def test_every_verb_gets_all_of_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs read arguments that their own parsers define; a name left out would end the demo after minutes."""
    asked: dict[str, argparse.Namespace] = {}

    def recorded(name: str) -> object:
        def run(arguments: argparse.Namespace) -> Result:
            asked[name] = arguments
            return Result(payload={}, text=name)

        return run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distill, "distill", lambda recipe, folder: Result(payload={}, text="distill"))
    monkeypatch.setattr(build, "run", recorded("build"))
    monkeypatch.setattr(report, "run", recorded("report"))

    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    assert demo.run(parser.parse_args(["--out", "there"])).exit_code == 0

    for name, verb in (("build", build), ("report", report)):
        own = argparse.ArgumentParser()
        verb.add_arguments(own)
        defined = {action.dest for action in own._actions if action.dest != "help"}
        assert vars(asked[name]).keys() == defined
    assert (asked["build"].target, asked["build"].out) == ("android", Path("there"))
    assert asked["report"].bundle == [Path("there/android")]
