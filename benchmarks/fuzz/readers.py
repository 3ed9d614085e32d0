"""All readers, by name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.fuzz.archives import database_reader, mat_reader, shards_reader
from benchmarks.fuzz.bundles import bundle_reader, golden_reader, signature_reader, tflite_reader
from benchmarks.fuzz.devices import description_reader, result_reader
from benchmarks.fuzz.foreign import litert_reader, mil_reader, onnx_reader, openvino_reader
from benchmarks.fuzz.labels import labels_reader, metadata_reader, pairs_reader
from benchmarks.fuzz.pictures import image_reader
from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.runs import (
    answers_reader,
    checkpoint_reader,
    faces_reader,
    recipe_reader,
    step_reader,
    trial_reader,
)

READERS: dict[str, Callable[[], Reader]] = {
    "recipe": recipe_reader,
    "metadata": metadata_reader,
    "labels": labels_reader,
    "image": image_reader,
    "checkpoint": checkpoint_reader,
    "bundle": bundle_reader,
    "tflite": tflite_reader,
    "golden": golden_reader,
    "result": result_reader,
    "description": description_reader,
    "signature": signature_reader,
    "pairs": pairs_reader,
    "answers": answers_reader,
    "shards": shards_reader,
    "step": step_reader,
    "faces": faces_reader,
    "trial": trial_reader,
    "database": database_reader,
    "mat": mat_reader,
    "litert": litert_reader,
    "onnx": onnx_reader,
    "openvino": openvino_reader,
    "mil": mil_reader,
}
