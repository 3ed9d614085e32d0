"""Balancers and early stopping inside the training loop."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill import train as training
from distill.balance import Balancing, balancer
from distill.features import FeaturePairs
from distill.objective import Objective
from distill.stages import balancing_with
from distill.stopping import Stopping
from distill.train import Trained, train
from edgeface import specs
from edgeface.errors import InterruptedRun
from edgeface.models.network import build_network, model_spec
from edgeface.models.taps import Taps
from edgeface.specs import (
    FEATURES,
    BalancerSpec,
    DistillSpec,
    LossSpec,
    NetworkSpec,
    StoppingSpec,
    StudentSpec,
    TrainSpec,
    output_spec,
)

TRAIN = TrainSpec(epochs=4, batch=16, lr=3e-3, warmup_epochs=0.5, checkpoint_s=1e-9)
NETWORK = NetworkSpec(backbone="cnn5", width=0.25, input_px=32, dropout=0.1)
MODEL = model_spec(NETWORK, (output_spec("gender"), output_spec("smile")))
WEIGHTS = {"gender": 1.0, "smile": 0.5}


@dataclass
class Batch:
    images: Tensor
    labels: dict[str, Tensor]
    ids: Tensor


class Batches:
    """Five steps an epoch: gender is how bright a picture is, smile how red; every third smile has no label."""

    steps_per_epoch = 5

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        for step in range(start_step, self.steps_per_epoch):
            generator = torch.Generator().manual_seed(epoch * 100 + step)
            level, red = torch.rand(2, 16, generator=generator)
            images = 200.0 * level[:, None, None, None].expand(16, 3, 32, 32).clone()
            images[:, 0] += 55.0 * red[:, None, None]
            smile = (red > 0.5).long()
            smile[::3] = -1
            yield Batch(images, {"gender": (level > 0.5).long(), "smile": smile}, torch.arange(16))


def fit(
    folder: Path,
    *,
    name: str = "fixed",
    stopping: StoppingSpec | None = None,
    stop_at: int | None = None,
    watch: bool = False,
    dtype: str = "fp32",
) -> Trained:
    network = build_network(NETWORK, MODEL, seed=3)
    objective = Objective(model=MODEL, weights=WEIGHTS, loss=LossSpec(), distill=DistillSpec())
    taps = Taps(network, [FEATURES])
    balancing = Balancing(
        objective,
        balancer(WEIGHTS, BalancerSpec(name=name), features=network.heads["gender"].in_features),
        stopping=None if stopping is None else Stopping(tuple(WEIGHTS), stopping),
        features=lambda: taps.take()[0],
        network=network,
    )

    def before(network: nn.Module, step: int, steps: int) -> None:
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    def validation(network: nn.Module) -> Mapping[str, float]:
        return {"gender.loss": 0.4, "smile.loss": 9.0}

    return train(
        network,
        objective,
        Batches(),
        spec=replace(TRAIN, dtype=dtype),
        seed=7,
        key="k",
        partial=folder,
        input_px=32,
        before_step=before,
        balancing=balancing,
        watch=validation if watch else None,
    )


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", specs.BALANCERS)
def test_a_balanced_training_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = fit(tmp_path / "a", name=name)
    with pytest.raises(InterruptedRun):
        fit(tmp_path / "b", name=name, stop_at=11)
    assert same(fit(tmp_path / "b", name=name).weights, whole.weights)


def test_the_fixed_balancer_is_the_plain_objective(tmp_path: Path) -> None:
    network = build_network(NETWORK, MODEL, seed=3)
    objective = Objective(model=MODEL, weights=WEIGHTS, loss=LossSpec(), distill=DistillSpec())
    options = {"spec": TRAIN, "seed": 7, "key": "k", "partial": tmp_path / "p", "input_px": 32}
    plain = train(network, objective, Batches(), **options)  # type: ignore[arg-type]
    balanced = fit(tmp_path / "a").weights
    close = [np.allclose(plain.weights[n].numpy(), balanced[n].numpy(), atol=1e-4) for n in balanced]
    assert all(close)  # sums in another order, through twenty steps
    other = fit(tmp_path / "b", name="dynamic").weights
    assert not all(np.allclose(plain.weights[n].numpy(), other[n].numpy(), atol=1e-4) for n in balanced)


def test_a_stopped_task_leaves_its_head_as_it_is(tmp_path: Path) -> None:
    spec = StoppingSpec(mode="each", window=1, threshold=0.0, validations=4)
    stopped = fit(tmp_path / "a", stopping=spec, watch=True)
    going = fit(tmp_path / "b", stopping=StoppingSpec(mode="none", window=1, validations=4), watch=True)
    assert not torch.equal(stopped.weights["heads.smile.weight"], going.weights["heads.smile.weight"])
    rows = stopped.curve.splitlines()
    column = rows[0].split(",").index("smile.active")
    active = [float(row.split(",")[column]) for row in rows[1:]]
    assert active[0] == 1.0
    assert active[-1] == 0.0
    main = rows[0].split(",").index("gender.active")
    assert {row.split(",")[main] for row in rows[1:]} == {"1"}


def test_a_training_with_early_stopping_resumes_to_the_same_bits(tmp_path: Path) -> None:
    spec = StoppingSpec(mode="all", window=1, threshold=0.0, validations=4)
    whole = fit(tmp_path / "a", stopping=spec, watch=True)
    with pytest.raises(InterruptedRun):
        fit(tmp_path / "b", stopping=spec, watch=True, stop_at=15)
    again = fit(tmp_path / "b", stopping=spec, watch=True)
    assert same(again.weights, whole.weights)
    assert again.curve == whole.curve


def test_a_recipe_without_balancer_or_stopping_trains_as_it_always_did() -> None:
    network = build_network(NETWORK, MODEL, seed=3)
    objective = Objective(model=MODEL, weights=WEIGHTS, loss=LossSpec(), distill=DistillSpec())
    assert balancing_with(StudentSpec(), objective, network) is None
    for spec in (StudentSpec(balancer=BalancerSpec(name="dwa")), StudentSpec(stopping=StoppingSpec(mode="each"))):
        assert balancing_with(spec, objective, network) is not None


THREE = {"gender": 1.0, "landmarks5": 2.0, "smile": 0.5}
SHAPE = tuple((0.3 + 0.1 * k, 0.5) for k in range(5))
PARTLY = model_spec(NETWORK, (output_spec("gender"), output_spec("landmarks5", mean_shape=SHAPE), output_spec("smile")))


def gradient(name: str, *, half_floats: bool, brighter: float = 0.0) -> dict[str, Tensor]:
    """What a balancer leaves in a network after one batch: half of the faces have no points, none has a smile."""
    network = build_network(replace(NETWORK, dropout=0.0), PARTLY, seed=3)
    taps = Taps(network, [FEATURES])
    balancing = Balancing(
        Objective(model=PARTLY, weights=THREE, loss=LossSpec(), distill=DistillSpec()),
        balancer(THREE, BalancerSpec(name=name), features=network.heads["gender"].in_features),
        stopping=None,
        features=lambda: taps.take()[0],
        network=network,
    )
    generator = torch.Generator().manual_seed(0)
    images = 255.0 * torch.rand(16, 3, 32, 32, generator=generator)
    points = torch.tensor(SHAPE) + 0.2 * torch.randn(16, 5, 2, generator=generator) + brighter
    points[::2] = torch.nan
    labels = {
        "gender": (torch.arange(16) + int(brighter > 0)) % 2,
        "landmarks5": points,
        "smile": torch.full((16,), -1),
    }
    with torch.autocast("cpu", torch.bfloat16, half_floats):
        outputs = network(images)
    assert outputs["gender"].dtype is (torch.bfloat16 if half_floats else torch.float32)
    balancing.backward(outputs, images, labels, differentiate=lambda total: total.backward())
    left = [*network.named_parameters(), *balancing.companions["balancer"].named_parameters()]
    return {key: parameter.grad for key, parameter in left if parameter.grad is not None}


@pytest.mark.parametrize("name", specs.BALANCERS)
def test_every_balancer_works_in_half_floats_and_with_labels_missing(name: str) -> None:
    full, half = (gradient(name, half_floats=amp) for amp in (False, True))
    assert full.keys() == half.keys()
    assert all(each.dtype is torch.float32 and torch.isfinite(each).all() for each in half.values())
    silent = half.get("heads.smile.weight")
    assert silent is None or not silent.any()
    assert half["heads.landmarks5.weight"].any()

    def of_trunk(found: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([each.flatten() for key, each in found.items() if key.startswith("backbone")])

    # bfloat16 keeps 8 bits, so each of the seven layers' values is off by up to 0.4 %.
    cosine = torch.cosine_similarity(of_trunk(full), of_trunk(half), dim=0)
    assert cosine > 0.98
    other = torch.cosine_similarity(of_trunk(full), of_trunk(gradient(name, half_floats=True, brighter=0.3)), dim=0)
    assert other < 0.9  # the twin: other labels


def step_with_features(name: str, *, form: str, weight: float) -> tuple[dict[str, Tensor], float, float]:
    """Gradients in the network after one batch whose features a teacher is compared with, the total and that loss."""
    network, teacher = (build_network(replace(NETWORK, dropout=0.0), MODEL, seed=seed) for seed in (3, 4))
    spec = DistillSpec(losses={FEATURES: form}, feature_weight=weight)
    pairs = FeaturePairs(network, teacher.eval().requires_grad_(False), spec, seed=0)
    objective = Objective(
        model=MODEL, weights=WEIGHTS, loss=LossSpec(), distill=spec, teacher=teacher, teacher_model=MODEL, pairs=pairs
    )
    taps = Taps(network, [FEATURES])
    balancing = Balancing(
        objective,
        balancer(WEIGHTS, BalancerSpec(name=name), features=network.heads["gender"].in_features),
        stopping=None,
        features=lambda: taps.take()[0],
        network=network,
    )
    batch = next(Batches().epoch(0))
    outputs = network(batch.images)
    total, parts = balancing.backward(outputs, batch.images, batch.labels, differentiate=lambda total: total.backward())
    trained = [*network.named_parameters(), *objective.companions.named_parameters()]
    found = {key: each.grad.clone() for key, each in trained if each.grad is not None}
    return found, float(total), float(parts[FEATURES].detach())


@pytest.mark.parametrize("form", ["cosine", "hint"])  # of what the heads read, and of a map before it
@pytest.mark.parametrize("name", specs.BALANCERS)
def test_a_loss_between_features_is_added_whole_to_what_any_balancer_makes_of_the_tasks(name: str, form: str) -> None:
    step = partial(step_with_features, form=form)
    (plain, of_tasks, _), (both, total, between) = step(name, weight=1e-9), step(name, weight=10.0)
    (fixed, *_), (summed, *_) = step("fixed", weight=1e-9), step("fixed", weight=10.0)

    def trunk(found: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([each.flatten() for key, each in found.items() if key.startswith("backbone")])

    added, wanted = trunk(both) - trunk(plain), trunk(summed) - trunk(fixed)
    # Float32 sums of a gradient that is as long as the tasks' own: 1e-7 of it at each of some hundred additions.
    near = 1e-4 * float(wanted.abs().max())
    assert torch.allclose(added, wanted, atol=near, rtol=0.0)
    assert not torch.allclose(added, len(WEIGHTS) * wanted, atol=near, rtol=0.0), "twin: counted once for each task"
    adapters = [key for key in both if key.startswith("adapters")]
    assert adapters
    assert all(both[key].any() for key in adapters)
    assert total == pytest.approx(of_tasks + 10.0 * between, rel=1e-4)


@pytest.mark.parametrize("name", ["famo", "gradnorm", "pcgrad"])
def test_a_training_in_half_floats_learns_under_a_balancer(name: str, tmp_path: Path) -> None:
    """FAMO looks at the batch a second time, GradNorm and PCGrad take the gradient of every task on its own."""
    objective = Objective(model=MODEL, weights=WEIGHTS, loss=LossSpec(), distill=DistillSpec())
    network = build_network(NETWORK, MODEL, seed=3).eval()
    (batch, *_) = Batches().epoch(9)

    def loss() -> float:
        with torch.no_grad():
            return float(objective(network(batch.images), batch.images, batch.labels)[0])

    before = loss()
    network.load_state_dict(fit(tmp_path, name=name, dtype="bf16").weights)
    assert loss() < 0.8 * before


@pytest.mark.parametrize("mode", ["all", "each", "none"])
def test_only_tasks_stopped_together_leave_the_main_one_without_weight_decay(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []

    def kept(*arguments: object) -> torch.optim.Optimizer:
        made.append(original(*arguments))  # type: ignore[arg-type]
        return made[-1]

    original = training._optimizer
    monkeypatch.setattr(training, "_optimizer", kept)
    fit(tmp_path, stopping=StoppingSpec(mode=mode, window=1, threshold=0.0, validations=4), watch=True)
    decays = {group["weight_decay"] for optimizer in made for group in optimizer.param_groups}
    assert decays == ({0.0} if mode == "all" else {TRAIN.weight_decay, 0.0})  # biases have none in any case
    assert TRAIN.weight_decay > 0.0
