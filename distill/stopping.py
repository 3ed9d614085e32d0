"""Task-wise early stopping: an auxiliary task that has begun to overfit no longer takes part.

Source:
    Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014, eq. 5, whose symbols and terms are
    confirmed, not its typesetting. The window, the threshold and how often it is looked at are not published: they are
    the recipe's. Stopping all auxiliary tasks together, and then finetuning landmarks with weight decay 0, is a
    published re-implementation's; that it looks at the mean of the tasks' criteria is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeface.specs import StoppingSpec

_ROOM = 1000  # validations of a training; there are tens


def criterion(
    training: NDArray[np.float64], validation: float, weight: float, *, window: int, tiny: float = 1e-12
) -> float:
    """How far a task has gone from learning to memorising.

    k·med / (Σ E_tr − k·med) over the last k + 1 training errors, small while they still fall fast, times the
    generalisation gap (E_val − min E_tr) / (λ·min E_tr).

    Args:
        training: (n,) training errors up to now, at least window + 1 of them.
        validation: The validation error now.
        weight: λ, the task's weight in the sum. A learned λ at its floor of 0.001 makes the gap a thousand times as
            large, so that a task without a say is stopped.
        window: k, in validations.
        tiny: Least denominator. The first one is not positive when errors rise at the window's end: then nothing is
            learned any more and the factor is large.
    """
    recent = training[-window - 1 :]
    middle = window * float(np.median(recent))
    fall = middle / max(float(recent.sum()) - middle, tiny)
    least = float(training.min())
    return fall * (validation - least) / max(weight * least, tiny)


class Stopping(nn.Module):
    """Which tasks still take part; its state is saved and resumed with the network's companions.

    Args:
        tasks: Task names; the first is the main task and never stops.
        spec: The recipe's table.
    """

    def __init__(self, tasks: Sequence[str], spec: StoppingSpec) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.spec = spec
        count = len(self.tasks)
        self.register_buffer("active", torch.ones(count))
        self.register_buffer("sums", torch.zeros(2, count))  # since the last validation: errors, batches with a label
        self.register_buffer("history", torch.full((_ROOM, count), torch.nan, dtype=torch.float64))
        self.register_buffer("validations", torch.zeros((), dtype=torch.int64))
        self.active: Tensor
        self.sums: Tensor
        self.history: Tensor
        self.validations: Tensor

    @property
    def finetunes(self) -> bool:
        """Whether the main task, left alone, is to be finetuned: under "all" alone."""
        return self.spec.mode == "all" and len(self.tasks) > 1 and not bool(self.active[1:].any())

    @torch.no_grad()
    def saw(self, losses: Tensor, present: Tensor) -> None:
        """Take note of a step's training errors.

        Args:
            losses: (T,) mean loss of each task.
            present: (T,) 1 where the batch had a label.
        """
        self.sums += torch.stack([losses.detach() * present, present])

    @torch.no_grad()
    def validated(self, errors: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
        """Decide at a validation.

        Args:
            errors: Task name to its validation error, in the unit of the training loss.
            weights: Task name to its weight in the sum.

        Returns:
            Task name to the criterion's value, of the tasks that it could be computed for.
        """
        place = int(self.validations)
        if place >= _ROOM:
            return {}
        seen = self.sums[1] > 0.0  # a task whose labels did not come up has no error, least of all one of 0
        self.history[place] = torch.where(seen, self.sums[0] / self.sums[1], torch.nan).double()
        self.sums.zero_()
        self.validations += 1
        if self.spec.mode == "none" or place < self.spec.window:
            return {}
        past = self.history[: place + 1].cpu().numpy()
        known = {name: past[np.isfinite(past[:, index]), index] for index, name in enumerate(self.tasks)}
        values = {
            name: criterion(known[name], errors[name], weights[name], window=self.spec.window)
            for index, name in enumerate(self.tasks)
            if index > 0 and name in errors and bool(self.active[index]) and len(known[name]) > self.spec.window
        }
        if self.spec.mode == "each":
            for name, value in values.items():
                if value > self.spec.threshold:
                    self.active[self.tasks.index(name)] = 0.0
        elif values and float(np.mean(list(values.values()))) > self.spec.threshold:
            self.active[1:] = 0.0
        return values
