"""Scoring: one Runner protocol, one path from pictures to task metrics, whatever the runtime."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.specs import ModelSpec

Outputs = dict[str, NDArray[np.float32]]


class Runner(Protocol):
    """Anything that turns pictures into a model's raw outputs.

    Attributes:
        spec: The model's input and outputs.
        runtime: One of specs.RUNTIMES.
        precision: "fp32", "fp16", "w8a32", "w8a8", "fake-quant", …
    """

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def runtime(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """Raw outputs of a batch.

        Args:
            batch: (B, H, W, 3) RGB, 0 to 255, H = W = spec.input_px.

        Returns:
            Output name to (B, *shape) float32: logits, or landmark offsets from the mean shape in crop sides.
            Integer outputs are dequantized.
        """
        ...
