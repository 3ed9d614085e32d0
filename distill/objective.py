"""The training objective: hard and soft losses of every task, masked, weighted and summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from distill import ranks
from distill.features import FeaturePairs
from distill.identity import PeopleClassifier
from distill.images import shrink
from distill.losses import compare_features, hard_loss, known_rows, require_shapes, soft_loss
from edgeface.data.loader import answered
from edgeface.specs import FEATURES, DistillSpec, LossSpec, ModelSpec, OutputSpec
from edgeface.tasks import TASKS, Kind

# Losses against a teacher that compare the samples of a batch with each other: they need those of all processes.
_BATCHWISE = ("dist", "relational")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a batch cost.

    Attributes:
        parts: Task name to its unweighted mean over the samples that taught it, 0 without any; under "features" that of
            the compared layers. Of all processes, where there are several.
        present: Task name to 1 where a sample taught it, else 0.
        beside: The weighted loss of the compared layers, where there are some.
    """

    parts: dict[str, Tensor]
    present: dict[str, Tensor]
    beside: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a batch is scored by.

    Attributes:
        model: Outputs of the network being trained.
        weights: Task name to weight in the sum.
        loss: Forms of the losses.
        distill: Mixing of labels and teacher.
        teacher: Frozen teacher network, or None to learn from labels alone.
        teacher_model: Its outputs.
        teacher_names: Task name to the teacher's own name of its output, where that is another.
        teacher_dtype: Autocast type of its forward pass.
        stored: Tasks whose answers come with the labels (`edgeface.data.loader.answered`) instead of from `teacher`.
        people: Classifier over the training people, where identity is learned from labels.
        class_weights: Task name to the weights of its classes, where its form is a weighted one.
        pairs: Layers of network and teacher that are compared, where the recipe names a loss for the features.
    """

    model: ModelSpec
    weights: Mapping[str, float]
    loss: LossSpec
    distill: DistillSpec
    teacher: nn.Module | None = None
    teacher_model: ModelSpec | None = None
    teacher_names: Mapping[str, str] = field(default_factory=dict)
    teacher_dtype: torch.dtype = torch.float32
    stored: frozenset[str] = frozenset()
    people: PeopleClassifier | None = None
    class_weights: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: FeaturePairs | None = None

    @property
    def companions(self) -> nn.Module:
        """What is trained beside the network, kept for a resumed or later training, and part of no built file."""
        parts: dict[str, nn.Module] = {}
        if self.people is not None:
            parts["people"] = self.people
        if self.pairs is not None and self.pairs.adapters is not None:
            parts["adapters"] = self.pairs.adapters
        return nn.ModuleDict(parts)

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        images: Tensor,
        labels: Mapping[str, Tensor],
        *,
        whole: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses under the recipe's weights, and its parts.

        Args:
            outputs: As for `losses`.
            images: As for `losses`.
            labels: As for `losses`.
            whole: As for `losses`.

        Returns:
            The weighted sum, and `Losses.parts`.
        """
        found = self.losses(outputs, images, labels, whole=whole)
        total = images.new_zeros(())
        for name, weight in self.weights.items():
            total = total + weight * found.parts[name]
        return total if found.beside is None else total + found.beside, found.parts

    def losses(
        self,
        outputs: Mapping[str, Tensor],
        images: Tensor,
        labels: Mapping[str, Tensor],
        *,
        whole: Mapping[str, Tensor] | None = None,
    ) -> Losses:
        """The loss of every task.

        Args:
            outputs: Raw outputs of the network being trained.
            images: (B, 3, H, W), 0 to 255, at least at the teacher's input size.
            labels: Task name to labels; missing rows coded as edgeface.tasks says.
            whole: Labels of all samples of the step, where these are a part of them: sums are divided by its samples.
        """
        taught = self._ask_teacher(images)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for name in self.weights:
            output = self.model.output(name)
            prediction = outputs[name].float()
            known = known_rows(output, labels[name])
            value = self._hard(name, prediction, labels[name])
            if name in self.stored:
                soft, told = self._from_stored(name, prediction, labels)
                share = torch.where(told, torch.where(known, self.distill.soft, 1.0), 0.0)
                value = share * soft + (1.0 - share) * value
            elif name in taught:
                assert self.teacher_model is not None
                lose = partial(self._soft, name, teacher=self.teacher_model.output(name))
                form = self.distill.losses.get(output.task, "")
                soft = self._over_samples(form, lose, prediction, taught[name], labels[name])
                share = torch.where(known, self.distill.soft, 1.0)  # an unlabelled sample learns from the teacher alone
                value = share * soft + (1.0 - share) * value
            sums[name] = value.sum()
            counts[name] = self._heard(name, whole or labels, taught).sum()
        if self.pairs is not None:
            compare = partial(compare_features, self.pairs.loss)
            each = [self._over_samples(self.pairs.loss, compare, *pair).mean() for pair in self.pairs.take()]
            sums[FEATURES] = torch.stack(each).mean()
            parts_of_step = 1 if whole is None else len(next(iter(whole.values()))) // len(images)
            counts[FEATURES] = torch.tensor(parts_of_step, device=images.device)
        return self._divided(sums, counts)

    def _divided(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> Losses:
        """Sums over the samples of all processes, over how many there are."""
        summed = ranks.total(torch.stack(list(sums.values())))
        counted = ranks.total(torch.stack(list(counts.values())).to(summed.dtype))
        parts = dict(zip(sums, (summed / counted.clamp(min=1)).unbind(), strict=True))
        present = dict(zip(sums, (counted > 0).to(summed.dtype).unbind(), strict=True))
        beside = self.distill.feature_weight * parts[FEATURES] if FEATURES in parts else None
        return Losses(parts=parts, present={name: present[name] for name in self.weights}, beside=beside)

    def _heard(self, name: str, labels: Mapping[str, Tensor], taught: Mapping[str, Tensor]) -> Tensor:
        """(B,) bool: the samples that teach a task."""
        known = known_rows(self.model.output(name), labels[name])
        if name in self.stored:
            return known | _told(labels[answered(name)])
        return torch.ones_like(known) if name in taught else known

    def _over_samples(self, loss: str, lose: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """(B,) what `lose` makes of these rows, one that compares samples of those of all processes."""
        if loss not in _BATCHWISE:
            return lose(*rows)
        return ranks.own_rows(lose(*map(ranks.gather, rows)))

    def _soft(self, name: str, prediction: Tensor, answers: Tensor, labels: Tensor, teacher: OutputSpec) -> Tensor:
        output = self.model.output(name)
        return soft_loss(
            output,
            prediction,
            answers,
            teacher_output=teacher,
            labels=labels,
            distill=self.distill,
            spec=self.loss,
        )

    @torch.no_grad()
    def label_loss(self, name: str, prediction: Tensor, labels: Tensor) -> float:
        """Mean loss of a task against labels alone, over the labelled samples; for validation."""
        output = self.model.output(name)
        known = known_rows(output, labels)
        # Not by the classifier over training people, who are not those of a validation source.
        loss = hard_loss(output, prediction.float(), labels, spec=self.loss, weights=self.class_weights.get(name))
        return float(loss.sum() / known.sum().clamp(min=1))

    def _hard(self, name: str, prediction: Tensor, labels: Tensor) -> Tensor:
        output = self.model.output(name)
        if TASKS[output.task].kind is Kind.IDENTITY and self.people is not None:
            require_shapes(output, prediction, labels)
            return self.people(prediction, labels)  # type: ignore[no-any-return]
        return hard_loss(output, prediction, labels, spec=self.loss, weights=self.class_weights.get(name))

    def _from_stored(self, name: str, prediction: Tensor, labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B,) loss against stored answers, 0 where there is none, and (B,) bool where there is one."""
        output, answers = self.model.output(name), labels[answered(name)]
        stored = output
        if TASKS[output.task].kind is Kind.LANDMARKS:  # stored as points; soft_loss adds the mean shape
            answers = answers - torch.tensor(output.mean_shape, device=answers.device, dtype=answers.dtype)
            stored = replace(output, shape=tuple(answers.shape[1:]), heatmap=False)

        def lose(prediction: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
            told = _told(answers)
            if not told.any():
                return prediction.flatten(1).sum(dim=1) * 0.0
            # Only the rows that have one: some losses compare samples with each other.
            soft = self._soft(name, prediction[told], answers[told], labels[told], stored)
            return soft.new_zeros(len(told)).masked_scatter(told, soft)

        form = self.distill.losses.get(output.task, "")
        return self._over_samples(form, lose, prediction, answers, labels[name]), _told(answers)

    def _ask_teacher(self, images: Tensor) -> dict[str, Tensor]:
        if self.teacher is None or self.teacher_model is None or self.distill.soft == 0.0:
            return {}
        if self.pairs is None and all(name in self.stored for name in self.weights):
            return {}  # nothing is left to ask
        side = self.teacher_model.input_px
        if side != images.shape[-1]:
            images = shrink(images, side)
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, self.teacher_dtype, self.teacher_dtype != torch.float32),
        ):
            outputs = self.teacher(images)
        names = {output.name for output in self.teacher_model.outputs} - self.stored
        return {name: outputs[self.teacher_names.get(name, name)].float() for name in self.weights if name in names}


def _told(answers: Tensor) -> Tensor:
    """(B,) bool: the rows of stored answers that hold one."""
    return torch.isfinite(answers.flatten(1)).all(dim=1)
