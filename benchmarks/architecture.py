"""Shapes for the default student: what a network costs in LiteRT w8a8 operation by operation, and which shape gives
most for the time.

    python -m benchmarks.architecture profile            edge_s, cut behind each of its operations, and the core's peak
    python -m benchmarks.architecture blocks             what stems and blocks cost, alone
    python -m benchmarks.architecture networks           whole networks side by side, in LiteRT and OpenVINO
    EDGEFACE_DATA=FOLDER python -m benchmarks.architecture train [NAME...] [--epochs 12] [--seed 0]
    python -m benchmarks.architecture report             Markdown, CSV and chart of what has been measured

Each writes its part of benchmarks/results/architecture.json; `train` takes networks of nearly the same time, without
a teacher and briefly: a proxy for what they could learn. A network is one line, a word an operation:

    24s2      3×3 convolution to 24 channels with stride 2     64k1   1×1 convolution to 64 channels
    d         3×3 depthwise convolution (ds2 with stride 2)    m2     2×2 max-pooling
    b2        2×2 blocks of the map become channels            gap    mean over the map
    flat      the map as a vector                              fc128  linear layer to 128 units
    <  +      the map here; the sum of that map and this one

Convolutions and `fc` have a ReLU; weights are random, which changes no time. Behind a whole network stand the heads of
the eight face tasks. Networks of operations that edgeface deploys are built by it; the others, and the parts of
networks, by TensorFlow's converter (post-training int8 on noise). edge_s is timed in both forms.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.stages import batches_for, objective_with, training_data, use_threads, watcher
from distill.train import train
from edgeface.config import load_recipe
from edgeface.files import write_json
from edgeface.models.backbones import initialise
from edgeface.models.heads import HEATMAP_STRIDE
from edgeface.models.layers import Conv2dSame, same_padding
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.provenance import commit, cpu, versions
from edgeface.specs import ModelSpec, NetworkSpec, QatSpec, StudentSpec, TrainSpec, output_spec
from quantize.calibrate import calibrate
from quantize.qat import finish, prepare
from targets.artifacts import SUFFIXES
from targets.build import write_target
from targets.litert import open_engine
from targets.runners import open_model
from targets.silence import silenced

RESULTS = Path("benchmarks/results/architecture.json")
TASKS = ("landmarks5", "pose", "gender", "smile", "glasses", "expression", "age", "beauty")
HEADS = (10, 5, 2, 2, 2, 7, 101, 5)  # values of their outputs
MEAN_SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.55), (0.35, 0.7), (0.65, 0.7))
WARM_UP = 20
RESOLVED_US = 2.0  # below this the difference of two files says little
# XNNPACK's int8 convolution for AVX512-VNNI, qs8-qc8w-igemm-7x16c8: it works on 7 cells and 16 channels at a time and
# takes input channels by eights; what does not fill them is computed nevertheless.
CELLS, OUTWARD, INWARD = 7, 16, 8
_WORD = re.compile(r"(?P<kind>gap|flat|fc|[dmb<+]?)(?P<size>\d*)(?:k(?P<kernel>\d+))?(?:s(?P<stride>\d+))?")
_KINDS = {"": "conv", "d": "depthwise", "m": "max_pool", "b": "blocks", "<": "keep", "+": "add"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A network to time, and to train where it is a candidate.

    Attributes:
        name: What tables call it.
        plan: Its operations, a word each.
        input_px: Side of the picture.
    """

    name: str
    plan: str
    input_px: int = 64


EDGE_S = Shape(name="edge_s", plan="16s2 64s2 64 64 80s2 80 80 80 64s2 64k1 flat fc96")
# Half a megabyte with the heads of all tasks, a fifth of a millisecond: where the arithmetic is best spent.
CANDIDATES = (
    EDGE_S,
    Shape(name="shallow", plan="16s2 64s2 64 64 64 80s2 80 80 80s2 64k1 flat fc96"),
    Shape(name="deep", plan="16s2 64s2 64 64 64s2 64 64 64 64 64 64s2 64k1 flat fc96"),
    Shape(name="narrow", plan="16s2 48s2 48 48 80s2 80 80 80 64s2 64k1 flat fc96"),
)
# Drawn for landmarks from a linear layer, in the time of the first of them, which was the default then.
EARLIER = (
    Shape(name="wide at 8×8", plan="24s2 48s2 48 96s2 96 96 96s2 64k1 flat fc128"),
    Shape(name="narrow-deep", plan="16s2 32s2 32 32 32 64s2 64 64 64 64 64 80s2 80 64k1 flat fc96"),
    Shape(name="more-at-16", plan="16s2 48s2 48 48 80s2 80 80 80s2 80 64k1 flat fc112"),
    Shape(name="stem-4x4", plan="32k4s4 48 48 48 80s2 80 80 96s2 64k1 flat fc128"),
    Shape(name="48px", plan="32s2 64s2 64 64 64 80s2 80 80 80s2 64k1 flat fc112", input_px=48),
    Shape(name="80px", plan="16s2 48s2 48 64s2 64 64 64s2 64 64k1 flat fc96", input_px=80),
    Shape(
        name="depthwise",
        plan="16s2 d 32k1 ds2 64k1 d 64k1 d 64k1 ds2 128k1 d 128k1 d 128k1 d 128k1 d 128k1 d 128k1 ds2 256k1 d 256k1 "
        "48k1 flat fc128",
    ),
)


TRAINED = (*CANDIDATES, EARLIER[0], EARLIER[2])
# The larger students.
LARGER = (
    Shape(name="edge_m", plan="16s2 64s2 64 64 64 96s2 96 96 96 96 128s2 64k1 flat fc160"),
    Shape(name="edge_l", plan="32s2 64s2 64 64 64 64 128s2 128 128 128 128s2 128 128 64k1 flat fc192"),
)
# Networks that are timed only: the published mobile backbones under our heads, and residual sums.
MOBILENET_V1 = "8s2 d 16k1 ds2 32k1 d 32k1 ds2 64k1 d 64k1 ds2 128k1" + 5 * " d 128k1" + " ds2 256k1 d 256k1 gap"
TIMED = (
    Shape(name="mobilenet_v1_025", plan=MOBILENET_V1),
    Shape(name="mobilenet_v1_025 128 px", plan=MOBILENET_V1, input_px=128),
    Shape(
        name="inverted residuals",
        plan="16s2 d 16k1 96k1 ds2 24k1 < 144k1 d 24k1 + 144k1 ds2 32k1 < 192k1 d 32k1 + < 192k1 d 32k1 + 192k1 ds2 "
        "64k1 < 384k1 d 64k1 + 64k1 flat fc128",
    ),
    Shape(name="edge_s with sums", plan="16s2 64s2 < 64 + < 64 + 80s2 < 80 + < 80 + < 80 + 64s2 64k1 flat fc96"),
)
# A stem of its own, and blocks behind it: their time is half the difference of three and one of them.
STEMS = (
    *("16s2", "24s2", "32s2", "48s2", "16k2s2", "32k2s2", "24k4s2", "16k4s4", "32k4s4", "48k4s4", "64k4s4"),
    *("32k8s4", "b2 16", "b2 32", "b2 32k2", "b4 32k1", "b4 48k1", "b4 48", "16 m2", "16s2 d 32k1", "16s2 48s2"),
    *("24s2 48s2", "16s2 ds2 48k1", "32k4s4 48"),
)
BLOCKS = (
    ("16s2", "16"),
    ("32s2", "32"),
    ("16s2 32s2", "32"),
    ("16s2 48s2", "48"),
    ("16s2 64s2", "64"),
    ("16s2 32s2 64s2", "64"),
    ("16s2 32s2 96s2", "96"),
    ("16s2 32s2 128s2", "128"),
    ("16s2 32s2 64s2 96s2", "96"),
    ("16s2 32s2 64s2 128s2", "128"),
    ("16s2 64s2", "64k1"),
    ("16s2 32s2 128s2", "128k1"),
    ("16s2 32s2 64s2 128s2", "128k1"),
    ("32s2", "d"),
    ("16s2 64s2", "d"),
    ("16s2 32s2 128s2", "d"),
    ("16s2 64s2", "d 64k1"),
    ("16s2 32s2 128s2", "d 128k1"),
    ("16s2 64s2", "< d 64k1 +"),
    ("16s2 64s2", "< 256k1 d 64k1 +"),
    ("16s2 64s2", "< 64 +"),
    ("16s2 32s2 96s2", "< 96 +"),
)
# Large enough that little but the arithmetic counts, short enough that some runs are not disturbed; the best of them is
# taken for the core's peak.
LARGE = (("16s2 128s2", "128"), ("16s2 32s2 256s2", "256"), ("32s2 256s2", "256k1"), ("64s2", "64"))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation of a shape, with what it costs at the input it stands behind.

    Attributes:
        word: As in the shape.
        kind: conv, depthwise, max_pool, blocks, keep, add, gap, flat or fc.
        channels: Values of a cell behind it.
        side: Of the map behind it, in cells; 0 for a vector.
        kernel: Side of its window.
        stride: Of its window.
        macs: Multiply-accumulates.
        computed: Those that XNNPACK computes, with what fills its tiles; as `macs` where it has no tiles.
        parameters: Weights and biases.
        field: Side of the part of the picture that a cell behind it sees, in pixels.
    """

    word: str
    kind: str
    channels: int
    side: int
    kernel: int
    stride: int
    macs: int
    computed: int
    parameters: int
    field: int


def steps(plan: str, input_px: int) -> tuple[Step, ...]:
    """The operations of a plan, from the picture on."""
    channels, side, field, jump = 3, input_px, 1, 1
    found = []
    for word in plan.split():
        match = _WORD.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} is no operation")
        kind = _KINDS.get(match["kind"], match["kind"])
        size = int(match["size"] or 0)
        kernel = int(match["kernel"] or (3 if kind in ("conv", "depthwise") else 1))
        stride = int(match["stride"] or 1)
        before, macs, parameters = channels, 0, 0
        if kind in ("max_pool", "blocks"):
            kernel = stride = size
        if kind in ("conv", "depthwise", "max_pool", "blocks"):
            side = side // stride if kind == "max_pool" else -(-side // stride)
            field, jump = field + (kernel - 1) * jump, jump * stride
        if kind == "conv":
            channels = size
            weights = kernel**2 * before * channels
            macs, parameters = weights * side**2, weights + channels
        elif kind == "depthwise":
            macs, parameters = kernel**2 * channels * side**2, (kernel**2 + 1) * channels
        elif kind == "blocks":
            channels = before * size**2
        elif kind in ("gap", "flat"):
            channels, side, field = before * (side**2 if kind == "flat" else 1), 0, input_px
        elif kind == "fc":
            channels = size
            macs, parameters = before * channels, (before + 1) * channels
        elif kind not in ("max_pool", "keep", "add"):
            raise ValueError(f"{word!r} is no operation")
        found.append(
            Step(
                word=word,
                kind=kind,
                channels=channels,
                side=side,
                kernel=kernel,
                stride=stride,
                macs=macs,
                computed=_computed(kind, before, channels, side, kernel) or macs,
                parameters=parameters,
                field=min(field, input_px) if kind in ("gap", "flat", "fc") else field,
            )
        )
    return tuple(found)


def _computed(kind: str, before: int, channels: int, side: int, kernel: int) -> int:
    """MACs with whole tiles; 0 where there are none."""
    if kind not in ("conv", "fc"):
        return 0
    cells = 1 if kind == "fc" else -(-(side**2) // CELLS) * CELLS  # one row has a kernel of its own
    return cells * kernel**2 * -(-before // INWARD) * INWARD * -(-channels // OUTWARD) * OUTWARD


def convert(plan: str, input_px: int, *, heads: Sequence[int] = (), picture_type: str = "uint8") -> bytes:
    """The int8 TFLite file of a plan with random weights; uint8 picture in, int8 out, as our own files have it."""
    import tensorflow as tf

    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    picture = tf.keras.Input((input_px, input_px, 3), batch_size=1)
    value, kept = picture, picture
    for step in steps(plan, input_px):
        same = {"padding": "same", "activation": "relu"}
        if step.kind == "conv":
            value = layers.Conv2D(step.channels, step.kernel, step.stride, **same)(value)
        elif step.kind == "depthwise":
            value = layers.DepthwiseConv2D(step.kernel, step.stride, **same)(value)
        elif step.kind == "max_pool":
            value = layers.MaxPooling2D(step.kernel)(value)
        elif step.kind == "blocks":
            value = layers.Lambda(lambda x, size=step.kernel: tf.nn.space_to_depth(x, size))(value)
        elif step.kind == "keep":
            kept = value
        elif step.kind == "add":
            value = layers.Add()([kept, value])
        elif step.kind == "gap":
            value = layers.GlobalAveragePooling2D()(value)
        elif step.kind == "flat":
            value = layers.Flatten()(value)
        else:
            value = layers.Dense(step.channels, activation="relu")(value)
    outputs = [layers.Dense(count)(value) for count in heads] or [value]
    generator = np.random.default_rng(0)
    converter = tf.lite.TFLiteConverter.from_keras_model(tf.keras.Model(picture, outputs))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [generator.uniform(-2.0, 2.0, (1, input_px, input_px, 3)).astype(np.float32)] for _ in range(4)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.as_dtype(picture_type)
    converter.inference_output_type = tf.int8
    with silenced():
        return bytes(converter.convert())


def time_files(files: Sequence[Path], *, rounds: int, runs: int = 5) -> list[float]:
    """Microseconds of each file in XNNPACK or OpenVINO, one thread of one core, all by turns.

    Of each round's runs the least, one that nothing disturbed; the median over rounds, so that no lucky one counts.
    """
    calls = [_call(path) for path in files]
    found = np.full((len(calls), rounds), np.inf)
    for call in calls:
        for _ in range(WARM_UP):
            call()
    for turn in range(rounds):
        for place in range(len(calls)):
            index = (turn + place) % len(calls)
            calls[index]()  # brings its weights back into the caches
            for _ in range(runs):
                begin = time.perf_counter_ns()
                calls[index]()
                found[index, turn] = min(found[index, turn], (time.perf_counter_ns() - begin) / 1e3)
    return [round(float(us), 2) for us in np.median(found, axis=1)]


def _call(path: Path) -> Callable[[], None]:
    if path.suffix == ".xml":
        return open_model(path, threads=1).prepare(0)
    engine = open_engine(path, runtime="tflite-xnnpack", threads=1)
    (picture,) = engine.description["inputs"]
    limits = np.iinfo(picture["dtype"])
    values = np.random.default_rng(0).integers(limits.min, limits.max, picture["shape"], endpoint=True)
    return engine.prepare(values.astype(picture["dtype"]))


def _written(plans: Sequence[tuple[str, int, str]], folder: Path) -> list[Path]:
    """Files of plans without heads, each with the type of its picture."""
    paths = []
    for plan, input_px, picture_type in plans:
        paths.append(folder / f"{len(paths)}.tflite")
        paths[-1].write_bytes(convert(plan, input_px, picture_type=picture_type))
    return paths


def profile(folder: Path, *, rounds: int) -> dict[str, Any]:
    """Time of each operation of edge_s: that of the file which ends with it, less that of the one before."""
    words = EDGE_S.plan.split()
    cuts = [(" ".join(words[: count + 1]), 64, "uint8") for count in range(len(words))]
    large = [(f"{stem} {' '.join([block] * count)}", 64, "uint8") for stem, block in LARGE for count in (1, 3)]
    paths = _written([("flat", 1, "int8"), (words[0], 64, "int8"), *cuts, *large], folder)
    whole = folder / "whole.tflite"
    whole.write_bytes(convert(EDGE_S.plan, 64, heads=HEADS))
    empty, without, *times = time_files([*paths, whole], rounds=rounds)
    peaks = _marginal(LARGE, times[len(cuts) : -1])
    done = steps(EDGE_S.plan, 64)
    rows: list[dict[str, Any]] = [
        {"operation": "call", "us": empty},
        {"operation": "quantize", "us": round(times[0] - without, 2)},
    ]
    before = times[0] - without + empty
    for step, us in zip(done, times, strict=False):
        rows.append({"operation": step.word, **_costs(step), "us": round(us - before, 2)})
        before = us
    features = done[-1].channels
    macs = features * sum(HEADS)
    rows.append(
        {"operation": "heads", "macs": macs, "parameters": macs + sum(HEADS), "us": round(times[-1] - before, 2)}
    )
    return {"rows": rows, "whole_us": times[-1], "peak": max(peaks, key=lambda row: row["gmacs"]), "large": peaks}


def _costs(step: Step) -> dict[str, Any]:
    return {name: value for name, value in asdict(step).items() if name not in ("word", "stride")}


def _marginal(blocks: Sequence[tuple[str, str]], times: Sequence[float]) -> list[dict[str, Any]]:
    """Blocks by the difference of three and one of them.

    Args:
        times: Of one and of three, block by block.
    """
    rows = []
    for place, (stem, block) in enumerate(blocks):
        one, three = (steps(f"{stem} {' '.join([block] * count)}", 64) for count in (1, 3))
        us = (times[2 * place + 1] - times[2 * place]) / 2
        macs = (sum(step.macs for step in three) - sum(step.macs for step in one)) // 2
        rows.append(
            {
                "block": block,
                "side": one[-1].side,
                "channels": one[-1].channels,
                "macs": macs,
                "us": round(us, 2),
                "gmacs": round(macs / us / 1e3, 1),
            }
        )
    return rows


def blocks(folder: Path, *, rounds: int) -> dict[str, Any]:
    """Stems with all that comes before them, and blocks by themselves."""
    repeated = [(f"{stem} {' '.join([block] * count)}", 64, "uint8") for stem, block in BLOCKS for count in (1, 3)]
    times = time_files(_written([*((stem, 64, "uint8") for stem in STEMS), *repeated], folder), rounds=rounds)
    stems = []
    for stem, us in zip(STEMS, times, strict=False):
        done = steps(stem, 64)
        stems.append(
            {
                "stem": stem,
                "side": done[-1].side,
                "macs": sum(step.macs for step in done),
                "field": done[-1].field,
                "us": us,
            }
        )
    return {"stems": stems, "blocks": _marginal(BLOCKS, times[len(STEMS) :])}


def write_own(network: MultiTaskNetwork, model: ModelSpec, path: Path) -> list[Path]:
    """The w8a8 files of a network as edgeface builds them, for LiteRT and OpenVINO; its ranges are those of noise."""
    side = network.input_px
    fake_quant = prepare(network.eval(), QatSpec())
    noise = torch.randint(0, 256, (4, 3, side, side), generator=torch.Generator().manual_seed(0))
    calibrate(fake_quant, [noise.float()], limit=1)
    finish(fake_quant)
    files = []
    for target in ("android", "openvino"):
        files.append(path.with_suffix(f".w8a8{SUFFIXES[target]}"))
        write_target(target, {"w8a8": files[-1]}, None, fake_quant.quantized(), model)
    return files


def all_tasks(network: NetworkSpec) -> ModelSpec:
    """Every task of TASKS in one pass."""
    return model_spec(
        network, [output_spec(name, mean_shape=MEAN_SHAPE if name == "landmarks5" else ()) for name in TASKS]
    )


def networks(folder: Path, *, rounds: int) -> dict[str, Any]:
    """Whole networks with the heads of all tasks, timed together."""
    rows: list[dict[str, Any]] = []
    files: list[Path] = []

    def add(
        shape: Shape, path: Path, *, made_by: str, runtime: str = "LiteRT", points: int = 0, channels: int = 0
    ) -> None:
        """A file, and what it costs; heatmaps of `points` landmarks are read from a map of so many channels."""
        done = steps(shape.plan, shape.input_px)
        values = sum(HEADS) - 2 * points
        cells = (shape.input_px // HEATMAP_STRIDE) ** 2
        files.append(path)
        rows.append(
            {
                "name": f"{shape.name}, heatmaps" if points else shape.name,
                "plan": shape.plan,
                "input_px": shape.input_px,
                "runtime": runtime,
                "made_by": made_by,
                "macs": sum(step.macs for step in done) + done[-1].channels * values + cells * channels * points,
                "parameters": sum(step.parameters for step in done)
                + (done[-1].channels + 1) * values
                + (channels + 1) * points,
                "field": max(step.field for step in done if step.side),
                "size_bytes": open_model(path).size_bytes if runtime == "OpenVINO" else path.stat().st_size,
            }
        )

    def add_own(shape: Shape, path: Path, *, landmark_head: str = "linear") -> None:
        spec = NetworkSpec(backbone="edge_s", input_px=shape.input_px, landmark_head=landmark_head)
        network = network_of(shape, build_network(spec, all_tasks(spec)), seed=0)
        heads = [head for head in network.heatmaps.values() if isinstance(head, nn.Conv2d)]
        sides = [(head.out_channels, head.in_channels) for head in heads]
        points, channels = sides[0] if sides else (0, 0)
        for file, runtime in zip(write_own(network, all_tasks(spec), path), ("LiteRT", "OpenVINO"), strict=True):
            add(shape, file, made_by="edgeface", runtime=runtime, points=points, channels=channels)

    for number, shape in enumerate((*CANDIDATES, *EARLIER, *LARGER, *TIMED)):
        path = folder / f"{number}.tflite"
        own = all(step.kind in ("conv", "flat", "fc") for step in steps(shape.plan, shape.input_px))
        if own:
            add_own(shape, path)
        if shape in (EDGE_S, *LARGER):
            add_own(shape, folder / f"{number}-heatmaps.tflite", landmark_head="heatmap")
        if shape is EDGE_S or not own:
            path.write_bytes(convert(shape.plan, shape.input_px, heads=HEADS))
            add(shape, path, made_by="TensorFlow")
    for row, us in zip(rows, time_files(files, rounds=rounds), strict=True):
        row["us"] = us
    return {"rows": rows}


class _Depthwise(nn.Conv2d):
    """Conv2dSame with groups, which no deployable layer has."""

    def forward(self, input: Tensor) -> Tensor:
        sides = [same_padding(input.shape[axis], self.kernel_size[0], self.stride[0]) for axis in (3, 2)]
        return super().forward(F.pad(input, (*sides[0], *sides[1])))


def backbone(plan: str, input_px: int) -> nn.Sequential:
    """The float network of a plan: convolutions with batch-norm, pictures to features."""
    parts: list[tuple[str, nn.Module]] = []
    before = 3
    for place, step in enumerate(steps(plan, input_px)):
        if step.kind in ("conv", "depthwise"):
            kind, groups = (_Depthwise, before) if step.kind == "depthwise" else (Conv2dSame, 1)
            conv = kind(before, step.channels, step.kernel, step.stride, groups=groups, bias=False)
            parts.append((f"conv{place}", nn.Sequential(conv, nn.BatchNorm2d(step.channels), nn.ReLU())))
        elif step.kind == "flat":
            parts.append(("flatten", nn.Flatten()))
        elif step.kind == "fc":
            parts.append(("fc", nn.Sequential(nn.Linear(before, step.channels), nn.ReLU())))
        else:
            raise ValueError(f"{step.word!r} is timed, not trained")
        before = step.channels
    return nn.Sequential(OrderedDict(parts))


def network_of(shape: Shape, like: MultiTaskNetwork, *, seed: int) -> MultiTaskNetwork:
    """Put the trunk of a shape into a network, with fresh heads; heatmaps are read from its last map of stride 8."""
    generator = torch.Generator().manual_seed(seed)
    like.backbone = backbone(shape.plan, shape.input_px)
    done = steps(shape.plan, shape.input_px)
    sizes = {name: head.out_features for name, head in like.heads.items() if isinstance(head, nn.Linear)}
    like.heads = nn.ModuleDict({name: nn.Linear(done[-1].channels, size) for name, size in sizes.items()})
    if like.heatmaps:
        place = max(place for place, step in enumerate(done) if step.side * HEATMAP_STRIDE == shape.input_px)
        points = {name: head.out_channels for name, head in like.heatmaps.items() if isinstance(head, nn.Conv2d)}
        like.maps = (f"conv{place}",)
        like.heatmaps = nn.ModuleDict({name: nn.Conv2d(done[place].channels, k, 1) for name, k in points.items()})
    initialise(list(like.modules()), generator=generator)
    with torch.no_grad():
        for head in (*like.heads.values(), *like.heatmaps.values()):
            assert isinstance(head, (nn.Linear, nn.Conv2d))
            assert head.bias is not None
            head.weight.normal_(0.0, 0.01, generator=generator)
            head.bias.zero_()
    return like


def train_briefly(shape: Shape, folder: Path, *, epochs: float, seed: int) -> dict[str, object]:
    """Train a shape on the labels of mtfl@train, landmarks as heatmaps, in one thread: a proxy for what it could learn.

    Returns:
        The shape, what it took, and the main metrics on mtfl@val.
    """
    spec = TrainSpec(epochs=epochs, batch=64, lr=3e-3, ema=0.995, dtype="bf16")
    # edge_s stands in for the shape, which recipes do not know.
    network_spec = NetworkSpec(backbone="edge_s", input_px=shape.input_px, landmark_head="heatmap")
    recipe = replace(
        load_recipe("mtfl-cpu"), threads=1, seed=seed, student=StudentSpec(network=network_spec, train=spec)
    )
    use_threads(recipe)
    data = training_data(recipe)
    model = model_spec(network_spec, tuple(data.outputs.values()))
    network = network_of(shape, build_network(network_spec, model), seed=seed + 1)
    batches = batches_for(recipe, data, spec=spec, input_px=shape.input_px, seed=seed + 1)
    objective = objective_with(recipe, model, teacher=None, network=network, seed=seed + 1)
    begin = time.process_time()
    trained = train(
        network,
        objective,
        batches,
        spec=spec,
        seed=seed + 1,
        key=f"{shape} {epochs} {seed}",
        partial=folder.with_suffix(".partial"),
        input_px=shape.input_px,
        watch=watcher(data, model),
        watches=4,
    )
    names, *_, last = (line.split(",") for line in trained.curve.splitlines())
    return {
        "name": shape.name,
        "plan": shape.plan,
        "input_px": shape.input_px,
        "seed": seed,
        "epochs": epochs,
        "steps": trained.steps,
        "cpu_s": round(time.process_time() - begin),
        "val": {name: float(value) for name, value in zip(names, last, strict=True) if "." in name},
    }


def collect(folder: Path) -> dict[str, Any]:
    """The finished trainings under a folder, in the order of TRAINED."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("architecture-*/result.json")]
    order = [shape.name for shape in TRAINED]
    return {"rows": sorted(found, key=lambda row: (order.index(row["name"]), row["seed"]))}


def _rows(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(line) + " |" for line in (head, *cells)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def _rate(macs: int, us: float) -> str:
    return f"{macs / us / 1e3:.0f}" if macs else "–"


def markdown(found: Mapping[str, Any]) -> str:
    """All that was measured, as tables; parts that were not measured are left out."""
    machine = found["conditions"]["cpu"]
    runtimes = ", ".join(f"{name} {found['conditions']['versions'][name]}" for name in ("ai-edge-litert", "openvino"))
    lines = ["# Shapes for the default student", ""]
    lines += [
        f"One thread of an {machine['model']} ({', '.join(machine['flags'])}), batch 1, int8; {runtimes}. Each file "
        "was timed by turns with the others of its table: the least of five runs a round, the median over rounds. "
        "Other processes used the machine meanwhile (load average below each table). `python -m "
        "benchmarks.architecture --help` explains the notation; GMAC/s are thousand million multiply-accumulates a "
        "second.",
        "",
    ]
    peak = found["profile"]["peak"]["gmacs"] if "profile" in found else None
    if "profile" in found:
        lines += _profile_lines(found["profile"])
    if "blocks" in found:
        lines += _block_lines(found["blocks"])
    if "networks" in found:
        lines += _network_lines(found["networks"], peak)
    if "training" in found:
        lines += _training_lines(found)
    return "\n".join(lines).rstrip() + "\n"


def _below(part: Mapping[str, Any], verb: str) -> list[str]:
    load = " to ".join(map(str, part["load_average"]))
    return [
        f"`python -m benchmarks.architecture {verb} --rounds {part['rounds']}`, {part['date']}, commit "
        f"{part['commit']}, load average {load} on {part['cores']} cores.",
        "",
    ]


def _profile_lines(part: Mapping[str, Any]) -> list[str]:
    peak = part["peak"]
    cells = []
    for row in part["rows"]:
        macs, us = row.get("macs", 0), row["us"]
        cells.append(
            [
                f"`{row['operation']}`" if "kind" in row else row["operation"],
                f"{row['side']}×{row['side']}" if row.get("side") else "–",
                f"{macs / 1e6:.2f}" if macs else "–",
                f"{us:.1f}",
                f"{100 * us / part['whole_us']:.0f}",
                _rate(macs, us) if us >= RESOLVED_US else "–",
                f"{100 * macs / us / 1e3 / peak['gmacs']:.0f}" if macs and us >= RESOLVED_US else "–",
                f"{100 * macs / row['computed']:.0f}" if row.get("computed") else "–",
            ]
        )
    macs = sum(row.get("macs", 0) for row in part["rows"])
    cells.append(
        [
            *("whole", "–", f"{macs / 1e6:.2f}", f"{part['whole_us']:.1f}", "100", _rate(macs, part["whole_us"])),
            *(f"{100 * macs / part['whole_us'] / 1e3 / peak['gmacs']:.0f}", "–"),
        ]
    )
    return [
        "## edge_s, operation by operation",
        "",
        "The time of an operation is that of the file cut behind it less that of the file cut before it, good to about "
        "half a microsecond; `quantize` (uint8 picture to int8) is the difference that a uint8 input makes. The peak "
        "is the best rate of large convolutions, each the difference of three and one of them: "
        f"{peak['gmacs']:.0f} GMAC/s (`{peak['block']}` on {peak['side']}×{peak['side']} cells of {peak['channels']} "
        f"channels). Useful: the share of multiply-accumulates left once tiles of {CELLS} cells, {INWARD} input and "
        f"{OUTWARD} output channels are filled up.",
        "",
        *_rows(
            ["operation", "map", "MMAC", "µs", "% of time", "GMAC/s", "% of peak", "useful, %"],
            cells,
        ),
        *_below(part, "profile"),
    ]


def _block_lines(part: Mapping[str, Any]) -> list[str]:
    stems = [
        [
            f"`{row['stem']}`",
            f"{row['side']}×{row['side']}",
            f"{row['field']}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['us']:.1f}",
        ]
        for row in part["stems"]
    ]
    alone = [
        [
            *(f"`{row['block']}`", f"{row['channels']}", f"{row['side']}×{row['side']}", f"{row['macs'] / 1e6:.2f}"),
            *(f"{row['us']:.1f}", f"{row['gmacs']:.0f}"),
        ]
        for row in part["blocks"]
    ]
    return [
        "## Stems at 64 px",
        "",
        "With the call and the quantization of the picture, which are the same for all.",
        "",
        *_rows(["stem", "map behind it", "sees, px", "MMAC", "µs"], stems),
        "## Blocks",
        "",
        *_rows(["block", "channels", "map", "MMAC", "µs", "GMAC/s"], alone),
        *_below(part, "blocks"),
    ]


def predicted_us(plan: str, input_px: int) -> float:
    """What a network with the heads of all tasks should take in XNNPACK, by its plan alone.

    The constants are those of the profile and of the blocks on the machine that measured them: a call and the
    quantization of each of the picture's values; what an operation costs before it computes, and the rates of tiles,
    depthwise convolutions, linear layers and sums.
    """
    us, features = 0.7 + 0.00072 * 3 * input_px**2, 0
    for step in steps(plan, input_px):
        match step.kind:
            case "conv":
                us += 0.4 + step.computed / 216e3
            case "depthwise":
                us += step.macs / 18.2e3
            case "fc":
                us += 0.4 + step.macs / 150e3
            case "add":
                us += 0.2 + step.channels * step.side**2 / 7e3
        features = step.channels
    return us + 0.15 * len(HEADS) + features * sum(HEADS) / 150e3


def _network_lines(part: Mapping[str, Any], peak: float | None) -> list[str]:
    cells = [
        [
            *(row["name"], f"{row['input_px']} px", f"{row['macs'] / 1e6:.1f}", f"{row['parameters'] / 1e3:.0f}"),
            *(f"{row['size_bytes'] / 1e3:.0f}", f"{row['field']}", f"{row['runtime']} ({row['made_by']})"),
            f"{predicted_us(row['plan'], row['input_px']) / 1e3:.3f}" if row["runtime"] == "LiteRT" else "–",
            *(f"{row['us'] / 1e3:.3f}", f"{100 * row['macs'] / row['us'] / 1e3 / peak:.0f}" if peak else "–"),
        ]
        for row in part["rows"]
    ]
    plans = {f"{row['name']}, {row['input_px']} px: `{row['plan']}`": None for row in part["rows"]}
    head = ["network", "input", "MMAC", "K parameters", "w8a8, KB", "sees, px", "runtime (file by)"]
    head += ["by its plan, ms", "ms", "% of peak"]
    return [
        "## Whole networks with the heads of all eight tasks",
        "",
        *_rows(head, cells),
        *(f"- {line}" for line in plans),
        "",
        *_below(part, "networks"),
    ]


def _training_lines(found: Mapping[str, Any]) -> list[str]:
    part = found["training"]
    times = {
        (row["name"]): row["us"] for row in found.get("networks", {"rows": []})["rows"] if row["runtime"] == "LiteRT"
    }
    metrics = list(part["rows"][0]["val"])
    cells = []
    for row in part["rows"]:
        us = times.get(row["name"])
        cells.append(
            [
                *(row["name"], f"{row['input_px']} px", f"{us / 1e3:.3f}" if us else "–"),
                *(f"{value:.2f}" if "percent" in name else f"{100 * value:.1f}" for name, value in row["val"].items()),
                *(f"{row['steps']}", f"{row['cpu_s']}", f"{row['seed']}"),
            ]
        )
    return [
        "## A proxy for accuracy",
        "",
        "Brief trainings of fp32 networks: the labels of mtfl@train without a teacher, landmarks as heatmaps, equal "
        "steps, one thread, scored on mtfl@val. Far from what the recipes reach, and one seed: a hint at the order, no "
        "more.",
        "",
        *_rows(
            ["network", "input", "w8a8, ms", *(_titled(name) for name in metrics), "steps", "CPU s", "seed"],
            cells,
        ),
        f"`python -m benchmarks.architecture train`, then `report`, {part['date']}, commit {part['commit']}.",
        "",
    ]


def _titled(metric: str) -> str:
    task, name = metric.split(".")
    return f"{task} NME %" if name == "nme_percent" else f"{task} %"


def table(found: Mapping[str, Any]) -> str:
    """Whole networks as CSV, with the proxy's landmark error where a network was trained."""
    errors = {row["name"]: row["val"]["landmarks5.nme_percent"] for row in found.get("training", {"rows": []})["rows"]}
    names = ["name", "plan", "input_px", "runtime", "made_by", "macs", "parameters", "size_bytes", "field", "us"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names, "proxy_nme_percent"])
    for row in found["networks"]["rows"]:
        writer.writerow([*(row[name] for name in names), errors.get(row["name"], "")])
    return stream.getvalue()


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Where the time of edge_s goes: each operation's, and what it would be at the core's peak."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    part = found["profile"]
    rows = [row for row in part["rows"] if row["us"] >= RESOLVED_US]
    ideal = [row.get("macs", 0) / part["peak"]["gmacs"] / 1e3 for row in rows]
    labels = [
        f"{row['operation']} at {row['side']}×{row['side']}" if row.get("side") else row["operation"] for row in rows
    ]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    places = range(len(rows))
    axes.barh(places, [row["us"] for row in rows], color="#2f8fc9", label="measured")
    axes.barh(places, ideal, height=0.35, color="#1b1f27", label="at the core's int8 peak")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel(f"µs of {part['whole_us']:.0f}, edge_s w8a8 in LiteRT, one thread")
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in MEASURED:
        verbs.add_parser(name).add_argument("--rounds", type=int, default=100)
    training = verbs.add_parser("train")
    training.add_argument("names", nargs="*")
    training.add_argument("--out", type=Path, default=Path("runs"))
    training.add_argument("--epochs", type=float, default=12.0)
    training.add_argument("--seed", type=int, default=0)
    verbs.add_parser("report").add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    if arguments.verb == "report":
        trained = collect(arguments.runs)
        if trained["rows"]:
            keep("training", trained)
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
        RESULTS.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
        RESULTS.with_suffix(".csv").write_text(table(found), encoding="utf-8")
        draw(found, RESULTS.with_suffix(".png"))
        return
    if arguments.verb in MEASURED:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        load = [round(os.getloadavg()[0], 2)]
        with tempfile.TemporaryDirectory() as folder:
            found = MEASURED[arguments.verb](Path(folder), rounds=arguments.rounds)
        load.append(round(os.getloadavg()[0], 2))
        keep(
            arguments.verb,
            {**found, "rounds": arguments.rounds, "load_average": load, "cores": os.cpu_count()},
        )
        return
    for shape in TRAINED:
        if shape.name in arguments.names or not arguments.names:
            folder = arguments.out / f"architecture-{shape.name}-{arguments.seed}".replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "result.json").is_file():
                found = train_briefly(shape, folder, epochs=arguments.epochs, seed=arguments.seed)
                (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n")
            print((folder / "result.json").read_text(), flush=True)


MEASURED: Mapping[str, Callable[..., dict[str, Any]]] = {"profile": profile, "blocks": blocks, "networks": networks}


def keep(part: str, found: Mapping[str, Any]) -> None:
    """Put one part of what was measured beside the others."""
    whole = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"schema": 1}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    whole[part] = {**found, "date": date, "commit": commit()}
    whole["conditions"] = {"cpu": cpu(), "versions": versions(), "threads": 1, "batch": 1}
    write_json(RESULTS, whole)


if __name__ == "__main__":
    main()
