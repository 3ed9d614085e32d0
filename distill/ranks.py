"""Several processes at one training (torchrun): what they add up, and how one waits for another.

Without a process group each function is that of one process alone and gives back what it was given.

Each process computes the part of the loss that its own samples contribute, and the sum over all processes is the loss.
Two rules keep its gradient that of one process. What every process then computes alike (`total`: losses) hands its
gradient on as it is, or it would count once for each process; what each process then uses for its own samples
(`gather`, batch-norm's statistics) adds the gradients of all. Gradients of parameters are added up, never averaged.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from edgeface.errors import DataError, DeviceError, EdgefaceError

# A collective that takes longer means a process that is gone; whoever waits for long work of another asks the store.
TIMEOUT = timedelta(minutes=10)
_ASK_S = 0.2
_FAILED = "failed"

_T = TypeVar("_T")


class _Meeting:
    """Where the processes of this run meet: the launcher's store, and how many times they have met there."""

    store: Any = None
    turns = 0


def count() -> int:
    """Processes of this run."""
    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(dist.get_rank()) if count() > 1 else 0


def leads() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def local_count() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) if count() > 1 else 1


def local_rank() -> int:
    """Which of them this one is, from 0; its GPU has the same number."""
    return int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Be one of the processes that a launcher started (RANK, WORLD_SIZE, MASTER_ADDR, … as torchrun sets them).

    Raises:
        DeviceError: Another process ended or does not answer, and left no word why.
        SystemExit: Another process ended for a reason that it printed itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        yield
        return
    try:
        _join()
        yield
        _leave()
    except (Exception, KeyboardInterrupt) as error:
        raise _explained(error) from error


def _join() -> None:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    # The trunk's 1×1 convolutions have two layouts that are the same bytes; torch takes them for different ones.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    store, number, world = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    _Meeting.store = PrefixStore("edgeface", store)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=number, world_size=world, timeout=TIMEOUT)


def _leave() -> None:
    after_leader(lambda: None)  # the leader may hold the store: it stays until all have seen the end
    any_of(False)
    dist.destroy_process_group()
    _Meeting.store = None


def _explained(error: BaseException) -> BaseException:
    """What this process ends with: its own error, nothing to print where another prints it, or whom it lost."""
    if not isinstance(error, _EndedElsewhereError) and not _is_lost(error):
        with contextlib.suppress(RuntimeError):
            return error if _is_first_to_say(error) else _quietly()
        return error  # the store is gone, too
    with contextlib.suppress(RuntimeError):
        for _ in range(10):  # who failed may still be on its way to say so
            if _Meeting.store.check([_FAILED]):
                return _quietly()
            time.sleep(_ASK_S)
    return DeviceError(
        f"another process of this run ended, or cannot be reached ({' '.join(str(error).split())[:200]})",
        expected=f"{os.environ['WORLD_SIZE']} processes to the end",
        where=f"process {os.environ['RANK']}",
        do="Look at what that process, or its machine, said last; then go on with --resume",
    )


def _is_first_to_say(error: BaseException) -> bool:
    """Leave word of an error in the store; False where another process has left the same."""
    text = f"{type(error).__name__}: {error}"
    code = error.exit_code if isinstance(error, EdgefaceError) else 130 if isinstance(error, KeyboardInterrupt) else 4
    if _Meeting.store.add("failures", 1) == 1:
        _Meeting.store.set(_FAILED, json.dumps({"text": text, "code": code}))
        return True
    return bool(json.loads(_Meeting.store.get(_FAILED))["text"] != text)


def _quietly() -> SystemExit:
    first = json.loads(_Meeting.store.get(_FAILED))
    time.sleep(1.0)  # a launcher ends all processes when the first one ends, and one is still printing
    return SystemExit(first["code"])


class _EndedElsewhereError(EdgefaceError):
    """Another process has ended and said why."""


def _is_lost(error: BaseException) -> bool:
    """Whether an error is torch's word for a process that no longer answers."""
    words = str(error).lower()
    known = ("connection", "gloo", "nccl", "timed out", "timeout", "socket", "broken pipe", "recvvalue", "sendbytes")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError | OSError) and any(word in words for word in known)
    )


def _wait(key: str) -> None:
    """Until another process sets a key: for as long as its work takes, or until one has failed."""
    while not _Meeting.store.check([key]):
        if _Meeting.store.check([_FAILED]):
            raise _EndedElsewhereError("another process ended")
        time.sleep(_ASK_S)


def after_leader(work: Callable[[], _T], *, others: Callable[[], _T] | None = None) -> _T:
    """Have the leading process do something while the others wait for it, however long it takes.

    Args:
        work: What the leader does.
        others: What the others do after it; None stands for `work`, which then finds what the leader left.
    """
    if count() == 1:
        return work()
    _Meeting.turns += 1
    key = f"turn {_Meeting.turns}"
    if leads():
        done = work()
        _Meeting.store.set(key, "done")
        return done
    _wait(key)
    return (others or work)()


def in_turn(work: Callable[[], _T]) -> _T:
    """Do something that leaves files: the leader first, then one process of each other machine, then the rest.

    Where machines share the folder, those after the first find the work done; where they do not, each does its own.
    """
    if local_rank() == 0:
        done = after_leader(work)
        _set_here()
        return done
    after_leader(lambda: None)
    _wait(f"turn {_Meeting.turns} at {_machine()}")
    return work()


def _set_here() -> None:
    if count() > 1:
        _Meeting.store.set(f"turn {_Meeting.turns} at {_machine()}", "done")


def _machine() -> int:
    return rank() // local_count()


def decided(choose: Callable[[], str]) -> str:
    """What the leader chooses, everywhere."""
    if count() == 1:
        return choose()
    key = f"decided {_Meeting.turns + 1}"

    def tell() -> str:
        chosen = choose()
        _Meeting.store.set(key, chosen)
        return chosen

    return after_leader(tell, others=lambda: str(_Meeting.store.get(key), "utf-8"))


def require_same(what: str, value: str, *, where: str) -> None:
    """Refuse to train on what differs between machines.

    Raises:
        DataError: Another process has another value.
    """
    if decided(lambda: value) != value:
        raise DataError(
            f"{what} of process {rank()} differs from that of process 0",
            expected="the same on all machines",
            where=where,
            do="Give every machine the same files and the same version of edgeface",
        )


def total(values: Tensor) -> Tensor:
    """The sum over all processes, for what each then computes alike; the gradient goes on as it is."""
    return values if count() == 1 else _Total.apply(values)  # type: ignore[no-untyped-call]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.detach().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes in order of rank, as many of each; the gradient of a row is added up over all."""
    return rows if count() == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gathered(rows.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return own_rows(summed)


def _gathered(rows: Tensor) -> Tensor:
    plain = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    parts = [torch.empty_like(plain, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, plain.contiguous())
    return torch.cat(parts).to(rows.dtype)


def own_rows(rows: Tensor) -> Tensor:
    """This process's rows of what `gather` gave."""
    part = len(rows) // count()
    return rows[rank() * part : (rank() + 1) * part]


def gather_all(rows: Tensor) -> Tensor:
    """As `gather`, without a gradient, for numbers of rows that differ between processes."""
    if count() == 1:
        return rows
    numbers = _gathered(torch.tensor([len(rows)])).tolist()
    most = max(numbers)
    parts = _gathered(torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))]))
    return torch.cat([parts[place * most :][:number] for place, number in enumerate(numbers)])


def extremes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest value over all processes."""
    if count() == 1:
        return low, high
    both = torch.stack([-low, high])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return -both[0], both[1]


def any_of(flag: bool) -> bool:
    """Whether a flag is up in any process."""
    if count() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, which must give the same shapes in the same order."""
    if count() == 1:
        return
    each = list(tensors)
    for dtype in sorted({tensor.dtype for tensor in each}, key=str):
        own = [tensor for tensor in each if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in own])  # one collective in place of hundreds
        dist.all_reduce(flat)
        for tensor, part in zip(own, torch.split(flat, [tensor.numel() for tensor in own]), strict=True):
            tensor.copy_(part.view_as(tensor))


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up gradients of parameters that no DistributedDataParallel looks after.

    Which of them have one must not depend on the process.
    """
    add_up(parameter.grad for parameter in parameters if parameter.grad is not None)


def add_not_average(model: nn.Module) -> None:
    """Have the DistributedDataParallel in a model add gradients up, where it would average them."""
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            # A lambda, since torch reads the annotations of a hook and knows no strings there.
            module.register_comm_hook(None, lambda state, bucket: _summed(bucket))


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    summed = dist.all_reduce(bucket.buffer(), async_op=True)
    assert summed is not None
    return summed.get_future().then(lambda future: future.value()[0])  # type: ignore[no-any-return]


def share_batch_norms(network: nn.Module) -> None:
    """Have a network's batch-norms take their statistics over the samples of all processes.

    They stay the same objects under the same names: hooks, checkpoints and optimizers keep hold of them.
    """
    if count() == 1:
        return
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
        else:
            assert not isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module) is SharedBatchNorm, name


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch-norm over the samples of all processes. torch's SyncBatchNorm does the same, on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        normed, mean, variance, number = _Normalised.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * number / (number - 1.0), share)
        return normed  # type: ignore[no-any-return]


class _Normalised(torch.autograd.Function):
    """Batch-norm in training, over all processes.

    Source:
        Ioffe and Szegedy, Batch Normalization, arXiv:1502.03167, algorithm 1 and the gradients of section 3. The
        statistics of parts are joined as in Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for
        Computing Sample Variances, 1979: a sum of squares would cancel where the mean is far from zero.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        axes = [0, *range(2, images.ndim)]
        own_variance, own_mean = torch.var_mean(images.float(), axes, correction=0)
        number = own_mean.new_full((1,), images.numel() // images.shape[1])
        told = _gathered(torch.cat([own_mean, own_variance, number])[None])  # (R, 2C + 1)
        means, variances = told[:, :-1].chunk(2, dim=1)
        numbers = told[:, -1:]
        every = numbers.sum()
        mean = (means * numbers).sum(0) / every
        variance = ((variances + (means - mean).square()) * numbers).sum(0) / every
        ctx.save_for_backward(images, weight, mean, torch.rsqrt(variance + eps), every)
        normed = F.batch_norm(images, mean, variance, weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, variance, every)
        return normed, mean, variance, every

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        images, weight, mean, inverse, every = ctx.saved_tensors
        axes, wide = [0, *range(2, images.ndim)], (1, -1, *[1] * (images.ndim - 2))
        above = gradient.float()
        normed = (images.float() - mean.view(wide)) * inverse.view(wide)
        to_bias, to_weight = above.sum(axes), (above * normed).sum(axes)
        sums = torch.cat([to_bias, to_weight])
        dist.all_reduce(sums)
        shift, slope = (sums / every).chunk(2)
        back = (above - shift.view(wide) - normed * slope.view(wide)) * (weight * inverse).view(wide)
        return back.to(images.dtype), to_weight, to_bias, None
