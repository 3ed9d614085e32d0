"""The executor of Core ML programs: each operation against torch, broken packages, both arithmetics, the students."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgeface.errors import EdgefaceError, ModelError, UnsupportedError
from edgeface.specs import ModelSpec, NetworkSpec
from quantize.graph import trace
from quantize.grid import dequantize, simulate, simulate_nodes
from targets import coreml
from targets.mil import Executor, MilRunner, execute, macs, read_program

from .conftest import quantize_network, random_network, random_pictures, spec_of

SHAPE = (1, 4, 8, 6)
Build = Callable[[Any, Any], Any]

# Weights of every case; numbers that are no round binary fractions, so that precision shows.
DRAWN = np.random.default_rng(7)
KERNEL = DRAWN.normal(size=(6, 4, 3, 3)).astype(np.float32)
GROUPED = DRAWN.normal(size=(8, 2, 3, 3)).astype(np.float32)
DEPTHWISE = DRAWN.normal(size=(4, 1, 3, 3)).astype(np.float32)
EVEN = DRAWN.normal(size=(2, 4, 2, 2)).astype(np.float32)
BIAS = DRAWN.normal(size=8).astype(np.float32)
MATRIX = DRAWN.normal(size=(5, 6)).astype(np.float32)
CHANNELS = DRAWN.uniform(0.2, 1.0, (4, 4)).astype(np.float32)  # four vectors over the channels
CODES = DRAWN.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8)
SCALES = DRAWN.uniform(0.001, 0.01, 6).astype(np.float32)


def saved(
    path: Path,
    build: Build,
    *,
    shape: tuple[int, ...] = SHAPE,
    ios: int = 17,
    image: Any = None,
) -> Path:
    """A package of what `build` (MIL builder, input) makes: one value, or several by name."""
    with coreml._quiet():
        tools = coreml._import("coremltools")
        mil = coreml._import("coremltools.converters.mil.mil")
        mb = coreml._import("coremltools.converters.mil").Builder
        target = getattr(tools.target, f"iOS{ios}")
        program = mil.Program()
        placeholder = mb.placeholder(shape, dtype=mil.types.fp32)
        with mil.Function({"image": placeholder}, opset_version=target) as function:
            made = build(mb, function.inputs["image"])
            made = made if isinstance(made, list | tuple) else [made]
            # An output must not be an input, and carries a name of its own.
            function.set_outputs([mb.identity(x=value, name=f"out{place}") for place, value in enumerate(made)])
        program.add_function("main", function)
        described = tools.TensorType(name="image", shape=shape, dtype=np.float32)
        tools.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            inputs=[described if image is None else image(tools)],
            minimum_deployment_target=target,
            compute_precision=tools.precision.FLOAT32,
            pass_pipeline=tools.PassPipeline.EMPTY,
            skip_model_load=True,
        ).save(str(path))
    return path


def drawn(count: int, shape: tuple[int, ...] = SHAPE, *, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(size=(count, *shape[1:])).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation: as MIL builds it, and as torch computes it in float64 from (B, 4, 8, 6)."""

    build: Build
    expected: Callable[[torch.Tensor], torch.Tensor]
    ios: int = 17


def _t(array: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(array).double()


def _conv(x: torch.Tensor, pads: tuple[int, int, int, int], kernel: np.ndarray = KERNEL, **options: Any) -> Any:  # type: ignore[type-arg]
    return functional.conv2d(functional.pad(x, pads), _t(kernel), **options)


def _codes(x: torch.Tensor, *, scale: float, zero: int) -> torch.Tensor:
    codes = np.clip(np.rint(x.numpy().astype(np.float32) / np.float32(scale)) + zero, -128, 127)
    return (torch.from_numpy(codes) - zero) * scale


def _through_codes(mb: Any, x: Any) -> Any:
    codes = mb.quantize(input=x, scale=np.float32(0.03), zero_point=np.int8(-5), output_dtype="int8")
    return mb.dequantize(input=codes, scale=np.float32(0.03), zero_point=np.int8(-5))


def _by_channel(mb: Any, x: Any) -> Any:
    scale = (CHANNELS[0] / 50).astype(np.float32)
    codes = mb.quantize(input=x, scale=scale, output_dtype="uint8", zero_point=np.full(4, 100, np.uint8), axis=1)
    return mb.dequantize(input=codes, scale=scale, zero_point=np.full(4, 100, np.uint8), axis=1)


def _by_channel_expected(x: torch.Tensor) -> torch.Tensor:
    scale = (CHANNELS[0] / 50).astype(np.float32).reshape(1, 4, 1, 1)
    codes = np.clip(np.rint(x.numpy().astype(np.float32) / scale) + 100, 0, 255)
    return torch.from_numpy((codes - 100) * scale)


def _packed(indices: np.ndarray, bits: int) -> np.ndarray:  # type: ignore[type-arg]
    """Bit fields by the rule in MIL's documentation, written out one by one."""
    out = np.zeros(-(-indices.size * bits // 8), np.uint8)
    for place, index in enumerate(indices.reshape(-1).tolist()):
        for bit in range(bits):
            if index >> bit & 1:
                out[(place * bits + bit) // 8] |= 1 << ((place * bits + bit) % 8)
    return out


LUT = np.sort(DRAWN.normal(size=64)).astype(np.float32)
INDICES = DRAWN.integers(0, 64, (6, 4, 3, 3))
TABLES = DRAWN.normal(size=(3, 1, 1, 1, 16, 1)).astype(np.float32)
NIBBLES = DRAWN.integers(0, 16, (6, 4, 3, 3))


def _lut18(mb: Any, x: Any) -> Any:
    types = coreml._import("coremltools.converters.mil.mil").types
    weight = mb.constexpr_lut_to_dense(indices=NIBBLES.astype(types.np_uint4_dtype), lut=TABLES)
    return mb.conv(x=x, weight=weight, pad_type="valid")


def _lut18_dense() -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([TABLES[channel // 2].reshape(-1)[NIBBLES[channel]] for channel in range(6)])


CASES: dict[str, Case] = {
    "conv valid": Case(
        build=lambda mb, x: mb.conv(x=x, weight=KERNEL, bias=BIAS[:6], pad_type="valid"),
        expected=lambda x: _conv(x, (0, 0, 0, 0), bias=_t(BIAS[:6])),
    ),
    "conv custom": Case(
        build=lambda mb, x: mb.conv(x=x, weight=KERNEL, pad_type="custom", pad=(0, 1, 2, 3), strides=(2, 1)),
        expected=lambda x: _conv(x, (2, 3, 0, 1), stride=(2, 1)),
    ),
    "conv same": Case(
        build=lambda mb, x: mb.conv(x=x, weight=KERNEL, pad_type="same", strides=(2, 2)),
        expected=lambda x: _conv(x, (0, 1, 0, 1), stride=2),
    ),
    "conv same lower": Case(
        build=lambda mb, x: mb.conv(x=x, weight=KERNEL, pad_type="same_lower", strides=(2, 2)),
        expected=lambda x: _conv(x, (1, 0, 1, 0), stride=2),
    ),
    "conv same, even": Case(
        build=lambda mb, x: mb.conv(x=x, weight=EVEN, pad_type="same"),
        expected=lambda x: _conv(x, (0, 1, 0, 1), EVEN),
    ),
    "conv dilated": Case(
        build=lambda mb, x: mb.conv(x=x, weight=KERNEL, pad_type="same", dilations=(2, 1)),
        expected=lambda x: _conv(x, (1, 1, 2, 2), dilation=(2, 1)),
    ),
    "conv grouped": Case(
        build=lambda mb, x: mb.conv(x=x, weight=GROUPED, bias=BIAS, groups=2, pad_type="valid"),
        expected=lambda x: _conv(x, (0, 0, 0, 0), GROUPED, groups=2, bias=_t(BIAS)),
    ),
    "conv depthwise": Case(
        build=lambda mb, x: mb.conv(x=x, weight=DEPTHWISE, groups=4, pad_type="custom", pad=(1, 1, 1, 1)),
        expected=lambda x: _conv(x, (1, 1, 1, 1), DEPTHWISE, groups=4),
    ),
    "linear": Case(
        build=lambda mb, x: mb.linear(x=x, weight=MATRIX, bias=BIAS[:5]),
        expected=lambda x: functional.linear(x, _t(MATRIX), _t(BIAS[:5])),
    ),
    "matmul": Case(
        build=lambda mb, x: mb.matmul(x=x, y=MATRIX, transpose_y=True),
        expected=lambda x: x @ _t(MATRIX).T,
    ),
    "matmul of both": Case(
        build=lambda mb, x: mb.matmul(x=x, y=mb.tanh(x=x), transpose_x=True),
        expected=lambda x: x.mT @ torch.tanh(x),
    ),
    "max_pool": Case(
        build=lambda mb, x: mb.max_pool(x=x, kernel_sizes=(3, 2), strides=(2, 1), pad_type="custom", pad=(1, 0, 0, 1)),
        expected=lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 1, 0), value=-np.inf), (3, 2), (2, 1)),
    ),
    "max_pool same": Case(
        build=lambda mb, x: mb.max_pool(x=x, kernel_sizes=(3, 3), strides=(2, 2), pad_type="same"),
        expected=lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-np.inf), 3, 2),
    ),
    "max_pool ceil": Case(
        build=lambda mb, x: mb.max_pool(x=x, kernel_sizes=(3, 3), strides=(2, 2), pad_type="valid", ceil_mode=True),
        expected=lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
    ),
    "avg_pool": Case(
        build=lambda mb, x: mb.avg_pool(x=x, kernel_sizes=(3, 2), strides=(2, 2), pad_type="custom", pad=(1, 1, 1, 1)),
        expected=lambda x: functional.avg_pool2d(x, (3, 2), 2, padding=(1, 1)),
    ),
    "avg_pool inside": Case(
        build=lambda mb, x: mb.avg_pool(
            x=x,
            kernel_sizes=(3, 2),
            strides=(2, 2),
            pad_type="custom",
            pad=(1, 1, 1, 1),
            exclude_padding_from_average=True,
        ),
        expected=lambda x: functional.avg_pool2d(x, (3, 2), 2, padding=(1, 1), count_include_pad=False),
    ),
    "avg_pool ceil": Case(
        build=lambda mb, x: mb.avg_pool(x=x, kernel_sizes=(3, 3), strides=(2, 2), pad_type="valid", ceil_mode=True),
        expected=lambda x: functional.avg_pool2d(x, 3, 2, ceil_mode=True),
    ),
    "relu": Case(build=lambda mb, x: mb.relu(x=x), expected=torch.relu),
    "relu6": Case(
        build=lambda mb, x: mb.relu6(x=mb.mul(x=x, y=np.float32(7.0))), expected=lambda x: functional.relu6(x * 7)
    ),
    "clip": Case(
        build=lambda mb, x: mb.clip(x=x, alpha=np.float32(-0.5), beta=np.float32(0.75)),
        expected=lambda x: x.clamp(-0.5, 0.75),
    ),
    "sigmoid": Case(build=lambda mb, x: mb.sigmoid(x=x), expected=torch.sigmoid),
    "tanh": Case(build=lambda mb, x: mb.tanh(x=x), expected=torch.tanh),
    "abs": Case(build=lambda mb, x: mb.abs(x=x), expected=torch.abs),
    "softmax": Case(build=lambda mb, x: mb.softmax(x=x, axis=1), expected=lambda x: x.softmax(1)),
    "prelu": Case(
        build=lambda mb, x: mb.prelu(x=x, alpha=CHANNELS[0]), expected=lambda x: functional.prelu(x, _t(CHANNELS[0]))
    ),
    "leaky_relu": Case(
        build=lambda mb, x: mb.leaky_relu(x=x, alpha=np.float32(0.25)),
        expected=lambda x: functional.leaky_relu(x, 0.25),
    ),
    "add": Case(
        build=lambda mb, x: mb.add(x=x, y=CHANNELS[0].reshape(1, 4, 1, 1)),
        expected=lambda x: x + _t(CHANNELS[0]).reshape(4, 1, 1),
    ),
    "sub": Case(build=lambda mb, x: mb.sub(x=np.float32(1.5), y=x), expected=lambda x: 1.5 - x),
    "mul": Case(
        build=lambda mb, x: mb.mul(x=x, y=CHANNELS[0].reshape(4, 1, 1)),
        expected=lambda x: x * _t(CHANNELS[0]).reshape(4, 1, 1),
    ),
    "real_div": Case(build=lambda mb, x: mb.real_div(x=x, y=np.float32(3.0)), expected=lambda x: x / 3),
    "maximum": Case(
        build=lambda mb, x: mb.maximum(x=x, y=mb.mul(x=x, y=np.float32(-0.5))),
        expected=lambda x: torch.maximum(x, -0.5 * x),
    ),
    "minimum": Case(
        build=lambda mb, x: mb.minimum(x=x, y=np.float32(0.1)), expected=lambda x: x.clamp(max=float(np.float32(0.1)))
    ),
    "reduce_mean": Case(
        build=lambda mb, x: mb.reduce_mean(x=x, axes=(2, 3), keep_dims=False), expected=lambda x: x.mean((2, 3))
    ),
    "reduce_sum": Case(
        build=lambda mb, x: mb.reduce_sum(x=x, axes=(-1,), keep_dims=True),
        expected=lambda x: x.sum(-1, keepdim=True),
    ),
    "reshape": Case(build=lambda mb, x: mb.reshape(x=x, shape=(1, -1, 6)), expected=lambda x: x.reshape(len(x), 32, 6)),
    "transpose": Case(
        build=lambda mb, x: mb.transpose(x=x, perm=(0, 3, 1, 2)), expected=lambda x: x.permute(0, 3, 1, 2)
    ),
    "concat": Case(
        build=lambda mb, x: mb.concat(values=(x, CHANNELS.reshape(1, 2, 8, 1).repeat(6, axis=3), x), axis=1),
        expected=lambda x: torch.cat(
            [x, _t(CHANNELS.reshape(1, 2, 8, 1).repeat(6, axis=3)).expand(len(x), -1, -1, -1), x], 1
        ),
    ),
    "concat interleaved": Case(
        build=lambda mb, x: mb.concat(values=(x, mb.abs(x=x)), axis=1, interleave=True),
        expected=lambda x: torch.stack([x, x.abs()], 2).reshape(len(x), 8, 8, 6),
    ),
    "split": Case(build=lambda mb, x: mb.split(x=x, num_splits=2, axis=1)[1], expected=lambda x: x[:, 2:]),
    "split by sizes": Case(
        build=lambda mb, x: mb.split(x=x, split_sizes=(3, 1), axis=1)[0], expected=lambda x: x[:, :3]
    ),
    "slice_by_index": Case(
        build=lambda mb, x: mb.slice_by_index(
            x=x,
            begin=(0, 1, 7, 2),
            end=(1, 3, 0, 0),
            stride=(1, 1, -2, 1),
            end_mask=(True, False, False, True),
            squeeze_mask=(False, False, False, False),
        ),
        expected=lambda x: x[:, 1:3].flip(2)[:, :, :7:2, 2:],
    ),
    "slice_by_index to a point": Case(
        build=lambda mb, x: mb.slice_by_index(
            x=x, begin=(0, 1, 0, 0), end=(1, 2, 8, 6), squeeze_mask=(False, True, False, False)
        ),
        expected=lambda x: x[:, 1],
    ),
    "slice_by_size": Case(
        build=lambda mb, x: mb.slice_by_size(x=x, begin=(0, 1, 2, 0), size=(1, 2, -1, 3)),
        expected=lambda x: x[:, 1:3, 2:, :3],
    ),
    "expand and squeeze": Case(
        build=lambda mb, x: mb.squeeze(x=mb.expand_dims(x=mb.reshape(x=x, shape=(1, 4, 48)), axes=(1, 4)), axes=(4,)),
        expected=lambda x: x.reshape(len(x), 1, 4, 48),
    ),
    "cast": Case(
        build=lambda mb, x: mb.cast(x=mb.cast(x=mb.mul(x=x, y=np.float32(3.0)), dtype="int32"), dtype="fp32"),
        expected=lambda x: torch.trunc((x * 3).float()).double(),
    ),
    "quantize": Case(build=_through_codes, expected=lambda x: _codes(x, scale=0.03, zero=-5)),
    "quantize by channel": Case(build=_by_channel, expected=_by_channel_expected),
    "batch_norm": Case(
        build=lambda mb, x: mb.batch_norm(
            x=x, mean=CHANNELS[0], variance=CHANNELS[1], gamma=CHANNELS[2], beta=CHANNELS[3], epsilon=np.float32(0.01)
        ),
        expected=lambda x: functional.batch_norm(x, *map(_t, CHANNELS), eps=float(np.float32(0.01))),
    ),
    "pad": Case(
        build=lambda mb, x: mb.pad(x=x, pad=(0, 0, 0, 1, 2, 1, 0, 3), mode="constant", constant_val=np.float32(0.5)),
        expected=lambda x: functional.pad(x, (0, 3, 2, 1, 0, 1), value=0.5),
    ),
    "pad by reflection": Case(
        build=lambda mb, x: mb.pad(x=x, pad=(2, 1, 0, 3), mode="reflect"),
        expected=lambda x: functional.pad(x, (0, 3, 2, 1), mode="reflect"),
    ),
    "identity": Case(build=lambda mb, x: mb.identity(x=x), expected=lambda x: x),
    "int8 weights": Case(
        build=lambda mb, x: mb.conv(
            x=x,
            weight=mb.constexpr_affine_dequantize(quantized_data=CODES, zero_point=np.int8(3), scale=SCALES, axis=0),
            pad_type="valid",
        ),
        expected=lambda x: _conv(x, (0, 0, 0, 0), (CODES.astype(np.float32) - 3) * SCALES.reshape(6, 1, 1, 1)),
        ios=16,
    ),
    "palette": Case(
        build=lambda mb, x: mb.conv(
            x=x,
            weight=mb.constexpr_lut_to_dense(
                indices=_packed(INDICES, 6), lut=LUT, shape=np.array(INDICES.shape, np.uint32)
            ),
            pad_type="valid",
        ),
        expected=lambda x: _conv(x, (0, 0, 0, 0), LUT[INDICES]),
        ios=16,
    ),
    "blockwise int8 weights": Case(
        build=lambda mb, x: mb.conv(
            x=x,
            weight=mb.constexpr_blockwise_shift_scale(
                data=CODES, scale=SCALES.reshape(3, 2, 1, 1), offset=np.full((3, 2, 1, 1), 2, np.int8)
            ),
            pad_type="valid",
        ),
        expected=lambda x: _conv(
            x,
            (0, 0, 0, 0),
            (CODES.astype(np.float32) - 2) * SCALES.reshape(3, 2, 1, 1).repeat(2, axis=0).repeat(2, axis=1),
        ),
        ios=18,
    ),
    "palettes by group": Case(build=_lut18, expected=lambda x: _conv(x, (0, 0, 0, 0), _lut18_dense()), ios=18),
}


def computed(path: Path, values: np.ndarray, *, arithmetic: str = "fp32") -> np.ndarray:  # type: ignore[type-arg]
    executor = Executor(read_program(path), arithmetic=arithmetic)  # type: ignore[arg-type]
    found: np.ndarray = executor.run(values)["out0"]  # type: ignore[type-arg]
    return found


@pytest.mark.parametrize("name", CASES)
def test_operation_computes_what_torch_does_and_a_batch_what_each_picture_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = saved(tmp_path / "one.mlpackage", case.build, ios=case.ios)
    values = drawn(3)

    executor = Executor(read_program(path))
    found = executor.run(values)["out0"]

    expected = case.expected(torch.from_numpy(values).double()).numpy()
    assert executor.separate, "these operations take a batch at once"
    assert found.shape == expected.shape
    # Two roundings to float32 of values below 64.
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(found, np.concatenate([executor.run(values[i : i + 1])["out0"] for i in range(3)]))
    # The twin: an input 2 % larger is another result.
    other = case.expected(torch.from_numpy(values).double() * 1.02).numpy()
    assert not np.allclose(found, other, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda mb, x: mb.reduce_sum(x=x, axes=(0, 1), keep_dims=False),
        lambda mb, x: mb.squeeze(x=x),
        lambda mb, x: mb.reshape(x=x, shape=(4, 48)),
        lambda mb, x: mb.softmax(x=mb.transpose(x=x, perm=(1, 0, 2, 3)), axis=0),
        lambda mb, x: mb.concat(values=(x, x), axis=0),
        lambda mb, x: mb.add(x=mb.reduce_sum(x=x, axes=(1,), keep_dims=False), y=x),
    ],
)
def test_program_that_would_mix_pictures_takes_them_one_by_one(build: Build, tmp_path: Path) -> None:
    executor = Executor(read_program(saved(tmp_path / "one.mlpackage", build)))
    values = drawn(3)

    found = executor.run(values)["out0"]

    assert not executor.separate
    np.testing.assert_array_equal(found, np.concatenate([executor.run(values[i : i + 1])["out0"] for i in range(3)]))
    # The twin: pictures in another order give other rows.
    assert not np.array_equal(found, executor.run(values[::-1])["out0"])


def test_values_that_no_picture_changes_are_computed_at_opening(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.mlpackage", lambda mb, x: [mb.relu(x=x), mb.tanh(x=mb.relu(x=CHANNELS))])

    values = Executor(read_program(path)).run(drawn(2))

    np.testing.assert_allclose(values["out1"], np.tanh(CHANNELS)[None].repeat(2, axis=0), rtol=1e-6)


def test_unknown_operation_is_refused_with_its_layer_before_anything_runs(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.mlpackage", lambda mb, x: mb.relu(x=mb.erf(x=x, name="odd_one")))

    with pytest.raises(UnsupportedError, match=r"'erf' of layer 'odd_one'"):
        Executor(read_program(path))


def test_unknown_arithmetic_is_refused(tmp_path: Path) -> None:
    program = read_program(saved(tmp_path / "one.mlpackage", lambda mb, x: mb.relu(x=x)))

    with pytest.raises(UnsupportedError, match="'fp32', 'fp16'"):
        Executor(program, arithmetic="bf16")  # type: ignore[arg-type]


@pytest.mark.parametrize("half", ["add", "mul", "real_div", "maximum"])
def test_fp16_is_torch_in_half_floats_and_fp32_is_not_twin(half: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "one.mlpackage", lambda mb, x: getattr(mb, half)(x=x, y=CHANNELS[0].reshape(4, 1, 1)))
    values = drawn(4)
    function = {"add": torch.add, "mul": torch.mul, "real_div": torch.div, "maximum": torch.maximum}[half]
    expected = function(torch.from_numpy(values).half(), torch.from_numpy(CHANNELS[0].reshape(4, 1, 1)).half())

    found = computed(path, values, arithmetic="fp16")

    np.testing.assert_array_equal(found, expected.float().numpy())
    exact = computed(path, values, arithmetic="fp32")
    assert not np.array_equal(exact, found)
    np.testing.assert_allclose(exact, found, rtol=2.0**-9, atol=2.0**-9)  # three roundings of 2^-11 and less


def test_fp16_sums_in_float32_and_rounds_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.mlpackage", CASES["conv valid"].build)
    values = drawn(2)
    x, kernel, bias = (torch.from_numpy(value).half().double() for value in (values, KERNEL, BIAS[:6]))
    total = functional.conv2d(x, kernel, bias)

    found = torch.from_numpy(computed(path, values, arithmetic="fp16"))

    assert torch.equal(found, found.half().float())
    # Half an ulp of a half float and float32's own error; values that many half-float sums would leave farther off.
    assert ((found - total).abs() <= total.abs() * (2.0**-11 + 2.0**-18) + 1e-5).all()
    assert not torch.equal(found, total.float())


def test_fp32_ignores_declared_half_floats_but_for_constants(tmp_path: Path) -> None:
    def build(mb: Any, x: Any) -> Any:
        half = mb.mul(x=mb.cast(x=x, dtype="fp16"), y=np.float16(0.1))
        return mb.cast(x=half, dtype="fp32")

    path = saved(tmp_path / "one.mlpackage", build)
    values = drawn(2)

    np.testing.assert_array_equal(computed(path, values), values * np.float32(np.float16(0.1)))
    assert not np.array_equal(computed(path, values), values * np.float32(0.1))


def test_sums_are_those_of_float64(tmp_path: Path) -> None:
    """A sum that float32 would lose: 1 beside 2^25, in either order."""
    weight = np.array([[2.0**25, 1.0, -(2.0**25), 1.0, 0.0, 0.0]], np.float32)
    path = saved(tmp_path / "one.mlpackage", lambda mb, x: mb.linear(x=x, weight=weight), shape=(1, 6))

    assert computed(path, np.ones((1, 6), np.float32)).tolist() == [[2.0]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with large constants in its weights file."""
    case = CASES["int8 weights"]
    return saved(tmp_path_factory.mktemp("whole") / "whole.mlpackage", case.build)


def copied(package: Path, folder: Path) -> tuple[Path, Path, Path]:
    """A copy, its protobuf and its weights file."""
    path = folder / package.name
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(package, path)
    (model,) = path.rglob("*.mlmodel")
    (weights,) = path.rglob("weight.bin")
    return path, model, weights


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_weights_cut_short_are_refused(part: float, whole: Path, tmp_path: Path) -> None:
    path, _, weights = copied(whole, tmp_path)
    content = weights.read_bytes().rstrip(b"\0")
    weights.write_bytes(content[: int(len(content) * part)])

    with pytest.raises(ModelError, match=r"whole\.mlpackage: its weights end") as caught:
        read_program(path)
    assert caught.value.do


def test_absent_weights_are_refused(whole: Path, tmp_path: Path) -> None:
    path, _, weights = copied(whole, tmp_path)
    weights.unlink()

    with pytest.raises(ModelError, match=r"weight\.bin cannot be read"):
        read_program(path)


def test_weights_that_hold_something_else_are_refused(whole: Path, tmp_path: Path) -> None:
    path, _, weights = copied(whole, tmp_path)
    content = bytearray(weights.read_bytes())
    place = content.index(b"\xef\xbe\xad\xde")
    content[place + 4] = 2  # another type, where int8 was
    weights.write_bytes(content)

    with pytest.raises(ModelError, match="stored as type 2"):
        read_program(path)

    content[place] = 0
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="does not begin the constant"):
        read_program(path)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_model_cut_short_is_refused(part: float, whole: Path, tmp_path: Path) -> None:
    path, model, _ = copied(whole, tmp_path)
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * part)])

    with pytest.raises(ModelError, match=r"whole\.mlpackage"):
        read_program(path)


def _edited(package: Path, folder: Path, edit: Callable[[Any], None]) -> Path:
    """A copy whose block of operations `edit` changed."""
    path, file, _ = copied(package, folder)
    model = coreml.read_model(path)
    function = model.mlProgram.functions["main"]
    edit(function.block_specializations[function.opset])
    file.write_bytes(model.SerializeToString())
    return path


def test_value_that_nothing_makes_is_refused(whole: Path, tmp_path: Path) -> None:
    def edit(block: Any) -> None:
        place = next(i for i, op in enumerate(block.operations) if op.type == "conv")
        del block.operations[place]

    with pytest.raises(ModelError, match="which nothing before it makes"):
        read_program(_edited(whole, tmp_path, edit))


def test_result_of_another_shape_than_declared_is_refused(whole: Path, tmp_path: Path) -> None:
    def edit(block: Any) -> None:
        conv = next(op for op in block.operations if op.type == "conv")
        conv.outputs[0].type.tensorType.dimensions[2].constant.size = 5

    with pytest.raises(ModelError, match=r"conv of layer .* declared \(2, 6, 5, 4\)"):
        computed(_edited(whole, tmp_path, edit), drawn(2))


def test_weights_outside_the_package_are_refused(whole: Path, tmp_path: Path) -> None:
    def edit(block: Any) -> None:
        for op in block.operations:
            for value in op.attributes.values():
                if value.WhichOneof("value") == "blobFileValue":
                    value.blobFileValue.fileName = "@model_path/../../../outside.bin"

    (tmp_path / "outside.bin").write_bytes(bytes(10_000))
    with pytest.raises(ModelError, match="outside the package"):
        read_program(_edited(whole, tmp_path, edit))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_bytes_end_in_an_error_of_ours_or_a_result(data: st.DataObject, whole: Path, tmp_path: Path) -> None:
    path, model, weights = copied(whole, tmp_path)
    file = data.draw(st.sampled_from([model, weights]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)

    try:
        found = Executor(read_program(path)).run(drawn(1))
    except EdgefaceError:
        return
    assert isinstance(found, dict)


SPEC = ModelSpec(name="one", input_px=8, outputs=spec_of(NetworkSpec(backbone="edge_s", input_px=32)).outputs[1:2])


def _image(tools: Any, *, bgr: bool = False) -> Any:
    layout = tools.colorlayout.BGR if bgr else tools.colorlayout.RGB
    return tools.ImageType(
        name="image", shape=(1, 3, 8, 8), scale=1 / 64.0, bias=[-2.0, -1.5, -1.0], color_layout=layout
    )


@pytest.mark.parametrize("bgr", [False, True])
def test_picture_is_scaled_and_shifted_as_the_package_says(bgr: bool, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "one.mlpackage",
        lambda mb, x: mb.identity(x=x),
        shape=(1, 3, 8, 8),
        image=lambda tools: _image(tools, bgr=bgr),
    )
    batch = random_pictures(3, 8)

    found = execute(path, batch)["out0"]

    ordered = batch[..., ::-1] if bgr else batch
    expected = ordered.transpose(0, 3, 1, 2) / np.float32(64.0) + np.array([-2.0, -1.5, -1.0]).reshape(3, 1, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, expected[:, ::-1], atol=1e-3), "colours in another order would be noticed"


def test_array_input_is_taken_only_when_its_statistics_are_known(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.mlpackage", lambda mb, x: mb.identity(x=x), shape=(1, 8, 8, 3))
    batch = random_pictures(3, 8)
    spec = replace(SPEC, mean=(120.0, 110.0, 100.0), std=(50.0, 60.0, 70.0))

    found = execute(path, batch, spec=spec)["out0"]

    np.testing.assert_allclose(found, (batch - np.array(spec.mean)) / np.array(spec.std), atol=1e-6)
    with pytest.raises(UnsupportedError, match="not written in the file"):
        execute(path, batch)


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "one.mlpackage",
        lambda mb, x: mb.identity(x=x),
        shape=(1, 3, 8, 8),
        image=lambda tools: _image(tools),
    )

    for batch in (random_pictures(2, 12), random_pictures(2, 8).astype(np.float32)):
        with pytest.raises(ModelError, match="pictures"):
            execute(path, batch)


def _classifier(mb: Any, x: Any) -> Any:
    return mb.linear(x=mb.reduce_mean(x=x, axes=(2, 3), keep_dims=False), weight=MATRIX[:2, :3], name="gender")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A package of someone else: no note of ours, an output named after a task."""
    path = saved(tmp_path / "theirs.mlpackage", _classifier, shape=(1, 3, 8, 8), image=lambda tools: _image(tools))
    model = coreml.read_model(path)
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    last = next(op for op in block.operations if op.outputs[0].name == "out0")
    block.operations.remove(last)
    block.outputs[0] = model.description.output[0].name = "gender"
    next(path.rglob("*.mlmodel")).write_bytes(model.SerializeToString())
    return path


def test_package_of_someone_else_opens_with_the_outputs_named_after_tasks(foreign: Path) -> None:
    runner = MilRunner(foreign, spec=None, runtime="mil", precision="", threads=1)

    assert [(output.name, output.shape) for output in runner.spec.outputs] == [("gender", (2,))]
    assert (runner.spec.input_px, runner.precision, runner.grids, runner.runtime) == (8, "fp32", {}, "mil")
    assert runner.macs == 6
    assert runner.size_bytes == sum(file.stat().st_size for file in foreign.rglob("*") if file.is_file())
    assert runner.run(random_pictures(5, 8))["gender"].shape == (5, 2)
    assert runner.run(random_pictures(5, 8)[:0])["gender"].shape == (0, 2)
    runner.prepare(3)()


def test_missing_output_is_refused(foreign: Path) -> None:
    spec = spec_of(NetworkSpec(backbone="edge_s", input_px=32))

    with pytest.raises(ModelError, match="landmarks5"):
        MilRunner(foreign, spec=spec, runtime="mil", precision="w8a8", threads=1)


def test_threads_are_restored(foreign: Path) -> None:
    before = torch.get_num_threads()
    MilRunner(foreign, spec=None, runtime="mil", precision="", threads=before + 1).run(random_pictures(1, 8))
    assert torch.get_num_threads() == before


@dataclass(frozen=True, kw_only=True)
class Student:
    model: ModelSpec
    quantized: Any
    graph: Any
    path: Path


def _student(name: str, folder: Path, *, precision: str = "w8a8") -> Student:
    network = random_network(name)
    model = spec_of(NetworkSpec(backbone=name, width=0.25, input_px=32))
    quantized, graph = quantize_network(network), trace(network)
    path = folder / f"{name}.mlpackage"
    coreml.write({precision: path}, graph=graph, quantized=quantized, model=model)
    return Student(model=model, quantized=quantized, graph=graph, path=path)


def _shares(student: Student, values: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """Shares of outputs on the same step, and at most one step apart."""
    steps = [
        np.abs(values[name] - reference[name]).ravel() / student.quantized.output_grid(name)[0] for name in reference
    ]
    distance = np.concatenate(steps)
    return float((distance < 0.01).mean()), float((distance < 1.001).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edge_s", "cnn5", "vgg11", "lightcnn9"])
def test_int8_student_in_float32_is_the_simulated_one(name: str, tmp_path: Path) -> None:
    student = _student(name, tmp_path)
    pictures = random_pictures(120, 32)
    runner = MilRunner(student.path, spec=student.model, runtime="mil", precision="w8a8", threads=1)

    values = runner.run(pictures)

    reference = dequantize(student.quantized, simulate(student.quantized, pictures, kernels="xnnpack"))
    exact, within = _shares(student, values, reference)
    assert (exact, within) == (1.0, 1.0)
    # The twin: the pictures of a neighbour.
    exact, _ = _shares(student, runner.run(np.roll(pictures, 1, axis=0)), reference)
    assert exact < 0.5


def test_first_layer_that_differs_is_found(tmp_path: Path) -> None:
    student = _student("edge_s", tmp_path)
    pictures = random_pictures(4, 32)

    values = execute(student.path, pictures, spec=student.model)

    expected = simulate_nodes(student.quantized, pictures, kernels="xnnpack")
    nodes = [node.name for node in student.quantized.graph.nodes if f"{node.name}_codes" in values]
    assert len(nodes) == len(student.quantized.graph.nodes)
    assert all(np.array_equal(values[f"{name}_codes"], expected[name]) for name in nodes)
    # The twin: a weight of one layer changes that layer first.
    changed = [node.name for node in student.quantized.graph.nodes if node.op == "conv2d"][2]
    weights = {key: value.copy() for key, value in student.quantized.weights.items()}
    weights[changed][...] = -weights[changed]
    expected = simulate_nodes(replace(student.quantized, weights=weights), pictures, kernels="xnnpack")
    assert next(n for n in nodes if not np.array_equal(values[f"{n}_codes"], expected[n])) == changed


def test_macs_are_the_graphs(tmp_path: Path) -> None:
    from quantize.graph import macs as of_graph

    student = _student("edge_s", tmp_path)

    assert macs(read_program(student.path)) == of_graph(student.graph)


class Foreign(torch.nn.Module):
    """Layers that other people's networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(16)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.prelu = torch.nn.PReLU(16)
        self.last = torch.nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.norm(self.first(x)))
        x = x + self.prelu(self.depthwise(x))
        a, b = functional.max_pool2d(x, 3, 2, 1).chunk(2, 1)
        x = functional.avg_pool2d(torch.cat([torch.maximum(a, b), a], 1), 2)
        pooled = x.mean((2, 3))
        gate = torch.matmul(pooled.unsqueeze(1), pooled.unsqueeze(2)).squeeze(2)
        made: torch.Tensor = self.last(pooled * torch.sigmoid(gate)).softmax(1)
        return made


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("FLOAT32", 3e-6), ("FLOAT16", 2e-3)])  # half-float weights: 2^-11
def test_network_converted_by_coremltools_computes_what_torch_does(
    precision: str, bound: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = Foreign().eval()
    path = tmp_path / "theirs.mlpackage"
    with coreml._quiet():
        tools = coreml._import("coremltools")
        exported = torch.export.export(network, (torch.rand(1, 3, 32, 32),)).run_decompositions({})
        image = tools.ImageType(name="image", shape=(1, 3, 32, 32), scale=1 / 64.0, bias=[-2.0, -2.0, -2.0])
        tools.convert(
            exported,
            inputs=[image],
            minimum_deployment_target=tools.target.iOS17,
            compute_precision=getattr(tools.precision, precision),
            skip_model_load=True,
        ).save(str(path))
    batch = random_pictures(6, 32)
    with torch.no_grad():
        expected = network(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 64 - 2).numpy()

    program = read_program(path)
    found = execute(path, batch)[program.outputs[0]]

    assert Executor(program).separate
    np.testing.assert_allclose(found, expected, atol=bound)
    # The twin: the largest weight of the first layer negated.
    with torch.no_grad():
        network.first.weight.view(-1)[network.first.weight.abs().argmax()] *= -1
        other = network(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 64 - 2).numpy()
    assert not np.allclose(found, other, atol=bound)
