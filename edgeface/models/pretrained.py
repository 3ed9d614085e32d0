"""Published ImageNet weights of the teachers' trunks: torchvision's files, checked, converted, kept as safetensors.

edgeface downloads nothing. A file that its owner published under a name with its sha256 in it is put into one folder by
hand; it is unpickled once, weights only, after its sha256 was compared, and read as safetensors from then on.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeface.data.pack import cache_folder
from edgeface.errors import ModelError
from edgeface.files import sha256_file, write_bytes
from edgeface.models.backbones import BUILDERS


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of torchvision's.

    Attributes:
        file: Its name; the hexadecimal digits in it are the first eight of its sha256.
        sha256: Those digits.
    """

    file: str
    sha256: str


# Source: the weight tables of torchvision.models.vgg and torchvision.models.resnet (IMAGENET1K_V1), BSD-3-Clause.
PUBLISHED = {
    "vgg16": Published(file="vgg16_bn-6c64b313.pth", sha256="6c64b313"),
    "vgg19": Published(file="vgg19_bn-c79401a0.pth", sha256="c79401a0"),
    "resnet50": Published(file="resnet50-0676ba61.pth", sha256="0676ba61"),
}

IMAGENET_TERMS = "torchvision's weights: BSD-3-Clause; trained on ImageNet, whose pictures have terms of their own"


def published(backbone: str) -> Published:
    """Which file holds the weights of a backbone.

    Raises:
        ModelError: No weights are published for it.
    """
    if backbone not in PUBLISHED:
        raise ModelError(
            f"no published ImageNet weights for {backbone!r}",
            expected=f"one of {', '.join(map(repr, PUBLISHED))}",
            where="transfer.start",
            do="Start from a checkpoint folder, or from random weights",
        )
    return PUBLISHED[backbone]


def load_published(backbone: str) -> nn.Sequential:
    """The trunk of a backbone at width 1 with ImageNet weights; its file lies in the cache folder, under `pretrained`.

    Raises:
        ModelError: No weights are published for this backbone, or see `load_pretrained`.
    """
    of = published(backbone)
    trunk: nn.Sequential = BUILDERS[backbone](width=1.0, input_px=64, head="pool").module
    return load_pretrained(cache_folder() / "pretrained" / of.file, of.sha256, trunk=trunk)


def load_pretrained(path: Path, sha256: str, *, trunk: nn.Sequential) -> nn.Sequential:
    """Fill a trunk with published weights.

    Args:
        path: torchvision's file. The converted form lies beside it, named after the digest, and is used when it is
            there, whether or not the original still is.
        sha256: The original's digest, or the first eight or more digits of it.
        trunk: A VGG with batch-norm or a ResNet-50 of BUILDERS, of the file's width.

    Returns:
        The trunk.

    Raises:
        ModelError: Neither file is there, the digest is another one, or the tensors are not this trunk's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    if len(sha256) < 8:
        raise ModelError(f"sha256 {sha256!r}", expected="at least its first eight digits", where=str(path))
    converted = path.with_name(f"{path.stem}.{sha256}.safetensors")
    if converted.is_file():
        try:
            return _filled(trunk, load_file(converted), where=converted)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"not safetensors ({error})", where=str(converted), do="Delete it") from error
    if not path.is_file():
        raise ModelError(
            "the published weights are not here, and edgeface downloads nothing",
            expected=f"torchvision's file {path.name}, whose sha256 begins with {sha256}",
            where=str(path),
            do=f"Download {path.name} from torchvision's model page on any machine and put it at {path}",
        )
    digest = sha256_file(path)
    if not digest.startswith(sha256.lower()):
        raise ModelError(
            f"sha256 {digest}",
            expected=f"{sha256}… (the published file)",
            where=str(path),
            do="Delete the file and fetch it again; it is incomplete or another one",
        )
    try:
        # weights_only: nothing but tensors and plain containers comes out of the pickle, whatever it holds.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"not a file of weights ({error})", where=str(path), do="Delete it and fetch it again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError("not a table of tensors", expected="torchvision's state_dict", where=str(path))
    tensors = _vgg_tensors(trunk, state, where=path) if _is_vgg(state) else _without_classifier(state)
    _filled(trunk, tensors, where=path)
    write_bytes(converted, save({name: tensor.contiguous() for name, tensor in trunk.state_dict().items()}))
    return trunk


def _is_vgg(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("features.") for name in state)


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ResNet's trunk bears torchvision's names already."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _vgg_tensors(trunk: nn.Sequential, state: Mapping[str, Tensor], *, where: Path) -> dict[str, Tensor]:
    """`features.N.…` of VGG with batch-norm, where convolutions have biases that batch-norm behind them takes up."""
    places = sorted({int(name.split(".")[1]) for name in state if name.startswith("features.")})
    convolutions = [place for place in places if state[f"features.{place}.weight"].ndim == 4]
    ours = [name for name, child in trunk.named_children() if name.startswith("conv")]
    if len(convolutions) != len(ours) or any(
        f"features.{place + 1}.running_mean" not in state for place in convolutions
    ):
        raise ModelError(
            f"{len(convolutions)} convolutions, {len(places) - len(convolutions)} batch-norms",
            expected=f"{len(ours)} convolutions, each with batch-norm behind it",
            where=str(where),
            do="Take the file of the variant with batch-norm (_bn)",
        )
    tensors = {}
    for name, place in zip(ours, convolutions, strict=True):
        tensors[f"{name}.conv.weight"] = state[f"features.{place}.weight"]
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.norm.{part}"] = state[f"features.{place + 1}.{part}"].clone()
        # Batch-norm subtracts its mean from x + bias: a mean lower by the bias does the same to x.
        tensors[f"{name}.norm.running_mean"] -= state[f"features.{place}.bias"]
    return tensors


def _filled(trunk: nn.Sequential, tensors: Mapping[str, Tensor], *, where: Path) -> nn.Sequential:
    own = trunk.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # old files lack them
    odd = sorted((own.keys() - counters) ^ (tensors.keys() - counters))
    odd = odd or [name for name in tensors if tensors[name].shape != own[name].shape]
    if odd:
        raise ModelError(
            f"tensors that do not fit: {', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}",
            expected="the published weights of this backbone",
            where=str(where),
            do="Fetch the file that belongs to it",
        )
    trunk.load_state_dict({**own, **tensors})
    return trunk
