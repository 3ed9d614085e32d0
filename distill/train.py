"""The one training loop: teacher, student and quantization-aware training all run through `train`, top to bottom."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from distill import ranks
from distill.images import shrink
from distill.trouble import check_finite, diverged, out_of_memory
from edgeface.errors import ConfigError, InterruptedRun, ModelError
from edgeface.files import read_json, settle, sha256_file, write_folder, write_json
from edgeface.memory import is_memory
from edgeface.processes import signals_on_own_stack
from edgeface.specs import TrainSpec

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule


class Batch(Protocol):
    """What the loop reads of a batch."""

    images: Tensor
    labels: dict[str, Tensor]
    ids: Tensor


class Batches(Protocol):
    """Batches whose order and content are a pure function of (seed, epoch, sample id).

    Where several processes train, each is handed its own rows of a batch, as many as the others.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Any]: ...


# (outputs, images, labels) to the total and its parts, of all processes; with `accumulate` above 1 also takes `whole`,
# the labels of all the step's samples: see distill.objective.Objective.
Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands, told to `report` every few steps.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        epoch: Epochs done, with fraction.
        loss: Mean total loss since the last report.
        parts: The same per task, unweighted.
        lr: Learning rate of the last step.
        samples_per_s: Rate since the last report.
        metrics: Validation metrics, when this report follows a validation.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    parts: Mapping[str, float]
    lr: float
    samples_per_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The end of a training.

    Attributes:
        weights: Tensors by name: the averaged weights where the spec averages, else the last.
        companions: Tensors by name of what was trained beside the network.
        curve: CSV text, one row per report.
        steps: Steps in all.
        seconds: Time spent in training steps and data, over all sittings.
        samples: Samples seen, by all processes.
        processes: How many processes trained; more than one number where it went on with another.
        resumed_at: Steps from which it went on after it had been stopped; empty when nothing stopped it.
    """

    weights: dict[str, Tensor]
    curve: str
    steps: int
    seconds: float
    samples: int
    companions: dict[str, Tensor] = field(default_factory=dict)
    processes: tuple[int, ...] = (1,)
    resumed_at: tuple[int, ...] = ()


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then half a cosine to zero.

    Source:
        Loshchilov and Hutter, SGDR, arXiv:1608.03983, eq. 5, one cycle.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Steps(Protocol):
    """What takes the place of a plain loss where tasks are balanced or stopped: see distill.balance.Balancing."""

    @property
    def companions(self) -> Mapping[str, nn.Module]: ...

    @property
    def rate(self) -> float: ...

    @property
    def finetunes(self) -> bool: ...

    def begin_epoch(self) -> None: ...

    def backward(
        self,
        outputs: Mapping[str, Tensor],
        images: Tensor,
        labels: Mapping[str, Tensor],
        *,
        differentiate: Callable[[Tensor], None],
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def after_step(
        self, images: Tensor, labels: Mapping[str, Tensor], forward: Callable[[], Mapping[str, Tensor]]
    ) -> None: ...

    def validated(self, metrics: Mapping[str, float]) -> dict[str, float]: ...


def _optimizer(network: nn.Module, companions: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    parameters = [p for p in (*network.parameters(), *companions.parameters()) if p.requires_grad]
    decayed, plain = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if spec.optimizer == "adamw":
        adamw = torch.optim.AdamW(groups, lr=spec.lr, fused=True)  # one pass over the weights instead of nine
        adamw.register_step_pre_hook(lambda optimizer, *_: _lay_out(optimizer))
        return adamw
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0.0)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Gradients in the memory order of their weights: fused kernels go by memory, not by index.

    Autograd's own are; those that a balancer combined need not be.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)


def _seed(number: int) -> None:
    """`torch.manual_seed`; where no other device can draw, without the milliseconds of noting who cannot."""
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


class _Average:
    """An exponential moving average of every floating-point tensor of a network, batch-norm statistics included.

    The network's state is written in place all through a training, by optimizers, batch-norms and fake-quantization:
    its tensors are looked up once.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        state = network.state_dict()
        self.tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
        pairs = [(self.tensors[name], tensor) for name, tensor in state.items()]
        self._floating = [pair for pair in pairs if pair[1].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[1].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        # Early on the plain decay would remember the random start; this ramp forgets it.
        decay = min(self.decay, (step + 1) / (step + 10))
        means, values = zip(*self._floating, strict=True)
        torch._foreach_lerp_(means, values, 1.0 - decay)
        for copy, value in self._others:
            copy.copy_(value)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag that the loop reads at step boundaries; a second Ctrl-C interrupts at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals_on_own_stack()
    earlier = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, earlier)


def _save_partial(folder: Path, *, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    from safetensors.torch import save_file

    with write_folder(folder) as aside:
        save_file(
            {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            },
            aside / "state.safetensors",
        )
        write_json(aside / "state.json", {**facts, "sha256": sha256_file(aside / "state.safetensors")})


def _load_partial(folder: Path, *, key: str, steps: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The step checkpoint in a folder: its tensors, and what is said of them; None where there is none.

    Raises:
        ModelError: It is damaged, or of another training.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settle(folder)
    told, weights = folder / "state.json", folder / "state.safetensors"
    if not told.is_file():
        return None
    try:
        facts = _facts(read_json(told))
    except (OSError, ValueError) as error:
        raise _damaged(folder, told, f"cannot be read ({error})") from error
    try:
        digest = sha256_file(weights)
    except OSError as error:
        raise _damaged(folder, weights, f"cannot be read ({os.strerror(error.errno or 0).lower()})") from error
    if facts["sha256"] != digest:
        raise _damaged(folder, weights, "its content does not match its sha256")
    if facts["key"] != key:
        raise ModelError(
            "a step checkpoint of another recipe, data set or resolution",
            expected="the one this run began with",
            where=str(folder),
            do="Go on with the recipe it began with, or name another folder with --out",
        )
    if facts["step"] > steps:
        raise _damaged(folder, told, f"'step' is {facts['step']}, of a training of {steps}")
    try:
        return load_file(weights), facts
    # torch's own stand for dtypes it has no name for, and for shapes whose product overflows.
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if is_memory(error):
            raise
        raise _damaged(folder, weights, f"cannot be read as safetensors ({str(error)[:200]})") from error


def _facts(told: Any) -> dict[str, Any]:
    """What a state.json says.

    Raises:
        ValueError: It does not say all, or says something else than such a file does.
    """
    if not isinstance(told, dict):
        raise ValueError(f"a {type(told).__name__} where an object is expected")

    def whole(value: object) -> bool:
        return type(value) is int and 0 <= value < 2**53

    # Step checkpoints did not always say the last two.
    rows, processes, resumed_at = told.get("rows"), told.get("processes", [1]), told.get("resumed_at", [])
    fine = {
        "key": isinstance(told.get("key"), str),
        "sha256": isinstance(told.get("sha256"), str),
        "step": whole(told.get("step")),
        "samples": whole(told.get("samples")),
        "seconds": type(told.get("seconds")) in (int, float) and 0 <= told["seconds"] < 2**53,
        "rows": isinstance(rows, list) and all(isinstance(row, dict) for row in rows),
        "processes": isinstance(processes, list) and all(map(whole, processes)),
        "resumed_at": isinstance(resumed_at, list) and all(map(whole, resumed_at)),
    }
    wrong = [name for name, is_fine in fine.items() if not is_fine]
    if wrong:
        raise ValueError(f"no usable {', '.join(map(repr, wrong))}")
    return {**told, "processes": processes, "resumed_at": resumed_at}


def _damaged(folder: Path, file: Path, found: str) -> ModelError:
    return ModelError(
        found,
        expected="a step checkpoint that edgeface wrote",
        where=str(file),
        do=f"Delete {folder} and type the same command: this stage begins anew, finished ones stay",
    )


def _fabric(spec: TrainSpec) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    # Its notes would break the progress bar. Not before it is imported: then it says how loud it is.
    for library in ("lightning_fabric", "lightning_utilities"):
        logging.getLogger(library).setLevel(logging.WARNING)
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if spec.dtype == "bf16" else "32-true"
    if ranks.count() == 1:
        return Fabric(accelerator="auto", devices=1, precision=precision)
    here = ranks.local_count()
    # Statistics are the same everywhere already (ranks.share_batch_norms): there is nothing to broadcast.
    strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), forward_sync_buffers=False)
    fabric = Fabric(
        accelerator="auto", devices=here, num_nodes=ranks.count() // here, strategy=strategy, precision=precision
    )
    fabric.launch()
    return fabric


def _require_equal_parts(spec: TrainSpec) -> None:
    parts = ranks.count() * spec.accumulate
    if spec.batch % parts or spec.batch // parts < 1:
        raise ConfigError(
            f"a batch of {spec.batch} for {ranks.count()} processes and accumulate = {spec.accumulate}",
            expected="equal parts",
            where="train.batch",
            do=f"Take a multiple of {parts}, or another number of processes",
        )


def train(
    network: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    spec: TrainSpec,
    seed: int,
    key: str,
    partial: Path,
    input_px: int,
    watch: Callable[[nn.Module], Mapping[str, float]] | None = None,
    watches: int = 10,
    before_step: Callable[[nn.Module, int, int], None] | None = None,
    companions: nn.Module | None = None,
    balancing: Steps | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a network; go on where `partial` left off.

    Several processes (distill.ranks) train one network on the same batches as one process would, each on its rows; the
    first writes and reports.

    Args:
        network: Trained in place; pictures (B, 3, H, W) with values 0 to 255 to outputs by name.
        loss: (outputs, images, labels) to the total and its parts.
        batches: The training data.
        spec: Length, optimiser, averaging and precision.
        seed: Decides dropout together with the step.
        key: Names what is being trained; a step checkpoint with another key is refused.
        partial: Folder of the step checkpoint; removed by the caller once the result is saved.
        input_px: Side of the network's input. Larger batches are shrunk to it; the loss sees them as they came, so a
            teacher with a larger input looks at the same crop in its own size.
        watch: Gives validation metrics of the (averaged) network.
        watches: How many times it is called, the last time at the end.
        before_step: Called with (network, step, steps) before each step: milestones of quantization-aware training.
        companions: What `loss` trains beside the network, such as a classifier over people: it has the same optimiser
            and is part of the step checkpoints, but neither averaged nor part of `Trained.weights`.
        balancing: Takes the steps in place of `loss`, where tasks are balanced or stopped early.
        report: Told of progress about once a second.

    Raises:
        InterruptedRun: Ctrl-C; the step checkpoint is written.
        ModelError: The step checkpoint is damaged or of another training.
        ConfigError: The batch cannot be divided over the processes.
        DivergedError: The loss, or a weight, is not a finite number.
        ResourceError: The GPU's memory, or this machine's, does not hold a batch.
    """
    _require_equal_parts(spec)
    per_epoch = batches.steps_per_epoch
    steps = max(1, round(spec.epochs * per_epoch))
    warmup = round(spec.warmup_epochs * per_epoch)
    fabric = _fabric(spec)
    network.to(device=fabric.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    companions = (nn.Module() if companions is None else companions).to(fabric.device).train()
    optimizer = _optimizer(network, companions, spec)
    steering = nn.ModuleDict({} if balancing is None else dict(balancing.companions)).to(fabric.device)
    # Apart from the network's, or clipping would weigh their gradients against each other.
    learned = list(steering.parameters())
    steered = torch.optim.Adam(learned) if learned else None
    optimizers = {"optimizer": optimizer} | ({} if steered is None else {"steered": steered})
    average = _Average(network, spec.ema) if spec.ema else None
    rows: list[dict[str, float | int | str]] = []
    done, seconds_before, samples = 0, 0.0, 0
    processes = {ranks.count()}
    resumed_at: list[int] = []

    resumed = _load_partial(partial, key=key, steps=steps)
    if resumed is not None:
        tensors, facts = resumed
        done, seconds_before, samples, rows = facts["step"], facts["seconds"], facts["samples"], facts["rows"]
        processes |= set(facts["processes"])
        resumed_at = [*facts["resumed_at"], done]
        try:
            _restore(
                tensors,
                network=network,
                companions=companions,
                steering=steering,
                optimizers=optimizers,
                average=average,
            )
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            if is_memory(error):
                raise
            found = f"tensors of another training ({' '.join(str(error).split())[:200]})"
            raise _damaged(partial, partial / "state.safetensors", found) from error

    ranks.share_batch_norms(network)
    model, prepared = fabric.setup(network, optimizer)
    ranks.add_not_average(model)
    started = last_saved = last_report = time.monotonic()
    reported_step = done
    sums: dict[str, float] = {}

    def save() -> None:
        if not ranks.leads():
            return
        check_finite(network, step=done, partial=partial)
        _save_partial(
            partial,
            tensors=_collect(
                network=network, companions=companions, steering=steering, optimizers=optimizers, average=average
            ),
            facts={
                "key": key,
                "step": done,
                "steps": steps,
                "seconds": seconds_before + time.monotonic() - started,
                "samples": samples,
                "rows": rows,
                "processes": sorted(processes),
                "resumed_at": resumed_at,
            },
        )

    with _interruptible() as interrupted:
        while done < steps:
            if balancing is not None and done % per_epoch == 0:
                balancing.begin_epoch()
            for batch in batches.epoch(done // per_epoch, start_step=done % per_epoch):
                if before_step is not None:
                    before_step(network, done, steps)
                # Dropout depends on the step and the process alone: resume repeats it.
                _seed((seed * 1_000_003 + done + 7_919 * 2**32 * ranks.rank()) % 2**63)
                rate = learning_rate(done, steps=steps, warmup=warmup, peak=spec.lr)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                    if balancing is not None and balancing.finetunes:
                        group["weight_decay"] = 0.0
                if steered is not None and balancing is not None:
                    steered.param_groups[0]["lr"] = rate * balancing.rate
                images = fabric.to_device(batch.images).contiguous(memory_format=torch.channels_last)
                labels = {name: fabric.to_device(value) for name, value in batch.labels.items()}
                pictures = shrink(images, input_px)
                prepared.zero_grad()
                steering.zero_grad()
                try:
                    if balancing is None:
                        total, parts = _step(
                            fabric, model, loss, images, pictures, labels, companions, parts=spec.accumulate
                        )
                    else:
                        # It differentiates more than once, which Fabric's module refuses in bf16, and adds the
                        # processes' gradients up itself: so the network as it is.
                        with fabric.autocast():
                            outputs = network(pictures)
                        total, parts = balancing.backward(outputs, images, labels, differentiate=fabric.backward)
                    value = float(total.detach())
                    if not math.isfinite(value):
                        raise diverged(f"the loss is {value}", step=done, ids=ranks.gather(batch.ids), partial=partial)
                    if spec.clip:
                        fabric.clip_gradients(model, prepared, max_norm=spec.clip, error_if_nonfinite=False)
                    prepared.step()
                    if steered is not None:
                        steered.step()
                    if balancing is not None:
                        balancing.after_step(images, labels, lambda pictures=pictures: model(pictures))  # type: ignore[misc]
                except (RuntimeError, MemoryError) as error:
                    if ranks.count() > 1 or not is_memory(error):  # the others would not take part in the search
                        raise
                    raise out_of_memory(
                        error, model, loss, images, labels, optimizer, input_px=input_px, step=done, partial=partial
                    ) from None
                done += 1
                samples += len(images) * ranks.count()
                if average is not None:
                    average.update(done)
                sums["loss"] = sums.get("loss", 0.0) + value
                for name, part in parts.items():
                    sums[name] = sums.get(name, 0.0) + float(part.detach())

                now = time.monotonic()
                watched: Mapping[str, float] = {}
                if watch is not None and (done * watches // steps > (done - 1) * watches // steps):
                    try:
                        watched = _watch(network, watch, average=average)
                    except ModelError as error:  # the weights are still numbers, and the answers are none any more
                        raise diverged(error.found, step=done, ids=None, partial=partial) from error
                    if balancing is not None:
                        watched = {**watched, **balancing.validated(watched)}
                if watched or now - last_report > 1.0 or done == steps:
                    count = done - reported_step
                    progress = Progress(
                        step=done,
                        steps=steps,
                        epoch=done / per_epoch,
                        loss=sums.pop("loss") / count,
                        parts={name: total_part / count for name, total_part in sums.items()},
                        lr=rate,
                        samples_per_s=count * len(images) * ranks.count() / max(1e-9, now - last_report),
                        metrics=watched,
                    )
                    sums, reported_step, last_report = {}, done, time.monotonic()
                    if watched:  # only validations enter the curve: their steps do not depend on the clock
                        rows.append({"step": done, "epoch": done / per_epoch, "lr": rate, **watched})
                    if report is not None and ranks.leads():
                        report(progress)
                if ranks.any_of(interrupted()):
                    ranks.after_leader(save)
                    raise InterruptedRun(f"stopped at step {done} of {steps}", where=str(partial.parent))
                if now - last_saved > spec.checkpoint_s:
                    save()
                    last_saved = time.monotonic()
                if done >= steps:
                    break

    weights = average.tensors if average is not None else network.state_dict()
    check_finite(network, step=done, partial=partial)
    return Trained(
        weights={name: tensor.detach().cpu().clone() for name, tensor in weights.items()},
        companions={name: tensor.detach().cpu().clone() for name, tensor in companions.state_dict().items()},
        curve=_curve(rows),
        steps=steps,
        seconds=seconds_before + time.monotonic() - started,
        samples=samples,
        processes=tuple(sorted(processes)),
        resumed_at=tuple(resumed_at),
    )


def _step(
    fabric: Fabric,
    model: _FabricModule,
    loss: Loss,
    images: Tensor,
    pictures: Tensor,
    labels: Mapping[str, Tensor],
    companions: nn.Module,
    *,
    parts: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Leave the gradients of a batch, computed in several parts where the memory does not hold it whole.

    Returns:
        The loss and its parts, over all processes.
    """
    size = len(images) // parts
    whole = {} if parts == 1 else {"whole": labels}
    total, found = images.new_zeros(()), dict[str, Tensor]()
    for first in range(0, size * parts, size):
        rows = slice(first, first + size)
        with fabric.no_backward_sync(model, enabled=first + size < size * parts):
            value, each = loss(
                model(pictures[rows]), images[rows], {name: values[rows] for name, values in labels.items()}, **whole
            )
            fabric.backward(value)
        total = total + value.detach()
        found = {name: part.detach() + found.get(name, 0.0) for name, part in each.items()}
    ranks.add_gradients(companions.parameters())
    return total, found


@torch.no_grad()
def _watch(
    network: nn.Module, watch: Callable[[nn.Module], Mapping[str, float]], *, average: _Average | None
) -> Mapping[str, float]:
    """Validate the averaged weights where there are any, and put everything back."""
    current = {name: tensor.clone() for name, tensor in network.state_dict().items()} if average is not None else {}
    if average is not None:
        network.load_state_dict(average.tensors)
    network.eval()
    metrics = watch(network)
    if average is not None:
        network.load_state_dict(current)
    network.train()
    return metrics


def _collect(
    *,
    network: nn.Module,
    companions: nn.Module,
    steering: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    average: _Average | None,
) -> dict[str, Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"companions.{name}": tensor for name, tensor in companions.state_dict().items()}
    tensors |= {f"steering.{name}": tensor for name, tensor in steering.state_dict().items()}
    for lead, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"{lead}.{index}.{name}"] = torch.as_tensor(value)
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    return tensors


def _restore(
    tensors: Mapping[str, Tensor],
    *,
    network: nn.Module,
    companions: nn.Module,
    steering: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    average: _Average | None,
) -> None:
    for module, lead in ((network, "network."), (companions, "companions."), (steering, "steering.")):
        module.load_state_dict({n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)})
    for lead, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"{lead}."):
                _, index, key = name.split(".", 2)
                parameter = parameters[int(index)]
                if tensor.shape == parameter.shape:  # and laid out as it is: fused kernels go by memory, not by index
                    tensor = torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if average is not None:
        for name, tensor in average.tensors.items():
            tensor.copy_(tensors[f"average.{name}"])


def _curve(rows: list[dict[str, float | int | str]]) -> str:
    lead = ("step", "epoch", "lr")
    columns = [*lead, *sorted({name for row in rows for name in row} - set(lead))]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return stream.getvalue()
