"""A run without training: random weights, calibrated ranges, every file built from it once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeface.checkpoint import save_checkpoint
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.provenance import provenance
from edgeface.specs import ModelSpec, NetworkSpec, QatSpec, output_spec
from quantize.calibrate import calibrate
from quantize.grid import Quantized
from quantize.qat import finish, prepare, qat_weights
from targets.build import build

OUTPUTS = (
    output_spec("landmarks5", mean_shape=((0.3, 0.4), (0.7, 0.4), (0.5, 0.55), (0.35, 0.7), (0.65, 0.7))),
    output_spec("gender"),
    output_spec("smile"),
)


def random_network(
    backbone: str, *, input_px: int = 32, width: float = 0.25, seed: int = 0, landmark_head: str = "linear"
) -> MultiTaskNetwork:
    """An evaluation-mode network whose batch-norms and heads are far from their initial ones and zeros."""
    network = NetworkSpec(backbone=backbone, width=width, input_px=input_px, landmark_head=landmark_head)
    built = build_network(network, spec_of(network), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.3, 0.3, generator=generator)
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        for head in (*built.heads.values(), *built.heatmaps.values()):
            assert isinstance(head, torch.nn.Linear | torch.nn.Conv2d)
            assert head.bias is not None
            head.weight.normal_(0.0, 0.2, generator=generator)
            head.bias.normal_(0.0, 0.2, generator=generator)
    return built.eval()


def spec_of(network: NetworkSpec) -> ModelSpec:
    return model_spec(network, OUTPUTS)


def random_pictures(count: int, side: int, *, seed: int = 1) -> NDArray[np.uint8]:
    """Blurred noise: neighbouring pixels agree, as they do in photographs, so activations spread."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, side // 4, side // 4, 3))
    fine = generator.integers(-40, 41, (count, side, side, 3))
    return np.clip(coarse.repeat(4, axis=1).repeat(4, axis=2) + fine, 0, 255).astype(np.uint8)


def quantize_network(network: MultiTaskNetwork, *, input_px: int = 32) -> Quantized:
    return _fake_quant(network, input_px=input_px).quantized()


def _fake_quant(network: MultiTaskNetwork, *, input_px: int):  # type: ignore[no-untyped-def]
    fake = prepare(network, QatSpec())
    images = torch.from_numpy(random_pictures(16, input_px, seed=0)).permute(0, 3, 1, 2).float()
    calibrate(fake, [images], limit=1)
    finish(fake)
    return fake


def save_run(folder: Path, *, width: float = 0.25, input_px: int = 32) -> Path:
    """A run of edge_s with a student and a qat checkpoint, at `folder`."""
    network = NetworkSpec(backbone="edge_s", width=width, input_px=input_px)
    built = random_network("edge_s", width=width, input_px=input_px)
    made = provenance(seed=0, licences=["Apache-2.0"], research_only=False)
    student = save_checkpoint(
        folder / "student",
        kind="student",
        network=network,
        model=spec_of(network),
        weights=built.state_dict(),
        provenance=made,
        extra={"made_from": {}},
    )
    save_checkpoint(
        folder / "qat",
        kind="qat",
        network=network,
        model=spec_of(network),
        weights=qat_weights(_fake_quant(built, input_px=input_px)),
        provenance=made,
        extra={"made_from": {"student": student.sha256}},
    )
    (folder / "recipe.toml").write_text('name = "tiny"\n', encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/tiny with a narrow student and its qat checkpoint."""
    return save_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def bundle_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every android file of `run_folder`; tests must not change it."""
    return build(run_folder, out=tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="session")
def default_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The w8a8 file of the default student at its full width and input; tests must not change it."""
    run = save_run(tmp_path_factory.mktemp("runs") / "default", width=1.0, input_px=64)
    return build(run, precisions=["w8a8"], out=tmp_path_factory.mktemp("out"))
