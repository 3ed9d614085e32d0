"""Where and how results and progress are printed."""

from __future__ import annotations

import pytest

from edgeface.cli.console import note, progress, show, stdout_console, table, watched


def test_a_table_that_is_piped_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    cells = ["out/android/a_long_name_of_a_model.w8a8.tflite", "tflite-xnnpack", "w8a8", "6.123", "0.048", "100.0 %"]
    show(table(["model", "runtime", "precision", "nme", "ms", "within"], [cells]))
    printed = capsys.readouterr()
    assert all(cell in printed.out for cell in cells)
    assert printed.err == ""


def test_brackets_in_a_cell_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(table(["key"], [["train[0]"], ["[red]"]]))
    printed = capsys.readouterr().out
    assert "train[0]" in printed
    assert "[red]" in printed


def test_commentary_goes_to_stderr_unwrapped(capsys: pytest.CaptureFixture[str]) -> None:
    note("x" * 500)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "x" * 500 + "\n"


def test_bars_are_still_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as bar:
        task = bar.add_task("student", total=3, note="")
        for _ in range(3):
            bar.update(task, advance=1, note="loss 0.1")
    assert capsys.readouterr() == ("", "")


def test_ci_is_not_watched_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    assert watched(stdout_console())
    monkeypatch.setenv("CI", "true")
    assert not watched(stdout_console())


@pytest.mark.parametrize(("no_color", "escapes"), [("1", False), ("", True)])
def test_no_color_is_honoured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_color: str, escapes: bool
) -> None:
    from rich.text import Text

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    show(Text("red", style="red"))
    assert ("\x1b[31m" in capsys.readouterr().out) is escapes
