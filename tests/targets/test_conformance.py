"""Every target, student and precision: what must agree, what is refused in which words, and twins that must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgeface.errors import EdgefaceError, UnsupportedError
from edgeface.precision import IOS_VERSIONS, PRECISIONS, TARGETS, check, of_target
from edgeface.specs import LANDMARK_HEADS, STUDENTS, ModelSpec, NetworkSpec
from quantize.graph import Graph, trace
from quantize.grid import Quantized
from targets.artifacts import SUFFIXES
from targets.build import write_target
from targets.parity import RULES, Parity, Rule, compare
from targets.runners import FORMATS, SimulatedRunner, open_file

from .conftest import quantize_network, random_network, random_pictures, spec_of

HEATMAPS = tuple(f"{name} with heatmaps" for name in LANDMARK_HEADS["heatmap"])
# Smallest inputs that leave every student a map behind its last pooling.
INPUT_PX = dict.fromkeys((*STUDENTS, *HEATMAPS), 32) | {"tcdcn_relu": 40}
EVERY_FILE = [(target, precision) for target in TARGETS for precision in PRECISIONS[target]]
REFUSED = [
    (target, precision)
    for target in TARGETS
    for precision in sorted({p for taken in PRECISIONS.values() for p in taken} - set(PRECISIONS[target]))
]


@dataclass(frozen=True, kw_only=True)
class Student:
    """A tiny untrained student in both forms."""

    model: ModelSpec
    graph: Graph
    quantized: Quantized


@pytest.fixture(scope="module")
def student_of() -> Callable[[str], Student]:
    made: dict[str, Student] = {}

    def of(name: str) -> Student:
        if name not in made:
            side = INPUT_PX[name]
            backbone, _, mapped = name.partition(" with ")
            head = "heatmap" if mapped else "linear"
            network = random_network(backbone, input_px=side, landmark_head=head)
            model = spec_of(NetworkSpec(backbone=backbone, width=0.25, input_px=side, landmark_head=head))
            made[name] = Student(model=model, graph=trace(network), quantized=quantize_network(network, input_px=side))
        return made[name]

    return of


def written(student: Student, target: str, precision: str, folder: Path, *, quantized: Quantized | None = None) -> Path:
    """One file of a student; `quantized` in place of its own makes it a wrong one."""
    path = folder / f"{student.model.name}.{precision}{SUFFIXES[target]}"
    write_target(target, {precision: path}, student.graph, quantized or student.quantized, student.model)
    return path


class FloatReference:
    """The float graph as a runner."""

    runtime, precision, threads, size_bytes, macs = "torch", "fp32", 1, 0, None

    def __init__(self, student: Student) -> None:
        self.spec, self._graph = student.model, student.graph
        self.grids: dict[str, tuple[float, int]] = {}

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        import torch

        from quantize.graph import run

        images = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float()
        return {name: values.numpy() for name, values in run(self._graph, images).items()}

    def prepare(self, seed: int) -> Callable[[], None]:
        raise NotImplementedError


def compared(student: Student, path: Path, precision: str, *, runtime: str) -> Parity:
    model = open_file(path, spec=student.model, precision=precision, runtime=runtime)
    reference = SimulatedRunner(student.quantized, student.model) if precision == "w8a8" else FloatReference(student)
    return compare(reference, model, images=random_pictures(24, student.model.input_px))


@pytest.mark.slow
@pytest.mark.parametrize("student", [*STUDENTS, *HEATMAPS])
@pytest.mark.parametrize(("target", "precision"), EVERY_FILE)
def test_every_file_agrees_with_its_student(
    target: str, precision: str, student: str, student_of: Callable[[str], Student], tmp_path: Path
) -> None:
    own = student_of(student)
    path = written(own, target, precision, tmp_path)

    found = compared(own, path, precision, runtime=FORMATS[SUFFIXES[target]].runtimes[0])

    assert found.rule is not None, "every file that is built has a rule it must hold"
    assert found.passed, found.as_json()
    assert found.outputs.keys() == {output.name for output in own.model.outputs}


def _other_weight(quantized: Quantized) -> Quantized:
    """The largest weight of the first trained layer negated."""
    name = next(node.name for node in quantized.graph.nodes if node.op == "conv2d" and node.inputs[0] != "image")
    weights = {key: value.copy() for key, value in quantized.weights.items()}
    flat = weights[name].reshape(len(weights[name]), -1)
    channel = int(np.argmax(np.abs(quantized.graph.weights[name].flatten(1).numpy()).max(axis=1)))
    place = int(np.argmax(np.abs(flat[channel])))
    flat[channel, place] = -flat[channel, place]
    scales = quantized.weight_scales[name].reshape(-1, *[1] * (weights[name].ndim - 1))
    import torch

    floats = {**quantized.graph.weights, name: torch.from_numpy(weights[name].astype(np.float32) * scales)}
    return replace(quantized, weights=weights, graph=replace(quantized.graph, weights=floats))


def _swapped_outputs(quantized: Quantized) -> Quantized:
    outputs = dict(quantized.graph.outputs)
    outputs["gender"], outputs["smile"] = outputs["smile"], outputs["gender"]
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _other_scale(quantized: Quantized) -> Quantized:
    """An activation scale 2 % too large, in the middle of the network."""
    nodes = [node.name for node in quantized.graph.nodes if node.op == "conv2d"]
    name = nodes[len(nodes) // 2]
    scale = np.float32(quantized.activations[name][0] * 1.02)
    coarse = float((scale.view(np.int32) & np.int32(~0xFF)).view(np.float32))
    own = quantized.activations[name]
    # Nodes that share the scale share its change, or no tool-kit would take the file.
    changed = {key: (coarse, grid[1]) if grid == own else grid for key, grid in quantized.activations.items()}
    return replace(quantized, activations=changed)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tamper", [_other_weight, _swapped_outputs, _other_scale])
def test_file_that_computes_something_else_is_noticed_twin(
    tamper: Callable[[Quantized], Quantized], target: str, student_of: Callable[[str], Student], tmp_path: Path
) -> None:
    """The structure of such a file is flawless: only its answers tell."""
    own = student_of("edge_s")
    path = written(own, target, "w8a8", tmp_path, quantized=tamper(own.quantized))

    found = compared(own, path, "w8a8", runtime=FORMATS[SUFFIXES[target]].runtimes[0])

    assert found.passed is False, found.as_json()


@pytest.mark.parametrize(("target", "precision"), REFUSED)
def test_other_precisions_are_refused_with_the_list(target: str, precision: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check(target, precision, where="build")
    assert all(repr(taken) in str(caught.value) for taken in PRECISIONS[target])


def test_w8a8_needs_ios_17() -> None:
    with pytest.raises(UnsupportedError, match="iOS 17"):
        check("ios", "w8a8", where="build", ios=16)
    assert of_target("ios", ios=16) == ("fp16", "w8", "p6")
    assert all("w8a8" in of_target("ios", ios=version) for version in IOS_VERSIONS if version >= 17)


def test_every_file_has_a_rule_with_a_bound() -> None:
    for target, precision in EVERY_FILE:
        reference = "fake-quant" if precision == "w8a8" else "fp32"
        rule = RULES[(reference, precision, FORMATS[SUFFIXES[target]].runtimes[0])]
        assert rule != Rule()


def test_refusals_are_errors_of_ours() -> None:
    with pytest.raises(EdgefaceError):
        check("windows", "fp32", where="build")
