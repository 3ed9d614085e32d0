"""The integer grid against plain loops over Python integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeface.errors import ModelError, UnsupportedError
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import INPUT, Graph, Node
from quantize.grid import (
    Quantized,
    activation_grid,
    coarse,
    dequantize,
    grid_range,
    simulate,
    simulate_nodes,
    snap,
    weight_scales,
)
from quantize.rounding import Kernels

Pictures = Callable[[int, int], NDArray[np.uint8]]
Snapped = Callable[[Graph], FakeQuantNetwork]
FAMILIES: tuple[Kernels, ...] = (
    *("xnnpack", "tflite-builtin", "tflite-builtin-arm64", "tflite-builtin-ref"),
    *("openvino", "coreml"),
)


# The rounding rules once more, one number at a time.


def half_even_in_float32(acc: int, multiplier: float) -> int:
    return int(np.rint(np.float32(acc) * np.float32(multiplier)))


def fixed_point(multiplier: float) -> tuple[int, int]:
    """Significand with 31 bits, and exponent."""
    fraction, exponent = math.frexp(multiplier)
    significand = math.floor(fraction * 2**31 + 0.5)
    return (significand // 2, exponent + 1) if significand == 2**31 else (significand, exponent)


def rounded_once(acc: int, multiplier: float) -> int:
    significand, exponent = fixed_point(multiplier)
    return math.floor(Fraction(acc * significand, 2 ** (31 - exponent)) + Fraction(1, 2))


def rounded_first(acc: int, multiplier: float) -> Fraction:
    """The product after the first of two roundings, ties upwards; what is left is a division by a power of two."""
    significand, exponent = fixed_point(multiplier)
    high = math.floor(Fraction((acc << max(exponent, 0)) * significand, 2**31) + Fraction(1, 2))
    return Fraction(high, 2 ** max(-exponent, 0))


def rounded_twice(acc: int, multiplier: float) -> int:
    quotient = rounded_first(acc, multiplier)
    away = math.floor(abs(quotient) + Fraction(1, 2))
    return away if quotient >= 0 else -away


def rounded_twice_up(acc: int, multiplier: float) -> int:
    return math.floor(rounded_first(acc, multiplier) + Fraction(1, 2))


def float32_of(value: Fraction) -> np.float32:
    """The nearest float32, by way of float64 as the rule computes it."""
    return np.float32(float(value))


ROUNDING = {
    "xnnpack": {"conv2d": half_even_in_float32, "linear": half_even_in_float32, "mean": half_even_in_float32},
    "coreml": {"conv2d": half_even_in_float32, "linear": half_even_in_float32, "mean": half_even_in_float32},
    "openvino": {"conv2d": half_even_in_float32, "linear": half_even_in_float32, "mean": half_even_in_float32},
    "tflite-builtin": {"conv2d": rounded_twice_up, "linear": rounded_twice_up, "mean": rounded_twice},
    "tflite-builtin-arm64": {"conv2d": rounded_once, "linear": rounded_once, "mean": rounded_twice},
    "tflite-builtin-ref": {"conv2d": rounded_twice, "linear": rounded_once, "mean": rounded_twice},
}


def added(family: str, a: int, b: int, a_scale: float, b_scale: float, out_scale: float) -> int:
    if family == "xnnpack":
        ratios = [np.float32(a_scale) / np.float32(out_scale), np.float32(b_scale) / np.float32(out_scale)]
        shift = 20 - math.floor(math.log2(float(max(ratios))))
        first, second = (round(float(ratio) * 2**shift) for ratio in ratios)
        return math.floor(Fraction(a * first + b * second, 2**shift) + Fraction(1, 2))
    if family == "openvino":
        ratios = [np.float32(a_scale) / np.float32(out_scale), np.float32(b_scale) / np.float32(out_scale)]
        second_term = Fraction(float(np.float32(b) * ratios[1]))
        return int(np.rint(float32_of(a * Fraction(float(ratios[0])) + second_term)))
    if family == "coreml":
        ratios = [np.float32(a_scale) / np.float32(out_scale), np.float32(b_scale) / np.float32(out_scale)]
        return int(np.rint(np.float32(a) * ratios[0] + np.float32(b) * ratios[1]))
    common = 2.0 * max(a_scale, b_scale)
    total = rounded_twice(a << 20, a_scale / common) + rounded_twice(b << 20, b_scale / common)
    return rounded_twice(total, common / (2**20 * out_scale))


def by_loops(quantized: Quantized, node: Node, inputs: list[NDArray[np.int8]], family: str) -> NDArray[np.int8]:
    """One node of one sample, cell by cell."""
    x = inputs[0].tolist()
    scale_in, zero_in = quantized.activations[node.inputs[0]]
    scale_out, zero_out = quantized.activations[node.name]
    out = np.zeros(node.shape, np.int8)

    def clamped(value: int) -> int:
        return min(127, max(-128, zero_out if node.relu else -128, value + zero_out))

    def rounded(acc: int, channel: int) -> int:
        weight_scale = quantized.weight_scales[node.name][channel]
        if family in ("xnnpack", "openvino", "coreml"):
            multiplier = float(np.float32(scale_in) * weight_scale / np.float32(scale_out))
        else:
            multiplier = scale_in * float(weight_scale) / scale_out
        channels, *sides = node.shape
        if family == "tflite-builtin-arm64" and node.op != "mean" and channels >= 4 and math.prod(sides) == 1:
            return rounded_twice_up(acc, multiplier)  # a matrix times one vector
        return ROUNDING[family][node.op](acc, multiplier)

    if node.op == "conv2d":
        weight, bias = quantized.weights[node.name].tolist(), quantized.biases[node.name].tolist()
        height, width = inputs[0].shape[1:]
        top, _, left, _ = node.padding
        for c, i, j in itertools.product(*map(range, node.shape)):
            acc = bias[c]
            for k, u, v in itertools.product(range(len(x)), range(node.kernel[0]), range(node.kernel[1])):
                row, column = i * node.stride[0] + u - top, j * node.stride[1] + v - left
                if 0 <= row < height and 0 <= column < width:
                    acc += (x[k][row][column] - zero_in) * weight[c][k][u][v]
            out[c, i, j] = clamped(rounded(acc, c))
    elif node.op == "linear":
        weight, bias = quantized.weights[node.name].tolist(), quantized.biases[node.name].tolist()
        for c in range(node.shape[0]):
            acc = bias[c] + sum((value - zero_in) * w for value, w in zip(x, weight[c], strict=True))
            out[c] = clamped(rounded(acc, c))
    elif node.op == "max_pool":
        for c, i, j in itertools.product(*map(range, node.shape)):
            rows = range(i * node.stride[0], i * node.stride[0] + node.kernel[0])
            columns = range(j * node.stride[1], j * node.stride[1] + node.kernel[1])
            out[c, i, j] = max(x[c][row][column] for row in rows for column in columns)
    elif node.op == "mfm":
        for c, i, j in itertools.product(*map(range, node.shape)):
            out[c, i, j] = max(x[c][i][j], x[c + node.shape[0]][i][j])
    elif node.op == "mean":
        cells = inputs[0].shape[1] * inputs[0].shape[2]
        for c in range(node.shape[0]):
            acc = sum(value - zero_in for row in x[c] for value in row)
            if family in ("xnnpack", "openvino", "coreml"):
                share = float(np.float32(scale_in) / np.float32(scale_out) / np.float32(cells))
            else:
                share = scale_in / scale_out / cells
            out[c] = clamped(ROUNDING[family]["mean"](acc, share))
    elif node.op == "add":
        y = inputs[1].tolist()
        scale_b, zero_b = quantized.activations[node.inputs[1]]
        for c, i, j in itertools.product(*map(range, node.shape)):
            a, b = x[c][i][j] - zero_in, y[c][i][j] - zero_b
            out[c, i, j] = clamped(added(family, a, b, scale_in, scale_b, scale_out))
    else:
        out[:] = [x[c][i][j] for c, i, j in itertools.product(*map(range, inputs[0].shape))]
    return out


@pytest.fixture
def quantized(patchwork_graph: Graph, snapped: Snapped) -> Quantized:
    return snapped(patchwork_graph).quantized()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_is_what_plain_loops_compute(family: Kernels, quantized: Quantized, pictures: Pictures) -> None:
    values = simulate_nodes(quantized, pictures(2, 16), kernels=family)
    for node in quantized.graph.nodes:
        for sample in range(2):
            expected = by_loops(quantized, node, [values[name][sample] for name in node.inputs], family)
            assert np.array_equal(values[node.name][sample], expected), node


def changed_weight(quantized: Quantized, layer: str) -> Quantized:
    """One weight one step lower."""
    weight = quantized.weights[layer].copy()
    index = int(np.argmax(weight))
    weight.reshape(-1)[index] -= 1
    return replace(quantized, weights={**quantized.weights, layer: weight})


def shifted_zero_point(quantized: Quantized, name: str) -> Quantized:
    scale, zero_point = quantized.activations[name]
    return replace(quantized, activations={**quantized.activations, name: (scale, zero_point + 1)})


@pytest.mark.parametrize("layer", ["stem_0", "left_0", "maxout_0", "features_0", "choice"])
def test_one_weight_off_by_one_step_is_seen_twin(layer: str, quantized: Quantized, pictures: Pictures) -> None:
    # A step of one weight moves a sum by up to 255, a fraction of an output step: some of 32 pictures show it.
    right = simulate_nodes(quantized, pictures(32, 16))
    wrong = simulate_nodes(changed_weight(quantized, layer), pictures(32, 16))
    assert not np.array_equal(right[layer], wrong[layer])


@pytest.mark.parametrize("name", ["stem_0", "add", "maxout_0", "mean", "points"])
def test_one_zero_point_off_by_one_is_seen_twin(name: str, quantized: Quantized, pictures: Pictures) -> None:
    right = simulate_nodes(quantized, pictures(2, 16))
    wrong = simulate_nodes(shifted_zero_point(quantized, name), pictures(2, 16))
    assert not np.array_equal(right[name], wrong[name])


def test_kernel_families_round_differently_twin(quantized: Quantized, pictures: Pictures) -> None:
    batch = pictures(8, 16)
    by_family = {family: simulate_nodes(quantized, batch, kernels=family) for family in FAMILIES}
    assert not np.array_equal(by_family["xnnpack"]["stem_0"], by_family["tflite-builtin"]["stem_0"])
    assert not np.array_equal(by_family["xnnpack"]["add"], by_family["tflite-builtin"]["add"])
    # These two part only where a sum is negative, so not under a ReLU.
    assert np.array_equal(by_family["tflite-builtin"]["stem_0"], by_family["tflite-builtin-ref"]["stem_0"])
    assert not np.array_equal(by_family["tflite-builtin"]["left_0"], by_family["tflite-builtin-ref"]["left_0"])
    # One rounding instead of two, but for a matrix times one vector of four or more.
    assert not np.array_equal(by_family["tflite-builtin"]["left_0"], by_family["tflite-builtin-arm64"]["left_0"])
    # These differ in the addition alone, and in a layer only next to a tie, by the last bit of float32.
    assert np.array_equal(by_family["xnnpack"]["left_0"], by_family["openvino"]["left_0"])


@pytest.mark.parametrize(
    ("a", "b", "a_scale", "b_scale", "out_scale", "expected"),
    [
        # Measured in OpenVINO: -118·0.43066... rounded before the sum makes a tie of what the fused product does not.
        (-118, 56, 0.05250740051269531, 0.09213638305664062, 0.12191009521484375, -9),
        (118, -56, 0.05250740051269531, 0.09213638305664062, 0.12191009521484375, 9),
        (103, 103, 0.061710357666015625, 0.09849929809570312, 0.1304473876953125, 127),
        (-66, 15, 0.021462440490722656, 0.07535171508789062, 0.06361007690429688, -5),
    ],
)
def test_openvino_adds_with_one_fused_product(
    a: int, b: int, a_scale: float, b_scale: float, out_scale: float, expected: int
) -> None:
    from quantize.rounding import FAMILIES as RULES

    found = RULES["openvino"].add(np.array([a]), np.array([b]), a_scale, b_scale, out_scale)
    assert found.tolist() == [expected] == [added("openvino", a, b, a_scale, b_scale, out_scale)]
    # The twin: both products rounded, as in Core ML's file, a tie which goes to even.
    terms = [np.float32(x) * (np.float32(scale) / np.float32(out_scale)) for x, scale in ((a, a_scale), (b, b_scale))]
    other = int(np.rint(terms[0] + terms[1]))
    assert other != expected
    assert RULES["coreml"].add(np.array([a]), np.array([b]), a_scale, b_scale, out_scale).tolist() == [other]


@pytest.mark.parametrize(
    ("rule", "acc", "multiplier", "expected"),
    [
        (half_even_in_float32, 5, 0.5, 2),  # 2.5 to even
        (half_even_in_float32, 7, 0.5, 4),  # 3.5 to even
        (rounded_once, 5, 0.5, 3),  # half up
        (rounded_once, -5, 0.5, -2),
        (rounded_twice, 5, 0.25, 2),  # 1.25: first 2.5 to 3, then 1.5 to 2
        (rounded_twice, 6, 0.25, 2),  # 1.5
        (rounded_twice, -6, 0.25, -2),
        (rounded_twice_up, -6, 0.25, -1),
        (rounded_once, -6, 0.25, -1),  # the same number under the other rule
        (half_even_in_float32, 2**24 + 1, 1.0, 2**24),  # acc itself is rounded to float32
    ],
)
def test_ties_fall_as_each_rule_says(
    rule: Callable[[int, float], int], acc: int, multiplier: float, expected: int
) -> None:
    # By hand; the vectorised rules are tied to these scalar ones by the loops above.
    assert rule(acc, multiplier) == expected


def test_vectorised_rules_equal_the_scalar_ones_on_random_sums() -> None:
    from quantize.rounding import _fixed_once, _fixed_twice, _fixed_twice_up, _float32

    generator = np.random.default_rng(0)
    acc = np.concatenate([generator.integers(-(2**22), 2**22, 2000), np.arange(-64, 64)])
    multipliers = np.concatenate([2.0 ** generator.uniform(-20, 1, 2000), np.full(128, 0.25)])
    pairs = (
        (_float32, half_even_in_float32),
        (_fixed_once, rounded_once),
        (_fixed_twice, rounded_twice),
        (_fixed_twice_up, rounded_twice_up),
    )
    for vectorised, scalar in pairs:
        found = vectorised(acc, multipliers)
        expected = [scalar(int(a), float(m)) for a, m in zip(acc, multipliers, strict=True)]
        assert found.tolist() == expected
        assert vectorised(acc + 64, multipliers).tolist() != expected  # the twin


def test_scales_have_sixteen_bits_and_stay() -> None:
    scales = 2.0 ** torch.linspace(-16, 4, 4001, dtype=torch.float64).float()
    rounded = coarse(scales)
    significand = torch.frexp(rounded.double())[0] * 2**16
    assert torch.equal(significand, significand.round())
    assert torch.equal(coarse(rounded), rounded)
    # Half of the last kept place: 2^-16 of the value.
    assert float(((rounded - scales).abs() / scales).max()) <= 2.0**-16


def test_multiples_of_a_scale_are_exact_in_float32() -> None:
    scales = coarse(2.0 ** torch.linspace(-16, 4, 401))
    steps = torch.arange(-255, 256).float()
    products = scales[:, None] * steps
    assert torch.equal(products.double(), scales.double()[:, None] * steps.double())


def test_multiples_of_an_uncut_scale_are_not_exact_twin() -> None:
    scales = 2.0 ** torch.linspace(-16.01, 4, 401)
    steps = torch.arange(-255, 256).float()
    assert not torch.equal((scales[:, None] * steps).double(), scales.double()[:, None] * steps.double())


def test_a_grids_range_gives_back_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = -torch.rand(2000, generator=generator), torch.rand(2000, generator=generator) * 9
    scale, zero_point = activation_grid(low, high)
    again = activation_grid(*grid_range(scale, zero_point))
    assert torch.equal(again[0], scale)
    assert torch.equal(again[1], zero_point)
    # And so it does for a tool-kit that divides in float32 or in float64.
    least, greatest = (t.numpy() for t in grid_range(scale, zero_point))
    for dtype in (np.float32, np.float64):
        span = (greatest.astype(dtype) - least.astype(dtype)) / dtype(255)
        assert np.array_equal(span.astype(np.float32), scale.numpy())
        assert np.array_equal(np.rint(-128 - least / span), zero_point.numpy())


def test_zero_is_on_every_grid_and_a_relu_range_starts_at_it() -> None:
    scale, zero_point = activation_grid(torch.tensor([0.0, -1.0, 0.0]), torch.tensor([3.0, 0.0, 0.0]))
    assert zero_point.tolist() == [-128, 127, -128]
    assert float(scale[2]) > 0.0  # a dead tensor keeps a usable scale
    low, high = grid_range(scale, zero_point)
    assert bool((low <= 0).all())
    assert bool((high >= 0).all())


def test_weight_scales_use_the_whole_range_of_each_channel() -> None:
    weight = torch.tensor([[0.5, -1.27], [0.0254, 0.01]])
    scales = weight_scales(weight, torch.zeros(2), torch.tensor(1 / 64))
    # coarse() moves a scale by up to 2^-16 of it.
    assert scales.tolist() == pytest.approx([0.01, 0.0002], rel=2.0**-16)
    assert torch.round(weight.abs().amax(1) / scales).tolist() == [127.0, 127.0]


def tiny_graph(weight: torch.Tensor, bias: torch.Tensor) -> Graph:
    """The mean of a 4x4 picture's channels through one linear layer."""
    mean = Node(name="mean", op="mean", inputs=(INPUT,), shape=(3,))
    head = Node(name="head", op="linear", inputs=("mean",), shape=(len(bias),))
    return Graph(
        input_px=4,
        nodes=(mean, head),
        outputs={"answer": "head"},
        weights={"head": weight},
        biases={"head": bias},
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
    )


def test_a_dead_channel_keeps_its_bias_inside_int32() -> None:
    graph = tiny_graph(torch.zeros(1, 3), torch.tensor([1.5]))
    low, high = torch.tensor([-2.0, -1.0]), torch.tensor([2.0, 2.0])
    scale, zero_point = activation_grid(low, high)
    grids = dict(zip(("mean", "head"), zip(scale.tolist(), zero_point.tolist(), strict=True), strict=True))
    quantized = snap(graph, activations={INPUT: (1 / 64, 0), **grids})
    assert 0 < int(quantized.biases["head"][0]) <= 2**30 * (1 + 2.0**-16)  # coarse() may lower the scale by 2^-16
    answer = dequantize(quantized, simulate(quantized, np.zeros((1, 4, 4, 3), np.uint8)))["answer"]
    assert float(answer[0, 0]) == pytest.approx(1.5, abs=grids["head"][0] / 2)  # half a step of the output


def test_snapping_twice_changes_nothing(quantized: Quantized) -> None:
    again = snap(quantized.graph, activations=quantized.activations)
    for name in quantized.weights:
        assert np.array_equal(again.weights[name], quantized.weights[name])
        assert np.array_equal(again.biases[name], quantized.biases[name])
        assert np.array_equal(again.weight_scales[name], quantized.weight_scales[name])
        assert torch.equal(again.graph.weights[name], quantized.graph.weights[name])


def test_snapping_moves_a_weight_by_at_most_half_a_step(patchwork_graph: Graph, quantized: Quantized) -> None:
    for name, weight in patchwork_graph.weights.items():
        moved = (quantized.graph.weights[name] - weight).abs().flatten(1).amax(1).numpy()
        # 127·2^-16 more: the largest weight of a channel follows its rounded scale.
        assert (moved <= quantized.weight_scales[name] * (0.5 + 127 * 2.0**-16)).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    graph = tiny_graph(torch.tensor([[1.0, float("nan"), 0.0]]), torch.zeros(1))
    with pytest.raises(ModelError, match="head"):
        snap(graph, activations={INPUT: (1 / 64, 0), "mean": (1 / 64, 0), "head": (1 / 64, 0)})


def test_another_standardisation_is_refused(quantized: Quantized) -> None:
    graph = replace(quantized.graph, mean=(123.675, 116.28, 103.53))
    with pytest.raises(UnsupportedError, match=r"mean 128 and std 64"):
        snap(graph, activations=quantized.activations)


def test_a_sum_beyond_int32_is_refused(quantized: Quantized) -> None:
    biases = {**quantized.biases, "stem_0": np.full(8, 2**31 - 1, np.int32)}
    with pytest.raises(ModelError, match="stem_0"):
        simulate(replace(quantized, biases=biases), np.full((1, 16, 16, 3), 255, np.uint8))


def test_pictures_of_another_size_or_type_are_refused(quantized: Quantized, pictures: Pictures) -> None:
    with pytest.raises(ModelError, match=r"\(B, 16, 16, 3\)"):
        simulate(quantized, pictures(1, 20))
    with pytest.raises(ModelError, match="uint8"):
        simulate(quantized, pictures(1, 16).astype(np.float32))


def test_an_unknown_kernel_family_is_refused(quantized: Quantized, pictures: Pictures) -> None:
    with pytest.raises(UnsupportedError, match="tflite-builtin-ref"):
        simulate(quantized, pictures(1, 16), kernels="neon")  # type: ignore[arg-type]


def test_outputs_come_in_the_shape_their_users_know(quantized: Quantized, pictures: Pictures) -> None:
    outputs = simulate(quantized, pictures(3, 16))
    assert {name: codes.shape for name, codes in outputs.items()} == {"points": (3, 5, 2), "choice": (3, 2)}
    assert all(codes.dtype == np.int8 for codes in outputs.values())
