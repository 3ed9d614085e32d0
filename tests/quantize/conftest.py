from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeface.models.layers import Conv2dSame, MaxFeatureMap, Standardize
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.specs import NetworkSpec, QatSpec, output_spec
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import Graph, trace_module
from quantize.qat import finish

MEAN_SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Patchwork(nn.Module):
    """A small network with every operation the integer grid knows, in 16x16 pictures.

    Its paddings are uneven, its ranges lie on both sides of zero, and two nodes are read twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.standardize = Standardize((128.0,) * 3, (64.0,) * 3)
        self.stem = nn.Sequential(Conv2dSame(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.maxout = nn.Sequential(Conv2dSame(8, 12, (1, 3)), MaxFeatureMap())
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.features = nn.Sequential(nn.Linear(6 * 4 * 4, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.points = nn.Linear(12, 10)
        self.choice = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(self.standardize(images))
        x = F.relu(self.left(x) + x)
        x = self.maxout(x)
        pooled = self.pool(x)
        features = self.features(self.drop(pooled.flatten(1)))
        return {"points": self.points(features).unflatten(1, (5, 2)), "choice": self.choice(x.mean((2, 3)))}


def stir(network: nn.Module) -> None:
    """Batch-norm statistics that folding must not lose, and heads that answer something; evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0.0, 0.3, generator=generator)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, 0.2, generator=generator)
            module.bias.data.normal_(0.0, 0.2, generator=generator)
    network.eval()


def smooth_pictures(count: int, side: int) -> NDArray[np.uint8]:
    """(N, side, side, 3): random blobs; plain noise would average out in a few layers."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 256, (count, 3, 5, 5), generator=generator).float()
    blobs = F.interpolate(coarse, side, mode="bicubic").round().clamp(0, 255)
    return blobs.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def as_images(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


@pytest.fixture
def patchwork() -> nn.Module:
    torch.manual_seed(0)
    network = Patchwork()
    stir(network)
    return network


@pytest.fixture
def patchwork_graph(patchwork: nn.Module) -> Graph:
    return trace_module(patchwork, input_px=16)


@pytest.fixture
def make_student() -> Callable[[str], MultiTaskNetwork]:
    """Makes a narrow student of a given backbone, with three heads."""

    def make(backbone: str) -> MultiTaskNetwork:
        network = NetworkSpec(backbone=backbone, width=0.125, input_px=64, hidden=8, dropout=0.2)
        outputs = [output_spec("landmarks5", mean_shape=MEAN_SHAPE), output_spec("gender"), output_spec("pose")]
        built = build_network(network, model_spec(network, outputs))
        stir(built)
        return built

    return make


@pytest.fixture
def stirred() -> Callable[[nn.Module], None]:
    return stir


@pytest.fixture
def pictures() -> Callable[[int, int], NDArray[np.uint8]]:
    return smooth_pictures


@pytest.fixture
def images() -> Callable[[NDArray[np.uint8]], Tensor]:
    """Turns (B, H, W, 3) uint8 into what a network reads."""
    return as_images


@pytest.fixture
def snapped() -> Callable[[Graph], FakeQuantNetwork]:
    """Calibrates and snaps the fake-quant form of a graph."""

    def make(graph: Graph) -> FakeQuantNetwork:
        network = FakeQuantNetwork(graph, ema=QatSpec().ema)
        calibrate(network, [as_images(smooth_pictures(8, graph.input_px))], limit=1)
        finish(network)
        return network

    return make
