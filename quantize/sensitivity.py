"""Which layer's rounding hurts which task: every task's main metric with one layer rounded, or with one given back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgeface.evaluate import Outputs, decode
from edgeface.metrics import main_metric, score, worsening
from edgeface.models.runner import TorchRunner
from edgeface.specs import ModelSpec
from edgeface.tasks import TASKS
from quantize.fakequant import rounded_layer
from quantize.graph import INPUT, Graph, Node, apply, layer_macs, scale_owners
from quantize.grid import INPUT_SCALE, require_input_grid

if TYPE_CHECKING:
    from edgeface.data.pack import Pack

# alone  everything is float but one layer, whose weights and result are rounded
# rest   everything is rounded but one layer, which is computed as in Quantized.floats
Mode = Literal["alone", "rest"]


@dataclass(frozen=True, kw_only=True)
class LayerHarm:
    """What rounding one layer costs.

    Attributes:
        layer: Node name.
        macs: Its multiply-accumulates.
        harm: Task to worsening of its main metric by rounding this layer, in the unit of budgets (metrics.worsening).
    """

    layer: str
    macs: int
    harm: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """One row per layer, in execution order.

    Attributes:
        mode: See Mode; harm is measured against the float network (alone) or by giving the layer back (rest).
        faces: Faces it was measured on.
        reference: Task to its main metric, of the network that every row differs from in one layer.
        rows: Layers.
    """

    mode: Mode
    faces: int
    reference: Mapping[str, float]
    rows: tuple[LayerHarm, ...]

    def most_harmful(self, task: str) -> str:
        """The layer whose rounding hurts a task most."""
        return max(self.rows, key=lambda row: row.harm[task]).layer


class Faces:
    """Labelled faces that a network is scored on, task by task. Never those that results are reported on.

    Attributes:
        spec: Inputs and outputs of the networks it scores.
        count: How many faces.
        images: (N, I, I, 3) uint8.
        metric: Task to the key of its main metric, of the tasks scored so far.
    """

    def __init__(self, pack: Pack, spec: ModelSpec, *, limit: int = 2000) -> None:
        """Take up to `limit` faces, evenly from all of the pack.

        Args:
            pack: Evaluation crops, as edgeface.evaluate.evaluation_pack cuts them.
            spec: The network's input and outputs.
            limit: Most faces used.
        """
        total = len(pack.keys)
        places = np.arange(total) if total <= limit else np.linspace(0, total - 1, limit).round().astype(np.int64)
        self.spec = spec
        self.count = len(places)
        self.images = np.ascontiguousarray(pack.images[places])
        self.metric: dict[str, str] = {}
        self._labels = {task: labels[places] for task, labels in pack.labels.items()}

    def score(self, network: nn.Module, *, batch: int = 128) -> dict[str, float]:
        """Main metric of every task that can be scored."""
        runner = TorchRunner(network, self.spec)
        parts = [runner.run(self.images[start : start + batch]) for start in range(0, self.count, batch)]
        return self.metrics({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """Main metrics of raw outputs, one row per face."""
        found = {}
        for task, answers in decode(self.spec, outputs).items():
            if task in self._labels:
                scores = score(TASKS[task], answers, self._labels[task])
                key = main_metric(TASKS[task], scores)
                if key in scores:
                    self.metric[task] = key
                    found[task] = float(scores[key])
        return found

    def worsening(self, found: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
        """Task to how much worse it is than the reference, in the unit of budgets."""
        return {task: worsening(self.metric[task], found[task], value) for task, value in reference.items()}


@torch.no_grad()
def sensitivity(
    graph: Graph,
    activations: Mapping[str, tuple[float, int]],
    faces: Faces,
    *,
    mode: Mode = "alone",
    floats: frozenset[str] = frozenset(),
    batch: int = 64,
) -> Sensitivity:
    """Measure every convolution and linear layer.

    The values in front of a layer are computed once for all layers, so that a table costs about half as many forward
    passes as it has rows.

    Args:
        graph: Weights of the network: the float student's, or those snapped by training, whose rounding costs nothing.
        activations: (scale, zero point) of INPUT and every node.
        faces: What it is measured on.
        mode: See Mode.
        floats: Layers that are in float for good; they have no row.
        batch: Faces at once.

    Raises:
        UnsupportedError: The input's standardisation is not that of the grid.
    """
    require_input_grid(graph)
    layers = [node.name for node in graph.nodes if node.name in graph.weights and node.name not in floats]
    arithmetic = _Arithmetic(graph, activations, floats=floats)
    parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in ("", *layers)}
    for start in range(0, faces.count, batch):
        images = torch.from_numpy(faces.images[start : start + batch]).permute(0, 3, 1, 2).float()
        values = {INPUT: (images - 128.0) * INPUT_SCALE}
        for node in graph.nodes:
            values[node.name] = arithmetic.value(node, values, rounds=mode == "rest")
        parts[""].append({output: values[name] for output, name in graph.outputs.items()})
        for layer in layers:
            parts[layer].append(_with_one_changed(arithmetic, values, layer, mode=mode))
    scored = {name: faces.metrics(_joined(graph, part)) for name, part in parts.items()}
    reference = scored.pop("")
    cost = layer_macs(graph)
    rows = []
    for layer, found in scored.items():
        harm = faces.worsening(found, reference) if mode == "alone" else faces.worsening(reference, found)
        rows.append(LayerHarm(layer=layer, macs=cost[layer], harm=harm))
    return Sensitivity(mode=mode, faces=faces.count, reference=reference, rows=tuple(rows))


class _Arithmetic:
    """Nodes of a graph, rounded or not."""

    def __init__(self, graph: Graph, activations: Mapping[str, tuple[float, int]], *, floats: frozenset[str]) -> None:
        self.graph = graph
        self.floats = floats
        self.activations = activations
        self._owners = scale_owners(graph)
        self._leaves = set(graph.outputs.values())
        self._rounded = {
            name: rounded_layer(
                weight, graph.biases[name], torch.tensor(activations[graph.node(name).inputs[0]][0]).float()
            )
            for name, weight in graph.weights.items()
        }

    def value(self, node: Node, values: Mapping[str, Tensor], *, rounds: bool) -> Tensor:
        """Weights and result on their grid, or neither."""
        if rounds and node.name in self.floats:
            return self.in_float(node, values)
        weight, bias = self.graph.weights.get(node.name), self.graph.biases.get(node.name)
        if rounds and weight is not None:
            weight, bias = self._rounded[node.name]
        y = apply(node, [values[name] for name in node.inputs], weight=weight, bias=bias)
        return self.on_grid(node, y) if rounds else y

    def in_float(self, node: Node, values: Mapping[str, Tensor]) -> Tensor:
        """A layer of Quantized.floats: on its grid again unless it is an output."""
        y = self.value(node, values, rounds=False)
        return y if node.name in self._leaves else self.on_grid(node, y)

    def on_grid(self, node: Node, y: Tensor) -> Tensor:
        if self._owners[node.name] != node.name:
            return y
        scale, zero_point = self.activations[node.name]
        return torch.fake_quantize_per_tensor_affine(y, scale, zero_point, -128, 127)


def _with_one_changed(
    arithmetic: _Arithmetic, values: Mapping[str, Tensor], layer: str, *, mode: Mode
) -> dict[str, Tensor]:
    """Output name to its node's value, once one layer is rounded, or given back."""
    graph = arithmetic.graph
    changed: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.name == layer:
            y = arithmetic.value(node, values, rounds=True) if mode == "alone" else arithmetic.in_float(node, values)
        elif changed.keys() & set(node.inputs):
            y = arithmetic.value(node, {**values, **changed}, rounds=mode == "rest")
        else:
            continue
        if not torch.equal(y, values[node.name]):
            changed[node.name] = y
    return {output: changed.get(name, values[name]) for output, name in graph.outputs.items()}


def _joined(graph: Graph, parts: Sequence[Mapping[str, Tensor]]) -> Outputs:
    return {
        output: torch.cat([part[output] for part in parts]).reshape(-1, *graph.output_shape(output)).numpy()
        for output in graph.outputs
    }
