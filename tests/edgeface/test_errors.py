"""The error tree is the one its docstring draws, and its messages read as sentences."""

from __future__ import annotations

import re

from edgeface import errors
from edgeface.errors import ConfigError, EdgefaceError, UsageError, did_you_mean


def test_the_tree_is_as_drawn_in_the_docstring() -> None:
    drawn = dict(re.findall(r"^ +(?:│   )?(?:[├└]── )?([A-Z]\w+) +(\d+) ", errors.__doc__ or "", flags=re.MULTILINE))
    defined = {
        name: str(value.exit_code)
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, EdgefaceError)
    }
    assert drawn == defined


def test_a_message_has_where_found_expected_and_do() -> None:
    error = UsageError("'w8a32' cannot run", expected="one of 'fp16', 'w8'", where="build.precision", do="Choose one.")
    assert str(error) == "build.precision: 'w8a32' cannot run. Expected one of 'fp16', 'w8'. Choose one."


def test_a_question_keeps_its_mark() -> None:
    assert str(UsageError("'biuld'", do=did_you_mean("biuld", ["build"]))) == "'biuld'. Did you mean 'build'?"


def test_only_near_names_are_suggested() -> None:
    assert did_you_mean("landmark5", ["landmarks5", "pose"]) == "Did you mean 'landmarks5'?"
    assert did_you_mean("qqq", ["landmarks5", "pose"]) == ""


def test_faults_stand_one_a_line() -> None:
    error = ConfigError(
        "2 faults", where="a.toml", faults=[ConfigError("'x'", where="k"), ConfigError("'y'", where="l")]
    )
    assert str(error).splitlines() == ["a.toml: 2 faults.", "  k: 'x'.", "  l: 'y'."]


def test_json_has_the_five_keys_of_the_contract() -> None:
    assert UsageError("f", expected="e", where="w", do="d").as_json() == {
        "code": 2,
        "found": "f",
        "expected": "e",
        "where": "w",
        "do": "d",
    }
