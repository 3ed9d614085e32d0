"""Heads whose raw values say more than they look: landmarks as heatmaps, and stage-wise age.

What leaves the network, on every target and in every precision, is their raw values; what is made of them is
post-processing, which the manifest states and the generated code does.

Heatmaps. A landmark is a softmax over the cells of a map, and the expected place is the answer: the logits need one 1×1
convolution over a map of the trunk, and where a face lies in the crop need not be learned anew for each place, as a
linear layer over the flattened map learns it.

Source:
    Sun et al., Integral Human Pose Regression, ECCV 2018, arXiv:1711.08229, eq. 3. The span beyond the crop is ours.

Stage-wise age: a few bins, cut again and again, in the place of a class for every year.

A head of stages 3 × 3 × 3 answers as finely as 27 classes with 9, and moves and stretches its bins for each face. It is
one linear layer like every other head; softmax, tanh and the sum below are post-processing.

The raw values lie stage after stage; those of a stage of s bins are s logits, s shifts and one width.

Source:
    Yang et al., SSR-Net: A Compact Soft Stagewise Regression Network for Age Estimation, IJCAI 2018, section 3: the
    expectation over stages, shifted bins, dynamic range; the span of 101 years is that of the authors' code. Three
    things are ours: bins take part by a softmax (the paper's distribution; the code has ReLU), shifts and widths come
    from the shared features by the same linear layer, and a width changes by at most half, because at -1 the unit is
    infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeface.specs import OutputSpec
from edgeface.tasks import AGE_STAGES

if TYPE_CHECKING:
    from torch import Tensor

HEATMAP_SPAN = 1.3  # sides of the crop that a heatmap covers, about its centre: a landmark may lie a little outside
HEATMAP_STRIDE = 8  # pixels of the input a cell, in students
SPAN_YEARS = AGE_STAGES  # what the first stage divides
STRETCH = 0.5  # largest relative change of a stage's number of bins
OLDEST = AGE_STAGES - 1  # an answer lies in 0 to this


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a stage's values lie among the head's.

    Attributes:
        bins: Their number.
        logits: One a bin.
        shifts: One a bin; tanh of it, in bins, moves the bin.
        width: Of the whole stage; its bins are narrower by the factor 1 + tanh / 2.
    """

    bins: int
    logits: slice
    shifts: slice
    width: int


def heatmap_points(raw: NDArray[Any]) -> NDArray[np.float32]:
    """Landmarks from heatmaps.

    Args:
        raw: (N, rows, columns, K) logits.

    Returns:
        (N, K, 2) x and y in crop sides, -0.15 to 1.15.
    """
    logits = raw.astype(np.float64)
    power = np.exp(logits - logits.max((1, 2), keepdims=True))
    shares = power / power.sum((1, 2), keepdims=True)
    down, across = (HEATMAP_SPAN * ((np.arange(cells) + 0.5) / cells - 0.5) + 0.5 for cells in raw.shape[1:3])
    x, y = np.einsum("nrck,c->nk", shares, across), np.einsum("nrck,r->nk", shares, down)
    return np.stack([x, y], axis=2).astype(np.float32)


def stage_layout(stages: Sequence[int]) -> tuple[Stage, ...]:
    """The stages of a head, coarsest first."""
    layout, at = [], 0
    for bins in stages:
        layout.append(
            Stage(bins=bins, logits=slice(at, at + bins), shifts=slice(at + bins, at + 2 * bins), width=at + 2 * bins)
        )
        at += 2 * bins + 1
    return tuple(layout)


def stage_years(raw: NDArray[np.float64], stages: Sequence[int]) -> NDArray[np.float64]:
    """Ages from raw values.

    Args:
        raw: (N, V), as `stage_layout` says.
        stages: Bins of each stage.

    Returns:
        (N,) years, 0 to OLDEST.
    """
    years, unit = np.zeros(len(raw)), np.full(len(raw), float(SPAN_YEARS))
    for stage in stage_layout(stages):
        logits = raw[:, stage.logits]
        power = np.exp(logits - logits.max(1, keepdims=True))
        shares = power / power.sum(1, keepdims=True)
        unit = unit / (stage.bins * (1.0 + STRETCH * np.tanh(raw[:, stage.width])))
        years = years + unit * (shares * (np.arange(stage.bins) + np.tanh(raw[:, stage.shifts]))).sum(1)
    return np.asarray(np.clip(years, 0.0, OLDEST))


def expected_years(raw: Tensor, stages: Sequence[int]) -> Tensor:
    """As `stage_years` with gradient, and not cut off below 0 and above OLDEST: (B, V) to (B,)."""
    import torch

    years, unit = raw.new_zeros(len(raw)), raw.new_full((len(raw),), float(SPAN_YEARS))
    for stage in stage_layout(stages):
        shares = torch.softmax(raw[:, stage.logits], dim=1)
        unit = unit / (stage.bins * (1.0 + STRETCH * torch.tanh(raw[:, stage.width])))
        places = torch.arange(stage.bins, device=raw.device, dtype=raw.dtype) + torch.tanh(raw[:, stage.shifts])
        years = years + unit * (shares * places).sum(dim=1)
    return years


def head_parameters(features: int, output: OutputSpec) -> int:
    """Weights and biases of an output's linear layer over that many features."""
    return (features + 1) * math.prod(output.shape)
