"""Networks: exact parameter counts, shapes, and the layers' arithmetic against naive forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgeface.errors import ConfigError
from edgeface.models.backbones import BUILDERS, scaled
from edgeface.models.layers import Conv2dSame, Luma, MaxFeatureMap, Standardize, same_padding
from edgeface.models.network import build_network, count_parameters, model_spec
from edgeface.specs import BACKBONES, STUDENTS, NetworkSpec, output_spec

MEAN_SHAPE = tuple((0.3 + 0.1 * k, 0.4) for k in range(5))
OUTPUTS = (output_spec("landmarks5", mean_shape=MEAN_SHAPE), output_spec("gender"), output_spec("age"))


def small(backbone: str, *, head: str = "") -> NetworkSpec:
    return NetworkSpec(backbone=backbone, width=0.25, input_px=40 if backbone == "tcdcn_relu" else 32, head=head)


def test_builders_hold_exactly_the_named_backbones() -> None:
    assert tuple(BUILDERS) == BACKBONES


@pytest.mark.parametrize(
    ("backbone", "input_px", "head", "expected"),
    [
        ("vgg16", 64, "pool", 14_714_688),
        ("vgg19", 64, "pool", 20_024_384),
        ("vgg11", 64, "pool", 9_220_480),
        ("lightcnn9", 128, "pool", 1_286_048),
        ("lightcnn9", 128, "flatten", 1_286_048 + 4_194_816),
        ("tcdcn_relu", 40, "", 77_236),
        ("cnn5", 64, "", 980_032),
    ],
)
def test_folded_backbone_has_the_published_parameter_count(
    backbone: str, input_px: int, head: str, expected: int
) -> None:
    built = BUILDERS[backbone](width=1.0, input_px=input_px, head=head)
    assert count_parameters(built.module) == expected


def test_wider_backbone_has_another_parameter_count_twin() -> None:
    built = BUILDERS["vgg16"](width=1.25, input_px=64, head="pool")
    assert count_parameters(built.module) != 14_714_688


def test_resnet50_without_classifier_has_the_published_parameter_count() -> None:
    built = BUILDERS["resnet50"](width=1.0, input_px=64, head="pool")
    assert sum(parameter.numel() for parameter in built.module.parameters()) == 23_508_032


def two_databases(backbone: str, *, input_px: int, hidden: int) -> int:
    spec = NetworkSpec(backbone=backbone, input_px=input_px, hidden=hidden, head="pool")
    outputs = (output_spec("beauty"), output_spec("gender"))
    return count_parameters(build_network(spec, model_spec(spec, outputs)))


def test_2m_beautynet_form_is_within_a_thousand_parameters_of_the_published_size() -> None:
    assert two_databases("vgg16", input_px=64, hidden=150) == 14_792_695
    assert abs(14_792_695 - 14_793_000) < 1000


def test_pooled_lightcnn9_with_588_hidden_units_has_the_published_size() -> None:
    # The published head is not described; 588 hidden units are ours, chosen to meet the published 1,366 K.
    assert two_databases("lightcnn9", input_px=128, hidden=588) == 1_366_023


def test_edge_s_stays_below_half_a_million_parameters() -> None:
    spec = NetworkSpec(backbone="edge_s")
    network = build_network(spec, model_spec(spec, OUTPUTS))
    assert count_parameters(network) <= 500_000


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_yields_each_output_by_name_and_shape(backbone: str) -> None:
    spec = small(backbone)
    network = build_network(spec, model_spec(spec, OUTPUTS)).eval()
    with torch.no_grad():
        outputs = network(torch.zeros(2, 3, spec.input_px, spec.input_px))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "landmarks5": (2, 5, 2),
        "gender": (2, 2),
        "age": (2, 101),
    }


@pytest.mark.parametrize("backbone", ["edge_s", "cnn5", "vgg11", "lightcnn9"])
def test_pool_and_flatten_heads_accept_the_same_input(backbone: str) -> None:
    for head in ("pool", "flatten"):
        spec = small(backbone, head=head)
        built = BUILDERS[backbone](width=spec.width, input_px=spec.input_px, head=head)
        assert built.module(torch.zeros(2, 3, spec.input_px, spec.input_px)).shape == (2, built.features)


def test_too_small_an_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="input_px"):
        BUILDERS["vgg16"](width=0.25, input_px=16, head="pool")


def test_students_take_the_picture_as_their_grid() -> None:
    for backbone in STUDENTS:
        model = model_spec(small(backbone), OUTPUTS)
        assert (model.mean, model.std) == ((128.0,) * 3, (64.0,) * 3)


def test_width_one_is_exact_and_others_round_to_eight() -> None:
    assert scaled(100, 1.0) == 100
    assert scaled(100, 0.5) == 48
    assert scaled(8, 0.1) == 8


@pytest.mark.parametrize("size", [15, 16, 17])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_gives_size_over_stride_rounded_up(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


def test_strided_same_convolution_pads_behind_only() -> None:
    conv = Conv2dSame(1, 1, 3, 2, bias=False)
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    padded = F.pad(picture, (0, 1, 0, 1))
    expected = torch.stack(
        [(padded[0, 0, r : r + 3, c : c + 3] * conv.weight[0, 0]).sum() for r in (0, 2) for c in (0, 2)]
    )
    torch.testing.assert_close(conv(picture).flatten(), expected)
    symmetric = F.conv2d(picture, conv.weight, stride=2, padding=1)  # the twin: padding in front differs
    assert not torch.allclose(symmetric.flatten(), expected)


def test_max_feature_map_takes_the_larger_half() -> None:
    value = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    assert MaxFeatureMap()(value).tolist() == [[1.0, 3.0]]
    assert MaxFeatureMap()(-value).tolist() != [[1.0, 3.0]]


def test_standardize_subtracts_then_divides() -> None:
    layer = Standardize((128.0, 0.0, 10.0), (64.0, 1.0, 2.0))
    assert layer(torch.full((1, 3, 1, 1), 64.0)).flatten().tolist() == [-1.0, 64.0, 27.0]


def test_luma_weights_are_fixed_and_sum_to_one() -> None:
    layer = Luma()
    assert not layer.weight.requires_grad
    # Three decimals each, summed in float32.
    assert float(layer.weight.sum()) == pytest.approx(1.0, abs=1e-6)


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    spec = small("edge_s")
    model = model_spec(spec, OUTPUTS)
    first, second, other = (build_network(spec, model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
