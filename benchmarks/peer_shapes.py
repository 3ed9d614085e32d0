"""Files of the shape that peers ship, made here and so without a download: MobileNetV1 with a quarter of its channels
at 128 px, a common backbone of mobile face networks. Weights are random; they change neither time nor size.

    python -m benchmarks.peer_shapes FOLDER

Writes mobilenet_v1_025.fp32.tflite and mobilenet_v1_025.int8.tflite with TensorFlow's converter (post-training int8,
int8 input and output), and mobilenet_v1_025.fp32.onnx (NCHW) with torch's exporter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from targets.silence import silenced

SIDE = 128
NAME = "mobilenet_v1_025"


def write_tflite(folder: Path) -> list[Path]:
    """The float and the int8 file, as TensorFlow's converter writes them."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(0)
    network = tf.keras.applications.MobileNet(
        input_shape=(SIDE, SIDE, 3), alpha=0.25, weights=None, classes=10, classifier_activation=None
    )
    generator = np.random.default_rng(0)

    def samples() -> Iterator[list[Any]]:
        for _ in range(8):
            yield [generator.uniform(-1.0, 1.0, (1, SIDE, SIDE, 3)).astype(np.float32)]

    whole = tf.lite.TFLiteConverter.from_keras_model(network)
    integer = tf.lite.TFLiteConverter.from_keras_model(network)
    integer.optimizations = [tf.lite.Optimize.DEFAULT]
    integer.representative_dataset = samples
    integer.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    integer.inference_input_type = integer.inference_output_type = tf.int8
    paths = [folder / f"{NAME}.fp32.tflite", folder / f"{NAME}.int8.tflite"]
    for path, converter in zip(paths, (whole, integer), strict=True):
        with silenced():  # it lists every tensor
            content = converter.convert()
        path.write_bytes(content)
    return paths


def write_onnx(folder: Path) -> Path:
    """The float network, channels first, as torch's exporter writes it."""
    import torch

    def block(inward: int, outward: int, stride: int) -> list[torch.nn.Module]:
        depthwise = torch.nn.Conv2d(inward, inward, 3, stride, 1, groups=inward)
        return [depthwise, torch.nn.ReLU6(), torch.nn.Conv2d(inward, outward, 1), torch.nn.ReLU6()]

    # Howard et al. 2017, table 1, channels over 4.
    plan = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)]
    plan += [(128, 128, 1)] * 5 + [(128, 256, 2), (256, 256, 1)]
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU6()]
    for step in plan:
        layers += block(*step)
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(256, 10)]
    path = folder / f"{NAME}.fp32.onnx"
    with silenced():
        torch.onnx.export(
            torch.nn.Sequential(*layers).eval(),
            (torch.zeros(1, 3, SIDE, SIDE),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamo=False,
        )
    return path


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*write_tflite(folder), write_onnx(folder)):
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
