"""Layers of the networks. All have an exact integer form but those that say they have none (research networks)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zero padding before and after, as TFLite's SAME does it: the odd pixel goes behind.

    Source:
        TensorFlow's definition of SAME padding, tf.nn.conv2d.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Conv2dSame(nn.Conv2d):
    """Convolution with SAME padding, so that a stride of 2 lowers to one TFLite op instead of PAD and CONV_2D."""

    def pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, bottom, left, right padding for an input of this size."""
        top, bottom = same_padding(height, self.kernel_size[0], self.stride[0])
        left, right = same_padding(width, self.kernel_size[1], self.stride[1])
        return top, bottom, left, right

    def forward(self, input: Tensor) -> Tensor:
        top, bottom, left, right = self.pads(input.shape[2], input.shape[3])
        if top == bottom and left == right:  # one fused call instead of a copy into a larger picture
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left))
        return F.conv2d(F.pad(input, (left, right, top, bottom)), self.weight, self.bias, self.stride)


class MaxFeatureMap(nn.Module):
    """The larger of the two halves of the channels: (B, 2C, …) to (B, C, …).

    Source:
        Wu et al., A Light CNN for Deep Face Representation, arXiv:1511.02683, eq. 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        first, second = input.chunk(2, dim=1)
        return torch.maximum(first, second)


class Standardize(nn.Module):
    """(x − mean) / std per channel; x is a picture with values 0 to 255."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Luma(nn.Conv2d):
    """A fixed 1×1 convolution from RGB to grey: (B, 3, H, W) to (B, 1, H, W).

    Source:
        ITU-R BT.601 luma weights.
    """

    def __init__(self) -> None:
        super().__init__(3, 1, 1, bias=False)
        with torch.no_grad():
            self.weight.copy_(torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1))
        self.weight.requires_grad_(False)


class AbsTanh(nn.Module):
    """|tanh(x)|, element by element; no integer form.

    Source:
        Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014, section 3.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(input).abs()


class ZScore(nn.Module):
    """Each picture less its own mean, over its own standard deviation: (B, C, H, W) to the same; no integer form.

    A picture of one value gives zeros.
    """

    def forward(self, input: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(input, (1, 2, 3), correction=0, keepdim=True)
        return (input - mean) / (deviation + 1e-5)


class LocallyConnected2d(nn.Module):
    """A convolution without padding whose weights are its own at every position; no integer form.

    Args:
        inputs: Channels read.
        outputs: Channels given.
        kernel: Side of the square window.
        side: Side of the square input map.

    Attributes:
        weight: (P, inputs · kernel², outputs), one matrix for each of P output positions, row by row.
        bias: (outputs · P,), channel by channel.

    Source:
        Taigman et al., DeepFace, CVPR 2014, section 2.2.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, side: int) -> None:
        super().__init__()
        self.kernel, self.side = kernel, side - kernel + 1
        positions = self.side**2
        self.weight = nn.Parameter(torch.empty(positions, inputs * kernel**2, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs * positions))  # flat, so that weight decay leaves it alone
        nn.init.normal_(self.weight, 0.0, (2.0 / self.weight.shape[1]) ** 0.5)

    def forward(self, input: Tensor) -> Tensor:
        windows = F.unfold(input, self.kernel).permute(2, 0, 1)  # (P, B, inputs · kernel²)
        maps = torch.bmm(windows, self.weight).permute(1, 2, 0)  # (B, outputs, P)
        return (maps + self.bias.view(-1, maps.shape[2])).reshape(len(input), -1, self.side, self.side)
