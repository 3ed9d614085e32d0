"""What a verb hands back: one JSON object, one thing to print, one exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a verb. Nothing else of a verb reaches stdout.

    Attributes:
        payload: The verb's JSON object, "schema" included. NumPy scalars and paths are accepted; a number that is not
            finite is written as null.
        text: The same for people: a str, printed as it is, or anything rich can render.
        exit_code: 0, or 1 when a budget, parity or check did not hold; errors are raised instead.
    """

    payload: Mapping[str, object]
    text: RenderableType
    exit_code: int = 0
