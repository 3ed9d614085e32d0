"""The multi-task network: one backbone, one head per task, every output by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeface.models.backbones import BUILDERS, initialise
from edgeface.models.layers import Luma, Standardize
from edgeface.specs import STUDENTS, ModelSpec, NetworkSpec, OutputSpec

# Statistics of ImageNet in 0–255 values, as the torchvision teachers expect them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class MultiTaskNetwork(nn.Module):
    """A backbone with a head per output.

    Attributes:
        input_px: Side of the square input.
        standardize: (x − mean) / std.
        backbone: Pictures to (B, D) features.
        hidden: Shared layer behind the backbone; identity when the spec has none.
        heads: Output name to its linear layer.
    """

    def __init__(self, network: NetworkSpec, model: ModelSpec) -> None:
        super().__init__()
        self.input_px = network.input_px
        built = BUILDERS[network.backbone](width=network.width, input_px=network.input_px, head=network.head)
        self.shapes: dict[str, tuple[int, ...]] = {output.name: output.shape for output in model.outputs}
        self.standardize = Standardize(model.mean, model.std)
        self.backbone = built.module
        features = built.features
        self.hidden: nn.Module = nn.Identity()
        if network.hidden:
            self.hidden = nn.Sequential(nn.Linear(features, network.hidden), nn.ReLU())
            features = network.hidden
        self.dropout = nn.Dropout(network.dropout)
        self.heads = nn.ModuleDict(
            {output.name: nn.Linear(features, math.prod(output.shape)) for output in model.outputs}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs.

        Args:
            images: (B, 3, H, W) with values 0 to 255.

        Returns:
            Output name to (B, *shape): logits, scores, embeddings, or landmark offsets in crop sides.
        """
        features = self.dropout(self.hidden(self.backbone(self.standardize(images))))
        return {name: head(features).unflatten(1, self.shapes[name]) for name, head in self.heads.items()}


def model_spec(network: NetworkSpec, outputs: Sequence[OutputSpec]) -> ModelSpec:
    """What the users of a network of this spec must know; deployable students take (x − 128) / 64."""
    if network.backbone in STUDENTS:
        return ModelSpec(name=network.backbone, input_px=network.input_px, outputs=tuple(outputs))
    return ModelSpec(
        name=network.backbone,
        input_px=network.input_px,
        outputs=tuple(outputs),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def build_network(network: NetworkSpec, model: ModelSpec, *, seed: int = 0) -> MultiTaskNetwork:
    """A freshly initialised network: Kaiming-normal trunk, heads that start at zero output."""
    built = MultiTaskNetwork(network, model)
    generator = torch.Generator().manual_seed(seed)
    initialise(list(built.modules()), generator=generator)
    with torch.no_grad():
        for head in built.heads.values():
            assert isinstance(head, nn.Linear)
            head.weight.normal_(0.0, 0.01, generator=generator)
            head.bias.zero_()
    return built


def count_parameters(module: nn.Module) -> int:
    """Learned parameters once batch-norm is folded away: its scale disappears, its shift is the convolution's bias."""
    total = sum(parameter.numel() for parameter in module.parameters())
    total -= sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    return total - sum(m.weight.numel() for m in module.modules() if isinstance(m, Luma))
