"""Activation ranges from pictures, before quantization-aware training or without it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from edgeface.errors import DataError
from quantize.fakequant import FakeQuantNetwork


@torch.no_grad()
def calibrate(network: FakeQuantNetwork, batches: Iterable[Tensor], *, limit: int) -> int:
    """Let the ranges follow some batches in floating point, then round from there on.

    How ranges follow is the network's `calibration`: "minmax" keeps the extremes of all batches, "ema" a running mean
    of each batch's extremes, which one odd picture cannot stretch; "percentile" leaves out the 0.01 % of values at
    either end, and "mse" as many as make the squared error of the rounded values least, both by histograms over all
    batches. Ranges of an earlier calibration are forgotten.

    Args:
        network: Left in phase "adapting" and in the mode (training or evaluation) it came in.
        batches: (B, 3, I, I) pictures, 0 to 255.
        limit: Batches read at most.

    Returns:
        Batches read.

    Raises:
        DataError: There was no batch.
    """
    network.forget()
    was_training = network.training
    network.train()
    count = 0
    for images in batches:
        network(images)
        count += 1
        if count >= limit:
            break
    network.train(was_training)
    if count == 0:
        raise DataError("no batch to calibrate on", expected="at least one", do="Give qat.calibration_batches data")
    network.enable()
    return count
