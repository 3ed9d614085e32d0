"""Identity: the losses against naive loops, centres at their own rate, people of several packs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.identity import PeopleClassifier, additive_margin, center_loss, moved_centres
from distill.objective import Objective
from edgeface.data.loader import _joined
from edgeface.data.pack import Pack
from edgeface.specs import DistillSpec, LossSpec, ModelSpec, output_spec

GENERATOR = torch.Generator().manual_seed(0)
PEOPLE = torch.tensor([0, 2, 2, 1, 2])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def classifier(form: str, *, people: int = 4, features: int = 6) -> PeopleClassifier:
    return PeopleClassifier(
        people, features, spec=LossSpec(forms={"identity": form}), generator=torch.Generator().manual_seed(1)
    )


def test_center_loss_is_half_the_squared_distance() -> None:
    embedding, centres = draw(5, 6), draw(4, 6)
    naive = [
        0.5 * sum((float(embedding[i, d]) - float(centres[person, d])) ** 2 for d in range(6))
        for i, person in enumerate(PEOPLE.tolist())
    ]
    assert center_loss(embedding, centres, PEOPLE).tolist() == pytest.approx(naive, rel=1e-5)
    assert center_loss(embedding, centres.flip(0), PEOPLE).tolist() != pytest.approx(naive, rel=1e-5)


def naive_centres(centres: Tensor, embedding: Tensor, rate: float) -> Tensor:
    moved = centres.clone()
    for person in range(len(centres)):
        rows = [i for i, other in enumerate(PEOPLE.tolist()) if other == person]
        step = sum((centres[person] - embedding[i] for i in rows), torch.zeros(centres.shape[1])) / (1 + len(rows))
        moved[person] = centres[person] - rate * step
    return moved


def test_centres_move_as_published_and_absent_people_stay() -> None:
    embedding, centres = draw(5, 6), draw(4, 6)
    found = moved_centres(centres, embedding, PEOPLE, rate=0.5)
    torch.testing.assert_close(found, naive_centres(centres, embedding, 0.5))
    assert torch.equal(found[3], centres[3])
    assert not torch.allclose(found, naive_centres(centres, embedding, 0.4))


def test_additive_margin_equals_its_formula_written_as_loops() -> None:
    embedding, weight = draw(5, 6), draw(4, 6)
    naive = []
    for x, person in zip(embedding, PEOPLE.tolist(), strict=True):
        cosines = [float(x @ w / x.norm() / w.norm()) for w in weight]
        powers = [math.exp(10 * (c - 0.35 * (place == person))) for place, c in enumerate(cosines)]
        naive.append(-math.log(powers[person] / sum(powers)))
    assert additive_margin(embedding, weight, PEOPLE, margin=0.35, scale=10.0).tolist() == pytest.approx(
        naive, rel=1e-4
    )
    assert additive_margin(embedding, weight, PEOPLE, margin=0.3, scale=10.0).tolist() != pytest.approx(naive, rel=1e-4)


@pytest.mark.parametrize("form", ["softmax", "center", "margin"])
def test_a_sample_without_a_person_gives_no_loss_and_no_gradient(form: str) -> None:
    embedding = draw(3, 6).requires_grad_()
    values = classifier(form)(embedding, torch.tensor([1, -1, 3]))
    values.sum().backward()
    assert embedding.grad is not None
    assert values[1] == 0.0
    assert (values[[0, 2]] > 0.0).all()
    assert embedding.grad[1].abs().max() == 0.0
    assert (embedding.grad[[0, 2]].abs().amax(1) > 0.0).all()


def test_a_batch_in_which_nobody_is_known_is_zero_and_can_be_differentiated() -> None:
    embedding = draw(2, 6).requires_grad_()
    value = classifier("center")(embedding, torch.tensor([-1, -1])).sum()
    value.backward()
    assert value == 0.0
    assert embedding.grad is not None
    assert embedding.grad.abs().max() == 0.0


def test_only_the_centre_form_moves_centres_and_only_in_training() -> None:
    for form in ("softmax", "center", "margin"):
        of = classifier(form).train()
        of(draw(5, 6), PEOPLE)
        assert bool(of.centres.abs().max() > 0) == (form == "center")
    of = classifier("center").eval()
    of(draw(5, 6), PEOPLE)
    assert of.centres.abs().max() == 0.0


def test_the_centre_form_is_softmax_plus_the_weighted_distance() -> None:
    embedding = draw(5, 6)
    plain, centred = classifier("softmax"), classifier("center")
    centred.centres.copy_(draw(4, 6))
    expected = plain(embedding, PEOPLE) + 0.003 * center_loss(embedding, centred.centres.clone(), PEOPLE)
    torch.testing.assert_close(centred(embedding, PEOPLE), expected)
    assert not torch.allclose(plain(embedding, PEOPLE), expected, rtol=1e-6)  # the twin


@pytest.mark.parametrize("form", ["softmax", "center", "margin"])
def test_embeddings_of_one_person_come_together(form: str) -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Parameter(draw(12, 6))
    people = torch.arange(4).repeat(3)
    of = classifier(form).train()
    optimizer = torch.optim.Adam([embedding, *of.parameters()], lr=0.05)

    def gap() -> float:
        """Mean cosine of pairs of one person less that of pairs of two."""
        unit = torch.nn.functional.normalize(embedding.detach(), dim=1)
        cosines, same = unit @ unit.T, people[:, None] == people
        return float(cosines[same & ~torch.eye(12, dtype=torch.bool)].mean() - cosines[~same].mean())

    before = gap()
    for _ in range(200):
        optimizer.zero_grad()
        of(embedding, people).mean().backward()
        optimizer.step()
    assert before < 0.3
    assert gap() > 0.6  # one person 1, two at most 0, of which softmax alone leaves something


def test_the_objective_learns_identity_through_the_classifier() -> None:
    model = ModelSpec(name="edge_s", input_px=16, outputs=(output_spec("identity"),))
    of = PeopleClassifier(3, 128, spec=LossSpec(), generator=torch.Generator().manual_seed(0)).eval()
    objective = Objective(model=model, weights={"identity": 2.0}, loss=LossSpec(), distill=DistillSpec(), people=of)
    embedding, people = draw(3, 128), torch.tensor([2, -1, 0])
    total, parts = objective({"identity": embedding}, torch.zeros(3, 3, 16, 16), {"identity": people})
    values = of(embedding, people)
    assert parts["identity"].item() == pytest.approx((values.sum() / 2).item(), rel=1e-6)
    assert total.item() == pytest.approx(values.sum().item(), rel=1e-6)
    assert total.item() != pytest.approx(2 * values.sum().item() / 3, rel=1e-6)  # the twin: divided by the batch
    assert {name for name, _ in objective.companions.named_parameters()} == {"people.weight", "people.bias"}


def pack_of(people: list[int]) -> Pack:
    count = len(people)
    return Pack(
        images=np.zeros((count, 16, 16, 3), np.uint8),
        px=16,
        margin=1.0,
        keys=tuple(map(str, range(count))),
        people=tuple(map(str, people)),
        labels={"identity": np.array(people), "gender": np.zeros(count, np.int64)},
        groups={},
        name="x",
        source="x",
        split="train",
        licence="",
        research_only=False,
        skipped={},
        content_hash="",
        folder=Path(),
    )


def test_people_of_two_packs_are_not_taken_for_one_another() -> None:
    joined = _joined([pack_of([0, 1, -1]), pack_of([0, 0, 2])], "identity")
    assert joined.tolist() == [0, 1, -1, 2, 2, 4]
    assert _joined([pack_of([0, 1, -1]), pack_of([0, 0, 2])], "gender").tolist() == [0] * 6  # classes are shared
