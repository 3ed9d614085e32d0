"""The cheapest mix of precisions that keeps every task inside its own budget: what `edgeface build --auto` searches.

Candidates, from the cheapest: all of the network in int8; int8 with the layers in float that the broken tasks suffer
from most, one more at a time, and then without those that turn out not to be needed; all of it in float, with weights
stored as half floats and then as they are. Candidates are run as fake-quant students, bit for bit what the simulator of
quantize/grid.py computes; the file is built once, from the mix found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from edgeface.errors import BudgetError, ConfigError
from quantize.fakequant import FakeQuantNetwork, on_grid
from quantize.graph import Graph, GraphNetwork, layer_macs
from quantize.grid import Quantized, snap
from quantize.sensitivity import Faces, Sensitivity, sensitivity

# What a multiply-accumulate costs beside one in int8. A round figure: int8 files ran 3.65 times as fast as float ones
# in LiteRT and 1.9 to 2.4 times in OpenVINO, on one x86 thread.
COST_OF_MAC = {"w8a8": 1.0, "fp16": 4.0, "fp32": 4.0}
BYTES_OF_WEIGHT = {"w8a8": 1, "fp16": 2, "fp32": 4}

TOLERANCE = 1e-9  # a change equal to its budget is inside it, whatever the last digit of a float says


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate and how it did.

    Attributes:
        precision: "w8a8" (with `floats`), "fp16" or "fp32".
        floats: Layers of a w8a8 network left in float.
        cost: Multiply-accumulates of one picture, those in float counted by COST_OF_MAC.
        size_bytes: Of weights and biases.
        change: Task to worsening against the reference, in the unit of budgets; positive is worse.
        broken: Tasks outside their budget.
    """

    precision: str
    floats: frozenset[str]
    cost: float
    size_bytes: int
    change: Mapping[str, float]
    broken: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The cheapest candidate inside all budgets.

    Attributes:
        precision: "w8a8", "fp16" or "fp32".
        floats: Layers of a w8a8 network left in float.
        quantized: The network to build at w8a8, else None.
        tried: Every candidate, in the order it was tried; one of them is this one.
        sensitivity: What chose the first float layers; None when int8 throughout was good enough.
    """

    precision: str
    floats: frozenset[str]
    quantized: Quantized | None
    tried: tuple[Tried, ...]
    sensitivity: Sensitivity | None


def search(
    quantized: Quantized | FakeQuantNetwork,
    graph: Graph,
    *,
    budget: Mapping[str, float],
    score: Faces,
    reference: Mapping[str, float] | None = None,
    report: Callable[[Tried], None] = lambda tried: None,
) -> Found:
    """Find the cheapest mix of precisions inside every budget.

    Args:
        quantized: The trained network on the grid, or a calibrated fake-quant one. A layer left in float keeps the
            weights it has there: those of training lie on the grid already, so an inner layer gains little and an
            output gains its grid.
        graph: The float student.
        budget: Task to its largest worsening against the reference, in points, or relative percent for errors in other
            units (metrics.worsening). Tasks without one may change as they like.
        score: Validation faces, never test ones.
        reference: Task to main metric that budgets count from; None takes the float student's.
        report: Told of each candidate as it was scored.

    Raises:
        BudgetError: The float student itself is outside a budget.
        ConfigError: A budget for a task that these faces cannot score.
    """
    plain = score.score(GraphNetwork(graph))
    expected = plain if reference is None else reference
    unknown = sorted(budget.keys() - (plain.keys() & expected.keys()))
    if unknown:
        raise ConfigError(
            f"budgets for {', '.join(map(repr, unknown))}",
            expected=f"budgets for tasks that the validation faces can score: {', '.join(map(repr, plain))}",
            where="budget",
            do="Drop them, or validate on faces that are labelled for them",
        )
    base, activations = _on_their_grid(quantized)
    trial = _Trial(base=base, activations=activations, score=score, budget=budget, expected=expected, report=report)
    first = trial.mixed(frozenset())
    table: Sensitivity | None = None
    kept = first if not first.broken else None
    if kept is None:
        table = sensitivity(base, activations, score, mode="rest")
        kept = _greedy(trial, first, table)
    if kept is not None:
        mixed = snap(base, activations=activations, floats=kept.floats)
        return _found(kept, mixed, trial.tried, table)
    for precision in ("fp16", "fp32"):
        whole = trial.whole(graph, precision)
        if not whole.broken:
            return _found(whole, None, trial.tried, table)
    worst = ", ".join(f"{task} {whole.change[task]:+.2f} (budget {budget[task]:g})" for task in whole.broken)
    raise BudgetError(
        f"the float student is outside its budget: {worst}",
        expected="a float student inside every budget: without a mix that is, it is what is left",
        where="budget",
        do="Train it longer, widen it, or raise the budget",
    )


def _found(kept: Tried, quantized: Quantized | None, tried: Sequence[Tried], table: Sensitivity | None) -> Found:
    return Found(
        precision=kept.precision, floats=kept.floats, quantized=quantized, tried=tuple(tried), sensitivity=table
    )


def _on_their_grid(quantized: Quantized | FakeQuantNetwork) -> tuple[Graph, Mapping[str, tuple[float, int]]]:
    if isinstance(quantized, Quantized):
        return quantized.graph, quantized.activations
    return quantized.float_graph(), quantized.activations()


class _Trial:
    """Scores candidates, each of them once."""

    def __init__(
        self,
        *,
        base: Graph,
        activations: Mapping[str, tuple[float, int]],
        score: Faces,
        budget: Mapping[str, float],
        expected: Mapping[str, float],
        report: Callable[[Tried], None],
    ) -> None:
        self.base = base
        self.activations = activations
        self.score = score
        self.budget = budget
        self.expected = expected
        self.report = report
        self.tried: list[Tried] = []

    def mixed(self, floats: frozenset[str]) -> Tried:
        for tried in self.tried:
            if tried.precision == "w8a8" and tried.floats == floats:
                return tried
        network = on_grid(snap(self.base, activations=self.activations, floats=floats))
        return self._take("w8a8", floats, network)

    def whole(self, graph: Graph, precision: str) -> Tried:
        if precision == "fp16":
            # Weights as the file stores them; arithmetic in half floats is the phone's own and differs between phones.
            graph = replace(graph, weights={name: weight.half().float() for name, weight in graph.weights.items()})
        return self._take(precision, frozenset(), GraphNetwork(graph))

    def _take(self, precision: str, floats: frozenset[str], network: nn.Module) -> Tried:
        found = self.score.score(network)
        change = self.score.worsening(found, {task: self.expected[task] for task in found if task in self.expected})
        tried = Tried(
            precision=precision,
            floats=floats,
            cost=cost(self.base, precision=precision, floats=floats),
            size_bytes=size_bytes(self.base, precision=precision, floats=floats),
            change=change,
            broken=tuple(task for task, most in self.budget.items() if change[task] > most + TOLERANCE),
        )
        self.tried.append(tried)
        self.report(tried)
        return tried


def cost(graph: Graph, *, precision: str, floats: frozenset[str] = frozenset()) -> float:
    """Multiply-accumulates of one picture, counted as int8 ones."""
    return sum(
        count * COST_OF_MAC["fp32" if layer in floats else precision] for layer, count in layer_macs(graph).items()
    )


def size_bytes(graph: Graph, *, precision: str, floats: frozenset[str] = frozenset()) -> int:
    """Bytes of weights, and of biases at four each."""
    return sum(
        weight.numel() * BYTES_OF_WEIGHT["fp32" if layer in floats else precision] + 4 * graph.biases[layer].numel()
        for layer, weight in graph.weights.items()
    )


def _greedy(trial: _Trial, first: Tried, table: Sensitivity) -> Tried | None:
    """Layers given back to float, the most gain for the broken tasks per cost first; then those not needed, to int8."""
    state = first
    measured = state.floats
    left = {row.layer: row for row in table.rows if _may_be_float(trial.base, row.layer)}
    while state.broken:
        gains = {
            layer: sum(row.harm[task] / _excess(state, trial.budget, task) for task in state.broken) / row.macs
            for layer, row in left.items()
        }
        layer = max(gains, key=lambda name: gains[name], default=None)
        if layer is None or gains[layer] <= 0.0:
            if measured == state.floats:
                return None
            # What a layer costs shows only once the layers behind it let it through.
            table = sensitivity(trial.base, trial.activations, trial.score, mode="rest", floats=state.floats)
            measured = state.floats
            left = {row.layer: row for row in table.rows if _may_be_float(trial.base, row.layer)}
            continue
        del left[layer]
        state = trial.mixed(state.floats | {layer})
    costs = layer_macs(trial.base)
    for layer in sorted(state.floats, key=lambda name: -costs[name]):
        without = trial.mixed(state.floats - {layer})
        if not without.broken:
            state = without
    return state


def _excess(state: Tried, budget: Mapping[str, float], task: str) -> float:
    """How far a broken task is outside its budget: a gain counts by the share of this that it makes good."""
    return max(state.change[task] - budget[task], TOLERANCE)


def _may_be_float(graph: Graph, layer: str) -> bool:
    read = any(layer in node.inputs for node in graph.nodes)
    return not (read and layer in graph.outputs.values())
