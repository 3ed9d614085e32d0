"""Training pictures at the size each network reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shrink(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) pictures, 0 to 255, at another size: antialiased, in whole values as a camera would give."""
    if images.shape[-1] == side:
        return images
    resized = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).contiguous(memory_format=torch.channels_last)
