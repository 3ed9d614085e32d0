"""Checkpoints come back as they were, and altered ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeface.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgeface.errors import ModelError
from edgeface.models.network import build_network, model_spec
from edgeface.specs import NetworkSpec, output_spec

NETWORK = NetworkSpec(backbone="edge_s", width=0.25, input_px=32)
MODEL = model_spec(NETWORK, (output_spec("landmarks5", mean_shape=((0.25, 0.5),) * 5), output_spec("gender")))


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    return save_checkpoint(
        tmp_path / "student",
        kind="student",
        network=NETWORK,
        model=MODEL,
        weights=build_network(NETWORK, MODEL, seed=3).state_dict(),
        provenance={"seed": 3},
        extra={"made_from": {}},
        texts={"curve.csv": "step\n"},
    )


def test_specs_weights_and_extras_come_back_equal(saved: Checkpoint) -> None:
    again = load_checkpoint(saved.folder)
    assert (again.kind, again.network, again.model) == ("student", NETWORK, MODEL)
    assert again.manifest["provenance"] == {"seed": 3}
    expected = build_network(NETWORK, MODEL, seed=3).state_dict()
    weights = again.weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_another_seed_does_not_come_back_equal_twin(saved: Checkpoint) -> None:
    other = build_network(NETWORK, MODEL, seed=4).state_dict()
    weights = saved.weights()
    assert any(not torch.equal(weights[name], other[name]) for name in other)


def alter(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x" * 100), "sha256"),
        (lambda folder: (folder / "curve.csv").write_text("other"), "sha256"),
        (lambda folder: alter(folder, lambda m: m.update(kind="other")), "schema 1"),
        (lambda folder: alter(folder, lambda m: m.update(schema=2)), "schema 1"),
        (lambda folder: alter(folder, lambda m: m["network"].update(backbone="vgg17")), "spec is not valid"),
        (lambda folder: alter(folder, lambda m: m["files"].update({"../x": "0"})), "out of the folder"),
    ],
)
def test_damaged_checkpoint_is_refused_and_named(
    saved: Checkpoint, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved.folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(saved.folder)
    assert str(saved.folder) in caught.value.where


def test_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_checkpoint(tmp_path / "none")
