"""The multi-task network: one backbone, one head per task, every output by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgeface.errors import ConfigError
from edgeface.models.backbones import BUILDERS, initialise
from edgeface.models.heads import HEATMAP_STRIDE
from edgeface.models.integral import IntegralHead
from edgeface.models.layers import Luma, Standardize
from edgeface.specs import STUDENTS, ModelSpec, NetworkSpec, OutputSpec
from edgeface.tasks import TASKS, Kind

# Statistics of ImageNet in 0–255 values, as the torchvision teachers expect them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_STUDENT = ((128.0,) * 3, (64.0,) * 3)
# TCDCN z-scores each picture itself; the last is [M], see its builder.
_RESEARCH = {
    **dict.fromkeys(("tcdcn", "tcdcn_local", "tcdcn_unshared", "tcdcn_60"), ((0.0,) * 3, (255.0,) * 3)),
    "inception_resnet_v1": ((127.5,) * 3, (128.0,) * 3),
}


class MultiTaskNetwork(nn.Module):
    """A backbone with a head per output.

    Attributes:
        input_px: Side of the square input.
        standardize: (x − mean) / std.
        backbone: Pictures to (B, D) features.
        hidden: Shared layer behind the backbone; identity when the spec has none.
        branches: Output name to what stands between the shared features and its head; empty for most backbones.
        heads: Output name to its linear layer.
        integrals: Output name to its head over the trunk's maps, for landmarks where the spec asks for it.
        heatmaps: Output name to the convolution that makes its heatmaps of the trunk's last map, likewise.
        maps: Names of the trunk's blocks whose results landmarks are read from, where the spec asks for it.
        frozen_prefix: How many of the trunk's blocks stay fixed and in evaluation mode.
    """

    def __init__(self, network: NetworkSpec, model: ModelSpec) -> None:
        super().__init__()
        self.input_px = network.input_px
        self.frozen_prefix = 0
        built = BUILDERS[network.backbone](
            width=network.width, input_px=network.input_px, head=network.head, activation=network.activation
        )
        self.shapes: dict[str, tuple[int, ...]] = {output.name: output.shape for output in model.outputs}
        self.standardize = Standardize(model.mean, model.std)
        self.backbone: nn.Sequential = built.module
        features = built.features
        self.hidden: nn.Module = nn.Identity()
        if network.hidden and built.branch is not None:
            raise ConfigError(
                f"{network.hidden} shared hidden units",
                expected=f"0: the outputs of {network.backbone} share its trunk alone",
                where="hidden",
                do="Set it to 0",
            )
        if network.hidden:
            activation: nn.Module = nn.PReLU(network.hidden) if network.activation == "prelu" else nn.ReLU()
            self.hidden = nn.Sequential(nn.Linear(features, network.hidden), activation)
            features = network.hidden
        self.dropout = nn.Dropout(network.dropout)
        landmarks = [output for output in model.outputs if TASKS[output.task].kind is Kind.LANDMARKS]
        self.maps = tuple(built.maps) if landmarks and network.landmark_head != "linear" else ()
        channels = tuple(built.maps.values())
        integral, mapped = (landmarks if network.landmark_head == head else [] for head in ("integral", "heatmap"))
        self.integrals = nn.ModuleDict(
            {output.name: IntegralHead(channels, mean_shape=output.mean_shape) for output in integral}
        )
        self.heatmaps = nn.ModuleDict({output.name: nn.Conv2d(channels[-1], output.shape[-1], 1) for output in mapped})
        own = {} if built.branch is None else {output.name: built.branch(output) for output in model.outputs}
        self.branches = nn.ModuleDict({name: branch.module for name, branch in own.items()})
        self.heads = nn.ModuleDict(
            {
                output.name: nn.Linear(
                    own[output.name].features if output.name in own else features, math.prod(output.shape)
                )
                for output in model.outputs
                if output.name not in self.integrals and output.name not in self.heatmaps
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs.

        Args:
            images: (B, 3, H, W) with values 0 to 255.

        Returns:
            Output name to (B, *shape): logits, scores, embeddings, landmark offsets in crop sides, or heatmaps.
        """
        features, maps = self._trunk(self.standardize(images))
        features = self.dropout(self.hidden(features))
        outputs = {
            name: head(self.branches[name](features) if name in self.branches else features).unflatten(
                1, self.shapes[name]
            )
            for name, head in self.heads.items()
        }
        if not maps:
            return outputs
        outputs |= {name: head(maps) for name, head in self.integrals.items()}
        outputs |= {name: head(maps[-1]).permute(0, 2, 3, 1) for name, head in self.heatmaps.items()}
        return {name: outputs[name] for name in self.shapes}

    def _trunk(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features of standardized images, and the maps that landmarks are read from."""
        if not self.maps:
            return self.backbone(images), []
        maps = []
        for name, child in self.backbone.named_children():
            images = child(images)
            if name in self.maps:
                maps.append(images)
        return images, maps

    def freeze(self, blocks: int) -> None:
        """Keep the first blocks of the trunk as they are: no gradient, and batch-norm as in evaluation.

        Raises:
            ConfigError: The trunk has fewer blocks.
        """
        trunk = trunk_blocks(self.backbone)
        if blocks > len(trunk):
            raise ConfigError(
                f"{blocks}",
                expected=f"0 to {len(trunk)}, the blocks of this trunk",
                where="transfer.frozen_prefix",
                do="Lower it",
            )
        self.frozen_prefix = blocks
        for module in (module for block in trunk[:blocks] for module in block):
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiTaskNetwork:
        """As nn.Module.train, but a frozen prefix stays in evaluation mode."""
        super().train(mode)
        for module in (module for block in trunk_blocks(self.backbone)[: self.frozen_prefix] for module in block):
            module.eval()
        return self


def trunk_blocks(backbone: nn.Sequential) -> list[list[nn.Module]]:
    """The blocks of a trunk, from the picture on, as `frozen_prefix` counts them.

    A block is a child with weights to train (a convolution with its batch-norm, a stage of ResNet, …), together with
    the children without a convolution or linear layer behind it: batch-norm, activation, pooling.
    """
    blocks: list[list[nn.Module]] = []
    for child in backbone:
        if any(p.ndim > 1 for p in child.parameters()) and not isinstance(child, Luma):
            blocks.append([child])
        elif blocks:
            blocks[-1].append(child)
    return blocks


def take_over(network: MultiTaskNetwork, source: nn.Sequential, *, blocks: int = 0) -> int:
    """Copy the first blocks of another trunk into a network's: transfer, and TCDCN's step from 5 to 68 points.

    Args:
        network: Changed in place; its other layers keep their own start.
        source: A trunk whose first blocks have the same shapes.
        blocks: How many; 0 takes all.

    Returns:
        How many blocks were copied.

    Raises:
        ConfigError: A block is missing on either side, or has other shapes.
    """
    own, others = trunk_blocks(network.backbone), trunk_blocks(source)
    count = blocks or max(len(own), len(others))
    if count > min(len(own), len(others)):
        raise ConfigError(
            f"{count} blocks",
            expected=f"as many as both trunks have ({len(own)} and {len(others)})",
            where="transfer.blocks",
            do="Lower it",
        )
    for place, (mine, theirs) in enumerate(zip(own[:count], others[:count], strict=True), start=1):
        # Blocks are compared child by child: activations and poolings hold nothing, or one slope a channel.
        states = [[module.state_dict() for module in block] for block in (mine, theirs)]
        shapes = [[{n: t.shape for n, t in state.items()} for state in block if state] for block in states]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"block {place} has other shapes than the network it starts from",
                expected="the same backbone, width and activation",
                where="transfer.start",
                do=f"Take over {place - 1} blocks (transfer.blocks), or start from another network",
            )
        filled = [[module for module in block if module.state_dict()] for block in (mine, theirs)]
        for into, out_of in zip(*filled, strict=True):
            into.load_state_dict(out_of.state_dict())
    return count


def model_spec(network: NetworkSpec, outputs: Sequence[OutputSpec]) -> ModelSpec:
    """What the users of a network of this spec must know; deployable students take (x − 128) / 64."""
    mean, std = _STUDENT if network.backbone in STUDENTS else _RESEARCH.get(network.backbone, _IMAGENET)
    shaped = tuple(_heatmap(output, network) for output in outputs)
    return ModelSpec(name=network.backbone, input_px=network.input_px, outputs=shaped, mean=mean, std=std)


def _heatmap(output: OutputSpec, network: NetworkSpec) -> OutputSpec:
    """An output as this network answers it: landmarks as heatmaps where it is to."""
    if network.landmark_head != "heatmap" or TASKS[output.task].kind is not Kind.LANDMARKS:
        return output
    cells = -(-network.input_px // HEATMAP_STRIDE)
    return replace(output, shape=(cells, cells, len(output.mean_shape)), heatmap=True)


def build_network(network: NetworkSpec, model: ModelSpec, *, seed: int = 0) -> MultiTaskNetwork:
    """A freshly initialised network: a normal trunk (see `initialise`), heads that start near zero output."""
    built = MultiTaskNetwork(network, model)
    generator = torch.Generator().manual_seed(seed)
    initialise(list(built.modules()), generator=generator)
    with torch.no_grad():
        for head in built.heads.values():
            assert isinstance(head, nn.Linear)
            head.weight.normal_(0.0, 0.01, generator=generator)
            head.bias.zero_()
        for integral in built.integrals.values():
            assert isinstance(integral, IntegralHead)
            integral.heatmap.weight.normal_(0.0, 0.01, generator=generator)
        for heatmap in built.heatmaps.values():
            assert isinstance(heatmap, nn.Conv2d)
            heatmap.weight.normal_(0.0, 0.01, generator=generator)
    return built


def count_parameters(module: nn.Module) -> int:
    """Learned parameters once batch-norm is folded away: its scale disappears, its shift is the convolution's bias."""
    total = sum(parameter.numel() for parameter in module.parameters())
    total -= sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    return total - sum(m.weight.numel() for m in module.modules() if isinstance(m, Luma))
