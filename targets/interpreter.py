"""A TFLite interpreter served over a pipe, and what every TFLite interpreter is asked, whoever made it.

Run as a script by the Python of another environment (targets/tflite214.py), it needs NumPy and tflite-runtime alone:

    python interpreter.py MODEL THREADS RESOLVER

A frame is 8 bytes of length, big-endian, and that many bytes. The first frame it sends is `describe` as JSON. Then each
request is one frame that begins with a letter:

    B + npy    a batch of inputs; answered by one frame of npy for each output, in the order of the description
    P + npy    one input, to be kept; answered by an empty frame
    I          run what was kept; answered by an empty frame

The end of its input is the end of the process.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def describe(interpreter: Any) -> dict[str, Any]:
    """Input, outputs and tensor types of a loaded file, as JSON takes them.

    Returns:
        `inputs`: list of slots; `outputs`: name to slot, by the signature where there is one, else by tensor name;
        `dtypes`: NumPy names of all tensors' types. A slot has `name`, `index`, `dtype`, `shape` and `quantization`.
    """
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        outputs = dict(interpreter.get_signature_runner().get_output_details())
    else:
        outputs = {detail["name"]: detail for detail in interpreter.get_output_details()}
    dtypes = {np.dtype(detail["dtype"]).name for detail in interpreter.get_tensor_details()}
    return {
        "inputs": [_slot(detail) for detail in interpreter.get_input_details()],
        "outputs": {name: _slot(detail) for name, detail in outputs.items()},
        "dtypes": sorted(dtypes),
    }


def _slot(detail: Any) -> dict[str, Any]:
    scale, zero_point = detail["quantization"]
    return {
        "name": str(detail["name"]),
        "index": int(detail["index"]),
        "dtype": np.dtype(detail["dtype"]).name,
        "shape": [int(side) for side in detail["shape"]],
        "quantization": [float(scale), int(zero_point)],
    }


def run(interpreter: Any, description: dict[str, Any], batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Each sample of a batch, one at a time: output name to (B, …)."""
    outputs = description["outputs"]
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in outputs}
    for sample in batch:
        interpreter.set_tensor(description["inputs"][0]["index"], sample[None])
        interpreter.invoke()
        for name, slot in outputs.items():
            values = interpreter.get_tensor(slot["index"])
            rows[name].append(values[0] if slot["shape"][:1] == [1] else values)  # not every output leads with a batch
    return {
        name: np.stack(rows[name]) if len(batch) else np.empty((0, *slot["shape"][1:]), slot["dtype"])
        for name, slot in outputs.items()
    }


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame; None at the end of the stream, however it ended."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    length = int.from_bytes(head, "big")
    content = stream.read(length)
    return content if len(content) == length else None


def write_frame(stream: BinaryIO, content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "big") + content)
    stream.flush()


def to_npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def from_npy(content: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def serve(path: str, *, threads: int, resolver: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Load a file in tflite-runtime and answer until the requests end."""
    module = importlib.import_module("tflite_runtime.interpreter")
    interpreter = module.Interpreter(
        model_path=path,
        num_threads=threads,
        experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
    )
    interpreter.allocate_tensors()
    description = describe(interpreter)
    write_frame(answers, json.dumps(description).encode())
    while (request := read_frame(requests)) is not None:
        letter, rest = request[:1], request[1:]
        if letter == b"B":
            for values in run(interpreter, description, from_npy(rest)).values():
                write_frame(answers, to_npy(values))
            continue
        if letter == b"P":
            interpreter.set_tensor(description["inputs"][0]["index"], from_npy(rest))
        else:
            interpreter.invoke()
        write_frame(answers, b"")


if __name__ == "__main__":
    # What a library prints must not get between the answers.
    answers_stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(
        sys.argv[1],
        threads=int(sys.argv[2]),
        resolver=sys.argv[3],
        requests=sys.stdin.buffer,
        answers=answers_stream,
    )
