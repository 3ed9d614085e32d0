"""Batch norms taken into the convolutions before them, for a network that is only asked and no longer trained."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeface.models.backbones import Bottleneck

_IN_ORDER = (nn.Sequential, Bottleneck)  # what stands before a batch norm in these is what it is fed with


def fold_norms(network: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place; the same answers but for rounding.

    Layers keep their names; the place of a batch norm passes its input on. A batch norm behind anything but a
    convolution stays.

    Args:
        network: In evaluation mode, as batch norms are constants nowhere else.

    Raises:
        ValueError: The network is in training mode.
    """
    if network.training:
        raise ValueError("network.eval() comes first: in training a batch norm depends on its batch")
    for parent in network.modules():
        if not isinstance(parent, _IN_ORDER):
            continue
        for (before, convolution), (behind, norm) in pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, behind, nn.Identity())
