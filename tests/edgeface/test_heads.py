"""The stage-wise age against its formula written as loops, its bounds, its size, and how it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from distill.losses import age_distance, hard_loss, soft_loss
from edgeface.config import from_plain, to_plain
from edgeface.errors import ConfigError, ModelError
from edgeface.evaluate import decode
from edgeface.models.heads import OLDEST, expected_years, head_parameters, stage_layout, stage_years
from edgeface.models.network import build_network, model_spec
from edgeface.specs import (
    HEAD_STAGES,
    HEADS,
    DataSpec,
    DistillSpec,
    LossSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    Recipe,
    output_spec,
)

GENERATOR = np.random.default_rng(0)


def raw_values(head: str, count: int = 40) -> np.ndarray:
    return GENERATOR.normal(size=(count, *output_spec("age", head=head).shape))


def naive_years(row: Sequence[float], stages: Sequence[int]) -> float:
    """The published sum: over stages k, bins i of p·(i + shift) · 101 / the product of s·(1 + width) up to k."""
    years, product, at = 0.0, 1.0, 0
    for bins in stages:
        logits, shifts, width = row[at : at + bins], row[at + bins : at + 2 * bins], row[at + 2 * bins]
        product *= bins * (1.0 + math.tanh(width) / 2.0)
        total = sum(math.exp(value) for value in logits)
        for i in range(bins):
            years += math.exp(logits[i]) / total * (i + math.tanh(shifts[i])) * 101.0 / product
        at += 2 * bins + 1
    return years


@pytest.mark.parametrize("head", HEADS)
def test_years_equal_the_formula_written_as_loops(head: str) -> None:
    stages, raw = HEAD_STAGES[head], raw_values(head)
    expected = np.array([naive_years(row, stages) for row in raw.tolist()])
    np.testing.assert_allclose(stage_years(raw, stages), np.clip(expected, 0, OLDEST), rtol=1e-12)
    np.testing.assert_allclose(expected_years(torch.from_numpy(raw), stages).numpy(), expected, rtol=1e-12)
    assert np.abs(stage_years(raw[:, ::-1], stages) - np.clip(expected, 0, OLDEST)).max() > 10.0  # the twin


def test_nine_bins_reach_what_27_classes_would() -> None:
    """With bins that neither move nor stretch, the stages count in base three."""
    raw = np.zeros((27, *output_spec("age", head="3x3x3").shape))
    for value in range(27):
        for stage, digit in zip(stage_layout((3, 3, 3)), (value // 9, value // 3 % 3, value % 3), strict=True):
            raw[value, stage.logits.start + digit] = 50.0
    np.testing.assert_allclose(stage_years(raw, (3, 3, 3)), np.arange(27) * 101.0 / 27.0, atol=1e-9)


@pytest.mark.parametrize("head", HEADS)
def test_answers_stay_ages_and_finite_however_large_the_raw_values(head: str) -> None:
    raw = raw_values(head) * 1000.0
    years = stage_years(raw, HEAD_STAGES[head])
    assert np.isfinite(years).all()
    assert years.min() >= 0.0
    assert years.max() <= OLDEST
    values = torch.from_numpy(raw).float().requires_grad_()
    expected_years(values, HEAD_STAGES[head]).sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_the_head_is_a_fifth_and_a_seventh_of_a_class_a_year() -> None:
    features = 256
    sizes = {head: head_parameters(features, output_spec("age", head=head)) for head in ("", *HEADS)}
    assert sizes == {"": 257 * 101, "3x3": 257 * 14, "3x3x3": 257 * 21}
    for head, size in sizes.items():
        spec = NetworkSpec(backbone="edge_s", input_px=32)
        network = build_network(spec, model_spec(spec, (output_spec("age", head=head),)))
        layer = network.heads["age"]
        assert isinstance(layer, nn.Linear)
        held = sum(parameter.numel() for parameter in layer.parameters())
        assert held == head_parameters(layer.in_features, output_spec("age", head=head))
        assert held * features == pytest.approx(size * layer.in_features, rel=0.01)


def test_decode_reads_stages_and_a_manifest_keeps_them() -> None:
    output = output_spec("age", head="3x3")
    spec = ModelSpec(name="x", input_px=8, outputs=(output,))
    raw = raw_values("3x3").astype(np.float32)
    back = from_plain(ModelSpec, to_plain(spec), where="manifest.json")
    assert back == spec
    np.testing.assert_array_equal(decode(back, {"age": raw})["age"], stage_years(raw.astype(np.float64), (3, 3)))
    with pytest.raises(ModelError, match="shape"):
        decode(spec, {"age": np.zeros((2, 101), np.float32)})
    plain = to_plain(output_spec("age"))
    del plain["stages"]  # as manifests were before there were stages
    assert from_plain(OutputSpec, plain, where="manifest.json") == output_spec("age")


def test_the_loss_is_the_distance_to_the_labelled_interval_and_nothing_without_one() -> None:
    output, nan = output_spec("age", head="3x3x3"), float("nan")
    prediction = torch.from_numpy(raw_values("3x3x3", 4)).float().requires_grad_()
    years = expected_years(prediction, output.stages).detach()
    labels = torch.stack(
        [
            torch.stack([years[0] + 5, years[0] + 9]),
            torch.stack([years[1] - 1, years[1] + 1]),
            torch.tensor([nan, nan]),
            torch.stack([years[3] - 20, years[3] - 20]),
        ]
    )
    values = hard_loss(output, prediction, labels, spec=LossSpec())
    assert values.tolist() == pytest.approx([0.5, 0.0, 0.0, 2.0], abs=1e-5)  # tens of years, float32
    values.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[2].abs().max() == 0.0
    assert prediction.grad[[0, 3]].abs().max() > 0.0


@pytest.mark.parametrize("theirs", ["", "3x3x3"])
def test_a_teacher_of_either_form_teaches_years(theirs: str) -> None:
    output, other = output_spec("age", head="3x3"), output_spec("age", head=theirs)
    prediction = torch.from_numpy(raw_values("3x3", 3)).float()
    teacher = torch.from_numpy(GENERATOR.normal(size=(3, *other.shape))).float()
    told = decode(ModelSpec(name="x", input_px=8, outputs=(other,)), {"age": teacher.numpy()})["age"]
    labels = torch.full((3, 2), float("nan"))

    def loss(teacher: torch.Tensor, teacher_output: OutputSpec) -> torch.Tensor:
        return soft_loss(
            output,
            prediction,
            teacher,
            teacher_output=teacher_output,
            labels=labels,
            distill=DistillSpec(),
            spec=LossSpec(),
        )

    expected = np.abs(expected_years(prediction, output.stages).numpy() - told) / 10.0
    assert loss(teacher, other).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert loss(teacher.flip(1), other).tolist() != pytest.approx(expected.tolist(), rel=1e-2)
    with pytest.raises(ModelError, match="an output of shape"):
        loss(teacher[:, :5], other)


def test_age_distance_of_both_forms_is_in_tens_of_years() -> None:
    years = torch.tensor([[20.0, 29.0], [40.0, 40.0], [60.0, 69.0]])
    assert age_distance(torch.tensor([15.0, 42.0, 65.0]), years).tolist() == pytest.approx([0.5, 0.2, 0.0])


def test_a_stage_wise_head_learns_ages() -> None:
    """A linear head on one feature that is the age: the error falls below a tenth of a constant answer's."""
    torch.manual_seed(0)
    ages = torch.rand(256) * 80 + 5
    features = torch.stack([torch.cos(ages / 80 * k * math.pi) for k in range(1, 6)], dim=1)
    output = output_spec("age", head="3x3x3")
    layer = nn.Linear(5, *output.shape)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    labels = torch.stack([ages, ages], dim=1)
    for _ in range(400):
        loss = hard_loss(output, layer(features), labels, spec=LossSpec()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mae = (expected_years(layer(features), output.stages) - ages).abs().mean().item()
    assert mae < 0.1 * (ages - ages.median()).abs().mean().item()
    shuffled = expected_years(layer(features.flip(0)), output.stages)
    assert (shuffled - ages).abs().mean().item() > 10.0  # the twin: features of other faces


def test_recipes_refuse_a_head_that_fits_nothing() -> None:
    def recipe(**changes: object) -> Recipe:
        plain = {"name": "x", "data": {"train": ["synthetic:8"]}, "tasks": {"age": 1.0, "gender": 1.0}, **changes}
        return from_plain(Recipe, plain, where="test")

    assert recipe(heads={"age": "3x3"}).heads == {"age": "3x3"}
    assert recipe().data == DataSpec(train=("synthetic:8",))
    for changes, key in (
        ({"heads": {"age": "3x4"}}, "heads.age"),
        ({"heads": {"gender": "3x3"}}, "heads.gender"),
        ({"heads": {"beauty": "3x3"}}, "heads.beauty"),
        ({"heads": {"age": "3x3"}, "loss": {"forms": {"age": "distribution"}}}, "loss.forms.age"),
        ({"heads": {"age": "3x3"}, "distill": {"losses": {"age": "dkd"}}}, "distill.losses.age"),
    ):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            recipe(**changes)
