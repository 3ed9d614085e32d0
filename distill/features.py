"""Losses between features of student and teacher, and what they need beside the networks: taps and adapters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeface.errors import ConfigError, did_you_mean
from edgeface.models.network import MultiTaskNetwork
from edgeface.models.taps import Taps, layer_shapes
from edgeface.specs import FEATURES, DistillSpec

_RANKS = {"attention": (3,), "hint": (3,), "cosine": (1,), "relational": (1, 3)}  # 3: maps (C, H, W); 1: vectors (D,)
_ADAPTED = ("hint", "cosine")  # these compare value by value, so the student's channels are mapped to the teacher's


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two attention maps: where a map's channels are large, on average, whatever they mean.

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H', W'); the larger of the two is averaged down to the smaller.

    Returns:
        (B,) in 0 to 4.

    Source:
        Zagoruyko and Komodakis, Paying More Attention to Attention, arXiv:1612.03928, eq. 2 with p = 2 and the squared
        distance of the authors' code, whose gradient is smooth at zero.
    """
    student, teacher = _same_size(student, teacher)
    first, second = (F.normalize(maps.square().mean(dim=1).flatten(1), dim=1) for maps in (student, teacher))
    return (first - second).square().sum(dim=1)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared distance of two maps of as many channels: (B, C, H, W) and (B, C, H', W') to (B,).

    Source:
        Romero et al., FitNets, arXiv:1412.6550, eq. 3; the mean in place of the sum is ours. The regressor in front of
        the student's side is an `Adapters` layer.
    """
    student, teacher = _same_size(student, teacher)
    return 0.5 * (student - teacher).square().mean(dim=(1, 2, 3))


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    first, second = (
        maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)
    )
    return first, second


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """How samples lie to one another: distances of pairs, angles of triples.

    Args:
        student: (B, D), or anything of B rows.
        teacher: (B, D'), as `student`.

    Returns:
        (B,): each sample's mean over its partners, of Huber's loss between the distances (in units of the batch's mean
        distance) plus twice that between the cosines of the angles at it.

    Source:
        Park et al., Relational Knowledge Distillation, arXiv:1904.05068, eq. 5 to 10, in the proportion 1 : 2 of their
        section 4. Means in place of sums, so that the batch size changes nothing.
    """
    first, second = student.flatten(1), teacher.flatten(1)
    count = len(first)
    if count < 2:
        return first.sum(dim=1) * 0.0
    distance = F.smooth_l1_loss(_distances(first), _distances(second), reduction="none").sum(dim=1) / (count - 1)
    angle = F.smooth_l1_loss(_angles(first), _angles(second), reduction="none").sum(dim=(1, 2))
    return distance + 2.0 * angle / max(1, (count - 1) * (count - 2))


def _distances(features: Tensor) -> Tensor:
    """(B, D) to (B, B) distances over their mean, diagonal apart."""
    # Not from the Gram matrix, which cancels where two samples lie close; the root's slope at 0 is cdist's affair.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (len(features) * (len(features) - 1))
    return distances / mean.clamp(min=1e-12)


def _angles(features: Tensor) -> Tensor:
    """(B, D) to (B, B, B): of i, j, k the cosine of the angle at i between j and k; 0 where two are the same."""
    towards = F.normalize(features[None] - features[:, None], dim=2)  # (i, j, D): from i to j
    cosines = torch.bmm(towards, towards.transpose(1, 2))
    return cosines * (1.0 - torch.eye(len(features), dtype=cosines.dtype, device=cosines.device))


class Adapters(nn.Module):
    """Linear maps from a student's channels to its teacher's, one for each pair of layers; dropped after training.

    Args:
        shapes: (student's, teacher's) of each pair, both (C, H, W) or both (D,).
        generator: Of the first weights.

    Source:
        FitNets' regressor, arXiv:1412.6550, section 2.2, as a 1×1 convolution.
    """

    def __init__(
        self, shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for mine, theirs in shapes:
            layer = nn.Conv2d(mine[0], theirs[0], 1) if len(mine) == 3 else nn.Linear(mine[0], theirs[0])
            assert layer.bias is not None
            with torch.no_grad():
                layer.weight.normal_(0.0, mine[0] ** -0.5, generator=generator)
                layer.bias.zero_()
            self.layers.append(layer)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Each student's features with its teacher's channels."""
        return [layer(each) for layer, each in zip(self.layers, features, strict=True)]


class FeaturePairs:
    """The layers of student and teacher that a recipe compares.

    Args:
        student: The network in training; hooks are set on it.
        teacher: The frozen one.
        spec: With `losses` naming a loss for the features.
        seed: Of the adapters.

    Attributes:
        loss: Its name.
        adapters: What "hint" and "cosine" train beside the student; None for the other losses.

    Raises:
        ConfigError: A layer that one of the networks does not have, or a map where the loss wants vectors.
    """

    def __init__(self, student: MultiTaskNetwork, teacher: MultiTaskNetwork, spec: DistillSpec, *, seed: int) -> None:
        self.loss = spec.losses[FEATURES]
        shapes = [layer_shapes(network) for network in (student, teacher)]
        pairs = [pair.split(":") for pair in spec.taps] or [[self._default(each) for each in shapes]]
        for place, pair in enumerate(pairs):
            for side, (name, known) in enumerate(zip(pair, shapes, strict=True)):
                self._require(name, known, where=f"distill.taps[{place}], {('student', 'teacher')[side]}")
        self._student = Taps(student, [first for first, _ in pairs])
        self._teacher = Taps(teacher, [second for _, second in pairs])
        self.adapters: Adapters | None = None
        if self.loss in _ADAPTED:
            both = [(shapes[0][first], shapes[1][second]) for first, second in pairs]
            self.adapters = Adapters(both, generator=torch.Generator().manual_seed(seed))

    def _default(self, shapes: dict[str, tuple[int, ...]]) -> str:
        if 1 in _RANKS[self.loss]:
            return FEATURES
        return [name for name, shape in shapes.items() if len(shape) == 3 and shape[1] * shape[2] > 1][-1]

    def _require(self, name: str, shapes: dict[str, tuple[int, ...]], *, where: str) -> None:
        fitting = [layer for layer, shape in shapes.items() if len(shape) in _RANKS[self.loss]]
        if name not in fitting:
            form = "" if name not in shapes else " gives a vector" if len(shapes[name]) == 1 else " gives a map"
            raise ConfigError(
                f"{name!r}{form}",
                expected=f"one of {', '.join(map(repr, fitting))}",
                where=where,
                do=did_you_mean(name, fitting) or f"Name a layer that {self.loss!r} can compare",
            )

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """(student's, teacher's) features of the last forward passes, adapted, in float32; then forgotten."""
        mine, theirs = ([value.float() for value in taps.take()] for taps in (self._student, self._teacher))
        if self.adapters is not None:
            mine = self.adapters(mine)
        return list(zip(mine, theirs, strict=True))
