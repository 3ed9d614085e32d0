"""Backbones: pictures in, features out. A function builds each one; the numbers live there.

Every backbone yields (B, D). `width` scales every channel count, rounded to a multiple of 8.
A convolution followed by batch-norm has no bias of its own: folding gives it one, so the folded parameter count equals
that of the published network with biases and without batch-norm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeface.errors import ConfigError
from edgeface.models.layers import Conv2dSame, Luma, MaxFeatureMap


@dataclass(frozen=True, kw_only=True)
class Built:
    """A backbone and the length D of its features."""

    module: nn.Module
    features: int


def scaled(channels: int, width: float) -> int:
    """A channel count times `width`, to the nearest multiple of 8, at least 8; exact at width 1."""
    return channels if width == 1.0 else max(8, round(channels * width / 8) * 8)


def _conv_bn_relu(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> list[tuple[str, nn.Module]]:
    return [
        ("conv", Conv2dSame(inputs, outputs, kernel, stride, bias=False)),
        ("norm", nn.BatchNorm2d(outputs)),
        ("relu", nn.ReLU(inplace=True)),
    ]


def _block(*parts: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def _pool_head() -> list[tuple[str, nn.Module]]:
    return [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]


def _closed(
    layers: list[tuple[str, nn.Module]], *, channels: int, side: int, head: str, name: str, input_px: int
) -> Built:
    """Close a convolutional trunk with pooling or flattening.

    Args:
        channels: Of the last map.
        side: Of the last map, in cells.
    """
    if side < 1:
        raise ConfigError(
            f"{input_px} px", expected="a larger input", where=f"{name}: input_px", do="Raise the network's input_px"
        )
    if head == "flatten":
        layers.append(("flatten", nn.Flatten()))
        return Built(module=_block(*layers), features=channels * side * side)
    layers.extend(_pool_head())
    return Built(module=_block(*layers), features=channels)


def edge_s(*, width: float, input_px: int, head: str) -> Built:
    """The default student: stride-2 convolutions with fused ReLU, flatten and one fully connected layer.

    At 64 px and width 1: 23.4 M multiply-accumulates, 0.46 M parameters. A picture halves four times, never through a
    pooling layer; flattening keeps where things are, which landmarks need and an int8 mean would blur.
    """
    plan = ((24, 2), (48, 2), (48, 1), (96, 2), (96, 1), (96, 1), (96, 2))
    layers: list[tuple[str, nn.Module]] = []
    channels, side = 3, input_px
    for number, (base, stride) in enumerate(plan, start=1):
        outputs = scaled(base, width)
        layers.append((f"conv{number}", _block(*_conv_bn_relu(channels, outputs, stride=stride))))
        channels, side = outputs, -(-side // stride)
    if head == "pool":
        return _closed(layers, channels=channels, side=side, head=head, name="edge_s", input_px=input_px)
    squeezed, features = scaled(64, width), scaled(128, width)
    layers.append(("squeeze", _block(*_conv_bn_relu(channels, squeezed, kernel=1))))
    layers.append(("flatten", nn.Flatten()))
    layers.append(("fc", _block(("linear", nn.Linear(squeezed * side * side, features)), ("relu", nn.ReLU()))))
    return Built(module=_block(*layers), features=features)


def cnn5(*, width: float, input_px: int, head: str) -> Built:
    """CNN-5: five convolutions with max-pooling between them, global pooling behind.

    Source:
        The name is from Gan et al., 2M BeautyNet's distillation study; no layer table is published, so this one is
        ours: 5×5×32, 3×3×64, 3×3×128, 3×3×256, 3×3×256.
    """
    plan = ((32, 5), (64, 3), (128, 3), (256, 3), (256, 3))
    layers: list[tuple[str, nn.Module]] = []
    channels, side = 3, input_px
    for number, (base, kernel) in enumerate(plan, start=1):
        outputs = scaled(base, width)
        layers.append((f"conv{number}", _block(*_conv_bn_relu(channels, outputs, kernel=kernel))))
        channels = outputs
        if number < len(plan):
            layers.append((f"pool{number}", nn.MaxPool2d(2)))
            side //= 2
    return _closed(layers, channels=channels, side=side, head=head or "pool", name="cnn5", input_px=input_px)


# 3×3 convolutions between max-poolings. Source: Simonyan and Zisserman, arXiv:1409.1556, table 1, columns A, D and E.
_VGG: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "vgg19": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


def _vgg(name: str, *, width: float, input_px: int, head: str) -> Built:
    layers: list[tuple[str, nn.Module]] = []
    channels, side = 3, input_px
    for stage, plan in enumerate(_VGG[name], start=1):
        for number, base in enumerate(plan, start=1):
            outputs = scaled(base, width)
            layers.append((f"conv{stage}_{number}", _block(*_conv_bn_relu(channels, outputs))))
            channels = outputs
        layers.append((f"pool{stage}", nn.MaxPool2d(2)))
        side //= 2
    return _closed(layers, channels=channels, side=side, head=head or "pool", name=name, input_px=input_px)


def vgg11(*, width: float, input_px: int, head: str) -> Built:
    """VGG-11 (configuration A) with batch-norm; 9,220,480 folded parameters in its convolutions."""
    return _vgg("vgg11", width=width, input_px=input_px, head=head)


def vgg16(*, width: float, input_px: int, head: str) -> Built:
    """VGG-16 (configuration D) with batch-norm; 14,714,688 folded parameters in its convolutions."""
    return _vgg("vgg16", width=width, input_px=input_px, head=head)


def vgg19(*, width: float, input_px: int, head: str) -> Built:
    """VGG-19 (configuration E) with batch-norm; 20,024,384 folded parameters in its convolutions."""
    return _vgg("vgg19", width=width, input_px=input_px, head=head)


def lightcnn9(*, width: float, input_px: int, head: str) -> Built:
    """LightCNN-9 on grey pictures: convolutions with max-feature-map, 1,286,048 folded parameters.

    Args:
        head: "pool" (default) averages the last map; "flatten" is the published fully connected form, 8192 to 512 units
            halved by a max-feature-map at 128 px.

    Source:
        Wu et al., A Light CNN for Deep Face Representation, arXiv:1511.02683, table 2. Batch-norm behind each
        convolution is ours (it folds away); the published network has none.
    """
    plan = (  # kernel, channels behind the max-feature-map, pooling behind it
        ("conv1", 5, 48, True),
        ("conv2a", 1, 48, False),
        ("conv2", 3, 96, True),
        ("conv3a", 1, 96, False),
        ("conv3", 3, 192, True),
        ("conv4a", 1, 192, False),
        ("conv4", 3, 128, False),
        ("conv5a", 1, 128, False),
        ("conv5", 3, 128, True),
    )
    layers: list[tuple[str, nn.Module]] = [("luma", Luma())]
    channels, side = 1, input_px
    for name, kernel, base, pooled in plan:
        outputs = scaled(base, width)
        layers.append(
            (
                name,
                _block(
                    ("conv", Conv2dSame(channels, 2 * outputs, kernel, bias=False)),
                    ("norm", nn.BatchNorm2d(2 * outputs)),
                    ("mfm", MaxFeatureMap()),
                ),
            )
        )
        channels = outputs
        if pooled:
            layers.append((f"pool_{name}", nn.MaxPool2d(2)))
            side //= 2
    if head != "flatten":
        return _closed(layers, channels=channels, side=side, head="pool", name="lightcnn9", input_px=input_px)
    built = _closed(layers, channels=channels, side=side, head=head, name="lightcnn9", input_px=input_px)
    features = scaled(256, width)
    fc = _block(("linear", nn.Linear(built.features, 2 * features)), ("mfm", MaxFeatureMap()))
    return Built(module=_block(*layers, ("fc", fc)), features=features)


def tcdcn_relu(*, width: float, input_px: int, head: str) -> Built:
    """The deployable TCDCN: four unpadded convolutions on a grey picture and 100 shared features, with ReLU.

    Source:
        Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014, figure 2; ReLU stands for the
        published |tanh|, which no integer kernel computes.
    """
    plan = ((16, 5, True), (48, 3, True), (64, 3, True), (64, 2, False))
    layers: list[tuple[str, nn.Module]] = [("luma", Luma())]
    channels, side = 1, input_px
    for number, (base, kernel, pooled) in enumerate(plan, start=1):
        outputs = scaled(base, width)
        layers.append(
            (f"conv{number}", _block(("conv", nn.Conv2d(channels, outputs, kernel)), ("relu", nn.ReLU(inplace=True))))
        )
        channels, side = outputs, side - kernel + 1
        if pooled:
            layers.append((f"pool{number}", nn.MaxPool2d(2)))
            side //= 2
    built = _closed(layers, channels=channels, side=side, head=head or "flatten", name="tcdcn_relu", input_px=input_px)
    features = scaled(100, width)
    fc = _block(("linear", nn.Linear(built.features, features)), ("relu", nn.ReLU()))
    return Built(module=_block(*layers, ("fc", fc)), features=features)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with batch-norm around a shortcut; the stride sits on the 3×3.

    Source:
        He et al., arXiv:1512.03385, figure 5; the stride placement is that of torchvision, so that its weights fit.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, *, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, input: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(input)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        shortcut = input if self.downsample is None else self.downsample(input)
        result: Tensor = self.relu(residual + shortcut)
        return result


def resnet50(*, width: float, input_px: int, head: str) -> Built:
    """ResNet-50; 23,508,032 parameters without its classifier (23,481,472 folded). Tensor names are torchvision's.

    Source:
        He et al., arXiv:1512.03385, table 1.
    """
    base = scaled(64, width)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, base, 7, 2, 3, bias=False)),
        ("bn1", nn.BatchNorm2d(base)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),
    ]
    channels, side = base, -(-input_px // 4)
    for stage, (planes, blocks, stride) in enumerate(((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)), start=1):
        parts: list[nn.Module] = []
        for number in range(blocks):
            width_here = scaled(planes, width)
            parts.append(Bottleneck(channels, width_here, stride=stride if number == 0 else 1))
            channels = width_here * Bottleneck.expansion
        layers.append((f"layer{stage}", nn.Sequential(*parts)))
        side = -(-side // stride)
    return _closed(layers, channels=channels, side=side, head=head or "pool", name="resnet50", input_px=input_px)


Builder = Callable[..., Built]

BUILDERS: dict[str, Builder] = {
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet50": resnet50,
    "edge_s": edge_s,
    "cnn5": cnn5,
    "vgg11": vgg11,
    "lightcnn9": lightcnn9,
    "tcdcn_relu": tcdcn_relu,
}


def initialise(modules: Sequence[nn.Module], *, generator: torch.Generator) -> None:
    """Kaiming-normal weights for every convolution and linear layer, zero biases; fixed layers stay.

    Source:
        He et al., arXiv:1502.01852.
    """
    for module in modules:
        if isinstance(module, Luma) or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        fan_in = module.weight[0].numel()
        with torch.no_grad():
            module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
