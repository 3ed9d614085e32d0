"""Networks: exact parameter counts, shapes, and the layers' arithmetic against naive forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeface.errors import ConfigError
from edgeface.models.backbones import BUILDERS, scaled
from edgeface.models.layers import (
    AbsTanh,
    Conv2dSame,
    LocallyConnected2d,
    Luma,
    MaxFeatureMap,
    Standardize,
    ZScore,
    same_padding,
)
from edgeface.models.network import (
    MultiTaskNetwork,
    build_network,
    count_parameters,
    model_spec,
    take_over,
    trunk_blocks,
)
from edgeface.specs import BACKBONES, RESEARCH, STUDENTS, NetworkSpec, output_spec

MEAN_SHAPE = tuple((0.3 + 0.1 * k, 0.4) for k in range(5))
POINTS = ((0.5, 0.5),) * 68
OUTPUTS = (output_spec("landmarks5", mean_shape=MEAN_SHAPE), output_spec("gender"), output_spec("age"))


INPUT_PX = dict.fromkeys(BACKBONES, 32) | dict.fromkeys((b for b in BACKBONES if b.startswith("tcdcn")), 40)
INPUT_PX["tcdcn_60"] = 60
INPUT_PX["inception_resnet_v1"] = 75  # the smallest it takes


def small(backbone: str, *, head: str = "", activation: str = "relu") -> NetworkSpec:
    return NetworkSpec(backbone=backbone, width=0.25, input_px=INPUT_PX[backbone], head=head, activation=activation)


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
        ("tcdcn", 40, "", 77_236),
        # Its fourth convolution has the shared one's 64·64·2·2 weights and 64 biases at each of 2·2 positions.
        ("tcdcn_local", 40, "", 77_236 + 3 * (64 * 64 * 4 + 64)),
        # The published derivation says 3.41 M for all four unshared.
        ("tcdcn_unshared", 40, "", 3_410_020),
        # 5·5·20 + 20, 5·5·20·48 + 48, 3·3·48·64 + 64, 3·3·64·80 + 80 and 720·512 + 512.
        ("tcdcn_60", 60, "", 520 + 24_048 + 27_712 + 46_160 + 369_152),
        ("cnn5", 64, "", 980_032),
    ],
)
def test_folded_backbone_has_the_published_parameter_count(
    backbone: str, input_px: int, head: str, expected: int
) -> None:
    built = BUILDERS[backbone](width=1.0, input_px=input_px, head=head)
    assert count_parameters(built.module) == expected


def test_the_later_tcdcn_has_the_released_number_of_parameters_at_60_px_alone() -> None:
    def with_points(input_px: int) -> int:
        spec = NetworkSpec(backbone="tcdcn_60", input_px=input_px)
        return count_parameters(build_network(spec, model_spec(spec, (output_spec("landmarks68", mean_shape=POINTS),))))

    assert with_points(60) == 537_360
    assert with_points(68) != 537_360  # the twin: another side leaves another map in front of the 512 units


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


def test_abs_tanh_is_even_and_below_one() -> None:
    value = torch.tensor([[-2.0, 0.0, 0.5]])
    assert AbsTanh()(value)[0].tolist() == pytest.approx([math.tanh(2.0), 0.0, math.tanh(0.5)])
    assert torch.tanh(value)[0].tolist() != pytest.approx([math.tanh(2.0), 0.0, math.tanh(0.5)])  # the twin


def test_z_score_takes_each_picture_by_itself() -> None:
    pictures = torch.rand(3, 2, 5, 5, dtype=torch.float64) * torch.tensor([1.0, 50.0, 200.0]).view(3, 1, 1, 1)
    scored = ZScore()(pictures)
    for row, picture in zip(scored, pictures, strict=True):
        mean = picture.sum() / 50
        deviation = ((picture - mean) ** 2).sum().div(50).sqrt()
        torch.testing.assert_close(row, (picture - mean) / (deviation + 1e-5))
    over_the_batch = (pictures - pictures.mean()) / pictures.std()
    assert not torch.allclose(scored, over_the_batch)  # the twin
    assert ZScore()(torch.full((1, 1, 4, 4), 7.0)).abs().max() == 0.0


def naive_local(layer: LocallyConnected2d, maps: Tensor) -> Tensor:
    """Each output position with its own matrix and bias, in loops."""
    side, kernel = layer.side, layer.kernel
    outputs = layer.weight.shape[2]
    result = maps.new_zeros(len(maps), outputs, side, side)
    for b in range(len(maps)):
        for o in range(outputs):
            for r in range(side):
                for c in range(side):
                    window = maps[b, :, r : r + kernel, c : c + kernel].flatten()
                    position = r * side + c
                    result[b, o, r, c] = window @ layer.weight[position, :, o] + layer.bias[o * side**2 + position]
    return result


def test_locally_connected_layer_equals_its_loops() -> None:
    torch.manual_seed(0)
    layer = LocallyConnected2d(3, 4, 2, side=5).double()
    layer.bias.data.normal_()
    maps = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    found = layer(maps)
    torch.testing.assert_close(found, naive_local(layer, maps))
    layer.weight.data[5, 2, 1] += 1e-6
    assert not torch.allclose(naive_local(layer, maps), found, rtol=0, atol=1e-9)  # the twin


def test_locally_connected_layer_with_one_matrix_everywhere_is_a_convolution() -> None:
    torch.manual_seed(0)
    conv, layer = nn.Conv2d(3, 4, 2), LocallyConnected2d(3, 4, 2, side=5)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1).T.expand_as(layer.weight))
        assert conv.bias is not None
        layer.bias.copy_(conv.bias.repeat_interleave(16))
    maps = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer(maps), conv(maps))
    assert not torch.allclose(layer(maps), conv(maps.flip(3)))  # the twin


def inception_parameters() -> int:
    """The trunk's, from the layer table: a convolution with batch-norm counts its weights and one bias a channel."""

    def unit(inputs: int, outputs: int, cells: int) -> int:
        return inputs * outputs * cells + outputs

    stem = unit(3, 32, 9) + unit(32, 32, 9) + unit(32, 64, 9) + unit(64, 80, 1) + unit(80, 192, 9) + unit(192, 256, 9)
    block35 = 3 * unit(256, 32, 1) + 3 * unit(32, 32, 9) + unit(96, 256, 1)
    reduction_a = unit(256, 384, 9) + unit(256, 192, 1) + unit(192, 192, 9) + unit(192, 256, 9)
    block17 = 2 * unit(896, 128, 1) + 2 * unit(128, 128, 7) + unit(256, 896, 1)
    reduction_b = 3 * unit(896, 256, 1) + unit(256, 384, 9) + 3 * unit(256, 256, 9)
    return stem + block35 + reduction_a + block17 + reduction_b


def test_inception_trunk_has_the_parameters_of_its_layer_table_and_ends_in_1792_maps() -> None:
    built = BUILDERS["inception_resnet_v1"](width=1.0, input_px=160, head="")
    assert count_parameters(built.module) == inception_parameters()
    assert built.features == 1792
    with torch.no_grad():
        assert built.module.eval()(torch.zeros(1, 3, 160, 160)).shape == (1, 1792, 3, 3)


def test_identity_and_expression_share_the_trunk_and_no_branch() -> None:
    network = small("inception_resnet_v1")
    built = build_network(network, model_spec(network, (output_spec("identity"), output_spec("expression"))))
    built.eval()(torch.rand(2, 3, 75, 75) * 255)["identity"].sum().backward()
    touched = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in built.named_parameters() if p.grad is not None
    }
    assert {"branches.identity", "heads.identity", "backbone.conv1"} <= touched
    assert "branches.expression" not in touched
    built.eval()(torch.rand(2, 3, 75, 75) * 255)["expression"].sum().backward()  # the twin: that one reaches it
    assert all(p.grad is not None for p in built.branches["expression"].parameters())
    assert built.heads["expression"].in_features == 32  # its own 128 units, at width 0.25


def test_a_hidden_layer_shared_by_branches_is_refused() -> None:
    network = NetworkSpec(backbone="inception_resnet_v1", width=0.25, input_px=75, hidden=16)
    with pytest.raises(ConfigError, match="share its trunk alone"):
        build_network(network, model_spec(network, (output_spec("identity"),)))


@pytest.mark.parametrize("backbone", ["edge_s", "cnn5", "vgg11", "vgg16", "vgg19", "tcdcn_relu"])
def test_prelu_replaces_every_relu(backbone: str) -> None:
    network = NetworkSpec(backbone=backbone, width=0.25, input_px=INPUT_PX[backbone], hidden=8, activation="prelu")
    plain, leaky = (
        [type(m) for m in build_network(spec, model_spec(spec, OUTPUTS)).modules()]
        for spec in (small(backbone), network)
    )
    assert nn.ReLU not in leaky
    assert nn.PReLU not in plain  # the twin
    assert leaky.count(nn.PReLU) == plain.count(nn.ReLU) + 1  # the hidden layer's


@pytest.mark.parametrize("backbone", ["lightcnn9", "resnet50", *RESEARCH])
def test_a_network_with_its_own_non_linearities_refuses_prelu(backbone: str) -> None:
    network = small(backbone, activation="prelu")
    with pytest.raises(ConfigError, match=f"{backbone}: activation: 'prelu'"):
        build_network(network, model_spec(network, OUTPUTS))


def tiny(backbone: str, *, seed: int, tasks: tuple[str, ...] = ("gender",)) -> MultiTaskNetwork:
    network = small(backbone)
    outputs = [output_spec(task, mean_shape=POINTS if task == "landmarks68" else ()) for task in tasks]
    return build_network(network, model_spec(network, outputs), seed=seed)


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [("vgg16", 13), ("vgg19", 16), ("resnet50", 5), ("tcdcn", 5), ("tcdcn_60", 5), ("edge_s", 11), ("cnn5", 5)],
)
def test_blocks_of_a_trunk_are_its_layers_with_weights(backbone: str, blocks: int) -> None:
    network = tiny(backbone, seed=0)
    trunk = trunk_blocks(network.backbone)
    assert len(trunk) == blocks
    held = {id(p) for block in trunk for module in block for p in module.parameters()}
    luma = {id(p) for m in network.modules() if isinstance(m, Luma) for p in m.parameters()}
    assert held == {id(p) for p in network.backbone.parameters()} - luma


def test_the_68_point_network_takes_the_first_three_convolutions_of_the_5_point_one() -> None:
    five, more = tiny("tcdcn", seed=1), tiny("tcdcn", seed=2, tasks=("landmarks68",))
    before = {name: tensor.clone() for name, tensor in more.state_dict().items()}
    assert take_over(more, five.backbone, blocks=3) == 3
    taken = {name for name, tensor in more.state_dict().items() if not torch.equal(tensor, before[name])}
    # Biases begin at zero in both.
    assert taken == {f"backbone.conv{number}.conv.weight" for number in (1, 2, 3)}
    assert all(torch.equal(more.state_dict()[name], five.state_dict()[name]) for name in taken)
    assert more(torch.zeros(1, 3, 40, 40))["landmarks68"].shape == (1, 68, 2)


def test_a_trunk_of_another_width_is_not_taken_over() -> None:
    network = tiny("vgg16", seed=0)
    with pytest.raises(ConfigError, match="block 1 has other shapes"):
        take_over(network, BUILDERS["vgg16"](width=0.5, input_px=32, head="").module)
    with pytest.raises(ConfigError, match="14 blocks"):
        take_over(network, network.backbone, blocks=14)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_a_frozen_prefix_gets_no_gradient_and_keeps_its_batch_norm(backbone: str) -> None:
    network = tiny(backbone, seed=0)
    network.freeze(2)
    network.train()
    frozen = [module for block in trunk_blocks(network.backbone)[:2] for module in block]
    before = {
        name: tensor.clone() for module in frozen for name, tensor in module.state_dict(prefix=f"{id(module)}").items()
    }
    sum(value.square().sum() for value in network(torch.rand(4, 3, 32, 32) * 255).values()).backward()
    after = {name: tensor for module in frozen for name, tensor in module.state_dict(prefix=f"{id(module)}").items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for module in frozen for p in module.parameters())
    free = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    assert free  # the twin: behind the prefix it follows the batch
    assert all(m.running_mean is not None and m.running_mean.abs().max() > 0 for m in free)
    assert network.eval().train().training


def test_more_frozen_blocks_than_the_trunk_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 to 13"):
        tiny("vgg16", seed=0).freeze(14)


def test_weights_start_at_the_variance_their_non_linearity_needs() -> None:
    for backbone, gain in (("tcdcn", 1.0), ("tcdcn_unshared", 1.0), ("tcdcn_relu", 2.0), ("vgg11", 2.0)):
        network = NetworkSpec(backbone=backbone, width=0.5, input_px=40)
        built = build_network(network, model_spec(network, OUTPUTS))
        layer = next(m for m in reversed(list(built.backbone.modules())) if isinstance(m, nn.Linear | nn.Conv2d))
        fan_in = layer.weight[0].numel()
        # The variance of n normal draws has a deviation of sqrt(2/n) of itself; five of them.
        tolerance = 5 * (2 / layer.weight.numel()) ** 0.5
        assert float(layer.weight.detach().var()) * fan_in == pytest.approx(gain, rel=tolerance)
        assert float(layer.weight.detach().var()) * fan_in != pytest.approx(3.0 - gain, rel=tolerance)  # the twin
