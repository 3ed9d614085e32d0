"""What a file of others means, in the user's words: a TOML or JSON file given with --spec.

    [input]
    colour = "RGB"                      # or "BGR", "grey"
    mean = [127.5, 127.5, 127.5]        # the input is (pixel - mean) / std, pixels 0 to 255
    std = [127.5, 127.5, 127.5]

    [[outputs]]
    name = "StatefulPartitionedCall:1"  # as the file calls it
    task = "gender"
    values = "probabilities"            # or "logits"
    classes = ["female", "male"]        # edgeface's labels, in the file's order

    [[outputs]]
    name = "StatefulPartitionedCall:0"
    task = "landmarks5"
    coordinates = "pixels"              # of the input; or "crop", 0 to 1; or "offsets" from mean_shape
    points = [[36, 39], [42, 45], [30], [48], [54]]   # which of the file's points; several are averaged

Size, layout and type of the input are read off the file; written, they must agree with it. What the file cannot tell
and the description leaves out is listed, all at once: nothing is guessed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.config import from_plain, parse_toml
from edgeface.errors import ConfigError, UnsupportedError, did_you_mean
from edgeface.evaluate import Outputs
from edgeface.files import read_json, read_limited
from edgeface.specs import ModelSpec, OutputSpec
from edgeface.tasks import TASKS, Kind, Task
from targets.foreign import require_pictures
from targets.protocol import FileRunner, Grids, Operations, Port

COLOURS = ("RGB", "BGR", "grey")
LAYOUTS = ("NHWC", "NCHW")
COORDINATES = ("crop", "pixels", "offsets")
VALUES = {
    Kind.CLASSES: ("logits", "probabilities"),
    Kind.ATTRIBUTES: ("logits", "probabilities"),
    Kind.AGE: ("logits", "probabilities", "years"),
}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_TINY = 1e-12  # least probability whose logarithm is taken
_NEVER = -1e4  # a logit whose softmax share is 0 in float64


@dataclass(frozen=True, kw_only=True)
class InputDescription:
    """How a picture becomes the file's input.

    Attributes:
        colour: One of COLOURS.
        mean: Subtracted from pixels of 0 to 255, one value or one a channel; () where pixels go in as they are.
        std: Divisor after that.
        size: Side in pixels; 0 reads it off the file.
        layout: One of LAYOUTS; "" reads it off the file.
        dtype: NumPy's name; "" reads it off the file.
    """

    colour: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int = 0
    layout: str = ""
    dtype: str = ""


@dataclass(frozen=True, kw_only=True)
class OutputDescription:
    """How one of edgeface's tasks is read from an output. Several may read slices of the same one.

    Attributes:
        name: The output as the file calls it.
        task: Key of tasks.TASKS.
        slice: [first, end) of the output's values, flattened; () takes all.
        values: "logits" or "probabilities" of classes and attributes; "years" for an age in one number.
        classes: edgeface's label for each value in the file's order; "" for a class edgeface has no label for. A label
            that occurs twice gets both shares. One label for one value: the class that value speaks for.
        coordinates: One of COORDINATES, for landmarks.
        mean_shape: (K, 2) in crop sides, for coordinates = "offsets".
        order: "xy" (x1 y1 x2 y2 …) or "planar" (x1 x2 … y1 y2 …), for landmarks.
        dimensions: Values of a point; those after x and y are left out.
        points: Indices of the file's points for each of the task's, averaged; () takes all as they come.
        scale: Factor on coordinates, ages in years and scores.
        offset: Added after that.
        threshold: See specs.OutputSpec.
    """

    name: str
    task: str
    slice: tuple[int, ...] = ()
    values: str = ""
    classes: tuple[str, ...] = ()
    coordinates: str = ""
    mean_shape: tuple[tuple[float, float], ...] = ()
    order: str = "xy"
    dimensions: int = 2
    points: tuple[tuple[int, ...], ...] = ()
    scale: float = 1.0
    offset: float = 0.0
    threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Description:
    """A whole --spec file."""

    input: InputDescription = field(default_factory=InputDescription)
    outputs: tuple[OutputDescription, ...] = ()


def read_description(path: Path) -> Description:
    """A --spec file.

    Raises:
        ConfigError: It is missing, neither TOML nor JSON, or has keys or values of the wrong kind; all are listed.
    """
    where = str(path)
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(f"{path.name!r}", expected="a file that ends in .toml or .json", where="--spec")
    try:
        if path.suffix == ".json":
            found = read_json(path, limit=limits.RECIPE_BYTES)
        else:
            found = parse_toml(read_limited(path, limit=limits.RECIPE_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", expected="a file", where=where) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not {path.suffix[1:].upper()} ({error})", expected="a description", where=where) from None
    if not isinstance(found, dict):
        raise ConfigError("not a table", expected="[input] and [[outputs]]", where=where)
    return from_plain(Description, found, where=where)


class DescribedRunner:
    """A file of others as a Runner: pictures are put into its form, its outputs into edgeface's, named after the tasks.

    Args:
        base: The file.
        description: What it means.
        where: The description's file, for errors.

    Raises:
        ConfigError: With every fault of the description and everything that it leaves open.
    """

    def __init__(self, base: FileRunner, description: Description, *, where: str) -> None:
        self._base = base
        faults: list[ConfigError] = []
        self._input = _resolve_input(description.input, base.inputs[0], faults=faults)
        self._described = description.outputs
        specs = _resolve_outputs(description.outputs, base.outputs, faults=faults)
        if faults:
            raise ConfigError(
                f"{len(faults)} thing{'s' * (len(faults) > 1)} wrong or left open",
                where=where,
                do="Say each of these",
                faults=faults,
            )
        self.spec = ModelSpec(name=base.path.stem, input_px=self._input.size, outputs=specs)

    @property
    def runtime(self) -> str:
        return self._base.runtime

    @property
    def precision(self) -> str:
        return self._base.precision

    @property
    def path(self) -> Path:
        return self._base.path

    @property
    def size_bytes(self) -> int:
        return self._base.size_bytes

    @property
    def macs(self) -> int | None:
        return self._base.macs

    @property
    def operations(self) -> Operations | None:
        return self._base.operations

    @property
    def grids(self) -> Grids:
        """Of the outputs whose values reach the task unchanged."""
        ports = {port.name: port.grid for port in self._base.outputs}
        found = {}
        for output in self._described:
            grid = ports[output.name]
            averaged = any(len(group) > 1 for group in output.points) or len(set(output.classes)) < len(output.classes)
            plain = output.values == "logits" or output.coordinates == "offsets"
            if grid is not None and plain and not averaged and (output.scale, output.offset) == (1.0, 0.0):
                found[output.task] = grid
        return found

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        return self.read(self._base.answer(self.feed(batch)))

    def feed(self, batch: NDArray[np.uint8]) -> NDArray[Any]:
        """Pictures in the file's own form, see `to_input`."""
        require_pictures(batch, self.spec.input_px, where=str(self.path))
        return to_input(batch, self._input, grid=self._base.inputs[0].grid)

    def read(self, answers: Mapping[str, NDArray[np.float32]]) -> Outputs:
        """What the file answered, see `FileRunner.answer`, as the outputs of `spec`."""
        return {
            spec.name: _READERS[TASKS[spec.task].kind](
                _part(answers[output.name].reshape(len(answers[output.name]), -1), output),
                output,
                spec,
                self.spec.input_px,
            )
            for output, spec in zip(self._described, self.spec.outputs, strict=True)
        }

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare."""
        side = self.spec.input_px
        picture = np.random.default_rng(seed).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        return self._base.hold(to_input(picture, self._input, grid=self._base.inputs[0].grid))


def to_input(
    batch: NDArray[np.uint8], form: InputDescription, *, grid: tuple[float, int] | None = None
) -> NDArray[Any]:
    """Pictures in a file's own form.

    Args:
        batch: (B, H, W, 3) RGB.
        form: A description without open ends.
        grid: Scale and zero point of an integer input, for values that mean and std turn into others than pixels.

    Returns:
        (B, H, W, C) or (B, C, H, W) of the form's type, C 1 for grey.
    """
    pictures: NDArray[Any] = batch if form.colour == "RGB" else batch[..., ::-1]
    if form.colour == "grey":
        pictures = np.rint(batch.astype(np.float32) @ np.array(LUMA, np.float32))[..., None].astype(np.uint8)
    kind = np.dtype(form.dtype)
    if form.mean:
        mean, std = np.array(form.mean, np.float32), np.array(form.std, np.float32)
        values = (pictures.astype(np.float32) - mean) / std
        if kind.kind in "iu":
            assert grid is not None  # _resolve_input refuses it otherwise
            limits = np.iinfo(kind)
            values = np.clip(np.rint(values / np.float32(grid[0])) + grid[1], limits.min, limits.max)
        pictures = values.astype(kind)
    elif kind == np.int8:
        pictures = (pictures.astype(np.int16) - 128).astype(np.int8)
    else:
        pictures = pictures.astype(kind)
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2) if form.layout == "NCHW" else pictures)


def template(path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    """A --spec file to fill in: what the file tells is written, "?" stands where only its maker knows."""
    form = _read_off(inputs[0])
    lines = [f'# What {path.name} does not say of itself. Replace every "?" and leave out what does not apply.']
    lines += ["[input]" + f"                    # {inputs[0]}"]
    lines += [f"size = {form.size}"] if form.size else ['size = "?"']
    lines += [f'layout = "{form.layout or "?"}"' + ("" if form.layout else '              # "NHWC" or "NCHW"')]
    lines += ['colour = "?"               # "RGB", "BGR" or "grey"']
    if np.dtype(form.dtype).kind == "f":
        lines += ['mean = "?"                 # the input is (pixel - mean) / std, pixels 0 to 255', 'std = "?"']
    elif inputs[0].dtype == "int8":
        lines += ["# mean and std as of a float input, unless the input is the pixel minus 128"]
    for port in outputs:
        lines += ["", "[[outputs]]", f'name = "{port.name}"', f"# {port}", 'task = "?"']
        lines += ['# landmarks: coordinates = "crop", "pixels" or "offsets" (then mean_shape = [[x, y], …])']
        lines += ['# classes:   values = "logits" or "probabilities", classes = [labels in the file\'s order]']
    tasks = textwrap.wrap(f"tasks: {', '.join(TASKS)}", width=100)
    return "\n".join([*lines, "", *(f"# {line}" for line in tasks)])


def _read_off(port: Port) -> InputDescription:
    """What a file tells of its input; 0 and "" for the rest."""
    dtype = port.dtype
    if len(port.shape) != 4:
        return InputDescription(dtype=dtype)
    _, first, second, third = port.shape
    layout = "NHWC" if third in (1, 3) and first not in (1, 3) else "NCHW" if first in (1, 3) else ""
    sides = (first, second) if layout == "NHWC" else (second, third)
    same = layout and sides[0] == sides[1] and sides[0] is not None
    return InputDescription(dtype=dtype, layout=layout, size=int(sides[0] or 0) if same else 0)


def _resolve_input(given: InputDescription, port: Port, *, faults: list[ConfigError]) -> InputDescription:
    """The description with what the file tells filled in."""

    def fault(key: str, found: str, expected: str) -> None:
        faults.append(ConfigError(found, expected=expected, where=f"input.{key}"))

    told = _read_off(port)
    form = InputDescription(
        colour=given.colour,
        mean=given.mean,
        std=given.std,
        size=given.size or told.size,
        layout=given.layout or told.layout,
        dtype=given.dtype or told.dtype,
    )
    if len(port.shape) != 4:
        fault("size", f"an input {port}", "a picture: four sides, the batch first")
        return form
    if form.colour not in COLOURS:
        fault("colour", _quoted(form.colour), _one_of(COLOURS))
    if form.layout not in LAYOUTS:
        fault("layout", _quoted(form.layout), _one_of(LAYOUTS))
    if form.size < 1:
        fault("size", f"{given.size or 'no size'} for an input {port}", "the side of a square picture in pixels")
    if form.dtype != port.dtype:
        fault("dtype", repr(form.dtype), f"{port.dtype!r}, the file's")
    channels = 1 if form.colour == "grey" else 3
    side = form.size
    shape = (channels, side, side) if form.layout == "NCHW" else (side, side, channels)
    if form.layout in LAYOUTS and form.colour in COLOURS and side > 0:
        fits = all(own in (None, wanted) for own, wanted in zip(port.shape[1:], shape, strict=True))
        if not fits:
            fault("layout", f"{form.layout} of {side} px, {form.colour}: (1, {', '.join(map(str, shape))})", str(port))
    _check_values(form, port, channels=channels, fault=fault)
    return form


def _check_values(form: InputDescription, port: Port, *, channels: int, fault: Callable[[str, str, str], None]) -> None:
    kind = np.dtype(port.dtype).kind if port.dtype in np.sctypeDict else ""
    if kind not in ("f", "i", "u"):
        fault("dtype", repr(port.dtype), "numbers")
        return
    if kind == "f" and not form.mean:
        fault("mean", "left out", "what is subtracted from pixels of 0 to 255; [0] where nothing is")
    if kind == "f" and not form.std:
        fault("std", "left out", "what they are divided by after that; [255] for values of 0 to 1, [1] for pixels")
    for key, values in (("mean", form.mean), ("std", form.std)):
        if values and (len(values) not in (1, channels) or not all(map(math.isfinite, values))):
            fault(key, repr(list(values)), f"1 or {channels} numbers")
    if any(value == 0.0 for value in form.std):
        fault("std", repr(list(form.std)), "numbers other than 0")
    if kind != "f" and bool(form.mean) != bool(form.std):
        fault("mean", "mean without std, or std without mean", "both, or neither")
    if kind != "f" and form.mean and port.grid is None:
        fault("mean", f"mean and std for an input {port}", "none: it has no scale that they could be written in")
    if kind != "f" and not form.mean and port.dtype not in ("uint8", "int8"):
        fault("dtype", repr(port.dtype), "float32, float16, uint8 or int8")


def _resolve_outputs(
    given: Sequence[OutputDescription], ports: Sequence[Port], *, faults: list[ConfigError]
) -> tuple[OutputSpec, ...]:
    if not given:
        faults.append(ConfigError("no [[outputs]]", expected="at least one, with name and task", where="outputs"))
    held = {port.name: port for port in ports}
    specs = []
    seen: set[str] = set()
    for place, output in enumerate(given):

        def fault(key: str, found: str, expected: str, *, do: str = "", place: int = place) -> None:
            faults.append(ConfigError(found, expected=expected, where=f"outputs[{place}].{key}", do=do))

        if output.name not in held:
            fault("name", repr(output.name), _one_of(tuple(held)), do=did_you_mean(output.name, held))
        task = TASKS.get(output.task)
        if task is None:
            fault("task", repr(output.task), _one_of(tuple(TASKS)), do=did_you_mean(output.task, TASKS))
        if output.task in seen:
            fault("task", f"{output.task!r} a second time", "one output for a task")
        seen.add(output.task)
        if task is None or output.name not in held:
            continue
        count = math.prod(side or 1 for side in held[output.name].shape[1:])
        if output.slice:
            if len(output.slice) != 2 or not 0 <= output.slice[0] < output.slice[1] <= count:
                fault("slice", repr(list(output.slice)), f"[first, end) within its {count} values")
                continue
            count = output.slice[1] - output.slice[0]
        if not 0.0 < output.threshold < 1.0:
            fault("threshold", repr(output.threshold), "a probability between 0 and 1")
        specs.append(_CHECKS[task.kind](output, task, count, fault))
    return tuple(specs)


Fault = Callable[..., None]


def _check_landmarks(output: OutputDescription, task: Task, count: int, fault: Fault) -> OutputSpec:
    if output.coordinates not in COORDINATES:
        fault("coordinates", _quoted(output.coordinates), _one_of(COORDINATES))
    if output.order not in ("xy", "planar"):
        fault("order", repr(output.order), _one_of(("xy", "planar")))
    if output.dimensions < 2 or count % max(output.dimensions, 1):
        fault("dimensions", f"{output.dimensions} values a point, {count} in all", "2 or more that divide them")
    held = count // max(output.dimensions, 1)
    if not output.points and held != task.points:
        fault("points", f"{held} points for {task.name}", f"{task.points} lists of their indices, 0 to {held - 1}")
    elif output.points and (
        len(output.points) != task.points
        or any(not group or not all(0 <= index < held for index in group) for group in output.points)
    ):
        fault("points", repr(output.points), f"{task.points} lists of indices, 0 to {held - 1}")
    if output.coordinates == "offsets" and len(output.mean_shape) != task.points:
        fault("mean_shape", f"{len(output.mean_shape)} points", f"{task.points}, in crop sides: what is offset from")
    if output.coordinates != "offsets" and output.mean_shape:
        fault("mean_shape", "given", 'coordinates = "offsets" with it')
    mean_shape = output.mean_shape or ((0.0, 0.0),) * task.points
    return OutputSpec(name=task.name, task=task.name, shape=task.output_shape, mean_shape=mean_shape)


def _check_classes(output: OutputDescription, task: Task, count: int, fault: Fault) -> OutputSpec:
    _check_kind_of_values(output, task, fault)
    labels = f"labels out of {', '.join(map(repr, task.classes))}"
    unknown = [label for label in output.classes if label and label not in task.classes]
    if unknown:
        fault("classes", repr(unknown), labels, do=did_you_mean(unknown[0], task.classes))
    one = count == 1 and len(task.classes) == 2
    if len(output.classes) != count:
        fault("classes", f"{len(output.classes)} {labels} for {count} values", f"{count}, in the file's order")
    elif not one and (missing := [label for label in task.classes if label not in output.classes]):
        fault("classes", f"no {', '.join(map(repr, missing))}", "every class of the task")
    return _of_task(output, task)


def _check_attributes(output: OutputDescription, task: Task, count: int, fault: Fault) -> OutputSpec:
    _check_kind_of_values(output, task, fault)
    if len(output.classes) != count or any(output.classes.count(name) != 1 for name in task.classes):
        fault("classes", repr(output.classes), f"{count} names, each of {', '.join(map(repr, task.classes))} once")
    return _of_task(output, task)


def _check_age(output: OutputDescription, task: Task, count: int, fault: Fault) -> OutputSpec:
    _check_kind_of_values(output, task, fault)
    expected = 1 if output.values == "years" else task.output_shape[0]
    if output.values in VALUES[Kind.AGE] and count != expected:
        fault("values", f"{output.values!r} with {count} values", f"{expected} values; `slice` takes a part")
    return _of_task(output, task)


def _check_score(output: OutputDescription, task: Task, count: int, fault: Fault) -> OutputSpec:
    if count != 1:
        fault("slice", f"{count} values", "one; `slice` takes a part")
    return _of_task(output, task)


def _check_identity(output: OutputDescription, task: Task, count: int, fault: Fault) -> OutputSpec:
    return OutputSpec(name=task.name, task=task.name, shape=(count,))


def _check_kind_of_values(output: OutputDescription, task: Task, fault: Fault) -> None:
    if output.values not in VALUES[task.kind]:
        fault("values", _quoted(output.values), _one_of(VALUES[task.kind]))


def _of_task(output: OutputDescription, task: Task) -> OutputSpec:
    return OutputSpec(
        name=task.name, task=task.name, shape=task.output_shape, classes=task.classes, threshold=output.threshold
    )


_CHECKS: Mapping[Kind, Callable[[OutputDescription, Task, int, Fault], OutputSpec]] = {
    Kind.LANDMARKS: _check_landmarks,
    Kind.CLASSES: _check_classes,
    Kind.ATTRIBUTES: _check_attributes,
    Kind.AGE: _check_age,
    Kind.SCORE: _check_score,
    Kind.IDENTITY: _check_identity,
}


def _part(values: NDArray[np.float32], output: OutputDescription) -> NDArray[np.float32]:
    return values[:, slice(*output.slice)] if output.slice else values


def _read_landmarks(
    values: NDArray[np.float32], output: OutputDescription, spec: OutputSpec, side: int
) -> NDArray[np.float32]:
    if output.order == "planar":
        points = values.reshape(len(values), output.dimensions, -1).transpose(0, 2, 1)
    else:
        points = values.reshape(len(values), -1, output.dimensions)
    points = points[..., :2]
    if output.points:
        points = np.stack([points[:, list(group)].mean(axis=1) for group in output.points], axis=1)
    if (output.scale, output.offset) != (1.0, 0.0):
        points = points * np.float32(output.scale) + np.float32(output.offset)
    return np.asarray(points / np.float32(side) if output.coordinates == "pixels" else points, np.float32)


def _read_classes(
    values: NDArray[np.float32], output: OutputDescription, spec: OutputSpec, side: int
) -> NDArray[np.float32]:
    if values.shape[1] == 1:
        difference = _logit(values[:, 0]) if output.values == "probabilities" else values[:, 0]
        logits = np.zeros((len(values), 2), np.float32)
        logits[:, spec.classes.index(output.classes[0])] = difference
        return logits
    if output.values == "probabilities":
        values = np.log(np.maximum(values, _TINY))
    columns = []
    for label in spec.classes:
        places = [place for place, given in enumerate(output.classes) if given == label]
        # One logit passes untouched; the shares of several add.
        columns.append(values[:, places[0]] if len(places) == 1 else np.logaddexp.reduce(values[:, places], axis=1))
    return np.stack(columns, axis=1).astype(np.float32)


def _read_attributes(
    values: NDArray[np.float32], output: OutputDescription, spec: OutputSpec, side: int
) -> NDArray[np.float32]:
    ordered = values[:, [output.classes.index(name) for name in spec.classes]]
    return _logit(ordered) if output.values == "probabilities" else ordered


def _read_age(
    values: NDArray[np.float32], output: OutputDescription, spec: OutputSpec, side: int
) -> NDArray[np.float32]:
    if output.values == "logits":
        return values
    if output.values == "probabilities":
        return np.log(np.maximum(values, _TINY)).astype(np.float32)
    # Two neighbouring years whose shares have that mean.
    stages = spec.shape[0]
    years = np.clip(values[:, 0] * output.scale + output.offset, 0, stages - 1)
    below = np.minimum(np.floor(years), stages - 2).astype(np.int64)
    above = years - below
    logits = np.full((len(values), stages), _NEVER, np.float32)
    rows = np.arange(len(values))
    logits[rows, below] = np.log(np.maximum(1.0 - above, _TINY))
    logits[rows, below + 1] = np.log(np.maximum(above, _TINY))
    return logits


def _read_score(
    values: NDArray[np.float32], output: OutputDescription, spec: OutputSpec, side: int
) -> NDArray[np.float32]:
    return np.asarray(values * np.float32(output.scale) + np.float32(output.offset), np.float32)


def _read_identity(
    values: NDArray[np.float32], output: OutputDescription, spec: OutputSpec, side: int
) -> NDArray[np.float32]:
    return values


_READERS: Mapping[Kind, Callable[[NDArray[np.float32], OutputDescription, OutputSpec, int], NDArray[np.float32]]] = {
    Kind.LANDMARKS: _read_landmarks,
    Kind.CLASSES: _read_classes,
    Kind.ATTRIBUTES: _read_attributes,
    Kind.AGE: _read_age,
    Kind.SCORE: _read_score,
    Kind.IDENTITY: _read_identity,
}


def _logit(share: NDArray[np.float32]) -> NDArray[np.float32]:
    clipped = np.clip(share.astype(np.float64), _TINY, 1.0 - _TINY)
    return np.asarray(np.log(clipped / (1.0 - clipped)), np.float32)


def _quoted(value: str) -> str:
    return repr(value) if value else "left out"


def _one_of(names: Sequence[str]) -> str:
    return f"one of {', '.join(map(repr, names))}"


def undescribed(path: Path, inputs: Sequence[Port], outputs: Sequence[Port], *, why: str) -> UnsupportedError:
    """The error for a file of others that is to be scored and whose meaning nobody has said, with a form to fill in."""
    listed = "\n".join([*(f"  input  {port}" for port in inputs), *(f"  output {port}" for port in outputs)])
    return UnsupportedError(
        why,
        expected="a file of edgeface's, or a description of what it takes and answers",
        where=str(path),
        do=f"The file has\n{listed}\nFill this in and give it with --spec FILE.toml\n\n"
        f"{template(path, inputs, outputs)}",
    )
