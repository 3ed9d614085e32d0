"""Quantization without training: what quantization-aware training is measured against.

Our own methods leave a network on the grid of quantize/grid.py. NNCF's leave a model in the form they were given: it
chooses its own grid, so its result is scored on faces rather than compared step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeface.errors import UnsupportedError
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork, rounded_layer
from quantize.graph import INPUT, Graph, apply
from quantize.grid import INPUT_SCALE, activation_grid

# Method to the calibration that it takes ranges by.
METHODS = {"minmax": "minmax", "percentile": "percentile", "mse": "mse", "bias_correction": "mse"}


def post_training(graph: Graph, batches: Sequence[Tensor], *, method: str) -> FakeQuantNetwork:
    """A float student on the integer grid, without training.

    Args:
        graph: The traced student.
        batches: (B, 3, I, I) pictures to calibrate on, 0 to 255.
        method: One of METHODS: how ranges are chosen; "bias_correction" also moves biases.

    Returns:
        Snapped, in evaluation mode; its `quantized()` is what targets build from.

    Raises:
        UnsupportedError: No such method.
        DataError: No batch.
    """
    if method not in METHODS:
        raise UnsupportedError(
            f"{method!r}", expected=f"one of {', '.join(map(repr, METHODS))}", where="post-training quantization"
        )
    network = FakeQuantNetwork(graph, calibration=METHODS[method])
    calibrate(network, batches, limit=len(batches))
    if method == "bias_correction":
        correct_biases(network, batches)
    network.eval()
    network.snap_()
    return network


@torch.no_grad()
def correct_biases(network: FakeQuantNetwork, batches: Sequence[Tensor]) -> None:
    """Move each bias by what rounding changes in its layer's mean, before the ReLU, layer by layer.

    A layer is measured on what the rounded and corrected layers before it give.

    Args:
        network: A calibrated one; its biases are changed.
        batches: (B, 3, I, I) pictures, 0 to 255.

    Source:
        Nagel et al., Data-Free Quantization, ICCV 2019, arXiv:1906.04721, section 4.2, with measured means.
    """
    scales, zero_points = activation_grid(network.low, network.high)
    slots = {name: slot for slot, name in enumerate(network.points)}
    owned = {INPUT: torch.tensor(INPUT_SCALE), **{name: scales[slot] for name, slot in slots.items()}}
    plain = [{INPUT: (images.float() - 128.0) * INPUT_SCALE} for images in batches]
    coarse = [dict(values) for values in plain]
    for node in network.graph.nodes:
        bare = replace(node, relu=False)
        weight, bias = network.graph.weights.get(node.name), network.graph.biases.get(node.name)
        read = [owned[network.owner(name)] for name in node.inputs]
        expected = [apply(bare, [values[n] for n in node.inputs], weight=weight, bias=bias) for values in plain]
        q_weight, q_bias = weight, bias
        if weight is not None:
            q_weight, q_bias = rounded_layer(network.weights[node.name], network.biases[node.name], read[0])
            found = [apply(bare, [values[n] for n in node.inputs], weight=q_weight, bias=q_bias) for values in coarse]
            shift = _channel_means(expected) - _channel_means(found)
            network.biases[node.name] += shift
            q_bias = rounded_layer(network.weights[node.name], network.biases[node.name], read[0])[1]
        for before, after, y in zip(plain, coarse, expected, strict=True):
            z = apply(node, [after[n] for n in node.inputs], weight=q_weight, bias=q_bias)
            if node.name in slots:
                slot = slots[node.name]
                z = torch.fake_quantize_per_tensor_affine(z, scales[slot], zero_points[slot], -128, 127)
            before[node.name] = torch.relu(y) if node.relu else y
            after[node.name] = z


def _channel_means(parts: Sequence[Tensor]) -> Tensor:
    """(C,) over all samples and positions."""
    total = torch.stack([part.transpose(0, 1).flatten(1).double().sum(1) for part in parts]).sum(0)
    return (total / sum(part.numel() // part.shape[1] for part in parts)).float()


def nncf_bias_corrected(model: Any, pictures: Sequence[Any]) -> Any:
    """NNCF's post-training quantization with its exact bias correction, on a grid like ours (per-channel weights).

    Args:
        model: An OpenVINO model.
        pictures: Its inputs, one by one.

    Returns:
        A quantized OpenVINO model.
    """
    import nncf  # type: ignore[import-untyped]

    return nncf.quantize(
        model,
        nncf.Dataset(pictures),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(pictures),
        fast_bias_correction=False,
        advanced_parameters=_eight_bits(),
    )


def nncf_accuracy_controlled(
    model: Any,
    pictures: Sequence[Any],
    *,
    control: Sequence[Any],
    score: Callable[[Any, Sequence[int]], list[float]],
    max_drop: float,
) -> Any:
    """NNCF's post-training quantization that gives layers back to float until a score holds.

    Args:
        model: An OpenVINO model.
        pictures: Its inputs, one by one, for the ranges.
        control: Inputs to score on, of faces that no result is reported on.
        score: A compiled model and places in `control` to one score each; higher is better.
        max_drop: How much lower than the float model's the mean score may be.

    Returns:
        An OpenVINO model with int8 and float layers.
    """
    import nncf

    def validate(compiled: Any, items: Iterable[tuple[int, Any]]) -> tuple[float, list[float]]:
        each = score(compiled, [place for place, _ in items])
        return sum(each) / len(each), each

    return nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(pictures),
        nncf.Dataset(list(enumerate(control)), lambda item: item[1]),
        validate,
        max_drop=max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(pictures),
        fast_bias_correction=False,
        advanced_quantization_parameters=_eight_bits(),
    )


def _eight_bits() -> Any:
    import nncf

    # NNCF would give the first layer 7-bit weights for the sake of CPUs whose 8-bit sums overflow; ours do not.
    return nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE)
