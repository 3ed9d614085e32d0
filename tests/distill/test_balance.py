"""Balancers: each on a problem whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.balance import BALANCERS, Balancer, Famo, balancer, kept_statistics
from edgeface import specs
from edgeface.specs import BalancerSpec

TWO = {"gender": 1.0, "smile": 1.0}
HERE = torch.ones(2)
FEATURES = torch.ones(4, 3)


def made(name: str, weights: dict[str, float] | None = None, **options: float) -> Balancer:
    return balancer(weights or TWO, BalancerSpec(name=name, **options), features=3)


def descend(chosen: Balancer, losses: Tensor, *, steps: int, lr: float = 0.1, features: Tensor = FEATURES) -> None:
    """Train what a balancer learns on losses that do not change."""
    optimizer = torch.optim.SGD(chosen.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        chosen.backward(losses, torch.ones(len(losses)), features, differentiate=lambda total: total.backward())
        optimizer.step()
        chosen.after_step(lambda: (losses, torch.ones(len(losses))))


def test_the_table_has_the_names_of_the_specs() -> None:
    assert tuple(BALANCERS) == specs.BALANCERS


@pytest.mark.parametrize("name", specs.BALANCERS)
def test_a_task_without_a_label_gets_no_gradient(name: str) -> None:
    network = nn.Linear(3, 3)
    heads = nn.ModuleList(nn.Linear(3, 1) for _ in TWO)
    features = network(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    losses = torch.stack([head(features).square().mean() for head in heads])
    present = torch.tensor([1.0, 0.0])
    made(name).backward(losses * present, present, features, differentiate=lambda total: total.backward())
    assert network.weight.grad is not None
    assert network.weight.grad.abs().sum() > 0.0
    first, second = (head.weight.grad for head in heads)
    assert first.abs().sum() > 0.0
    assert second is None or not second.any()


@pytest.mark.parametrize("name", specs.BALANCERS)
def test_a_balancer_goes_on_from_its_saved_state(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    network, heads = nn.Linear(3, 3), nn.ModuleList(nn.Linear(3, 1) for _ in TWO)
    first = made(name)
    before = {key: tensor.clone() for key, tensor in first.state_dict().items()}
    optimizer = torch.optim.SGD([*first.parameters(), *network.parameters()], lr=0.1)
    for step in range(4):
        if step % 2 == 0:
            first.begin_epoch()
        optimizer.zero_grad()
        features = network(torch.randn(4, 3, generator=generator))
        losses = torch.stack(
            [(scale * head(features)).square().mean() for scale, head in zip((1, 5), heads, strict=True)]
        )
        first.backward(losses, HERE, features, differentiate=lambda total: total.backward())
        optimizer.step()
        first.after_step(lambda: (torch.tensor([0.1, 2.0]), HERE))
    second = made(name)
    second.load_state_dict(first.state_dict())
    assert second.multipliers() == first.multipliers()
    learns = before and name not in ("fixed", "pcgrad", "aligned")
    assert not learns or any(not torch.equal(before[key], tensor) for key, tensor in first.state_dict().items())


def test_fixed_weights_are_those_of_the_recipe() -> None:
    total = made("fixed", {"gender": 2.0, "smile": 0.5}).total(torch.tensor([3.0, 4.0]), HERE, FEATURES)
    assert float(total) == 8.0


@pytest.mark.parametrize(("tasks", "best"), [(("gender", "smile"), (math.log(0.2), math.log(6.0)))])
def test_uncertainty_settles_where_classes_weigh_half_a_nat(tasks: tuple[str, ...], best: tuple[float, ...]) -> None:
    chosen = made("uncertainty", dict.fromkeys(tasks, 1.0))
    descend(chosen, torch.tensor([0.1, 3.0]), steps=800)
    found = dict(chosen.named_parameters())["log_variance"].detach().numpy()
    assert np.allclose(found, best, atol=1e-3)  # the descent's own precision


def test_uncertainty_has_half_the_factor_for_coordinates() -> None:
    losses = torch.tensor([0.7, 0.7])
    chosen = made("uncertainty", {"landmarks5": 1.0, "gender": 1.0})
    descend(chosen, losses, steps=800)
    regression, classes = dict(chosen.named_parameters())["log_variance"].tolist()
    assert regression == pytest.approx(math.log(0.7), abs=1e-3)
    assert classes == pytest.approx(math.log(1.4), abs=1e-3)


def test_uncertainty_begins_at_the_recipe_weights() -> None:
    weights = {"landmarks5": 2.0, "gender": 0.25}
    assert made("uncertainty", weights).multipliers() == pytest.approx(weights)


def test_a_learned_coefficient_sinks_to_its_floor_and_the_main_task_keeps_its_weight() -> None:
    chosen = made("learned", {"landmarks5": 1.0, "gender": 0.5}, floor=0.01)
    descend(chosen, torch.tensor([1.0, 2.0]), steps=50)
    assert chosen.multipliers() == pytest.approx({"landmarks5": 1.0, "gender": 0.01})
    other = made("learned", {"landmarks5": 1.0, "gender": 0.5}, floor=0.2)
    descend(other, torch.tensor([1.0, 2.0]), steps=50)
    assert other.multipliers()["gender"] == pytest.approx(0.2), "twin: it is the floor that stops it"
    third = made("learned", {"landmarks5": 1.0, "gender": 0.5}, floor=0.01)
    descend(third, torch.tensor([1.0, 2.0]), steps=2)
    assert third.multipliers()["gender"] == pytest.approx(0.1), "twin: on its way it is elsewhere"


def test_a_learned_coefficient_falls_by_the_loss_itself() -> None:
    weights = {"landmarks5": 1.0, "gender": 0.5, "smile": 0.3}
    losses = [7.0, 2.0, 0.4]
    chosen = made("learned", weights)
    descend(chosen, torch.tensor(losses), steps=1, lr=0.1)
    expected = {"landmarks5": 1.0, "gender": 0.5 - 0.1 * 2.0, "smile": 0.3 - 0.1 * 0.4}
    assert chosen.multipliers() == pytest.approx(expected)
    wrong = {
        "by the weighted loss": 0.5 - 0.1 * 0.5 * 2.0,
        "by another task's": 0.5 - 0.1 * 0.4,
        "upwards": 0.5 + 0.1 * 2.0,
        "by the logarithm's slope": 0.5 * math.exp(-0.1 * 2.0),
    }
    for name, value in wrong.items():
        assert chosen.multipliers()["gender"] != pytest.approx(value, abs=1e-3), f"twin: {name}"


def test_a_learned_coefficient_weighs_its_task_in_the_sum_and_rests_where_the_label_is_missing() -> None:
    chosen = made("learned", {"landmarks5": 2.0, "gender": 0.5})
    losses = torch.tensor([3.0, 4.0], requires_grad=True)
    total = chosen.total(losses, HERE, FEATURES)
    assert total.item() == pytest.approx(2.0 * 3.0 + 0.5 * 4.0)
    assert total.item() != pytest.approx(3.0 + 4.0), "twin: the plain sum"
    only = torch.tensor([1.0, 0.0])
    gradient, *_ = torch.autograd.grad(chosen.total(losses, only, FEATURES), list(chosen.parameters()))
    assert gradient.tolist() == [0.0]
    (labelled,) = torch.autograd.grad(chosen.total(losses, HERE, FEATURES), list(chosen.parameters()))
    assert labelled.tolist() == [4.0], "twin: with its label it is the loss"


def test_a_learned_coefficient_is_projected_below_one_too() -> None:
    chosen = made("learned", {"landmarks5": 1.0, "gender": 0.9})
    with torch.no_grad():
        next(iter(chosen.parameters())).fill_(1.7)
    assert chosen.multipliers()["gender"] == pytest.approx(1.7), "twin: before the projection"
    chosen.after_step(lambda: (torch.ones(2), HERE))
    assert chosen.multipliers()["gender"] == 1.0


def test_dynamic_weights_go_to_the_hard_task_and_naive_ones_to_the_easy_one() -> None:
    losses = torch.tensor([0.2, 2.0])
    hard, easy = made("dynamic"), made("naive-dynamic")
    for chosen in (hard, easy):
        descend(chosen, losses, steps=200)
    assert hard.multipliers()["smile"] > 1.5 > 0.5 > hard.multipliers()["gender"]
    assert easy.multipliers()["gender"] > 1.5 > 0.5 > easy.multipliers()["smile"]


def test_the_dynamic_layer_follows_its_own_loss_alone() -> None:
    chosen = made("dynamic")
    losses = torch.tensor([0.2, 2.0], requires_grad=True)
    total = chosen.total(losses, HERE, FEATURES)
    gradients = torch.autograd.grad(total, [losses, *chosen.parameters()])
    assert torch.allclose(gradients[0], torch.ones(2))  # equal weights at first: the plain sum

    naive = [p.detach().clone().requires_grad_() for p in chosen.parameters()]
    logits = nn.functional.normalize(FEATURES, dim=1) @ naive[0].T + naive[1]
    shares = torch.softmax(logits, dim=1).mean(dim=0)
    own = (shares / (losses.detach() + 0.01)).sum()
    for ours, theirs in zip(gradients[1:], torch.autograd.grad(own, naive), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    wrong = torch.autograd.grad((shares_of(naive) * losses.detach()).sum(), naive)
    assert not torch.allclose(gradients[2], wrong[1], atol=1e-3)


def test_the_dynamic_layer_compares_losses_in_the_unit_of_the_recipe() -> None:
    """The larger loss has so small a weight in the recipe that, weighted, it is the smaller one."""
    losses = torch.tensor([0.5, 2.0])
    weighted = made("dynamic", {"gender": 1.0, "smile": 0.1})
    descend(weighted, losses, steps=200)
    assert weighted.shares(FEATURES)[0] > 1.5
    plain = made("dynamic")  # the twin: under weights of 1 the loss itself decides
    descend(plain, losses, steps=200)
    assert plain.shares(FEATURES)[1] > 1.5


def test_the_dynamic_layer_reads_a_map_as_its_values_laid_end_to_end() -> None:
    """As the publication does, whose tasks branch off a map and not a vector."""
    features = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = balancer(TWO, BalancerSpec(name="dynamic"), features=18)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found = layer.shares(features)
    logits = nn.functional.normalize(features.reshape(4, 18), dim=1) @ layer.unit.weight.T + layer.unit.bias
    assert torch.allclose(found, 2.0 * torch.softmax(logits, dim=1).mean(dim=0), atol=1e-6)
    assert not torch.allclose(layer.shares(features.flip(1)), found, atol=1e-3), "twin: other places, other weights"


def shares_of(parameters: list[Tensor]) -> Tensor:
    logits = nn.functional.normalize(FEATURES, dim=1) @ parameters[0].T + parameters[1]
    return torch.softmax(logits, dim=1).mean(dim=0)


@pytest.mark.parametrize(("lengths", "weights"), [((1.0, 1.0), (1.0, 1.0)), ((10.0, 1.0), (2 / 11, 20 / 11))])
def test_gradnorm_makes_gradients_equally_long(lengths: tuple[float, float], weights: tuple[float, float]) -> None:
    chosen = made("gradnorm", alpha=0.0)
    features = torch.ones(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD(chosen.parameters(), lr=0.002)
    for _ in range(600):
        optimizer.zero_grad()
        losses = torch.stack([length * features.sum() for length in lengths])
        chosen.backward(losses, HERE, features, differentiate=lambda total: total.backward())
        optimizer.step()
        chosen.after_step(lambda losses=losses: (losses, HERE))
    assert list(chosen.multipliers().values()) == pytest.approx(weights, abs=0.03)  # sign steps of 0.002·10


def test_gradnorm_favours_the_task_that_has_fallen_less() -> None:
    chosen = made("gradnorm", alpha=1.0)
    features = torch.ones(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD(chosen.parameters(), lr=0.002)
    for step in range(400):
        optimizer.zero_grad()
        value = features.sum()
        fallen = 1.0 if step == 0 else 0.25
        # Equal gradients; only the first task's loss has come down to a quarter.
        losses = torch.stack([value - (1.0 - fallen) * 3.0, value])
        chosen.backward(losses, HERE, features, differentiate=lambda total: total.backward())
        optimizer.step()
        chosen.after_step(lambda losses=losses: (losses, HERE))
    first, second = chosen.multipliers().values()
    assert second / first == pytest.approx(4.0, rel=0.1)  # paces 0.25 : 1 with alpha 1


def test_weight_average_is_the_softmax_of_the_paces() -> None:
    chosen = made("dwa", temperature=2.0)
    for losses in ((4.0, 1.0), (2.0, 0.9)):
        chosen.begin_epoch()
        for _ in range(3):
            chosen.total(torch.tensor(losses), HERE, FEATURES)
    assert chosen.multipliers() == {"gender": 1.0, "smile": 1.0}  # two whole epochs are needed
    chosen.begin_epoch()
    power = np.exp(np.array([0.5, 0.9]) / 2.0)
    assert list(chosen.multipliers().values()) == pytest.approx(2 * power / power.sum())
    assert list(chosen.multipliers().values()) != pytest.approx((2 * power / power.sum())[::-1])


def test_famo_follows_the_gradient_of_its_rule() -> None:
    chosen = made("famo")
    losses = torch.tensor([0.5, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(chosen.total(losses, HERE, FEATURES), losses)
    # Equal logits: shares 1/2, each loss's gradient 1/L over the sum of shares over L.
    weights = np.array([0.5 / 0.5, 0.5 / 2.0])
    assert np.allclose(gradient.numpy(), weights / weights.sum(), atol=1e-5)


def test_famo_gives_weight_to_the_task_that_falls_behind() -> None:
    chosen = made("famo", rate=20.0)
    for _ in range(20):
        chosen.total(torch.tensor([1.0, 1.0]), HERE, FEATURES)
        chosen.after_step(lambda: (torch.tensor([0.5, 0.99]), HERE))
    assert chosen.multipliers()["smile"] > 1.2 > 0.8 > chosen.multipliers()["gender"]


def test_famos_logits_follow_the_softmaxs_jacobian_and_decay() -> None:
    chosen = made("famo", rate=2.0)
    assert isinstance(chosen, Famo)
    chosen.logits.copy_(torch.tensor([0.3, -0.2]))
    chosen.total(torch.tensor([1.0, 4.0]), HERE, FEATURES)
    chosen.after_step(lambda: (torch.tensor([0.5, 3.0]), HERE))
    z = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()
    fell = np.log([1.0 / 0.5, 4.0 / 3.0])
    jacobian = np.diag(z) - np.outer(z, z)
    wanted = np.array([0.3, -0.2]) - 2.0 * 0.025 * (jacobian @ fell + 0.001 * np.array([0.3, -0.2]))
    assert np.allclose(chosen.logits.numpy(), wanted, atol=1e-6)
    assert not np.allclose(chosen.logits.numpy(), [0.3, -0.2], atol=1e-3), "the twin: it moved"


def test_a_task_without_a_label_keeps_its_famo_weight() -> None:
    chosen = made("famo", rate=20.0)
    assert isinstance(chosen, Famo)
    only = torch.tensor([1.0, 0.0])
    for _ in range(20):
        chosen.total(torch.tensor([1.0, 0.0]), only, FEATURES)
        chosen.after_step(lambda: (torch.tensor([0.5, 0.0]), only))
    assert chosen.logits[1] == 0.0
    assert abs(float(chosen.logits[0])) < 1e-6, "alone, a task has nothing to fall behind"


def shared_gradient(name: str, directions: Tensor, *, weights: dict[str, float] | None = None) -> tuple[Tensor, Tensor]:
    """Gradient at shared parameters whose task gradients are the rows of `directions`, and the heads' gradients."""
    shared = torch.zeros(2, requires_grad=True)
    heads = torch.ones(2, requires_grad=True)
    features = (shared * 1.0)[None]
    losses = torch.stack([head * (features[0] * row).sum() + head for head, row in zip(heads, directions, strict=True)])
    made(name, weights).backward(losses, HERE, features, differentiate=lambda total: total.backward())
    assert shared.grad is not None
    assert heads.grad is not None
    return shared.grad, heads.grad


@pytest.mark.parametrize("name", ["fixed", "pcgrad", "aligned"])
def test_gradients_at_right_angles_are_added(name: str) -> None:
    shared, heads = shared_gradient(name, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.allclose(shared, torch.ones(2), atol=1e-4)
    assert torch.allclose(heads, torch.ones(2))


def test_pcgrad_takes_conflicting_parts_out_of_each_gradient() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    shared, _ = shared_gradient("pcgrad", torch.stack([first, second]))

    def projected(one: Tensor, other: Tensor) -> Tensor:
        return one - (one @ other) / (other @ other) * other

    assert torch.allclose(shared, projected(first, second) + projected(second, first), atol=1e-5)
    assert not torch.allclose(shared, first + second, atol=1e-2)


def test_all_processes_draw_pcgrads_order_alike_and_each_step_another() -> None:
    """Their random states differ: each draws its own dropout."""
    directions = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [-1.0, -1.0]])

    def gradients(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        chosen = balancer(dict.fromkeys(("gender", "smile", "pose"), 1.0), BalancerSpec(name="pcgrad"), features=2)
        found = []
        for _ in range(6):
            shared = torch.zeros(2, requires_grad=True)
            features = (shared * 1.0)[None]
            losses = torch.stack([(features[0] * row).sum() for row in directions])
            chosen.backward(losses, torch.ones(3), features, differentiate=lambda total: total.backward())
            assert shared.grad is not None
            found.append(shared.grad)
        return found

    first, second = gradients(1), gradients(2)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert len({tuple(one.tolist()) for one in first}) > 1, "the twin: the order matters here"


@pytest.mark.parametrize("directions", [[[1.0, 0.0], [-3.0, 1.0]], [[2.0, 1.0], [1.0, 2.0]], [[0.1, 0.2], [-4.0, 3.0]]])
def test_aligned_gradients_have_one_length_and_stand_at_right_angles(directions: list[list[float]]) -> None:
    """Of G = U S Vᵀ, a task's gradient a row, the rows of s_min U Vᵀ are added (arXiv:2305.19000, algorithm 1)."""
    shared, heads = shared_gradient("aligned", torch.tensor(directions))
    u, s, vt = np.linalg.svd(np.array(directions))
    tolerance = 1e-6 * (s[0] / s[-1]) ** 2 * s[-1] + 1e-6  # float32 eigenvalues of the square, G Gᵀ
    assert np.allclose(shared.numpy(), (s[-1] * u @ vt).sum(axis=0), atol=tolerance)
    assert torch.allclose(heads, torch.ones(2)), "heads keep the gradient of their own task"
    others = {
        "the plain sum": (u @ np.diag(s) @ vt).sum(axis=0),
        "the longest component's length": (s[0] * u @ vt).sum(axis=0),
        "the mean in the place of the sum": (s[-1] * u @ vt).mean(axis=0),
    }
    for name, other in others.items():
        assert not np.allclose(shared.numpy(), other, atol=10.0 * tolerance), f"twin: {name}"


def test_aligned_gradients_are_weighted_after_they_have_one_length() -> None:
    directions, weights = [[2.0, 1.0], [1.0, 2.0]], [1.0, 0.1]
    shared, heads = shared_gradient(
        "aligned", torch.tensor(directions), weights=dict(zip(("gender", "smile"), weights, strict=True))
    )

    def aligned(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        u, s, vt = np.linalg.svd(rows)
        return np.asarray(s[-1] * u @ vt)

    rows = np.array(directions)
    assert np.allclose(shared.numpy(), weights @ aligned(rows), atol=1e-5)
    assert torch.allclose(heads, torch.tensor(weights))
    before = aligned(np.diag(weights) @ rows).sum(axis=0)
    assert not np.allclose(shared.numpy(), before, atol=1e-1), "twin: weighted before"


@pytest.mark.parametrize(("name", "floor"), [("pcgrad", -1e-4), ("aligned", -0.1)])
def test_surgery_hardly_works_against_a_task_where_the_sum_does(name: str, floor: float) -> None:
    # Aligned-MTL's components are at right angles to one another, not to the gradients they came from.
    directions = torch.tensor([[1.0, 0.0], [-3.0, 1.0]])
    assert (directions @ shared_gradient("fixed", directions)[0]).min() == -2.0
    assert (directions @ shared_gradient(name, directions)[0]).min() > floor


def test_a_second_look_leaves_batch_norm_statistics_alone() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3))
    pictures = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 5.0
    before = network[0].running_mean.clone()
    with kept_statistics(network):
        network(pictures)
    assert torch.equal(network[0].running_mean, before)
    network(pictures)
    assert not torch.equal(network[0].running_mean, before)
