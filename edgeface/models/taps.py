"""Taps: what the layers of a network gave, for whoever compares two networks on the inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgeface.models.network import MultiTaskNetwork
from edgeface.specs import FEATURES


class Taps:
    """Keeps what some layers gave in the network's last forward pass.

    Args:
        network: Hooks are set on it; what it computes stays the same.
        layers: Names of the trunk's layers, as `layer_shapes` lists them.
    """

    def __init__(self, network: MultiTaskNetwork, layers: Sequence[str]) -> None:
        self._values: dict[str, Tensor] = {}
        self._layers = tuple(layers)
        modules = _layers(network)
        self._hooks = [modules[name].register_forward_hook(self._keeper(name)) for name in dict.fromkeys(layers)]

    def _keeper(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._values[name] = output

        return keep

    def remove(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    def take(self) -> list[Tensor]:
        """(B, C, H, W) or (B, D) of each layer, in the order asked for; then forgotten, since they hold a graph."""
        taken = [self._values[name] for name in self._layers]
        self._values.clear()
        return taken


def layer_shapes(network: MultiTaskNetwork) -> dict[str, tuple[int, ...]]:
    """The trunk's layers from the picture on, last the shared features, with the shape of one sample.

    One black picture is run through; (C, H, W) is a map, (D,) a vector.
    """
    taps = Taps(network, names := list(_layers(network)))
    training = network.training
    like = next(network.parameters())
    with torch.no_grad():
        network.eval()(like.new_zeros(1, 3, network.input_px, network.input_px))
    network.train(training)
    taps.remove()
    return {name: tuple(value.shape[1:]) for name, value in zip(names, taps.take(), strict=True)}


def _layers(network: MultiTaskNetwork) -> dict[str, nn.Module]:
    return {**dict(network.backbone.named_children()), FEATURES: network.hidden}
