"""Milestones of quantization-aware training, and its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.checkpoint import Checkpoint, save_checkpoint
from edgeface.errors import ModelError, UnsupportedError
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.specs import NetworkSpec, QatSpec, output_spec
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork
from quantize.qat import finish, freeze_step, load_qat, milestones, prepare, qat_weights

Pictures = Callable[[int, int], NDArray[np.uint8]]
Images = Callable[[NDArray[np.uint8]], Tensor]

NETWORK = NetworkSpec(backbone="edge_s", width=0.125, input_px=32)
MODEL = model_spec(NETWORK, [output_spec("gender"), output_spec("pose")])


def trained(batch: Tensor, *, steps: int = 10, stopped_at: int = 0) -> FakeQuantNetwork:
    """A few steps of QAT that draw the outputs to zero; with `stopped_at`, saved and resumed there as the loop does."""
    spec = QatSpec(freeze_share=0.3)
    network = prepare(build_network(NETWORK, MODEL), spec)
    calibrate(network, [batch], limit=spec.calibration_batches)
    before_step = milestones(spec)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    for step in range(steps):
        if stopped_at and step == stopped_at:
            state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            network = prepare(build_network(NETWORK, MODEL, seed=1), spec)
            network.load_state_dict(state)
            optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
        network.train()
        before_step(network, step, steps)
        outputs = network(batch)
        optimizer.zero_grad()
        total = outputs["gender"].square().sum() + outputs["pose"].square().sum()
        torch.autograd.backward(total)
        optimizer.step()
    return network


def same_tensors(one: FakeQuantNetwork, other: FakeQuantNetwork) -> bool:
    """Weights, biases and ranges are equal."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if name != "batches")


@pytest.fixture
def batch(pictures: Pictures, images: Images) -> Tensor:
    return images(pictures(8, 32))


@pytest.fixture
def checkpoint(batch: Tensor, tmp_path: Path) -> Checkpoint:
    network = trained(batch)
    finish(network)
    return save(tmp_path / "qat", qat_weights(network))


def save(folder: Path, weights: dict[str, Tensor], *, kind: str = "qat") -> Checkpoint:
    return save_checkpoint(folder, kind=kind, network=NETWORK, model=MODEL, weights=weights, provenance={})


def test_ranges_freeze_for_the_last_share_of_the_steps(batch: Tensor) -> None:
    spec = QatSpec(freeze_share=0.3)
    network = prepare(build_network(NETWORK, MODEL), spec)
    calibrate(network, [batch], limit=1)
    before_step = milestones(spec)
    phases = []
    for step in range(10):
        before_step(network, step, 10)
        phases.append(network.phase)
    assert phases == ["adapting"] * 7 + ["frozen"] * 3


@pytest.mark.parametrize(("share", "first"), [(0.0, 10), (0.3, 7), (0.34, 7), (1.0, 0)])
def test_the_freeze_step_follows_the_share(share: float, first: int) -> None:
    assert freeze_step(QatSpec(freeze_share=share), steps=10) == first


def test_milestones_need_calibration() -> None:
    network = prepare(build_network(NETWORK, MODEL), QatSpec())
    with pytest.raises(ModelError, match="calibrate"):
        milestones(QatSpec())(network, 0, 10)


def test_training_on_the_grid_lowers_the_loss(batch: Tensor) -> None:
    def distance(network: FakeQuantNetwork) -> float:
        with torch.no_grad():
            return float(network.eval()(batch)["gender"].square().mean())

    assert distance(trained(batch, steps=10)) < 0.8 * distance(trained(batch, steps=1))


@pytest.mark.parametrize("stopped_at", [3, 8])
def test_a_stopped_training_resumes_to_the_same_grid(stopped_at: int, batch: Tensor) -> None:
    whole, resumed = trained(batch), trained(batch, stopped_at=stopped_at)
    finish(whole)
    finish(resumed)
    assert same_tensors(whole, resumed)
    other = trained(batch, steps=9)
    finish(other)
    assert not same_tensors(whole, other)  # the twin


def test_a_checkpoint_gives_back_the_same_integers(batch: Tensor, tmp_path: Path) -> None:
    network = trained(batch)
    finish(network)
    checkpoint = save(tmp_path / "qat", qat_weights(network))
    loaded = load_qat(checkpoint)
    before, after = network.quantized(), loaded.quantized()
    assert after.activations == before.activations
    for name in before.weights:
        assert np.array_equal(after.weights[name], before.weights[name])
        assert np.array_equal(after.biases[name], before.biases[name])
        assert np.array_equal(after.weight_scales[name], before.weight_scales[name])
    with torch.no_grad():
        found, expected = loaded(batch), network(batch)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_with_one_step_more_gives_other_integers_twin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = checkpoint.weights()
    before = load_qat(checkpoint).quantized()
    scale = float(before.weight_scales["heads_pose"][0])
    column = int(np.argmin(np.abs(before.weights["heads_pose"][0])))
    tensors["heads_pose.weight"][0, column] += scale
    after = load_qat(save(tmp_path / "other", tensors)).quantized()
    assert int(np.abs(after.weights["heads_pose"].astype(int) - before.weights["heads_pose"]).sum()) == 1


def test_a_weight_between_two_steps_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = checkpoint.weights()
    tensors["heads_pose.weight"][0, 0] += 1e-5
    with pytest.raises(ModelError, match="heads_pose"):
        load_qat(save(tmp_path / "other", tensors))


def test_missing_surplus_and_misshapen_tensors_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = checkpoint.weights()
    without = {name: tensor for name, tensor in tensors.items() if name != "heads_pose.low"}
    with pytest.raises(ModelError, match=r"heads_pose\.low"):
        load_qat(save(tmp_path / "without", without))
    with pytest.raises(ModelError, match="surplus"):
        load_qat(save(tmp_path / "with", {**tensors, "surplus": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"heads_pose\.bias"):
        load_qat(save(tmp_path / "shape", {**tensors, "heads_pose.bias": torch.zeros(4)}))


def test_a_float_student_is_refused_with_the_line_to_type(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="edgeface quantize"):
        load_qat(save(tmp_path / "student", checkpoint.weights(), kind="student"))


def test_unsnapped_weights_are_not_saved(batch: Tensor) -> None:
    with pytest.raises(ModelError, match="snap"):
        qat_weights(trained(batch))


def test_a_teacher_with_imagenet_statistics_is_refused() -> None:
    network = NetworkSpec(backbone="vgg16", width=0.125, input_px=32)
    teacher: MultiTaskNetwork = build_network(network, model_spec(network, [output_spec("gender")]))
    with pytest.raises(UnsupportedError, match="std 64"):
        prepare(teacher, QatSpec())
