"""What every runner of a model file offers beyond edgeface.evaluate.Runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.evaluate import Runner

Grids = Mapping[str, tuple[float, int]]
Operations = Mapping[str, Mapping[str, int]]


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


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a file, as the file itself tells.

    Attributes:
        name: As `answer` calls it.
        dtype: NumPy's name of its type.
        shape: Batch included; None for a side that is not fixed.
        grid: (scale, zero point) of an integer tensor that has one.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    grid: tuple[float, int] | None = None

    def __str__(self) -> str:
        grid = "" if self.grid is None else f", scale {self.grid[0]:g}, zero point {self.grid[1]}"
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"{self.name!r}: {self.dtype} ({sides}){grid}"


class FileRunner(TimedRunner, Protocol):
    """A TimedRunner of a file, which can also be asked in the file's own terms, whatever its outputs mean.

    Attributes:
        path: The file.
        inputs: One port, in practice: files with more are refused.
        outputs: Its outputs, in the file's order.
    """

    @property
    def path(self) -> Path: ...

    @property
    def inputs(self) -> tuple[Port, ...]: ...

    @property
    def outputs(self) -> tuple[Port, ...]: ...

    @property
    def operations(self) -> Operations | None:
        """Who computes what: executor ("xnnpack", "builtin", …) to operation to how many; None where nobody tells."""
        ...

    def answer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Every output of inputs in the file's own form.

        Args:
            batch: (B, …) of the input's type.

        Returns:
            Output name to (B, …); integer outputs are dequantized.
        """
        ...

    def hold(self, sample: NDArray[Any]) -> Callable[[], None]:
        """What to call to run one input (1, …) in the file's own form; handing it over is not part of it."""
        ...
