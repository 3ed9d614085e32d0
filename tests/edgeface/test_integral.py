"""Landmarks from heatmaps: expected places against loops, teachers that answer so, students that give the maps."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeface.errors import ConfigError, UnsupportedError
from edgeface.evaluate import decode
from edgeface.models.heads import HEATMAP_SPAN as SPAN
from edgeface.models.heads import heatmap_points
from edgeface.models.integral import IntegralHead, expected_places
from edgeface.models.network import build_network, model_spec
from edgeface.specs import (
    AT_FEATURES,
    LANDMARK_HEADS,
    RESEARCH,
    STUDENTS,
    TEACHERS,
    BalancerSpec,
    NetworkSpec,
    StudentSpec,
    TeacherSpec,
    landmark_heads,
    output_spec,
)
from quantize.graph import run, trace, trace_module

MEAN_SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.55), (0.35, 0.7), (0.65, 0.7))
OUTPUTS = (output_spec("landmarks5", mean_shape=MEAN_SHAPE), output_spec("gender"))


def by_loops(logits: Tensor) -> Tensor:
    """x and y of one map of logits, cell by cell."""
    rows, columns = logits.shape
    total, x, y = 0.0, 0.0, 0.0
    for row, column in product(range(rows), range(columns)):
        weight = float(logits[row, column].double().exp())
        total += weight
        x += weight * (0.5 + SPAN * ((column + 0.5) / columns - 0.5))
        y += weight * (0.5 + SPAN * ((row + 0.5) / rows - 0.5))
    return torch.tensor([x / total, y / total])


def test_expected_places_equal_their_loops() -> None:
    logits = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    found = expected_places(logits)
    for sample, point in product(range(3), range(2)):
        assert found[sample, point].tolist() == pytest.approx(by_loops(logits[sample, point]).tolist(), abs=1e-6)
    assert not torch.allclose(found[0, 0], by_loops(logits[0, 0].T), atol=1e-3)  # twin: rows and columns exchanged


def test_a_sharp_map_points_at_its_cell_and_a_flat_one_at_the_middle() -> None:
    logits = torch.zeros(1, 2, 8, 8)
    logits[0, 0, 1, 6] = 100.0
    sharp, flat = expected_places(logits)[0]
    assert sharp.tolist() == pytest.approx([0.5 + SPAN * (6.5 / 8 - 0.5), 0.5 + SPAN * (1.5 / 8 - 0.5)])
    assert flat.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("backbone", "px"), [("vgg16", 64), ("vgg19", 48), ("resnet50", 64), ("resnet50", 50)])
def test_a_teacher_answers_with_offsets_in_the_order_of_its_outputs(backbone: str, px: int) -> None:
    network = NetworkSpec(backbone=backbone, width=0.25, input_px=px, head="flatten", landmark_head="integral")
    built = build_network(network, model_spec(network, OUTPUTS), seed=1)
    answers = built(torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0)) * 255)
    assert {name: tuple(value.shape) for name, value in answers.items()} == {"landmarks5": (2, 5, 2), "gender": (2, 2)}
    assert list(answers) == ["landmarks5", "gender"]
    # It begins with flat maps, in the middle of the crop.
    middle = 0.5 - torch.tensor(MEAN_SHAPE)
    assert torch.allclose(answers["landmarks5"], middle.expand(2, 5, 2), atol=0.05)
    answers["landmarks5"].square().sum().backward()
    touched = [name for name, value in built.named_parameters() if value.grad is not None and value.grad.any()]
    assert any(name.startswith("backbone.") for name in touched)
    assert not any(name.startswith("heads.") for name in touched)


def test_other_outputs_do_not_depend_on_the_landmark_head() -> None:
    network = NetworkSpec(backbone="vgg16", width=0.25, input_px=48, landmark_head="integral")
    built = build_network(network, model_spec(network, OUTPUTS), seed=1).eval()
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 255
    features = built.backbone(built.standardize(images))
    answers = built(images)
    assert torch.equal(answers["gender"], built.heads["gender"](features))
    with torch.no_grad():
        next(built.integrals.parameters()).add_(1.0)
        again = built(images)
    assert torch.equal(again["gender"], answers["gender"])
    assert not torch.equal(again["landmarks5"], answers["landmarks5"])  # twin


def test_a_head_follows_a_face_that_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    head = IntegralHead((8, 8), mean_shape=((0.5, 0.5),))
    spot = torch.zeros(2, 8, 16, 16)
    spot[0, :, 4, 4] = spot[1, :, 4, 8] = 5.0
    coarse = torch.zeros(2, 8, 8, 8)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(0.0, 0.5, generator=generator)
    head.eval()
    head.smooth[0][1].running_mean.zero_()
    first, second = head([spot, coarse])[:, 0].detach()
    assert abs(float(second[0] - first[0])) > 1e-3
    assert float(second[1] - first[1]) == pytest.approx(0.0, abs=1e-5)  # twin: it moved sideways only


@pytest.mark.parametrize("backbone", [*STUDENTS, *RESEARCH])
def test_networks_that_are_deployed_have_linear_heads(backbone: str) -> None:
    assert backbone not in TEACHERS
    with pytest.raises(ConfigError, match=f"landmark_head: 'integral'.*what {backbone} can take: linear"):
        NetworkSpec(backbone=backbone, landmark_head="integral")


def student(backbone: str = "edge_s", *, px: int = 40) -> NetworkSpec:
    return NetworkSpec(backbone=backbone, width=0.25, input_px=px, landmark_head="heatmap")


def test_points_of_heatmaps_are_those_that_training_sees() -> None:
    raw = np.random.default_rng(0).normal(0.0, 3.0, (4, 8, 6, 5)).astype(np.float32)
    found = heatmap_points(raw)
    trained = expected_places(torch.from_numpy(raw).permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - trained).max() < 1e-6
    assert np.abs(heatmap_points(raw.swapaxes(1, 2)) - trained).max() > 0.01  # twin: rows and columns exchanged


@pytest.mark.parametrize("backbone", LANDMARK_HEADS["heatmap"])
def test_a_student_gives_heatmaps_that_evaluation_reads_as_points(backbone: str) -> None:
    spec = model_spec(student(backbone), OUTPUTS)
    output = spec.output("landmarks5")
    assert (output.shape, output.heatmap) == ((5, 5, 5), True)
    assert model_spec(replace(student(backbone), landmark_head="linear"), OUTPUTS).output("landmarks5").shape == (5, 2)
    built = build_network(student(backbone), spec, seed=1).eval()
    with torch.no_grad():
        answers = {name: value.numpy() for name, value in built(torch.zeros(2, 3, 40, 40)).items()}
    assert answers["landmarks5"].shape == (2, 5, 5, 5)
    assert decode(spec, answers)["landmarks5"].shape == (2, 5, 2)


def test_the_graph_of_a_student_with_heatmaps_computes_what_the_network_does() -> None:
    network = build_network(student(), model_spec(student(), OUTPUTS), seed=1).eval()
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
    graph = trace(network)
    assert [node.op for node in graph.nodes if node.name == graph.outputs["landmarks5"]] == ["cells"]
    assert graph.output_shape("landmarks5") == (5, 5, 5)
    with torch.no_grad():
        computed, expected = run(graph, images), network(images)
    for name, value in expected.items():
        assert torch.allclose(computed[name], value, atol=1e-4)


class Turned(nn.Module):
    """A convolution whose map's axes are put in another order, or read on."""

    def __init__(self, order: tuple[int, ...], *, on: bool) -> None:
        super().__init__()
        self.conv, self.order, self.on = nn.Conv2d(3, 4, 3, padding=1), order, on

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        turned = self.conv(images).permute(*self.order)
        return {"landmarks5": turned.relu() if self.on else turned}


def test_only_an_output_has_its_channels_last() -> None:
    assert trace_module(Turned((0, 2, 3, 1), on=False), input_px=8).output_shape("landmarks5") == (8, 8, 4)
    with pytest.raises(UnsupportedError, match="axes in the order"):
        trace_module(Turned((0, 1, 3, 2), on=False), input_px=8)
    with pytest.raises(UnsupportedError, match="only an output may"):
        trace_module(Turned((0, 2, 3, 1), on=True), input_px=8)


def test_every_backbone_can_take_a_linear_head_and_only_some_another() -> None:
    assert landmark_heads("edge_s") == ("linear", "heatmap")
    assert landmark_heads("vgg16") == ("linear", "integral")
    assert landmark_heads("cnn5") == ("linear",)


@pytest.mark.parametrize("name", AT_FEATURES)
def test_gradients_at_the_shared_features_do_not_tell_of_landmarks_that_are_read_elsewhere(name: str) -> None:
    balancer = BalancerSpec(name=name)
    with pytest.raises(ConfigError, match="which landmark_head = 'integral' does not read"):
        TeacherSpec(network=NetworkSpec(backbone="vgg16", landmark_head="integral"), balancer=balancer)
    with pytest.raises(ConfigError, match="which landmark_head = 'heatmap' does not read"):
        StudentSpec(network=NetworkSpec(backbone="edge_s", landmark_head="heatmap"), balancer=balancer)
    TeacherSpec(network=NetworkSpec(backbone="vgg16"), balancer=balancer)  # the twins
    TeacherSpec(network=NetworkSpec(backbone="vgg16", landmark_head="integral"), balancer=BalancerSpec(name="famo"))
