"""The network as a flat list of integer-friendly operations: what QAT trains, the simulator and targets compute."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeface.errors import UnsupportedError
from edgeface.models.layers import Conv2dSame, Luma, MaxFeatureMap, Standardize
from edgeface.models.network import MultiTaskNetwork

INPUT = "image"

Op = Literal["conv2d", "linear", "max_pool", "mfm", "add", "mean", "flatten", "cells"]

# These only move or choose among values of their input, so they keep its scale and lose nothing.
SHARING: tuple[Op, ...] = ("max_pool", "mfm", "flatten", "cells")
# These pass a factor on their input's channels through, so it can be moved behind them.
_LINEAR: tuple[Op, ...] = ("conv2d", "linear", "mean", "flatten")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation, batch-norm folded and ReLU fused.

    Attributes:
        name: Unique, from the module path with '_' for '.'.
        op: max_pool, mfm (halves of the channels, elementwise maximum), flatten and cells (channels last, so that an
            output lies alike in the files of every target) keep their input's scale; mean is over H and W.
        inputs: Names of the nodes it reads, or INPUT.
        shape: Output shape of one sample: (C, H, W) or (D,); of cells (H, W, C).
        relu: ReLU fused behind it.
        kernel: Rows and columns (conv2d, max_pool).
        stride: Rows and columns.
        padding: Zero padding: top, bottom, left, right (conv2d).
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    relu: bool = False
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A deployable network, in execution order.

    Attributes:
        input_px: Side of the square input.
        nodes: In execution order.
        outputs: Output name to the node that yields it.
        weights: Node name to weight, OIHW (conv2d) or (out, in) (linear; in = C·H·W order behind a flatten).
        biases: Node name to bias (out,).
        mean: Subtracted from the uint8 picture, per channel.
        std: Divisor after that.
        output_shapes: Shape of one sample of the outputs that differ in shape from the node that yields them: (K, 2)
            landmarks lie in their node row by row.
        fixed: Nodes whose weights are constants of the design and are not trained.
    """

    input_px: int
    nodes: tuple[Node, ...]
    outputs: Mapping[str, str]
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    output_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def output_shape(self, output: str) -> tuple[int, ...]:
        """Shape of one sample of an output, as the network's users see it."""
        if output in self.output_shapes:
            return self.output_shapes[output]
        return self.node(self.outputs[output]).shape


def scale_owners(graph: Graph) -> dict[str, str]:
    """INPUT and every node name, each with the name whose quantization point decides its scale."""
    owners = {INPUT: INPUT}
    for node in graph.nodes:
        owners[node.name] = owners[node.inputs[0]] if node.op in SHARING else node.name
    return owners


def apply(node: Node, inputs: Sequence[Tensor], *, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """One node in floating point, its ReLU included.

    Args:
        node: What to compute.
        inputs: (B, C, H, W) or (B, D), one per name in `node.inputs`.
        weight: For conv2d and linear.
        bias: For conv2d and linear.

    Returns:
        (B, *node.shape)
    """
    x = inputs[0]
    match node.op:
        case "conv2d":
            assert weight is not None
            top, bottom, left, right = node.padding
            if top == bottom and left == right:
                y = F.conv2d(x, weight, bias, node.stride, (top, left))
            else:
                y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, node.stride)
        case "linear":
            assert weight is not None
            y = F.linear(x, weight, bias)
        case "max_pool":
            y = F.max_pool2d(x, node.kernel, node.stride)
        case "mfm":
            first, second = x.chunk(2, dim=1)
            y = torch.maximum(first, second)
        case "add":
            y = inputs[0] + inputs[1]
        case "mean":
            y = x.mean((2, 3))
        case "flatten":
            y = x.flatten(1)
        case "cells":
            y = x.permute(0, 2, 3, 1)
    return F.relu(y) if node.relu else y


def run(graph: Graph, images: Tensor) -> dict[str, Tensor]:
    """The graph in floating point: what the evaluation-mode network computes, up to rounding.

    Args:
        graph: What to run.
        images: (B, 3, I, I), 0 to 255.

    Returns:
        Output name to (B, *shape).
    """
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (graph.mean, graph.std))
    values = {INPUT: (images - mean) / std}
    for node in graph.nodes:
        weight, bias = graph.weights.get(node.name), graph.biases.get(node.name)
        values[node.name] = apply(node, [values[name] for name in node.inputs], weight=weight, bias=bias)
    return {
        output: values[name].reshape(len(images), *graph.output_shape(output)) for output, name in graph.outputs.items()
    }


class GraphNetwork(nn.Module):
    """A graph in floating point, as a network."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See `run`."""
        return run(self.graph, images)


def layer_macs(graph: Graph) -> dict[str, int]:
    """Convolutions and linear layers to their multiply-accumulates for one picture."""
    # Every weight is used once per output position.
    return {
        node.name: graph.weights[node.name].numel() * math.prod(node.shape[1:])
        for node in graph.nodes
        if node.name in graph.weights
    }


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one picture, in convolutions and linear layers."""
    return sum(layer_macs(graph).values())


def trace(network: MultiTaskNetwork) -> Graph:
    """The deployable form of a network: batch-norm folded, ReLU fused, dropout gone.

    Raises:
        UnsupportedError: A layer has no integer form; it is named.
    """
    return trace_module(network, input_px=network.input_px)


def trace_module(module: nn.Module, *, input_px: int) -> Graph:
    """As `trace`, for any module that maps a (B, 3, I, I) picture to a dict of outputs.

    Raises:
        UnsupportedError: A layer has no integer form; it is named.
    """
    try:
        traced = fx.GraphModule(module, _LeafTracer().trace(module))
    except fx.proxy.TraceError as error:
        raise UnsupportedError(
            f"{type(module).__name__} chooses its path from the values it sees ({error})",
            expected="a network whose layers always run in the same order",
            where="tracing for int8",
        ) from error
    shapes = _Shapes(copy.deepcopy(traced).eval())
    like = next(module.parameters(), torch.zeros(()))
    with torch.no_grad():
        # Two samples, so that a reshape which swallows the batch axis is seen.
        shapes.run(like.new_zeros(2, 3, input_px, input_px))
    builder = _Builder(traced, shapes=shapes.shapes, input_px=input_px)
    _refuse_unknown(traced)
    for fx_node in traced.graph.nodes:
        builder.add(fx_node)
    return builder.graph()


def _unsupported(found: str) -> UnsupportedError:
    return UnsupportedError(
        found,
        expected="convolution or linear (batch-norm and ReLU or PReLU behind them), max-pooling, max-feature-map, "
        "add, global mean or flatten",
        where="tracing for int8",
        do="Deploy one of the students: every file, the float ones too, is built from this form",
    )


def _refuse_unknown(traced: fx.GraphModule) -> None:
    """All layers without an integer form at once, the first of each kind by name."""
    unknown: dict[str, list[str]] = {}
    for at in traced.graph.nodes:
        if at.op == "call_module":
            module = traced.get_submodule(str(at.target))
            if not any(isinstance(module, kind) for kind, _ in _MODULES):
                unknown.setdefault(type(module).__name__, []).append(str(at.target))
    if unknown:
        each = (
            f"layer {names[0]!r}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {_no_form(kind)}"
            for kind, names in unknown.items()
        )
        raise _unsupported("; ".join(each))


class _LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return False
        return type(m).__module__.startswith("torch.nn") or type(m).__module__ == Standardize.__module__


class _Shapes(fx.Interpreter):
    """Runs a traced module and keeps every value's shape."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


@dataclass(frozen=True)
class _Value:
    """What an fx node stands for: our node `name` as it was before fusion number `version`, in its flat form or not."""

    name: str
    version: int = 0
    reshaped: bool = False


@dataclass
class _Builder:
    traced: fx.GraphModule
    shapes: dict[str, tuple[int, ...]]
    input_px: int
    nodes: dict[str, Node] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    fixed: list[str] = field(default_factory=list)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    values: dict[fx.Node, _Value] = field(default_factory=dict)
    fusions: dict[str, int] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    outputs: dict[str, str] = field(default_factory=dict)
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # Nodes that stand for a PReLU with slopes a, along the first axis: they hold relu(x), then relu(−x), and whoever
    # reads them computes relu(x) − a·relu(−x).
    slopes: dict[str, Tensor] = field(default_factory=dict)

    def graph(self) -> Graph:
        return Graph(
            input_px=self.input_px,
            nodes=tuple(self.nodes.values()),
            outputs=self.outputs,
            output_shapes=self.output_shapes,
            weights=self.weights,
            biases=self.biases,
            mean=self.mean,
            std=self.std,
            fixed=tuple(self.fixed),
        )

    def refuse(self, at: fx.Node, found: str) -> NoReturn:
        label = str(at.target) if at.op == "call_module" else at.name
        raise _unsupported(f"layer {label!r}: {found}")

    def add(self, at: fx.Node) -> None:
        match at.op:
            case "placeholder":
                if self.values:
                    self.refuse(at, "a second input")
                self.values[at] = _Value(INPUT)
            case "call_module":
                module = self.traced.get_submodule(str(at.target))
                for kind, handler in _MODULES:
                    if isinstance(module, kind):
                        handler(self, at, module)
                        return
                raise AssertionError(f"{type(module).__name__} was not refused before")
            case "call_function" | "call_method":
                target = at.target if isinstance(at.target, str) else getattr(at.target, "__name__", str(at.target))
                if target not in _FUNCTIONS:
                    self.refuse(at, _no_form(target))
                _FUNCTIONS[target](self, at)
            case "output":
                self._output(at)
            case _:
                self.refuse(at, f"a tensor of the network itself ({at.target}) enters the computation")

    def value(self, at: fx.Node, position: int = 0) -> _Value:
        """The operand `at` reads, which must not have been changed by a fusion meanwhile."""
        operand = at.args[position] if len(at.args) > position else None
        if not isinstance(operand, fx.Node) or operand not in self.values:
            self.refuse(at, "an operand that is not a layer's output")
        value = self.values[operand]
        if value.version != self.fusions.get(value.name, 0):
            self.refuse(at, f"reads {value.name!r} both before and after its batch-norm or ReLU")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        return (3, self.input_px, self.input_px) if name == INPUT else self.nodes[name].shape

    def alias(self, at: fx.Node) -> None:
        self.values[at] = self.value(at)

    def emit(
        self,
        at: fx.Node,
        op: Op,
        shape: tuple[int, ...],
        *,
        operands: int = 1,
        rank: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> str:
        values = [self.value(at, i) for i in range(operands)]
        for value in values:
            if value.name in self.slopes and op not in _LINEAR:
                self.refuse(
                    at,
                    f"{op} reads the PReLU of {value.name!r}, which is exact in integers only where a convolution or "
                    "linear layer reads it, through a flatten or mean at most",
                )
            if value.reshaped or len(self.shape(value.name)) != rank:
                form = "a map (C, H, W)" if rank == 3 else "a flat vector"
                self.refuse(at, f"{op} reads {value.name!r}, which is not {form}")
        name = (str(at.target) if at.op == "call_module" else at.name).replace(".", "_")
        if name == INPUT or name in self.nodes:
            self.refuse(
                at, f"a second layer becomes {name!r} (a layer used twice, or names that differ in '.' and '_')"
            )
        inputs = tuple(value.name for value in values)
        self.nodes[name] = Node(
            name=name, op=op, inputs=inputs, shape=shape, kernel=kernel, stride=stride, padding=padding
        )
        self.read.update(inputs)
        self.values[at] = _Value(name)
        return name

    def fuse(self, at: fx.Node, into: tuple[Op, ...], what: str) -> str:
        """Merge `at` into the node it reads; returns that node's name."""
        value = self.value(at)
        node = self.nodes.get(value.name)
        if node is None or node.op not in into or node.relu or value.reshaped:
            before = (
                "the input" if node is None else f"{node.op} {node.name!r}" + (" with its ReLU" if node.relu else "")
            )
            self.refuse(at, f"{what} behind {before} cannot be fused; it may stand behind {', '.join(into)}")
        if value.name in self.read:
            self.refuse(at, f"reads {value.name!r}, which another layer reads before {what}")
        self.fusions[value.name] = self.fusions.get(value.name, 0) + 1
        self.values[at] = _Value(value.name, self.fusions[value.name])
        return value.name

    def reading(self, name: str, weight: Tensor) -> Tensor:
        """The weight of a layer that reads node `name`, (out, in, …), as that node's values want it."""
        slope = self.slopes.get(self.nodes[name].inputs[0])
        if slope is None:
            return weight
        factor = -slope.to(weight.dtype).view(1, -1, *[1] * (weight.ndim - 2))
        return torch.cat([weight, weight * factor], dim=1)

    def _output(self, at: fx.Node) -> None:
        result = at.args[0]
        if not isinstance(result, dict):
            self.refuse(at, f"the network returns {type(result).__name__}, not a dict of named outputs")
        for output, operand in result.items():
            value = self.values.get(operand) if isinstance(operand, fx.Node) else None
            if value is None or value.name == INPUT or not isinstance(operand, fx.Node):
                self.refuse(at, f"output {output!r} is not computed by a layer")
            if value.version != self.fusions.get(value.name, 0):
                self.refuse(at, f"output {output!r} is {value.name!r} before its batch-norm or ReLU")
            if value.name in self.slopes:
                self.refuse(at, f"output {output!r} is the PReLU of {value.name!r}, behind which no layer can undo it")
            self.outputs[output] = value.name
            if self.shapes[operand.name][1:] != self.nodes[value.name].shape:
                self.output_shapes[output] = self.shapes[operand.name][1:]


def _standardize(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    assert isinstance(module, Standardize)
    value = build.value(at)
    if value.name != INPUT or build.nodes:
        build.refuse(at, "standardisation that is not the first layer")
    mean, std = ([float(v) for v in t.flatten().expand(3)] for t in (module.mean, module.std))
    build.mean, build.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
    build.values[at] = value


def _conv(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    assert isinstance(module, nn.Conv2d)
    if module.groups != 1 or tuple(module.dilation) != (1, 1):
        build.refuse(at, f"a convolution with groups {module.groups} and dilation {tuple(module.dilation)}")
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        build.refuse(at, f"padding {module.padding!r}, {module.padding_mode!r}")
    _, _, height, width = build.shapes[at.name]
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    _, rows, columns = build.shape(build.value(at).name)
    if isinstance(module, Conv2dSame):
        padding = module.pads(rows, columns)
    else:
        down, across = _pair(module.padding)
        padding = (down, down, across, across)
    shape = (module.out_channels, height, width)
    name = build.emit(at, "conv2d", shape, rank=3, kernel=kernel, stride=stride, padding=padding)
    build.weights[name] = build.reading(name, module.weight.detach().clone())
    build.biases[name] = _bias(module.bias, module.weight)
    if isinstance(module, Luma):
        build.fixed.append(name)


def _linear(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    assert isinstance(module, nn.Linear)
    name = build.emit(at, "linear", (module.out_features,), rank=1)
    build.weights[name] = build.reading(name, module.weight.detach().clone())
    build.biases[name] = _bias(module.bias, module.weight)


def _batch_norm(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if module.running_mean is None or module.running_var is None:
        build.refuse(at, "batch-norm without running statistics")
    name = build.fuse(at, ("conv2d", "linear"), "batch-norm")
    mean, variance = module.running_mean.double(), module.running_var.double()
    gain = torch.ones_like(mean) if module.weight is None else module.weight.detach().double()
    shift = torch.zeros_like(mean) if module.bias is None else module.bias.detach().double()
    factor = gain / torch.sqrt(variance + module.eps)  # (out,)
    weight, bias = build.weights[name], build.biases[name]
    build.weights[name] = (weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
    build.biases[name] = (shift + (bias.double() - mean) * factor).to(bias.dtype)


def _relu(build: _Builder, at: fx.Node, module: nn.Module | None = None) -> None:
    name = build.fuse(at, ("conv2d", "linear", "add"), "ReLU")
    build.nodes[name] = replace(build.nodes[name], relu=True)


def _prelu(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    """PReLU(x) = relu(x) − a·relu(−x): twice the channels with a ReLU, and a in the weights of whoever reads them."""
    assert isinstance(module, nn.PReLU)
    name = build.fuse(at, ("conv2d", "linear"), "PReLU")
    node, weight, bias = build.nodes[name], build.weights[name], build.biases[name]
    channels, *cells = node.shape
    build.nodes[name] = replace(node, relu=True, shape=(2 * channels, *cells))
    build.weights[name] = torch.cat([weight, -weight])
    build.biases[name] = torch.cat([bias, -bias])
    build.slopes[name] = module.weight.detach().expand(channels).clone()


def _alias(build: _Builder, at: fx.Node, module: nn.Module | None = None) -> None:
    build.alias(at)


def _max_pool(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    assert isinstance(module, nn.MaxPool2d)
    kernel = _pair(module.kernel_size)
    stride = _pair(module.stride)
    if _pair(module.padding) != (0, 0) or _pair(module.dilation) != (1, 1):
        build.refuse(at, "max-pooling with padding or dilation")
    _, channels, height, width = build.shapes[at.name]
    _, rows, columns = build.shape(build.value(at).name)
    # Rounding up would pool past the border, which targets do not do alike.
    if (height, width) != ((rows - kernel[0]) // stride[0] + 1, (columns - kernel[1]) // stride[1] + 1):
        build.refuse(at, f"max-pooling past the border of a {rows}x{columns} map")
    build.emit(at, "max_pool", (channels, height, width), rank=3, kernel=kernel, stride=stride)


def _mfm(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    shape = build.shapes[at.name][1:]
    build.emit(at, "mfm", shape, rank=len(shape))


def _adaptive_mean(build: _Builder, at: fx.Node, module: nn.Module) -> None:
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    if _pair(module.output_size) != (1, 1):
        build.refuse(at, f"average pooling to {module.output_size!r}; only the mean over the whole map is kept")
    _emit_mean(build, at)


def _mean(build: _Builder, at: fx.Node) -> None:
    axes = at.args[1] if len(at.args) > 1 else at.kwargs.get("dim")
    if not isinstance(axes, tuple | list) or sorted(int(str(a)) % 4 for a in axes) != [2, 3]:
        build.refuse(
            at,
            f"a mean over {axes!r}; only the mean over rows and columns is kept (statistics of each picture, as a "
            "z-score takes them, would need a division by what it finds, which no int8 kernel does)",
        )
    _emit_mean(build, at)


def _emit_mean(build: _Builder, at: fx.Node) -> None:
    source = build.value(at).name
    name = build.emit(at, "mean", build.shape(source)[:1], rank=3)
    if source in build.slopes:
        build.slopes[name] = build.slopes[source]


def _reshape(build: _Builder, at: fx.Node, module: nn.Module | None = None) -> None:
    """Flattening a map is a node; a reshape of a flat vector is only a view for the one who reads the output."""
    value = build.value(at)
    batch, *per_sample = build.shapes[at.name]
    shape = build.shape(value.name)
    doubled = 2 if value.name in build.slopes else 1
    if batch != 2 or doubled * math.prod(per_sample) != math.prod(shape):
        build.refuse(at, "a reshape that moves values between samples")
    if len(shape) == 3:
        if len(per_sample) != 1:
            build.refuse(at, f"a reshape from {shape} to {tuple(per_sample)}")
        name = build.emit(at, "flatten", (doubled * per_sample[0],), rank=3)
        if value.name in build.slopes:
            build.slopes[name] = build.slopes[value.name].repeat_interleave(math.prod(shape[1:]))
        return
    if doubled == 2 and len(per_sample) != 1:
        build.refuse(at, f"a reshape of the PReLU of {value.name!r}")
    build.values[at] = replace(value, reshaped=len(per_sample) != 1)


def _permute(build: _Builder, at: fx.Node) -> None:
    """Channels last, for an output; no layer reads it."""
    order = at.args[1] if len(at.args) == 2 else at.args[1:]
    if tuple(order if isinstance(order, tuple | list) else ()) != (0, 2, 3, 1):
        build.refuse(at, f"axes in the order {order!r}; only channels can be put last, for an output")
    channels, height, width = build.shape(build.value(at).name)
    build.emit(at, "cells", (height, width, channels), rank=3)
    for reader in at.users:
        if reader.op != "output":
            build.refuse(reader, "reads a map whose channels lie last; only an output may")


def _add(build: _Builder, at: fx.Node) -> None:
    first, second = build.value(at, 0), build.value(at, 1)
    shape = build.shape(first.name)
    if shape != build.shape(second.name):
        build.refuse(at, f"an addition of {shape} and {build.shape(second.name)}")
    build.emit(at, "add", shape, operands=2, rank=len(shape))


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        return int(value[0]), int(value[1])
    return int(str(value)), int(str(value))


def _bias(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone()


# Why the layers that published face networks use, and that only float computes, are refused; by module or function.
_REASONS = {
    "Tanh": "targets have no int8 tanh in common, and their tables round differently",
    "abs": "no int8 kernel takes magnitudes of both signs; with tanh before it, neither has a form in common",
    "unfold": "a locally connected layer has other weights at every position, which no int8 kernel computes",
    "std": "statistics of each picture, as a z-score takes them, ask for a division by what it finds",
    "LeakyReLU": "write it as a PReLU, which has an exact form",
}
_REASONS |= {
    "tanh": _REASONS["Tanh"],
    "AbsTanh": _REASONS["abs"],
    "LocallyConnected2d": _REASONS["unfold"],
    "Unfold": _REASONS["unfold"],
    "einsum": _REASONS["unfold"],
    "var": _REASONS["std"],
    "std_mean": _REASONS["std"],
    "var_mean": _REASONS["std"],
    "ZScore": _REASONS["std"],
    "InstanceNorm2d": _REASONS["std"],
    "cat": "branches side by side need one scale, which no student needs and no target is held to",
    "leaky_relu": _REASONS["LeakyReLU"],
    "prelu": "as a function it hides its slopes; nn.PReLU has an exact form",
}


def _no_form(kind: str) -> str:
    why = f": {_REASONS[kind]}" if kind in _REASONS else ""
    return f"{kind} has no integer form{why}"


# In order: the first match counts, so a subclass stands before its base.
_MODULES: tuple[
    tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[_Builder, fx.Node, nn.Module], None]], ...
] = (
    (Standardize, _standardize),
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    (nn.ReLU, _relu),
    (nn.PReLU, _prelu),
    (nn.MaxPool2d, _max_pool),
    (MaxFeatureMap, _mfm),
    (nn.AdaptiveAvgPool2d, _adaptive_mean),
    ((nn.Flatten, nn.Unflatten), _reshape),
    ((nn.Dropout, nn.Dropout2d, nn.Identity), _alias),
)

# By the name of the function or tensor method.
_FUNCTIONS: dict[str, Callable[[_Builder, fx.Node], None]] = {
    operator.add.__name__: _add,
    operator.iadd.__name__: _add,
    "relu": _relu,
    "relu_": _relu,
    "dropout": _alias,
    "contiguous": _alias,
    "mean": _mean,
    "flatten": _reshape,
    "reshape": _reshape,
    "view": _reshape,
    "unflatten": _reshape,
    "permute": _permute,
}
