"""Batch norms folded into convolutions give the same answers, in every trunk a teacher can have."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgeface.models.folding import fold_norms
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.specs import NetworkSpec, output_spec

OUTPUTS = (output_spec("landmarks5", mean_shape=((0.3, 0.4), (0.7, 0.4), (0.5, 0.55), (0.35, 0.7), (0.65, 0.7))),)
TRUNKS = [
    NetworkSpec(backbone="vgg16", width=0.125, input_px=32, head="flatten", hidden=16, landmark_head="integral"),
    NetworkSpec(backbone="resnet50", width=0.125, input_px=32),
    NetworkSpec(backbone="edge_s", input_px=32),
    NetworkSpec(backbone="inception_resnet_v1", width=0.125, input_px=96),
]


def trained(spec: NetworkSpec) -> MultiTaskNetwork:
    """A network whose batch norms have all learned something of their own."""
    generator = torch.Generator().manual_seed(0)
    network = build_network(spec, model_spec(spec, OUTPUTS)).eval()
    for norm in norms(network):
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.normal_(0.0, 0.3, generator=generator)
        norm.running_mean.normal_(0.0, 0.3, generator=generator)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return network


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def answers(network: nn.Module, side: int) -> Tensor:
    images = torch.randint(0, 256, (4, 3, side, side), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        (found,) = network(images).values()
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("spec", TRUNKS, ids=lambda spec: spec.backbone)
def test_a_folded_network_answers_the_same(spec: NetworkSpec) -> None:
    network = trained(spec)
    folded = copy.deepcopy(network)
    fold_norms(folded)
    assert norms(network)
    assert not norms(folded)
    whole = answers(network, spec.input_px)
    close = {"rtol": 1e-4, "atol": 1e-4 * float(whole.abs().max())}
    torch.testing.assert_close(answers(folded, spec.input_px), whole, **close)

    norms(network)[-1].bias.data += 0.3  # the twin: another network
    with pytest.raises(AssertionError):
        torch.testing.assert_close(answers(folded, spec.input_px), answers(network, spec.input_px), **close)


def test_names_stay() -> None:
    network = trained(TRUNKS[0])
    before = [name for name, _ in network.named_modules()]
    fold_norms(network)
    assert [name for name, _ in network.named_modules()] == before


def test_a_batch_norm_behind_something_else_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    fold_norms(network)
    assert len(norms(network)) == 1


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
