"""A Runner over a torch network: teachers, float students and fake-quant students alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeface.evaluate import Outputs
from edgeface.specs import ModelSpec


class TorchRunner:
    """Runs an eval-mode network on batches of pictures, on the device its weights lie on.

    Args:
        network: Pictures (B, 3, H, W) with values 0 to 255 to raw outputs by name.
        spec: Its input and outputs.
        precision: "fp32", "bf16" (autocast) or "fake-quant".
    """

    runtime = "torch"

    def __init__(self, network: nn.Module, spec: ModelSpec, *, precision: str = "fp32") -> None:
        self.spec = spec
        self.precision = precision
        self._network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        first = next(iter(network.parameters()), None)
        self._device = torch.device("cpu") if first is None else first.device

    @torch.no_grad()
    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        # torch.tensor copies: a batch cut from a memory-mapped pack is read-only.
        images = torch.tensor(batch, device=self._device).permute(0, 3, 1, 2)
        images = images.to(torch.float32, memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, self.precision == "bf16"):
            outputs = self._network(images)
        return {name: output.float().cpu().numpy() for name, output in outputs.items()}
