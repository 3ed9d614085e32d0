"""Fake-quant: phases and ranges, straight-through gradients, snapping, and agreement with the integer simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.errors import ConfigError, DataError, ModelError, UnsupportedError
from edgeface.models.network import MultiTaskNetwork
from edgeface.specs import STUDENTS
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import INPUT, Graph, apply, run, scale_owners, trace
from quantize.grid import Quantized, dequantize, simulate, simulate_nodes
from quantize.qat import finish
from quantize.rounding import Kernels

Pictures = Callable[[int, int], NDArray[np.uint8]]
Images = Callable[[NDArray[np.uint8]], Tensor]
Snapped = Callable[[Graph], FakeQuantNetwork]


def calibrated(graph: Graph, images: Tensor) -> FakeQuantNetwork:
    network = FakeQuantNetwork(graph)
    calibrate(network, [images], limit=1)
    return network


def steps_apart(network: FakeQuantNetwork, quantized: Quantized, pictures: NDArray[np.uint8], images: Tensor) -> float:
    """Largest difference between network and simulator over INPUT and all nodes, in steps of each one's grid."""
    codes = simulate_nodes(quantized, pictures)
    with torch.no_grad():
        values = network.node_values(images)
    worst = 0.0
    for name, (scale, zero_point) in network.activations().items():
        found = values[name].numpy() / np.float32(scale) + zero_point
        worst = max(worst, float(np.abs(found - codes[name]).max()))
    return worst


@pytest.mark.parametrize("backbone", STUDENTS)
def test_a_snapped_student_is_the_integer_simulation_bit_for_bit(
    backbone: str,
    make_student: Callable[[str], MultiTaskNetwork],
    snapped: Snapped,
    pictures: Pictures,
    images: Images,
) -> None:
    network = snapped(trace(make_student(backbone)))
    batch = pictures(4, 64)
    assert steps_apart(network, network.quantized(), batch, images(batch)) == 0.0
    with torch.no_grad():
        outputs = network(images(batch))
    for name, values in dequantize(network.quantized(), simulate(network.quantized(), batch)).items():
        assert np.array_equal(outputs[name].numpy(), values)


def test_a_snapped_network_is_the_simulation_in_every_operation(
    patchwork_graph: Graph, snapped: Snapped, pictures: Pictures, images: Images
) -> None:
    network = snapped(patchwork_graph)
    batch = pictures(16, 16)
    assert steps_apart(network, network.quantized(), batch, images(batch)) == 0.0


def _other_weight(quantized: Quantized) -> Quantized:
    weight = quantized.weights["stem_0"].copy()
    weight[:, 0, 0, 0] += np.where(weight[:, 0, 0, 0] < 127, 1, -1).astype(np.int8)
    return replace(quantized, weights={**quantized.weights, "stem_0": weight})


def _other_zero_point(quantized: Quantized) -> Quantized:
    scale, zero_point = quantized.activations["mean"]
    return replace(quantized, activations={**quantized.activations, "mean": (scale, zero_point + 1)})


def _other_scale(quantized: Quantized) -> Quantized:
    scale, zero_point = quantized.activations["points"]
    return replace(quantized, activations={**quantized.activations, "points": (scale * 1.01, zero_point)})


@pytest.mark.parametrize("change", [_other_weight, _other_zero_point, _other_scale])
def test_a_snapped_network_is_not_another_networks_simulation_twin(
    change: Callable[[Quantized], Quantized],
    patchwork_graph: Graph,
    snapped: Snapped,
    pictures: Pictures,
    images: Images,
) -> None:
    network = snapped(patchwork_graph)
    batch = pictures(32, 16)
    assert steps_apart(network, change(network.quantized()), batch, images(batch)) > 0.0


@pytest.mark.parametrize("kernels", ["tflite-builtin", "tflite-builtin-ref"])
def test_a_snapped_network_is_not_another_kernel_familys_simulation_twin(
    kernels: Kernels, patchwork_graph: Graph, snapped: Snapped, pictures: Pictures, images: Images
) -> None:
    network = snapped(patchwork_graph)
    batch = pictures(32, 16)
    codes = simulate_nodes(network.quantized(), batch, kernels=kernels)
    with torch.no_grad():
        values = network.node_values(images(batch))
    scale, zero_point = network.activations()["stem_0"]
    assert not np.array_equal(values["stem_0"].numpy() / np.float32(scale) + zero_point, codes["stem_0"])


def disagreements(quantized: Quantized, pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Per node, steps between what training's float arithmetic computes and what the simulator does, for each value.

    Every node reads the simulator's values, so that one rounding is not counted again in each layer behind it.
    """
    codes = simulate_nodes(quantized, pictures)
    values = {
        name: (torch.from_numpy(codes[name]).float() - zero_point) * scale
        for name, (scale, zero_point) in quantized.activations.items()
    }
    result = {}
    for node in quantized.graph.nodes:
        scale, zero_point = quantized.activations[node.name]
        weight, bias = quantized.graph.weights.get(node.name), quantized.graph.biases.get(node.name)
        y = apply(node, [values[name] for name in node.inputs], weight=weight, bias=bias)
        rounded = torch.fake_quantize_per_tensor_affine(y, scale, zero_point, -128, 127)
        apart = (rounded / scale + zero_point).round().numpy() - codes[node.name]
        result[node.name] = np.abs(apart)
    return result


@pytest.mark.parametrize("backbone", STUDENTS)
def test_the_float_arithmetic_of_training_rounds_as_the_simulator_does(
    backbone: str, make_student: Callable[[str], MultiTaskNetwork], snapped: Snapped, pictures: Pictures
) -> None:
    # A float32 sum is off by some 1e-6 of a step's size and values are spread evenly between rounding thresholds, so
    # about one value in a million falls on the other side, by one step: of the 100,000 to 600,000 values of four
    # pictures here, none or a few. 1e-4 of all and one step leave room for other orders of summation.
    network = snapped(trace(make_student(backbone)))
    steps = np.concatenate([apart.ravel() for apart in disagreements(network.quantized(), pictures(4, 64)).values()])
    assert float((steps > 0).mean()) < 1e-4
    assert float(steps.max()) <= 1.0


def test_the_float_arithmetic_of_other_weights_does_not_twin(
    patchwork_graph: Graph, snapped: Snapped, pictures: Pictures
) -> None:
    quantized = snapped(patchwork_graph).quantized()
    batch = pictures(4, 16)
    assert float((disagreements(quantized, batch)["left_0"] > 0).mean()) < 1e-4
    wrong = {**quantized.graph.weights, "left_0": quantized.graph.weights["left_0"] * 1.01}
    changed = replace(quantized, graph=replace(quantized.graph, weights=wrong))
    assert float((disagreements(changed, batch)["left_0"] > 0).mean()) > 1e-2


def test_observing_computes_the_float_network(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    network = FakeQuantNetwork(patchwork_graph).eval()
    batch = images(pictures(2, 16))
    with torch.no_grad():
        found, expected = network(batch), run(patchwork_graph, batch)
    # (x − 128)/64 is exact either way, and everything behind it is the same sequence of calls.
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_rounding_starts_with_enable_twin(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    batch = images(pictures(2, 16))
    network = calibrated(patchwork_graph, batch).eval()
    assert network.phase == "adapting"
    with torch.no_grad():
        found, expected = network(batch), run(patchwork_graph, batch)
    assert not any(torch.equal(found[name], expected[name]) for name in expected)


def test_every_value_lies_on_its_grid_once_rounding_is_on(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    batch = images(pictures(4, 16))
    network = calibrated(patchwork_graph, batch).eval()
    with torch.no_grad():
        values = network.node_values(batch)
    for name, (scale, zero_point) in network.activations().items():
        codes = values[name].double() / scale + zero_point
        # k·s is exact in float32 for 16-bit scales, so the quotient is a whole number up to float64 rounding.
        assert float((codes - codes.round()).abs().max()) < 1e-9
        assert float(codes.min()) >= -128
        assert float(codes.max()) <= 127


def test_ranges_hold_the_batch_and_zero(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    batch = images(pictures(4, 16))
    network = FakeQuantNetwork(patchwork_graph).train()
    with torch.no_grad():
        values = network.node_values(batch)
    for slot, name in enumerate(network.points):
        assert float(network.low[slot]) == min(0.0, float(values[name].min()))
        assert float(network.high[slot]) == max(0.0, float(values[name].max()))


def test_the_picture_is_its_own_grid(patchwork_graph: Graph) -> None:
    assert FakeQuantNetwork(patchwork_graph).activations()[INPUT] == (1 / 64, 0)


def test_shared_scales_are_the_owners(patchwork_graph: Graph, snapped: Snapped) -> None:
    network = snapped(patchwork_graph)
    grids = network.quantized().activations
    assert {name: grids[owner] for name, owner in scale_owners(patchwork_graph).items()} == grids
    assert len({grids[name] for name in network.points}) == len(network.points)


def test_minmax_keeps_extremes_and_ema_averages_them(patchwork_graph: Graph) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, (4, 3, 16, 16), generator=generator).float() * f for f in (0.2, 1.0, 0.5)]
    extremes = []
    for batch in batches:
        one = FakeQuantNetwork(patchwork_graph).train()
        one(batch.round())
        extremes.append((one.low.clone(), one.high.clone()))
    lows, highs = (torch.stack(part) for part in zip(*extremes, strict=True))
    widest, mean = (FakeQuantNetwork(patchwork_graph, calibration=c).train() for c in ("minmax", "ema"))
    for batch in batches:
        widest(batch.round())
        mean(batch.round())
    assert torch.equal(widest.low, lows.amin(0))
    assert torch.equal(widest.high, highs.amax(0))
    # With fewer than 1/(1 − 0.98) batches it is the plain mean; lerp rounds three times, 2^-23 each.
    assert torch.allclose(mean.low, lows.mean(0), rtol=4e-7, atol=0)
    assert torch.allclose(mean.high, highs.mean(0), rtol=4e-7, atol=0)
    assert not torch.allclose(mean.high, widest.high, rtol=4e-7, atol=0)  # the twin


def test_the_state_is_written_in_place_by_every_phase(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    batch = images(pictures(4, 16))
    network = FakeQuantNetwork(patchwork_graph, calibration="mse").train()

    def places() -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}

    first = places()  # the average of the weights holds on to these
    for begin in (network.forget, network.enable, network.freeze):
        network(batch)
        begin()
        network(batch)
        assert places() == first
    network.low = network.low.clone()
    assert places() != first, "twin: a buffer that is replaced"


def test_evaluation_and_frozen_training_move_no_range(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    batch = images(pictures(4, 16))
    network = calibrated(patchwork_graph, batch)
    network.freeze()
    before = network.high.clone()
    network.eval()(255 - batch)
    network.train()(255 - batch)
    assert torch.equal(network.high, before)
    network.enable()
    network.eval()(255 - batch)
    assert torch.equal(network.high, before)
    network.train()(255 - batch)
    assert not torch.equal(network.high, before)  # the twin: while adapting, training does move them


def test_freezing_changes_no_grid(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    network = calibrated(patchwork_graph, images(pictures(4, 16)))
    before = network.activations()
    network.freeze()
    assert network.activations() == before


def test_gradients_pass_rounding_and_stop_at_clamping(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    batch = images(pictures(8, 16))

    def gradients(network: FakeQuantNetwork) -> dict[str, Tensor]:
        network.zero_grad()
        total = torch.stack([output.square().sum() for output in network(batch).values()]).sum()
        torch.autograd.backward(total)
        found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        assert found.keys() == {name for name, _ in network.named_parameters()}
        return found

    network = calibrated(patchwork_graph, batch)
    network.freeze()
    rounded = gradients(network)
    network.observe()
    plain = gradients(network)
    for name, gradient in plain.items():
        # Rounding to 256 steps moves values, and so these gradients, by a few percent; a gradient that stopped at a
        # rounding would be zero (cosine undefined) and one of another sign would give a cosine below 0.
        assert float(torch.cosine_similarity(rounded[name].flatten(), gradient.flatten(), dim=0)) > 0.95, name
    with torch.no_grad():
        network.high.mul_(1e-3)
        network.low.mul_(1e-3)
    network.phase = "frozen"
    clamped = gradients(network)
    # Nearly everything is clamped now, so hardly anything reaches the first layer.
    assert float(clamped["weights.stem_0"].norm()) < 0.1 * float(plain["weights.stem_0"].norm())


def test_snapping_needs_ranges_and_quantized_needs_snapping(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    network = FakeQuantNetwork(patchwork_graph)
    for step in (network.snap_, network.enable, network.freeze):
        with pytest.raises(ModelError, match="calibrate"):
            step()
    network = calibrated(patchwork_graph, images(pictures(2, 16)))
    with pytest.raises(ModelError, match="snap_"):
        network.quantized()
    finish(network)
    network.quantized()


@pytest.mark.parametrize("part", ["weights", "biases"])
def test_quantized_refuses_a_change_after_snapping(part: str, patchwork_graph: Graph, snapped: Snapped) -> None:
    network = snapped(patchwork_graph)
    with torch.no_grad():
        parameter = getattr(network, part)["left_0"].view(-1)
        parameter[0] += 1e-4
    with pytest.raises(ModelError, match="left_0"):
        network.quantized()


def test_snapping_again_changes_nothing(patchwork_graph: Graph, snapped: Snapped) -> None:
    network = snapped(patchwork_graph)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.snap_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_luma_is_not_trained(make_student: Callable[[str], MultiTaskNetwork]) -> None:
    graph = trace(make_student("tcdcn_relu"))
    network = FakeQuantNetwork(graph)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    (luma,) = graph.fixed
    assert f"weights.{luma}" not in trained
    assert f"biases.{luma}" not in trained
    assert len(trained) == len(list(network.parameters())) - 2


def test_calibration_reads_at_most_its_limit_and_forgets_earlier_ranges(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    batch = images(pictures(2, 16))
    network = FakeQuantNetwork(patchwork_graph).eval()

    def endless() -> Iterator[Tensor]:
        while True:
            yield batch

    assert calibrate(network, endless(), limit=3) == 3
    assert not network.training
    assert int(network.batches) == 3
    again = FakeQuantNetwork(patchwork_graph)
    calibrate(again, [255 - batch], limit=1)
    calibrate(again, endless(), limit=3)
    assert again.activations() == network.activations()
    with pytest.raises(DataError, match="calibrate"):
        calibrate(network, [], limit=3)


def test_ranges_that_are_not_finite_are_refused_by_name(
    patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    network = calibrated(patchwork_graph, images(pictures(2, 16)))
    network.high[network.points.index("mean")] = float("nan")
    with pytest.raises(ModelError, match="mean"):
        network.snap_()


def test_other_standardisations_and_calibrations_are_refused(patchwork_graph: Graph) -> None:
    with pytest.raises(UnsupportedError, match="std 64"):
        FakeQuantNetwork(replace(patchwork_graph, std=(1.0, 1.0, 1.0)))
    with pytest.raises(ConfigError, match="'minmax', 'ema', 'percentile', 'mse'"):
        FakeQuantNetwork(patchwork_graph, calibration="entropy")
