"""What a training that cannot go on says: numbers that are not finite, memory that does not suffice."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.images import shrink
from edgeface.errors import DataError, ResourceError
from edgeface.files import read_json
from edgeface.memory import is_memory, largest_that_fits, memory_error

Loss = Callable[[Mapping[str, Tensor], Tensor, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


class DivergedError(DataError):
    """A training whose numbers are no longer finite.

    Args:
        ids: Places of the batch's samples in the training packs laid end to end.
    """

    def __init__(self, found: str, *, expected: str, where: str, do: str, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        super().__init__(found, expected=expected, where=where, do=do)


def diverged(found: str, *, step: int, ids: Tensor | None, partial: Path) -> DivergedError:
    """Say where a training broke, on which samples, and what is left of it.

    Args:
        found: What is not finite.
        step: Steps that were done before.
        ids: (B,) the batch's samples, where one batch is to blame.
        partial: The step checkpoint.
    """
    numbers = [] if ids is None else ids.tolist()
    samples = f", in the batch of samples {', '.join(map(str, numbers))}" if numbers else ""
    return DivergedError(
        f"{found} at step {step}{samples}",
        expected="finite numbers",
        where=str(partial.parent),
        do=f"Lower {_stage(partial)}.train.lr or look at these samples' labels, and name another folder with --out; "
        f"{_last_good(partial)}",
        ids=numbers,
    )


def check_finite(network: nn.Module, *, step: int, partial: Path) -> None:
    """Refuse weights that are not finite before they take the place of a good step checkpoint.

    A finite loss can have a gradient that is not; the weights are lost one step before the loss shows it.

    Raises:
        DivergedError: It names the first such tensor.
    """
    for name, tensor in network.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise diverged(f"the weights {name!r} are not finite", step=step, ids=None, partial=partial)


@contextlib.contextmanager
def sample_names(names: Sequence[Sequence[str]]) -> Iterator[None]:
    """Have a diverged training name its samples as their corpora do.

    Args:
        names: Keys of the samples of each training pack.
    """
    try:
        yield
    except DivergedError as error:
        if not error.ids:
            raise
        every = [key for part in names for key in part]
        found = error.found.partition(", in the batch of samples ")[0]
        keys = ", ".join(every[number] for number in error.ids)
        raise DivergedError(
            f"{found}, in the batch of samples {keys}",
            expected=error.expected,
            where=error.where,
            do=error.do,
            ids=error.ids,
        ) from error


def out_of_memory(
    error: BaseException,
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    input_px: int,
    step: int,
    partial: Path,
) -> ResourceError:
    """Find by halving how many samples of a batch fit, and say so.

    Each try is a whole step, which spoils the weights: nothing is kept of them after it. The optimizer's own tensors,
    which its first step adds, are set aside.

    Args:
        error: What the library raised.
        model: What is trained.
        loss: (outputs, images, labels) to the total and its parts.
        images: (B, 3, I, I) the batch that did not fit.
        labels: Its labels.
        optimizer: Of the model.
        input_px: Side of the network's input.
        step: Steps that were done before.
        partial: The step checkpoint.
    """

    def fits(count: int) -> bool:
        model.zero_grad(set_to_none=True)
        if step == 0:
            optimizer.state.clear()  # of a first step that did not come to its end
        _free()
        try:
            # Two tensors for each of Adam's: reserved, so that the answer holds after the first step too.
            kept = [torch.empty_like(each) for each in model.parameters() for _ in range(2 if step == 0 else 0)]
            part = {name: values[:count] for name, values in labels.items()}
            total, _ = loss(model(shrink(images[:count], input_px)), images[:count], part)
            total.backward()  # type: ignore[no-untyped-call]
            float(total.detach())
            del kept
            optimizer.step()
        except (RuntimeError, MemoryError) as again:
            if not is_memory(again):
                raise
            return False
        return True

    error.__traceback__ = None  # its frames hold the activations that filled the memory
    largest, refused = largest_that_fits(fits, len(images))
    model.zero_grad(set_to_none=True)
    _free()
    stage = _stage(partial)
    device = f"GPU {torch.cuda.get_device_name(images.device)}" if images.is_cuda else "this machine's memory"
    short = memory_error(error)
    reason = "" if short is None else f": {short.found}"
    return ResourceError(
        f"a batch of {len(images)} at step {step} of {stage!r} does not fit into {device}{reason}",
        expected=f"a batch that fits; {', '.join(map(str, refused))} did not"
        + (f", {largest} does" if largest else ", and not even one sample does"),
        where=str(partial.parent),
        do=(f"Set {stage}.train.batch={largest} " if largest else "Take a smaller network or input ")
        + "and name another folder with --out: the batch is part of what a run is",
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _stage(partial: Path) -> str:
    return partial.name.partition(".")[0]


def _last_good(partial: Path) -> str:
    try:
        step = read_json(partial / "state.json")["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no step checkpoint was written before"
    return f"the last good step checkpoint is that of step {step}, in {partial}"
