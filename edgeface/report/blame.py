"""Which layer's rounding broke a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeface.errors import MissingToolError
from edgeface.evaluate import Runner
from edgeface.report.entries import Entry
from edgeface.report.scorecard import FAKE_QUANT, Blame, LayerCost, Scorecard
from edgeface.report.table import unit

if TYPE_CHECKING:
    from edgeface.data.pack import Pack

FACES = 512
LAYERS = 3


def blame(card: Scorecard, entries: Sequence[Entry], crops: Callable[[Runner], Pack]) -> list[Blame]:
    """The costliest layers of every w8a8 row and task outside its budget.

    Each layer of the integer network is computed in float in turn, its trained weights as they are, all others in
    integers; its cost is what the task gets better by, on up to FACES of the same faces. Files of other precisions have
    no integer layers and no entry.

    Args:
        card: With broken budgets.
        entries: The models it was measured on; the fake-quant one holds the integer network.
        crops: Evaluation crops at a runner's input size.
    """
    from quantize.sensitivity import Faces, sensitivity

    broken = [(row, task) for row, task in card.broken if row.precision == "w8a8"]
    source = next((entry for entry in entries if entry.role == FAKE_QUANT), None)
    if not broken or source is None:
        return []
    try:
        runner = source.open()
    except MissingToolError:
        return []
    quantized = getattr(runner, "quantized", None)
    if quantized is None:
        return []
    faces = Faces(crops(runner), runner.spec, limit=FACES)
    table = sensitivity(quantized.graph, quantized.activations, faces, mode="rest")
    found = []
    for row, task in broken:
        if task in table.reference:
            worst = sorted(table.rows, key=lambda layer: -layer.harm[task])[:LAYERS]
            layers = [LayerCost(layer=layer.layer, cost=layer.harm[task]) for layer in worst if layer.harm[task] > 0]
            found.append(
                Blame(
                    model=row.model,
                    runtime=row.runtime,
                    task=task,
                    unit=unit(row.tasks[task]),
                    layers=layers,
                    faces=faces.count,
                )
            )
    return found
