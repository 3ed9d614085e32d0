"""Landmarks as the expected places of heatmaps, for networks that are not made of integers: teachers.

A head of this kind reads the trunk's maps at strides 4 to 32 and answers, like a linear one, with offsets from the mean
shape. Where a face lies in the crop is then not learned anew for each place, as a linear layer over a flattened map
learns it: with nine thousand faces that is most of the error of a short training (DECISIONS.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeface.models.heads import HEATMAP_SPAN

CHANNELS = 64  # of every map between trunk and heatmap


class IntegralHead(nn.Module):
    """Merges maps from the coarsest down, and takes the expected place in the heatmap of each landmark.

    Args:
        channels: Of the maps, finest first; each is half the side of the one before.
        mean_shape: (K, 2) mean landmarks in crop sides.

    Source:
        Sun et al., Integral Human Pose Regression, ECCV 2018, arXiv:1711.08229, eq. 3 (expectation over the heatmap);
        Lin et al., Feature Pyramid Networks, CVPR 2017, arXiv:1612.03144, section 3 (coarse maps added to finer ones).
        The span beyond the crop and the number of channels are ours.
    """

    mean: Tensor

    def __init__(self, channels: Sequence[int], *, mean_shape: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, CHANNELS, 1) for count in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)
            )
            for _ in channels[:-1]
        )
        self.heatmap = nn.Conv2d(CHANNELS, len(mean_shape), 1)
        self.register_buffer("mean", torch.tensor(mean_shape, dtype=torch.float32), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Offsets of landmarks.

        Args:
            maps: (B, C, H, W), finest first.

        Returns:
            (B, K, 2) offsets from the mean shape, in crop sides.
        """
        merged = self.lateral[-1](maps[-1])
        for lateral, smooth, finer in zip(self.lateral[-2::-1], self.smooth[::-1], maps[-2::-1], strict=True):
            own = lateral(finer)
            merged = smooth(F.interpolate(merged, size=own.shape[-2:], mode="bilinear", align_corners=False) + own)
        return expected_places(self.heatmap(merged)) - self.mean


def expected_places(logits: Tensor) -> Tensor:
    """Expected places of heatmaps.

    Args:
        logits: (B, K, H, W); a softmax over the cells of each map gives the chance of a landmark to lie there.

    Returns:
        (B, K, 2) x and y in crop sides, -0.15 to 1.15; float32.
    """
    rows, columns = logits.shape[-2:]
    chance = torch.softmax(logits.float().flatten(2), dim=2).reshape(logits.shape)
    across, down = (
        ((torch.arange(cells, device=logits.device) + 0.5) / cells - 0.5) * HEATMAP_SPAN + 0.5
        for cells in (columns, rows)
    )
    return torch.stack([(chance.sum(dim=2) * across).sum(dim=2), (chance.sum(dim=3) * down).sum(dim=2)], dim=2)
