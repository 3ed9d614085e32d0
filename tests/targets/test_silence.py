"""What a tool-kit prints goes aside, whoever wrote it, and everything is given back."""

from __future__ import annotations

import os
import sys
import warnings

import pytest

from targets.silence import silenced


def test_nothing_of_python_or_c_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced() as written:
        print("from Python")
        os.write(1, b"from C\n")
        os.write(2, b"an error from C\n")
        warnings.warn("a warning", stacklevel=1)
        text = written()

    print("after")
    assert capfd.readouterr() == ("after\n", "")
    assert all(words in text for words in ("from Python", "from C", "an error from C"))


def test_streams_are_given_back_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), silenced():
        raise ValueError("broken")

    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"
