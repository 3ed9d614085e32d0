"""The network as a flat list of integer-friendly operations: what QAT trains, the simulator computes and targets lower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

INPUT = "image"

Op = Literal["conv2d", "linear", "max_pool", "mfm", "add", "mean", "flatten"]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation, batch-norm folded and ReLU fused.

    Attributes:
        name: Unique, from the module path.
        op: max_pool, mfm (halves of the channels, elementwise maximum) and flatten keep their input's scale.
        inputs: Names of the nodes it reads, or INPUT.
        shape: Output shape of one sample: (C, H, W) or (D,).
        relu: ReLU fused behind it.
        kernel: Rows and columns (conv2d, max_pool).
        stride: Rows and columns.
        padding: Zero padding: top, bottom, left, right (conv2d).
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    relu: bool = False
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A deployable network, in execution order.

    Attributes:
        input_px: Side of the square input.
        nodes: In execution order.
        outputs: Output name to the node that yields it.
        weights: Node name to weight, OIHW (conv2d) or (out, in) (linear; in = C·H·W order behind a flatten).
        biases: Node name to bias (out,).
        mean: Subtracted from the uint8 picture, per channel.
        std: Divisor after that.
    """

    input_px: int
    nodes: tuple[Node, ...]
    outputs: Mapping[str, str]
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
