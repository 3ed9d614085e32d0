"""The student as quantization-aware training sees it: float32 arithmetic on values rounded to the integer grid.

While it trains, every value is a float32 multiple k·s of its scale and sums of products carry float32 rounding, so
about one activation in a million lands on the other side of a rounding threshold than in the shipped file, and layers
behind it spread that. Once snapped, nothing is left to train and the network is computed on the integers k instead,
held in floating point: the same numbers algebraically, without that rounding. The answer then depends on neither
threads nor batch nor machine, and is that of the shipped file (rule "xnnpack" of quantize/grid.py), bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from distill import ranks
from edgeface.errors import ConfigError, ModelError
from edgeface.specs import CALIBRATIONS
from quantize.graph import INPUT, Graph, Node, apply, scale_owners
from quantize.grid import (
    INPUT_SCALE,
    INPUT_ZERO_POINT,
    Quantized,
    activation_grid,
    grid_range,
    require_floats,
    require_input_grid,
    snap,
    weight_scales,
)
from quantize.histogram import Histogram
from quantize.rounding import add_ratios

# observing  ranges follow the activations, nothing is rounded
# adapting   everything is rounded, ranges follow
# frozen     everything is rounded, ranges stay
# snapped    weights and biases lie on their grid, and the integers themselves are computed with
Phase = Literal["observing", "adapting", "frozen", "snapped"]


class FakeQuantNetwork(nn.Module):
    """A graph whose weights, biases and activations are rounded to the grid of quantize/grid.py, straight-through.

    Ranges are followed in training mode only, so validation never moves them. Gradients pass rounding unchanged and
    stop where an activation is clamped.

    Attributes:
        graph: The folded float network it started from.
        floats: Layers left in float, see Quantized.floats.
        weights: Node name to weight.
        biases: Node name to bias.
        points: Nodes that own a scale, in execution order.
        low: (P,) least value of each point's range, at most 0.
        high: (P,) greatest value, at least 0.
        batches: How many batches the ranges have followed.
        phase: See Phase.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(
        self, graph: Graph, *, calibration: str = "ema", ema: float = 0.98, floats: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        require_input_grid(graph)
        require_floats(graph, floats)
        if calibration not in CALIBRATIONS:
            raise ConfigError(
                f"{calibration!r}",
                expected=f"one of {', '.join(map(repr, CALIBRATIONS))}",
                where="qat.calibration",
            )
        self.graph = graph
        self.floats = floats
        self.calibration = calibration
        self.ema = ema
        self._histograms: list[Histogram] = []
        self.phase: Phase = "observing"
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(weight.detach().clone(), requires_grad=name not in graph.fixed)
                for name, weight in graph.weights.items()
            }
        )
        self.biases = nn.ParameterDict(
            {
                name: nn.Parameter(bias.detach().clone(), requires_grad=name not in graph.fixed)
                for name, bias in graph.biases.items()
            }
        )
        self._float_outputs = floats & set(graph.outputs.values())
        self._owners = scale_owners(graph)
        self.points = tuple(node.name for node in graph.nodes if self._owners[node.name] == node.name)
        self._slots = {name: slot for slot, name in enumerate(self.points)}
        self.register_buffer("low", torch.zeros(len(self.points)))
        self.register_buffer("high", torch.zeros(len(self.points)))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def observe(self) -> None:
        """Follow the activations' ranges in training mode, round nothing."""
        self.phase = "observing"

    @torch.no_grad()
    def forget(self) -> None:
        """Back to the state without ranges."""
        self.observe()
        self.low.zero_()
        self.high.zero_()
        self.batches.zero_()
        self._histograms = []

    def enable(self) -> None:
        """Round everything, and follow the ranges in training mode."""
        self._take_ranges()
        self._require_ranges()
        self.phase = "adapting"

    def freeze(self) -> None:
        """Round everything, and keep the ranges."""
        self._take_ranges()
        self._require_ranges()
        if self.phase != "frozen":
            self._settle_ranges()
        self.phase = "frozen"

    @torch.no_grad()
    def snap_(self) -> None:
        """Round every weight and bias onto its grid, for good.

        Raises:
            ModelError: No range was ever followed, or a weight or range is not a finite number.
        """
        self._take_ranges()
        self._require_ranges()
        self._settle_ranges()
        quantized = snap(self.float_graph(), activations=self.activations(), floats=self.floats)
        # Scales of 16 bits make one pass a fixed point; a second that changed anything would be a fault of the grid.
        again = snap(quantized.graph, activations=quantized.activations, floats=self.floats)
        for name, weight in quantized.graph.weights.items():
            bias = quantized.graph.biases[name]
            assert torch.equal(weight, again.graph.weights[name]), name
            assert torch.equal(bias, again.graph.biases[name]), name
            self.weights[name].copy_(weight)
            self.biases[name].copy_(bias)
        self.phase = "snapped"

    def owner(self, name: str) -> str:
        """The point that decides the scale of INPUT or a node."""
        return self._owners[name]

    def activations(self) -> dict[str, tuple[float, int]]:
        """(scale, zero point) of INPUT and every node, from the ranges as they stand."""
        scale, zero_point = activation_grid(self.low, self.high)
        owned = dict(zip(self.points, zip(scale.tolist(), zero_point.tolist(), strict=True), strict=True))
        owned[INPUT] = (INPUT_SCALE, INPUT_ZERO_POINT)
        return {name: owned[owner] for name, owner in self._owners.items()}

    def quantized(self) -> Quantized:
        """The network on the integer grid.

        Raises:
            ModelError: Its weights or biases are off their grid: it was not snapped, or changed since.
        """
        if self.phase != "snapped":
            raise ModelError(
                f"a fake-quant network that is {self.phase}", expected="a snapped one", do="Call snap_() after training"
            )
        graph = self.float_graph()
        quantized = snap(graph, activations=self.activations(), floats=self.floats)
        for name, weight in graph.weights.items():
            if not (
                torch.equal(weight, quantized.graph.weights[name])
                and torch.equal(graph.biases[name], quantized.graph.biases[name])
            ):
                raise ModelError(
                    f"layer {name!r} has weights or biases between the steps of its grid",
                    expected="a snapped network",
                    do="Call snap_() after the last change",
                )
        return quantized

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs on the grid (off it while observing).

        Args:
            images: (B, 3, I, I), whole numbers 0 to 255.

        Returns:
            Output name to (B, *shape).
        """
        values = self.node_values(images)
        return {
            output: values[name].reshape(len(images), *self.graph.output_shape(output))
            for output, name in self.graph.outputs.items()
        }

    def node_values(self, images: Tensor) -> dict[str, Tensor]:
        """Value of INPUT and every node, (B, *node.shape): tells where two implementations part."""
        # Half-precision products would blur the grid, so autocast stays outside.
        with torch.autocast(images.device.type, enabled=False):
            if self.phase != "snapped":
                return self._nodes(images.float())
            grids = self.activations()
            codes = self._codes(images.float(), grids)
            return {name: k if name in self._float_outputs else k * grids[name][0] for name, k in codes.items()}

    @torch.no_grad()
    def _codes(self, images: Tensor, grids: dict[str, tuple[float, int]]) -> dict[str, Tensor]:
        """q − z of INPUT and every node, whole numbers in float32; an output that leaves in float, its value."""
        values = {INPUT: torch.round(images - 128.0).clamp(-128, 127)}
        for node in self.graph.nodes:
            operands = [values[name] for name in node.inputs]
            if self._owners[node.name] != node.name:
                values[node.name] = apply(node, operands)
                continue
            scale, zero_point = grids[node.name]
            in_scale = grids[node.inputs[0]][0]
            if node.name in self.floats:
                # As the simulator: summed in float64, so that no order of summation shows.
                weight, bias = self.weights[node.name].double(), self.biases[node.name].double()
                y = apply(node, [operands[0].double() * in_scale], weight=weight, bias=bias).float()
                if node.name in self._float_outputs:
                    values[node.name] = y
                    continue
                rounded = torch.round(y / scale)
            elif node.op == "add":
                first, second, shift = add_ratios(in_scale, grids[node.inputs[1]][0], scale)
                total = operands[0].double() * first + operands[1].double() * second
                rounded = torch.floor(total * 2.0**-shift + 0.5).float()
            elif node.op == "mean":
                _, _, height, width = operands[0].shape
                multiplier = images.new_tensor(in_scale) / scale / (height * width)
                rounded = torch.round(operands[0].sum((2, 3)) * multiplier)
            else:
                rounded = self._products(node, operands[0], in_scale=in_scale, out_scale=scale)
            least = max(-128, zero_point) if node.relu else -128
            values[node.name] = rounded.clamp(least - zero_point, 127 - zero_point)
        return values

    def _products(self, node: Node, codes: Tensor, *, in_scale: float, out_scale: float) -> Tensor:
        weight, bias = self.weights[node.name], self.biases[node.name]
        scales = weight_scales(weight, bias, weight.new_tensor(in_scale))  # (out,)
        weight_codes = torch.round(weight / scales.view(-1, *[1] * (weight.ndim - 1)))
        bias_codes = torch.round(bias.double() / (scales.double() * in_scale))
        # Whole numbers below 2^24 add up exactly in float32, in any order. The convolutions of other devices may take
        # short cuts through fractions (Winograd), so those compute in float64, where such fractions vanish in rounding.
        bound = weight_codes.abs().flatten(1).sum(1) * 255 + bias_codes.abs()
        exact = torch.float32 if codes.device.type == "cpu" and float(bound.max()) < 2**24 else torch.float64
        linear = replace(node, relu=False)
        sums = apply(linear, [codes.to(exact)], weight=weight_codes.to(exact), bias=bias_codes.to(exact))
        multiplier = scales * in_scale / out_scale
        return torch.round(torch.round(sums).float() * multiplier.view(-1, *[1] * (sums.ndim - 2)))

    def _nodes(self, images: Tensor) -> dict[str, Tensor]:
        follows = self.training and self.phase in ("observing", "adapting")
        rounds = self.phase != "observing"
        share = self._share() if follows else 0.0
        x = (images - 128.0) * INPUT_SCALE
        if rounds:
            x = torch.fake_quantize_per_tensor_affine(x, INPUT_SCALE, INPUT_ZERO_POINT, -128, 127)
        values = {INPUT: x}
        scales, zero_points = activation_grid(self.low, self.high)
        # A node's input scale, when that node is reached; the ranges move while the batch goes through.
        grids = {INPUT: images.new_tensor(INPUT_SCALE)}
        for node in self.graph.nodes:
            inputs = [values[name] for name in node.inputs]
            weight = bias = None
            if node.name in self.weights:
                weight, bias = self.weights[node.name], self.biases[node.name]
                if rounds and node.name not in self.floats:
                    weight, bias = rounded_layer(weight, bias, grids[self._owners[node.inputs[0]]])
            y = apply(node, inputs, weight=weight, bias=bias)
            slot = self._slots.get(node.name)
            if slot is not None:
                scale, zero_point = scales[slot], zero_points[slot]
                if follows:
                    self._follow(slot, y.detach(), share)
                    scale, zero_point = activation_grid(self.low[slot], self.high[slot])
                grids[node.name] = scale
                if rounds and node.name not in self._float_outputs:
                    y = torch.fake_quantize_per_tensor_affine(y, scale, zero_point, -128, 127)
            values[node.name] = y
        if follows:
            self.batches += 1
        return values

    def _share(self) -> float:
        """Weight of a new batch in the running extremes: a plain average at first, so that no single batch decides."""
        return max(1.0 - self.ema, 1.0 / (int(self.batches) + 1))

    @torch.no_grad()
    def _take_ranges(self) -> None:
        """Ranges from the histograms of the batches observed, where there are any."""
        if not self._histograms:
            return
        for each in self._histograms:
            each.add_ranks()
        found = [
            each.percentiles() if self.calibration == "percentile" else each.least_squares()
            for each in self._histograms
        ]
        lows, highs = zip(*found, strict=True)
        self.low.copy_(self.low.new_tensor(lows))
        self.high.copy_(self.high.new_tensor(highs))
        self._histograms = []

    @torch.no_grad()
    def _follow(self, slot: int, y: Tensor, share: float) -> None:
        if self.calibration in ("percentile", "mse"):
            # Found from all observed batches at once, and kept: a batch alone has too few rare values to tell.
            if self.phase == "observing":
                if not self._histograms:
                    self._histograms = [Histogram() for _ in self.points]
                self._histograms[slot].add(y)
            return
        low, high = ranks.extremes(*torch.aminmax(y))
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        if self.calibration == "minmax":
            self.low[slot] = torch.minimum(self.low[slot], low)
            self.high[slot] = torch.maximum(self.high[slot], high)
        else:
            self.low[slot].lerp_(low, share)
            self.high[slot].lerp_(high, share)

    def _require_ranges(self) -> None:
        if int(self.batches) == 0:
            raise ModelError(
                "a fake-quant network that has seen no pictures",
                expected="calibrated ranges",
                do="Call calibrate() with a few batches first",
            )
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            worst = [n for n, s in self._slots.items() if not torch.isfinite(self.high[s] - self.low[s])]
            raise ModelError(f"ranges that are not finite at {', '.join(map(repr, worst))}", do="Train it again")

    @torch.no_grad()
    def _settle_ranges(self) -> None:
        """Write the ranges as the least and greatest value of their grid, so that they say exactly what is computed."""
        low, high = grid_range(*activation_grid(self.low, self.high))
        self.low.copy_(low)
        self.high.copy_(high)

    def float_graph(self) -> Graph:
        """The graph with the weights and biases as they stand, on the CPU."""
        return replace(
            self.graph,
            weights={name: self.weights[name].detach().cpu().contiguous() for name in self.graph.weights},
            biases={name: self.biases[name].detach().cpu() for name in self.graph.biases},
        )


def on_grid(quantized: Quantized) -> FakeQuantNetwork:
    """A network on the grid as one that runs: snapped, in evaluation mode; its `quantized()` is `quantized` again."""
    network = FakeQuantNetwork(quantized.graph, floats=quantized.floats)
    grids = [quantized.activations[name] for name in network.points]
    scale = torch.tensor([scale for scale, _ in grids])
    zero_point = torch.tensor([zero for _, zero in grids])
    with torch.no_grad():
        low, high = grid_range(scale, zero_point)
        network.low.copy_(low)
        network.high.copy_(high)
        network.batches.fill_(1)
    network.phase = "snapped"
    return network.eval()


def rounded_layer(weight: Tensor, bias: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias at the nearest points of their grid, straight-through."""
    scales = weight_scales(weight, bias, input_scale)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    step = scales * input_scale
    rounded = bias + (torch.round(bias.detach() / step) * step - bias.detach())
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127), rounded
