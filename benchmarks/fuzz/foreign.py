"""Inputs for the readers of others' tool-kits, which read after edgeface has tried a file."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.bundles import tflite_reader
from benchmarks.fuzz.mutate import mutate_bytes, mutate_word, mutated_json
from benchmarks.fuzz.reader import Files, Reader


@functools.cache
def tiny_models(kind: str) -> Mapping[str, bytes]:
    """The files of `benchmarks.tiny_models`, by their paths; written by a process of its own, so that none of the
    converters, their memory and their threads are in the one that forks."""
    from benchmarks.tiny_models import make_apart

    with tempfile.TemporaryDirectory() as name:
        make_apart(kind, Path(name))
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }


def _open_and_run(path: Path) -> object:
    """What verbs do with a model file that passed its trial."""
    from targets.runners import FORMATS, locate, noted

    kind = FORMATS[path.suffix]
    found = locate(path)
    spec, precision = noted(path, kind)
    runner: Any = kind.open(path, spec=spec, runtime=kind.runtimes[0], precision=precision, threads=1)
    runner.prepare(0)()
    told = runner.macs, runner.precision, runner.grids, runner.outputs, runner.spec
    port = runner.inputs[0]
    if None not in port.shape[1:] and math.prod(port.shape[1:]) < 1 << 16:
        return found, told, runner.answer(np.zeros((2, *port.shape[1:]), port.dtype))
    return found, told


def litert_reader() -> Reader:
    from targets.runners import FORMATS

    whole = tflite_reader()
    FORMATS[".tflite"].load("tflite-xnnpack")

    def trial(folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        for resolver in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
            interpreter = Interpreter(
                model_path=str(folder / "a.tflite"), experimental_op_resolver_type=resolver, num_threads=1
            )
            interpreter.allocate_tensors()
            interpreter.invoke()

    return Reader(make=whole.make, trial=trial, read=lambda folder: _open_and_run(folder / "a.tflite"))


def onnx_reader() -> Reader:
    import onnx

    from targets.onnx import OnnxRunner
    from targets.runners import FORMATS

    FORMATS[".onnx"].load("onnxruntime")
    models = [onnx.ModelProto.FromString(content) for content in tiny_models("onnx").values()]

    def make(dice: random.Random) -> Files:
        model = dice.choice(models)
        if dice.randrange(3) == 0:
            return {"a.onnx": mutate_bytes(dice, model.SerializeToString())}
        return {"a.onnx": mutate_message(dice, model)}

    def trial(folder: Path) -> None:
        runner = OnnxRunner(folder / "a.onnx", spec=None, runtime="onnxruntime", precision="", threads=1)
        runner.prepare(0)()
        _ = runner.macs

    return Reader(make=make, trial=trial, read=lambda folder: _open_and_run(folder / "a.onnx"))


def openvino_reader() -> Reader:
    import openvino

    from targets.runners import FORMATS

    FORMATS[".xml"].load("openvino")
    files = tiny_models("openvino")

    def make(dice: random.Random) -> Files:
        name = dice.choice(("float", "int8"))
        text, weights = files[f"{name}.xml"], files[f"{name}.bin"]
        kind = dice.randrange(4)
        if kind == 0:
            text = mutate_bytes(dice, text)
        elif kind == 1:
            weights = mutate_bytes(dice, weights)
        else:
            text = _other_words(dice, text)
        return {"a.xml": text, "a.bin": weights}

    def trial(folder: Path) -> None:
        compiled = openvino.Core().compile_model(str(folder / "a.xml"), "CPU", {"INFERENCE_NUM_THREADS": 1})
        if all(port.get_partial_shape().is_static for port in compiled.inputs):
            compiled.create_infer_request().infer()

    return Reader(make=make, trial=trial, read=lambda folder: _open_and_run(folder / "a.xml"))


def _other_words(dice: random.Random, text: bytes) -> bytes:
    """XML with a few of its attributes' or elements' words exchanged for others of the file or for odd ones."""
    for _ in range(1 << dice.randrange(3)):
        places = list(re.finditer(rb'(?<=")[^"<>]*(?=")|(?<=>)[^<>\s]+(?=<)', text))
        if not places:
            break
        place = dice.choice(places)
        odd = (b"-1", b"0", b"4294967296", b"9" * 25, b"1e999", b"", b"f8E5M2", b"dynamic", b"\xff", b"1,1,1,1,1,1")
        word = dice.choice((dice.choice(places).group(), dice.choice(odd)))
        text = text[: place.start()] + word + text[place.end() :]
    return text


def mil_reader() -> Reader:
    import torch

    from targets.coreml import _proto
    from targets.mil import MilRunner

    torch.set_num_threads(1)
    files = tiny_models("coreml")
    inside = "Data/com.apple.CoreML/model.mlmodel"
    message = _proto("Model_pb2").Model
    models = {name: message.FromString(files[f"{name}.mlpackage/{inside}"]) for name in ("float", "int8")}

    def make(dice: random.Random) -> Files:
        name = dice.choice(sorted(models))
        made = {f"a.mlpackage/{path.partition('/')[2]}": files[path] for path in files if path.startswith(f"{name}.")}
        kind = dice.randrange(8)
        manifest, weights = "a.mlpackage/Manifest.json", "a.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
        if kind == 0:
            made[manifest] = mutated_json(dice, json.loads(made[manifest]))
        elif kind == 1:
            made[weights] = mutate_bytes(dice, made[weights])
        elif kind == 2:
            made[f"a.mlpackage/{inside}"] = mutate_bytes(dice, made[f"a.mlpackage/{inside}"])
        else:
            made[f"a.mlpackage/{inside}"] = mutate_message(dice, models[name])
        return made

    def trial(folder: Path) -> None:
        MilRunner(folder / "a.mlpackage", spec=None, runtime="mil", precision="", threads=1).prepare(0)()

    return Reader(make=make, trial=trial, read=lambda folder: _open_and_run(folder / "a.mlpackage"))


def mutate_message(dice: random.Random, whole: Any) -> bytes:
    """A protobuf message with a few of its fields replaced, removed, repeated or exchanged, at any depth."""
    message = type(whole)()
    message.CopyFrom(whole)
    for _ in range(1 << dice.randrange(3)):
        holder = dice.choice(list(_messages(message)))
        fields = [descriptor for descriptor, _ in holder.ListFields()] or list(holder.DESCRIPTOR.fields)
        field_of = dice.choice(fields if dice.randrange(8) else list(holder.DESCRIPTOR.fields))
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):  # a value the field cannot hold
            _change_field(dice, holder, field_of)
    return bytes(message.SerializeToString())


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        repeated = not hasattr(value, "ListFields")
        held = value.values() if repeated and hasattr(value, "values") else value if repeated else [value]
        for inner in held:
            if hasattr(inner, "ListFields"):
                yield from _messages(inner)


def _change_field(dice: random.Random, holder: Any, descriptor: Any) -> None:
    name, value = descriptor.name, getattr(holder, descriptor.name)
    if dice.randrange(6) == 0:
        holder.ClearField(name)
    elif hasattr(value, "keys") and len(value):  # a map
        key = dice.choice(sorted(value))
        if hasattr(value[key], "CopyFrom") and dice.randrange(2):
            value[dice.choice((*value, mutate_word(dice, str(key))))].CopyFrom(value[key])
        del value[key]
    elif hasattr(value, "extend"):  # a list
        kept = list(value)
        place = dice.randrange(len(kept)) if kept else 0
        match dice.randrange(4):
            case 0 if kept:
                del value[place]
            case 1 if kept:
                value.extend([kept[place]] * dice.choice((1, 2, 50)))
            case 2 if len(kept) > 1:
                del value[:]
                value.extend(dice.sample(kept, len(kept)))
            case _ if descriptor.message_type is None:
                put = _scalar(dice, kept[place] if kept else 0)
                value.extend([put]) if not kept else value.__setitem__(place, put)
            case _:
                value.add()
    elif descriptor.message_type is not None:
        value.SetInParent()
    else:
        setattr(holder, name, _scalar(dice, value))


def _scalar(dice: random.Random, value: Any) -> Any:
    if isinstance(value, str):
        return dice.choice((mutate_word(dice, value), "", "conv", "image", "x" * 3000, "../x", "\u202e"))
    if isinstance(value, bytes):
        return mutate_bytes(dice, value)
    if isinstance(value, float):
        return dice.choice((0.0, -1.0, math.nan, math.inf, 1e30, 1e-40, value * 2))
    odd = (0, 1, -1, 2, 3, 255, 2**16, 2**20, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)
    return dice.choice((*odd, int(value) + 1, int(value) - 1, -int(value), dice.randrange(40)))
