"""What every runner of a model file offers beyond edgeface.evaluate.Runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from edgeface.evaluate import Runner

Grids = Mapping[str, tuple[float, int]]


class TimedRunner(Runner, Protocol):
    """A Runner that can be timed and whose integer outputs are known.

    Attributes:
        grids: Output name to (scale, zero point) of the integer outputs; the scale is that output's LSB.
        size_bytes: Size on disk of what was opened.
        macs: Multiply-accumulates of one picture; None when they cannot be counted.
    """

    @property
    def grids(self) -> Grids: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def macs(self) -> int | None: ...

    def prepare(self, seed: int) -> Callable[[], None]:
        """What to call to run one random picture; preparing the picture is not part of it."""
        ...
