"""Feature losses against naive loops; taps, adapters and the layers a recipe may name."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.features import Adapters, FeaturePairs, attention_transfer, hint, relational
from distill.losses import compare_features
from edgeface.errors import ConfigError
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.models.taps import Taps, layer_shapes
from edgeface.specs import DistillSpec, NetworkSpec, output_spec

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def net(backbone: str = "edge_s", *, seed: int = 0, hidden: int = 0) -> MultiTaskNetwork:
    spec = NetworkSpec(backbone=backbone, width=0.25, input_px=32, hidden=hidden)
    return build_network(spec, model_spec(spec, (output_spec("gender"),)), seed=seed)


def naive_attention(student: Tensor, teacher: Tensor) -> list[float]:
    rows = []
    for sample in range(len(student)):
        maps = []
        for of in (student, teacher):
            _, channels, height, width = of.shape
            cells = [
                sum(float(of[sample, c, r, k]) ** 2 for c in range(channels)) / channels
                for r in range(height)
                for k in range(width)
            ]
            length = math.sqrt(sum(value**2 for value in cells))
            maps.append([value / length for value in cells])
        rows.append(sum((a - b) ** 2 for a, b in zip(*maps, strict=True)))
    return rows


def test_attention_transfer_equals_its_formula_written_as_loops() -> None:
    student, teacher = draw(3, 4, 3, 3), draw(3, 6, 3, 3)
    fast = attention_transfer(student, teacher)
    assert fast.tolist() == pytest.approx(naive_attention(student, teacher), rel=1e-4)
    assert fast.tolist() != pytest.approx(naive_attention(student.flip(3), teacher), rel=1e-4)


def test_attention_looks_at_places_and_not_at_channels() -> None:
    maps = draw(2, 4, 3, 3)
    assert attention_transfer(7 * maps.flip(1), maps).max() < 1e-6  # float32 sums of squares
    assert attention_transfer(maps.flip(2), maps).min() > 1e-3


def test_maps_of_two_sizes_are_compared_at_the_smaller() -> None:
    student, teacher = draw(2, 4, 6, 6), draw(2, 4, 3, 3)
    smaller = student.view(2, 4, 3, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(attention_transfer(student, teacher), attention_transfer(smaller, teacher))
    torch.testing.assert_close(hint(teacher, student), hint(teacher, smaller))
    assert not torch.allclose(hint(teacher, student), hint(teacher, student[:, :, ::2, ::2]))  # the twin


def test_hint_is_half_the_mean_square() -> None:
    student, teacher = draw(2, 3, 2, 2), draw(2, 3, 2, 2)
    naive = [
        0.5 * sum((a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True)) / 12
        for s, t in zip(student, teacher, strict=True)
    ]
    assert hint(student, teacher).tolist() == pytest.approx(naive, rel=1e-5)
    assert hint(student.flip(0), teacher).tolist() != pytest.approx(naive, rel=1e-5)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def naive_relational(student: Tensor, teacher: Tensor) -> float:
    """The mean over ordered pairs of distances, plus twice the mean over ordered triples of angles."""
    count = len(student)

    def distances(of: Tensor) -> dict[tuple[int, int], float]:
        plain = {(i, j): float((of[i] - of[j]).norm()) for i, j in permutations(range(count), 2)}
        mean = sum(plain.values()) / len(plain)
        return {key: value / mean for key, value in plain.items()}

    def angle(of: Tensor, i: int, j: int, k: int) -> float:
        first, second = of[i] - of[j], of[k] - of[j]
        return float(first @ second / first.norm() / second.norm())

    mine, theirs = distances(student), distances(teacher)
    pairs = [huber(mine[key] - theirs[key]) for key in mine]
    triples = [huber(angle(student, *ijk) - angle(teacher, *ijk)) for ijk in permutations(range(count), 3)]
    return sum(pairs) / len(pairs) + 2 * sum(triples) / len(triples)


def test_relational_loss_equals_its_formula_written_as_loops() -> None:
    student, teacher = draw(5, 3), draw(5, 7)
    fast = relational(student, teacher)
    assert fast.shape == (5,)
    assert fast.mean().item() == pytest.approx(naive_relational(student, teacher), rel=1e-4)
    assert fast.mean().item() != pytest.approx(naive_relational(student.flip(0), teacher), rel=1e-4)


def test_relational_loss_ignores_where_and_how_large_the_cloud_is() -> None:
    cloud = draw(6, 4)
    turned = cloud @ torch.linalg.qr(draw(4, 4))[0]
    assert relational(3 * turned + 5, cloud).max() < 1e-5  # float32 differences of values of order ten
    assert relational(cloud.flip(0), cloud).max() > 1e-2


@pytest.mark.parametrize("name", ["relational", "cosine"])
def test_two_samples_in_one_place_give_a_finite_gradient(name: str) -> None:
    features = draw(1, 4).repeat(3, 1).requires_grad_()
    compare_features(name, features, draw(3, 4)).sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_taps_keep_what_a_layer_gave_and_forget_it() -> None:
    network, pictures = net().eval(), torch.rand(2, 3, 32, 32) * 255
    taps = Taps(network, ["conv2", "features", "conv2"])
    outputs = network(pictures)
    first, features, again = taps.take()
    trunk = dict(network.backbone.named_children())
    by_hand = trunk["conv2"](trunk["conv1"](network.standardize(pictures)))
    assert torch.equal(first, by_hand)
    assert again is first
    assert torch.equal(network.heads["gender"](features), outputs["gender"])
    assert not torch.equal(network.heads["gender"](features.flip(0)), outputs["gender"])  # the twin
    with pytest.raises(KeyError):
        taps.take()
    taps.remove()
    network(pictures)
    with pytest.raises(KeyError):
        taps.take()


def test_layer_shapes_are_those_of_the_trunk_and_leave_no_hook() -> None:
    network = net(hidden=12).train()
    shapes = layer_shapes(network)
    assert shapes["conv1"] == (8, 16, 16)
    assert list(shapes)[-1] == "features"
    assert shapes["features"] == (12,)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["attention", "hint", "relational", "cosine"])
def test_every_feature_loss_compares_two_networks_and_teaches_the_student(name: str) -> None:
    student, teacher = net("edge_s", seed=1), net("vgg16", seed=2)
    pairs = FeaturePairs(student, teacher, DistillSpec(losses={"features": name}), seed=0)
    pictures = torch.rand(4, 3, 32, 32) * 255
    student(pictures)
    with torch.no_grad():
        teacher(pictures)
    ((mine, theirs),) = pairs.take()
    loss = compare_features(name, mine, theirs).mean()
    loss.backward()
    assert loss > 0.0
    assert student.backbone[0][0].weight.grad.abs().max() > 0.0
    assert (pairs.adapters is not None) == (name in ("hint", "cosine"))
    if pairs.adapters is not None:
        assert all(p.grad is not None for p in pairs.adapters.parameters())


def test_named_taps_are_compared_pair_by_pair() -> None:
    student, teacher = net("edge_s", seed=1), net("vgg16", seed=2)
    spec = DistillSpec(losses={"features": "hint"}, taps=("conv2:pool2", "conv4:pool3"))
    pairs = FeaturePairs(student, teacher, spec, seed=0)
    pictures = torch.rand(2, 3, 32, 32) * 255
    student(pictures)
    teacher(pictures)
    taken = pairs.take()
    assert [theirs.shape[1:] for _, theirs in taken] == [(32, 8, 8), (64, 4, 4)]
    assert [mine.shape[1] for mine, _ in taken] == [32, 64]  # adapted to the teacher's channels


@pytest.mark.parametrize(
    ("losses", "taps", "message"),
    [
        ("hint", ("conv12:pool2",), r"student: 'conv12'\. Expected one of 'conv1'.*Did you mean"),
        ("hint", ("conv2:pol2",), r"teacher: 'pol2'.*Did you mean 'pool2'"),
        ("attention", ("conv2:features",), r"teacher: 'features' gives a vector"),
        ("cosine", ("conv2:features",), r"student: 'conv2' gives a map"),
    ],
)
def test_a_layer_that_is_not_there_or_does_not_fit_is_refused(losses: str, taps: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeaturePairs(net(), net("vgg16"), DistillSpec(losses={"features": losses}, taps=taps), seed=0)


def test_adapters_map_channels_and_learn_to_match() -> None:
    adapters = Adapters([((3, 4, 4), (5, 4, 4)), ((6,), (2,))], generator=torch.Generator().manual_seed(0))
    maps, vectors = adapters([draw(2, 3, 4, 4), draw(2, 6)])
    assert (maps.shape, vectors.shape) == ((2, 5, 4, 4), (2, 2))
    mine, theirs = draw(64, 6), None
    theirs = mine @ draw(6, 2)
    optimizer = torch.optim.Adam(adapters.parameters(), lr=0.05)
    first = last = 0.0
    for step in range(200):
        loss = F.mse_loss(adapters([draw(1, 3, 4, 4), mine])[1], theirs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), last) if step == 0 else (first, loss.item())
    assert last < 0.01 * first
