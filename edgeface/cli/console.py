"""Printing: results on stdout, everything else on stderr, in colour only where a person looks on.

rich honours NO_COLOR, FORCE_COLOR, TERM=dumb and COLUMNS by itself. Bars move only on a terminal and never under CI, so
that logs hold lines and not frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.table import Table

PIPE_COLUMNS = 140  # width for pipes and files, where rich would fall back to 80 and cut table cells


_hushed = False


def hush() -> None:
    """Say nothing but errors from here on: another process of this run speaks."""
    global _hushed
    _hushed = True


def stdout_console() -> Console:
    return _console(stderr=False)


def stderr_console() -> Console:
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False, quiet=_hushed)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(stderr=stderr, highlight=False, markup=False, emoji=False, quiet=_hushed, width=PIPE_COLUMNS)
    return console


def show(text: RenderableType) -> None:
    """Print a result on stdout. A str is printed as it is: no wrapping, no markup."""
    if isinstance(text, str):
        print(text)
    else:
        stdout_console().print(text)


def note(line: str) -> None:
    """One line of running commentary on stderr."""
    stderr_console().print(line, soft_wrap=True)


def progress() -> Progress:
    """A progress bar on stderr, to be entered with `with`; still where nobody watches.

    Tasks added with a `fields` text show it behind the bar: `bar.add_task("student", total=900, note="loss 0.31")`,
    `bar.update(task, advance=1, note=...)`.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not watched(console),
    )


def watched(console: Console) -> bool:
    """True when a person sees this console move: a terminal, and no CI."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
    """A table whose first column is text and whose others are figures, set right."""
    from rich import box
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        grid.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid
