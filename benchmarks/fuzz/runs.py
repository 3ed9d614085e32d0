"""Inputs for the readers of what a run keeps: recipe, checkpoints, steps, digests of faces, trials, stored answers."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.bundles import golden_reader, npz
from benchmarks.fuzz.mutate import mutate_bytes, mutate_tree, mutated_json, room, toml_of
from benchmarks.fuzz.reader import Files, Grown, Reader, only


def recipe_reader() -> Reader:
    from edgeface.config import RECIPES, load_recipe, to_plain

    paths = [*sorted(RECIPES.glob("*.toml")), *sorted(RECIPES.glob("*/*.toml"))]
    texts = [path.read_bytes() for path in paths]
    plains = [to_plain(load_recipe(str(path))) for path in paths]

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(50)
        if kind == 0:
            return {
                "r.toml": dice.choice(
                    (b"a=" + b"[" * 50_000, b"a." * 50_000 + b"a=1", b"a=0x" + b"f" * 50_000, b"[a]" * 9)
                )
            }
        if kind < 15:
            return {"r.toml": mutate_bytes(dice, dice.choice(texts))}
        with room():
            return {"r.toml": toml_of(mutate_tree(dice, dice.choice(plains))).encode("utf-8", "replace")}

    return Reader(make=make, read=lambda folder: load_recipe(str(folder / "r.toml")), grown=only("r.toml"))


def checkpoint_reader() -> Reader:
    from edgeface.checkpoint import MANIFEST, WEIGHTS, load_checkpoint, save_checkpoint
    from edgeface.models.network import build_network, model_spec
    from edgeface.specs import NetworkSpec, output_spec

    network = NetworkSpec(backbone="edge_s", width=0.125, input_px=16)
    model = model_spec(network, (output_spec("gender"), output_spec("landmarks5", mean_shape=((0.5, 0.5),) * 5)))
    built = build_network(network, model, seed=0)
    with tempfile.TemporaryDirectory() as name:
        made = {"seed": 0, "licences": ["x"], "research_only": False}
        folder = Path(name) / "c"
        kept = dict(list(built.state_dict().items())[:6])
        save_checkpoint(folder, kind="student", network=network, model=model, weights=kept, provenance=made)
        manifest = json.loads((folder / MANIFEST).read_text())
        weights = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", weights[:8])
    header, body = json.loads(weights[8 : 8 + length]), weights[8 + length :]

    def make(dice: random.Random) -> Files:
        tree, content = manifest, weights
        kind = dice.randrange(4)
        if kind == 0:
            content = mutate_bytes(dice, weights)
        elif kind == 1:
            words = mutated_json(dice, header)
            content = struct.pack("<Q", dice.choice((len(words), len(words), len(words), 2**40))) + words + body
        if kind != 3 and dice.randrange(8):
            tree = {**tree, "files": {**tree["files"], WEIGHTS: hashlib.sha256(content).hexdigest()}}
        return {MANIFEST: json.dumps(tree).encode() if kind < 2 else mutated_json(dice, tree), WEIGHTS: content}

    def read(folder: Path) -> object:
        found = load_checkpoint(folder)
        return found.sha256, found.weights(), found.companions()

    return Reader(make=make, read=read, grown=only(MANIFEST, {WEIGHTS: weights}))


def answers_reader() -> Reader:
    from distill.foreign import load_answers, save_answers
    from edgeface.models.network import model_spec
    from edgeface.specs import NetworkSpec, output_spec

    model = model_spec(NetworkSpec(backbone="edge_s", width=0.125, input_px=16), (output_spec("gender"),))
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "answers"
        save_answers(
            folder, model=model, keys=["a", "b", "c"], outputs={"gender": values}, licences=["x"], research_only=False
        )
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    manifest = json.loads(files["manifest.json"])
    stored = next(name for name in files if name.endswith(".safetensors"))
    listed = next(name for name in files if name.endswith(".json") and name != "manifest.json")
    archive = npz({"gender": values})
    golden = golden_reader()

    def make(dice: random.Random) -> Files:
        made = dict(files)
        kind = dice.randrange(5)
        name = stored
        if kind == 0:
            made[stored] = mutate_bytes(dice, made[stored])
        elif kind == 1:
            made[listed] = mutated_json(dice, json.loads(made[listed]))
        elif kind in (2, 3):
            del made[stored]
            name = "answers.npz"
            made[name] = mutate_bytes(dice, archive) if kind == 2 else golden.make(dice)["golden.npz"]
        digests = {file: hashlib.sha256(made[file]).hexdigest() for file in (name, listed)}
        tree = {**manifest, "files": digests}
        made["manifest.json"] = mutated_json(dice, tree) if kind == 4 else json.dumps(tree).encode()
        return made

    return Reader(make=make, read=load_answers, grown=only("manifest.json", files))


def step_reader() -> Reader:
    """Step checkpoints, read by the training that goes on from them."""
    import torch
    from torch import Tensor, nn

    from distill.train import train
    from edgeface.specs import TrainSpec

    torch.set_num_threads(1)
    spec = TrainSpec(epochs=1, batch=2, lr=1e-3, warmup_epochs=0.0, ema=0.9, checkpoint_s=1e-9)

    @dataclass
    class Batch:
        images: Tensor
        labels: dict[str, Tensor]
        ids: Tensor

    class Batches:
        steps_per_epoch = 2

        def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
            for _ in range(start_step, self.steps_per_epoch):
                yield Batch(torch.ones(2, 3, 4, 4), {"y": torch.ones(2)}, torch.arange(2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(48, 1)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"y": self.head(self.norm(images).flatten(1)).squeeze(1)}

    def loss(outputs: Any, images: Tensor, labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total = (outputs["y"] - labels["y"]).square().mean()
        return total, {"y": total}

    def go_on(folder: Path, spec: TrainSpec) -> object:
        torch.manual_seed(0)
        return train(
            Net(),
            loss,
            Batches(),
            spec=spec,
            seed=0,
            key="k",
            partial=folder / "stage.partial",
            input_px=4,
            watch=lambda network: {"y.score": 0.5},
        )

    with tempfile.TemporaryDirectory() as name:
        go_on(Path(name), spec)
        files = {path.name: path.read_bytes() for path in sorted((Path(name) / "stage.partial").iterdir())}
    told = {**json.loads(files["state.json"]), "seconds": 0.5}
    weights = files["state.safetensors"]
    (length,) = struct.unpack("<Q", weights[:8])
    header, body = json.loads(weights[8 : 8 + length]), weights[8 + length :]

    def embed(content: bytes) -> Files:
        return {"stage.partial/state.json": content, "stage.partial/state.safetensors": weights}

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        if kind < 2:
            return embed(mutated_json(dice, told))
        if kind == 2:
            content = mutate_bytes(dice, weights)
        else:
            words = mutated_json(dice, header)
            content = struct.pack("<Q", len(words)) + words + body
        digest = {"sha256": hashlib.sha256(content).hexdigest()} if dice.randrange(8) else {}
        return {
            "stage.partial/state.json": json.dumps({**told, **digest}).encode(),
            "stage.partial/state.safetensors": content,
        }

    quiet = TrainSpec(epochs=1, batch=2, lr=1e-3, warmup_epochs=0.0, ema=0.9, checkpoint_s=1e9)
    grown = Grown(embed=embed, taken=lambda files: files["stage.partial/state.json"])
    return Reader(make=make, read=lambda folder: go_on(folder, quiet), grown=grown)


def faces_reader() -> Reader:
    """The recipe and the digests that a run keeps of itself, as `--resume` reads them."""
    from edgeface.runs import begin

    text = 'name = "tiny"\nthreads = 1\n'
    faces, validation = {"mtfl@train": "ab" * 32, "folder:x@train": "cd" * 32}, {"mtfl@val": "ef" * 32}
    with tempfile.TemporaryDirectory() as name:
        begin(Path(name), text, faces=faces, validation=validation)
        files = {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}
    kept = json.loads(files["faces.json"])

    def make(dice: random.Random) -> Files:
        if dice.randrange(8) == 0:
            return {**files, "recipe.toml": mutate_bytes(dice, files["recipe.toml"])}
        return {**files, "faces.json": mutated_json(dice, kept)}

    def read(folder: Path) -> object:
        begin(folder, text, faces=faces, validation=validation)
        return None

    return Reader(make=make, read=read, grown=only("faces.json", files))


def trial_reader() -> Reader:
    """The result of a sweep's trial, and what a sweep makes of it."""
    from edgeface.report.pareto import csv_text, with_fronts
    from edgeface.sweep.trials import Combination, load_result, rows_of

    combination = Combination(student="edge_s", width=0.25, input_px=16)
    metrics = {"gender": "accuracy", "landmarks5": "nme_percent"}
    file = {
        "precision": "w8a8",
        "file": "out/android/edge_s.w8a8.tflite",
        "sha256": "ab" * 32,
        "runtime": "tflite-xnnpack",
        "latency_ms": 0.003,
        "size_bytes": 35552,
        "macs": 130880,
        "tasks": {"gender": {"accuracy": 0.5, "n": 32.0}, "landmarks5": {"nme_percent": 35.5, "n": 32.0}},
    }
    whole = {
        "schema": 1,
        "key": "k",
        "student": "edge_s",
        "width": 0.25,
        "input_px": 16,
        "state": "DONE",
        "reason": "",
        "machine": {"host": "x"},
        "seconds": 0.5,
        "checkpoint": "ab" * 32,
        "files": [file, {**file, "macs": None}],
    }

    def make(dice: random.Random) -> Files:
        return {"result.json": mutated_json(dice, whole)}

    def read(folder: Path) -> object:
        found = load_result(folder / "result.json", key="k")
        if found is None:
            return None
        rows = rows_of(found, combination, folder=Path("trials/x"))
        return csv_text(with_fronts(rows, tasks=metrics, cost="size_bytes"), tasks=metrics)

    return Reader(make=make, read=read, grown=only("result.json"))
