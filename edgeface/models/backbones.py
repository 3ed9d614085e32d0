"""Backbones: pictures in, features out. A function builds each one; the numbers live there.

Every backbone yields (B, D). `width` scales every channel count, rounded to a multiple of 8.
A convolution followed by batch-norm has no bias of its own: folding gives it one, so the folded parameter count equals
that of the published network with biases and without batch-norm. `activation` is "relu" or "prelu" (a slope for every
channel, He et al., arXiv:1502.01852); a network that has no choice of it refuses the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from edgeface.errors import ConfigError
from edgeface.models.heads import HEATMAP_STRIDE
from edgeface.models.layers import AbsTanh, Conv2dSame, LocallyConnected2d, Luma, MaxFeatureMap, ZScore
from edgeface.specs import OutputSpec
from edgeface.tasks import TASKS, Kind


@dataclass(frozen=True, kw_only=True)
class Built:
    """A backbone.

    Attributes:
        module: Pictures to (B, D) features; to (B, C, H, W) where it has branches.
        features: D.
        branch: Given an output, what stands between the backbone and that output's own linear layer, where the outputs
            do not share all layers.
        maps: Names of the children whose maps landmarks may be read from, with their channels: of a teacher those of
            strides 4, 8, …, each half the side of the one before; of a student the last of HEATMAP_STRIDE.
    """

    module: nn.Sequential
    features: int
    branch: Callable[[OutputSpec], Built] | None = None
    maps: Mapping[str, int] = field(default_factory=dict)


def scaled(channels: int, width: float) -> int:
    """A channel count times `width`, to the nearest multiple of 8, at least 8; exact at width 1."""
    return channels if width == 1.0 else max(8, round(channels * width / 8) * 8)


def _activation(name: str, channels: int, *, inplace: bool = False) -> tuple[str, nn.Module]:
    return (name, nn.PReLU(channels)) if name == "prelu" else (name, nn.ReLU(inplace=inplace))


def _only_relu(name: str, activation: str) -> None:
    if activation != "relu":
        raise ConfigError(
            f"{activation!r}",
            expected=f"'relu': {name} has its own non-linearities",
            where=f"{name}: activation",
            do="Leave it out",
        )


def _conv_bn_relu(
    inputs: int, outputs: int, *, activation: str, kernel: int = 3, stride: int = 1
) -> list[tuple[str, nn.Module]]:
    return [
        ("conv", Conv2dSame(inputs, outputs, kernel, stride, bias=False)),
        ("norm", nn.BatchNorm2d(outputs)),
        _activation(activation, outputs, inplace=True),
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


# Channels and stride of each 3×3 convolution, channels of the 1×1 convolution behind them, units of the linear layer.
# How the shapes were found: docs/students.md.
_EDGE: dict[str, tuple[tuple[tuple[int, int], ...], int, int]] = {
    "edge_s": (((16, 2), (64, 2), (64, 1), (64, 1), (80, 2), (80, 1), (80, 1), (80, 1), (64, 2)), 64, 96),
    "edge_m": (
        ((16, 2), (64, 2), (64, 1), (64, 1), (64, 1), (96, 2), (96, 1), (96, 1), (96, 1), (96, 1), (128, 2)),
        64,
        160,
    ),
    "edge_l": (
        (
            *((32, 2), (64, 2), (64, 1), (64, 1), (64, 1), (64, 1)),
            *((128, 2), (128, 1), (128, 1), (128, 1), (128, 2), (128, 1), (128, 1)),
        ),
        64,
        192,
    ),
}


def _edge(name: str, *, width: float, input_px: int, head: str, activation: str) -> Built:
    plan, squeeze, units = _EDGE[name]
    layers: list[tuple[str, nn.Module]] = []
    maps: dict[str, int] = {}
    channels, side, strides = 3, input_px, 1
    for number, (base, stride) in enumerate(plan, start=1):
        outputs = scaled(base, width)
        layers.append(
            (f"conv{number}", _block(*_conv_bn_relu(channels, outputs, activation=activation, stride=stride)))
        )
        channels, side, strides = outputs, -(-side // stride), strides * stride
        if strides == HEATMAP_STRIDE:
            maps = {layers[-1][0]: channels}
    if head == "pool":
        built = _closed(layers, channels=channels, side=side, head=head, name=name, input_px=input_px)
        return replace(built, maps=maps)
    squeezed, features = scaled(squeeze, width), scaled(units, width)
    layers.append(("squeeze", _block(*_conv_bn_relu(channels, squeezed, activation=activation, kernel=1))))
    layers.append(("flatten", nn.Flatten()))
    layers.append(
        ("fc", _block(("linear", nn.Linear(squeezed * side * side, features)), _activation(activation, features)))
    )
    return Built(module=_block(*layers), features=features, maps=maps)


def edge_s(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """The default student: stride-2 convolutions with fused ReLU, flatten and one fully connected layer.

    At 64 px and width 1: 36.5 M multiply-accumulates, 0.45 M parameters. A picture halves four times, never through a
    pooling layer; flattening keeps where things are, which landmarks need and an int8 mean would blur. Most of the
    arithmetic is done at strides 4 and 8: a weight is used often there, and heatmaps of landmarks are read at the
    latter.
    """
    return _edge("edge_s", width=width, input_px=input_px, head=head, activation=activation)


def edge_m(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """`edge_s` two layers deeper, and wider: 58.0 M multiply-accumulates, 0.79 M parameters at 64 px and width 1."""
    return _edge("edge_m", width=width, input_px=input_px, head=head, activation=activation)


def edge_l(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """As `edge_m`, wider still: 83.8 M multiply-accumulates and 1.33 M parameters at 64 px and width 1."""
    return _edge("edge_l", width=width, input_px=input_px, head=head, activation=activation)


def cnn5(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
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
        layers.append(
            (f"conv{number}", _block(*_conv_bn_relu(channels, outputs, activation=activation, kernel=kernel)))
        )
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


def _vgg(name: str, *, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    layers: list[tuple[str, nn.Module]] = []
    maps: dict[str, int] = {}
    channels, side = 3, input_px
    for stage, plan in enumerate(_VGG[name], start=1):
        for number, base in enumerate(plan, start=1):
            outputs = scaled(base, width)
            layers.append((f"conv{stage}_{number}", _block(*_conv_bn_relu(channels, outputs, activation=activation))))
            channels = outputs
        if stage >= 3:
            maps[layers[-1][0]] = channels
        layers.append((f"pool{stage}", nn.MaxPool2d(2)))
        side //= 2
    built = _closed(layers, channels=channels, side=side, head=head or "pool", name=name, input_px=input_px)
    return replace(built, maps=maps)


def vgg11(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """VGG-11 (configuration A) with batch-norm; 9,220,480 folded parameters in its convolutions."""
    return _vgg("vgg11", width=width, input_px=input_px, head=head, activation=activation)


def vgg16(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """VGG-16 (configuration D) with batch-norm; 14,714,688 folded parameters in its convolutions.

    That 2M BeautyNet's teacher of 14,793 K is one such trunk with pooled heads is assumed from its size: with 150
    shared hidden units, beauty and gender it has 14,792,695.
    """
    return _vgg("vgg16", width=width, input_px=input_px, head=head, activation=activation)


def vgg19(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """VGG-19 (configuration E) with batch-norm; 20,024,384 folded parameters in its convolutions."""
    return _vgg("vgg19", width=width, input_px=input_px, head=head, activation=activation)


def lightcnn9(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """LightCNN-9 on grey pictures: convolutions with max-feature-map, 1,286,048 folded parameters.

    Args:
        head: "pool" (default) averages the last map; "flatten" is the published fully connected form, 8192 to 512 units
            halved by a max-feature-map at 128 px.

    Source:
        Wu et al., A Light CNN for Deep Face Representation, arXiv:1511.02683, table 2, and the authors' code where the
        paper's count of 5,556 K differs from it. Batch-norm behind each convolution is ours (it folds away); the
        published network has none. That 2M BeautyNet's student of 1,366 K is the pooled form is assumed: with 588
        shared hidden units and two heads it has 1,366,023.
    """
    _only_relu("lightcnn9", activation)
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


# Channels, kernel, and whether a 2×2 max-pooling stands behind.
_Convolutions = tuple[tuple[int, int, bool], ...]
# Source: Zhang et al., ECCV 2014, figure 2.
_TCDCN: _Convolutions = ((16, 5, True), (48, 3, True), (64, 3, True), (64, 2, False))
# Source: the shapes of the weights that the authors released with their TPAMI 2016 paper.
_TCDCN_60: _Convolutions = ((20, 5, True), (48, 5, True), (64, 3, True), (80, 3, False))


def tcdcn_relu(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """The deployable TCDCN: four unpadded convolutions on a grey picture and 100 shared features, with ReLU.

    Source:
        Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014, figure 2; ReLU stands for the
        published |tanh|, which no integer kernel computes, and a fixed scale for the published z-score.
    """
    layers: list[tuple[str, nn.Module]] = [("luma", Luma())]
    channels, side = 1, input_px
    for number, (base, kernel, pooled) in enumerate(_TCDCN, start=1):
        outputs = scaled(base, width)
        layers.append(
            (
                f"conv{number}",
                _block(("conv", nn.Conv2d(channels, outputs, kernel)), _activation(activation, outputs, inplace=True)),
            )
        )
        channels, side = outputs, side - kernel + 1
        if pooled:
            layers.append((f"pool{number}", nn.MaxPool2d(2)))
            side //= 2
    built = _closed(layers, channels=channels, side=side, head=head or "flatten", name="tcdcn_relu", input_px=input_px)
    features = scaled(100, width)
    fc = _block(("linear", nn.Linear(built.features, features)), _activation(activation, features))
    return Built(module=_block(*layers, ("fc", fc)), features=features)


def _tcdcn(
    name: str,
    *,
    width: float,
    input_px: int,
    head: str,
    activation: str,
    plan: _Convolutions = _TCDCN,
    units: int = 100,
    unshared: tuple[int, ...] = (),
) -> Built:
    """A published TCDCN.

    Args:
        plan: Its convolutions.
        units: Shared features behind them.
        unshared: Numbers, from 1, of the convolutions with weights of their own at every position.
    """
    _only_relu(name, activation)
    layers: list[tuple[str, nn.Module]] = [("luma", Luma()), ("z_score", ZScore())]
    channels, side = 1, input_px
    for number, (base, kernel, pooled) in enumerate(plan, start=1):
        outputs = scaled(base, width)
        conv: nn.Module = (
            LocallyConnected2d(channels, outputs, kernel, side=side)
            if number in unshared
            else nn.Conv2d(channels, outputs, kernel)
        )
        layers.append((f"conv{number}", _block(("conv", conv), ("abs_tanh", AbsTanh()))))
        channels, side = outputs, side - kernel + 1
        if pooled:
            layers.append((f"pool{number}", nn.MaxPool2d(2)))
            side //= 2
    built = _closed(layers, channels=channels, side=side, head=head or "flatten", name=name, input_px=input_px)
    features = scaled(units, width)
    fc = _block(("linear", nn.Linear(built.features, features)), ("abs_tanh", AbsTanh()))
    return Built(module=_block(*layers, ("fc", fc)), features=features)


def tcdcn(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """TCDCN's layers with ordinary convolutions: z-scored grey picture, |tanh|, 100 shared features.

    A research network: 77,236 parameters at 40 px, but no integer form; `tcdcn_relu` deploys.

    Source:
        Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014, figure 2 and section 3; the
        z-score is that of a published re-implementation. Whether the published convolutions share their weights is
        unconfirmed: `tcdcn_local` and `tcdcn_unshared` are the other readings. Assumed, since the sources are silent:
        |tanh| stands before the pooling and behind the 100 features too. Landmarks are in sides of the crop, the
        published pixels over 40; as everywhere here the network gives their offset from the mean shape, which only
        moves the last bias.

    A learning rate of 3e-3 (adamw) drives its tanh towards the rails; 1e-3 and below train.
    """
    return _tcdcn("tcdcn", width=width, input_px=input_px, head=head, activation=activation)


def tcdcn_local(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """`tcdcn` with a locally connected fourth convolution: 126,580 parameters at 40 px.

    Source:
        A published re-implementation of Zhang et al., ECCV 2014, which says that it can be.
    """
    return _tcdcn("tcdcn_local", unshared=(4,), width=width, input_px=input_px, head=head, activation=activation)


def tcdcn_unshared(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """`tcdcn` without any shared weight: 3,410,020 parameters at 40 px. Assumed: biases are not shared either.

    Source:
        Zhang et al., ECCV 2014, as it is remembered: that no convolution there shares weights is unconfirmed.
    """
    return _tcdcn(
        "tcdcn_unshared", unshared=(1, 2, 3, 4), width=width, input_px=input_px, head=head, activation=activation
    )


def tcdcn_60(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """The later TCDCN, for 68 points on 60 px: 467,592 parameters, with the linear layer to 68 points 537,360.

    A research network, as `tcdcn` is.

    Source:
        Zhang et al., Learning Deep Representation for Face Alignment with Auxiliary Attributes, TPAMI 2016,
        arXiv:1408.3967; the layers are the shapes of its released weights: 5×5×20, 5×5×48, 3×3×64, 3×3×80, 512 units.
        Weights tell no more: that a 2×2 max-pooling stands behind the first three convolutions follows from the 720
        inputs of the 512 units at 60 px; |tanh|, where it stands and the z-score are assumed to be those of `tcdcn`.
    """
    return _tcdcn(
        "tcdcn_60", plan=_TCDCN_60, units=512, width=width, input_px=input_px, head=head, activation=activation
    )


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


def resnet50(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """ResNet-50; 23,508,032 parameters without its classifier (23,481,472 folded). Tensor names are torchvision's.

    Source:
        He et al., arXiv:1512.03385, table 1.
    """
    _only_relu("resnet50", activation)
    base = scaled(64, width)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, base, 7, 2, 3, bias=False)),
        ("bn1", nn.BatchNorm2d(base)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),
    ]
    maps: dict[str, int] = {}
    channels, side = base, -(-input_px // 4)
    for stage, (planes, blocks, stride) in enumerate(((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)), start=1):
        parts: list[nn.Module] = []
        for number in range(blocks):
            width_here = scaled(planes, width)
            parts.append(Bottleneck(channels, width_here, stride=stride if number == 0 else 1))
            channels = width_here * Bottleneck.expansion
        layers.append((f"layer{stage}", nn.Sequential(*parts)))
        maps[f"layer{stage}"] = channels
        side = -(-side // stride)
    built = _closed(layers, channels=channels, side=side, head=head or "pool", name="resnet50", input_px=input_px)
    return replace(built, maps=maps)


def _unit(inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1, same: bool = True) -> nn.Module:
    """Convolution, batch-norm and ReLU, as Inception-ResNet is made of; without padding where `same` is False."""
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (rows // 2, columns // 2) if same else (0, 0)
    return _block(
        ("conv", nn.Conv2d(inputs, outputs, (rows, columns), stride, padding, bias=False)),
        ("norm", nn.BatchNorm2d(outputs, eps=0.001)),
        ("relu", nn.ReLU()),
    )


class InceptionResidual(nn.Module):
    """x + scale · (branches side by side, through a 1×1 convolution), then ReLU unless it is the last block of a trunk.

    Source:
        Szegedy et al., Inception-v4, arXiv:1602.07261, figures 10, 13 and 16; section 3.3 for the scale.
    """

    def __init__(self, branches: Sequence[nn.Module], *, inner: int, channels: int, scale: float, last: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.up = nn.Conv2d(inner, channels, 1)
        self.scale, self.last = scale, last

    def forward(self, input: Tensor) -> Tensor:
        value = input + self.scale * self.up(torch.cat([branch(input) for branch in self.branches], 1))
        return value if self.last else torch.relu(value)


class InceptionReduction(nn.Module):
    """Branches of stride 2 side by side, a 3×3 max-pooling among them; halves the map."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([*branches, nn.MaxPool2d(3, 2)])

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([branch(input) for branch in self.branches], 1)


def inception_resnet_v1(*, width: float, input_px: int, head: str, activation: str = "relu") -> Built:
    """Thin Inception-ResNet-v1: a verification branch for `identity`, an expression branch for every other output.

    A research network. The trunk ends in 'Mixed_7a': (B, 1792, 3, 3) at 160 px and width 1. Each branch has its own two
    block8, so the branches share no layer behind the trunk. The embedding is L2-normalised where it is used.

    Source:
        Ming et al., Dynamic Multi-Task Learning for Face Recognition with Facial Expression, arXiv:1911.03281, and its
        released code for the number of blocks (1, 1, 1 + 1), the scales .17, .10, .20 and both branches; Szegedy et
        al., arXiv:1602.07261, for the blocks. Assumed, from the widely used face recognition code that this one is
        based on: the stem's channels, the kernels inside the blocks, batch-norm's epsilon, unpadded reductions, a last
        block8 without ReLU at scale 1, and pictures standardised by (x − 127.5)/128.
    """
    _only_relu("inception_resnet_v1", activation)
    if head == "flatten":
        raise ConfigError(
            "'flatten'", expected="'pool' or ''", where="inception_resnet_v1: head", do="Its branches end in a mean"
        )
    side = input_px
    for kernel, stride in ((3, 2), (3, 1), (3, 2), (3, 1), (3, 2), (3, 2), (3, 2)):  # every unpadded layer
        side = (side - kernel) // stride + 1
    if side < 1:
        raise ConfigError(
            f"{input_px} px", expected="75 or more", where="inception_resnet_v1: input_px", do="Raise input_px"
        )

    def c(channels: int) -> int:
        return scaled(channels, width)

    trunk: list[tuple[str, nn.Module]] = [
        ("conv1", _unit(3, c(32), 3, stride=2, same=False)),
        ("conv2", _unit(c(32), c(32), 3, same=False)),
        ("conv3", _unit(c(32), c(64), 3)),
        ("pool3", nn.MaxPool2d(3, 2)),
        ("conv4", _unit(c(64), c(80), 1)),
        ("conv5", _unit(c(80), c(192), 3, same=False)),
        ("conv6", _unit(c(192), c(256), 3, stride=2, same=False)),
    ]
    channels, inner = c(256), c(32)
    block35 = [
        _unit(channels, inner, 1),
        nn.Sequential(_unit(channels, inner, 1), _unit(inner, inner, 3)),
        nn.Sequential(_unit(channels, inner, 1), _unit(inner, inner, 3), _unit(inner, inner, 3)),
    ]
    trunk.append(("block35", InceptionResidual(block35, inner=3 * inner, channels=channels, scale=0.17, last=False)))
    reduction_a = [
        _unit(channels, c(384), 3, stride=2, same=False),
        nn.Sequential(
            _unit(channels, c(192), 1), _unit(c(192), c(192), 3), _unit(c(192), c(256), 3, stride=2, same=False)
        ),
    ]
    trunk.append(("reduction_a", InceptionReduction(reduction_a)))
    channels, inner = channels + c(384) + c(256), c(128)  # 896
    block17 = [
        _unit(channels, inner, 1),
        nn.Sequential(_unit(channels, inner, 1), _unit(inner, inner, (1, 7)), _unit(inner, inner, (7, 1))),
    ]
    trunk.append(("block17", InceptionResidual(block17, inner=2 * inner, channels=channels, scale=0.10, last=False)))
    reduction_b = [
        nn.Sequential(_unit(channels, c(256), 1), _unit(c(256), c(384), 3, stride=2, same=False)),
        nn.Sequential(_unit(channels, c(256), 1), _unit(c(256), c(256), 3, stride=2, same=False)),
        nn.Sequential(
            _unit(channels, c(256), 1), _unit(c(256), c(256), 3), _unit(c(256), c(256), 3, stride=2, same=False)
        ),
    ]
    trunk.append(("mixed_7a", InceptionReduction(reduction_b)))
    channels += c(384) + 2 * c(256)  # 1792

    def block8(*, scale: float, last: bool) -> nn.Module:
        inner = c(192)
        branches = [
            _unit(channels, inner, 1),
            nn.Sequential(_unit(channels, inner, 1), _unit(inner, inner, (1, 3)), _unit(inner, inner, (3, 1))),
        ]
        return InceptionResidual(branches, inner=2 * inner, channels=channels, scale=scale, last=last)

    def branch(output: OutputSpec) -> Built:
        layers = [
            ("block8_1", block8(scale=0.20, last=False)),
            ("block8_2", block8(scale=1.0, last=True)),
            *_pool_head(),
            ("dropout", nn.Dropout(0.5)),
        ]
        if TASKS[output.task].kind is Kind.IDENTITY:
            return Built(module=_block(*layers), features=channels)
        units = c(128)
        fc = _block(("linear", nn.Linear(channels, units)), ("relu", nn.ReLU()))
        return Built(module=_block(*layers, ("fc", fc)), features=units)

    return Built(module=_block(*trunk), features=channels, branch=branch)


Builder = Callable[..., Built]

BUILDERS: dict[str, Builder] = {
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet50": resnet50,
    "tcdcn": tcdcn,
    "tcdcn_local": tcdcn_local,
    "tcdcn_unshared": tcdcn_unshared,
    "tcdcn_60": tcdcn_60,
    "inception_resnet_v1": inception_resnet_v1,
    "edge_s": edge_s,
    "edge_m": edge_m,
    "edge_l": edge_l,
    "cnn5": cnn5,
    "vgg11": vgg11,
    "lightcnn9": lightcnn9,
    "tcdcn_relu": tcdcn_relu,
}


def initialise(modules: Sequence[nn.Module], *, generator: torch.Generator) -> None:
    """Normal weights for every convolution and linear layer, zero biases; fixed layers stay.

    The variance is 2 over the fan-in, as ReLU needs it, and 1 over the fan-in in a network of |tanh|, which lets both
    signs through and would start on its rails.

    Source:
        He et al., arXiv:1502.01852; LeCun et al., Efficient BackProp, 1998, section 4.6.
    """
    gain = 1.0 if any(isinstance(module, AbsTanh) for module in modules) else 2.0
    for module in modules:
        if isinstance(module, Luma) or not isinstance(module, nn.Conv2d | nn.Linear | LocallyConnected2d):
            continue
        fan_in = module.weight.shape[1] if isinstance(module, LocallyConnected2d) else module.weight[0].numel()
        with torch.no_grad():
            module.weight.normal_(0.0, (gain / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
