"""Quantization-aware training: from a float student to a network on the integer grid, and back from a checkpoint.

network = prepare(student, spec)
calibrate(network, batches, limit=spec.calibration_batches)
fit(network, …, before_step=milestones(spec))      the one training loop, distill/train.py
finish(network)
save_checkpoint(…, kind="qat", weights=qat_weights(network), …)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edgeface.checkpoint import Checkpoint
from edgeface.errors import ModelError
from edgeface.models.network import MultiTaskNetwork, build_network
from edgeface.specs import QatSpec
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import trace


def prepare(network: MultiTaskNetwork, spec: QatSpec) -> FakeQuantNetwork:
    """The fake-quant form of a float student, still without ranges.

    Raises:
        UnsupportedError: A layer or the standardisation has no integer form.
    """
    return FakeQuantNetwork(trace(network), calibration=spec.calibration, ema=spec.ema)


def milestones(spec: QatSpec) -> Callable[[nn.Module, int, int], None]:
    """What the training loop calls before each step with (network, step, steps).

    It depends on the step alone, so a resumed run passes the same milestones: everything is rounded from step 0 (the
    network is calibrated before), and ranges stay fixed for the last `freeze_share` of the steps.
    """

    def before_step(network: nn.Module, step: int, steps: int) -> None:
        assert isinstance(network, FakeQuantNetwork)
        if step >= freeze_step(spec, steps=steps):
            if network.phase != "frozen":
                network.freeze()
        elif network.phase != "adapting":
            network.enable()

    return before_step


def freeze_step(spec: QatSpec, *, steps: int) -> int:
    """First step with fixed ranges."""
    return steps - math.floor(spec.freeze_share * steps)


def finish(network: FakeQuantNetwork) -> None:
    """End of training: evaluation mode, weights and biases on their grid."""
    network.eval()
    network.snap_()


def qat_weights(network: FakeQuantNetwork) -> dict[str, Tensor]:
    """Tensors of a snapped network for its checkpoint: NODE.weight, NODE.bias, and POINT.low and POINT.high of ranges.

    Raises:
        ModelError: The network is not snapped.
    """
    graph = network.quantized().graph
    tensors: dict[str, Tensor] = {}
    for name, weight in graph.weights.items():
        tensors[f"{name}.weight"] = weight.clone()
        tensors[f"{name}.bias"] = graph.biases[name].clone()
    for slot, name in enumerate(network.points):
        tensors[f"{name}.low"] = network.low[slot].detach().cpu().clone()
        tensors[f"{name}.high"] = network.high[slot].detach().cpu().clone()
    return tensors


def load_qat(checkpoint: Checkpoint) -> FakeQuantNetwork:
    """The snapped fake-quant student of a checkpoint, in evaluation mode.

    Raises:
        ModelError: The checkpoint is not a QAT one, or its tensors are not those of its network, or not on the grid.
    """
    where = str(checkpoint.folder)
    if checkpoint.kind != "qat":
        raise ModelError(
            f"a checkpoint of kind {checkpoint.kind!r}",
            expected="'qat'",
            where=where,
            do=f"Type: edgeface quantize {where}",
        )
    network = FakeQuantNetwork(trace(build_network(checkpoint.network, checkpoint.model)))
    tensors = checkpoint.weights()
    _require_names(tensors, expected=_names(network), where=where)
    with torch.no_grad():
        for name in network.graph.weights:
            _copy(network.weights[name], tensors[f"{name}.weight"], where=f"{where}: {name}.weight")
            _copy(network.biases[name], tensors[f"{name}.bias"], where=f"{where}: {name}.bias")
        for slot, name in enumerate(network.points):
            _copy(network.low[slot], tensors[f"{name}.low"], where=f"{where}: {name}.low")
            _copy(network.high[slot], tensors[f"{name}.high"], where=f"{where}: {name}.high")
        network.batches.fill_(1)
    network.eval()
    network.phase = "snapped"
    network.quantized()  # refuses weights between the steps of their grid
    return network


def _names(network: FakeQuantNetwork) -> set[str]:
    parameters = {f"{name}.{part}" for name in network.graph.weights for part in ("weight", "bias")}
    return parameters | {f"{name}.{part}" for name in network.points for part in ("low", "high")}


def _require_names(tensors: Mapping[str, Tensor], *, expected: set[str], where: str) -> None:
    missing, surplus = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or surplus:
        raise ModelError(
            f"tensors {missing[:5]} missing, {surplus[:5]} unknown ({len(missing)} and {len(surplus)} in all)",
            expected="the tensors of the network its manifest describes",
            where=where,
            do="Write it again with edgeface quantize",
        )


def _copy(target: Tensor, source: Tensor, *, where: str) -> None:
    if target.shape != source.shape or target.dtype != source.dtype:
        raise ModelError(
            f"a tensor {tuple(source.shape)} {source.dtype}",
            expected=f"{tuple(target.shape)} {target.dtype}",
            where=where,
            do="Write it again with edgeface quantize",
        )
    target.copy_(source)
