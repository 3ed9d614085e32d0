"""The training objective: hard and soft losses of every task, masked, weighted and summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.images import shrink
from distill.losses import hard_loss, known_rows, soft_loss
from edgeface.specs import DistillSpec, LossSpec, ModelSpec


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
        teacher_dtype: Autocast type of its forward pass.
    """

    model: ModelSpec
    weights: Mapping[str, float]
    loss: LossSpec
    distill: DistillSpec
    teacher: nn.Module | None = None
    teacher_model: ModelSpec | None = None
    teacher_dtype: torch.dtype = torch.float32

    def __call__(
        self, outputs: Mapping[str, Tensor], images: Tensor, labels: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts.

        Args:
            outputs: Raw outputs of the network being trained.
            images: (B, 3, H, W), 0 to 255, at least at the teacher's input size.
            labels: Task name to labels; missing rows coded as edgeface.tasks says.

        Returns:
            The weighted sum, and each task's unweighted mean over the samples that taught it.
        """
        taught = self._ask_teacher(images)
        parts: dict[str, Tensor] = {}
        total = images.new_zeros(())
        for name, weight in self.weights.items():
            output = self.model.output(name)
            prediction = outputs[name].float()
            known = known_rows(output, labels[name])
            hard = hard_loss(output, prediction, labels[name], spec=self.loss)
            if name in taught:
                assert self.teacher_model is not None
                soft = soft_loss(
                    output,
                    prediction,
                    taught[name],
                    teacher_output=self.teacher_model.output(name),
                    temperature=self.distill.temperature,
                    spec=self.loss,
                )
                share = torch.where(known, self.distill.soft, 1.0)  # an unlabelled sample learns from the teacher alone
                value, count = share * soft + (1.0 - share) * hard, known.numel()
                parts[name] = value.sum() / count
            else:
                parts[name] = hard.sum() / known.sum().clamp(min=1)
            total = total + weight * parts[name]
        return total, parts

    def _ask_teacher(self, images: Tensor) -> dict[str, Tensor]:
        if self.teacher is None or self.teacher_model is None or self.distill.soft == 0.0:
            return {}
        side = self.teacher_model.input_px
        if side != images.shape[-1]:
            images = shrink(images, side)
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, self.teacher_dtype, self.teacher_dtype != torch.float32),
        ):
            outputs = self.teacher(images)
        names = {output.name for output in self.teacher_model.outputs}
        return {name: outputs[name].float() for name in self.weights if name in names}
