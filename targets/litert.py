"""TFLite files in LiteRT, in TensorFlow and in tflite-runtime 2.14: the only module that imports their interpreters.

Loading a broken flatbuffer can end the process that tries; `probe` tries in a process of its own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from edgeface.evaluate import Outputs
from edgeface.memory import limit_error
from edgeface.specs import ModelSpec
from targets.foreign import (
    minimal_spec,
    random_input,
    require_outputs,
    require_pictures,
    standardize,
    takes_no_picture,
    try_apart,
)
from targets.interpreter import describe, run
from targets.protocol import Grids, Operations, Port
from targets.silence import silenced

TFLITE_RUNTIMES = ("tflite-xnnpack", "tflite-builtin", "tensorflow", "tflite-2.14")

_PROBE = """
import contextlib, sys
from ai_edge_litert.interpreter import Interpreter, OpResolverType
def run(resolver):
    interpreter = Interpreter(model_path=sys.argv[1], experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.invoke()
run(OpResolverType.AUTO)
with contextlib.suppress(RuntimeError, ValueError):  # what TFLite's own kernels refuse, they refuse by an error again
    run(OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
"""


def probe(path: Path) -> None:
    """Load and run a file in a process of its own, which a broken one may take down.

    Raises:
        ModelError: It could not be run.
    """
    _litert()
    try_apart(_PROBE, path, runtime="LiteRT", expected="a whole TFLite file")


class Engine(Protocol):
    """A loaded TFLite file: LiteRT's interpreter, TensorFlow's, or a process that holds another.

    Attributes:
        description: See interpreter.describe.
    """

    @property
    def description(self) -> Mapping[str, Any]: ...

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each sample of a batch of inputs: output name to (B, …)."""
        ...

    def prepare(self, sample: NDArray[Any]) -> Callable[[], None]:
        """What to call to run one input."""
        ...


class TfliteRunner:
    """A TFLite file, one picture at a time.

    Args:
        path: The file.
        spec: Its input and outputs; None takes the outputs that are named after a task and have its size.
        runtime: One of TFLITE_RUNTIMES.
        precision: What its manifest calls it; "" reads it off the tensor types.
        threads: CPU threads.
    """

    def __init__(self, path: Path, *, spec: ModelSpec | None, runtime: str, precision: str, threads: int) -> None:
        self.path = path
        self.runtime = runtime
        self.threads = threads
        self._engine = open_engine(path, runtime=runtime, threads=threads)
        inputs = self._engine.description["inputs"]
        if len(inputs) != 1:
            raise UnsupportedError(f"{len(inputs)} inputs", expected="one, a picture", where=str(path))
        self._input = inputs[0]
        if self._input["shape"][:1] != [1]:
            raise UnsupportedError(
                f"an input of the shape {self._input['shape']}", expected="one picture at a time", where=str(path)
            )
        self._outputs = self._engine.description["outputs"]
        self._own = spec is not None  # a float input of a file of ours is the standardized picture
        self.spec = spec or _minimal_spec(path, self._input, self._outputs)
        self.precision = precision or _observed_precision(self._engine.description)
        require_outputs(self.spec, self._outputs, where=str(path))

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def macs(self) -> int | None:
        from targets.flatbuffer import macs

        return macs(self.path.read_bytes())

    @property
    def grids(self) -> Grids:
        """Scale and zero point of each integer output."""
        return {
            name: (float(detail["quantization"][0]), int(detail["quantization"][1]))
            for name, detail in self._outputs.items()
            if detail["dtype"] == "int8"
        }

    @property
    def inputs(self) -> tuple[Port, ...]:
        return (_port(self._input["name"], self._input),)

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(_port(name, slot) for name, slot in self._outputs.items())

    @property
    def operations(self) -> Operations | None:
        """See FileRunner.operations; LiteRT alone tells."""
        if self.runtime not in ("tflite-xnnpack", "tflite-builtin"):
            return None
        counts = delegated(self.path)
        if self.runtime == "tflite-builtin":
            return {"builtin": {name: total for name, (_, total) in counts.items()}}
        taken = {name: here for name, (here, _) in counts.items() if here}
        left = {name: total - here for name, (here, total) in counts.items() if total > here}
        return {"xnnpack": taken, "builtin": left}

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        codes = self.run_codes(batch)
        return {
            output.name: self._real(output.name, codes[output.name]).reshape(len(batch), *output.shape)
            for output in self.spec.outputs
        }

    def answer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """See FileRunner.answer."""
        return {name: self._real(name, raw) for name, raw in self._engine.run(batch).items()}

    def _real(self, name: str, raw: NDArray[Any]) -> NDArray[np.float32]:
        if raw.dtype == np.float32:
            return raw
        scale, zero_point = self._outputs[name]["quantization"]
        if not scale:  # an integer that counts or indexes
            return raw.astype(np.float32)
        return (raw.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)

    def run_codes(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """As `run`, with integer outputs as they leave the file: output name to (B, …)."""
        side = self.spec.input_px
        require_pictures(batch, side, where=str(self.path))
        standardized = self._input["dtype"] == "float32" and self._own
        if not (standardized or self._input["dtype"] == "uint8") or self._input["shape"] != [1, side, side, 3]:
            found = f"{self._input['dtype']} {tuple(self._input['shape'])}"
            raise takes_no_picture(found, where=str(self.path))
        return self._engine.run(standardize(batch, self.spec) if standardized else batch)

    def answer_codes(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """As `answer`, with integer outputs as they leave the file."""
        return self._engine.run(batch)

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare."""
        return self.hold(random_input(tuple(self._input["shape"]), self._input["dtype"], seed=seed))

    def hold(self, sample: NDArray[Any]) -> Callable[[], None]:
        """See FileRunner.hold."""
        return self._engine.prepare(sample)


def _port(name: str, slot: Mapping[str, Any]) -> Port:
    scale, zero_point = slot["quantization"]
    integer = np.dtype(slot["dtype"]).kind in "iu" and scale
    return Port(
        name=name,
        dtype=slot["dtype"],
        shape=tuple(slot["shape"]),
        grid=(float(scale), int(zero_point)) if integer else None,
    )


def delegated(path: Path) -> dict[str, tuple[int, int]]:
    """Which operations XNNPACK takes.

    Returns:
        Operation name to (how many it takes, how many the file has).
    """
    details = _load(_litert(), path, resolver="AUTO", threads=1)._get_ops_details()  # the one place that tells
    own = [detail for detail in details if detail["op_name"] != "DELEGATE"]
    makers = {int(index): place for place, detail in enumerate(own) for index in detail["outputs"]}
    taken: set[int] = set()
    for delegate in (detail for detail in details if detail["op_name"] == "DELEGATE"):
        # A partition is what lies between its inputs and its outputs.
        given = {int(index) for index in delegate["inputs"]}
        wanted = [int(index) for index in delegate["outputs"]]
        while wanted:
            index = wanted.pop()
            place = makers.get(index)
            if index in given or place is None or place in taken:
                continue
            taken.add(place)
            wanted += [int(source) for source in own[place]["inputs"]]
    counts: dict[str, tuple[int, int]] = {}
    for place, detail in enumerate(own):
        here, total = counts.get(detail["op_name"], (0, 0))
        counts[detail["op_name"]] = (here + (place in taken), total + 1)
    return counts


class _InProcess:
    """An interpreter of this process, and the file that it has loaded."""

    def __init__(self, interpreter: Any, path: Path) -> None:
        self._interpreter = interpreter
        self._path = path
        with _blamed(path):
            self.description = describe(interpreter)

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See Engine.run."""
        with _blamed(self._path):
            return run(self._interpreter, self.description, batch)

    def prepare(self, sample: NDArray[Any]) -> Callable[[], None]:
        """See Engine.prepare."""
        with _blamed(self._path):
            self._interpreter.set_tensor(self.description["inputs"][0]["index"], sample)
        invoke: Callable[[], None] = self._interpreter.invoke
        return invoke


def open_engine(path: Path, *, runtime: str, threads: int) -> Engine:
    """Load a file.

    Args:
        path: The file; a broken one may end this process, unless `probe` tried it.
        runtime: One of TFLITE_RUNTIMES.
        threads: CPU threads.

    Raises:
        ModelError: It is not a file that the runtime can run.
        UnsupportedError: The runtime would run it wrongly.
        MissingToolError: The runtime is not installed.
    """
    match runtime:
        case "tflite-2.14":
            from targets.tflite214 import Worker

            return Worker(path, threads=threads)
        case "tensorflow":
            return _InProcess(_load(_tensorflow(), path, resolver="AUTO", threads=threads), path)
        case "tflite-builtin":
            resolver = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
            return _InProcess(_load(_litert(), path, resolver=resolver, threads=threads), path)
        case _:
            return _InProcess(_load(_litert(), path, resolver="AUTO", threads=threads), path)


def _litert() -> Any:
    return _import_module("ai_edge_litert.interpreter", "ai-edge-litert", extra="android")


def _tensorflow() -> Any:
    # It sets the level of its C++ log as it loads.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silenced():
        tensorflow = _import_module("tensorflow", "tensorflow", extra="tf")
        return SimpleNamespace(
            Interpreter=tensorflow.lite.Interpreter, OpResolverType=tensorflow.lite.experimental.OpResolverType
        )


def load_runtime(runtime: str) -> None:
    """Import what runs a file, so that the time a file takes to open does not hold it.

    Raises:
        MissingToolError: It is not installed.
    """
    match runtime:
        case "tensorflow":
            _tensorflow()
        case "tflite-2.14":  # a process of its own, started with the file
            return
        case _:
            _litert()


def _import_module(name: str, package: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)  # it has no types
    except ImportError as error:
        raise MissingToolError(
            f"{package} cannot be imported ({error})",
            expected="the runtime",
            where="running a TFLite file",
            do=f"pip install 'edgeface[{extra}]'",
        ) from error


def _load(module: Any, path: Path, *, resolver: str, threads: int) -> Any:
    with _blamed(path), silenced():  # the delegate announces itself on stderr
        interpreter = module.Interpreter(
            model_path=str(path),
            num_threads=threads,
            experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
        )
        interpreter.allocate_tensors()
    return interpreter


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """What an interpreter raises about a file (names that are no UTF-8, sizes that do not fit) as an error of ours."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        found = f"LiteRT cannot run it ({error})"
        raise limit_error(error) or ModelError(found, expected="a whole TFLite file", where=str(path)) from error


def _minimal_spec(path: Path, picture: Any, outputs: Mapping[str, Any]) -> ModelSpec:
    side = int(picture["shape"][1]) if len(picture["shape"]) == 4 else 0
    return minimal_spec(path.stem, side=side, outputs={name: tuple(slot["shape"]) for name, slot in outputs.items()})


def _observed_precision(description: Mapping[str, Any]) -> str:
    if any(slot["dtype"] == "int8" for slot in description["outputs"].values()):
        return "w8a8"
    kinds = description["dtypes"]
    if "int8" in kinds:
        return "w8a32"
    return "fp16" if "float16" in kinds else "fp32"
